//! Where stages are pinned in the BPF file system.
//!
//! Owns: the paths `/sys/fs/bpf/blitz/<interface>/{link,program,maps/NAME}`, mounting bpffs where it is
//! missing, listing and removing pins. Does not own: what is pinned (see [`crate::stage`]).
//!
//! bpffs takes no dots in names, so a dot of an interface name is written `%2e`: `eth0.100` is pinned
//! under `eth0%2e100`.
#![forbid(unsafe_code)]

use std::ffi::OsStr;
use std::fs::Permissions;
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use crate::error::{Error, Kind, Result};
use crate::lock::{self, Lock};
use crate::sys::mount;

/// Where stages are pinned unless a test says otherwise.
pub const BASE: &str = "/sys/fs/bpf/blitz";
/// Directories with this prefix are stages that are being made; no interface name holds a `%`.
const STAGING: &str = "%new-";

/// The directory of all stages.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pins {
    base: PathBuf,
}

/// The directory of one interface's stage.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InterfacePins {
    directory: PathBuf,
}

impl Default for Pins {
    fn default() -> Self {
        Self { base: PathBuf::from(BASE) }
    }
}

impl Pins {
    /// Stages below `base`, whose parent is where bpffs is mounted or to be mounted.
    pub fn at(base: impl Into<PathBuf>) -> Self {
        Self { base: base.into() }
    }

    /// The directory of all stages.
    pub fn base(&self) -> &Path {
        &self.base
    }

    /// Where `interface` is or would be pinned.
    pub fn of(&self, interface: &str) -> InterfacePins {
        InterfacePins { directory: self.base.join(encode(interface)) }
    }

    /// Where a stage of `interface` is built before it takes its place.
    pub(crate) fn staging(&self, interface: &str) -> InterfacePins {
        InterfacePins { directory: self.base.join(format!("{STAGING}{}", encode(interface))) }
    }

    /// Makes sure that the directory exists in a BPF file system, mounting one where it is missing.
    /// Returns what an operator should know about that, if anything.
    ///
    /// # Errors
    /// [`Kind::Rights`] when bpffs is not mounted and may not be mounted by this process.
    pub fn prepare(&self) -> Result<Option<String>> {
        let point = self.base.parent().unwrap_or(Path::new("/"));
        let is_there = mount::is_bpffs(point).map_err(|error| {
            let remedy = format!("mkdir -p {0} && mount -t bpf bpf {0}", point.display());
            match error.kind() {
                io::ErrorKind::NotFound => {
                    Error::new(Kind::System, format!("{} does not exist", point.display()), remedy)
                }
                _ => Error::io(point.display(), &error),
            }
        })?;
        let mut said = None;
        if !is_there {
            mount::mount_bpffs(point).map_err(|error| {
                Error::new(
                    if error.kind() == io::ErrorKind::PermissionDenied { Kind::Rights } else { Kind::System },
                    format!("no BPF file system is mounted at {}, and mounting it: {error}", point.display()),
                    format!(
                        "as root: mount -t bpf bpf {} (systemd: sys-fs-bpf.mount does it at boot)",
                        point.display()
                    ),
                )
            })?;
            said = Some(match has_own_mounts() {
                true => format!(
                    "mounted a BPF file system at {}, in this mount namespace only: the stage ends with it",
                    point.display()
                ),
                false => format!("mounted a BPF file system at {}", point.display()),
            });
        }
        match std::fs::DirBuilder::new().mode(0o700).create(&self.base) {
            Ok(()) => Ok(said),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => self.own().map(|()| said),
            Err(error) => Err(Error::io(format!("mkdir {}", self.base.display()), &error)),
        }
    }

    /// Refuses a directory that another user made: everybody may write to a BPF file system that was mounted
    /// without a mode, and who owns the directory can take every stage in it away. Closes one that is open to
    /// others: who can open it can hold the writers' lock.
    fn own(&self) -> Result<()> {
        let about = |error: io::Error| Error::io(self.base.display(), &error);
        let found = std::fs::symlink_metadata(&self.base).map_err(about)?;
        let own_user = std::fs::metadata("/proc/self").map_err(about)?.uid();
        if !found.is_dir() || ![0, own_user].contains(&found.uid()) {
            return Err(Error::new(
                Kind::Foreign,
                format!(
                    "{} was made by user {}, who could take every stage there away",
                    self.base.display(),
                    found.uid()
                ),
                format!(
                    "rm -r {} and attach again; `mount -o remount,mode=0700 {}` keeps others out",
                    self.base.display(),
                    self.base.parent().unwrap_or(Path::new("/")).display()
                ),
            ));
        }
        if found.permissions().mode() & 0o077 != 0 {
            std::fs::set_permissions(&self.base, Permissions::from_mode(0o700)).map_err(about)?;
        }
        Ok(())
    }

    /// Takes the writers' lock.
    ///
    /// # Errors
    /// As [`lock::take`].
    pub fn lock(&self) -> Result<Lock> {
        lock::take(&self.base, lock::PATIENCE)
    }

    /// Names of the interfaces with a stage, in order. None when the directory does not exist.
    ///
    /// # Errors
    /// What reading the directory reports.
    pub fn interfaces(&self) -> Result<Vec<String>> {
        let entries = match std::fs::read_dir(&self.base) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(Error::io(self.base.display(), &error)),
        };
        let mut found = Vec::new();
        for entry in entries {
            let entry = entry.map_err(|error| Error::io(self.base.display(), &error))?;
            found.extend(decode(&entry.file_name()));
        }
        found.sort();
        Ok(found)
    }
}

impl InterfacePins {
    /// The directory.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// The pinned link.
    pub fn link(&self) -> PathBuf {
        self.directory.join("link")
    }

    /// The pinned program.
    pub fn program(&self) -> PathBuf {
        self.directory.join("program")
    }

    /// The next program, until it takes the name of the one before.
    pub(crate) fn program_next(&self) -> PathBuf {
        self.directory.join("program_next")
    }

    /// The directory of the pinned maps.
    pub fn maps(&self) -> PathBuf {
        self.directory.join("maps")
    }

    /// The pinned map called `name`.
    pub fn map(&self, name: &str) -> PathBuf {
        self.maps().join(name)
    }

    /// Whether something is there.
    pub fn exists(&self) -> bool {
        self.directory.exists()
    }

    pub(crate) fn create(&self) -> Result<()> {
        let make = |path: &Path| {
            std::fs::create_dir(path).map_err(|error| Error::io(format!("mkdir {}", path.display()), &error))
        };
        make(&self.directory)?;
        make(&self.maps())
    }

    /// Removes the link first, so that traffic flows untouched from that moment on, then the rest.
    /// What is absent is no error.
    pub(crate) fn remove(&self) -> Result<()> {
        let gone = |result: io::Result<()>, path: &Path| match result {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(Error::io(format!("remove {}", path.display()), &error))
            }
            _ => Ok(()),
        };
        gone(std::fs::remove_file(self.link()), &self.link())?;
        // Anything that lies there goes: the directory is ours by its name.
        for directory in [self.maps(), self.directory.clone()] {
            for entry in std::fs::read_dir(&directory).into_iter().flatten().flatten() {
                if entry.file_type().is_ok_and(|kind| !kind.is_dir()) {
                    gone(std::fs::remove_file(entry.path()), &entry.path())?;
                }
            }
            gone(std::fs::remove_dir(&directory), &directory)?;
        }
        Ok(())
    }
}

/// Whether this process sees other mounts than process 1, or, where nobody may ask about that one, than its
/// parent: `ip netns exec` gives a command mounts of its own. False when that cannot be told.
fn has_own_mounts() -> bool {
    let of = |process: &str| std::fs::read_link(format!("/proc/{process}/ns/mnt")).ok();
    let outside = of("1").or_else(|| of(&std::os::unix::process::parent_id().to_string()));
    matches!((of("self"), outside), (Some(own), Some(outside)) if own != outside)
}

fn encode(interface: &str) -> String {
    // No name of an interface has a slash; a path that leads elsewhere must not come of one all the same.
    interface.replace('.', "%2e").replace('/', "%2f")
}

fn decode(directory: &OsStr) -> Option<String> {
    let name = directory.to_str()?.replace("%2e", ".");
    (!name.contains('%')).then_some(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn interface_names_survive_the_rules_of_bpffs() {
        let pins = Pins::default();
        assert_eq!(pins.of("eth0").link(), Path::new("/sys/fs/bpf/blitz/eth0/link"));
        assert_eq!(pins.of("eth0.100").map("RULES"), Path::new("/sys/fs/bpf/blitz/eth0%2e100/maps/RULES"));
        assert_eq!(decode(OsStr::new("eth0%2e100")).as_deref(), Some("eth0.100"));
        assert_eq!(pins.of("/etc").directory(), Path::new("/sys/fs/bpf/blitz/%2fetc"));
        let staging = pins.staging("eth0");
        assert_eq!(decode(staging.directory().file_name().unwrap_or_default()), None);
    }

    #[test]
    fn a_directory_that_is_missing_holds_no_stages() {
        assert_eq!(Pins::at("/nonexistent/blitz").interfaces(), Ok(Vec::new()));
    }
}
