//! Signals that a worker leaves to its supervisor (signal(2)).
//!
//! Owns: ignoring and sending. Does not own: the supervisor's handling, which is tokio's (see
//! `control::signals`).

use std::io;

/// Ignores SIGINT, SIGTERM, SIGHUP and SIGUSR2 in this process. A terminal and a service manager send these
/// to every process of the group; only the supervisor may act on them, and it tells its workers what to do.
///
/// # Errors
/// None that these signal numbers can meet.
pub fn leave_to_supervisor() -> io::Result<()> {
    for signal in [libc::SIGINT, libc::SIGTERM, libc::SIGHUP, libc::SIGUSR2] {
        // SAFETY: SIG_IGN installs no code; the number is a valid signal.
        let previous = unsafe { libc::signal(signal, libc::SIG_IGN) };
        if previous == libc::SIG_ERR {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

/// Name of a signal number, for log lines.
pub fn name(signal: i32) -> &'static str {
    match signal {
        libc::SIGKILL => "SIGKILL",
        libc::SIGSEGV => "SIGSEGV",
        libc::SIGABRT => "SIGABRT",
        libc::SIGBUS => "SIGBUS",
        libc::SIGILL => "SIGILL",
        libc::SIGFPE => "SIGFPE",
        libc::SIGSYS => "SIGSYS",
        libc::SIGTRAP => "SIGTRAP",
        libc::SIGTERM => "SIGTERM",
        libc::SIGINT => "SIGINT",
        libc::SIGXCPU => "SIGXCPU",
        _ => "another signal",
    }
}
