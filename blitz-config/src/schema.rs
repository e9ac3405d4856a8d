//! The JSON Schema of the file, for editors and `--print-schema`.
//!
//! Owns: how the schema is generated. Does not own: its content, which is derived from
//! [`crate::file`].
#![forbid(unsafe_code)]

use crate::file::FileConfig;
use schemars::generate::SchemaSettings;
use serde_json::Value;
use std::sync::LazyLock;

/// The JSON Schema (draft 2020-12) of a configuration file: every key with its description,
/// default, range and accepted values. Deterministic.
pub fn json_schema() -> Value {
    SCHEMA.clone()
}

/// The schema, generated once. Subschemas are inlined: whoever walks it follows no references, and
/// the model is not recursive.
pub(crate) static SCHEMA: LazyLock<Value> = LazyLock::new(|| {
    let settings =
        SchemaSettings::draft2020_12().with(|settings| settings.inline_subschemas = true).for_deserialize();
    let mut schema = settings.into_generator().into_root_schema_for::<FileConfig>().to_value();
    join_lines(&mut schema);
    schema
});

/// Descriptions are wrapped where the source is; in the schema each is one paragraph.
fn join_lines(schema: &mut Value) {
    match schema {
        Value::Object(map) => {
            for (key, value) in map {
                match value {
                    Value::String(text) if key == "description" => *text = text.replace('\n', " "),
                    value => join_lines(value),
                }
            }
        }
        Value::Array(items) => items.iter_mut().for_each(join_lines),
        _ => {}
    }
}
