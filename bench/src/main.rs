//! The bench runner, started by `cargo xtask bench`.
//!
//! Owns: which measurement runs, and the report's frame. Does not own: building what is measured (see
//! `xtask/src/bench.rs`); the measurements (`h1.rs`, `h2.rs`, `h3.rs`,
//! `handshakes.rs`, `idle.rs`, `abuse.rs`, `xdp.rs`).

mod abuse;
mod account;
mod ask;
mod h1;
mod h2;
mod h2load;
mod h3;
mod h3load;
mod handshakes;
mod idle;
mod load;
mod machine;
mod peers;
mod rounds;
mod servers;
mod stats;
mod xdp;

use std::path::PathBuf;
use std::process::ExitCode;

/// A failure is a sentence.
type Result<T> = std::result::Result<T, String>;

/// What the command line asks for.
struct Options {
    out: PathBuf,
    programs: PathBuf,
    /// Rounds in which every program runs once.
    pairs: usize,
    /// Length of a measured run, in seconds.
    seconds: u64,
    /// Length of the run before it that is not measured, in seconds.
    warm_up_seconds: u64,
    scenario: Option<String>,
    connections: usize,
    without_blitz: bool,
    /// Names of the servers that take part, or of the attacks; empty: all.
    only: Vec<String>,
    /// The BPF object to measure instead of the embedded one.
    object: Option<PathBuf>,
    /// Whether this process is in namespaces of its own already.
    inside: bool,
}

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("bench: {message}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<()> {
    let mut options = Options {
        out: PathBuf::from("target/bench"),
        programs: PathBuf::from("target/release"),
        pairs: 7,
        seconds: 3,
        warm_up_seconds: 1,
        scenario: None,
        connections: 10_000,
        without_blitz: false,
        only: Vec::new(),
        object: None,
        inside: false,
    };
    let mut words = std::env::args().skip(1);
    let which = words.next().ok_or("which one, h1, h2, h3, tls, idle, abuse or xdp?")?;
    if which == xdp::FLOOD {
        return xdp::flood(words.next().as_deref());
    }
    if which == "abuse" {
        options.seconds = 10;
    }
    while let Some(word) = words.next() {
        let mut value = || words.next().ok_or(format!("{word} wants a value"));
        match word.as_str() {
            "--out" => options.out = value()?.into(),
            "--programs" => options.programs = value()?.into(),
            "--pairs" => options.pairs = number(&value()?)?.max(1),
            "--seconds" => options.seconds = number(&value()?)?.max(1) as u64,
            "--scenario" => options.scenario = Some(value()?),
            "--connections" => options.connections = number(&value()?)?.max(1),
            "--inside" => options.inside = true,
            "--object" => options.object = Some(value()?.into()),
            "--without-blitz" => options.without_blitz = true,
            "--only" => options.only = value()?.split(',').map(str::to_owned).collect(),
            "--quick" => {
                options.pairs = 2;
                options.seconds = 1;
            }
            _ => return Err(format!("{word:?} is not known here")),
        }
    }
    // Servers start in a folder of their own.
    options.programs = std::path::absolute(&options.programs).map_err(|error| error.to_string())?;
    std::fs::create_dir_all(&options.out).map_err(|error| format!("{}: {error}", options.out.display()))?;
    let report = match which.as_str() {
        "h1" => h1::run(&options)?,
        "h2" => h2::run(&options)?,
        "h3" => h3::run(&options)?,
        "tls" => handshakes::run(&options)?,
        "idle" => idle::run(&options)?,
        "abuse" => abuse::run(&options)?,
        "xdp" => xdp::run(&options)?,
        other => return Err(format!("there is no bench {other:?}")),
    };
    let path = options.out.join(format!("{which}.json"));
    let text = serde_json::to_string_pretty(&report).map_err(|error| error.to_string())? + "\n";
    std::fs::write(&path, text).map_err(|error| format!("{}: {error}", path.display()))?;
    println!("\nwritten to {}", path.display());
    Ok(())
}

fn number(text: &str) -> Result<usize> {
    text.parse().map_err(|_| format!("{text:?}: a whole number is wanted"))
}
