//! From a configuration file to an image.
//!
//! Owns: reading the file, the wording of what is wrong with it. Does not own: the rules of the file
//! (`blitz_config`), or the image (see [`crate::image`]).
#![forbid(unsafe_code)]

use std::fs::File;
use std::io::Read as _;
use std::path::Path;

use blitz_config::file::TEXT_BYTES_MAX;
use blitz_config::{Config, Format, Overrides};

use crate::error::{Error, Kind, Result};
use crate::image::{Image, InForce};

/// Reads, parses and validates `path`. The file is read up to the size that `blitz_config` accepts.
///
/// # Errors
/// [`Kind::Usage`], naming the file, the key, the value and what is accepted.
pub fn load(path: &Path) -> Result<Config> {
    let refuse = |cause: String| Error::new(Kind::Usage, cause, "nothing was changed; correct the file");
    let format = Format::from_path(path).map_err(|error| refuse(error.to_string()))?;
    let name = path.display().to_string();
    let mut text = String::new();
    File::open(path)
        .and_then(|file| file.take(TEXT_BYTES_MAX as u64 + 1).read_to_string(&mut text))
        .map_err(|error| {
            Error::new(Kind::Usage, format!("{name}: {error}"), "name a file that can be read")
        })?;
    let overrides = Overrides { is_for_stage: true, ..Overrides::default() };
    blitz_config::load(&text, format, &name, &overrides).map_err(|error| refuse(error.to_string()))
}

/// Compiles what the stage is to hold; what is in force keeps its numbers.
///
/// # Errors
/// [`Kind::Full`] when the tables do not hold it.
pub fn compile(config: &Config, in_force: &InForce) -> Result<Image> {
    let cpus = aya::util::nr_cpus().map_err(|(path, error)| Error::io(path, &error))?;
    Image::from_config(config, u32::try_from(cpus).unwrap_or(u32::MAX), in_force)
        .map_err(|refusal| Error::new(Kind::Full, refusal.to_string(), "nothing was changed"))
}
