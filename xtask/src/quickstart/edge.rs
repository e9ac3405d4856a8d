//! The quickstart's gateway: its file, its certificate, and one request over each protocol.
//!
//! Owns: both listeners, plain and TLS, and the clients. Does not own: starting it (see [`super`]).

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::{curl, expect};
use crate::setup;
use crate::sh::{self, Result};

/// A request over HTTP/3 by libcurl: most systems' `curl` is built without it.
const OVER_HTTP3: &str = "
import sys
from curl_cffi import CurlHttpVersion, get
answer = get(sys.argv[1], verify=sys.argv[2], timeout=10, http_version=CurlHttpVersion.V3ONLY)
answer.raise_for_status()
print({30: 'HTTP/3'}.get(answer.http_version, answer.http_version))
print(answer.text)
";

/// Where the gateway is, and what it is started from.
pub(super) struct Edge {
    pub(super) config: PathBuf,
    certificate: PathBuf,
    pub(super) tls_port: u16,
}

impl Edge {
    /// Writes certificate and configuration into `dir`.
    pub(super) fn write(
        dir: &Path,
        plain_port: u16,
        tls_port: u16,
        upstreams: [SocketAddr; 2],
    ) -> Result<Self> {
        let (certificate, key) = (dir.join("quickstart.crt"), dir.join("quickstart.key"));
        let mut openssl = Command::new("openssl");
        openssl.args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]);
        openssl.args(["-days", "30", "-subj", "/CN=Blitz quickstart", "-addext"]);
        openssl.args(["subjectAltName=DNS:localhost,IP:127.0.0.1", "-keyout"]).arg(&key);
        sh::read(openssl.arg("-out").arg(&certificate))?;
        let config = dir.join("quickstart.toml");
        let text = configuration(plain_port, tls_port, upstreams);
        std::fs::write(&config, &text).map_err(|error| format!("{}: {error}", config.display()))?;
        println!("{}:\n\n{text}", config.display());
        Ok(Self { config, certificate, tls_port })
    }

    /// One request over each protocol, all on one port number.
    pub(super) fn try_it(&self) -> Result<()> {
        let url = format!("https://localhost:{}", self.tls_port);
        let ca = self.certificate.to_string_lossy();
        for (flag, name) in [("--http1.1", "HTTP/1.1"), ("--http2", "HTTP/2")] {
            let path = format!("{url}/over-{}", name.to_ascii_lowercase().replace('/', "-"));
            let answer = curl(&["-i", flag, "--cacert", &ca, &path])?;
            expect(answer.starts_with(&format!("{name} 200")), &format!("an answer over TLS is {name} 200"))?;
            let alt_svc = format!("alt-svc: h3=\":{}\"", self.tls_port);
            expect(answer.to_ascii_lowercase().contains(&alt_svc), "it says where HTTP/3 is")?;
            println!("{name} over TLS: 200");
        }
        let Some(folder) = setup::python_with("curl_cffi") else {
            println!("The request over HTTP/3 is left out: it needs the Python module curl_cffi.");
            return Ok(());
        };
        let mut client = Command::new("python3");
        client.env("PYTHONPATH", folder).args(["-c", OVER_HTTP3, &format!("{url}/over-http-3"), &ca]);
        let answer = sh::output(&mut client)?;
        let said = String::from_utf8_lossy(&answer.stdout);
        expect(
            said.starts_with("HTTP/3\n") && said.contains("GET /over-http-3"),
            &format!("an answer over QUIC is HTTP/3 200 ({said}{})", String::from_utf8_lossy(&answer.stderr)),
        )?;
        println!("HTTP/3 over QUIC: 200");
        Ok(())
    }
}

fn configuration(plain_port: u16, tls_port: u16, [red, blue]: [SocketAddr; 2]) -> String {
    format!(
        r#"[[listeners]]
name = "plain"
address = "0.0.0.0:{plain_port}"
protocols = ["h1"]

[[listeners]]
name = "edge"
address = "0.0.0.0:{tls_port}"
protocols = ["h1", "h2", "h3"]

[listeners.tls]
certificates = [{{ cert_path = "quickstart.crt", key_path = "quickstart.key" }}]

[upstreams.samples]
endpoints = [{{ address = "{red}" }}, {{ address = "{blue}" }}]

[[routes]]
upstream = "samples"
"#
    )
}
