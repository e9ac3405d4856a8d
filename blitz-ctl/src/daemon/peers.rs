//! Who may use the control socket.
//!
//! Owns: the rule, and turning the configured user's name into a number. Does not own: how the kernel tells
//! us who a peer is (`blitz_ctl_protocol::sys`).
#![forbid(unsafe_code)]

use std::path::{Path, PathBuf};

use blitz_ctl_protocol::Credentials;

/// Bytes of a user database that are read. A larger one is cut there.
const PASSWD_BYTES_MAX: u64 = 4 * 1024 * 1024;

/// Root, and at most one other user.
#[derive(Clone, Debug)]
pub struct Peers {
    user: Option<String>,
    passwd: PathBuf,
    dynamic: PathBuf,
}

impl Peers {
    /// Root and `user`: a name or a number. A name is looked up for each connection, since a service manager
    /// may make and remove the user with the service that runs as it.
    pub fn new(user: Option<String>) -> Self {
        Self {
            user,
            passwd: PathBuf::from("/etc/passwd"),
            // systemd keeps the users of `DynamicUser=` here; no file names them.
            dynamic: PathBuf::from("/run/systemd/dynamic-uid"),
        }
    }

    /// The sentence for a peer that may not use the socket; `Ok` for one that may.
    ///
    /// # Errors
    /// The sentence.
    pub fn admit(&self, peer: Credentials) -> Result<(), String> {
        if peer.uid == 0 {
            return Ok(());
        }
        let Some(user) = &self.user else {
            return Err(format!(
                "user {} may not use this control socket: only root may; start the daemon with --user NAME",
                peer.uid
            ));
        };
        match self.number(user) {
            Some(number) if number == peer.uid => Ok(()),
            Some(number) => Err(format!(
                "user {} may not use this control socket: only root and {user} ({number}) may",
                peer.uid
            )),
            None => Err(format!(
                "user {} may not use this control socket: only root and {user} may, and there is no user {user}",
                peer.uid
            )),
        }
    }

    fn number(&self, user: &str) -> Option<u32> {
        // -1 is no user: the kernel's answer about a peer that it knows nothing of.
        let valid = |number: u32| (number != u32::MAX).then_some(number);
        if let Ok(number) = user.parse() {
            return valid(number);
        }
        let found = in_passwd(&self.passwd, user).or_else(|| {
            if user.contains('/') {
                return None;
            }
            let link = std::fs::read_link(self.dynamic.join(format!("direct:{user}"))).ok()?;
            link.to_str()?.parse().ok()
        });
        found.and_then(valid)
    }
}

/// The number of `user` in a file in the form of passwd(5).
fn in_passwd(path: &Path, user: &str) -> Option<u32> {
    use std::io::Read as _;
    let mut text = String::new();
    std::fs::File::open(path).ok()?.take(PASSWD_BYTES_MAX).read_to_string(&mut text).ok()?;
    text.lines().find_map(|line| {
        let mut fields = line.split(':');
        if fields.next() != Some(user) {
            return None;
        }
        fields.nth(1)?.parse().ok()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn root_and_the_named_user_are_let_in() {
        let directory = tempfile::tempdir().expect("directory");
        let passwd = directory.path().join("passwd");
        std::fs::write(&passwd, "root:x:0:0::/:/bin/sh\nblitz:x:123:45::/:/bin/false\nbroken\n")
            .expect("write");
        std::os::unix::fs::symlink("61234", directory.path().join("direct:edge")).expect("link");
        let peers = |user: Option<&str>| Peers {
            user: user.map(str::to_owned),
            passwd: passwd.clone(),
            dynamic: directory.path().to_owned(),
        };
        let peer = |uid| Credentials { pid: 1, uid, gid: uid };
        assert!(peers(None).admit(peer(0)).is_ok());
        assert!(peers(None).admit(peer(123)).expect_err("a stranger").contains("--user"));
        assert!(peers(Some("blitz")).admit(peer(0)).is_ok());
        assert!(peers(Some("blitz")).admit(peer(123)).is_ok());
        assert!(peers(Some("blitz")).admit(peer(124)).expect_err("a stranger").contains("blitz (123)"));
        assert!(peers(Some("edge")).admit(peer(61_234)).is_ok());
        assert!(peers(Some("77")).admit(peer(77)).is_ok());
        assert!(peers(Some("nobody-here")).admit(peer(5)).expect_err("unknown").contains("there is no user"));
        assert!(peers(Some("4294967295")).admit(peer(u32::MAX)).is_err(), "-1 is nobody");
        assert!(peers(Some("../passwd")).admit(peer(5)).is_err());
        assert!(peers(Some("broken")).admit(peer(5)).is_err());
    }
}
