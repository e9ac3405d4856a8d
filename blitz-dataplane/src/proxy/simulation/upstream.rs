//! The scripted upstream servers.
//!
//! Owns: what each [`Behaviour`] does on the wire, and the check of what the gateway sent. Does not
//! own: the choice of behaviour (it is in the request's path).
#![forbid(unsafe_code)]

use std::rc::Rc;
use std::time::Duration;

use super::Env;
use super::plan::{Behaviour, Request, answer_id, chunked, pattern};
use super::wire::{Fault, Framing, Head, Wire};
use crate::runtime::TcpListener;
use crate::runtime::sim::Rng;

/// Accepts for ever.
pub(super) async fn listen(env: Rc<Env>, listener: TcpListener, seed: u64) {
    let mut number = 0;
    while let Ok(stream) = listener.accept().await {
        number += 1;
        let end = seed << 32 | number;
        let wire = Wire::new(stream, &env.trace, end);
        env.handle.spawn(serve(Rc::clone(&env), wire, Rng::new(end)));
    }
}

async fn serve(env: Rc<Env>, mut wire: Wire, rng: Rng) {
    loop {
        let head = match wire.head().await {
            Ok(head) => head,
            Err(Fault::Malformed(what)) => return env.ledger.violation(format!("upstream read {what}")),
            Err(_) => return,
        };
        if let Err(_gone) = exchange(&env, &mut wire, &rng, &head).await {
            return;
        }
    }
}

/// Ends the connection.
struct Ends;

impl From<Fault> for Ends {
    fn from(_: Fault) -> Self {
        Self
    }
}

async fn exchange(env: &Rc<Env>, wire: &mut Wire, rng: &Rng, head: &Head) -> Result<(), Ends> {
    let mut words = head.start.split(' ');
    let (method, target) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let Some((id, behaviour, size)) = Request::read_target(target) else {
        env.ledger.violation(format!("upstream got {:?}", head.start));
        return Err(Ends);
    };
    env.ledger.arrived(id, method, head);
    env.ledger.count_fault(behaviour);
    if behaviour == Behaviour::NeverReads {
        return until_closed_unread(env, wire).await;
    }
    if head.get("expect").is_some() && behaviour != Behaviour::EarlyAnswer && id & 1 == 0 {
        wire.send(b"HTTP/1.1 100 Continue\r\n\r\n").await?;
    }
    let reads_first = behaviour != Behaviour::EarlyAnswer;
    if reads_first {
        read_body(env, wire, id, head).await?;
    }
    let own = |status: &str| format!("HTTP/1.1 {status}\r\nX-Id: {id:016x}\r\n");
    let body = pattern(answer_id(id), size);
    let is_head = method == "HEAD";
    let length = format!("{}Content-Length: {size}\r\n\r\n", own("200 OK"));
    let coded = format!("{}Transfer-Encoding: chunked\r\n\r\n", own("200 OK"));
    let half = &body[..body.len() / 2];
    match behaviour {
        Behaviour::Length | Behaviour::CloseAfter | Behaviour::Continues | Behaviour::Hints => {
            match behaviour {
                Behaviour::Continues => wire.send(b"HTTP/1.1 100 Continue\r\n\r\n").await?,
                Behaviour::Hints => {
                    wire.send(b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n").await?;
                    wire.handle.sleep(Duration::from_millis(rng.below(20))).await;
                }
                _ => {}
            }
            send_all(wire, &[length.as_bytes(), if is_head { b"" } else { &body }]).await?;
            if behaviour == Behaviour::CloseAfter {
                if rng.chance(500) {
                    wire.handle.sleep(Duration::from_millis(rng.below(30))).await;
                }
                return close(wire).await;
            }
            Ok(())
        }
        Behaviour::Chunked | Behaviour::Trailers => {
            let trailers = match behaviour {
                Behaviour::Trailers => format!("X-Sum: {id:016x}\r\n"),
                _ => String::new(),
            };
            let framed = if is_head { Vec::new() } else { chunked(rng, &body, &trailers) };
            Ok(send_all(wire, &[coded.as_bytes(), &framed]).await?)
        }
        Behaviour::UntilEnd => {
            send_all(wire, &[own("200 OK").as_bytes(), b"\r\n", &body]).await?;
            close(wire).await
        }
        Behaviour::NoContent => Ok(wire.send(format!("{}\r\n", own("204 No Content")).as_bytes()).await?),
        Behaviour::NotModified => {
            let text = format!("{}ETag: \"a\"\r\nContent-Length: 77\r\n\r\n", own("304 Not Modified"));
            Ok(wire.send(text.as_bytes()).await?)
        }
        Behaviour::Slow => {
            wire.send(length.as_bytes()).await?;
            for piece in body.chunks(body.len() / 4 + 1) {
                wire.handle.sleep(env.times.upstream_body * 2 / 3).await;
                wire.send(piece).await?;
            }
            Ok(())
        }
        Behaviour::EarlyAnswer => {
            send_all(wire, &[own("200 OK").as_bytes(), b"Connection: close\r\n"]).await?;
            send_all(wire, &[format!("Content-Length: {size}\r\n\r\n").as_bytes(), &body]).await?;
            // Goes on reading, so that no reset overtakes the answer.
            let (_, fault) = wire.rest().await;
            Err(fault.into())
        }
        Behaviour::CloseSaid => {
            send_all(wire, &[own("200 OK").as_bytes(), b"Connection: close\r\n"]).await?;
            send_all(wire, &[format!("Content-Length: {size}\r\n\r\n").as_bytes(), &body]).await?;
            close(wire).await
        }
        Behaviour::CloseBefore => close(wire).await,
        Behaviour::ResetBefore => {
            wire.stream.reset_on_close();
            Err(Ends)
        }
        Behaviour::CloseInHead => {
            wire.send(&length.as_bytes()[..length.len() / 2]).await?;
            close(wire).await
        }
        Behaviour::CloseMid | Behaviour::ResetMid | Behaviour::StallMid => {
            if id & 2 == 0 {
                send_all(wire, &[length.as_bytes(), half]).await?;
            } else {
                let framed = chunked(rng, half, "");
                let open = &framed[..framed.len() - 5];
                send_all(wire, &[coded.as_bytes(), open]).await?;
            }
            match behaviour {
                Behaviour::CloseMid => close(wire).await,
                Behaviour::StallMid => until_closed(wire).await,
                _ => {
                    // A reset overtakes what has not arrived; give the head a chance.
                    wire.handle.sleep(Duration::from_millis(rng.below(200))).await;
                    wire.stream.reset_on_close();
                    Err(Ends)
                }
            }
        }
        Behaviour::Garbage => {
            wire.send(b"ICY 200 OK\r\nserver: none\r\n\r\n").await?;
            until_closed(wire).await
        }
        Behaviour::LengthAndCoding => {
            let text = format!("{}Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n", own("200 OK"));
            send_all(wire, &[text.as_bytes(), b"0\r\n\r\n"]).await?;
            until_closed(wire).await
        }
        Behaviour::BigHead => {
            let field = format!("X-Pad: {}\r\n", "p".repeat(300));
            wire.send(own("200 OK").as_bytes()).await?;
            for _ in 0..env.response_head_bytes_max / 300 + 1 {
                wire.send(field.as_bytes()).await?;
            }
            wire.send(b"Content-Length: 0\r\n\r\n").await?;
            until_closed(wire).await
        }
        Behaviour::UnknownCoding => {
            let text = format!("{}Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n", own("200 OK"));
            wire.send(text.as_bytes()).await?;
            until_closed(wire).await
        }
        Behaviour::BadChunk => {
            let mut framed = chunked(rng, &body, "");
            framed.truncate(framed.len() - 5);
            send_all(wire, &[coded.as_bytes(), &framed, b"5 \r\nhello\r\n0\r\n\r\n"]).await?;
            until_closed(wire).await
        }
        Behaviour::BigTrailers => {
            let trailers = format!("X-Pad: {}\r\n", "t".repeat(1000)).repeat(9);
            send_all(wire, &[coded.as_bytes(), &chunked(rng, &body, &trailers)]).await?;
            until_closed(wire).await
        }
        Behaviour::StallFirst => until_closed(wire).await,
        Behaviour::Switches => {
            let text = "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n";
            wire.send(text.as_bytes()).await?;
            until_closed(wire).await
        }
        Behaviour::HintFlood => {
            for _ in 0..5_000 {
                wire.send(b"HTTP/1.1 103 Early Hints\r\nLink: </style.css>; rel=preload\r\n\r\n").await?;
            }
            Ok(send_all(wire, &[length.as_bytes(), &body]).await?)
        }
        Behaviour::NeverReads => Ok(()),
    }
}

async fn read_body(env: &Rc<Env>, wire: &mut Wire, id: u64, head: &Head) -> Result<(), Ends> {
    let framing = match (head.says("transfer-encoding", "chunked"), head.length()) {
        (true, Ok(None)) => Framing::Chunked,
        (false, Ok(Some(length))) => Framing::Length(length),
        (false, Ok(None)) => Framing::Nothing,
        _ => {
            env.ledger.violation(format!("request {id:x} has an ambiguous length at the upstream"));
            return Err(Ends);
        }
    };
    let mut body = Vec::new();
    let outcome = wire.body(framing, &mut body).await;
    env.ledger.upload(id, &body, &outcome);
    outcome.map(drop).map_err(Ends::from)
}

async fn send_all(wire: &Wire, parts: &[&[u8]]) -> Result<(), Fault> {
    for part in parts {
        wire.send(part).await?;
    }
    Ok(())
}

/// Ends in order: nothing that was sent is lost.
async fn close(wire: &mut Wire) -> Result<(), Ends> {
    wire.stream.shutdown_write();
    let _ = wire.stream.flushed().await;
    until_closed(wire).await
}

async fn until_closed(wire: &mut Wire) -> Result<(), Ends> {
    let _ = wire.rest().await;
    Err(Ends)
}

/// Waits for the gateway to give up, taking no byte: the write side notices.
async fn until_closed_unread(env: &Rc<Env>, wire: &mut Wire) -> Result<(), Ends> {
    wire.handle.sleep(env.times.send * 3 + Duration::from_secs(20)).await;
    Err(Ends)
}
