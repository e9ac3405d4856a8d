//! The command line of `blitz-ctl run`.
//!
//! Owns: flags and their help. Does not own: the other verbs (see `crate::cli`).
#![forbid(unsafe_code)]

use std::net::SocketAddr;
use std::path::PathBuf;

use super::{Options, exporter, logging, run};
use crate::error::Result;
use crate::pins::Pins;

/// Keeps the stages in line with a configuration, serves the control socket and the metrics.
#[derive(Clone, Debug, clap::Args)]
pub struct Arguments {
    /// The configuration; SIGHUP reads it again
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    /// The control socket
    #[arg(long, value_name = "PATH", default_value = blitz_ctl_protocol::SOCKET_PATH)]
    socket: PathBuf,
    /// Where metrics are served, or `off`
    #[arg(long, value_name = "ADDR", default_value = exporter::ADDRESS, value_parser = metrics)]
    metrics: Metrics,
    /// Who besides root may use the control socket: the user that blitz runs as
    #[arg(long, value_name = "NAME")]
    user: Option<String>,
    /// More in the log
    #[arg(short, long)]
    verbose: bool,
}

#[derive(Clone, Copy, Debug)]
struct Metrics(Option<SocketAddr>);

fn metrics(text: &str) -> std::result::Result<Metrics, String> {
    if text == "off" {
        return Ok(Metrics(None));
    }
    let address = text.parse().map_err(|_| "accepted: an address and port such as 127.0.0.1:9901, or off")?;
    Ok(Metrics(Some(address)))
}

impl Arguments {
    /// Runs the daemon to its end over the stages pinned at `pins`.
    ///
    /// # Errors
    /// As [`run`].
    pub fn execute(self, pins: Pins) -> Result<()> {
        logging::install(if self.verbose { log::LevelFilter::Debug } else { log::LevelFilter::Info });
        run(Options {
            config: self.config,
            socket: self.socket,
            metrics: self.metrics.0,
            user: self.user,
            pins,
        })
    }
}
