//! What must hold of every request, at the client and at the upstream.
//!
//! Owns: the ledger of requests by number, the verdict on each answer, the counts of what was seen.
//! Does not own: the invariants between two turns (`simulation.rs`).
#![forbid(unsafe_code)]

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::time::Duration;

use super::Env;
use super::plan::{Behaviour, Group, Outcome, Request, Upload, answer_id, pattern};
use super::wire::{Fault, Head};

/// Violations that are kept; the rest would only repeat them.
const VIOLATIONS_KEPT: usize = 20;

/// How late an expired deadline may show at a client: a head written byte by byte (a second), two
/// crossings of the slowest network, the wheel's 8 ms, a small answer through the smallest window.
const LATE: Duration = Duration::from_millis(2500);

/// Everything that was asked and what has become of it.
#[derive(Default)]
pub(super) struct Ledger {
    requests: RefCell<BTreeMap<u64, Entry>>,
    violations: RefCell<Vec<String>>,
    seen: RefCell<BTreeMap<String, u64>>,
}

struct Entry {
    request: Request,
    arrivals: u32,
    /// It must not reach an upstream: it stands behind a request that breaks the framing.
    is_forbidden: bool,
}

/// A final answer as a client read it.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) status: u16,
    pub(super) head: Head,
    pub(super) body: Vec<u8>,
    pub(super) trailers: Vec<(String, String)>,
    pub(super) interims: Vec<u16>,
    /// Whether the body came to its end.
    pub(super) end: Result<(), Fault>,
}

/// What a client got: an answer, or the end of the connection before a whole head.
pub(super) type Got = Result<Answer, Fault>;

/// The circumstances of one answer.
pub(super) struct Circumstances {
    /// From before the first byte of the request to the end of the answer.
    pub(super) took: Duration,
    /// Other requests are under way on the connection.
    pub(super) is_pipelined: bool,
    /// The connection may have been closed before the request came: it was idle near its deadline.
    pub(super) may_be_closed: bool,
    /// A later request of the same burst breaks the connection, and a reset discards what the client
    /// has not read.
    pub(super) may_be_discarded: bool,
}

impl Ledger {
    pub(super) fn sends(&self, request: &Request) {
        let entry = Entry { request: request.clone(), arrivals: 0, is_forbidden: false };
        self.requests.borrow_mut().insert(request.id, entry);
    }

    pub(super) fn smuggles(&self, request: &Request) {
        let entry = Entry { request: request.clone(), arrivals: 0, is_forbidden: true };
        self.requests.borrow_mut().insert(request.id, entry);
    }

    pub(super) fn violation(&self, what: String) {
        let mut violations = self.violations.borrow_mut();
        if violations.len() < VIOLATIONS_KEPT {
            violations.push(what);
        }
    }

    pub(super) fn violations(&self) -> Vec<String> {
        self.violations.borrow().clone()
    }

    pub(super) fn count(&self, what: &str) {
        *self.seen.borrow_mut().entry(what.to_owned()).or_default() += 1;
    }

    pub(super) fn count_fault(&self, behaviour: Behaviour) {
        self.count(&format!("upstream {behaviour:?}"));
    }

    pub(super) fn seen(&self) -> BTreeMap<String, u64> {
        self.seen.borrow().clone()
    }

    /// An upstream has read the head of request `id`.
    pub(super) fn arrived(&self, id: u64, method: &str, head: &Head) {
        let mut requests = self.requests.borrow_mut();
        let Some(entry) = requests.get_mut(&id) else {
            return self.violation(format!("request {id:x}, which nobody sent, reached an upstream"));
        };
        entry.arrivals += 1;
        let request = &entry.request;
        if entry.is_forbidden {
            self.violation(format!("request {id:x} was smuggled to an upstream"));
        }
        if entry.arrivals > 1 && request.method == "POST" {
            self.violation(format!("POST {id:x} reached upstreams {} times", entry.arrivals));
        }
        let mut wrong = Vec::new();
        if method != request.method {
            wrong.push(format!("method {method}"));
        }
        if head.count("host") != 1 || head.get("host") != Some("sim.test") {
            wrong.push("Host".to_owned());
        }
        if head.get("x-body") != Some(&request.upload.len().to_string()) {
            wrong.push("X-Body".to_owned());
        }
        if head.get("via") != Some(request.via()) {
            wrong.push(format!("Via {:?}", head.get("via")));
        }
        if head.count("x-forwarded-for") != 1 {
            wrong.push("X-Forwarded-For".to_owned());
        }
        for name in ["x-hop", "keep-alive", "proxy-connection"] {
            if head.count(name) > 0 {
                wrong.push(format!("a {name} field"));
            }
        }
        if !wrong.is_empty() {
            self.violation(format!("request {id:x} reached an upstream with {}", wrong.join(", ")));
        }
    }

    /// An upstream has read the body of request `id`, whole or not.
    pub(super) fn upload(&self, id: u64, body: &[u8], outcome: &Result<Vec<(String, String)>, Fault>) {
        let requests = self.requests.borrow();
        let Some(Entry { request, .. }) = requests.get(&id) else { return };
        let sent = pattern(id, request.upload.len());
        if !sent.starts_with(body) {
            return self.violation(format!("the upstream of {id:x} got other bytes than were sent"));
        }
        match outcome {
            Ok(_) if body.len() != sent.len() => {
                self.violation(format!("{} of {} bytes of {id:x} looked whole", body.len(), sent.len()));
            }
            Ok(trailers) => {
                let sum = trailers.iter().find(|(name, _)| name == "x-sum").map(|(_, value)| value.as_str());
                let due = format!("{id:016x}");
                let due = matches!(request.upload, Upload::Trailers(_)).then_some(due.as_str());
                if sum != due {
                    self.violation(format!("the upstream of {id:x} got trailers {trailers:?}"));
                }
            }
            Err(Fault::Malformed(what)) => self.violation(format!("the upstream of {id:x} read {what}")),
            Err(_) => {}
        }
    }
}

/// Judges what a client got for `request`.
pub(super) fn judge(env: &Env, who: &str, request: &Request, got: &Got, about: &Circumstances) {
    let ledger = &env.ledger;
    let say = |what: String| {
        let (id, outcome) = (request.id, request.outcome());
        ledger.violation(format!("{who}: {} {id:x} ({outcome:?}): {what}", request.target()));
    };
    let outcome = request.outcome();
    match got {
        Err(Fault::Malformed(what)) => say(format!("not HTTP: {what}")),
        Err(fault) => {
            ledger.count("no answer");
            let is_allowed =
                outcome == Outcome::Cut || env.is_lenient() || about.may_be_closed || about.may_be_discarded;
            if !is_allowed {
                say(format!("no answer: {fault:?}"));
            }
        }
        Ok(answer) => {
            ledger.count(&format!("status {}", answer.status));
            for interim in &answer.interims {
                ledger.count(&format!("status {interim}"));
                if request.is_http10 {
                    say(format!("an interim {interim} to an HTTP/1.0 client"));
                }
            }
            match answer.head.get("x-id") {
                Some(id) => judge_own(env, request, answer, id, about, &say),
                None => judge_error(env, request, answer, about, &say),
            }
        }
    }
}

/// An answer of the upstream's.
fn judge_own(
    env: &Env,
    request: &Request,
    answer: &Answer,
    id: &str,
    about: &Circumstances,
    say: &dyn Fn(String),
) {
    if id != format!("{:016x}", request.id) {
        return say(format!("got the answer to {id}"));
    }
    let outcome = request.outcome();
    let status = match outcome {
        Outcome::Own(status) => status,
        Outcome::Cut => 200,
        Outcome::Error(_) => return say(format!("status {} went through", answer.status)),
    };
    if answer.status != status {
        return say(format!("status {}", answer.status));
    }
    let len = if request.method == "HEAD" || matches!(status, 204 | 304) { 0 } else { request.size };
    let due = pattern(answer_id(request.id), len);
    if !due.starts_with(&answer.body) {
        return say(format!("foreign bytes among the {} of the body", answer.body.len()));
    }
    match (&answer.end, outcome) {
        (Ok(()), Outcome::Cut) => say("a cut answer looked whole".to_owned()),
        (Ok(()), _) => {
            if answer.body.len() != due.len() {
                say(format!("{} of {} bytes looked whole", answer.body.len(), due.len()));
            }
            let sum = answer.trailers.iter().find(|(name, _)| name == "x-sum");
            let is_due =
                request.behaviour == Behaviour::Trailers && request.method != "HEAD" && !request.is_http10;
            if is_due != sum.is_some()
                || sum.is_some_and(|(_, value)| *value != format!("{:016x}", request.id))
            {
                say(format!("trailers {:?}", answer.trailers));
            }
        }
        (Err(Fault::Malformed(what)), _) => say(format!("a body that is {what}")),
        (Err(_), Outcome::Cut) => env.ledger.count("cut answer"),
        (Err(fault), _) if env.is_lenient() || about.may_be_discarded => {
            env.ledger.count(&format!("cut by {fault:?}"));
        }
        (Err(fault), _) => say(format!("cut after {} bytes: {fault:?}", answer.body.len())),
    }
}

/// An answer of the gateway's.
fn judge_error(env: &Env, request: &Request, answer: &Answer, about: &Circumstances, say: &dyn Fn(String)) {
    let outcome = request.outcome();
    // Over a pooled connection that its endpoint had just closed, what cannot be sent twice fails.
    // A chunked body is taken before it is known to be empty.
    let has_body =
        request.upload.len() > 0 || matches!(request.upload, Upload::Chunked(_) | Upload::Trailers(_));
    let is_stale = (request.method == "POST" || has_body) && answer.status == 502;
    let is_reset = env.resets && matches!(answer.status, 502 | 504);
    // A reset overtakes the head.
    let is_overtaken = request.behaviour == Behaviour::ResetMid && answer.status == 502;
    let is_expected = outcome == Outcome::Error(answer.status) || is_overtaken;
    if !is_expected && !is_stale && !is_reset {
        return say(format!("status {} {:?}", answer.status, answer.head.get("proxy-status")));
    }
    if answer.status != 405 && answer.head.get("proxy-status").is_none() {
        say("no Proxy-Status".to_owned());
    }
    if answer.end.is_err() && !env.is_lenient() && !about.may_be_discarded {
        say("the gateway's own answer was cut".to_owned());
    }
    let limit = match (request.group, request.behaviour) {
        _ if !is_expected || answer.status != 504 => return,
        (Group::BlackHole, _) => env.times.connect,
        (_, Behaviour::StallFirst) => env.times.first_byte,
        _ => return,
    };
    if about.took < limit {
        say(format!("{} after {:?}, before its deadline", answer.status, about.took));
    }
    let upload = Duration::from_millis(request.upload.len() as u64 * env.ms_per_kib / 1024);
    if !about.is_pipelined && !env.is_lenient() && about.took > limit + upload + LATE {
        say(format!("the deadline of {limit:?} came after {:?}", about.took));
    }
}
