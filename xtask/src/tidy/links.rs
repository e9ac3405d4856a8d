//! Links between documents.
//!
//! Owns: relative links in Markdown lead to files that exist. Does not own: the web.

use std::path::Path;

use super::Finding;

/// Checks each `](target)` outside code blocks.
pub(super) fn check(root: &Path, file: &Path, text: &str, findings: &mut Vec<Finding>) {
    let dir = root.join(file.parent().unwrap_or(Path::new("")));
    let mut in_code = false;
    for (at, line) in (1..).zip(text.lines()) {
        if line.trim_start().starts_with("```") {
            in_code = !in_code;
        }
        if in_code {
            continue;
        }
        for target in targets(line) {
            let path = target.split('#').next().unwrap_or_default();
            if !path.is_empty() && !dir.join(path).exists() {
                findings.push(Finding {
                    file: file.to_owned(),
                    line: at,
                    what: format!("{target} leads nowhere"),
                });
            }
        }
    }
}

/// The relative targets of the links in a line.
fn targets(line: &str) -> impl Iterator<Item = &str> {
    let after = line.split("](").skip(1);
    let targets = after.filter_map(|rest| rest.split([')', ' ']).next());
    targets.filter(|target| !target.contains("://") && !target.starts_with("mailto:"))
}
