//! Endpoints with their addresses, and the segment rows that stand for them.
//!
//! Owns: the resolved table that travels to the workers, and the supervisor's allocation of rows. Does not
//! own: looking names up (see [`crate::control::names`]) or what is in a row
//! ([`crate::segment::EndpointRow`]).

use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

/// One address of an endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResolvedAddress {
    /// Where to connect.
    pub address: SocketAddr,
    /// Its row in the shared segment, for [`crate::segment::WorkerRows::endpoint`].
    pub row: u16,
}

/// Addresses of every endpoint, shaped as the configuration: `upstreams[i][j]` belongs to
/// `config.upstreams[i].endpoints[j]`. A list is empty while a name has no address.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResolvedEndpoints {
    upstreams: Vec<Vec<Vec<ResolvedAddress>>>,
}

impl ResolvedEndpoints {
    /// Addresses of endpoint `endpoint` of upstream `upstream`; empty when unresolved or out of range.
    pub fn addresses(&self, upstream: usize, endpoint: usize) -> &[ResolvedAddress] {
        self.upstreams.get(upstream).and_then(|u| u.get(endpoint)).map_or(&[], Vec::as_slice)
    }

    /// All addresses with the index of their upstream.
    pub fn iter(&self) -> impl Iterator<Item = (usize, ResolvedAddress)> {
        let upstreams = self.upstreams.iter().enumerate();
        upstreams
            .flat_map(|(index, endpoints)| endpoints.iter().flatten().map(move |address| (index, *address)))
    }
}

/// What a row stands for. The same address in two upstreams has two rows.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
struct RowKey {
    upstream: String,
    endpoint: String,
    address: SocketAddr,
}

/// One endpoint to be given rows.
#[derive(Clone, Debug)]
pub struct EndpointAddresses {
    /// Host and port as configured.
    pub endpoint: String,
    /// Its addresses now.
    pub addresses: Vec<SocketAddr>,
}

/// The supervisor's allocator of endpoint rows.
///
/// An address that stays keeps its row, so its health and counters survive reloads. A row that nothing stands
/// on any more is retired with the generation that dropped it, and is cleared and used again only when every
/// worker has applied that generation and no request is in flight on it.
#[derive(Clone, Debug)]
pub struct RowTable {
    used: HashMap<RowKey, u16>,
    free: Vec<u16>,
    /// Row to the generation that stopped using it.
    retired: BTreeMap<u16, u64>,
    capacity: u32,
}

/// More rows are needed than the segment has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RowsExhausted {
    /// Addresses of all endpoints together.
    pub needed: usize,
    /// Rows of the segment.
    pub capacity: u32,
    /// Rows that wait for requests in flight before they can be used again.
    pub retired: usize,
}

impl std::fmt::Display for RowsExhausted {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { needed, capacity, retired } = self;
        write!(
            f,
            "the endpoints have {needed} addresses, but there is room for {capacity} ({retired} of them still finish \
             requests of the previous configuration); use fewer endpoints, or reload again when those have ended"
        )
    }
}

impl std::error::Error for RowsExhausted {}

impl RowTable {
    /// All of `capacity` rows free.
    pub fn new(capacity: u32) -> Self {
        let rows = u16::try_from(capacity).unwrap_or(u16::MAX);
        Self { used: HashMap::new(), free: (0..rows).rev().collect(), retired: BTreeMap::new(), capacity }
    }

    /// Gives every address of `upstreams` (name, endpoints) a row and retires rows that are not named any
    /// more, as of `generation`. On an error nothing has changed.
    ///
    /// # Errors
    /// [`RowsExhausted`] when there are not enough free rows.
    pub fn assign(
        &mut self,
        upstreams: &[(String, Vec<EndpointAddresses>)],
        generation: u64,
    ) -> Result<ResolvedEndpoints, RowsExhausted> {
        let mut next = self.clone();
        let mut wanted = HashSet::new();
        let mut resolved = Vec::with_capacity(upstreams.len());
        let mut short = false;
        for (upstream, endpoints) in upstreams {
            let mut resolved_upstream = Vec::with_capacity(endpoints.len());
            for endpoint in endpoints {
                let mut addresses = Vec::with_capacity(endpoint.addresses.len());
                for &address in &endpoint.addresses {
                    let key =
                        RowKey { upstream: upstream.clone(), endpoint: endpoint.endpoint.clone(), address };
                    wanted.insert(key.clone());
                    let row = next.used.get(&key).copied().or_else(|| next.free.pop());
                    match row {
                        Some(row) => {
                            next.used.insert(key, row);
                            addresses.push(ResolvedAddress { address, row });
                        }
                        None => short = true,
                    }
                }
                resolved_upstream.push(addresses);
            }
            resolved.push(resolved_upstream);
        }
        if short {
            let retired = self.retired.len();
            return Err(RowsExhausted { needed: wanted.len(), capacity: self.capacity, retired });
        }
        let retired = &mut next.retired;
        next.used.retain(|key, row| {
            let keep = wanted.contains(key);
            if !keep {
                retired.insert(*row, generation);
            }
            keep
        });
        *self = next;
        Ok(ResolvedEndpoints { upstreams: resolved })
    }

    /// Frees retired rows whose generation all workers have passed (`applied` is the lowest generation that a
    /// worker uses) and which `in_flight` reports as idle. Returns them: the caller clears them in the
    /// segment.
    pub fn reclaim(&mut self, applied: u64, in_flight: impl Fn(u16) -> u64) -> Vec<u16> {
        let ready = |(row, generation): (&u16, &u64)| {
            (*generation <= applied && in_flight(*row) == 0).then_some(*row)
        };
        let rows: Vec<u16> = self.retired.iter().filter_map(ready).collect();
        for row in &rows {
            self.retired.remove(row);
            self.free.push(*row);
        }
        rows
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn upstream(name: &str, ports: std::ops::Range<u16>) -> (String, Vec<EndpointAddresses>) {
        let endpoint = |port| EndpointAddresses {
            endpoint: format!("host:{port}"),
            addresses: vec![SocketAddr::from(([127, 0, 0, 1], port))],
        };
        (name.to_owned(), ports.map(endpoint).collect())
    }

    #[test]
    fn an_unchanged_address_keeps_its_row_and_a_dropped_one_waits_for_its_requests() {
        let mut table = RowTable::new(4);
        let first = table.assign(&[upstream("a", 1..4)], 1).expect("rows");
        let second = table.assign(&[upstream("a", 2..4)], 2).expect("rows");
        assert_eq!(first.addresses(0, 1), second.addresses(0, 0));
        let dropped = first.addresses(0, 0)[0].row;
        assert!(table.reclaim(1, |_| 0).is_empty(), "a worker still uses generation 1");
        assert!(table.reclaim(2, |_| 1).is_empty(), "a request is in flight");
        assert_eq!(table.reclaim(2, |_| 0), [dropped]);
        assert_eq!(first.iter().count(), 3);
        assert!(first.addresses(9, 0).is_empty() && first.addresses(0, 9).is_empty());
    }

    #[test]
    fn too_many_addresses_change_nothing_and_say_so() {
        let mut table = RowTable::new(4);
        let before = table.assign(&[upstream("a", 1..4)], 1).expect("rows");
        let error = table.assign(&[upstream("a", 1..4), upstream("b", 1..4)], 2).expect_err("six of four");
        assert_eq!(error.needed, 6);
        assert!(error.to_string().contains("room for 4"), "{error}");
        assert_eq!(table.assign(&[upstream("a", 1..4)], 3).expect("rows"), before);
    }

    #[test]
    fn the_same_address_in_two_upstreams_has_two_rows() {
        let mut table = RowTable::new(2);
        let both = table.assign(&[upstream("a", 1..2), upstream("b", 1..2)], 1).expect("rows");
        assert_ne!(both.addresses(0, 0)[0].row, both.addresses(1, 0)[0].row);
    }
}
