//! `cargo xtask quickstart`: from a clone to proxied requests with one command.
//!
//! Owns: building, starting, trying, and saying what was done. Does not own: the sample upstreams
//! (see [`crate::sample`]), ending the gateway whatever happens (see [`crate::guard`]), the gateway's file and its
//! protocols (see [`edge`]), or the kernel stage (see [`stage`]).

mod edge;
mod stage;

use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::process::Command;
use std::time::{Duration, Instant};

use crate::guard::Guarded;
use crate::sh::{self, Args, Result};
use crate::{sample, setup};
use edge::Edge;

pub(crate) const HELP: &str = "
cargo xtask quickstart [--once] [--debug]

Builds the gateway, starts it before two sample upstreams with a certificate of its own, makes
requests through it over HTTP/1.1, HTTP/2 and HTTP/3, and says what it did. As root it also
makes a veth pair into a namespace with the kernel stage on it, makes requests over it and
floods it for a second. Then it stays up until Ctrl-C.

  --once    stop after the requests; the exit code says whether all went well
  --debug   use the debug build, which is quicker to build and slower to run
";

/// How long the gateway may take until `/readyz` says yes.
const READY_WITHIN: Duration = Duration::from_secs(10);

pub(crate) fn main(mut args: Args) -> Result<()> {
    if let Some(target) = args.value(stage::FLOOD_FLAG)? {
        args.finish()?;
        return stage::flood(&target);
    }
    let (once, debug) = (args.flag("--once"), args.flag("--debug"));
    args.finish()?;
    let missing = setup::ensure(setup::Scope::Quickstart)?;
    for (program, why) in [("curl", "make the requests"), ("openssl", "make a certificate")] {
        if missing.contains(&program) {
            return Err(format!("{program} is needed to {why}"));
        }
    }
    let (profile, release) = if debug { ("debug", None) } else { ("release", Some("--release")) };
    sh::run(sh::cargo(["build", "-p", "blitz-dataplane", "--bin", "blitz"]).args(release))?;
    let stage_missing = stage::missing();
    if stage_missing.is_none() {
        sh::run(sh::cargo(["build", "-p", "blitz-ctl", "--bin", "blitz-ctl"]).args(release))?;
    }

    let io = |error: std::io::Error| format!("a sample upstream did not start: {error}");
    let (red, blue) = (sample::start("red").map_err(io)?, sample::start("blue").map_err(io)?);
    println!("sample upstreams: red on {red}, blue on {blue}");
    let (port, tls_port, admin_port) = (free_port(8080)?, free_port(8443)?, free_port(9900)?);
    let admin = format!("127.0.0.1:{admin_port}");
    // In the build folder: a first look leaves nothing behind in the user's own.
    let folder = sh::target_dir();
    let edge = Edge::write(&folder, port, tls_port, [red, blue])?;
    let mut command = Command::new(folder.join(profile).join("blitz"));
    command.arg("-c").arg(&edge.config);
    command.arg("--secret-file").arg(folder.join("quickstart.secret")).args(["--admin", &admin]);
    let mut gateway = Guarded::start(&mut command)?;
    wait_ready(&mut gateway, &admin)?;
    try_it(&format!("http://127.0.0.1:{port}"), &format!("http://{admin}"))?;
    edge.try_it()?;
    let mut staged = None;
    if let Some(missing) = &stage_missing {
        println!("The kernel stage is left out: it needs {missing}.");
    } else {
        let (stage, sink) = stage::Stage::attach(&sh::target_dir().join(profile), port)?;
        let said = stage.try_it(port, &sink)?;
        staged = Some((stage, sink, said));
    }
    println!("{}", summary([red, blue], [port, tls_port], &admin));
    if let Some((stage, _, said)) = &staged {
        println!("The kernel stage: {said}.\n{}\n", stage.hint());
    }

    if once {
        if let Some((stage, ..)) = staged {
            stage.remove()?;
        }
        gateway.stop(Duration::from_secs(15))?;
        if TcpListener::bind(("127.0.0.1", port)).is_err() {
            return Err(format!("port {port} was still taken after the gateway ended"));
        }
        println!("quickstart: all went well; the gateway drained and ended");
        return Ok(());
    }
    println!("Up until Ctrl-C.");
    let status = gateway.wait()?;
    Err(format!("the gateway ended by itself with {status}"))
}

/// `preferred` when it is free over TCP and UDP, else any.
fn free_port(preferred: u16) -> Result<u16> {
    let free = |port| {
        let port = TcpListener::bind(("0.0.0.0", port))?.local_addr()?.port();
        UdpSocket::bind(("0.0.0.0", port)).map(|_| port)
    };
    free(preferred).or_else(|_| free(0)).map_err(|error: std::io::Error| format!("no free port: {error}"))
}

fn wait_ready(gateway: &mut Guarded, admin: &str) -> Result<()> {
    let begun = Instant::now();
    let url = format!("http://{admin}/readyz");
    println!("+ curl -fs {url}   (until it answers 200)");
    while begun.elapsed() < READY_WITHIN {
        if let Some(status) = gateway.ended() {
            return Err(format!(
                "the gateway (process {}) ended with {status} before it was ready",
                gateway.pid()
            ));
        }
        let mut probe = Command::new("curl");
        probe.args(["-fs", "--noproxy", "*", "-m", "1", "-o", "/dev/null", &url]);
        if sh::output(&mut probe)?.status.success() {
            println!("ready after {} ms", begun.elapsed().as_millis());
            return Ok(());
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    Err(format!("{url} did not answer 200 within {} s", READY_WITHIN.as_secs()))
}

fn curl(args: &[&str]) -> Result<String> {
    sh::read(Command::new("curl").args(["-sS", "--fail", "--noproxy", "*", "-m", "10"]).args(args))
}

fn expect(found: bool, what: &str) -> Result<()> {
    if found { Ok(()) } else { Err(format!("{what}: not so")) }
}

/// The requests, each with what its answer must show.
fn try_it(url: &str, admin: &str) -> Result<()> {
    let first = curl(&["-i", &format!("{url}/first?a=1")])?;
    println!("{}\n", first.trim_end());
    expect(first.starts_with("HTTP/1.1 200"), "the first answer is HTTP/1.1 200")?;
    expect(
        first.to_ascii_lowercase().contains("x-forwarded-for: 127.0.0.1"),
        "the upstream saw X-Forwarded-For",
    )?;

    // Four URLs in one command: one connection, four requests.
    let four = format!("{url}/request-[1-4]");
    let answers = curl(&[&four])?;
    for name in ["red", "blue"] {
        let count = answers.matches(&format!("upstream {name} answered")).count();
        println!("of four requests on one connection {count} went to {name}");
        expect(count > 0, &format!("upstream {name} answered"))?;
    }
    let posted = curl(&["-d", "some=body", &format!("{url}/post")])?;
    expect(posted.contains("POST /post"), "the upstream got the POST")?;
    let metrics = curl(&[&format!("{admin}/metrics")])?;
    let samples: Vec<_> = metrics.lines().filter(|line| line.starts_with("blitz_")).collect();
    expect(!samples.is_empty(), "the metrics show samples of blitz_")?;
    let shown = samples.iter().filter(|line| line.contains("requests") || line.contains("connections"));
    for line in shown.take(8) {
        println!("{line}");
    }
    println!("({} samples in all)", samples.len());
    println!("{}", curl(&[&format!("{admin}/upstreams")])?.trim_end());
    Ok(())
}

fn summary([red, blue]: [SocketAddr; 2], [port, tls_port]: [u16; 2], admin: &str) -> String {
    format!(
        "
The gateway is at        http://127.0.0.1:{port}/   (upstreams {red} and {blue}, in turn)
                         https://localhost:{tls_port}/   (HTTP/1.1, HTTP/2, HTTP/3; certificate quickstart.crt)
Its metrics              http://{admin}/metrics
Its upstreams            http://{admin}/upstreams
Its connections          http://{admin}/connections

What to look at next
  your own upstream      blitz -b 127.0.0.1:9001 -p 8080      (cargo build --release; target/release/blitz)
  all flags              blitz --help
  a configuration file   docs/configuration.md; blitz --print-schema
  how it is built        docs/ARCHITECTURE.md
  how it is tested       docs/testing.md; cargo xtask test
"
    )
}
