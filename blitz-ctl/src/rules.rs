//! Rule numbers of a running stage.
//!
//! Owns: finding a rule by its name, and numbering a new one. Does not own: the numbers of an image
//! (see [`crate::image`]), or what rules counted (see [`crate::counters`]).
#![forbid(unsafe_code)]

use crate::counters;
use crate::error::{Error, Kind, Result};
use crate::lock::Lock;
use crate::stage::Stage;

impl Stage {
    /// The number of the rule called `name`.
    ///
    /// # Errors
    /// What bpf(2) reports.
    pub fn rule(&self, name: &str) -> Result<Option<u32>> {
        let rules = counters::rule_names(self.maps()).map_err(|error| self.io("read RULE_NAMES", &error))?;
        Ok(rules.into_iter().find(|(_, other)| other == name).map(|(number, _)| number))
    }

    /// The number of the rule called `name`, which gets one when it has none.
    ///
    /// # Errors
    /// [`Kind::Full`] when every number is taken.
    pub fn rule_or_new(&self, _lock: &Lock, name: &str) -> Result<u32> {
        let table = &self.maps().rule_names;
        let rules = table.entries().map_err(|error| self.io("read RULE_NAMES", &error))?;
        let mut free = None;
        for (number, other) in &rules {
            match counters::rule_text(other) {
                Some(other) if other == name => return Ok(*number),
                None if *number != 0 && free.is_none() => free = Some(*number),
                _ => {}
            }
        }
        let number = free.ok_or_else(|| {
            Error::new(
                Kind::Full,
                format!("{}: all {} rules have names", self.interface(), table.entries_max() - 1),
                "detach and attach, which forgets the names that are no longer used",
            )
        })?;
        table
            .put(&number, &counters::rule_name(name))
            .map_err(|error| self.io("write RULE_NAMES", &error))?;
        Ok(number)
    }

    /// The name of a rule, or its number when it has none.
    pub(crate) fn rule_label(&self, number: u32) -> String {
        let name = self.maps().rule_names.get(&number).ok().flatten();
        name.and_then(|name| counters::rule_text(&name)).unwrap_or_else(|| format!("rule {number}"))
    }
}
