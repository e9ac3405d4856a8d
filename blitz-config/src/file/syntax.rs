//! Text to [`FileConfig`]: JSON or TOML.
//!
//! Owns: the two syntaxes, where in the text an error lies, and the refusal of repeated keys. Does
//! not own: which keys there are (see `shape` and the parent module).
#![forbid(unsafe_code)]

use super::{FileConfig, shape};
use crate::error::{ConfigError, Issue, Issues, Position, one_line, quoted};
use serde::de::{Deserialize, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};
use std::fmt;
use std::path::Path;

/// Bytes of a configuration text. 100,000 long routes need about a quarter of it.
pub const TEXT_BYTES_MAX: usize = 64 * 1024 * 1024;

/// The syntax of a configuration text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// RFC 8259.
    Json,
    /// TOML 1.0 and what the parser takes of 1.1.
    Toml,
}

impl Format {
    /// The syntax that a file's ending names, in any case.
    ///
    /// # Errors
    /// The path ends in neither `.json` nor `.toml`.
    pub fn from_path(path: &Path) -> Result<Self, ConfigError> {
        match path.extension().and_then(|ending| ending.to_str()).map(str::to_ascii_lowercase).as_deref() {
            Some("json") => Ok(Self::Json),
            Some("toml") => Ok(Self::Toml),
            ending => Err(ConfigError::one(Issue {
                source: one_line(&path.to_string_lossy()),
                position: None,
                path: String::new(),
                message: match ending {
                    Some(ending) => {
                        format!("the file ending {} is not accepted; accepted: .json, .toml", quoted(ending))
                    }
                    None => "the file has no ending to tell its syntax; accepted: .json, .toml".to_owned(),
                },
            })),
        }
    }
}

/// Reads a configuration text. `source_name` is what messages call it, commonly the file's path.
///
/// What comes back has only known keys, with values of the right type and in range. Whether they
/// make sense together is for [`crate::validate::validate`].
///
/// # Errors
/// A syntax error with line and column, or all unknown keys, missing keys and unacceptable values
/// up to [`crate::error::ISSUES_MAX`].
pub fn parse(text: &str, format: Format, source_name: &str) -> Result<FileConfig, ConfigError> {
    let failed = |position: Option<Position>, path: String, message: &str| {
        ConfigError::one(Issue { source: one_line(source_name), position, path, message: one_line(message) })
    };
    if text.len() > TEXT_BYTES_MAX {
        let message = format!("{} bytes of text; accepted: at most {TEXT_BYTES_MAX}", text.len());
        return Err(failed(None, String::new(), &message));
    }
    // Some editors put a byte order mark in front; it means nothing in UTF-8.
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let value = match format {
        Format::Json => {
            serde_json::from_str::<Unrepeated>(text).map(|Unrepeated(value)| value).map_err(|error| {
                let (line, column) = (error.line(), error.column());
                let message = error.to_string();
                let message =
                    message.strip_suffix(&format!(" at line {line} column {column}")).unwrap_or(&message);
                // At the very start the parser counts from 0.
                let column = column.max(1);
                failed(Some(Position { line, column }), String::new(), message)
            })?
        }
        Format::Toml => {
            let table = toml::from_str::<toml::Table>(text).map_err(|error| {
                let position = error.span().map(|span| position_at(text, span.start));
                failed(position, String::new(), error.message())
            })?;
            from_toml(toml::Value::Table(table))
        }
    };
    let mut issues = Issues::new(source_name);
    shape::check(&value, &mut issues);
    issues.into_result(())?;
    // The schema comes from the same structs, so what it accepts they accept; a difference would be
    // a message of lesser quality here, never a wrong value.
    serde_path_to_error::deserialize(value)
        .map_err(|error| failed(None, one_line(&error.path().to_string()), &error.inner().to_string()))
}

/// Line and column, from 1 and in characters, of a byte offset.
fn position_at(text: &str, offset: usize) -> Position {
    let before = text.get(..offset).unwrap_or(text);
    let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
    Position {
        line: before.matches('\n').count() + 1,
        column: before.get(line_start..).map_or(0, |line| line.chars().count()) + 1,
    }
}

/// The tree of a TOML text. A date and a float that is not finite become null, which no key takes:
/// they are refused by type, with their path.
fn from_toml(value: toml::Value) -> Value {
    match value {
        toml::Value::String(text) => Value::String(text),
        toml::Value::Integer(number) => Value::Number(number.into()),
        toml::Value::Float(number) => Number::from_f64(number).map_or(Value::Null, Value::Number),
        toml::Value::Boolean(bool) => Value::Bool(bool),
        toml::Value::Datetime(_) => Value::Null,
        toml::Value::Array(items) => Value::Array(items.into_iter().map(from_toml).collect()),
        toml::Value::Table(table) => {
            Value::Object(table.into_iter().map(|(key, value)| (key, from_toml(value))).collect())
        }
    }
}

/// A JSON value in which no table names a key twice. Parsers commonly let the last one win, so that
/// two readers of one file may see two configurations (RFC 8259 section 4).
struct Unrepeated(Value);

impl<'de> Deserialize<'de> for Unrepeated {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(UnrepeatedVisitor).map(Self)
    }
}

struct UnrepeatedVisitor;

impl<'de> Visitor<'de> for UnrepeatedVisitor {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, bool: bool) -> Result<Value, E> {
        Ok(Value::Bool(bool))
    }

    fn visit_u64<E>(self, number: u64) -> Result<Value, E> {
        Ok(Value::Number(number.into()))
    }

    fn visit_i64<E>(self, number: i64) -> Result<Value, E> {
        Ok(Value::Number(number.into()))
    }

    fn visit_f64<E>(self, number: f64) -> Result<Value, E> {
        Ok(Number::from_f64(number).map_or(Value::Null, Value::Number))
    }

    fn visit_str<E>(self, text: &str) -> Result<Value, E> {
        Ok(Value::String(text.to_owned()))
    }

    fn visit_string<E>(self, text: String) -> Result<Value, E> {
        Ok(Value::String(text))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let mut out = Vec::new();
        while let Some(Unrepeated(item)) = items.next_element()? {
            out.push(item);
        }
        Ok(Value::Array(out))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Value, A::Error> {
        let mut out = Map::new();
        while let Some(key) = entries.next_key::<String>()? {
            if out.contains_key(&key) {
                return Err(A::Error::custom(format!("the key {} is there twice", quoted(&key))));
            }
            let Unrepeated(value) = entries.next_value()?;
            out.insert(key, value);
        }
        Ok(Value::Object(out))
    }
}
