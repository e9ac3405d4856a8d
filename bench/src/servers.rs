//! The programs that are measured.
//!
//! Owns: their configurations, starting them on a core, waiting until they answer, ending them. Does not
//! own: load and figures. Every child asks the kernel to be told when this program ends, however it ends.

use std::fs::{self, File};
use std::net::{TcpListener, TcpStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::Result;

/// A running server.
pub(crate) struct Server {
    pub(crate) name: String,
    pub(crate) url: String,
    child: Child,
}

impl Server {
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // SIGTERM first: a master ends its workers, which a killed one cannot.
        signal(self.child.id(), libc::SIGTERM);
        let begun = Instant::now();
        while begun.elapsed() < Duration::from_secs(3) {
            if !matches!(self.child.try_wait(), Ok(None)) {
                return;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        for pid in crate::account::tree(self.child.id()) {
            signal(pid, libc::SIGKILL);
        }
        let _ = self.child.wait();
    }
}

/// Asks the kernel to send SIGTERM to the child when the thread that starts it ends: the main thread, always.
pub(crate) fn die_with_us(command: &mut Command) {
    // SAFETY: the closure runs between fork and exec and makes one async-signal-safe system call.
    unsafe { command.pre_exec(ask_for_sigterm) };
}

fn ask_for_sigterm() -> std::io::Result<()> {
    // SAFETY: PR_SET_PDEATHSIG takes a signal number and no pointer.
    let status = unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGTERM) };
    if status == 0 { Ok(()) } else { Err(std::io::Error::last_os_error()) }
}

fn signal(pid: u32, signal: libc::c_int) {
    // SAFETY: kill takes no pointer; the process is our child, or its child, and not yet reaped.
    unsafe { libc::kill(pid.cast_signed(), signal) };
}

/// A port that was free a moment ago.
pub(crate) fn free_port() -> Result<u16> {
    let bound = TcpListener::bind(("127.0.0.1", 0)).and_then(|listener| listener.local_addr());
    bound.map(|address| address.port()).map_err(|error| format!("no free port: {error}"))
}

/// Where configurations and logs of one run lie. Removed at the end.
pub(crate) struct Scratch {
    pub(crate) dir: PathBuf,
}

impl Scratch {
    pub(crate) fn new() -> Result<Self> {
        let dir = std::env::temp_dir().join(format!("blitz-bench-{}", std::process::id()));
        fs::create_dir_all(&dir).map_err(|error| format!("{}: {error}", dir.display()))?;
        Ok(Self { dir })
    }

    fn write(&self, name: &str, text: &str) -> Result<PathBuf> {
        let path = self.dir.join(name);
        fs::write(&path, text).map_err(|error| format!("{}: {error}", path.display()))?;
        Ok(path)
    }

    /// Starts a program on a core and waits until its port takes connections.
    fn start(&self, name: &str, core: usize, port: u16, path: &str, program: &[&str]) -> Result<Server> {
        let log_path = self.dir.join(format!("{name}.log"));
        let log = File::create(&log_path).map_err(|error| format!("{}: {error}", log_path.display()))?;
        let log_too = log.try_clone().map_err(|error| error.to_string())?;
        let mut command = Command::new("taskset");
        command.args(["-c", &core.to_string()]).args(program);
        command.stdin(Stdio::null()).stdout(log).stderr(log_too).current_dir(&self.dir);
        die_with_us(&mut command);
        println!("+ taskset -c {core} {}", program.join(" "));
        let child = command.spawn().map_err(|error| format!("{name}: {error}"))?;
        let mut server =
            Server { name: name.to_owned(), url: format!("http://127.0.0.1:{port}{path}"), child };
        let begun = Instant::now();
        while TcpStream::connect(("127.0.0.1", port)).is_err() {
            let ended = server.child.try_wait().ok().flatten();
            if ended.is_some() || begun.elapsed() > Duration::from_secs(10) {
                let said = fs::read_to_string(&log_path).unwrap_or_default();
                return Err(format!(
                    "{name} takes no connections on port {port} ({ended:?}): {}",
                    said.trim()
                ));
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(server)
    }

    /// nginx with one worker and one `location /`.
    fn nginx(&self, name: &str, core: usize, location: &str, upstream: &str) -> Result<Server> {
        let port = free_port()?;
        let text = nginx_conf(&self.dir, name, port, location, upstream);
        let conf = self.write(&format!("{name}.conf"), &text)?;
        let (dir, conf) = (self.dir.to_string_lossy(), conf.to_string_lossy());
        self.start(name, core, port, "/", &["nginx", "-p", &dir, "-c", &conf, "-e", "stderr"])
    }

    /// The upstream of the proxied scenario: 1 KiB.
    pub(crate) fn upstream(&self, core: usize) -> Result<(Server, u16)> {
        let location = format!("return 200 \"{}\";", "x".repeat(1024));
        let server = self.nginx("upstream", core, &location, "")?;
        let port = server.url.trim_end_matches('/').rsplit(':').next().and_then(|text| text.parse().ok());
        Ok((server, port.ok_or("the upstream has no port")?))
    }

    pub(crate) fn nginx_direct(&self, core: usize, body: usize) -> Result<Server> {
        self.nginx("nginx", core, &format!("return 200 \"{}\";", "x".repeat(body)), "")
    }

    pub(crate) fn nginx_proxy(&self, core: usize, upstream: u16) -> Result<Server> {
        let location = "proxy_pass http://pool; proxy_http_version 1.1; proxy_set_header Connection \"\";";
        let pool = format!(
            "upstream pool {{ server 127.0.0.1:{upstream}; keepalive 128; keepalive_requests 1000000000; \
             keepalive_time 1d; }}"
        );
        self.nginx("nginx", core, location, &pool)
    }

    fn haproxy(&self, core: usize, front: &str, back: &str) -> Result<Server> {
        let port = free_port()?;
        let text = format!(
            "global\n  nbthread 1\n  maxconn 4000\n\
             defaults\n  mode http\n  timeout connect 5s\n  timeout client 60s\n  timeout server 60s\n  \
             http-reuse always\n\
             frontend front\n  bind 127.0.0.1:{port}\n  {front}\n{back}"
        );
        let conf = self.write("haproxy.cfg", &text)?;
        self.start("haproxy", core, port, "/", &["haproxy", "-db", "-f", &conf.to_string_lossy()])
    }

    pub(crate) fn haproxy_direct(&self, core: usize, body: usize) -> Result<Server> {
        let text = "x".repeat(body);
        self.haproxy(
            core,
            &format!("http-request return status 200 content-type text/plain string {text}"),
            "",
        )
    }

    pub(crate) fn haproxy_proxy(&self, core: usize, upstream: u16) -> Result<Server> {
        let back = format!("backend pool\n  server one 127.0.0.1:{upstream}\n");
        self.haproxy(core, "default_backend pool", &back)
    }

    pub(crate) fn floor_respond(&self, core: usize, programs: &Path, body: usize) -> Result<Server> {
        let (port, program) = (free_port()?, programs.join("floor_respond"));
        let address = format!("127.0.0.1:{port}");
        self.start("floor", core, port, "/", &[&program.to_string_lossy(), &address, &body.to_string()])
    }

    pub(crate) fn floor_forward(&self, core: usize, programs: &Path, upstream: u16) -> Result<Server> {
        let (port, program) = (free_port()?, programs.join("floor_forward"));
        let (address, to) = (format!("127.0.0.1:{port}"), format!("127.0.0.1:{upstream}"));
        self.start("floor", core, port, "/", &[&program.to_string_lossy(), &address, &to])
    }

    /// The gateway with its own answers and no upstream.
    pub(crate) fn blitz_direct(&self, core: usize, programs: &Path) -> Result<Server> {
        let port = free_port()?;
        let text = format!(
            "[[listeners]]\nname = \"bench\"\naddress = \"127.0.0.1:{port}\"\nprotocols = [\"h1\"]\n\
             builtin_answers = true\n"
        );
        let conf = self.write("direct.toml", &text)?;
        let program = programs.join("blitz");
        let words = [&program.to_string_lossy(), "-c", &conf.to_string_lossy(), "-w", "1", "--admin", "off"];
        self.start("blitz", core, port, "/hello", &words)
    }

    /// The gateway before one upstream, as a first user starts it.
    pub(crate) fn blitz_proxy(&self, core: usize, programs: &Path, upstream: u16) -> Result<Server> {
        let (port, program) = (free_port()?, programs.join("blitz"));
        let (to, port_text) = (format!("127.0.0.1:{upstream}"), port.to_string());
        let program = program.to_string_lossy();
        self.start(
            "blitz",
            core,
            port,
            "/",
            &[&program, "-b", &to, "-p", &port_text, "-w", "1", "--admin", "off"],
        )
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.dir);
    }
}

fn nginx_conf(dir: &Path, name: &str, port: u16, location: &str, upstream: &str) -> String {
    let dir = dir.display();
    // As root, workers would run as another user, who cannot enter the scratch folder.
    // SAFETY: geteuid takes nothing and cannot fail.
    let user = if unsafe { libc::geteuid() } == 0 { "user root;" } else { "" };
    format!(
        "{user} daemon off; worker_processes 1; pid {dir}/{name}.pid; error_log stderr error;\n\
         worker_rlimit_nofile 20000;\n\
         events {{ worker_connections 16000; }}\n\
         http {{\n  access_log off; default_type text/plain; keepalive_requests 1000000000; keepalive_timeout 1h;\n  \
         client_body_temp_path {dir}/{name}-body; proxy_temp_path {dir}/{name}-proxy;\n  \
         fastcgi_temp_path {dir}/{name}-f; uwsgi_temp_path {dir}/{name}-u; scgi_temp_path {dir}/{name}-s;\n  \
         {upstream}\n  server {{ listen 127.0.0.1:{port} backlog=4096; location / {{ {location} }} }}\n}}\n"
    )
}
