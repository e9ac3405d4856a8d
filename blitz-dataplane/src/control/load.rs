//! Where a configuration comes from, and the one place where its text becomes a [`Config`].
//!
//! Owns: reading the file, the call into `blitz_config`, the form that travels to the workers. Does not own:
//! the model and its rules (see `blitz_config`).
#![forbid(unsafe_code)]

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use blitz_config::file::TEXT_BYTES_MAX;
use blitz_config::{Config, Format, Overrides};
use serde::{Deserialize, Serialize};

use crate::sys::memfd;

/// What the start was told: a file or nothing, and the command line that takes precedence over it.
#[derive(Clone, Debug, Default)]
pub struct ConfigOrigin {
    /// `-c FILE`.
    pub path: Option<PathBuf>,
    /// `-b`, `-p`, `--admin`.
    pub overrides: Overrides,
}

/// A configuration as text, with all that is needed to read it again elsewhere.
#[derive(Debug)]
pub struct ConfigText {
    head: ConfigHead,
    text: Option<String>,
}

/// [`ConfigText`] without the text, as it travels to a worker; the text goes beside it as a sealed memfd,
/// once for all workers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConfigHead {
    /// Path of the file, for messages.
    name: String,
    format: TextFormat,
    backends: Vec<String>,
    port: Option<u16>,
    admin: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum TextFormat {
    None,
    Json,
    Toml,
}

impl ConfigOrigin {
    /// Reads the file, if there is one. Blocks.
    ///
    /// # Errors
    /// A sentence that names the file: it cannot be read, is too large, is not UTF-8, or its ending names no syntax.
    pub fn read(&self) -> Result<ConfigText, String> {
        let (format, text) = match &self.path {
            None => (TextFormat::None, None),
            Some(path) => {
                let format = match Format::from_path(path).map_err(|error| error.to_string())? {
                    Format::Json => TextFormat::Json,
                    Format::Toml => TextFormat::Toml,
                };
                (format, Some(read_file(path)?))
            }
        };
        let head = ConfigHead {
            name: self.path.as_ref().map_or_else(String::new, |path| path.display().to_string()),
            format,
            backends: self.overrides.backends.clone(),
            port: self.overrides.port,
            admin: self.overrides.admin.clone(),
        };
        Ok(ConfigText { head, text })
    }
}

impl ConfigText {
    /// Parses and validates.
    ///
    /// # Errors
    /// What `blitz_config` says: file, key, value, accepted range; one line per issue.
    pub fn parse(&self) -> Result<Config, String> {
        let ConfigHead { name, format, backends, port, admin } = &self.head;
        let overrides =
            Overrides { backends: backends.clone(), port: *port, admin: admin.clone(), is_for_stage: false };
        let format = match format {
            TextFormat::None => None,
            TextFormat::Json => Some(Format::Json),
            TextFormat::Toml => Some(Format::Toml),
        };
        let config = match (format, &self.text) {
            (Some(format), Some(text)) => blitz_config::load(text, format, name, &overrides),
            _ => blitz_config::without_file(&overrides),
        };
        config.map_err(|error| error.to_string())
    }

    /// The part that travels in a message.
    pub fn head(&self) -> &ConfigHead {
        &self.head
    }

    /// The part that travels as a descriptor: a memfd that nobody can change.
    ///
    /// # Errors
    /// No descriptor or no memory left.
    pub fn to_fd(&self) -> io::Result<OwnedFd> {
        memfd::create_read_only(c"blitz-config", self.text.as_deref().unwrap_or_default().as_bytes())
    }

    /// The other end of [`Self::head`] and [`Self::to_fd`].
    ///
    /// # Errors
    /// The descriptor cannot be read or holds no UTF-8.
    pub fn from_parts(head: ConfigHead, fd: OwnedFd) -> io::Result<Self> {
        let text = io::read_to_string(RewoundFile { file: File::from(fd), offset: 0 })?;
        Ok(Self { head, text: Some(text) })
    }
}

/// Reads at offsets of its own: the descriptor's position is shared by all processes that hold it.
struct RewoundFile {
    file: File,
    offset: u64,
}

impl Read for RewoundFile {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        let count = std::os::unix::fs::FileExt::read_at(&self.file, bytes, self.offset)?;
        self.offset += count as u64;
        Ok(count)
    }
}

fn read_file(path: &Path) -> Result<String, String> {
    let shown = path.display();
    let cannot = |error: io::Error| match error.kind() {
        io::ErrorKind::InvalidData => {
            format!("{shown}: the file is not UTF-8; save it as UTF-8 text")
        }
        _ => format!("{shown}: cannot read the configuration: {error}"),
    };
    let file = File::open(path).map_err(cannot)?;
    let mut text = String::new();
    let limit = TEXT_BYTES_MAX as u64 + 1;
    file.take(limit).read_to_string(&mut text).map_err(cannot)?;
    if text.len() > TEXT_BYTES_MAX {
        return Err(format!(
            "{shown}: the file is larger than {TEXT_BYTES_MAX} bytes, the most that is read"
        ));
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_configuration_reads_the_same_on_both_ends() {
        let directory = tempfile::tempdir().expect("directory");
        let path = directory.path().join("edge.json");
        std::fs::write(&path, r#"{"backends": [{"host": "127.0.0.1", "port": 9001}]}"#).expect("write");
        let overrides = Overrides { port: Some(8080), ..Overrides::default() };
        let origin = ConfigOrigin { path: Some(path), overrides };
        let text = origin.read().expect("read");
        let config = text.parse().expect("config");
        let fd = text.to_fd().expect("memfd");
        for _ in 0..2 {
            let copy =
                ConfigText::from_parts(text.head().clone(), fd.try_clone().expect("dup")).expect("text");
            assert_eq!(copy.parse().expect("config"), config);
        }
    }

    #[test]
    fn a_command_line_alone_is_a_configuration() {
        let overrides = Overrides {
            backends: vec!["127.0.0.1:9001".to_owned()],
            port: Some(0),
            admin: None,
            is_for_stage: false,
        };
        let text = ConfigOrigin { path: None, overrides }.read().expect("read");
        let config = text.parse().expect("config");
        let copy = ConfigText::from_parts(text.head().clone(), text.to_fd().expect("memfd")).expect("text");
        assert_eq!(copy.parse().expect("config"), config);
    }

    #[test]
    fn a_file_that_cannot_be_read_is_named() {
        let origin =
            |path: &Path| ConfigOrigin { path: Some(path.to_owned()), overrides: Overrides::default() };
        let error = origin(Path::new("/nowhere/edge.toml")).read().expect_err("missing");
        assert!(error.starts_with("/nowhere/edge.toml: cannot read"), "{error}");
        let directory = tempfile::tempdir().expect("directory");
        let path = directory.path().join("edge.toml");
        std::fs::write(&path, [0xff, 0xfe]).expect("write");
        let error = origin(&path).read().expect_err("not UTF-8");
        assert!(error.contains("not UTF-8"), "{error}");
    }
}
