//! The steps from one configuration to the next.
//!
//! Owns: what a reload adds, keeps, changes and removes, told so that state can be carried over by
//! index; and what a reload cannot do. Does not own: doing it (the data plane's supervisor and
//! workers).
#![forbid(unsafe_code)]

use crate::model::{
    Admin, Balance, Cidr, Config, Endpoint, EndpointHost, Http2Limits, Http3Limits, HttpLimits, Limit, Link,
    Listener, PassiveHealth, Route, Timeouts, Upstream, Xdp,
};
use std::collections::HashMap;
use std::hash::Hash;
use std::net::SocketAddr;

/// What leads from one [`Config`] to another. [`Plan::apply`] of the plan from `a` to `b` to `a`
/// gives `b`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// Listeners, told apart by address: a kept or changed one keeps its socket.
    pub listeners: Steps<Listener>,
    /// Upstreams, told apart by name.
    pub upstreams: Steps<Upstream, UpstreamChange>,
    /// The new routes, when they or the order of the upstreams that they index differ.
    pub routes: Option<Vec<Route>>,
    /// The new list, when it differs.
    pub trusted_proxies: Option<Vec<Cidr>>,
    /// The new deadlines, when one differs.
    pub timeouts: Option<Timeouts>,
    /// The new bounds, when one differs.
    pub http: Option<HttpLimits>,
    /// The bounds on HTTP/2 connections, when they changed.
    pub http2: Option<Http2Limits>,
    /// The bounds on HTTP/3 connections, when they changed.
    pub http3: Option<Http3Limits>,
    /// The new admin API, when it differs.
    pub admin: Option<Admin>,
    /// The new limits, when they or the order of the listeners that they index differ.
    pub limits: Option<Vec<Limit>>,
    /// The new kernel stage, when it differs.
    pub xdp: Option<Xdp>,
}

/// Steps from one list to another whose items are told apart by a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Steps<T, C = T> {
    /// One step for each item of the new list, in its order.
    pub steps: Vec<Step<T, C>>,
    /// Indices in the old list of the items that no step takes up, ascending.
    pub removed: Vec<usize>,
}

/// How one item of a new list comes about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step<T, C = T> {
    /// The old item as it is.
    Keep {
        /// Its index in the old list.
        from: usize,
    },
    /// The old item of the same key, changed.
    Change {
        /// Its index in the old list.
        from: usize,
        /// The change: the new item, or what differs.
        change: C,
    },
    /// An item whose key is new.
    Add(T),
}

/// What differs in an upstream of the same name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UpstreamChange {
    /// The new way to choose.
    pub balance: Balance,
    /// Endpoints, told apart by host and port: a kept one, or one whose weight changes, keeps its
    /// connections and health.
    pub endpoints: Steps<Endpoint>,
    /// The new passive health.
    pub passive: PassiveHealth,
    /// How endpoints are spoken to from now on.
    pub link: Link,
    /// The new bound of the pool.
    pub idle_connections_max: u32,
}

/// A difference that a reload cannot bring about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RestartReason {
    /// `admin.address` changed. The old address stays in use until the restart.
    AdminAddress {
        /// In use.
        from: SocketAddr,
        /// In the new configuration.
        to: SocketAddr,
    },
    /// `http3.connection_id_epoch_s` changed: connection IDs of the epochs before would name nobody.
    CidEpoch {
        /// In use.
        from: u32,
        /// In the new configuration.
        to: u32,
    },
}

impl std::fmt::Display for RestartReason {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::AdminAddress { from, to } => {
                write!(f, "admin.address: {from} to {to} needs a restart; {from} stays in use until then")
            }
            Self::CidEpoch { from, to } => write!(
                f,
                "http3.connection_id_epoch_s: {from} to {to} needs a restart; {from} stays in use until then"
            ),
        }
    }
}

impl Plan {
    /// The steps from `old` to `new`. Linear in their size.
    pub fn between(old: &Config, new: &Config) -> Self {
        let upstreams =
            Steps::between(&old.upstreams, &new.upstreams, |up| up.name.as_str(), UpstreamChange::between);
        // A route holds the index of its upstream: equal routes over another order are other routes.
        let names = |config: &Config| config.upstreams.iter().map(|up| up.name.clone()).collect::<Vec<_>>();
        let is_same_order = names(old) == names(new);
        // And a limit holds the indices of its listeners.
        let places = |config: &Config| config.listeners.iter().map(|it| it.address).collect::<Vec<_>>();
        let is_same_place = places(old) == places(new);
        Self {
            listeners: Steps::between(&old.listeners, &new.listeners, |it| it.address, |_, new| new.clone()),
            upstreams,
            routes: (old.routes != new.routes || !is_same_order).then(|| new.routes.clone()),
            trusted_proxies: (old.trusted_proxies != new.trusted_proxies)
                .then(|| new.trusted_proxies.clone()),
            timeouts: (old.timeouts != new.timeouts).then_some(new.timeouts),
            http: (old.http != new.http).then_some(new.http),
            http2: (old.http2 != new.http2).then_some(new.http2),
            http3: (old.http3 != new.http3).then_some(new.http3),
            admin: (old.admin != new.admin).then_some(new.admin),
            limits: (old.limits != new.limits || !is_same_place).then(|| new.limits.clone()),
            xdp: (old.xdp != new.xdp).then(|| new.xdp.clone()),
        }
    }

    /// Whether nothing changes.
    pub fn is_empty(&self) -> bool {
        let Self {
            listeners,
            upstreams,
            routes,
            trusted_proxies,
            timeouts,
            http,
            http2,
            http3,
            admin,
            limits,
            xdp,
        } = self;
        listeners.is_empty()
            && upstreams.is_empty()
            && routes.is_none()
            && trusted_proxies.is_none()
            && timeouts.is_none()
            && http.is_none()
            && http2.is_none()
            && http3.is_none()
            && admin.is_none()
            && limits.is_none()
            && xdp.is_none()
    }

    /// What of the plan a reload from `old` cannot do. The rest can be applied all the same.
    pub fn requires_restart(&self, old: &Config) -> Vec<RestartReason> {
        let admin = self
            .admin
            .map(|admin| RestartReason::AdminAddress { from: old.admin.address, to: admin.address });
        let (from, to) = (old.http3.cid_epoch_seconds, self.http3.unwrap_or(old.http3).cid_epoch_seconds);
        let epoch = (from != to).then_some(RestartReason::CidEpoch { from, to });
        admin.into_iter().chain(epoch).collect()
    }

    /// The new configuration, from the old one that the plan was made for.
    ///
    /// # Errors
    /// [`PlanMismatch`] when the plan names an item that `old` does not have: it was made for
    /// another configuration.
    pub fn apply(&self, old: &Config) -> Result<Config, PlanMismatch> {
        Ok(Config {
            listeners: self.listeners.apply(&old.listeners, |_, new| Ok(new.clone()))?,
            upstreams: self.upstreams.apply(&old.upstreams, |old, change| change.apply(old))?,
            routes: self.routes.as_ref().unwrap_or(&old.routes).clone(),
            trusted_proxies: self.trusted_proxies.as_ref().unwrap_or(&old.trusted_proxies).clone(),
            timeouts: self.timeouts.unwrap_or(old.timeouts),
            http: self.http.unwrap_or(old.http),
            http2: self.http2.unwrap_or(old.http2),
            http3: self.http3.unwrap_or(old.http3),
            admin: self.admin.unwrap_or(old.admin),
            limits: self.limits.as_ref().unwrap_or(&old.limits).clone(),
            xdp: self.xdp.as_ref().unwrap_or(&old.xdp).clone(),
        })
    }
}

/// A plan was applied to a configuration that it was not made for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PlanMismatch;

impl std::error::Error for PlanMismatch {}

impl std::fmt::Display for PlanMismatch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("the plan was made for another configuration")
    }
}

impl UpstreamChange {
    fn between(old: &Upstream, new: &Upstream) -> Self {
        fn key(endpoint: &Endpoint) -> (&EndpointHost, u16) {
            (&endpoint.host, endpoint.port)
        }
        Self {
            balance: new.balance,
            endpoints: Steps::between(&old.endpoints, &new.endpoints, key, |_, new| new.clone()),
            passive: new.passive,
            link: new.link.clone(),
            idle_connections_max: new.idle_connections_max,
        }
    }

    fn apply(&self, old: &Upstream) -> Result<Upstream, PlanMismatch> {
        Ok(Upstream {
            name: old.name.clone(),
            balance: self.balance,
            endpoints: self.endpoints.apply(&old.endpoints, |_, new| Ok(new.clone()))?,
            passive: self.passive,
            link: self.link.clone(),
            idle_connections_max: self.idle_connections_max,
        })
    }
}

impl<T: Clone + PartialEq, C> Steps<T, C> {
    fn between<'a, K: Eq + Hash>(
        old: &'a [T],
        new: &'a [T],
        key: impl Fn(&'a T) -> K,
        change: impl Fn(&T, &T) -> C,
    ) -> Self {
        let mut free: HashMap<K, usize> =
            old.iter().enumerate().map(|(index, item)| (key(item), index)).collect();
        let mut taken = vec![false; old.len()];
        let steps = new
            .iter()
            .map(|item| {
                // Removed from the map: state is handed on to one successor, never to two.
                let Some((from, before)) =
                    free.remove(&key(item)).and_then(|from| Some((from, old.get(from)?)))
                else {
                    return Step::Add(item.clone());
                };
                if let Some(taken) = taken.get_mut(from) {
                    *taken = true;
                }
                if before == item {
                    Step::Keep { from }
                } else {
                    Step::Change { from, change: change(before, item) }
                }
            })
            .collect();
        let removed =
            taken.iter().enumerate().filter(|(_, taken)| !**taken).map(|(index, _)| index).collect();
        Self { steps, removed }
    }

    fn apply(
        &self,
        old: &[T],
        change: impl Fn(&T, &C) -> Result<T, PlanMismatch>,
    ) -> Result<Vec<T>, PlanMismatch> {
        self.steps
            .iter()
            .map(|step| match step {
                Step::Keep { from } => old.get(*from).cloned().ok_or(PlanMismatch),
                Step::Change { from, change: to } => change(old.get(*from).ok_or(PlanMismatch)?, to),
                Step::Add(item) => Ok(item.clone()),
            })
            .collect()
    }
}

impl<T, C> Steps<T, C> {
    /// Whether every item stays as it is and where it is.
    pub fn is_empty(&self) -> bool {
        let stays =
            |(index, step): (usize, &Step<T, C>)| matches!(step, Step::Keep { from } if *from == index);
        self.removed.is_empty() && self.steps.iter().enumerate().all(stays)
    }

    /// The items whose key is new, with their index in the new list.
    pub fn added(&self) -> impl Iterator<Item = (usize, &T)> {
        self.steps.iter().enumerate().filter_map(|(index, step)| match step {
            Step::Add(item) => Some((index, item)),
            Step::Keep { .. } | Step::Change { .. } => None,
        })
    }

    /// The items that stay, changed or not, as pairs of old and new index.
    pub fn carried(&self) -> impl Iterator<Item = (usize, usize)> {
        self.steps.iter().enumerate().filter_map(|(index, step)| match step {
            Step::Keep { from } | Step::Change { from, .. } => Some((*from, index)),
            Step::Add(_) => None,
        })
    }
}
