//! The sample files, the schema and the operator's page agree with the model.

use blitz_config::file::{FileConfig, Format, parse};
use blitz_config::{Config, Overrides, json_schema, load};
use serde_json::Value;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// Each sample configuration: its name, its syntax and its text.
fn examples() -> Vec<(String, Format, String)> {
    let mut examples = Vec::new();
    for entry in std::fs::read_dir(workspace().join("examples")).unwrap() {
        let path = entry.unwrap().path();
        if let Ok(format) = Format::from_path(&path) {
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            examples.push((name, format, std::fs::read_to_string(&path).unwrap()));
        }
    }
    examples.sort_by(|a, b| a.0.cmp(&b.0));
    examples
}

fn example(name: &str) -> FileConfig {
    let (_, format, text) = examples().into_iter().find(|(other, ..)| other == name).unwrap();
    parse(&text, format, name).unwrap()
}

/// Key paths of the schema with their schemas: `upstreams.*.endpoints[].weight`.
fn schema_keys(schema: &Value, path: &str, out: &mut Vec<(String, Value)>) {
    let dot = if path.is_empty() { "" } else { "." };
    for (key, schema) in schema["properties"].as_object().into_iter().flatten() {
        let path = format!("{path}{dot}{key}");
        out.push((path.clone(), schema.clone()));
        schema_keys(schema, &path, out);
    }
    if let Some(schema) = schema.get("items") {
        schema_keys(schema, &format!("{path}[]"), out);
    }
    // A value of several forms: the table among them has keys.
    for form in schema["anyOf"].as_array().into_iter().flatten() {
        schema_keys(form, path, out);
    }
    if let Some(schema) = schema.get("additionalProperties").filter(|schema| schema.is_object()) {
        schema_keys(schema, &format!("{path}.*"), out);
    }
}

fn all_schema_keys() -> Vec<(String, Value)> {
    let mut keys = Vec::new();
    schema_keys(&json_schema(), "", &mut keys);
    keys
}

/// Key paths that a file uses, in the same words.
fn used_keys(value: &Value, path: &str, out: &mut BTreeSet<String>) {
    match value {
        Value::Object(map) => {
            for (key, value) in map {
                let key = if path == "upstreams" { "*" } else { key };
                let path = if path.is_empty() { key.to_owned() } else { format!("{path}.{key}") };
                out.insert(path.clone());
                used_keys(value, &path, out);
            }
        }
        Value::Array(items) => items.iter().for_each(|item| used_keys(item, &format!("{path}[]"), out)),
        _ => {}
    }
}

#[test]
fn every_sample_is_accepted() {
    let examples = examples();
    assert!(examples.len() >= 5, "samples are missing");
    for (name, format, text) in examples {
        let with_port = Overrides { port: Some(8080), ..Overrides::default() };
        load(&text, format, &name, &with_port).unwrap_or_else(|error| panic!("{error}"));
        let for_stage = Overrides { is_for_stage: true, ..Overrides::default() };
        load(&text, format, &name, &for_stage).unwrap_or_else(|error| panic!("{error}"));
        if !["backends.json", "stage.toml"].contains(&&*name) {
            load(&text, format, &name, &Overrides::default()).unwrap_or_else(|error| panic!("{error}"));
        }
    }
}

#[test]
fn both_syntaxes_give_the_same_configuration() {
    assert_eq!(example("edge.toml"), example("edge.json"));
}

#[test]
fn the_full_sample_uses_every_key() {
    let (_, _, text) = examples().into_iter().find(|(name, ..)| name == "edge.json").unwrap();
    let mut used = BTreeSet::new();
    used_keys(&serde_json::from_str(&text).unwrap(), "", &mut used);
    used.remove("upstreams.*");
    let known: BTreeSet<String> = all_schema_keys()
        .into_iter()
        .map(|(key, _)| key)
        .filter(|key| !key.starts_with("backends"))
        .collect();
    assert_eq!(used, known);
}

#[test]
fn the_schema_names_every_key_of_the_model() {
    // What serde writes is the model's own list of keys, whatever the schema says.
    let mut model = BTreeSet::new();
    for name in ["edge.toml", "short.json"] {
        used_keys(&serde_json::to_value(example(name)).unwrap(), "", &mut model);
    }
    model.remove("upstreams.*");
    let schema: BTreeSet<String> = all_schema_keys().into_iter().map(|(key, _)| key).collect();
    assert_eq!(model, schema);
}

#[test]
fn every_key_says_what_its_schema_enforces() {
    for (key, schema) in all_schema_keys() {
        let description =
            schema["description"].as_str().unwrap_or_else(|| panic!("{key} has no description"));
        assert!(!description.contains('\n'), "{key}: a description is one paragraph");
        assert!(description.to_lowercase().contains("reloadable"), "{key}: reloadable or not?");
        if let (Some(least), Some(most)) = (schema["minimum"].as_u64(), schema["maximum"].as_u64()) {
            assert!(description.contains(&format!("Range: {least} to {most}")), "{key}: {description}");
        }
        if let Some(default) = schema["default"].as_u64() {
            let words = [format!("Default: {default}."), format!("Default: {default} (")];
            assert!(words.iter().any(|words| description.contains(words)), "{key}: {description}");
        }
        if let Some(most) = schema["maxItems"].as_u64().filter(|_| key != "listeners[].protocols") {
            let words = [format!("At most {most}"), format!("1 to {most}")];
            assert!(words.iter().any(|words| description.contains(words)), "{key}: {description}");
        }
        if schema["type"] == "object" && schema.get("properties").is_some() {
            assert_eq!(schema["additionalProperties"], false, "{key} takes unknown keys");
        }
    }
}

#[test]
fn the_page_names_every_key_with_its_default_and_range() {
    let page = std::fs::read_to_string(workspace().join("docs/configuration.md")).unwrap();
    let rows: Vec<&str> = page.lines().filter(|line| line.starts_with("| `")).collect();
    for (key, schema) in all_schema_keys() {
        let row = rows.iter().find(|row| row.starts_with(&format!("| `{key}` |")));
        let row = row.unwrap_or_else(|| panic!("docs/configuration.md has no row for {key}"));
        if let (Some(least), Some(most)) = (schema["minimum"].as_u64(), schema["maximum"].as_u64()) {
            assert!(row.contains(&format!("{least} to {most}")), "{key}: {row}");
        }
        if let Some(default) = schema["default"].as_u64() {
            assert!(row.contains(&format!("| {default} ")), "{key}: {row}");
        }
    }
}

#[test]
fn the_page_shows_only_accepted_samples() {
    let page = std::fs::read_to_string(workspace().join("docs/configuration.md")).unwrap();
    let with_port = Overrides { port: Some(8080), ..Overrides::default() };
    let mut count = 0;
    for (fence, format) in [("```toml\n", Format::Toml), ("```json\n", Format::Json)] {
        for sample in page.split(fence).skip(1) {
            let text = sample.split("```").next().unwrap();
            load(text, format, "docs/configuration.md", &with_port)
                .unwrap_or_else(|error| panic!("{error}\n{text}"));
            count += 1;
        }
    }
    assert!(count >= 2);
}

#[test]
fn defaults_are_the_recommended_values() {
    use blitz_config::model::{
        Admin, Http2Limits, Http3Limits, HttpLimits, PassiveHealth, Timeouts, Upstream, Xdp,
    };
    let with_port = Overrides { port: Some(8080), ..Overrides::default() };
    let text = "[upstreams.a]\nendpoints = [{ address = \"a:1\" }]";
    let config: Config = load(text, Format::Toml, "f", &with_port).unwrap();
    assert_eq!(config.timeouts, Timeouts::RECOMMENDED);
    assert_eq!(config.http, HttpLimits::RECOMMENDED);
    assert_eq!(config.http2, Http2Limits::RECOMMENDED);
    assert_eq!(config.http3, Http3Limits::RECOMMENDED);
    assert_eq!(config.admin, Admin::RECOMMENDED);
    assert_eq!(config.limits, []);
    assert_eq!(config.xdp, Xdp::default());
    assert_eq!(config.upstreams[0].passive, PassiveHealth::RECOMMENDED);
    assert_eq!(config.upstreams[0].idle_connections_max, Upstream::IDLE_CONNECTIONS_RECOMMENDED);
    assert_eq!(config.upstreams[0].endpoints[0].weight, 1);
}
