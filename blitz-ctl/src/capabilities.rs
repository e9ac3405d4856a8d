//! The rights that the kernel stage needs, and nothing beyond them (capabilities(7)).
//!
//! Owns: the set, the check that names what is missing, the reduction to it. Does not own: the calls
//! (see [`crate::sys::capability`]).
#![forbid(unsafe_code)]

use crate::error::{Error, Kind, Result};
use crate::sys::capability;

/// A right of the set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Capability {
    /// Creating maps and loading programs.
    Bpf,
    /// Attaching programs to interfaces.
    NetAdmin,
    /// Making AF_XDP sockets for a data plane without rights.
    NetRaw,
    /// Programs that compute with packet pointers, which the verifier asks it for.
    Perfmon,
}

impl Capability {
    /// Everything that `blitz-ctl run` keeps.
    pub const ALL: [Self; 4] = [Self::Bpf, Self::NetAdmin, Self::NetRaw, Self::Perfmon];
    /// What attaching a stage takes.
    pub const ATTACH: [Self; 3] = [Self::Bpf, Self::NetAdmin, Self::Perfmon];

    /// Its name, as in capabilities(7).
    pub const fn name(self) -> &'static str {
        match self {
            Self::Bpf => "CAP_BPF",
            Self::NetAdmin => "CAP_NET_ADMIN",
            Self::NetRaw => "CAP_NET_RAW",
            Self::Perfmon => "CAP_PERFMON",
        }
    }

    /// Its number in linux/capability.h.
    const fn number(self) -> u32 {
        match self {
            Self::NetAdmin => 12,
            Self::NetRaw => 13,
            Self::Perfmon => 38,
            Self::Bpf => 39,
        }
    }

    const fn bit(self) -> u64 {
        1 << self.number()
    }
}

/// CAP_SYS_ADMIN, which the kernel takes for CAP_BPF and CAP_PERFMON too.
const SYS_ADMIN: u64 = 1 << 21;

/// Refuses when one of `needed` is not in effect, naming those that are missing.
///
/// # Errors
/// [`Kind::Rights`].
pub fn require(needed: &[Capability]) -> Result<()> {
    let (effective, _) = capability::sets().map_err(|error| Error::io("capget", &error))?;
    let missing = missing(needed, effective);
    if missing.is_empty() {
        return Ok(());
    }
    let names: Vec<&str> = missing.iter().map(|capability| capability.name()).collect();
    Err(Error::new(
        Kind::Rights,
        format!("this process lacks {}", names.join(", ")),
        "run it as root, or grant them (systemd: AmbientCapabilities=)",
    ))
}

/// Those of `needed` that the set `effective` does not hold.
fn missing(needed: &[Capability], effective: u64) -> Vec<Capability> {
    let implied = |capability: &Capability| {
        matches!(capability, Capability::Bpf | Capability::Perfmon) && effective & SYS_ADMIN != 0
    };
    let held = |capability: &Capability| effective & capability.bit() != 0 || implied(capability);
    needed.iter().filter(|capability| !held(capability)).copied().collect()
}

/// Gives up every right but [`Capability::ALL`], for good. The process must still have one thread.
///
/// # Errors
/// [`Kind::Rights`] when one of the four is not there to be kept; nothing has been given up then.
pub fn reduce() -> Result<()> {
    let (_, permitted) = capability::sets().map_err(|error| Error::io("capget", &error))?;
    let keep = Capability::ALL.iter().fold(0, |bits, capability| bits | capability.bit());
    let absent: Vec<&str> =
        Capability::ALL.iter().filter(|c| permitted & c.bit() == 0).map(|c| c.name()).collect();
    if !absent.is_empty() {
        return Err(Error::new(
            Kind::Rights,
            format!("this process may not keep {}, since it does not have it", absent.join(", ")),
            "run it as root, or grant CAP_BPF, CAP_NET_ADMIN, CAP_NET_RAW and CAP_PERFMON (systemd: \
             AmbientCapabilities=)",
        ));
    }
    capability::reduce_to(keep).map_err(|error| Error::io("capset", &error))
}

/// The names of the capabilities in effect that are among [`Capability::ALL`], and whether there are
/// others.
///
/// # Errors
/// None that a correct call can meet.
pub fn in_effect() -> Result<(Vec<&'static str>, bool)> {
    let (effective, _) = capability::sets().map_err(|error| Error::io("capget", &error))?;
    let ours = Capability::ALL.iter().fold(0, |bits, capability| bits | capability.bit());
    let held = Capability::ALL.iter().filter(|c| effective & c.bit() != 0).map(|c| c.name()).collect();
    Ok((held, effective & !ours != 0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_missing_ones_are_named() {
        let held = Capability::Bpf.bit() | Capability::NetAdmin.bit();
        assert_eq!(missing(&Capability::ATTACH, held), [Capability::Perfmon]);
        assert_eq!(missing(&Capability::ALL, held), [Capability::NetRaw, Capability::Perfmon]);
        assert_eq!(missing(&Capability::ATTACH, SYS_ADMIN), [Capability::NetAdmin]);
    }

    #[test]
    fn a_reduced_thread_holds_exactly_the_four() {
        let (_, permitted) = capability::sets().expect("capget");
        let keep = Capability::ALL.iter().fold(0, |bits, capability| bits | capability.bit());
        // Capabilities belong to threads, so the rest of the test process keeps its own.
        let outcome = std::thread::spawn(|| reduce().and_then(|()| in_effect())).join().expect("thread");
        match permitted & keep == keep {
            true => {
                assert_eq!(outcome.expect("reduced"), (Capability::ALL.map(Capability::name).to_vec(), false))
            }
            false => assert_eq!(outcome.expect_err("cannot keep what is not there").kind(), Kind::Rights),
        }
    }
}
