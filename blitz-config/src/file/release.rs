//! Keys and values that Blitz is designed to have and this release does not.
//!
//! Owns: the table of them, and the words of the refusal. A feature that arrives leaves the table in
//! the same change that adds it to [`crate::file`]. Does not own: the walk that asks (see `shape`).
#![forbid(unsafe_code)]

/// What the word at this place would be, when it is a key that a later release has.
///
/// `place` is the key path with `[]` for every index and `*` for every name chosen by the operator.
pub(super) fn later_key(place: &str) -> Option<&'static str> {
    LATER_KEYS.iter().find(|(key, _)| *key == place).map(|&(_, feature)| feature)
}

/// What the value at this place would choose, when it is one that a later release has.
pub(super) fn later_value(place: &str, value: &str) -> Option<&'static str> {
    LATER_VALUES.iter().find(|(key, word, _)| *key == place && *word == value).map(|&(_, _, feature)| feature)
}

const LATER_KEYS: &[(&str, &str)] =
    &[("upstreams.*.health.active", "active health checks"), ("routes[].filters", "filters on a route")];

const LATER_VALUES: &[(&str, &str, &str)] = &[
    ("listeners[].protocols[]", "h3", "HTTP/3"),
    ("upstreams.*.balance", "random", "random balancing"),
    ("upstreams.*.balance", "least_request", "balancing by requests in flight"),
    ("upstreams.*.balance", "maglev", "consistent hashing"),
    ("upstreams.*.balance", "ewma", "balancing by latency"),
];

#[cfg(test)]
mod tests {
    use super::{LATER_KEYS, LATER_VALUES};
    use crate::schema::json_schema;
    use serde_json::Value;

    /// The schema at a place of the table, if the file model has it.
    fn schema_at<'a>(mut schema: &'a Value, place: &str) -> Option<&'a Value> {
        for step in place.split('.') {
            let key = step.trim_end_matches("[]");
            schema = if key == "*" {
                schema.get("additionalProperties")?
            } else {
                schema.get("properties")?.get(key)?
            };
            if step.ends_with("[]") {
                schema = schema.get("items")?;
            }
        }
        Some(schema)
    }

    #[test]
    fn no_key_is_both_here_and_later() {
        let schema = json_schema();
        for (place, _) in LATER_KEYS {
            assert!(schema_at(&schema, place).is_none(), "{place} exists");
            if let Some((parent, _)) = place.rsplit_once('.') {
                assert!(schema_at(&schema, parent).is_some(), "{parent} does not exist");
            }
        }
    }

    #[test]
    fn no_value_is_both_here_and_later() {
        let schema = json_schema();
        for (place, value, _) in LATER_VALUES {
            let here = schema_at(&schema, place).unwrap_or_else(|| panic!("{place} does not exist"));
            assert!(!here.to_string().contains(&format!("\"const\":\"{value}\"")), "{place} has {value}");
        }
    }
}
