//! The master secret: the root of all keys that must survive a restart.
//!
//! Owns: finding, creating, checking, holding and wiping it. Does not own: keys derived from it.
//!
//! 32 random bytes in a file of mode 0600. Looked for at `--secret-file`, else
//! `$STATE_DIRECTORY/master.secret` (systemd), else `$XDG_STATE_HOME/blitz/master.secret`, else
//! `$HOME/.local/state/blitz/master.secret`; created there when absent. Without any such place it lives in
//! memory only.
#![forbid(unsafe_code)]

use std::fs::{self, File, OpenOptions};
use std::hash::Hasher;
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use crate::sys::{memfd, wipe};

/// Bytes of the secret.
pub const SECRET_BYTES: usize = 32;

/// The master secret. Wiped on drop; neither its debug form nor its id shows it.
pub struct Secret {
    bytes: Box<[u8; SECRET_BYTES]>,
}

impl Secret {
    /// A fresh secret that only this process knows.
    ///
    /// # Errors
    /// The kernel has no random bytes (ENOSYS before 3.17).
    pub fn generate() -> io::Result<Self> {
        let mut secret = Self { bytes: Box::new([0; SECRET_BYTES]) };
        wipe::random(&mut *secret.bytes)?;
        Ok(secret)
    }

    /// The bytes, as input to a key derivation.
    pub fn bytes(&self) -> &[u8; SECRET_BYTES] {
        &self.bytes
    }

    /// Eight hex digits that tell two secrets apart in logs: the first four bytes of SipHash-2-4 over the
    /// secret. 32 bits of a hash say nothing useful about 256 random bits.
    pub fn id(&self) -> String {
        #[allow(
            deprecated,
            reason = "the only SipHash of std whose algorithm is fixed, so that ids stay comparable"
        )]
        let mut hasher = std::hash::SipHasher::new_with_keys(u64::from_le_bytes(*b"blitz-id"), 1);
        hasher.write(&*self.bytes);
        format!("{:08x}", hasher.finish() >> 32)
    }

    /// A sealed memfd that holds the secret, to be passed to a worker.
    ///
    /// # Errors
    /// No descriptor or no memory left.
    pub fn to_fd(&self) -> io::Result<OwnedFd> {
        memfd::create_read_only(c"blitz-secret", &*self.bytes)
    }

    /// The other end of [`Self::to_fd`].
    ///
    /// # Errors
    /// The descriptor holds fewer bytes than a secret has.
    pub fn from_fd(fd: OwnedFd) -> io::Result<Self> {
        let mut secret = Self { bytes: Box::new([0; SECRET_BYTES]) };
        File::from(fd).read_exact_at(&mut *secret.bytes, 0)?;
        Ok(secret)
    }
}

impl Drop for Secret {
    fn drop(&mut self) {
        wipe::wipe(&mut *self.bytes);
    }
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Secret({})", self.id())
    }
}

/// Where a secret came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// It was there.
    Loaded(PathBuf),
    /// It was created.
    Created(PathBuf),
    /// There is no place for a file; the text says why. After a restart nothing resumes.
    Memory(String),
}

/// The directories that the environment offers.
#[derive(Clone, Debug, Default)]
pub struct Places {
    /// `--secret-file`.
    pub file: Option<PathBuf>,
    /// `$STATE_DIRECTORY`.
    pub state_directory: Option<PathBuf>,
    /// `$XDG_STATE_HOME`.
    pub xdg_state_home: Option<PathBuf>,
    /// `$HOME`.
    pub home: Option<PathBuf>,
}

impl Places {
    /// From the command line and the environment.
    pub fn from_environment(file: Option<PathBuf>) -> Self {
        let absolute = |name| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
        // systemd separates several state directories by colons; the first is ours.
        let state = absolute("STATE_DIRECTORY").and_then(|path| {
            let first = path.to_str()?.split(':').next()?.to_owned();
            Some(PathBuf::from(first))
        });
        Self {
            file,
            state_directory: state,
            xdg_state_home: absolute("XDG_STATE_HOME"),
            home: absolute("HOME"),
        }
    }

    fn path(&self) -> Option<PathBuf> {
        let state = self.state_directory.as_ref().map(|directory| directory.join("master.secret"));
        let xdg = self.xdg_state_home.as_ref().map(|directory| directory.join("blitz/master.secret"));
        let home = self.home.as_ref().map(|directory| directory.join(".local/state/blitz/master.secret"));
        self.file.clone().or(state).or(xdg).or(home)
    }
}

/// Loads the secret, or creates it where there is none.
///
/// # Errors
/// A sentence with cause and remedy: the file has another size, is readable or writable by others, or cannot be read;
/// or `--secret-file` names a place where none can be created. A default place that cannot be written is no error: the
/// secret then lives in memory.
pub fn load(places: &Places) -> Result<(Secret, Origin), String> {
    let memory = |why: String| {
        let secret =
            Secret::generate().map_err(|error| format!("cannot get random bytes for the secret: {error}"))?;
        Ok((secret, Origin::Memory(why)))
    };
    let Some(path) = places.path() else {
        return memory("neither STATE_DIRECTORY, XDG_STATE_HOME nor HOME is set".to_owned());
    };
    let shown = path.display().to_string();
    // Once to read; once more when another start created the file between our look and our own attempt.
    for _ in 0..2 {
        match OpenOptions::new().read(true).custom_flags(libc::O_CLOEXEC | libc::O_NOFOLLOW).open(&path) {
            Ok(file) => return Ok((read(file, &shown)?, Origin::Loaded(path))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(format!("cannot read the master secret {shown}: {error}")),
        }
        match create(&path) {
            Ok(secret) => return Ok((secret, Origin::Created(path))),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) if places.file.is_some() => {
                return Err(format!(
                    "cannot create the master secret {shown}: {error}; name a writable place with --secret-file"
                ));
            }
            Err(error) => return memory(format!("{shown} cannot be created: {error}")),
        }
    }
    Err(format!("the master secret {shown} appears and disappears; is another program writing it?"))
}

fn read(mut file: File, shown: &str) -> Result<Secret, String> {
    let metadata =
        file.metadata().map_err(|error| format!("cannot read the master secret {shown}: {error}"))?;
    if !metadata.is_file() {
        return Err(format!(
            "the master secret {shown} is no regular file; remove it or name another with --secret-file"
        ));
    }
    if metadata.mode() & 0o077 != 0 {
        return Err(format!(
            "the master secret {shown} has mode {:04o}, so others may know it; remove it (a new one is \
             created, sessions \
             do not resume), or chmod 600 it if you trust them",
            metadata.mode() & 0o7777
        ));
    }
    if metadata.len() != SECRET_BYTES as u64 {
        return Err(format!(
            "the master secret {shown} has {} bytes where {SECRET_BYTES} are expected; remove it, and a \
             new one is created",
            metadata.len()
        ));
    }
    let mut secret = Secret { bytes: Box::new([0; SECRET_BYTES]) };
    file.read_exact(&mut *secret.bytes)
        .map_err(|error| format!("cannot read the master secret {shown}: {error}"))?;
    Ok(secret)
}

/// Creates the file under a name of its own and links it into place, so that nobody ever sees half a secret
/// and an existing one is never replaced.
fn create(path: &Path) -> io::Result<Secret> {
    if let Some(directory) = path.parent() {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
    }
    let secret = Secret::generate()?;
    let temporary = path.with_extension(format!("new.{}", std::process::id()));
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temporary)?;
    let written = file
        .write_all(&*secret.bytes)
        .and_then(|()| file.sync_all())
        .and_then(|()| fs::hard_link(&temporary, path));
    fs::remove_file(&temporary)?;
    written.map(|()| secret)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn it_is_created_once_with_mode_0600_and_found_again() {
        let directory = tempfile::tempdir().expect("directory");
        let places = Places { xdg_state_home: Some(directory.path().to_owned()), ..Places::default() };
        let (first, origin) = load(&places).expect("created");
        let path = directory.path().join("blitz/master.secret");
        assert_eq!(origin, Origin::Created(path.clone()));
        assert_eq!(fs::metadata(&path).expect("file").mode() & 0o7777, 0o600);
        let (second, origin) = load(&places).expect("loaded");
        assert_eq!(origin, Origin::Loaded(path));
        assert_eq!(first.bytes(), second.bytes());
        assert_eq!(first.id().len(), 8);
        assert_eq!(format!("{first:?}"), format!("Secret({})", second.id()));
        let copy = Secret::from_fd(first.to_fd().expect("memfd")).expect("copy");
        assert_eq!(copy.bytes(), first.bytes());
        assert_eq!(fs::read_dir(directory.path().join("blitz")).expect("list").count(), 1);
    }

    #[test]
    fn a_wrong_mode_or_size_is_refused_with_a_remedy() {
        let directory = tempfile::tempdir().expect("directory");
        let path = directory.path().join("secret");
        let places = Places { file: Some(path.clone()), ..Places::default() };
        fs::write(&path, [7; SECRET_BYTES]).expect("write");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).expect("mode");
        let error = load(&places).expect_err("mode");
        assert!(error.contains("0640") && error.contains("chmod 600"), "{error}");
        fs::write(&path, [7; 31]).expect("write");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).expect("mode");
        let error = load(&places).expect_err("size");
        assert!(error.contains("31 bytes"), "{error}");
    }

    #[test]
    fn without_a_place_it_lives_in_memory_unless_one_was_demanded() {
        let (_, origin) = load(&Places::default()).expect("memory");
        assert!(matches!(origin, Origin::Memory(_)));
        let nowhere = PathBuf::from("/proc/nowhere/secret");
        let default = Places { home: Some(nowhere.clone()), ..Places::default() };
        assert!(matches!(load(&default).expect("memory").1, Origin::Memory(_)));
        let error = load(&Places { file: Some(nowhere), ..Places::default() }).expect_err("demanded");
        assert!(error.contains("--secret-file"), "{error}");
    }
}
