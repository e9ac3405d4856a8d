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
    let settings = SchemaSettings::draft2020_12()
        .with(|settings| settings.inline_subschemas = true)
        .for_deserialize();
    settings
        .into_generator()
        .into_root_schema_for::<FileConfig>()
        .to_value()
});
