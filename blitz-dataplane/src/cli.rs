//! The command line of `blitz`.
//!
//! Owns: flags, help, exit codes, `--check`, the way from flags to a start. Does not own: the configuration's
//! rules (see `blitz_config`) or the start itself (see [`crate::control::run`]).
//!
//! Exit codes: 0 for a clean end, 1 when the start failed or workers had to be killed, 2 for a wrong command
//! line.
#![forbid(unsafe_code)]

use std::fmt::Write as _;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::process::ExitCode;

use blitz_config::model::{Endpoint, EndpointHost};
use blitz_config::{Config, Overrides};
use clap::Parser;

use crate::control::load::ConfigOrigin;
use crate::control::names::{Schedule, Sources};
use crate::control::{self, AdminChoice, Code, Options, Outcome};
use crate::logging;
use crate::process::launch::{self, Mode};
use crate::process::messages::{IoMode, LogLevel, TlsDiagnosis};
use crate::process::worker::{Place, WorkerCode, worker_main};
use crate::secret::{self, Origin, Places};
use crate::segment::WORKERS_MAX;
use crate::sys::{affinity, privilege, rlimit};

/// A kernel-accelerated edge gateway.
#[derive(Debug, Parser)]
#[command(name = "blitz", version, max_term_width = 100, after_help = EXAMPLES, args_override_self = false)]
pub struct Arguments {
    /// Send requests to this endpoint; repeat it for several, which then take turns
    #[arg(short = 'b', long = "backend", value_name = "HOST:PORT")]
    backends: Vec<String>,

    /// Listen on this TCP port of all IPv4 addresses
    #[arg(short, long, value_name = "PORT")]
    port: Option<u16>,

    /// Read this configuration, .json or .toml; -b, -p and --admin take precedence over it
    #[arg(short, long, value_name = "FILE")]
    config: Option<PathBuf>,

    /// Number of workers [default: one for each processor that may be used]
    #[arg(short, long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=i64::from(WORKERS_MAX)))]
    workers: Option<u32>,

    /// Worker processes (mp) or worker threads of one process (sp)
    #[arg(long, value_enum, default_value_t)]
    mode: Mode,

    /// How workers talk to the kernel; auto takes io_uring where it is allowed
    #[arg(long, value_enum, default_value_t)]
    io: IoMode,

    /// Take any certificate of an upstream: for development
    #[arg(short = 'k', long)]
    insecure: bool,

    /// What goes to the log, on standard error
    #[arg(short, long = "log-level", value_enum, value_name = "LEVEL", default_value_t)]
    log_level: LogLevel,

    /// Everything goes to the log: -l debug
    #[arg(short, long, conflicts_with = "log_level")]
    verbose: bool,

    /// Heads and sizes of all exchanges go to the log, credentials and cookies left out
    #[arg(short, long)]
    trace: bool,

    /// A line for each TLS handshake goes to the log: version, group, cipher, protocol, name, resumption
    #[arg(long)]
    tls_trace: bool,

    /// The secrets of all TLS connections go to the file that SSLKEYLOGFILE names; never without this flag
    #[arg(long)]
    tls_key_log: bool,

    /// Where the admin API listens, or "off" [default: 127.0.0.1:9900]
    #[arg(long, value_name = "ADDR|off")]
    admin: Option<String>,

    /// File of the master secret, created when absent
    #[arg(long, value_name = "FILE")]
    secret_file: Option<PathBuf>,

    /// Control socket of blitz-ctl, which is told whom to block in the kernel
    #[arg(long, value_name = "FILE", default_value = blitz_ctl_protocol::SOCKET_PATH)]
    ctl_socket: PathBuf,

    /// Check the configuration, print what would run, and exit
    #[arg(long)]
    check: bool,

    /// Print the JSON Schema of the configuration and exit
    #[arg(long, exclusive = true)]
    print_schema: bool,
}

const EXAMPLES: &str = "\
Examples:
  blitz -b 127.0.0.1:9001 -b localhost:9002 -p 8080
      A gateway on port 8080 in front of two endpoints.
  blitz -c /etc/blitz/edge.toml --check && blitz -c /etc/blitz/edge.toml
      Check a configuration, then serve it.
  blitz -p 8080 -w 1 --mode sp -v
      One worker thread with only the built-in answers (/hello, /health, /echo/*), for a first look.
  curl -s http://127.0.0.1:9900/upstreams
      Ask the admin API: /metrics /healthz /readyz /config /upstreams /connections, POST /reload, POST /drain.

Signals: HUP reads the configuration again, TERM lets connections end and stops, INT stops at once.
Exit codes: 0 ended as told, 1 the start failed or workers had to be killed, 2 wrong command line.";

/// The program: a worker when the supervisor started it as one, else what the command line says. `C` is what
/// workers execute.
pub fn main<C: WorkerCode>() -> ExitCode {
    if let Some(channel) = launch::inherited_channel() {
        return worker_process::<C>(channel);
    }
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => {
            // Standard output or error may be closed; there is no third place to say so.
            let _unheard = error.print();
            return ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2));
        }
    };
    match execute::<C>(arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("blitz: {}", failure.text);
            ExitCode::from(failure.code)
        }
    }
}

/// Runs as a worker process. The supervisor tells why it ended, so nothing is printed here but what it cannot
/// know.
fn worker_process<C: WorkerCode>(channel: Result<(std::os::unix::net::UnixStream, u32), String>) -> ExitCode {
    logging::install(LogLevel::default().into());
    let (channel, supervisor) = match channel {
        Ok(channel) => channel,
        Err(error) => {
            eprintln!("blitz: {error}");
            return ExitCode::from(2);
        }
    };
    match worker_main::<C>(channel, Place::Process { supervisor }) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_told) => ExitCode::FAILURE,
    }
}

/// Why the program ends otherwise than well.
#[derive(Debug)]
struct Failure {
    code: u8,
    text: String,
}

impl Failure {
    fn usage(text: String) -> Self {
        Self { code: 2, text }
    }

    fn start(text: String) -> Self {
        Self { code: 1, text }
    }
}

fn execute<C: WorkerCode>(arguments: Arguments) -> Result<(), Failure> {
    if arguments.print_schema {
        println!("{:#}", blitz_config::json_schema());
        return Ok(());
    }
    let level = log_level(&arguments);
    logging::install(level.into());
    let (origin, admin) = origin(&arguments);
    if origin.path.is_none() && origin.overrides.port.is_none() {
        let text = "nothing to do: give -p PORT (with -b HOST:PORT for each endpoint), or -c FILE; --help has examples";
        return Err(Failure::usage(text.to_owned()));
    }
    let code = Code::of::<C>();
    let allowed = affinity::allowed()
        .map_err(|error| Failure::start(format!("cannot tell which processors may be used: {error}")))?;
    let cores = cores(arguments.workers, &allowed, std::thread::available_parallelism().ok());
    if arguments.check {
        // A mistake on the command line itself is the caller's, one in the file the file's.
        let text = check(&origin, &arguments, admin, code, cores.len());
        println!("{}", text.map_err(Failure::start)?);
        return Ok(());
    }
    if origin.path.is_none() {
        origin.read().and_then(|text| text.parse().map(drop)).map_err(Failure::usage)?;
    }

    // Kernels before 5.11 lack the call; then only what we open ourselves is sure not to reach the workers.
    if let Err(error) = privilege::keep_inherited_from_children() {
        log::debug!("inherited descriptors stay as they are: {error}");
    }
    match rlimit::raise_descriptors() {
        Ok(limit) if limit < DESCRIPTORS_ADVISED => {
            log::warn!("only {limit} descriptors a process are allowed (ulimit -Hn, systemd: LimitNOFILE)");
        }
        Ok(_) => {}
        Err(error) => log::warn!("the limit of descriptors stays as it is: {error}"),
    }
    let (secret, origin_of_secret) =
        secret::load(&Places::from_environment(arguments.secret_file.clone())).map_err(Failure::start)?;
    match origin_of_secret {
        Origin::Loaded(path) => log::info!("master secret {} from {}", secret.id(), path.display()),
        Origin::Created(path) => log::info!("master secret {} created in {}", secret.id(), path.display()),
        Origin::Memory(why) => log::warn!(
            "master secret {} in memory only, a restart forgets it: {why}; --secret-file names a place",
            secret.id()
        ),
    }
    if let Some(workers) = arguments.workers
        && workers as usize > allowed.len()
    {
        log::warn!("{workers} workers share {} processors and are not pinned", allowed.len());
    }
    if arguments.insecure {
        log::warn!(
            "-k: certificates of upstreams are not verified; whoever is on the way can be any of them"
        );
    }
    let tls = TlsDiagnosis { trace: arguments.tls_trace, key_log: key_log(&arguments)? };
    let options = Options {
        origin,
        mode: arguments.mode,
        worker_arguments: Vec::new(),
        cores,
        io: arguments.io,
        log_level: level,
        trace: arguments.trace,
        tls,
        admin,
        secret,
        ctl_socket: arguments.ctl_socket,
        names: (Sources::default(), Schedule::RECOMMENDED),
        on_ready: None,
    };
    match control::run(options, code) {
        Ok(Outcome::Ended) => Ok(()),
        Ok(Outcome::Forced) => {
            Err(Failure::start("some workers did not end in time and were killed".to_owned()))
        }
        Err(reason) => Err(Failure::start(reason)),
    }
}

/// Fewer descriptors than this are worth a word: two for each of a few thousand proxied connections.
const DESCRIPTORS_ADVISED: u64 = 10_000;

fn log_level(arguments: &Arguments) -> LogLevel {
    match arguments.log_level {
        _ if arguments.verbose => LogLevel::Debug,
        // Traces are lines of level info.
        LogLevel::Err | LogLevel::Warn if arguments.trace || arguments.tls_trace => LogLevel::Info,
        level => level,
    }
}

/// The file of `--tls-key-log`.
fn key_log(arguments: &Arguments) -> Result<Option<PathBuf>, Failure> {
    if !arguments.tls_key_log {
        return Ok(None);
    }
    let path = std::env::var_os("SSLKEYLOGFILE").map(PathBuf::from).ok_or_else(|| {
        Failure::usage("--tls-key-log: the environment names no file in SSLKEYLOGFILE".to_owned())
    })?;
    // A worker's directory is ours, but it is not asked to guess.
    let path = std::path::absolute(&path)
        .map_err(|error| Failure::usage(format!("--tls-key-log: {}: {error}", path.display())))?;
    log::warn!("whoever reads {} can read all TLS connections", path.display());
    Ok(Some(path))
}

fn origin(arguments: &Arguments) -> (ConfigOrigin, AdminChoice) {
    let is_off = arguments.admin.as_deref() == Some("off");
    let overrides = Overrides {
        backends: arguments.backends.clone(),
        port: arguments.port,
        admin: arguments.admin.clone().filter(|_| !is_off),
        is_insecure: arguments.insecure,
        is_for_stage: false,
    };
    let choice = if is_off { AdminChoice::Off } else { AdminChoice::Configured };
    (ConfigOrigin { path: arguments.config.clone(), overrides }, choice)
}

/// The processor of each worker. By default as many workers as processors that may be used, fewer where a
/// control group grants less time than that (`parallelism`). More workers than processors are not pinned: the
/// kernel balances them.
fn cores(wanted: Option<u32>, allowed: &[usize], parallelism: Option<NonZeroUsize>) -> Vec<Option<usize>> {
    let granted = parallelism.map_or(usize::MAX, NonZeroUsize::get);
    let default = allowed.len().min(granted).clamp(1, WORKERS_MAX as usize);
    let count = wanted.map_or(default, |wanted| wanted as usize);
    let pin = |index| {
        if count <= allowed.len() { allowed.get(index).copied() } else { None }
    };
    (0..count).map(pin).collect()
}

/// What would run, as text.
fn check(
    origin: &ConfigOrigin,
    arguments: &Arguments,
    admin: AdminChoice,
    code: Code,
    workers: usize,
) -> Result<String, String> {
    let mut source = origin.read()?;
    let config = source.parse()?;
    source.read_files(&config)?;
    (code.check)(&config, source.files(), &Default::default()).map_err(|issues| source.named(&issues))?;
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    let now = i64::try_from(now.as_secs()).unwrap_or(i64::MAX);
    let expired = crate::tls::material::expired(&config, source.files(), now);
    if !expired.is_empty() {
        return Err(source.named(&expired.join("\n")));
    }
    let mut text = String::new();
    // Writing to a string cannot fail.
    let _infallible = describe(&mut text, &config, arguments, admin, workers);
    Ok(text.trim_end().to_owned())
}

fn describe(
    text: &mut String,
    config: &Config,
    arguments: &Arguments,
    admin: AdminChoice,
    workers: usize,
) -> std::fmt::Result {
    let source = arguments
        .config
        .as_ref()
        .map_or_else(|| "command line".to_owned(), |path| path.display().to_string());
    writeln!(text, "{source}: ok")?;
    writeln!(text, "workers: {workers} (mode {}, io {})", arguments.mode, arguments.io)?;
    for listener in &config.listeners {
        let builtin = if listener.builtin_answers { ", with built-in answers" } else { "" };
        let tls = match &listener.tls {
            Some(tls) if tls.allows_tls12 => ", TLS 1.2 and 1.3",
            Some(_) => ", TLS 1.3",
            None => "",
        };
        let relayed = if listener.proxy_protocol_from.is_some() { ", PROXY protocol" } else { "" };
        writeln!(text, "listener {}: {}{relayed}{tls}{builtin}", listener.name, listener.address)?;
    }
    for upstream in &config.upstreams {
        let shown: Vec<String> = upstream.endpoints.iter().take(ENDPOINTS_SHOWN).map(endpoint).collect();
        let more = upstream.endpoints.len().saturating_sub(ENDPOINTS_SHOWN);
        let more = if more > 0 { format!(" and {more} more") } else { String::new() };
        let unverified = upstream.link.tls.as_ref().is_some_and(|tls| !tls.verify);
        let unverified = if unverified { ", certificates not verified" } else { "" };
        writeln!(text, "upstream {}: {}{more}{unverified}", upstream.name, shown.join(", "))?;
    }
    writeln!(text, "routes: {}", config.routes.len())?;
    for limit in &config.limits {
        let rates = [
            (limit.packets_per_second, "packets"),
            (limit.bytes_per_second, "bytes"),
            (limit.syns_per_second, "connection attempts"),
            (limit.requests_per_second, "requests"),
        ];
        let rates: Vec<String> =
            rates.iter().filter_map(|(rate, what)| rate.map(|rate| format!("{rate} {what}"))).collect();
        let shadow = if limit.shadow { ", counted only" } else { "" };
        writeln!(text, "limit {}: {} a second{shadow}", limit.name, rates.join(", "))?;
    }
    if !config.xdp.interfaces.is_empty() {
        writeln!(text, "xdp: {}, attached by blitz-ctl", config.xdp.interfaces.join(", "))?;
    }
    match admin {
        AdminChoice::Off => writeln!(text, "admin: off"),
        AdminChoice::Configured => writeln!(text, "admin: http://{}/", config.admin.address),
    }
}

/// Endpoints listed for one upstream by `--check` (count).
const ENDPOINTS_SHOWN: usize = 8;

fn endpoint(endpoint: &Endpoint) -> String {
    let port = endpoint.port;
    let host = match &endpoint.host {
        EndpointHost::Address(address) => std::net::SocketAddr::new(*address, port).to_string(),
        EndpointHost::Name(name) => format!("{name}:{port}"),
    };
    let tls = if endpoint.is_tls { " (TLS)" } else { "" };
    if endpoint.weight == 1 {
        format!("{host}{tls}")
    } else {
        format!("{host}{tls} (weight {})", endpoint.weight)
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    fn parse(line: &str) -> Result<Arguments, clap::Error> {
        Arguments::try_parse_from(line.split_whitespace())
    }

    #[test]
    fn the_flags_are_those_of_the_design() {
        Arguments::command().debug_assert();
        let arguments = parse(
            "blitz -b 127.0.0.1:9001 -b localhost:9002 -p 8080 -w 2 --mode sp --io epoll -t -l warn -k",
        )
        .expect("flags");
        assert_eq!(log_level(&arguments), LogLevel::Info, "traces are lines of level info");
        let (origin, admin) = origin(&arguments);
        assert_eq!(origin.overrides.backends, ["127.0.0.1:9001", "localhost:9002"]);
        assert_eq!((origin.overrides.port, origin.path, admin), (Some(8080), None, AdminChoice::Configured));
        assert!(origin.overrides.is_insecure);
        let arguments = parse("blitz -c edge.toml --admin off -v --secret-file s --check").expect("flags");
        assert_eq!(log_level(&arguments), LogLevel::Debug);
        assert_eq!(super::origin(&arguments).1, AdminChoice::Off);
        assert_eq!(super::origin(&arguments).0.overrides.admin, None);
        parse("blitz --print-schema").expect("schema");
    }

    #[test]
    fn a_wrong_command_line_has_exit_code_2_and_help_has_0() {
        for line in [
            "blitz -w 0",
            "blitz -w 257",
            "blitz -p 70000",
            "blitz --mode x",
            "blitz -l loud",
            "blitz -x",
            "blitz -v -l err",
            "blitz --print-schema -p 1",
            "blitz stray",
        ] {
            assert_eq!(parse(line).expect_err(line).exit_code(), 2, "{line}");
        }
        let help = parse("blitz --help").expect_err("help");
        assert_eq!(help.exit_code(), 0);
        assert!(help.to_string().contains("blitz -b 127.0.0.1:9001"));
        assert!(parse("blitz --version").expect_err("version").to_string().starts_with("blitz 0."));
    }

    #[test]
    fn workers_follow_the_processors_and_the_quota() {
        let two = NonZeroUsize::new(2);
        assert_eq!(cores(None, &[1, 5, 7], None), [Some(1), Some(5), Some(7)]);
        assert_eq!(cores(None, &[1, 5, 7], two), [Some(1), Some(5)]);
        assert_eq!(cores(Some(1), &[5, 7], None), [Some(5)]);
        assert_eq!(cores(Some(3), &[5, 7], None), [None, None, None]);
    }
}
