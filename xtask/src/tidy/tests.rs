//! The checks find what they are for, and nothing else.

use std::path::Path;

use super::{Finding, links, modules, source};

fn rust(file: &str, text: &str) -> Vec<String> {
    let mut findings = Vec::new();
    source::check_text(Path::new(file), text, &mut findings);
    source::check_rust(Path::new(file), text, &mut findings);
    findings.into_iter().map(|Finding { line, what, .. }| format!("{line}: {what}")).collect()
}

#[test]
fn a_clean_file_has_no_findings() {
    let text = "//! Owns nothing.\n#![forbid(unsafe_code)]\n// an unsafe word in a comment\nfn a() {}\n";
    assert_eq!(rust("blitz-config/src/lib.rs", text), Vec::<String>::new());
}

#[test]
fn each_rule_finds_its_fault() {
    let long = format!("//! h\n// {}\n", "x".repeat(118));
    assert_eq!(rust("a.rs", &long).len(), 1);
    assert_eq!(rust("a.rs", "fn a() {}\n").len(), 1, "header");
    assert_eq!(rust("a.rs", "//! h\nfn a() {} \n").len(), 1, "trailing blank");
    assert_eq!(rust("a.rs", "//! h\nfn a() {}").len(), 1, "last line");
    assert_eq!(rust("a.rs", concat!("//! h\nfn a() { to", "do!() }\n")).len(), 1, "marker");
    assert_eq!(rust("a.rs", concat!("//! h\n// see /ho", "me/ada/x\n")).len(), 1, "machine path");
    assert_eq!(rust("a.rs", &format!("//! h\n{}", "\n".repeat(900))).len(), 1, "file length");
}

#[test]
fn long_data_of_a_test_may_stand_on_one_line() {
    let data = format!("//! h\n#[cfg(test)]\nconst A: &str = \"{}\";\n", "x".repeat(200));
    assert_eq!(rust("a.rs", &data).len(), 0);
    assert_eq!(rust("a.rs", &data.replace("#[cfg(test)]\n", "")).len(), 1);
    assert_eq!(rust("a.rs", &data.replace('"', "'")).len(), 1);
}

#[test]
fn unsafe_code_stays_inside_its_fence() {
    let text = concat!("//! h\nfn a() { un", "safe { b() } }\n");
    assert_eq!(rust("blitz-dataplane/src/http1/mod.rs", text).len(), 1);
    assert_eq!(rust("blitz-dataplane/src/sys/mod.rs", text).len(), 0);
}

#[test]
fn metric_names_stay_in_their_file() {
    let text = "//! h\nconst A: &str = \"blitz_requests_total\";\n";
    assert_eq!(rust("blitz-dataplane/src/proxy.rs", text).len(), 1);
    assert_eq!(rust("blitz-dataplane/src/metrics/names.rs", text).len(), 0);
    assert_eq!(
        rust("blitz-dataplane/src/proxy.rs", "//! h\nconst A: &str = \"blitz_dataplane::x\";\n").len(),
        0
    );
}

#[test]
fn long_comments_are_rewrapped() {
    let words = "word ".repeat(25);
    let text = format!("    /// {words}end\n    /// and on.\nfn a() {{}}\n");
    let wrapped = source::rewrap_comments(&text);
    assert!(wrapped.lines().all(|line| line.chars().count() <= 120), "{wrapped}");
    assert!(wrapped.ends_with(" end and on.\nfn a() {}\n"), "{wrapped}");
    assert_eq!(wrapped.matches("word").count(), 25);
    assert_eq!(source::rewrap_comments(&wrapped), wrapped);
    let list = format!("// {words}end\n// - item\n");
    assert!(source::rewrap_comments(&list).ends_with(" end\n// - item\n"));
}

#[test]
fn a_dependency_has_a_reason() {
    let mut findings = Vec::new();
    let text =
        "[workspace.dependencies]\na = \"1\"\nb = \"1\" # Why.\nc = { path = \"c\" }\n[other]\nd = \"1\"\n";
    source::check_dependencies(Path::new("Cargo.toml"), text, &mut findings);
    assert_eq!(findings.len(), 1);
    assert_eq!(findings[0].line, 2);
}

#[test]
fn dead_files_and_dead_links_are_found() {
    let root = std::env::temp_dir().join(format!("blitz-tidy-{}", std::process::id()));
    std::fs::create_dir_all(root.join("a/src/used")).unwrap();
    let write = |name: &str, text: &str| std::fs::write(root.join(name), text).unwrap();
    write("a/Cargo.toml", "[[bin]]\nname = \"second\"\npath = \"src/second.rs\"\n");
    write("a/src/second.rs", "mod beside;\n");
    write("a/src/beside.rs", "");
    write("a/src/lib.rs", "mod used;\npub(crate) mod gone;\n");
    write("a/src/used.rs", "mod inner;\n");
    write("a/src/used/inner.rs", "");
    write("a/src/dead.rs", "");
    let mut files = Vec::new();
    super::walk(&root, &mut files);
    let mut findings = Vec::new();
    modules::check(&root, &files, &mut findings);
    assert_eq!(findings.len(), 1);
    assert_eq!(findings[0].file, Path::new("a/src/dead.rs"));

    findings.clear();
    let text =
        "[a](a/Cargo.toml) [b](https://example.com) [c](nowhere.md#x) [d](#here)\n```\n[e](code)\n```\n";
    links::check(&root, Path::new("README.md"), text, &mut findings);
    assert_eq!(findings.len(), 1);
    assert!(findings[0].what.starts_with("nowhere.md"));
    std::fs::remove_dir_all(&root).unwrap();
}
