//! The files that a configuration names, as bytes.
//!
//! Workers have no rights and may not even see the files: the supervisor reads them, and they travel with the text
//! of the configuration. What a worker uses is therefore always one consistent set.
//!
//! Owns: reading them within bounds, their form on the way. Does not own: their meaning (see [`super::material`]).
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::sync::Arc;

use blitz_config::Config;
use blitz_config::model::{Upstream, UpstreamTls};

use super::system_store;
use crate::sys::wipe;

/// Bytes of one file. Revocation lists of large authorities have some megabytes.
pub const FILE_BYTES_MAX: usize = 64 * 1024 * 1024;

/// Under what the authorities of the system are kept: no configuration names a file so.
pub(super) const SYSTEM_STORE: &str = "";

/// Bytes of all files together: they are held in memory while workers are started from them.
pub const FILES_BYTES_MAX: usize = 512 * 1024 * 1024;

/// Files by the path that the configuration gives, and the system's authorities where an upstream needs them. Cheap to
/// clone.
#[derive(Clone, Debug, Default)]
pub struct Files(Arc<BTreeMap<String, Content>>);

/// Bytes that are overwritten when they are given up: private keys are among them.
struct Content(Vec<u8>);

impl Drop for Content {
    fn drop(&mut self) {
        wipe::wipe(&mut self.0);
    }
}

impl std::fmt::Debug for Content {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} bytes", self.0.len())
    }
}

impl Files {
    /// Reads every file that `config` names or falls back on; relative paths start at `directory`. Blocks.
    ///
    /// # Errors
    /// A line for each file that cannot be read or is too large, with its key path; or all together are too large.
    pub fn read(config: &Config, directory: &Path) -> Result<Self, String> {
        let mut files = BTreeMap::new();
        let mut issues = Vec::new();
        let mut total = 0_usize;
        let uses_system_store =
            |upstream: &&Upstream| upstream.link.tls.as_ref().is_some_and(UpstreamTls::uses_system_store);
        if let Some(upstream) = config.upstreams.iter().find(uses_system_store) {
            match read_system_store() {
                Ok(content) => {
                    total = content.0.len();
                    files.insert(SYSTEM_STORE.to_owned(), content);
                }
                Err(why) => issues.push(format!("{}.tls.ca_path: {why}", upstream.key_path())),
            }
        }
        for (key, path) in config.files() {
            if files.contains_key(path) {
                continue;
            }
            match read(&directory.join(path)) {
                Ok(content) => {
                    total = total.saturating_add(content.0.len());
                    files.insert(path.to_owned(), content);
                }
                Err(why) => issues.push(format!("{key}: cannot read {path}: {why}")),
            }
            if total > FILES_BYTES_MAX {
                return Err(format!(
                    "{key}: the files read so far have more than {FILES_BYTES_MAX} bytes, the most that is kept; use \
                     fewer or smaller ones"
                ));
            }
        }
        if issues.is_empty() { Ok(Self(Arc::new(files))) } else { Err(issues.join("\n")) }
    }

    /// The bytes at a path.
    pub fn get(&self, path: &str) -> Option<&[u8]> {
        self.0.get(path).map(|content| content.0.as_slice())
    }

    /// Appends all of them to `out`: for each the lengths of path and content (64 bits each, little-endian), path,
    /// content.
    pub fn encode(&self, out: &mut Vec<u8>) {
        for (path, content) in self.0.iter() {
            out.extend_from_slice(&(path.len() as u64).to_le_bytes());
            out.extend_from_slice(&(content.0.len() as u64).to_le_bytes());
            out.extend_from_slice(path.as_bytes());
            out.extend_from_slice(&content.0);
        }
    }

    /// The other end of [`Self::encode`]; `None` when the bytes are not its output.
    pub fn decode(mut bytes: &[u8]) -> Option<Self> {
        let mut files = BTreeMap::new();
        while !bytes.is_empty() {
            let (path_len, rest) = bytes.split_first_chunk::<8>()?;
            let (content_len, rest) = rest.split_first_chunk::<8>()?;
            let (path, rest) = rest.split_at_checked(usize::try_from(u64::from_le_bytes(*path_len)).ok()?)?;
            let (content, rest) =
                rest.split_at_checked(usize::try_from(u64::from_le_bytes(*content_len)).ok()?)?;
            files.insert(std::str::from_utf8(path).ok()?.to_owned(), Content(content.to_vec()));
            bytes = rest;
        }
        Some(Self(Arc::new(files)))
    }

    /// Files for a test, without a disk.
    #[cfg(test)]
    pub(crate) fn of(files: &[(&str, &[u8])]) -> Self {
        let files = files.iter().map(|(path, bytes)| ((*path).to_owned(), Content(bytes.to_vec())));
        Self(Arc::new(files.collect()))
    }
}

fn read_system_store() -> Result<Content, String> {
    let path = system_store::path()?;
    read(&path).map_err(|why| format!("absent, and {} cannot be read: {why}", path.display()))
}

fn read(path: &Path) -> Result<Content, String> {
    // Opening a pipe would wait for its writer.
    if !std::fs::metadata(path).map_err(|error| error.to_string())?.is_file() {
        return Err("it is no regular file".to_owned());
    }
    let file = File::open(path).map_err(|error| error.to_string())?;
    let mut content = Content(Vec::new());
    file.take(FILE_BYTES_MAX as u64 + 1).read_to_end(&mut content.0).map_err(|error| error.to_string())?;
    if content.0.len() > FILE_BYTES_MAX {
        return Err(format!("it has more than {FILE_BYTES_MAX} bytes, the most that is read"));
    }
    Ok(content)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_encoded_is_decoded_and_nothing_else() {
        let files = Files::of(&[("a", b"one"), ("b/c", b"")]);
        let mut bytes = Vec::new();
        files.encode(&mut bytes);
        let copy = Files::decode(&bytes).expect("files");
        assert_eq!(copy.get("a"), Some(&b"one"[..]));
        assert_eq!(copy.get("b/c"), Some(&b""[..]));
        assert_eq!(copy.get("d"), None);
        for cut in 1..bytes.len() {
            if cut != 8 + 8 + 1 + 3 {
                assert!(Files::decode(&bytes[..cut]).is_none(), "cut at {cut}");
            }
        }
        assert!(Files::decode(&[0xff; 16]).is_none());
        assert!(Files::decode(&[]).expect("none").get("a").is_none());
    }
}
