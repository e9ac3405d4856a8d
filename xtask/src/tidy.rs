//! `cargo xtask tidy`: what reviewers tire of.
//!
//! Owns: checks on the text of the tree that neither the compiler nor clippy makes. Does not own:
//! formatting (`cargo fmt`), lints (`cargo clippy`).

mod links;
mod modules;
mod source;

#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};

use crate::sh::{self, Args, Result};

pub(crate) const HELP: &str = "
cargo xtask tidy [--fix]

Checks: lines of at most 120 characters (data of tests aside), files of at most 900 lines, a `//!` header in each
.rs file, no leftover markers, `unsafe` only inside its fence, metric names only in
the names module of their crate, no .rs file that nothing includes, no path of somebody's machine, no
trailing blanks, no dead link in the documents, a reason beside each dependency.

  --fix   first wrap over-long comments anew
";

/// One finding.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Finding {
    pub(crate) file: PathBuf,
    /// From 1; 0 when the finding is about the whole file.
    pub(crate) line: usize,
    pub(crate) what: String,
}

pub(crate) fn main(mut args: Args) -> Result<()> {
    let fix = args.flag("--fix");
    args.finish()?;
    let root = sh::root();
    let mut files = Vec::new();
    walk(&root, &mut files);
    files.sort();
    let mut findings = Vec::new();
    let mut checked = 0;
    for path in &files {
        let file = path.strip_prefix(&root).unwrap_or(path);
        let Ok(bytes) = std::fs::read(path) else {
            continue;
        };
        // Seeds, recorded heads and pictures are data: only text is checked.
        let (Ok(mut text), true) = (String::from_utf8(bytes), is_text(file)) else {
            continue;
        };
        checked += 1;
        if fix && file.extension().is_some_and(|ending| ending == "rs") {
            let wrapped = source::rewrap_comments(&text);
            if wrapped != text {
                println!("tidy: wrapped comments of {}", file.display());
                std::fs::write(path, &wrapped).map_err(|error| format!("{}: {error}", path.display()))?;
                text = wrapped;
            }
        }
        source::check_text(file, &text, &mut findings);
        match file.extension().and_then(|ending| ending.to_str()) {
            Some("rs") => source::check_rust(file, &text, &mut findings),
            Some("md") => links::check(&root, file, &text, &mut findings),
            _ if file == Path::new("Cargo.toml") => source::check_dependencies(file, &text, &mut findings),
            _ => {}
        }
    }
    modules::check(&root, &files, &mut findings);
    for Finding { file, line, what } in &findings {
        println!("{}:{line}: {what}", file.display());
    }
    match findings.len() {
        0 => {
            println!("tidy: {checked} files, nothing to say");
            Ok(())
        }
        count => Err(format!("{count} findings")),
    }
}

/// Every file below `dir`, but for build folders, what git keeps, and what fuzzing leaves.
pub(crate) fn walk(dir: &Path, files: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        let path = entry.path();
        let name = entry.file_name();
        let Ok(kind) = entry.file_type() else {
            continue;
        };
        if kind.is_dir() {
            if !["target", ".git", "corpus-work", "artifacts"].iter().any(|skipped| name == *skipped) {
                walk(&path, files);
            }
        } else if kind.is_file() && name != ".git" {
            files.push(path);
        }
    }
}

fn is_text(file: &Path) -> bool {
    const ENDINGS: &[&str] = &["rs", "md", "toml", "service", "sh", "json", "yml", "yaml", "conf"];
    let ending = file.extension().and_then(|ending| ending.to_str());
    ending.is_some_and(|ending| ENDINGS.contains(&ending)) || file.starts_with(".ci")
}
