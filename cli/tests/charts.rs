//! The chart's values and their schema name the same things, and every value is described.
#![allow(clippy::expect_used, clippy::panic, reason = "helpers of tests")]

use std::fs;
use std::path::Path;

use serde_json::Value;

fn chart(file: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../charts/vendue").join(file);
    fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// Objects whose keys the user chooses.
fn open(schema: &Value) -> bool {
    schema["properties"].is_null()
}

fn compare(path: &str, values: &Value, schema: &Value, problems: &mut Vec<String>) {
    if !path.is_empty() && schema["description"].as_str().is_none_or(str::is_empty) {
        problems.push(format!("{path}: no description in the schema"));
    }
    if open(schema) {
        return;
    }
    if schema["additionalProperties"] != false {
        problems.push(format!("{path}: additionalProperties is not false"));
    }
    let (values, properties) = (values.as_object(), schema["properties"].as_object());
    let (Some(values), Some(properties)) = (values, properties) else {
        problems.push(format!("{path}: is no object on both sides"));
        return;
    };
    for key in values.keys().filter(|k| !properties.contains_key(*k)) {
        problems.push(format!("{path}.{key}: not in values.schema.json"));
    }
    for (key, schema) in properties.iter().filter(|(key, _)| *key != "global") {
        match values.get(key) {
            Some(value) => compare(&format!("{path}.{key}"), value, schema, problems),
            None => problems.push(format!("{path}.{key}: no default in values.yaml")),
        }
    }
}

#[test]
fn values_and_schema_name_the_same_things() {
    let values: Value = serde_saphyr::from_str(&chart("values.yaml")).expect("values.yaml");
    let schema: Value = serde_json::from_str(&chart("values.schema.json")).expect("values.schema.json");
    let mut problems = vec![];
    compare("", &values, &schema, &mut problems);
    assert_eq!(problems, Vec::<String>::new());
}
