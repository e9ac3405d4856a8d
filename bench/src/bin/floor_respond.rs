//! The answering floor: fixed bytes for each request head, and nothing else.
//!
//! `floor_respond LISTEN BODY_BYTES`. A request is whatever ends with an empty line: nothing is parsed.

use std::error::Error;
use std::net::SocketAddr;

use blitz_bench::floor::{self, Done, Floor};

/// Answers that one send can carry; a client that pipelines more gets them in several sends.
const BATCH: usize = 64;
const ACCEPT: u64 = u64::MAX;

/// One connection. Its slot is free again once neither operation is under way.
#[derive(Default)]
struct Connection {
    fd: i32,
    /// Bytes of `\r\n\r\n` seen so far: a request head may be split between two buffers.
    matched: usize,
    /// Answers that are due and not yet being sent (count).
    owed: usize,
    receiving: bool,
    sending: bool,
    closing: bool,
}

fn main() -> Result<(), Box<dyn Error>> {
    let listener = floor::listen(floor::argument::<SocketAddr>(1, "address to listen on")?)?;
    let body_bytes: usize = floor::argument(2, "number of body bytes")?;
    let head = format!(
        "HTTP/1.1 200 OK\r\nServer: floor\r\nDate: Thu, 01 Jan 1970 00:00:00 GMT\r\nContent-Type: text/plain\r\n\
         Content-Length: {body_bytes}\r\n\r\n"
    );
    let answer = head + &"x".repeat(body_bytes);
    let answers: &'static [u8] = Box::leak(answer.repeat(BATCH).into_boxed_str().into_boxed_bytes());
    let mut floor = Floor::new()?;
    let mut connections: Vec<Connection> = Vec::new();
    let mut free: Vec<usize> = Vec::new();
    let mut done = Vec::new();
    floor.accept(&listener, ACCEPT);
    loop {
        floor.wait(&mut done)?;
        for Done { tag, result, buffer, more } in done.drain(..) {
            if tag == ACCEPT {
                if !more {
                    floor.accept(&listener, ACCEPT);
                }
                if result >= 0 {
                    let at = free.pop().unwrap_or_else(|| {
                        connections.push(Connection::default());
                        connections.len() - 1
                    });
                    connections[at] = Connection { fd: result, receiving: true, ..Connection::default() };
                    floor.receive(result, tag_of(at, false));
                }
                continue;
            }
            let at = (tag >> 1) as usize;
            let connection = &mut connections[at];
            if tag & 1 == 1 {
                connection.sending = false;
                if result < 0 {
                    connection.closing = true;
                    floor::shut_down(connection.fd);
                }
            } else {
                connection.receiving = more;
                if let (Some(buffer), Ok(len @ 1..)) = (buffer, usize::try_from(result)) {
                    connection.owed += heads(floor.bytes(buffer, len), &mut connection.matched);
                    floor.give_back(buffer);
                } else if result != -libc::ENOBUFS {
                    connection.closing = true;
                }
                if !connection.receiving && !connection.closing {
                    floor.receive(connection.fd, tag_of(at, false));
                    connection.receiving = true;
                }
            }
            if connection.owed > 0 && !connection.sending && !connection.closing {
                let count = connection.owed.min(BATCH);
                connection.owed -= count;
                connection.sending = true;
                floor.send_static(connection.fd, &answers[..answers.len() / BATCH * count], tag_of(at, true));
            }
            if connection.closing && !connection.sending && !connection.receiving {
                floor::close(connection.fd);
                free.push(at);
            }
        }
    }
}

fn tag_of(at: usize, is_send: bool) -> u64 {
    (at as u64) << 1 | u64::from(is_send)
}

/// How many request heads end in `bytes`.
fn heads(bytes: &[u8], matched: &mut usize) -> usize {
    const END: &[u8; 4] = b"\r\n\r\n";
    // What a load generator sends: whole heads. Comparing the last four bytes first keeps the floor low.
    if *matched == 0 && bytes.ends_with(END) && bytes.len() < 256 {
        let inner = &bytes[..bytes.len() - END.len()];
        return 1 + inner.windows(END.len()).filter(|window| window == END).count();
    }
    let mut count = 0;
    for &byte in bytes {
        *matched = match (byte == END[*matched], byte) {
            (true, _) => *matched + 1,
            (false, b'\r') => 1,
            (false, _) => 0,
        };
        if *matched == END.len() {
            count += 1;
            *matched = 0;
        }
    }
    count
}

#[cfg(test)]
mod tests {
    use super::heads;

    #[test]
    fn counts_heads_however_they_are_split() {
        let text = b"GET / HTTP/1.1\r\nA: b\r\n\r\nGET / HTTP/1.1\r\n\r\n\r\r\n\r\n";
        for step in 1..=text.len() {
            let mut matched = 0;
            let count: usize = text.chunks(step).map(|part| heads(part, &mut matched)).sum();
            assert_eq!(count, 3, "in steps of {step}");
        }
    }
}
