//! What each measured server is told to do: one worker, the same answers, the same TLS.
//!
//! Owns: the configurations. Does not own: starting and ending (`servers.rs`).

use std::fs::File;
use std::path::{Path, PathBuf};

use rcgen::{CertificateParams, KeyPair};

use crate::Result;
use crate::servers::{Scratch, Server, free_port};

/// What a server speaks to its clients.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Front {
    /// HTTP/1.1 in clear.
    Plain,
    /// TLS 1.3, inside which ALPN chooses between HTTP/2 and HTTP/1.1; certificate on P-256.
    Tls,
    /// The same, and HTTP/3 on the UDP port of the same number.
    Quic,
}

impl Front {
    fn is_tls(self) -> bool {
        self != Self::Plain
    }
}

/// Where its answers come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Back {
    /// It gives them itself, with so many bytes of body.
    Fixed(usize),
    /// From an upstream on this port, over HTTP/1.1.
    Upstream(u16),
}

/// Bytes of body in the gateway's own `/hello`, which the others answer with as well.
pub(crate) const BODY_BYTES: usize = b"Hello from Blitz\n".len();

/// Makes the certificate that all servers show.
pub(crate) fn certificate(scratch: &Scratch) -> Result<()> {
    let made = || {
        let key = KeyPair::generate()?;
        let certificate = CertificateParams::new(["localhost".to_owned()])?.self_signed(&key)?;
        Ok((certificate.pem(), key.serialize_pem()))
    };
    let (certificate, key) = made().map_err(|error: rcgen::Error| error.to_string())?;
    scratch.write("tls.crt", &certificate)?;
    scratch.write("tls.key", &key)?;
    scratch.write("tls.pem", &(certificate + &key))?;
    Ok(())
}

/// The gateway.
pub(crate) fn blitz(
    scratch: &Scratch,
    core: usize,
    programs: &Path,
    front: Front,
    back: Back,
) -> Result<Server> {
    blitz_as(scratch, "blitz", core, programs, front, back, "auto")
}

/// The gateway with one way of talking to the kernel.
pub(crate) fn blitz_as(
    scratch: &Scratch,
    name: &str,
    core: usize,
    programs: &Path,
    front: Front,
    back: Back,
    io: &str,
) -> Result<Server> {
    let (port, program) = (free_port()?, programs.join("blitz"));
    let program = program.to_string_lossy();
    let path = if matches!(back, Back::Fixed(_)) { "/hello" } else { "/" };
    let url = url(front, port, path);
    if let (Front::Plain, Back::Upstream(upstream)) = (front, back) {
        // As a first user starts it.
        let (to, port) = (format!("127.0.0.1:{upstream}"), port.to_string());
        let words = [&program, "-b", &to, "-p", &port, "-w", "1", "--admin", "off"];
        return scratch.start(name, core, url, &words);
    }
    let protocols = match front {
        Front::Plain => r#""h1""#,
        Front::Tls => r#""h2", "h1""#,
        Front::Quic => r#""h3", "h2", "h1""#,
    };
    let mut text = format!(
        "[[listeners]]\nname = \"bench\"\naddress = \"127.0.0.1:{port}\"\nprotocols = [{protocols}]\n\
         builtin_answers = true\n"
    );
    if front.is_tls() {
        text += "[[listeners.tls.certificates]]\ncert_path = \"tls.crt\"\nkey_path = \"tls.key\"\n";
    }
    if let Back::Upstream(upstream) = back {
        text += &format!(
            "[upstreams.pool]\nendpoints = [{{ address = \"127.0.0.1:{upstream}\" }}]\n\
             [[routes]]\nupstream = \"pool\"\n"
        );
    }
    let conf = scratch.write(&format!("{name}.toml"), &text)?;
    let conf = conf.to_string_lossy();
    scratch.start(name, core, url, &[&program, "-c", &conf, "-w", "1", "--io", io, "--admin", "off"])
}

/// The upstream of proxied answers: nginx with 1 KiB.
pub(crate) fn upstream(scratch: &Scratch, core: usize) -> Result<Server> {
    nginx_as(scratch, "upstream", core, Front::Plain, Back::Fixed(1024))
}

/// The upstream of bulk downloads: nginx with a file of so many bytes, whose path is `/bulk`.
pub(crate) fn file_upstream(scratch: &Scratch, core: usize, bytes: u64) -> Result<Server> {
    let path = scratch.dir.join("bulk");
    let made = File::create(&path).and_then(|file| file.set_len(bytes));
    made.map_err(|error| format!("{}: {error}", path.display()))?;
    let location = format!("root {}; sendfile on;", scratch.dir.display());
    start_nginx(scratch, "upstream", core, Front::Plain, "", &location)
}

pub(crate) fn nginx(scratch: &Scratch, core: usize, front: Front, back: Back) -> Result<Server> {
    nginx_as(scratch, "nginx", core, front, back)
}

fn nginx_as(scratch: &Scratch, name: &str, core: usize, front: Front, back: Back) -> Result<Server> {
    let (pool, location) = match back {
        Back::Fixed(bytes) => (String::new(), format!("return 200 \"{}\";", "x".repeat(bytes))),
        Back::Upstream(upstream) => (
            format!(
                "upstream pool {{ server 127.0.0.1:{upstream}; keepalive 512; keepalive_requests 1000000000; \
                 keepalive_time 1d; }}"
            ),
            "proxy_pass http://pool; proxy_http_version 1.1; proxy_set_header Connection \"\";".to_owned(),
        ),
    };
    start_nginx(scratch, name, core, front, &pool, &location)
}

fn start_nginx(
    scratch: &Scratch,
    name: &str,
    core: usize,
    front: Front,
    pool: &str,
    location: &str,
) -> Result<Server> {
    let port = free_port()?;
    let text = nginx_conf(&scratch.dir, name, port, front, pool, location);
    let conf = scratch.write(&format!("{name}.conf"), &text)?;
    let (dir, conf) = (scratch.dir.to_string_lossy(), conf.to_string_lossy());
    let words = ["nginx", "-p", &dir, "-c", &conf, "-e", "stderr"];
    scratch.start(name, core, url(front, port, "/"), &words)
}

fn nginx_conf(dir: &Path, name: &str, port: u16, front: Front, pool: &str, location: &str) -> String {
    let dir = dir.display();
    // As root, workers would run as another user, who cannot enter the scratch folder.
    let user = if is_root() { "user root;" } else { "" };
    let (options, tls) = match front {
        Front::Plain => ("", String::new()),
        Front::Tls | Front::Quic => (
            "ssl http2",
            format!(
                "ssl_certificate {dir}/tls.crt; ssl_certificate_key {dir}/tls.key; ssl_protocols TLSv1.3;"
            ),
        ),
    };
    format!(
        "{user} daemon off; worker_processes 1; pid {dir}/{name}.pid; error_log stderr error;\n\
         worker_rlimit_nofile 20000;\n\
         events {{ worker_connections 16000; }}\n\
         http {{\n  access_log off; default_type text/plain; keepalive_requests 1000000000; keepalive_timeout 1h;\n  \
         client_body_temp_path {dir}/{name}-body; proxy_temp_path {dir}/{name}-proxy;\n  \
         fastcgi_temp_path {dir}/{name}-f; uwsgi_temp_path {dir}/{name}-u; scgi_temp_path {dir}/{name}-s;\n  \
         {pool}\n  server {{ listen 127.0.0.1:{port} {options} backlog=4096; {tls}\n    \
         location / {{ {location} }} }}\n}}\n"
    )
}

pub(crate) fn haproxy(scratch: &Scratch, core: usize, front: Front, back: Back) -> Result<Server> {
    let port = free_port()?;
    let tls = match front {
        Front::Plain => String::new(),
        Front::Tls | Front::Quic => {
            let pem = scratch.dir.join("tls.pem");
            format!(" ssl crt {} ssl-min-ver TLSv1.3 alpn h2,http/1.1", pem.display())
        }
    };
    let (answer, pool) = match back {
        Back::Fixed(bytes) => (
            format!("http-request return status 200 content-type text/plain string {}", "x".repeat(bytes)),
            String::new(),
        ),
        Back::Upstream(upstream) => {
            ("default_backend pool".to_owned(), format!("backend pool\n  server one 127.0.0.1:{upstream}\n"))
        }
    };
    let text = format!(
        "global\n  nbthread 1\n  no strict-limits\n  maxconn 12000\n\
         defaults\n  mode http\n  timeout connect 5s\n  timeout client 1h\n  timeout server 60s\n  \
         http-reuse always\n\
         frontend front\n  bind 127.0.0.1:{port}{tls}\n  {answer}\n{pool}"
    );
    let conf = scratch.write("haproxy.cfg", &text)?;
    let words = ["haproxy", "-db", "-f", &conf.to_string_lossy()];
    scratch.start("haproxy", core, url(front, port, "/"), &words)
}

/// h2o; it answers with a file, since it has no fixed answers.
pub(crate) fn h2o(scratch: &Scratch, core: usize, front: Front, back: Back) -> Result<Server> {
    let port = free_port()?;
    let dir = scratch.dir.display();
    let user = if is_root() { "user: root\n" } else { "" };
    let tls = match front {
        Front::Plain => String::new(),
        Front::Tls | Front::Quic => format!(
            "  ssl:\n    certificate-file: {dir}/tls.crt\n    key-file: {dir}/tls.key\n    \
             minimum-version: TLSv1.3\n"
        ),
    };
    let handler = match back {
        Back::Fixed(bytes) => {
            scratch.write("index.txt", &"x".repeat(bytes))?;
            format!("file.dir: {dir}")
        }
        Back::Upstream(upstream) => {
            format!(
                "proxy.reverse.url: \"http://127.0.0.1:{upstream}/\"\n        proxy.timeout.keepalive: 60000"
            )
        }
    };
    let text = format!(
        "{user}num-threads: 1\nlisten:\n  host: 127.0.0.1\n  port: {port}\n{tls}\
         hosts:\n  default:\n    paths:\n      \"/\":\n        {handler}\n"
    );
    let conf = scratch.write("h2o.conf", &text)?;
    scratch.start("h2o", core, url(front, port, "/"), &["h2o", "-c", &conf.to_string_lossy()])
}

/// Envoy, from the search path or from where `cargo xtask setup --bench` puts it.
pub(crate) fn envoy(
    scratch: &Scratch,
    core: usize,
    programs: &Path,
    front: Front,
    back: Back,
) -> Result<Server> {
    let port = free_port()?;
    let program = find_envoy(programs).ok_or("envoy is not installed")?;
    let text = envoy_conf(&scratch.dir, port, front, back);
    let conf = scratch.write("envoy.yaml", &text)?;
    let (program, conf) = (program.to_string_lossy(), conf.to_string_lossy());
    let words =
        [&*program, "-c", &conf, "--concurrency", "1", "--disable-hot-restart", "--log-level", "error"];
    scratch.start("envoy", core, url(front, port, "/"), &words)
}

/// Where Envoy is.
pub(crate) fn find_envoy(programs: &Path) -> Option<PathBuf> {
    let installed = programs.parent()?.join("peers/envoy/_bin/envoy");
    if installed.is_file() { Some(installed) } else { find_program("envoy") }
}

/// A program on the search path.
pub(crate) fn find_program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|dir| dir.join(name)).find(|path| path.is_file())
}

fn envoy_conf(dir: &Path, port: u16, front: Front, back: Back) -> String {
    let (action, clusters) = match back {
        Back::Fixed(bytes) => (
            format!(
                "direct_response: {{ status: 200, body: {{ inline_string: \"{}\" }} }}",
                "x".repeat(bytes)
            ),
            String::new(),
        ),
        Back::Upstream(upstream) => (
            "route: { cluster: pool }".to_owned(),
            format!(
                r"
  clusters:
  - name: pool
    type: STATIC
    connect_timeout: 5s
    load_assignment:
      cluster_name: pool
      endpoints:
      - lb_endpoints:
        - endpoint: {{ address: {{ socket_address: {{ address: 127.0.0.1, port_value: {upstream} }} }} }}"
            ),
        ),
    };
    let over_tcp = format!(
        r#"
  - name: front
    address: {{ socket_address: {{ address: 127.0.0.1, port_value: {port} }} }}
    filter_chains:
    - filters: {}{}"#,
        envoy_filters("AUTO", &action),
        if front.is_tls() { envoy_tls(dir, false) } else { String::new() },
    );
    let over_udp = match front {
        Front::Plain | Front::Tls => String::new(),
        Front::Quic => format!(
            r#"
  - name: quic
    address: {{ socket_address: {{ protocol: UDP, address: 127.0.0.1, port_value: {port} }} }}
    udp_listener_config:
      quic_options: {{}}
      downstream_socket_config: {{ prefer_gro: true }}
      udp_packet_packet_writer_config:
        name: envoy.udp_packet_writer.gso
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.udp_packet_writer.v3.UdpGsoBatchWriterFactory
    filter_chains:
    - filters: {}{}"#,
            envoy_filters("HTTP3", &action),
            envoy_tls(dir, true)
        ),
    };
    format!("static_resources:\n  listeners:{over_tcp}{over_udp}{clusters}\n")
}

/// What a listener of Envoy does with its connections.
fn envoy_filters(codec: &str, action: &str) -> String {
    format!(
        r#"
      - name: envoy.filters.network.http_connection_manager
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
          stat_prefix: front
          codec_type: {codec}
          route_config:
            virtual_hosts:
            - name: all
              domains: ["*"]
              routes:
              - match: {{ prefix: "/" }}
                {action}
          http_filters:
          - name: envoy.filters.http.router
            typed_config:
              "@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"#
    )
}

/// How a listener of Envoy encrypts.
fn envoy_tls(dir: &Path, is_quic: bool) -> String {
    let dir = dir.display();
    let context = format!(
        r"common_tls_context: {{ {}tls_params: {{
              tls_minimum_protocol_version: TLSv1_3, tls_maximum_protocol_version: TLSv1_3,
              ecdh_curves: [X25519MLKEM768, X25519] }},
            tls_certificates: [{{ certificate_chain: {{ filename: {dir}/tls.crt }},
              private_key: {{ filename: {dir}/tls.key }} }}] }}",
        if is_quic { "" } else { "alpn_protocols: [h2, http/1.1], " }
    );
    let (name, kind, context) = if is_quic {
        ("quic", "quic.v3.QuicDownstreamTransport", format!("downstream_tls_context: {{ {context} }}"))
    } else {
        ("tls", "tls.v3.DownstreamTlsContext", context)
    };
    format!(
        r#"
      transport_socket:
        name: envoy.transport_sockets.{name}
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.transport_sockets.{kind}
          {context}"#
    )
}

/// Caddy, from the search path or from where `cargo xtask setup --bench` puts it. It speaks HTTP/3 where it has TLS.
pub(crate) fn caddy(scratch: &Scratch, core: usize, programs: &Path, back: Back) -> Result<Server> {
    let port = free_port()?;
    let program = find_caddy(programs).ok_or("caddy is not installed")?;
    let dir = scratch.dir.display();
    let answer = match back {
        Back::Fixed(bytes) => format!("respond {}", "x".repeat(bytes)),
        Back::Upstream(upstream) => {
            let pool = "transport http {\n keepalive_idle_conns_per_host 512\n }";
            format!("reverse_proxy 127.0.0.1:{upstream} {{\n {pool}\n }}")
        }
    };
    let text = format!(
        "{{\n admin off\n auto_https off\n skip_install_trust\n}}\nhttps://localhost:{port} {{\n bind 127.0.0.1\n \
         tls {dir}/tls.crt {dir}/tls.key\n {answer}\n}}\n"
    );
    let conf = scratch.write("Caddyfile", &text)?;
    let (program, conf) = (program.to_string_lossy(), conf.to_string_lossy());
    // As many threads of Go as it has processors.
    let words = ["env", "GOMAXPROCS=1", &program, "run", "--adapter", "caddyfile", "--config", &conf];
    scratch.start("caddy", core, url(Front::Quic, port, "/"), &words)
}

/// Where Caddy is.
pub(crate) fn find_caddy(programs: &Path) -> Option<PathBuf> {
    let installed = programs.parent()?.join("peers/caddy/bin/caddy");
    if installed.is_file() { Some(installed) } else { find_program("caddy") }
}

fn url(front: Front, port: u16, path: &str) -> String {
    let scheme = if front.is_tls() { "https" } else { "http" };
    format!("{scheme}://127.0.0.1:{port}{path}")
}

fn is_root() -> bool {
    // SAFETY: geteuid takes nothing and cannot fail.
    unsafe { libc::geteuid() == 0 }
}
