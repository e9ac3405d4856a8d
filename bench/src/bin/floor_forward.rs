//! The forwarding floor: bytes from each client to an upstream connection of its own and back, unread.
//!
//! `floor_forward LISTEN UPSTREAM`.

use std::collections::VecDeque;
use std::error::Error;
use std::net::{SocketAddr, TcpStream};
use std::os::fd::IntoRawFd;

use blitz_bench::floor::{self, Done, Floor};

const ACCEPT: u64 = u64::MAX;

/// One direction's receiving socket. Sides `2n` and `2n + 1` are a pair: what one receives the other sends.
#[derive(Default)]
struct Side {
    fd: i32,
    /// Received by the other side and not yet sent here. Bounded by the number of buffers.
    queue: VecDeque<(u16, usize)>,
    receiving: bool,
    sending: bool,
    /// No more bytes come from here.
    ended: bool,
}

fn main() -> Result<(), Box<dyn Error>> {
    let listener = floor::listen(floor::argument::<SocketAddr>(1, "address to listen on")?)?;
    let upstream: SocketAddr = floor::argument(2, "address of the upstream")?;
    let mut floor = Floor::new()?;
    let mut sides: Vec<Side> = Vec::new();
    let mut free: Vec<usize> = Vec::new();
    let mut starved: Vec<usize> = Vec::new();
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
                    // Once per connection, on loopback: the blocking connect is not what is measured.
                    let connected =
                        TcpStream::connect(upstream).and_then(|s| s.set_nodelay(true).map(|()| s));
                    match connected {
                        Ok(stream) => open(&mut floor, &mut sides, &mut free, result, stream.into_raw_fd()),
                        Err(_) => floor::close(result),
                    }
                }
                continue;
            }
            let at = (tag >> 1) as usize;
            if tag & 1 == 1 {
                sides[at].sending = false;
                if let Some((buffer, _)) = sides[at].queue.pop_front() {
                    floor.give_back(buffer);
                }
                if result < 0 {
                    sides[at].ended = true;
                }
                if let Some(starving) = starved.pop() {
                    receive(&mut floor, &mut sides, starving);
                }
            } else {
                sides[at].receiving = more;
                match (buffer, usize::try_from(result)) {
                    (Some(buffer), Ok(len @ 1..)) => sides[at ^ 1].queue.push_back((buffer, len)),
                    _ if result == -libc::ENOBUFS => starved.push(at),
                    _ => sides[at].ended = true,
                }
                if !more && !sides[at].ended && result != -libc::ENOBUFS {
                    receive(&mut floor, &mut sides, at);
                }
            }
            send_next(&mut floor, &mut sides, at);
            send_next(&mut floor, &mut sides, at ^ 1);
            finish(&mut floor, &mut sides, &mut free, &mut starved, at & !1);
        }
    }
}

fn tag_of(at: usize, is_send: bool) -> u64 {
    (at as u64) << 1 | u64::from(is_send)
}

fn open(floor: &mut Floor, sides: &mut Vec<Side>, free: &mut Vec<usize>, client: i32, upstream: i32) {
    let pair = free.pop().unwrap_or_else(|| {
        sides.extend([Side::default(), Side::default()]);
        sides.len() - 2
    });
    sides[pair] = Side { fd: client, ..Side::default() };
    sides[pair + 1] = Side { fd: upstream, ..Side::default() };
    receive(floor, sides, pair);
    receive(floor, sides, pair + 1);
}

fn receive(floor: &mut Floor, sides: &mut [Side], at: usize) {
    if !sides[at].receiving && !sides[at].ended {
        sides[at].receiving = true;
        floor.receive(sides[at].fd, tag_of(at, false));
    }
}

/// One send at a time for each side, so that bytes stay in order.
fn send_next(floor: &mut Floor, sides: &mut [Side], at: usize) {
    let side = &mut sides[at];
    if let (false, Some(&(buffer, len))) = (side.sending, side.queue.front()) {
        side.sending = true;
        floor.send_buffer(side.fd, buffer, len, tag_of(at, true));
    }
}

/// When one side has ended and what it sent is out, both are closed, after their last operation.
fn finish(
    floor: &mut Floor,
    sides: &mut [Side],
    free: &mut Vec<usize>,
    starved: &mut Vec<usize>,
    pair: usize,
) {
    let (a, b) = (&sides[pair], &sides[pair + 1]);
    let is_over = (a.ended && b.queue.is_empty()) || (b.ended && a.queue.is_empty());
    if a.fd < 0 || !is_over {
        return;
    }
    for at in [pair, pair + 1] {
        floor::shut_down(sides[at].fd);
    }
    starved.retain(|at| at & !1 != pair);
    if [pair, pair + 1].iter().any(|&at| sides[at].receiving || sides[at].sending) {
        return;
    }
    for at in [pair, pair + 1] {
        floor::close(sides[at].fd);
        sides[at].fd = -1;
        while let Some((buffer, _)) = sides[at].queue.pop_front() {
            floor.give_back(buffer);
        }
    }
    free.push(pair);
}
