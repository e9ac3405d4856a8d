//! The scripted clients, honest and faulty.
//!
//! Owns: what each does on the wire. Does not own: the verdict (`oracle.rs`).
#![forbid(unsafe_code)]

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Duration;

use super::Env;
use super::oracle::{Answer, Circumstances, Got, judge};
use super::plan::{Behaviour, Group, Outcome, Request, Upload, pattern};
use super::wire::{Fault, Framing, Wire};
use crate::runtime::TcpStream;
use crate::runtime::sim::Rng;

/// One client.
pub(super) struct Client {
    pub(super) env: Rc<Env>,
    pub(super) rng: Rng,
    pub(super) number: u64,
    /// What it waits for, shown when the simulation hangs.
    pub(super) doing: Rc<RefCell<String>>,
}

impl Client {
    fn does(&self, what: impl Into<String>) {
        *self.doing.borrow_mut() = what.into();
    }

    fn say(&self, what: &str) {
        self.env.ledger.violation(format!("client {}: {what}", self.number));
    }

    fn id(&self) -> u64 {
        self.rng.next()
    }

    /// Plays one script.
    pub(super) async fn run(self) {
        self.does("starting");
        self.env.handle.sleep(Duration::from_millis(self.rng.below(self.env.span_ms))).await;
        let script = self.env.script.unwrap_or(self.rng.below(24));
        let name =
            if script == TOO_OFTEN { NAMES[NAMES.len() - 1] } else { NAMES[script.min(ASKS) as usize] };
        self.env.ledger.count(&format!("client {name}"));
        match script {
            0 => self.stalls_in_head().await,
            1 => self.stalls_in_body().await,
            2 => self.disconnects().await,
            3 => self.never_reads().await,
            4 | 5 => self.is_malformed().await,
            6 => self.is_too_large().await,
            7 => self.uploads_slowly().await,
            8 => self.uploads_to_a_wall().await,
            9 => self.stays_idle().await,
            10 => self.reads_late().await,
            TOO_OFTEN => self.asks_too_often().await,
            _ => self.asks().await,
        }
    }

    async fn connect(&self) -> Option<Wire> {
        self.does("connecting");
        match TcpStream::connect(&self.env.handle, self.env.gateway).await {
            Ok(stream) => Some(Wire::new(stream, &self.env.trace, self.number | 1 << 32)),
            Err(error) => {
                if !self.env.drains.get() {
                    self.say(&format!("the gateway refused: {error}"));
                }
                None
            }
        }
    }

    /// Any request: mostly good, sometimes to a bad place.
    fn request(&self) -> Request {
        let (rng, size_max) = (&self.rng, self.env.size_max);
        let mut request = Request::good(rng, self.id(), size_max);
        match rng.below(10) {
            0 | 1 if request.method != "HEAD" => {
                request.behaves(Behaviour::BAD[rng.below(Behaviour::BAD.len() as u64) as usize]);
            }
            2 => {
                let groups = [
                    Group::Refused,
                    Group::BlackHole,
                    Group::Unreachable,
                    Group::Nameless,
                    Group::ReadOnly,
                    Group::Unknown,
                ];
                request.group = groups[rng.below(6) as usize];
            }
            _ => {}
        }
        request
    }

    /// Bursts of requests on one connection.
    async fn asks(&self) {
        let Some(mut wire) = self.connect().await else { return };
        if self.rng.chance(80) {
            // The runtime reads 16 KiB ahead: four pauses without a byte taken, within the deadline.
            let most_ms = self.env.times.send.as_millis() as u64 / 8;
            wire.pause = Some(Duration::from_millis(50 + self.rng.below(most_ms - 50)));
        }
        let bursts = 1 + self.rng.below(4);
        for number in 0..bursts {
            let is_last = number + 1 == bursts;
            let count = if self.rng.chance(300) { 2 + self.rng.below(4) } else { 1 };
            let mut burst: Vec<Request> = (0..count).map(|_| self.request()).collect();
            for request in &mut burst {
                // Who waits for 100 does not pipeline, and Connection: close comes last.
                request.expects_continue &= count == 1;
                request.closes &= count == 1;
            }
            let may_be_closed = number > 0 && self.rng.chance(60);
            if may_be_closed {
                self.does("idling until the connection may be closed");
                let keep_alive_ms = self.env.times.keep_alive.as_millis() as u64;
                self.env.handle.sleep(Duration::from_millis(keep_alive_ms - 60 + self.rng.below(120))).await;
            } else if number > 0 && self.rng.chance(500) {
                self.does("idling");
                let most_ms = self.env.times.keep_alive.as_millis() as u64 / 3;
                self.env.handle.sleep(Duration::from_millis(self.rng.below(most_ms))).await;
            }
            if !self.burst(&mut wire, &burst, may_be_closed, is_last).await {
                return;
            }
        }
        match self.rng.below(3) {
            0 => {}
            1 => {
                wire.stream.reset_on_close();
            }
            _ => {
                wire.stream.shutdown_write();
                self.does("waiting for the end after a half-close");
                self.expect_end(&mut wire, true).await;
            }
        }
    }

    /// Sends requests at once and reads their answers. `false` when the connection is over.
    async fn burst(&self, wire: &mut Wire, burst: &[Request], may_be_closed: bool, is_last: bool) -> bool {
        let began_ns = self.env.handle.now_ns();
        let mut bytes = Vec::new();
        let mut later = Vec::new();
        for request in burst {
            self.env.ledger.sends(request);
            bytes.extend(request.head());
            if request.expects_continue {
                later = request.body(&self.rng);
            } else {
                bytes.extend(request.body(&self.rng));
            }
        }
        let sent = self.write(wire, bytes);
        // A half-close before the answer: to the gateway the client has left, so the last answer may not come.
        let leaves = is_last && later.is_empty() && self.rng.chance(100);
        if leaves {
            self.shut_down_after(wire, &sent);
        }
        let mut sent_later = None;
        let breaks = burst.iter().position(|request| request.outcome() == Outcome::Cut);
        for (index, request) in burst.iter().enumerate() {
            self.does(format!("waiting for the answer to {} {:x}", request.target(), request.id));
            let mut pending = std::mem::take(&mut later);
            let got = self.answer(wire, request.method == "HEAD", &mut pending, &mut sent_later).await;
            let took_ns = self.env.handle.now_ns() - began_ns;
            let about = Circumstances {
                took: Duration::from_nanos(took_ns),
                is_pipelined: burst.len() > 1,
                may_be_closed: (may_be_closed && index == 0) || (leaves && index + 1 == burst.len()),
                may_be_discarded: breaks.is_some_and(|at| index < at),
            };
            judge(&self.env, &format!("client {}", self.number), request, &got, &about);
            let Ok(answer) = got else { return false };
            if answer.end.is_err() {
                return false;
            }
            let waits = !pending.is_empty();
            if self.is_over(request, &answer) {
                self.does("waiting for the end after the last answer");
                let is_sent = sent.get() && sent_later.as_ref().is_none_or(|sent| sent.get());
                self.expect_end(wire, is_sent).await;
                return false;
            }
            if waits {
                self.say("the connection goes on although the body was never invited");
                return false;
            }
        }
        self.does("waiting for the rest of a body to be taken");
        while !(sent.get() && sent_later.as_ref().is_none_or(|sent| sent.get())) {
            self.env.handle.sleep(Duration::from_millis(5)).await;
        }
        true
    }

    /// Whether the answer says that it is the last of its connection.
    fn is_over(&self, request: &Request, answer: &Answer) -> bool {
        let closes = answer.head.says("connection", "close");
        let keeps = answer.head.says("connection", "keep-alive");
        if request.closes && !closes {
            self.say(&format!("{:x} asked to close and was not told so", request.id));
        }
        if request.is_http10 && !closes && !keeps {
            self.say(&format!(
                "{:x}: an HTTP/1.0 client was not told what becomes of the connection",
                request.id
            ));
        }
        closes || (request.is_http10 && !keeps)
    }

    /// The gateway ends the connection and sends nothing more.
    async fn expect_end(&self, wire: &mut Wire, must_be_orderly: bool) {
        let (rest, fault) = wire.rest().await;
        if !rest.is_empty() {
            let shown = &rest[..rest.len().min(60)];
            self.say(&format!("{} bytes after the last answer: {}", rest.len(), shown.escape_ascii()));
        }
        if must_be_orderly && fault != Fault::Ended && !self.env.is_lenient() {
            self.say(&format!("the connection ended with {fault:?}"));
        }
    }

    /// Writes from a task of its own, in random pieces, now and then with a pause.
    fn write(&self, wire: &Wire, bytes: Vec<u8>) -> Rc<Cell<bool>> {
        let (sender, rng, handle) = (wire.sender(), self.rng.clone(), self.env.handle.clone());
        let done = Rc::new(Cell::new(false));
        let flag = Rc::clone(&done);
        let is_slow = rng.chance(100);
        // A head byte by byte, within its deadline.
        let bytewise = if rng.chance(60) { 120 } else { 0 };
        self.env.handle.spawn(async move {
            let mut rest = bytes.as_slice();
            while !rest.is_empty() {
                let is_bytewise = bytes.len() - rest.len() < bytewise;
                let most = if is_bytewise { 1 } else { rest.len() as u64 };
                let (now, next) = rest.split_at(1 + rng.below(most) as usize);
                if sender.send(now).await.is_err() {
                    break;
                }
                rest = next;
                if is_bytewise {
                    // A sleep takes up to a tick of the wheel, 8 ms.
                    handle.sleep(Duration::from_millis(1)).await;
                } else if is_slow {
                    handle.sleep(Duration::from_millis(rng.below(40))).await;
                }
            }
            flag.set(true);
        });
        done
    }

    fn shut_down_after(&self, wire: &Wire, sent: &Rc<Cell<bool>>) {
        let (stream, sent) = (Rc::clone(&wire.stream), Rc::clone(sent));
        let handle = self.env.handle.clone();
        self.env.ledger.count("half-close before the answer");
        self.env.handle.spawn(async move {
            while !sent.get() {
                handle.sleep(Duration::from_millis(1)).await;
            }
            stream.shutdown_write();
        });
    }

    /// Reads the next final answer. `pending` is sent at the first 100.
    async fn answer(
        &self,
        wire: &mut Wire,
        is_head: bool,
        pending: &mut Vec<u8>,
        sent: &mut Option<Rc<Cell<bool>>>,
    ) -> Got {
        let mut interims = Vec::new();
        loop {
            let head = wire.head().await?;
            let mut words = head.start.split(' ');
            let version = words.next().unwrap_or_default();
            let status: u16 = words.next().and_then(|word| word.parse().ok()).unwrap_or(0);
            if version != "HTTP/1.1" || !(100..=599).contains(&status) {
                return Err(Fault::Malformed(format!("status line {:?}", head.start)));
            }
            if status < 200 {
                interims.push(status);
                if status == 100 && !pending.is_empty() {
                    *sent = Some(self.write(wire, std::mem::take(pending)));
                }
                continue;
            }
            if head.count("date") != 1 {
                return Err(Fault::Malformed("no Date".to_owned()));
            }
            let framing = match (head.says("transfer-encoding", "chunked"), head.length()?) {
                _ if is_head || matches!(status, 204 | 304) => Framing::Nothing,
                (true, None) => Framing::Chunked,
                (false, Some(length)) => Framing::Length(length),
                (false, None) => Framing::UntilEnd,
                (true, Some(_)) => return Err(Fault::Malformed("length and coding".to_owned())),
            };
            let mut body = Vec::new();
            let (trailers, end) = match wire.body(framing, &mut body).await {
                Ok(trailers) => (trailers, Ok(())),
                Err(fault) => (Vec::new(), Err(fault)),
            };
            return Ok(Answer { status, head, body, trailers, interims, end });
        }
    }

    /// Reads one answer that must be `status`, then the end of the connection.
    async fn expect_refusal(&self, wire: &mut Wire, status: u16, what: &str) -> Option<()> {
        let got = self.answer(wire, false, &mut Vec::new(), &mut None).await;
        match got {
            Ok(answer) if answer.status == status && answer.end.is_ok() => {
                self.env.ledger.count(&format!("status {status}"));
                if !answer.head.says("connection", "close") {
                    self.say(&format!("{what}: the refusal does not close"));
                }
                self.expect_end(wire, false).await;
                Some(())
            }
            Ok(answer) if self.env.resets && matches!(answer.status, 502 | 504) => None,
            Ok(_) | Err(Fault::Ended | Fault::Reset) if self.env.is_lenient() => None,
            other => {
                let shown = other.map(|answer| (answer.status, answer.end));
                self.say(&format!("{what}: {shown:?} instead of {status}"));
                None
            }
        }
    }

    fn simple(&self, method: &'static str, behaviour: Behaviour, size: usize, upload: Upload) -> Request {
        Request {
            id: self.id(),
            method,
            group: Group::Main,
            behaviour,
            size,
            upload,
            is_http10: false,
            is_http3: false,
            closes: false,
            expects_continue: false,
            has_hop_field: false,
        }
    }

    async fn stalls_in_head(&self) {
        let Some(mut wire) = self.connect().await else { return };
        let request = self.simple("GET", Behaviour::Length, 10, Upload::Nothing);
        self.env.ledger.smuggles(&request);
        let head = request.head();
        let began_ns = self.env.handle.now_ns();
        let part = self.rng.below(head.len() as u64) as usize;
        self.write_slowly(&wire, &head[..part]).await;
        self.does("waiting for 408");
        if part == 0 {
            return self.expect_end(&mut wire, true).await;
        }
        self.expect_refusal(&mut wire, 408, "a stalled head").await;
        self.check_time(began_ns, self.env.times.head);
    }

    /// The deadline must not have come early.
    fn check_time(&self, began_ns: u64, limit: Duration) {
        let took = Duration::from_nanos(self.env.handle.now_ns() - began_ns);
        if took < limit && !self.env.is_lenient() {
            self.say(&format!("a deadline of {limit:?} came after {took:?}"));
        }
    }

    async fn write_slowly(&self, wire: &Wire, bytes: &[u8]) {
        for piece in bytes.chunks(bytes.len() / 3 + 1) {
            if wire.send(piece).await.is_err() {
                return;
            }
            self.env.handle.sleep(Duration::from_millis(self.rng.below(30))).await;
        }
    }

    async fn stalls_in_body(&self) {
        let Some(mut wire) = self.connect().await else { return };
        let len = 2 + self.rng.below(3000) as usize;
        let upload = if self.rng.chance(500) { Upload::Length(len) } else { Upload::Trailers(len) };
        let request = self.simple("POST", Behaviour::Length, 10, upload);
        self.env.ledger.sends(&request);
        let body = request.body(&self.rng);
        let mut bytes = request.head();
        let began_ns = self.env.handle.now_ns();
        bytes.extend_from_slice(&body[..self.rng.below(body.len() as u64) as usize]);
        self.write_slowly(&wire, &bytes).await;
        self.does("waiting for 408");
        // A stale pooled connection is noticed first.
        let got = self.answer(&mut wire, false, &mut Vec::new(), &mut None).await;
        match got {
            Ok(answer) if matches!(answer.status, 408 | 502) && answer.end.is_ok() => {
                self.env.ledger.count(&format!("status {}", answer.status));
                if answer.status == 408 {
                    self.check_time(began_ns, self.env.times.body);
                }
                self.does("waiting for the end of a stalled body's connection");
                self.expect_end(&mut wire, false).await;
            }
            _ if self.env.is_lenient() => {}
            other => {
                let shown = other.map(|answer| (answer.status, answer.end));
                self.say(&format!("a stalled body: {shown:?} instead of 408"));
            }
        }
    }

    async fn disconnects(&self) {
        let Some(wire) = self.connect().await else { return };
        let requests = [self.request(), self.request()];
        let mut bytes = Vec::new();
        for request in &requests {
            self.env.ledger.sends(request);
            bytes.extend(request.head());
            bytes.extend(request.body(&self.rng));
        }
        bytes.truncate(self.rng.below(bytes.len() as u64 + 1) as usize);
        let _sent = self.write(&wire, bytes);
        self.does("about to disconnect");
        self.env.handle.sleep(Duration::from_millis(self.rng.below(400))).await;
        if self.rng.chance(500) {
            wire.stream.reset_on_close();
        }
    }

    async fn never_reads(&self) {
        let Some(mut wire) = self.connect().await else { return };
        let size = 300_000 + self.env.window_bytes;
        let behaviour = if self.rng.chance(500) { Behaviour::Length } else { Behaviour::Chunked };
        let request = self.simple("GET", behaviour, size, Upload::Nothing);
        self.env.ledger.sends(&request);
        if wire.send(&request.head()).await.is_err() {
            return;
        }
        self.does("reading nothing");
        self.env.handle.sleep(self.env.times.send * 2 + Duration::from_secs(15)).await;
        self.does("reading what is left");
        let got = self.answer(&mut wire, false, &mut Vec::new(), &mut None).await;
        if got.is_ok_and(|answer| answer.end.is_ok()) {
            self.say("the gateway waited for a reader that did not read");
        }
    }

    /// Takes an answer that ends with the connection, too late: what is left of it must not look whole.
    async fn reads_late(&self) {
        let Some(mut wire) = self.connect().await else { return };
        let size = 30_000 + self.env.window_bytes;
        let request = self.simple("GET", Behaviour::UntilEnd, size, Upload::Nothing);
        let request = Request { is_http10: true, closes: true, ..request };
        self.env.ledger.sends(&request);
        if wire.send(&request.head()).await.is_err() {
            return;
        }
        self.does("reading late");
        self.env.handle.sleep(self.env.times.send * 2 + Duration::from_secs(2)).await;
        let got = self.answer(&mut wire, false, &mut Vec::new(), &mut None).await;
        if let Ok(answer) = got
            && answer.status == 200
            && answer.end.is_ok()
            && answer.body.len() != size
        {
            self.say(&format!("{} of {size} bytes looked whole to a late reader", answer.body.len()));
        }
    }

    /// Heads and bodies that break the rules, each with the status that names it, followed by a
    /// request that must not be served.
    async fn is_malformed(&self) {
        let Some(mut wire) = self.connect().await else { return };
        let request = self.simple("POST", Behaviour::Length, 10, Upload::Length(5));
        let target = request.target();
        let (head, body) = (
            |rest: &str| format!("POST {target} HTTP/1.1\r\nHost: sim.test\r\nX-Body: 5\r\n{rest}"),
            "hello",
        );
        let table: &[(&str, String, u16)] = &[
            ("no Host", format!("GET {target} HTTP/1.1\r\n\r\n"), 400),
            ("two Hosts", head("Host: other\r\n\r\n"), 400),
            ("length and coding", head("Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n"), 400),
            ("coding and length", head("Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n"), 400),
            ("two lengths", head("Content-Length: 5\r\nContent-Length: 5\r\n\r\nhello"), 400),
            ("a list of lengths", head("Content-Length: 5, 5\r\n\r\nhello"), 400),
            ("a signed length", head("Content-Length: +5\r\n\r\nhello"), 400),
            ("an endless length", head("Content-Length: 99999999999999999999\r\n\r\n"), 400),
            ("chunked twice", head("Transfer-Encoding: chunked, chunked\r\n\r\n0\r\n\r\n"), 400),
            ("an unknown coding", head("Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n"), 400),
            ("gzip, chunked", head("Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n"), 501),
            ("a bare LF", head("A: b\n\r\n"), 400),
            ("a NUL", head("A: b\0c\r\n\r\n"), 400),
            ("a folded line", head("A: b\r\n c\r\n\r\n"), 400),
            ("a space before the colon", head("Content-Length : 5\r\n\r\nhello"), 400),
            ("another version", format!("GET {target} HTTP/2.0\r\nHost: sim.test\r\n\r\n"), 505),
            ("no version", format!("GET {target}\r\n\r\n"), 400),
            ("CONNECT", "CONNECT sim.test:80 HTTP/1.1\r\nHost: sim.test\r\n\r\n".to_owned(), 501),
            ("another expectation", head("Expect: a-miracle\r\nContent-Length: 5\r\n\r\n"), 417),
            ("https", format!("GET https://sim.test{target} HTTP/1.1\r\nHost: sim.test\r\n\r\n"), 421),
            ("a long method", format!("{} / HTTP/1.1\r\nHost: sim.test\r\n\r\n", "M".repeat(90)), 501),
            (
                "coding in HTTP/1.0",
                format!("POST {target} HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n"),
                400,
            ),
        ];
        let bodies: &[(&str, &str, u16)] = &[
            ("a bad chunk size", "5x\r\nhello\r\n0\r\n\r\n", 400),
            ("a negative chunk size", "-5\r\nhello\r\n0\r\n\r\n", 400),
            ("a chunk size with a bare LF", "5\nhello\r\n0\r\n\r\n", 400),
            ("a chunk that is too long", "4\r\nhello\r\n0\r\n\r\n", 400),
            ("a forbidden trailer", "5\r\nhello\r\n0\r\nContent-Length: 0\r\n\r\n", 400),
            ("an endless chunk size", "fffffffffffffffff\r\nhello\r\n", 400),
        ];
        let pick = self.rng.below((table.len() + bodies.len() + 1) as u64) as usize;
        let (what, bytes, status) = if let Some((what, bytes, status)) = table.get(pick) {
            self.env.ledger.smuggles(&request);
            (*what, bytes.clone().into_bytes(), *status)
        } else if let Some((what, body, status)) = bodies.get(pick - table.len()) {
            let request = Request { upload: Upload::Chunked(5), ..request };
            self.env.ledger.sends(&request);
            let mut bytes = request.head();
            bytes.extend(with_pattern(body, request.id));
            (*what, bytes, *status)
        } else {
            let request = Request { upload: Upload::Chunked(5), ..request };
            self.env.ledger.sends(&request);
            let trailers = format!("X-Pad: {}\r\n", "t".repeat(900)).repeat(10);
            let mut bytes = request.head();
            bytes.extend(with_pattern(&format!("5\r\n{body}\r\n0\r\n{trailers}\r\n"), request.id));
            ("large trailers", bytes, 431)
        };
        self.refused_with_a_smuggled_request(&mut wire, what, bytes, status).await;
    }

    async fn refused_with_a_smuggled_request(
        &self,
        wire: &mut Wire,
        what: &str,
        mut bytes: Vec<u8>,
        status: u16,
    ) {
        let smuggled = self.simple("GET", Behaviour::Length, 10, Upload::Nothing);
        self.env.ledger.smuggles(&smuggled);
        bytes.extend(smuggled.head());
        let _sent = self.write(wire, bytes);
        self.does(format!("waiting for {status} to {what}"));
        self.expect_refusal(wire, status, what).await;
    }

    async fn is_too_large(&self) {
        let Some(mut wire) = self.connect().await else { return };
        let env = &self.env;
        let request = self.simple("POST", Behaviour::Length, 10, Upload::Length(5));
        let start = format!("GET {} HTTP/1.1\r\nHost: sim.test\r\n", request.target());
        let (what, bytes, status) = match self.rng.below(6) {
            0 => {
                let target = format!("/main/{}", "t".repeat(env.target_bytes_max));
                (
                    "a long target",
                    format!("GET {target} HTTP/1.1\r\nHost: sim.test\r\n\r\n").into_bytes(),
                    414,
                )
            }
            1 => {
                let pad = format!("A: {}\r\n", "a".repeat(200)).repeat(env.head_bytes_max / 200 + 1);
                ("a large head", format!("{start}{pad}\r\n").into_bytes(), 431)
            }
            2 => {
                let pad = "A: b\r\n".repeat(env.fields_max);
                ("many fields", format!("{start}{pad}\r\n").into_bytes(), 431)
            }
            3 => {
                let request = Request { upload: Upload::Length(env.body_bytes_max + 1), ..request };
                env.ledger.smuggles(&request);
                ("a large body", request.head(), 413)
            }
            4 => return self.traces(&mut wire, &request).await,
            _ => {
                let request = Request { upload: Upload::Chunked(env.body_bytes_max + 1), ..request };
                env.ledger.sends(&request);
                let mut bytes = request.head();
                bytes.extend(request.body(&self.rng));
                let _sent = self.write(&wire, bytes);
                self.does("waiting for 413 to a large chunked body");
                self.expect_refusal(&mut wire, 413, "a large chunked body").await;
                return;
            }
        };
        self.refused_with_a_smuggled_request(&mut wire, what, bytes, status).await;
    }

    /// TRACE is refused without closing.
    async fn traces(&self, wire: &mut Wire, request: &Request) {
        let head = format!("TRACE {} HTTP/1.1\r\nHost: sim.test\r\n\r\n", request.target());
        self.env.ledger.smuggles(request);
        let _sent = self.write(wire, head.into_bytes());
        self.does("waiting for 405 to TRACE");
        match self.answer(wire, false, &mut Vec::new(), &mut None).await {
            Ok(answer) if answer.status == 405 => self.env.ledger.count("status 405"),
            _ if self.env.is_lenient() => {}
            other => self.say(&format!("TRACE: {other:?}")),
        }
    }

    /// One path again and again, with small bodies in between: granted within the limit, refused beyond it,
    /// and the connection goes on.
    async fn asks_too_often(&self) {
        let Some(mut wire) = self.connect().await else { return };
        let count = 2 * REQUESTS_PER_SECOND;
        let began_ns = self.env.handle.now_ns();
        let mut bytes = Vec::new();
        let mut due = Vec::new();
        for _ in 0..count {
            let body = if self.rng.chance(500) {
                bytes.extend_from_slice(b"GET /echo/often HTTP/1.1\r\nHost: s\r\n\r\n");
                b"often".to_vec()
            } else {
                let body = pattern(self.id(), 1 + self.rng.below(300) as usize);
                let length = body.len();
                let head =
                    format!("POST /echo/often HTTP/1.1\r\nHost: s\r\nContent-Length: {length}\r\n\r\n");
                bytes.extend_from_slice(head.as_bytes());
                bytes.extend_from_slice(&body);
                body
            };
            due.push(body);
        }
        let _sent = self.write(&wire, bytes);
        self.does("waiting for answers within and over the limit");
        let mut granted = 0;
        for due in due {
            match self.answer(&mut wire, false, &mut Vec::new(), &mut None).await {
                Ok(answer) if answer.status == 200 && answer.body == due => granted += 1,
                Ok(answer) if answer.status == 429 && answer.end.is_ok() => {
                    self.env.ledger.count("status 429");
                    let wait: Option<u64> =
                        answer.head.get("retry-after").and_then(|seconds| seconds.parse().ok());
                    if wait != Some(1) || answer.head.get("ratelimit") != Some("\"often\";r=0;t=1") {
                        self.say(&format!("429 says to wait for {wait:?}"));
                    }
                    if answer.head.says("connection", "close") && !self.env.drains.get() {
                        self.say("429 ends the connection");
                    }
                }
                _ if self.env.is_lenient() => return,
                other => return self.say(&format!("often: {other:?}")),
            }
        }
        let seconds = (self.env.handle.now_ns() - began_ns) / 1_000_000_000 + 1;
        if granted > REQUESTS_PER_SECOND * (1 + seconds) {
            self.say(&format!("{granted} requests granted in {seconds} s"));
        }
    }

    /// An upload that takes longer than the wait for an answer, with progress all the time.
    async fn uploads_slowly(&self) {
        let Some(mut wire) = self.connect().await else { return };
        let request = self.simple("PUT", Behaviour::Length, 50, Upload::Length(900));
        self.env.ledger.sends(&request);
        let sender = wire.sender();
        let (handle, bytes) = (self.env.handle.clone(), [request.head(), request.body(&self.rng)].concat());
        let pause = self.env.times.body / 2;
        let steps = (self.env.times.first_byte.as_millis() * 3 / 2 / pause.as_millis()) as usize + 1;
        self.env.handle.spawn(async move {
            let head_len = bytes.len() - 900;
            let (head, body) = bytes.split_at(head_len);
            let _ = sender.send(head).await;
            for piece in body.chunks(body.len() / steps + 1) {
                handle.sleep(pause).await;
                if sender.send(piece).await.is_err() {
                    return;
                }
            }
        });
        self.does("waiting for the answer to a slow upload");
        let got = self.answer(&mut wire, false, &mut Vec::new(), &mut None).await;
        let about = Circumstances {
            took: Duration::from_secs(3600),
            is_pipelined: true,
            may_be_closed: false,
            may_be_discarded: false,
        };
        judge(&self.env, &format!("slow client {}", self.number), &request, &got, &about);
    }

    /// An upload to an upstream that reads nothing.
    async fn uploads_to_a_wall(&self) {
        let Some(mut wire) = self.connect().await else { return };
        let len = 100_000 + self.env.window_bytes;
        let upload = if self.rng.chance(500) { Upload::Length(len) } else { Upload::Chunked(len) };
        let request = self.simple("POST", Behaviour::NeverReads, 10, upload);
        self.env.ledger.sends(&request);
        let began_ns = self.env.handle.now_ns();
        let _sent = self.write(&wire, [request.head(), request.body(&self.rng)].concat());
        self.does("waiting for 504 to an upload that nobody reads");
        let got = self.answer(&mut wire, false, &mut Vec::new(), &mut None).await;
        let about = Circumstances {
            took: Duration::from_nanos(self.env.handle.now_ns() - began_ns),
            is_pipelined: true,
            may_be_closed: false,
            may_be_discarded: false,
        };
        judge(&self.env, &format!("client {}", self.number), &request, &got, &about);
        if got.is_ok_and(|answer| answer.status == 504) {
            self.check_time(began_ns, self.env.times.send.min(self.env.times.upstream_body));
        }
    }

    /// Asks once, then measures how long it may stay.
    async fn stays_idle(&self) {
        let Some(mut wire) = self.connect().await else { return };
        let is_builtin = self.rng.chance(500);
        let began_ns = self.env.handle.now_ns();
        if is_builtin {
            self.builtin(&mut wire).await;
        } else {
            let request = self.simple("GET", Behaviour::Length, 100, Upload::Nothing);
            if !self.burst(&mut wire, &[request], false, false).await {
                return;
            }
        }
        self.does("waiting for the idle deadline");
        let answered_ns = self.env.handle.now_ns();
        self.expect_end(&mut wire, true).await;
        let keep_alive = self.env.times.keep_alive;
        let since = |start_ns: u64| Duration::from_nanos(self.env.handle.now_ns() - start_ns);
        let is_late = since(answered_ns) > keep_alive + Duration::from_millis(400);
        if (since(began_ns) < keep_alive || is_late) && !self.env.is_lenient() {
            self.say(&format!("an idle connection ended after {:?}", since(answered_ns)));
        }
    }

    async fn builtin(&self, wire: &mut Wire) {
        let (bytes, due): (Vec<u8>, &[u8]) = match self.rng.below(4) {
            0 => (b"GET /hello HTTP/1.1\r\nHost: s\r\n\r\n".to_vec(), b"Hello from Blitz\n"),
            1 => (b"GET /health HTTP/1.1\r\nHost: s\r\n\r\n".to_vec(), b"ok\n"),
            2 => (b"GET /echo/abc HTTP/1.1\r\nHost: s\r\n\r\n".to_vec(), b"abc"),
            _ => {
                let id = self.id();
                let body = pattern(id, 700);
                let head = "POST /echo/ HTTP/1.1\r\nHost: s\r\nContent-Length: 700\r\n\r\n";
                let sent = self.write(wire, [head.as_bytes(), &body].concat());
                self.does("waiting for an echo");
                let got = self.answer(wire, false, &mut Vec::new(), &mut None).await;
                if got.is_ok_and(|answer| answer.body != body && answer.end.is_ok()) {
                    self.say("the echo is not what was sent");
                }
                drop(sent);
                return;
            }
        };
        let _sent = self.write(wire, bytes);
        self.does("waiting for a built-in answer");
        match self.answer(wire, false, &mut Vec::new(), &mut None).await {
            Ok(answer) if answer.status == 200 && answer.body == due => {}
            _ if self.env.is_lenient() => {}
            other => self.say(&format!("built-in: {other:?}")),
        }
    }
}

/// The text with the five bytes that belong to `id` in the place of `hello`.
fn with_pattern(text: &str, id: u64) -> Vec<u8> {
    match text.split_once("hello") {
        Some((before, after)) => [before.as_bytes(), &pattern(id, 5), after.as_bytes()].concat(),
        None => text.as_bytes().to_vec(),
    }
}

/// The scripts that regressions name.
pub(super) const UPLOADS_SLOWLY: u64 = 7;
pub(super) const UPLOADS_TO_A_WALL: u64 = 8;
pub(super) const READS_LATE: u64 = 10;
pub(super) const ASKS: u64 = 11;
/// The last of those that are drawn.
const TOO_OFTEN: u64 = 23;

/// Requests for one path that a source is granted: more than all clients together ask for any but one.
pub(super) const REQUESTS_PER_SECOND: u64 = 40;

/// Names of the scripts, in their order.
const NAMES: [&str; 13] = [
    "stalls in a head",
    "stalls in a body",
    "disconnects",
    "never reads",
    "is malformed",
    "is malformed",
    "is too large",
    "uploads slowly",
    "uploads to a wall",
    "stays idle",
    "reads late",
    "asks",
    "asks too often",
];
