//! Entry points for fuzzing; no part of the interface.
#![forbid(unsafe_code)]

use crate::file::{Format, parse};
use crate::plan::Plan;
use crate::validate::{Overrides, validate};

/// Runs arbitrary bytes through everything that a configuration file goes through. The first byte's
/// lowest bit chooses the syntax.
///
/// # Panics
/// When an invariant breaks: an error without an issue or of more than one line an issue, a
/// configuration that differs from itself.
pub fn fuzz_parse(data: &[u8]) {
    let Some((&first, rest)) = data.split_first() else {
        return;
    };
    let format = if first & 1 == 0 { Format::Json } else { Format::Toml };
    let text = String::from_utf8_lossy(rest);
    let overrides = Overrides { port: (first & 2 != 0).then_some(8080), ..Overrides::default() };
    match parse(&text, format, "fuzz").and_then(|file| validate(&file, "fuzz", &overrides)) {
        Ok(config) => {
            let plan = Plan::between(&config, &config);
            assert!(plan.is_empty(), "a configuration differs from itself");
            assert_eq!(plan.apply(&config).as_ref(), Ok(&config), "an empty plan changes something");
        }
        Err(error) => {
            assert!(!error.issues().is_empty(), "an error without an issue");
            let lines = error.issues().len() + usize::from(error.omitted() > 0);
            assert_eq!(error.to_string().lines().count(), lines, "an issue of more than one line");
        }
    }
}
