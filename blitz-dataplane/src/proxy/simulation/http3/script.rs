//! What clients of HTTP/3 do, honest and not.
//!
//! Owns: the scripts. Does not own: the wire (`peer.rs`), the verdict on an answer (`oracle.rs`).
#![forbid(unsafe_code)]

use std::cell::RefCell;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use quiche::h3;

use super::super::oracle::{Circumstances, judge};
use super::super::plan::{Behaviour, Group, Outcome, Request, Upload};
use super::Scene;
use super::peer::{self, Peer};
use crate::runtime::sim::Rng;

/// Codes of HTTP/3 (RFC 9114 section 8.1).
const NO_ERROR: u64 = 0x100;
const EXCESSIVE_LOAD: u64 = 0x107;
const MESSAGE_ERROR: u64 = 0x10e;
const REQUEST_REJECTED: u64 = 0x10b;

/// Virtual time that an answer may take, deadlines of several retries among it.
const PATIENCE: Duration = Duration::from_secs(240);

/// What a client may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Script {
    Asks,
    Migrates,
    IsRebound,
    Cancels,
    StallsInBody,
    ReadsNothing,
    StaysIdle,
    Vanishes,
    IsMalformed,
    ResetsRapidly,
    Wanders,
    NeverShakesHands,
}

impl Script {
    pub(super) const ALL: [Self; 12] = [
        Self::Asks,
        Self::Migrates,
        Self::IsRebound,
        Self::Cancels,
        Self::StallsInBody,
        Self::ReadsNothing,
        Self::StaysIdle,
        Self::Vanishes,
        Self::IsMalformed,
        Self::ResetsRapidly,
        Self::Wanders,
        Self::NeverShakesHands,
    ];

    /// A client's script: half of them only ask, or move meanwhile.
    pub(super) fn draw(rng: &Rng) -> Self {
        match rng.below(20) {
            0..5 => Self::Asks,
            5..8 => Self::Migrates,
            8..10 => Self::IsRebound,
            number => Self::ALL[number as usize - 8],
        }
    }
}

/// One client.
pub(super) struct Client {
    pub(super) scene: Rc<Scene>,
    pub(super) rng: Rng,
    pub(super) number: u8,
    pub(super) script: Script,
    /// What it waits for, shown when the simulation hangs.
    pub(super) doing: Rc<RefCell<String>>,
}

impl Client {
    /// Plays its script.
    pub(super) async fn run(self) {
        let env = &self.scene.env;
        env.handle.sleep(Duration::from_millis(self.rng.below(env.span_ms))).await;
        self.count(&format!("client {:?}", self.script));
        let mut peer = Peer::new(env, self.address(0), &self.rng, &mut peer::config(&self.rng));
        if self.script == Script::NeverShakesHands {
            peer.flush();
            self.does("saying nothing more");
            return env.handle.sleep(env.times.head / 2).await;
        }
        self.does("shaking hands");
        if !peer.establish(self.scene.handshake * 2).await {
            return self.failed(&peer);
        }
        match self.script {
            Script::Asks | Script::NeverShakesHands => self.asks(&mut peer).await,
            Script::Migrates | Script::IsRebound => self.moves(&mut peer).await,
            Script::Cancels => self.cancels(&mut peer).await,
            Script::StallsInBody => self.stalls_in_body(&mut peer).await,
            Script::ReadsNothing => self.reads_nothing(&mut peer).await,
            Script::StaysIdle => self.stays_idle(&mut peer).await,
            Script::Vanishes => return self.vanishes(peer).await,
            Script::IsMalformed => self.is_malformed(&mut peer).await,
            Script::ResetsRapidly => self.resets_rapidly(&mut peer).await,
            Script::Wanders => self.wanders(&mut peer).await,
        }
        self.leaves(&mut peer).await;
    }

    fn does(&self, what: impl Into<String>) {
        *self.doing.borrow_mut() = format!("{:?}: {}", self.script, what.into());
    }

    fn count(&self, what: &str) {
        self.scene.env.ledger.count(what);
    }

    fn say(&self, what: &str) {
        self.scene.env.ledger.violation(format!("client {} ({:?}): {what}", self.number, self.script));
    }

    fn address(&self, port: u16) -> SocketAddr {
        SocketAddr::from(([10, 2, 0, self.number], 40_000 + port))
    }

    /// The end of a connection, or of a request, for which the world is to blame, and that has a name.
    fn is_excused(&self, peer: &Peer) -> bool {
        let is_lenient = self.scene.env.is_lenient() || self.scene.is_foul;
        peer.reason().is_some() && (is_lenient || self.script == Script::IsRebound)
    }

    /// The gateway is draining, or has no room, and the request came after the last that is served.
    fn is_refused(&self, peer: &Peer, id: u64) -> bool {
        self.scene.env.is_lenient() && peer.streams[&id].code == Some(REQUEST_REJECTED)
    }

    /// As [`Self::is_excused`], or the gateway's last word was lost, and all that is heard of it now is a stateless
    /// reset, or nothing.
    fn is_unheard(&self, peer: &Peer) -> bool {
        let is_silent = matches!(peer.reason().as_deref(), Some("reset" | "timed out"));
        self.is_excused(peer) || self.scene.is_lossy && is_silent
    }

    fn failed(&self, peer: &Peer) {
        self.count(&format!("no handshake: {}", peer.reason().unwrap_or_default()));
        if !self.scene.env.is_lenient() && !self.scene.is_foul && !self.scene.is_crowded {
            self.say(&format!("no handshake: {:?}", peer.reason()));
        }
    }

    /// Says goodbye, or not.
    async fn leaves(&self, peer: &mut Peer) {
        if let Some(reason) = peer.reason() {
            self.count(&reason);
        }
        if self.rng.chance(700) {
            self.does("leaving");
            let _over = peer.quic.close(true, NO_ERROR, b"");
            peer.until(Duration::from_secs(5), Peer::is_over).await;
        }
    }

    /// Any request: mostly good, sometimes to a bad place.
    fn request(&self) -> Request {
        let rng = &self.rng;
        let mut request = Request::good(rng, rng.next(), self.scene.env.size_max);
        (request.is_http10, request.is_http3) = (false, true);
        (request.closes, request.has_hop_field) = (false, false);
        match rng.below(10) {
            0 | 1 if request.method != "HEAD" => {
                request.behaves(Behaviour::BAD[rng.below(Behaviour::BAD.len() as u64) as usize]);
            }
            2 => {
                let groups = [Group::Refused, Group::Unreachable, Group::Nameless, Group::ReadOnly];
                request.group = groups[rng.below(4) as usize];
            }
            _ => {}
        }
        request
    }

    fn simple(&self, method: &'static str, behaviour: Behaviour, size: usize, upload: Upload) -> Request {
        Request {
            id: self.rng.next(),
            method,
            group: Group::Main,
            behaviour,
            size,
            upload,
            is_http10: false,
            is_http3: true,
            closes: false,
            expects_continue: false,
            has_hop_field: false,
        }
    }

    /// Begins a request, waiting for a free stream; `None` when the connection ends before.
    async fn begin(&self, peer: &mut Peer, request: &Request) -> Option<u64> {
        self.scene.env.ledger.sends(request);
        let until_ns = self.scene.env.handle.now_ns() + PATIENCE.as_nanos() as u64;
        loop {
            if let Some(id) = peer.begin(request, &fields(request)) {
                return Some(id);
            }
            if peer.is_over() || self.scene.env.handle.now_ns() > until_ns {
                if !self.is_excused(peer) {
                    self.say(&format!("a request cannot be begun: {:?}", peer.reason()));
                }
                return None;
            }
            peer.turn(Duration::from_secs(1)).await;
        }
    }

    /// Waits for the end of a request, and judges it. `may_be_closed`: the connection may be gone for good reasons.
    async fn judge(&self, peer: &mut Peer, id: u64, may_be_closed: bool) {
        let request = peer.streams[&id].request.clone();
        self.does(format!("waiting for the answer to {} {:x}", request.target(), request.id));
        let has_ended = |peer: &Peer| peer.streams[&id].end.is_some();
        let has_end = peer.until(PATIENCE, has_ended).await || peer.is_over();
        if !has_end && self.script != Script::IsRebound {
            let stream = &peer.streams[&id];
            let (has_head, got) = (stream.has_head(), stream.body_len());
            self.say(&format!("{} has no end: head {has_head}, {got} bytes", request.target()));
        }
        let stream = &peer.streams[&id];
        let env = &self.scene.env;
        // A deadline cuts the answer where nothing came through for too long. quiche does not always find out what was
        // lost on a path that was left, and then the word of that may be lost as well.
        let is_cut = if self.script == Script::IsRebound {
            stream.code.is_some() || !has_end
        } else {
            stream.code.is_some() && self.scene.is_foul
        };
        let is_excused = may_be_closed || is_cut || self.is_excused(peer);
        let is_whole = matches!(stream.end, Some(Ok(())));
        if is_excused && !is_whole {
            self.count(&format!("excused: {}", peer.reason().unwrap_or_default()));
        }
        // A stream that is reset while quiche still has some of its data to send gets an end besides, maybe in a later
        // packet; when the one with the reset is lost, the client takes that for the end of the answer.
        if self.scene.is_lossy && is_whole && request.outcome() == Outcome::Cut {
            self.count("cut, and looked whole");
            peer.streams.remove(&id);
            return;
        }
        if self.script == Script::IsRebound && request.outcome() != Outcome::Cut {
            self.count(if is_whole { "answer to one that was rebound" } else { "cut after a rebinding" });
        }
        let about = Circumstances {
            took: Duration::from_nanos(env.handle.now_ns() - stream.began_ns),
            // How late is late depends on what was lost.
            is_pipelined: true,
            may_be_closed: is_excused,
            may_be_discarded: is_excused,
        };
        let who = format!("client {} ({:?}; {:?})", self.number, self.script, peer.reason());
        judge(env, &who, &request, &stream.got(), &about);
        if matches!(stream.end, Some(Ok(()))) && request.outcome() != Outcome::Cut {
            self.count("whole");
        }
        peer.streams.remove(&id);
    }

    /// Requests side by side, a few times.
    async fn asks(&self, peer: &mut Peer) {
        for _ in 0..1 + self.rng.below(3) {
            let mut ids = Vec::new();
            for _ in 0..1 + self.rng.below(5) {
                let Some(id) = self.begin(peer, &self.request()).await else { return };
                ids.push(id);
            }
            for id in ids {
                self.judge(peer, id, false).await;
                if peer.is_over() {
                    return;
                }
            }
            self.does("idling");
            let most_ms = self.scene.env.times.keep_alive.as_millis() as u64 / 4;
            peer.until(Duration::from_millis(self.rng.below(most_ms)), |_| false).await;
        }
    }

    /// Downloads while the address changes, with the client's knowledge or without.
    async fn moves(&self, peer: &mut Peer) {
        let mut ids = Vec::new();
        for _ in 0..1 + self.rng.below(3) {
            let size = self.scene.env.size_max * (1 + self.rng.below(4) as usize);
            let request = self.simple("GET", Behaviour::Chunked, size, Upload::Nothing);
            let Some(id) = self.begin(peer, &request).await else { return };
            ids.push(id);
        }
        for step in 1..=1 + self.rng.below(4) as u16 {
            let pause = Duration::from_millis(5 + self.rng.below(300));
            peer.until(pause, |_| false).await;
            if !self.step(peer, step).await {
                break;
            }
        }
        for id in ids {
            self.judge(peer, id, false).await;
        }
        // And it goes on as before.
        if !peer.is_over()
            && let Some(id) = self.begin(peer, &self.request()).await
        {
            self.judge(peer, id, false).await;
        }
    }

    /// One change of address; false when there is no more.
    async fn step(&self, peer: &mut Peer, step: u16) -> bool {
        if self.script == Script::IsRebound {
            peer.rebind(self.address(1000 + step));
            // Who only listens would never hear again.
            let _over = peer.quic.send_ack_eliciting();
            self.count("rebound");
            return true;
        }
        self.does("waiting for connection IDs");
        if !peer.until(Duration::from_secs(20), |peer| peer.quic.available_dcids() > 0).await {
            self.count("out of connection IDs");
            return false;
        }
        let (local, gateway) = (self.address(step), self.scene.env.gateway);
        peer.add_port(local);
        if self.rng.chance(500) {
            // Without a look before.
            if peer.quic.migrate(local, gateway).is_err() {
                return false;
            }
            self.count("migrated");
            return true;
        }
        if peer.quic.probe_path(local, gateway).is_err() {
            return false;
        }
        self.does("waiting for a path to be proven");
        let is_proven = |peer: &Peer| peer.validated.contains(&local);
        if peer.until(Duration::from_secs(20), is_proven).await {
            self.count("proved a path");
            return peer.quic.migrate(local, gateway).is_ok();
        }
        // A few tries were lost.
        if !self.scene.is_foul && !peer.is_over() {
            self.say("a path was not proven");
        }
        false
    }

    /// Gives requests up, at any moment.
    async fn cancels(&self, peer: &mut Peer) {
        for _ in 0..2 + self.rng.below(3) {
            let Some(id) = self.begin(peer, &self.request()).await else { return };
            peer.until(Duration::from_millis(self.rng.below(400)), |_| false).await;
            peer.cancel(id);
            peer.streams.remove(&id);
        }
        if let Some(id) = self.begin(peer, &self.request()).await {
            self.judge(peer, id, false).await;
        }
    }

    /// A body that stops in the middle: 408, and the connection goes on.
    async fn stalls_in_body(&self, peer: &mut Peer) {
        let upload = Upload::Length(2 + self.rng.below(3000) as usize);
        let request = self.simple("POST", Behaviour::Length, 10, upload);
        let Some(id) = self.begin(peer, &request).await else { return };
        let began_ns = self.scene.env.handle.now_ns();
        peer.stall(id);
        self.does("waiting for 408");
        peer.until(PATIENCE, |peer| peer.streams[&id].end.is_some()).await;
        let took = Duration::from_nanos(self.scene.env.handle.now_ns() - began_ns);
        match peer.streams[&id].got() {
            Ok(answer) if matches!(answer.status, 408 | 502) => {
                self.count(&format!("status {}", answer.status));
                if answer.status == 408 && took < self.scene.env.times.body {
                    self.say(&format!("408 after {took:?}, before its deadline"));
                }
            }
            other => {
                if !self.is_excused(peer) && !self.is_refused(peer, id) {
                    self.say(&format!("a stalled body: {other:?}"));
                }
                return;
            }
        }
        if let Some(id) = self.begin(peer, &self.request()).await {
            self.judge(peer, id, false).await;
        }
    }

    /// An answer that is not read: the stream is cut, and the connection goes on.
    async fn reads_nothing(&self, peer: &mut Peer) {
        // More than the largest windows and buffers take.
        let request = self.simple("GET", Behaviour::Length, 3 << 20, Upload::Nothing);
        let Some(id) = self.begin(peer, &request).await else { return };
        if let Some(stream) = peer.streams.get_mut(&id) {
            stream.is_held = true;
        }
        self.does("reading nothing");
        peer.until(self.scene.env.times.send * 3 + PATIENCE, |peer| peer.streams[&id].end.is_some()).await;
        match peer.streams[&id].end {
            Some(Err(_)) => self.count("a reader that does not read is cut"),
            _ => self.say("the gateway waited for a reader that did not read"),
        }
        peer.streams.remove(&id);
    }

    /// Nothing is asked: the gateway ends the connection, in order.
    async fn stays_idle(&self, peer: &mut Peer) {
        if self.rng.chance(500) {
            let Some(id) = self.begin(peer, &self.request()).await else { return };
            self.judge(peer, id, false).await;
        }
        self.does("waiting for the end of an idle connection");
        peer.until(PATIENCE, Peer::is_over).await;
        let said = peer.quic.peer_error().map(|error| (error.is_app, error.error_code));
        if said != Some((true, NO_ERROR)) && !self.is_unheard(peer) {
            self.say(&format!("an idle connection ended with {said:?}, {:?}", peer.reason()));
        }
    }

    /// Is gone, without a word, with something under way or not.
    async fn vanishes(&self, mut peer: Peer) {
        if self.rng.chance(700) {
            let _begun = self.begin(&mut peer, &self.request()).await;
            peer.until(Duration::from_millis(self.rng.below(200)), |_| false).await;
        }
    }

    /// Requests that break the rules of HTTP/3: the stream ends with the code that says so, nothing else does.
    async fn is_malformed(&self, peer: &mut Peer) {
        let request = self.simple("GET", Behaviour::Length, 10, Upload::Nothing);
        self.scene.env.ledger.smuggles(&request);
        let mut list = fields(&request);
        let field = |name: &str, value: &str| h3::Header::new(name.as_bytes(), value.as_bytes());
        let what = self.rng.below(6);
        match what {
            0 => list.retain(|field| h3::NameValue::name(field) != b":path"),
            1 => list.push(field(":method", "GET")),
            2 => list.push(field("connection", "close")),
            3 => list.push(field("te", "gzip")),
            4 => list.insert(0, field("x-early", "1")),
            _ => list.push(field("x-control", "a\nb")),
        }
        let Some(id) = peer.begin(&request, &list) else { return };
        self.does(format!("waiting for the end of a malformed request ({what})"));
        peer.until(PATIENCE, |peer| peer.streams[&id].end.is_some()).await;
        let code = peer.streams[&id].code;
        if code != Some(MESSAGE_ERROR) && !self.is_excused(peer) && !self.is_refused(peer, id) {
            self.say(&format!(
                "a malformed request ({what}) ended with {code:?}: {:?}",
                peer.streams[&id].got()
            ));
        }
        peer.streams.remove(&id);
        if !peer.is_over()
            && let Some(id) = self.begin(peer, &self.request()).await
        {
            self.judge(peer, id, false).await;
        }
    }

    /// Requests and gives up, again and again, until it is told off.
    async fn resets_rapidly(&self, peer: &mut Peer) {
        self.does("resetting");
        let until_ns = self.scene.env.handle.now_ns() + PATIENCE.as_nanos() as u64;
        while !peer.is_over() && self.scene.env.handle.now_ns() < until_ns {
            let request = self.simple("GET", Behaviour::Length, 10, Upload::Nothing);
            self.scene.env.ledger.sends(&request);
            match peer.begin(&request, &fields(&request)) {
                Some(id) => {
                    peer.cancel(id);
                    peer.streams.remove(&id);
                }
                None => peer.turn(Duration::from_millis(50)).await,
            }
        }
        let code = peer.quic.peer_error().map(|error| error.error_code);
        if code != Some(EXCESSIVE_LOAD) && !self.is_unheard(peer) {
            self.say(&format!("rapid resets ended with {code:x?}, {:?}", peer.reason()));
        }
        self.count("rapid resets end");
    }

    /// Moves until its paths are used up: it is told so.
    async fn wanders(&self, peer: &mut Peer) {
        let request = self.simple("GET", Behaviour::Slow, self.scene.env.size_max, Upload::Nothing);
        let Some(id) = self.begin(peer, &request).await else { return };
        for step in 1..30_u16 {
            peer.rebind(self.address(2000 + step));
            // Something has to be said from there.
            let _over = peer.quic.send_ack_eliciting();
            peer.until(Duration::from_secs(3), Peer::is_over).await;
            if peer.is_over() {
                break;
            }
        }
        self.does("waiting for the end of the paths");
        peer.until(PATIENCE, Peer::is_over).await;
        let said = peer.quic.peer_error().map(|error| (error.is_app, error.error_code));
        // Where too little has come from to say it, the next packet gets a stateless reset.
        let is_told = said == Some((true, NO_ERROR)) || peer.reason().as_deref() == Some("reset");
        if !is_told && !self.is_unheard(peer) {
            self.say(&format!("a wanderer's connection ended with {said:?}, {:?}", peer.reason()));
        }
        self.count("out of paths");
        peer.streams.remove(&id);
    }
}

/// The field section of a request.
fn fields(request: &Request) -> Vec<h3::Header> {
    let field = |name: &str, value: &str| h3::Header::new(name.as_bytes(), value.as_bytes());
    let len = request.upload.len().to_string();
    let mut fields = vec![
        field(":method", request.method),
        field(":scheme", "https"),
        field(":authority", "sim.test"),
        field(":path", &request.target()),
        field("x-body", &len),
    ];
    if matches!(request.upload, Upload::Length(_)) {
        fields.push(field("content-length", &len));
    }
    if request.expects_continue {
        fields.push(field("expect", "100-continue"));
    }
    fields
}
