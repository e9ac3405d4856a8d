//! Two small upstreams for a first try.
//!
//! Owns: an HTTP/1.1 server on a thread per connection that says which one it is and shows the request
//! it got. Does not own: anything that a real server needs; it believes its peer, the gateway.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::thread;
use std::time::Duration;

/// The longest request body that is read and counted, in bytes; beyond it the connection is closed.
const BODY_BYTES_MAX: u64 = 1 << 30;

/// Starts an upstream called `name` on a free port of 127.0.0.1. It lives as long as this program.
///
/// # Errors
/// When no socket can be bound or no thread started.
pub(crate) fn start(name: &'static str) -> std::io::Result<SocketAddr> {
    let listener = TcpListener::bind(("127.0.0.1", 0))?;
    let address = listener.local_addr()?;
    thread::Builder::new().name(format!("sample-{name}")).spawn(move || {
        for stream in listener.incoming().flatten() {
            let _ = thread::Builder::new().spawn(move || serve(stream, name));
        }
    })?;
    Ok(address)
}

/// Answers requests until the peer is done. Errors end the connection, which is all that they mean here.
fn serve(stream: TcpStream, name: &str) -> Option<()> {
    stream.set_read_timeout(Some(Duration::from_secs(120))).ok()?;
    stream.set_nodelay(true).ok()?;
    let mut writer = stream.try_clone().ok()?;
    let mut reader = BufReader::new(stream);
    loop {
        let mut head = String::new();
        let mut body_bytes = 0;
        loop {
            let mut line = String::new();
            // A line beyond 64 KiB reads as the end of the request, and is not one that parses.
            if (&mut reader).take(64 * 1024).read_line(&mut line).ok()? == 0 {
                return None;
            }
            if line.trim_end().is_empty() {
                break;
            }
            if let Some((field, value)) = line.split_once(':')
                && field.eq_ignore_ascii_case("content-length")
            {
                body_bytes = value.trim().parse().ok().filter(|&bytes| bytes <= BODY_BYTES_MAX)?;
            }
            head += &line;
        }
        std::io::copy(&mut (&mut reader).take(body_bytes), &mut std::io::sink()).ok()?;
        let body = format!("upstream {name} answered. It was sent:\n\n{head}");
        let answer = format!(
            "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: {}\r\nX-Upstream: {name}\r\n\r\n",
            body.len()
        );
        let is_head = head.starts_with("HEAD ");
        let bytes = if is_head { answer } else { answer + &body };
        writer.write_all(bytes.as_bytes()).ok()?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn says_who_it_is_and_what_it_was_sent_twice_on_one_connection() {
        let address = start("red").unwrap();
        let mut stream = TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        for _ in 0..2 {
            stream.write_all(b"POST /x HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc").unwrap();
            let mut got = String::new();
            while !got.contains("Content-Length: 3\r\n") {
                let mut bytes = [0; 1024];
                let n = stream.read(&mut bytes).unwrap();
                assert!(n > 0, "closed after {got:?}");
                got += std::str::from_utf8(&bytes[..n]).unwrap();
            }
            assert!(got.starts_with("HTTP/1.1 200 OK\r\n"));
            assert!(got.contains("upstream red answered"));
        }
    }
}
