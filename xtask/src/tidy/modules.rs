//! Files that nothing compiles.
//!
//! Owns: each `.rs` file is a crate root or is reached from one through `mod` lines. Does not own:
//! items that nothing uses, which the compiler reports.

use std::collections::HashSet;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use super::Finding;

/// Follows the `mod` lines from every root; what is left over is dead.
pub(super) fn check(root: &Path, files: &[PathBuf], findings: &mut Vec<Finding>) {
    let rust: Vec<&PathBuf> =
        files.iter().filter(|path| path.extension().is_some_and(|e| e == "rs")).collect();
    let mut reached = HashSet::new();
    let mut waiting: Vec<PathBuf> =
        rust.iter().filter(|path| is_root(path)).map(|path| path.to_path_buf()).collect();
    while let Some(path) = waiting.pop() {
        if let Ok(text) = std::fs::read_to_string(&path)
            && reached.insert(path.clone())
        {
            waiting.extend(children(&path, &text));
        }
    }
    for path in rust {
        if !reached.contains(path) {
            let file = path.strip_prefix(root).unwrap_or(path).to_owned();
            findings.push(Finding { file, line: 0, what: "no `mod` line leads here".to_owned() });
        }
    }
}

/// Whether cargo finds the file by itself or by its package's manifest.
fn is_root(path: &Path) -> bool {
    let parent = path.parent().unwrap_or(Path::new(""));
    let name = path.file_name().unwrap_or_default();
    let has_manifest = |dir: &Path| dir.join("Cargo.toml").is_file();
    let package = parent.parent().unwrap_or(Path::new(""));
    let in_named = |dir: &str| parent.file_name().is_some_and(|found| found == dir);
    (in_named("src") && has_manifest(package) && (name == "main.rs" || name == "lib.rs"))
        || (in_named("src") && is_named_in(&package.join("Cargo.toml"), name))
        || (in_named("bin") && package.parent().is_some_and(has_manifest))
        || (["tests", "benches", "examples", "fuzz_targets"].into_iter().any(in_named)
            && has_manifest(package))
        || (name == "main.rs"
            && ["tests", "benches", "examples"]
                .into_iter()
                .any(|dir| package.file_name().is_some_and(|f| f == dir))
            && package.parent().is_some_and(has_manifest))
        || (name == "build.rs" && has_manifest(parent))
}

/// Whether the manifest has a target with the path `src/NAME`.
fn is_named_in(manifest: &Path, name: &OsStr) -> bool {
    let line = format!("path = \"src/{}\"", name.to_string_lossy());
    std::fs::read_to_string(manifest).is_ok_and(|text| text.lines().any(|found| found.trim() == line))
}

/// The files that a file's `mod` lines name.
fn children(path: &Path, text: &str) -> Vec<PathBuf> {
    let parent = path.parent().unwrap_or(Path::new(""));
    let stem = path.file_stem().unwrap_or_default();
    let owns_its_folder = stem == "mod" || stem == "lib" || stem == "main" || is_root(path);
    let dir = if owns_its_folder { parent.to_owned() } else { parent.join(stem) };
    let mut found = Vec::new();
    let mut named_path = None;
    for line in text.lines().map(str::trim) {
        if let Some(rest) = line.strip_prefix("#[path = \"") {
            named_path = rest.split('"').next().map(|name| parent.join(name));
        } else if let Some(name) = module_name(line) {
            match named_path.take() {
                Some(path) => found.push(path),
                None => found.extend([dir.join(format!("{name}.rs")), dir.join(name).join("mod.rs")]),
            }
        }
    }
    found
}

/// `name` in `mod name;`, `pub mod name;`, `pub(crate) mod name;`.
fn module_name(line: &str) -> Option<&str> {
    let (before, rest) = line.split_once("mod ")?;
    let before = before.trim();
    let is_visibility =
        before.is_empty() || before == "pub" || (before.starts_with("pub(") && before.ends_with(')'));
    let name = rest.split(';').next().filter(|_| rest.contains(';'))?;
    (is_visibility && name.chars().all(|c| c.is_alphanumeric() || c == '_')).then_some(name)
}
