//! Load while something else happens.
//!
//! Owns: clients that make requests without pause and count what went wrong, and wrk for real pressure.
//! Does not own: measuring speed (see `bench/`).

use std::fmt;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use crate::{PATIENCE, process, require, sys};

/// What clients saw.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Tally {
    /// Whole 200 answers.
    pub good: u64,
    /// A sentence for each thing that went wrong.
    pub bad: Vec<String>,
}

impl fmt::Debug for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} good, {} bad, first {:?}", self.good, self.bad.len(), self.bad.first())
    }
}

/// Clients that run until they are stopped.
#[derive(Debug)]
pub struct Clients {
    stop: Arc<AtomicBool>,
    good: Arc<AtomicU64>,
    bad: Arc<Mutex<Vec<String>>>,
    threads: Vec<JoinHandle<()>>,
}

impl Clients {
    /// `count` clients, each making one GET after another; on one connection, or on one for each request.
    pub fn start(address: SocketAddr, count: usize, path: &str, keep_alive: bool) -> Self {
        let (stop, good, bad) = (Arc::default(), Arc::default(), Arc::default());
        let mut clients = Self { stop, good, bad, threads: Vec::new() };
        for _ in 0..count {
            let (stop, good, bad) =
                (Arc::clone(&clients.stop), Arc::clone(&clients.good), Arc::clone(&clients.bad));
            let connection = if keep_alive { "keep-alive" } else { "close" };
            let request = format!("GET {path} HTTP/1.1\r\nHost: test\r\nConnection: {connection}\r\n\r\n");
            clients.threads.push(std::thread::spawn(move || {
                let mut kept = None;
                while !stop.load(Ordering::SeqCst) {
                    match one(address, &request, &mut kept, keep_alive) {
                        Ok(()) => drop(good.fetch_add(1, Ordering::SeqCst)),
                        Err(error) => {
                            kept = None;
                            bad.lock().unwrap_or_else(PoisonError::into_inner).push(error);
                        }
                    }
                }
            }));
        }
        clients
    }

    /// Whole 200 answers so far.
    pub fn good(&self) -> u64 {
        self.good.load(Ordering::SeqCst)
    }

    /// Requests that went wrong so far.
    pub fn bad(&self) -> usize {
        self.bad.lock().unwrap_or_else(PoisonError::into_inner).len()
    }

    /// Ends them all.
    pub fn stop(mut self) -> Tally {
        self.stop.store(true, Ordering::SeqCst);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
        Tally { good: self.good(), bad: self.bad.lock().unwrap_or_else(PoisonError::into_inner).clone() }
    }
}

impl Drop for Clients {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
    }
}

/// One request. A kept connection that the peer has closed in good order between two requests (it said
/// `Connection: close`) is opened again; anything else is an error.
fn one(
    address: SocketAddr,
    request: &str,
    kept: &mut Option<TcpStream>,
    keep_alive: bool,
) -> Result<(), String> {
    let failed = |step: &'static str| move |error: std::io::Error| format!("{step}: {error}");
    let mut stream = match kept.take() {
        Some(stream) => stream,
        None => {
            let stream = TcpStream::connect_timeout(&address, PATIENCE).map_err(failed("connect"))?;
            stream.set_read_timeout(Some(PATIENCE)).map_err(failed("timeout"))?;
            stream
        }
    };
    stream.write_all(request.as_bytes()).map_err(failed("send"))?;
    let mut answer = Vec::new();
    let mut bytes = [0; 16 * 1024];
    loop {
        let n = stream.read(&mut bytes).map_err(failed("receive"))?;
        if n == 0 {
            return Err(format!("closed after {} bytes of an answer", answer.len()));
        }
        answer.extend_from_slice(&bytes[..n]);
        let Some(end) = crate::client::find(&answer, b"\r\n\r\n") else {
            continue;
        };
        let head = String::from_utf8_lossy(&answer[..end]).into_owned();
        if !head.starts_with("HTTP/1.1 200") {
            return Err(format!("answered {:?}", head.lines().next().unwrap_or_default()));
        }
        let length =
            crate::client::field(&head, "content-length").and_then(|text| text.parse::<usize>().ok());
        let length = length.ok_or("an answer without a length")?;
        if answer.len() >= end + 4 + length {
            let says_close =
                crate::client::field(&head, "connection").is_some_and(|v| v.eq_ignore_ascii_case("close"));
            *kept = (keep_alive && !says_close).then_some(stream);
            return Ok(());
        }
    }
}

/// wrk, for as long as it is wanted.
#[derive(Debug)]
pub struct Wrk {
    child: Child,
}

impl Wrk {
    /// Starts it with one thread for `seconds`. Call `require!("wrk")` before.
    pub fn start(url: &str, connections: usize, seconds: u64) -> Self {
        let program = require::program("wrk").expect("require!(\"wrk\") stands before");
        let mut command = Command::new(program);
        command.args(["-t1", &format!("-c{connections}"), &format!("-d{seconds}s"), url]);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        sys::die_with_thread(&mut command);
        Self { child: command.spawn().expect("wrk can be executed") }
    }

    /// Waits for its end and returns what it printed.
    pub fn finish(mut self) -> String {
        let mut said = String::new();
        if let Some(stdout) = self.child.stdout.as_mut() {
            let _ = stdout.read_to_string(&mut said);
        }
        said
    }

    /// Asks it to end now.
    pub fn interrupt(&self) {
        process::send(self.child.id(), process::Signal::Int);
    }

    /// Fails unless wrk made requests and saw no error.
    #[track_caller]
    pub fn assert_clean(said: &str) {
        assert!(said.contains("requests in"), "wrk did not run: {said}");
        assert!(!said.contains("Socket errors") && !said.contains("Non-2xx"), "wrk saw errors:\n{said}");
        assert!(!said.contains(" 0 requests in"), "wrk got no answer:\n{said}");
    }
}

impl Drop for Wrk {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
