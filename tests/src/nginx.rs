//! A real upstream: nginx with its own folder and configuration.

use std::fs::{self, File};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};

use tempfile::TempDir;

use crate::{PATIENCE, Pki, Upstream, free_port, process, require, sys, wait_until};

/// A running nginx. Dropping it ends it.
///
/// `/` answers with 1 KiB, `/file/NAME` from its folder, `/sink` takes any body unbuffered and answers
/// with the number of bytes that arrived, `/echo` with the request line, `/version` with the protocol, `/tls` with what
/// was agreed on: version, name, `r` for a resumed session, what became of the client's certificate.
#[derive(Debug)]
pub struct Nginx {
    /// Where it listens.
    pub address: SocketAddr,
    /// Where it takes connections with a PROXY protocol header, and answers with the client's address and port and the
    /// destination's that the header names.
    pub proxied: SocketAddr,
    /// What stands behind `/sink`.
    pub sink: Upstream,
    child: Child,
    dir: TempDir,
}

impl Nginx {
    /// Starts it. Call `require!("nginx")` before.
    #[track_caller]
    pub fn start() -> Self {
        Self::start_with("", "")
    }

    /// Starts it with HTTP/2 by prior knowledge, and nothing else.
    #[track_caller]
    pub fn start_h2() -> Self {
        Self::start_with("http2", "")
    }

    /// Starts it with TLS, 1.2 and 1.3 unless `more`, which goes into its server, says otherwise: shows the certificate
    /// `NAME.crt`.
    #[track_caller]
    pub fn start_tls(pki: &Pki, name: &str, more: &str) -> Self {
        Self::start_with("ssl", &tls(pki, name, more))
    }

    /// The same with HTTP/2 besides HTTP/1.1.
    #[track_caller]
    pub fn start_tls_h2(pki: &Pki, name: &str) -> Self {
        Self::start_with("ssl http2", &tls(pki, name, ""))
    }

    #[track_caller]
    fn start_with(listen: &str, more: &str) -> Self {
        let program = require::program("nginx").expect("require!(\"nginx\") stands before");
        let dir = tempfile::tempdir().expect("a scratch folder can be made");
        let sink = Upstream::counting();
        let address = SocketAddr::from(([127, 0, 0, 1], free_port()));
        let proxied = SocketAddr::from(([127, 0, 0, 1], free_port()));
        fs::create_dir(dir.path().join("file")).expect("a folder can be made");
        let conf = dir.path().join("nginx.conf");
        let text =
            configuration(&dir.path().to_string_lossy(), [address, proxied, sink.address], listen, more);
        fs::write(&conf, text).expect("can be written");
        let log = File::create(dir.path().join("stderr.log")).expect("a log can be made");
        let mut command = Command::new(program);
        command.arg("-p").arg(dir.path()).arg("-c").arg(&conf).args(["-e", "stderr"]);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).process_group(0);
        sys::die_with_thread(&mut command);
        let mut child = command.spawn().expect("nginx can be executed");
        wait_until("nginx takes connections", PATIENCE, || {
            let said = || fs::read_to_string(dir.path().join("stderr.log")).unwrap_or_default();
            assert!(matches!(child.try_wait(), Ok(None)), "nginx ended: {}", said());
            TcpStream::connect(address).is_ok()
        });
        Self { address, proxied, sink, child, dir }
    }

    /// Makes a file of zeros without using the disk; it is at `/file/NAME`.
    pub fn sparse_file(&self, name: &str, bytes: u64) {
        let file = File::create(self.dir.path().join("file").join(name)).expect("a file can be made");
        file.set_len(bytes).expect("a sparse file can be made");
    }
}

impl Drop for Nginx {
    fn drop(&mut self) {
        process::kill_group(self.child.id());
        let _ = self.child.wait();
    }
}

fn tls(pki: &Pki, name: &str, more: &str) -> String {
    let (certificate, key) = (pki.path(&format!("{name}.crt")), pki.path(&format!("{name}.key")));
    // Old ones do not speak 1.3 unasked.
    let versions = if more.contains("ssl_protocols") { "" } else { "ssl_protocols TLSv1.2 TLSv1.3;" };
    format!(
        "ssl_certificate {}; ssl_certificate_key {}; {versions} ssl_session_cache shared:sessions:1m; {more}",
        certificate.display(),
        key.display()
    )
}

fn configuration(dir: &str, addresses: [SocketAddr; 3], listen: &str, more: &str) -> String {
    let [address, proxied, sink] = addresses;
    let body = "x".repeat(1024);
    // As root, a worker would run as another user, who cannot enter the scratch folder. One process is enough:
    // a killed master would leave its worker.
    let is_root =
        fs::metadata("/proc/self").is_ok_and(|meta| std::os::unix::fs::MetadataExt::uid(&meta) == 0);
    let user = if is_root { "user root;" } else { "" };
    format!(
        "{user} daemon off; master_process off; pid {dir}/pid; error_log stderr error;
events {{ worker_connections 4096; }}
http {{
  access_log off; default_type text/plain; sendfile on;
  keepalive_requests 1000000000; keepalive_timeout 1h;
  client_max_body_size 0;
  client_body_temp_path {dir}/body; proxy_temp_path {dir}/proxy;
  fastcgi_temp_path {dir}/f; uwsgi_temp_path {dir}/u; scgi_temp_path {dir}/s;
  server {{
    listen {proxied} proxy_protocol;
    location / {{
      return 200 \"$proxy_protocol_addr $proxy_protocol_port $proxy_protocol_server_addr $proxy_protocol_server_port\";
    }}
  }}
  server {{
    listen {address} {listen} backlog=4096;
    {more}
    location / {{ return 200 \"{body}\"; }}
    location /echo {{ return 200 \"$request\\n\"; }}
    location /version {{ return 200 \"$server_protocol\n\"; }}
    location /tls {{ return 200 \"$ssl_protocol $ssl_server_name $ssl_session_reused $ssl_client_verify\\n\"; }}
    location /file/ {{ root {dir}; }}
    location /sink {{
      proxy_pass http://{sink}; proxy_http_version 1.1; proxy_request_buffering off; proxy_buffering off;
      proxy_read_timeout 120s;
    }}
  }}
}}
"
    )
}
