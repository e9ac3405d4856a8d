//! Changes to the allow list of a running stage.
//!
//! Owns: adding, removing and listing prefixes at run time. Does not own: the list of a configuration,
//! which replaces this one when it is put in force (see [`crate::apply`]).
//!
//! The longest prefix that holds a source decides about it, so a prefix takes over the flags of those
//! around it when either is added.
#![forbid(unsafe_code)]

use std::io;

use aya::maps::lpm_trie::Key;
use blitz_ebpf_common::layout::{ALLOW_MANAGEMENT, ALLOW_SERVICE, SETTING_ALLOW};
use serde::Serialize;

use crate::apply::{Journal, allowed, trie_additions};
use crate::error::Result;
use crate::image::Image;
use crate::lock::Lock;
use crate::maps::store_error;
use crate::prefixes::Prefix;
use crate::stage::Stage;

/// One allowed prefix.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Allowed {
    /// The sources.
    pub prefix: String,
    /// They pass the block, deny and source-limit steps of services.
    pub service: bool,
    /// No host-wide deny entry touches them.
    pub management: bool,
}

impl Stage {
    /// Gives `prefix` a flag ([`ALLOW_SERVICE`] or [`ALLOW_MANAGEMENT`]).
    ///
    /// # Errors
    /// [`crate::Kind::Full`] when the list has no room; it is then as before.
    pub fn allow(&self, _lock: &Lock, prefix: Prefix, flag: u32) -> Result<()> {
        let mut image = self.allow_image()?;
        image.allow(prefix, flag);
        let (v4, v6) = allowed(&image);
        let maps = self.maps();
        let mut journal = Journal::default();
        let result = trie_additions(&maps.allow4, &v4, &mut journal)
            .and_then(|_| trie_additions(&maps.allow6, &v6, &mut journal));
        if let Err(error) = result {
            journal.undo();
            let remedy = "remove prefixes (blitz-ctl allow del), or join them";
            return Err(store_error("the allow list", maps.allow4.entries_max(), remedy, &error)
                .about(self.interface()));
        }
        self.change_flags(SETTING_ALLOW, 0)
    }

    /// Takes `prefix` off the list; what flags it had. Longer prefixes inside it keep theirs.
    ///
    /// # Errors
    /// What bpf(2) reports.
    pub fn disallow(&self, _lock: &Lock, prefix: Prefix) -> Result<Option<u32>> {
        let image = self.allow_image()?;
        let Some(flags) = image.allow.get(&prefix) else { return Ok(None) };
        if image.allow.len() == 1 {
            self.change_flags(0, SETTING_ALLOW)?;
        }
        let removed = match prefix {
            Prefix::V4(p) => self.maps().allow4.remove(&Key::new(p.length.into(), p.address.to_be())),
            Prefix::V6(p) => self.maps().allow6.remove(&Key::new(p.length.into(), p.address.map(u32::to_be))),
        };
        removed.map_err(|error| self.io("write the allow list", &error))?;
        Ok(Some(*flags))
    }

    /// The allow list.
    ///
    /// # Errors
    /// What bpf(2) reports.
    pub fn allow_list(&self) -> Result<Vec<Allowed>> {
        let found = self.allow_image()?.allow.into_iter().map(|(prefix, flags)| Allowed {
            prefix: prefix.to_string(),
            service: flags & ALLOW_SERVICE != 0,
            management: flags & ALLOW_MANAGEMENT != 0,
        });
        Ok(found.collect())
    }

    /// The list in force as an image has it.
    fn allow_image(&self) -> Result<Image> {
        let read = |error: io::Error| self.io("read the allow list", &error);
        let mut image = Image::default();
        for (key, flags) in self.maps().allow4.entries().map_err(read)? {
            let address = u32::from_be(key.data());
            image
                .allow
                .insert(Prefix::new(std::net::Ipv4Addr::from(address).into(), key.prefix_len() as u8), flags);
        }
        for (key, flags) in self.maps().allow6.entries().map_err(read)? {
            let [a, b, c, d] = key.data().map(|word| u128::from(u32::from_be(word)));
            let address = a << 96 | b << 64 | c << 32 | d;
            image
                .allow
                .insert(Prefix::new(std::net::Ipv6Addr::from(address).into(), key.prefix_len() as u8), flags);
        }
        Ok(image)
    }
}
