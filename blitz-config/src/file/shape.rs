//! Checks a parsed text against the schema of the file, key by key.
//!
//! Owns: unknown, missing and later-release keys, types, ranges, accepted values and counts; it
//! reports all of them where serde would stop at the first. Does not own: what strings mean, or how
//! keys refer to each other (see [`mod@crate::validate`]).
#![forbid(unsafe_code)]

use super::release;
use crate::error::{Issues, quoted};
use crate::schema::SCHEMA;
use crate::suggest;
use serde_json::{Map, Value};
use std::fmt::Write;

/// Reports everything in `file` that the schema does not accept.
pub(super) fn check(file: &Value, issues: &mut Issues) {
    walk(file, &SCHEMA, &mut Vec::new(), issues);
}

/// One step from the root of the file to a value.
#[derive(Clone, Copy)]
enum Step<'a> {
    /// A key of the model.
    Key(&'a str),
    /// A name that the operator chose.
    Name(&'a str),
    Index(usize),
}

fn walk<'a>(value: &'a Value, schema: &Value, path: &mut Vec<Step<'a>>, issues: &mut Issues) {
    let accepted = accepted_values(schema);
    if !accepted.is_empty() {
        return check_word(value, &accepted, path, issues);
    }
    if let Some(forms) = schema.get("anyOf").and_then(Value::as_array) {
        return walk_forms(value, forms, path, issues);
    }
    match (schema.get("type").and_then(Value::as_str), value) {
        (Some("object"), Value::Object(map)) => walk_table(map, schema, path, issues),
        (Some("array"), Value::Array(items)) => {
            check_count(items.len(), (schema.get("minItems"), schema.get("maxItems")), path, issues);
            if let Some(schema) = schema.get("items") {
                for (index, item) in items.iter().enumerate() {
                    path.push(Step::Index(index));
                    walk(item, schema, path, issues);
                    path.pop();
                }
            }
        }
        (Some("integer"), Value::Number(number)) => {
            let (least, most) = range(schema);
            if !number.as_u64().is_some_and(|number| (least..=most).contains(&number)) {
                let wrong = if number.is_f64() { "is not a whole number" } else { "is out of range" };
                issues.add(render(path), format!("{number} {wrong}; accepted: {least} to {most}"));
            }
        }
        (Some("string"), Value::String(_)) | (Some("boolean"), Value::Bool(_)) => {}
        (Some(expected), _) => {
            let accepted = match expected {
                "integer" => {
                    let (least, most) = range(schema);
                    format!("{}, {least} to {most}", kind_text(expected))
                }
                _ => kind_text(expected).to_owned(),
            };
            issues.add(render(path), format!("{} is not accepted; accepted: {accepted}", shown(value)));
        }
        (None, _) => {}
    }
}

/// A value that has several forms of different types, such as a string or a table.
fn walk_forms<'a>(value: &'a Value, forms: &[Value], path: &mut Vec<Step<'a>>, issues: &mut Issues) {
    let type_of = |form: &Value| form.get("type").and_then(Value::as_str).map(str::to_owned);
    let own = match value {
        Value::Object(_) => "object",
        Value::Array(_) => "array",
        Value::String(_) => "string",
        Value::Bool(_) => "boolean",
        Value::Number(_) => "integer",
        Value::Null => "null",
    };
    if let Some(form) = forms.iter().find(|form| type_of(form).as_deref() == Some(own)) {
        return walk(value, form, path, issues);
    }
    let words = forms.iter().filter_map(type_of).map(|kind| kind_text(&kind).to_owned());
    let accepted = words.collect::<Vec<_>>().join(" or ");
    issues.add(render(path), format!("{} is not accepted; accepted: {accepted}", shown(value)));
}

/// A type of the schema as a message names it.
fn kind_text(kind: &str) -> &'static str {
    match kind {
        "object" => "a table",
        "array" => "a list",
        "string" => "a string",
        "boolean" => "true or false",
        _ => "a whole number",
    }
}

fn walk_table<'a>(
    map: &'a Map<String, Value>,
    schema: &Value,
    path: &mut Vec<Step<'a>>,
    issues: &mut Issues,
) {
    let Some(known) = schema.get("properties").and_then(Value::as_object) else {
        // A table of names that the operator chooses.
        check_count(map.len(), (None, schema.get("maxProperties")), path, issues);
        if let Some(schema) = schema.get("additionalProperties") {
            for (name, value) in map {
                path.push(Step::Name(name));
                walk(value, schema, path, issues);
                path.pop();
            }
        }
        return;
    };
    for (key, value) in map {
        path.push(Step::Key(key));
        if let Some(schema) = known.get(key) {
            walk(value, schema, path, issues);
        } else if let Some(feature) = release::later_key(&place(path)) {
            issues.add(render(path), format!("known, but not in this release: {feature}; remove the key"));
        } else {
            // A map of serde_json is in order or not, as other crates of the build want it.
            let mut accepted: Vec<&str> = known.keys().map(String::as_str).collect();
            accepted.sort_unstable();
            let message = match suggest::nearest(key, accepted.iter().copied()) {
                Some(near) => format!("unknown key; did you mean {}?", quoted(near)),
                None => format!("unknown key; accepted: {}", accepted.join(", ")),
            };
            issues.add(render(path), message);
        }
        path.pop();
    }
    for key in
        schema.get("required").and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str)
    {
        if !map.contains_key(key) {
            let missing = render(path);
            let dot = if missing.is_empty() { "" } else { "." };
            issues.add(format!("{missing}{dot}{key}"), "missing; this key is required");
        }
    }
}

/// Checks a value that must be one of a few words.
fn check_word(value: &Value, accepted: &[&str], path: &[Step<'_>], issues: &mut Issues) {
    let all = list(accepted.iter().map(|word| quoted(word)));
    let Value::String(word) = value else {
        issues.add(render(path), format!("{} is not accepted; accepted: {all}", shown(value)));
        return;
    };
    if accepted.contains(&word.as_str()) {
        return;
    }
    let message = if let Some(feature) = release::later_value(&place(path), word) {
        format!("{} is known, but not in this release: {feature}; accepted: {all}", quoted(word))
    } else if let Some(near) = suggest::nearest(word, accepted.iter().copied()) {
        format!("{} is not accepted; did you mean {}? accepted: {all}", quoted(word), quoted(near))
    } else {
        format!("{} is not accepted; accepted: {all}", quoted(word))
    };
    issues.add(render(path), message);
}

fn check_count(
    count: usize,
    (least, most): (Option<&Value>, Option<&Value>),
    path: &[Step<'_>],
    issues: &mut Issues,
) {
    let least = least.and_then(Value::as_u64).unwrap_or(0);
    let most = most.and_then(Value::as_u64).unwrap_or(u64::MAX);
    if !(least..=most).contains(&(count as u64)) {
        issues.add(render(path), format!("{count} entries; accepted: {least} to {most}"));
    }
}

/// The words that an enumeration of the schema accepts; empty when the schema is none.
fn accepted_values(schema: &Value) -> Vec<&str> {
    let variants = schema.get("oneOf").and_then(Value::as_array).into_iter().flatten();
    let constants = variants.filter_map(|variant| variant.get("const"));
    let words = schema.get("enum").and_then(Value::as_array).into_iter().flatten();
    constants.chain(words).filter_map(Value::as_str).collect()
}

fn range(schema: &Value) -> (u64, u64) {
    let bound = |key: &str| schema.get(key).and_then(Value::as_u64);
    (bound("minimum").unwrap_or(0), bound("maximum").unwrap_or(u64::MAX))
}

fn list(words: impl Iterator<Item = String>) -> String {
    words.collect::<Vec<_>>().join(", ")
}

/// A value as a message names it.
fn shown(value: &Value) -> String {
    match value {
        // What `syntax` makes of all four.
        Value::Null => "a null, date, inf or nan".to_owned(),
        Value::Bool(bool) => bool.to_string(),
        Value::Number(number) => number.to_string(),
        Value::String(text) => quoted(text),
        Value::Array(_) => "a list".to_owned(),
        Value::Object(_) => "a table".to_owned(),
    }
}

/// The path as an operator writes it: `upstreams.api.endpoints[1].address`.
fn render(path: &[Step<'_>]) -> String {
    let mut out = String::new();
    for step in path {
        match *step {
            Step::Key(key) | Step::Name(key) => {
                if !out.is_empty() {
                    out.push('.');
                }
                out.push_str(&key_text(key));
            }
            Step::Index(index) => {
                // Writing to a string does not fail.
                let _ = write!(out, "[{index}]");
            }
        }
    }
    out
}

/// A key as it stands in a path: bare where TOML allows it, else quoted.
pub(crate) fn key_text(key: &str) -> String {
    let is_bare =
        (1..=64).contains(&key.len()) && key.bytes().all(|b| b.is_ascii_alphanumeric() || b"_-".contains(&b));
    if is_bare { key.to_owned() } else { quoted(key) }
}

/// The path as the tables of `release` name it: `upstreams.*.endpoints[].address`.
fn place(path: &[Step<'_>]) -> String {
    let mut out = String::new();
    for step in path {
        if !out.is_empty() && !matches!(step, Step::Index(_)) {
            out.push('.');
        }
        out.push_str(match *step {
            Step::Key(key) => key,
            Step::Name(_) => "*",
            Step::Index(_) => "[]",
        });
    }
    out
}
