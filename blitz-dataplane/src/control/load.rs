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

use crate::sys::{memfd, wipe};
use crate::tls::Files;

/// What the start was told: a file or nothing, and the command line that takes precedence over it.
#[derive(Clone, Debug, Default)]
pub struct ConfigOrigin {
    /// `-c FILE`.
    pub path: Option<PathBuf>,
    /// `-b`, `-p`, `--admin`, `-k`.
    pub overrides: Overrides,
}

/// A configuration as text, with all that is needed to read it again elsewhere.
#[derive(Debug)]
pub struct ConfigText {
    head: ConfigHead,
    text: Option<String>,
    files: Files,
}

/// [`ConfigText`] without the text, as it travels to a worker; the text goes beside it as a sealed memfd,
/// once for all workers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConfigHead {
    /// Path of the file, for messages.
    name: String,
    format: TextFormat,
    /// Bytes of the text; behind it come the files that it names.
    text_bytes: u64,
    backends: Vec<String>,
    port: Option<u16>,
    admin: Option<String>,
    is_insecure: bool,
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
            text_bytes: text.as_ref().map_or(0, |text: &String| text.len() as u64),
            backends: self.overrides.backends.clone(),
            port: self.overrides.port,
            admin: self.overrides.admin.clone(),
            is_insecure: self.overrides.is_insecure,
        };
        Ok(ConfigText { head, text, files: Files::default() })
    }
}

impl ConfigText {
    /// Parses and validates.
    ///
    /// # Errors
    /// What `blitz_config` says: file, key, value, accepted range; one line per issue.
    pub fn parse(&self) -> Result<Config, String> {
        let ConfigHead { name, format, backends, port, admin, is_insecure, text_bytes: _ } = &self.head;
        let overrides = Overrides {
            backends: backends.clone(),
            port: *port,
            admin: admin.clone(),
            is_insecure: *is_insecure,
            is_for_stage: false,
        };
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

    /// Reads the files that `config`, which this text gave, names. Paths are relative to the directory of the
    /// configuration file. Blocks.
    ///
    /// # Errors
    /// A line for each file that cannot be read, with configuration file, key and path.
    pub fn read_files(&mut self, config: &Config) -> Result<(), String> {
        let directory = Path::new(&self.head.name).parent().unwrap_or(Path::new(""));
        self.files = Files::read(config, directory).map_err(|issues| self.named(&issues))?;
        Ok(())
    }

    /// The files that were read.
    pub fn files(&self) -> &Files {
        &self.files
    }

    /// Each line of `issues` with the name of the configuration file in front.
    pub fn named(&self, issues: &str) -> String {
        let name = if self.head.name.is_empty() { "command line" } else { &self.head.name };
        issues.lines().map(|line| format!("{name}: {line}")).collect::<Vec<_>>().join("\n")
    }

    /// The part that travels in a message.
    pub fn head(&self) -> &ConfigHead {
        &self.head
    }

    /// The part that travels as a descriptor: a memfd that nobody can change, with the text and the files.
    ///
    /// # Errors
    /// No descriptor or no memory left.
    pub fn to_fd(&self) -> io::Result<OwnedFd> {
        let mut bytes = self.text.clone().unwrap_or_default().into_bytes();
        self.files.encode(&mut bytes);
        let fd = memfd::create_read_only(c"blitz-config", &bytes);
        // Private keys are among the files.
        wipe::wipe(&mut bytes);
        fd
    }

    /// The other end of [`Self::head`] and [`Self::to_fd`].
    ///
    /// # Errors
    /// The descriptor cannot be read, or holds other than what was written into it.
    pub fn from_parts(head: ConfigHead, fd: OwnedFd) -> io::Result<Self> {
        let mut bytes = Vec::new();
        RewoundFile { file: File::from(fd), offset: 0 }.read_to_end(&mut bytes)?;
        let parts = usize::try_from(head.text_bytes).ok().and_then(|len| bytes.split_at_checked(len));
        let parts = parts
            .and_then(|(text, files)| Some((String::from_utf8(text.to_vec()).ok()?, Files::decode(files)?)));
        wipe::wipe(&mut bytes);
        let (text, files) = parts.ok_or(io::ErrorKind::InvalidData)?;
        Ok(Self { head, text: Some(text), files })
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
            backends: vec!["127.0.0.1:9001".to_owned(), "127.0.0.1:443".to_owned()],
            port: Some(0),
            is_insecure: true,
            ..Overrides::default()
        };
        let text = ConfigOrigin { path: None, overrides }.read().expect("read");
        let config = text.parse().expect("config");
        assert!(config.upstreams.iter().all(|it| it.link.tls.as_ref().is_some_and(|tls| !tls.verify)));
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
