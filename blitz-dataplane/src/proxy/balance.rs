//! Which endpoint gets a request, and what live traffic says of its health.
//!
//! Owns: the choice (smooth weighted round robin) and passive ejection. Does not own: connections
//! (`pool.rs`), active checks, the rows' layout (`segment`).
//!
//! Each worker judges for itself: it writes only its own row, and a row holds no pointer, so a
//! killed worker leaves nothing behind that others would stumble over.
#![forbid(unsafe_code)]

use std::cell::Cell;
use std::rc::Rc;
use std::sync::atomic::Ordering::Relaxed;

use blitz_config::model::{PassiveHealth, Upstream};

use super::connect::{Link, Tls};
use super::pool::{Pool, Pools};
use crate::metrics::names::Metric;
use crate::process::endpoints::ResolvedEndpoints;
use crate::segment::{WorkerRows, add_u32, add_u64, sub_u32};
use crate::tls::Connector;

/// The addresses of one upstream.
pub struct Group {
    members: Vec<Member>,
    passive: PassiveHealth,
    /// All weights are equal: the plain rotation serves.
    is_even: bool,
    cursor: Cell<usize>,
}

/// One address of an endpoint.
pub struct Member {
    /// Its idle connections.
    pub pool: Rc<Pool>,
    row: u16,
    weight: i64,
    /// Smooth weighted round robin: grows by the weight, falls by the sum when chosen.
    credit: Cell<i64>,
}

/// How an exchange with an endpoint went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// An answer came whole.
    Succeeded,
    /// The endpoint or the way to it is at fault.
    Failed,
    /// It says nothing about the endpoint (the client left).
    Unknown,
}

impl Group {
    /// The group of an upstream. The weight of an endpoint is shared among its addresses. `connector` makes the
    /// connections to those of its endpoints that are spoken to over TLS.
    pub fn new(
        upstream: &Upstream,
        index: usize,
        resolved: &ResolvedEndpoints,
        pools: &Pools,
        connector: Option<&Rc<Connector>>,
    ) -> Self {
        let idle_max = upstream.idle_connections_max as usize;
        let mut members = Vec::new();
        for (at, endpoint) in upstream.endpoints.iter().enumerate() {
            let addresses = resolved.addresses(index, at);
            let tls = connector.and_then(|connector| {
                let name = connector.name(at)?.clone();
                Some(Tls { connector: Rc::clone(connector), name })
            });
            let link = Rc::new(Link::new(&upstream.link, tls));
            for address in addresses {
                members.push(Member {
                    pool: pools.of(&upstream.name, address.address, idle_max, &link),
                    row: address.row,
                    // In thousandths, so that a weight of one over several addresses is not lost.
                    weight: (i64::from(endpoint.weight) * 1000 / addresses.len() as i64).max(1),
                    credit: Cell::new(0),
                });
            }
        }
        let is_even =
            members.iter().all(|member| Some(member.weight) == members.first().map(|first| first.weight));
        Self { members, passive: upstream.passive, is_even, cursor: Cell::new(0) }
    }

    /// How many addresses there are.
    pub fn len(&self) -> usize {
        self.members.len()
    }

    /// Whether there is no address.
    pub fn is_empty(&self) -> bool {
        self.members.is_empty()
    }

    /// The member at `index`.
    pub fn member(&self, index: usize) -> Option<&Member> {
        self.members.get(index)
    }

    /// Chooses a member that was not tried yet (`tried` is a bit set of the first 64). When all the
    /// others are ejected, the one whose ejection ends first is tried all the same: an upstream that is down
    /// altogether is found to be back by the next request.
    pub fn choose(&self, rows: &WorkerRows, now_ms: u64, tried: u64) -> Option<usize> {
        let is_candidate = |index: usize| index >= 64 || tried & (1 << index) == 0;
        let ejected_until =
            |member: &Member| rows.endpoint(member.row).map_or(0, |row| row.ejected_until_ms.load(Relaxed));
        let usable = |index: usize, member: &Member| is_candidate(index) && ejected_until(member) <= now_ms;
        let chosen = if self.is_even {
            let start = self.cursor.get();
            let count = self.members.len();
            let order = (0..count).map(|offset| (start + offset) % count);
            order.into_iter().find(|index| usable(*index, &self.members[*index])).inspect(|index| {
                self.cursor.set((index + 1) % count);
            })
        } else {
            self.choose_weighted(usable)
        };
        chosen.or_else(|| {
            let members = self.members.iter().enumerate().filter(|(index, _)| is_candidate(*index));
            members.min_by_key(|(_, member)| ejected_until(member)).map(|(index, _)| index)
        })
    }

    fn choose_weighted(&self, usable: impl Fn(usize, &Member) -> bool) -> Option<usize> {
        let mut total = 0;
        let mut best: Option<(usize, i64)> = None;
        for (index, member) in self.members.iter().enumerate() {
            if !usable(index, member) {
                continue;
            }
            total += member.weight;
            member.credit.set(member.credit.get() + member.weight);
            if best.is_none_or(|(_, credit)| member.credit.get() > credit) {
                best = Some((index, member.credit.get()));
            }
        }
        let (index, _) = best?;
        let credit = &self.members[index].credit;
        credit.set(credit.get() - total);
        Some(index)
    }

    /// Notes how an exchange with a member went.
    pub fn note(&self, rows: &WorkerRows, index: usize, verdict: Verdict, now_ms: u64) {
        let Some(row) = self.members.get(index).and_then(|member| rows.endpoint(member.row)) else { return };
        match verdict {
            Verdict::Unknown => {}
            Verdict::Succeeded => {
                // In steady state this is a load and a branch.
                if row.consecutive_failures.load(Relaxed) == 0 {
                    return;
                }
                add_u32(&row.consecutive_successes, 1);
                let is_back = row.ejected_until_ms.load(Relaxed) == 0
                    || row.consecutive_successes.load(Relaxed) >= self.passive.consecutive_successes;
                if is_back {
                    row.consecutive_failures.store(0, Relaxed);
                    row.consecutive_successes.store(0, Relaxed);
                    row.ejected_until_ms.store(0, Relaxed);
                }
            }
            Verdict::Failed => {
                add_u64(&row.failures_total, 1);
                row.consecutive_successes.store(0, Relaxed);
                add_u32(&row.consecutive_failures, 1);
                // After an ejection the count stands at the threshold: one failure sends it out again.
                if row.consecutive_failures.load(Relaxed) >= self.passive.consecutive_failures {
                    row.consecutive_failures.store(self.passive.consecutive_failures, Relaxed);
                    let was_in = row.ejected_until_ms.load(Relaxed) <= now_ms;
                    let ejection_ms =
                        u64::try_from(self.passive.ejection.as_millis()).unwrap_or(u64::MAX / 2);
                    row.ejected_until_ms.store(now_ms.saturating_add(ejection_ms), Relaxed);
                    if was_in {
                        add_u32(&row.ejections, 1);
                        rows.add(Metric::UpstreamEjections, 1);
                    }
                }
            }
        }
    }
}

impl Member {
    /// Counts a request as under way until the guard is dropped.
    pub fn begin<'a>(&self, rows: &'a WorkerRows, is_reuse: bool) -> InFlight<'a> {
        if let Some(row) = rows.endpoint(self.row) {
            add_u32(&row.in_flight, 1);
            add_u64(&row.requests_total, 1);
            add_u64(if is_reuse { &row.reuses_total } else { &row.connects_total }, 1);
        }
        InFlight { rows, row: self.row }
    }
}

/// A request under way to an endpoint.
pub struct InFlight<'a> {
    rows: &'a WorkerRows,
    row: u16,
}

impl Drop for InFlight<'_> {
    fn drop(&mut self) {
        if let Some(row) = self.rows.endpoint(self.row) {
            sub_u32(&row.in_flight, 1);
        }
    }
}
