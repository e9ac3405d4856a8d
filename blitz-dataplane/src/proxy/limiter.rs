//! Limits on requests: `[[limits]]` with `requests_per_second`.
//!
//! Owns: which limits a request falls under, its bucket in each, the 429 (RFC 6585 section 4). Does not own:
//! the buckets (`segment::buckets`), limits on packets (the kernel stage), or whether a source that is
//! refused too often is reported (`misconduct.rs`).
//!
//! A source is the connection's own peer, never an address out of a field: behind a trusted proxy all of its
//! clients are one source. Every limit that covers the listener is asked, in the order of the file, until one
//! refuses; what those before it have granted stays taken. Nothing is allocated for a request.
//!
//! Where something is missing (the peer's address, the table) the request is let through.
#![forbid(unsafe_code)]

use std::io::Write;
use std::net::{IpAddr, SocketAddr};

use blitz_config::Config;
use blitz_config::model::LimitBy;
use blitz_ebpf_common::gcra::{Rate, Take, UNITS_PER_SECOND, units};

use super::Proxy;
use crate::exchange::refusal::{self, Form};
use crate::exchange::stream::{Answer, Service};
use crate::exchange::{BodyLength, ErrorKind, ProxyError};
use crate::fields::{FieldError, Fields, Known};
use crate::metrics::names::Metric;
use crate::runtime::Chunk;
use crate::segment::{BucketKey, Buckets, LimitOutcome, WorkerRows};
use crate::siphash::SipHash13;

/// Octets of a field value that is made for one refusal: a name of 56 and two numbers.
const VALUE_BYTES_MAX: usize = 128;

/// The limits on requests of one configuration.
#[derive(Debug, Default)]
pub struct Limits {
    limits: Box<[Limit]>,
}

/// One limit on requests.
#[derive(Debug)]
struct Limit {
    name: Box<str>,
    /// Hash of the name: what keeps buckets and counts over a reload.
    id: u64,
    by: LimitBy,
    /// Configured addresses of the listeners that it covers; empty: all.
    listeners: Box<[SocketAddr]>,
    mask_v4: u32,
    mask_v6: u64,
    rate: Rate,
    is_shadow: bool,
    /// The value of `RateLimit-Policy`.
    policy: Box<[u8]>,
}

/// Where a request came from, as far as limits care.
#[derive(Clone, Copy, Debug)]
pub(super) struct From<'a> {
    /// Configured address of the listener.
    pub(super) listener: SocketAddr,
    /// The connection's peer.
    pub(super) peer: Option<IpAddr>,
    /// The normalised path, without query.
    pub(super) path: &'a [u8],
}

/// A limit that refuses a request.
#[derive(Clone, Copy, Debug)]
pub(super) struct Over<'a> {
    limit: &'a Limit,
    /// Whole seconds until the next request would be granted, at least 1.
    pub(super) wait_s: u64,
}

impl Over<'_> {
    /// The limit's name.
    pub(super) fn name(&self) -> &str {
        &self.limit.name
    }

    /// Whether the source has brought it upon itself. A limit by service may be used up by others.
    pub(super) fn is_the_sources_own(&self) -> bool {
        self.limit.by != LimitBy::Service
    }
}

impl Limits {
    /// The limits on requests of `config`.
    pub fn new(config: &Config) -> Self {
        let limits = config.limits.iter().filter_map(|limit| {
            let per_second = limit.requests_per_second?;
            let burst = limit.burst_of(per_second);
            let address = |index: &usize| config.listeners.get(*index).map(|listener| listener.address);
            // Within a window of that many seconds about that many requests.
            let policy = format!("\"{}\";q={burst};w={}", limit.name, limit.burst.as_secs());
            Some(Limit {
                name: limit.name.as_str().into(),
                id: id(&limit.name),
                by: limit.by,
                listeners: limit.listeners.iter().filter_map(address).collect(),
                mask_v4: u32::MAX.checked_shl(32_u32.saturating_sub(limit.prefix_v4.into())).unwrap_or(0),
                mask_v6: u64::MAX.checked_shl(64_u32.saturating_sub(limit.prefix_v6.into())).unwrap_or(0),
                rate: Rate::new(per_second, burst),
                is_shadow: limit.shadow,
                policy: policy.into_bytes().into(),
            })
        });
        Self { limits: limits.collect() }
    }

    /// Whether there is no limit on requests.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.limits.is_empty()
    }

    /// What [`WorkerRows::adopt_limits`] takes, in the order of the limits.
    pub fn ids(&self) -> Vec<u64> {
        self.limits.iter().map(|limit| limit.id).collect()
    }

    /// Asks every limit that covers the request, and counts what it says in `counts` of `rows`, a row for each
    /// limit. The first that refuses, if one does.
    pub(super) fn check(
        &self,
        rows: &WorkerRows,
        counts: &[Option<u16>],
        from: From<'_>,
        now_ns: u64,
    ) -> Option<Over<'_>> {
        let buckets = rows.buckets()?;
        let now = units(now_ns);
        for (limit, row) in self.limits.iter().zip(counts) {
            if !limit.listeners.is_empty() && !limit.listeners.contains(&from.listener) {
                continue;
            }
            let Some(key) = limit.bucket(&buckets, from) else { continue };
            let taken = buckets.take(key, now, limit.rate.cost(1), limit.rate.depth);
            if taken.has_displaced {
                rows.add(Metric::LimitBucketsDisplaced, 1);
            }
            let wait = match taken.take {
                Take::Granted => None,
                Take::Refused { wait } => Some(wait),
                // Over the limit by a flood on several workers; when it ends, nobody knows.
                Take::Contended => Some(0),
            };
            let outcome = match wait {
                None => LimitOutcome::Granted,
                Some(_) if limit.is_shadow => LimitOutcome::Shadow,
                Some(_) => LimitOutcome::Refused,
            };
            if let Some(row) = row {
                rows.limit(*row, outcome);
            }
            if let Some(wait) = wait.filter(|_| outcome == LimitOutcome::Refused) {
                return Some(Over { limit, wait_s: wait.div_ceil(UNITS_PER_SECOND).max(1) });
            }
        }
        None
    }
}

impl Limit {
    /// The bucket of a request; `None` when its source is not known.
    fn bucket(&self, buckets: &Buckets<'_>, from: From<'_>) -> Option<BucketKey> {
        let hash = buckets.hash().word(self.id);
        Some(match self.by {
            LimitBy::SourcePrefix => Buckets::key(self.source(hash, from.peer?), b""),
            // One octet more, so that no path is mistaken for none.
            LimitBy::SourcePrefixAndPath => Buckets::key(self.source(hash, from.peer?).word(1), from.path),
            LimitBy::Service => {
                let bits = match from.listener.ip() {
                    IpAddr::V4(address) => u128::from(address.to_bits()),
                    IpAddr::V6(address) => address.to_bits(),
                };
                let hash = hash.word(bits as u64).word((bits >> 64) as u64);
                Buckets::key(hash.word(from.listener.port().into()).word(2), b"")
            }
        })
    }

    fn source(&self, hash: SipHash13, peer: IpAddr) -> SipHash13 {
        match peer.to_canonical() {
            IpAddr::V4(address) => hash.word(4).word((address.to_bits() & self.mask_v4).into()),
            IpAddr::V6(address) => hash.word(6).word((address.to_bits() >> 64) as u64 & self.mask_v6),
        }
    }
}

/// The id of the limit of this name; never 0.
pub fn id(name: &str) -> u64 {
    // Names are the operator's: no key is needed, and supervisor and workers find the same.
    SipHash13::new([0, 0]).finish(name.as_bytes()).max(1)
}

/// Answers with 429: when to come again, and which policy the request is over
/// (draft-ietf-httpapi-ratelimit-headers-10). The connection is kept.
///
/// # Errors
/// A closed connection.
pub(super) async fn refuse<A: Answer>(
    proxy: &Proxy,
    over: Over<'_>,
    form: Form,
    answer: &mut A,
) -> Result<(), ProxyError> {
    const TEXT: &[u8] = b"429 Too Many Requests: rate_limited\n";
    let error = ProxyError::new(ErrorKind::RateLimited);
    proxy.note(&error);
    let mut head = proxy.take_response();
    let (status, length) = match form {
        Form::Text => (error.status(), BodyLength::Exact(TEXT.len() as u64)),
        Form::Grpc => (200, BodyLength::Empty),
    };
    head.status = status;
    // The fields are ours and few; they fit.
    let filled = fill(&mut head.fields, over, &error, form).map_err(|_| ProxyError::new(ErrorKind::Internal));
    let begun = filled.and_then(|()| answer.head(&head, length));
    proxy.put_response(head);
    begun?;
    if form == Form::Text && answer.takes_body() {
        answer.data(Chunk::from_static(TEXT)).await?;
    }
    answer.end(None)
}

fn fill(fields: &mut Fields, over: Over<'_>, error: &ProxyError, form: Form) -> Result<(), FieldError> {
    let Over { limit, wait_s } = over;
    match form {
        Form::Text => fields.push_known(Known::ContentType, b"text/plain; charset=utf-8")?,
        Form::Grpc => refusal::fill_grpc(fields, error)?,
    }
    if let Some(token) = error.proxy_status() {
        let parts: [&[u8]; 5] =
            [b"blitz; error=", token.as_bytes(), b"; details=\"", error.detail.as_bytes(), b"\""];
        fields.push_known_parts(Known::ProxyStatus, &parts)?;
    }
    let mut value = [0; VALUE_BYTES_MAX];
    fields.push_known(Known::RetryAfter, text(&mut value, format_args!("{wait_s}")))?;
    let state = text(&mut value, format_args!("\"{}\";r=0;t={wait_s}", limit.name));
    fields.push(b"RateLimit", state)?;
    fields.push(b"RateLimit-Policy", &limit.policy)
}

/// Text in a buffer of the caller's; what does not fit is cut.
fn text<'a>(buffer: &'a mut [u8], what: std::fmt::Arguments<'_>) -> &'a [u8] {
    let len = buffer.len();
    let mut rest = &mut *buffer;
    let written = rest.write_fmt(what);
    debug_assert!(written.is_ok(), "a field value is longer than its room");
    let used = len - rest.len();
    buffer.get(..used).unwrap_or_default()
}
