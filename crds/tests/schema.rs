//! Rules that every schema of the group keeps: documented, bounded, with list types, columns and status first things
//! first. The walk covers every field, so a new field cannot forget one of them.
#![allow(clippy::expect_used, clippy::panic, reason = "helpers of tests")]

use serde_json::{Value, json};
use vendue_crds::crds;

/// Calls `see` with the path and schema of every field of every kind.
fn walk(see: &mut impl FnMut(&str, &Value)) {
    for crd in crds() {
        let version = &crd.spec.versions[0];
        let schema =
            serde_json::to_value(version.schema.as_ref().and_then(|s| s.open_api_v3_schema.as_ref()));
        descend(&crd.spec.names.kind, &schema.expect("schema serialises"), see);
    }
}

fn descend(path: &str, schema: &Value, see: &mut impl FnMut(&str, &Value)) {
    see(path, schema);
    for (name, field) in schema["properties"].as_object().into_iter().flatten() {
        descend(&format!("{path}.{name}"), field, see);
    }
    if schema["items"].is_object() {
        descend(&format!("{path}[]"), &schema["items"], see);
    }
    if schema["additionalProperties"].is_object() {
        descend(&format!("{path}{{}}"), &schema["additionalProperties"], see);
    }
}

fn violations(rule: impl Fn(&str, &Value) -> bool) -> Vec<String> {
    let mut found = vec![];
    walk(&mut |path, schema| {
        if !rule(path, schema) {
            found.push(path.to_owned());
        }
    });
    found
}

#[test]
fn every_field_is_documented() {
    let bad = violations(|path, schema| {
        path.ends_with("[]")
            || path.ends_with("{}")
            || schema["description"].as_str().is_some_and(|d| d.len() > 8 && d.ends_with(['.', '"', ')']))
    });
    assert_eq!(bad, Vec::<String>::new(), "fields without a description that ends as a sentence does");
}

#[test]
fn every_string_is_bounded() {
    let bad = violations(|path, schema| {
        schema["type"] != "string"
            || schema["format"].is_string()
            || schema["enum"].is_array()
            || schema["maxLength"].is_u64()
            // Kubernetes bounds label keys and values itself; the number of them is bounded below.
            || path.ends_with("nodeSelector{}")
    });
    assert_eq!(bad, Vec::<String>::new(), "strings without maxLength");
}

#[test]
fn every_list_and_map_is_bounded_and_lists_name_their_type() {
    let bad = violations(|_, schema| match schema["type"].as_str() {
        Some("array") => {
            // A list whose order matters is atomic by being declared nothing else; the rest says how it merges.
            let keys =
                schema["x-kubernetes-list-type"] != "map" || schema["x-kubernetes-list-map-keys"].is_array();
            schema["maxItems"].is_u64() && keys
        }
        Some("object") if schema["additionalProperties"].is_object() => schema["maxProperties"].is_u64(),
        _ => true,
    });
    assert_eq!(bad, Vec::<String>::new(), "lists without maxItems, maps without maxProperties");
}

#[test]
fn there_are_no_floats_and_no_unsigned_formats() {
    let bad = violations(|_, schema| {
        schema["type"] != "number" && !schema["format"].as_str().is_some_and(|f| f.starts_with("uint"))
    });
    assert_eq!(bad, Vec::<String>::new());
}

#[test]
fn conditions_merge_by_type_and_are_bounded() {
    let mut seen = 0;
    walk(&mut |path, schema| {
        if path.ends_with(".status.conditions") {
            seen += 1;
            assert_eq!(schema["x-kubernetes-list-map-keys"], json!(["type"]), "{path}");
            assert_eq!(schema["items"]["properties"]["message"]["maxLength"], 32_768, "{path}");
        }
    });
    assert_eq!(seen, 5, "each of the five kinds has conditions");
}

#[test]
fn names_columns_and_subresources() {
    let mut table = vec![];
    for crd in crds() {
        let names = &crd.spec.names;
        let version = &crd.spec.versions[0];
        assert_eq!(names.categories.as_deref(), Some(&["vendue".to_owned()][..]), "{}", names.kind);
        assert!(version.subresources.as_ref().is_some_and(|s| s.status.is_some()), "{}", names.kind);
        let columns = version.additional_printer_columns.iter().flatten();
        let columns: Vec<_> =
            columns.filter(|c| c.priority.is_none_or(|p| p == 0)).map(|c| &*c.name).collect();
        let short = names.short_names.iter().flatten().cloned().collect::<Vec<_>>().join(",");
        table.push(format!("{} {} {}: {}", crd.spec.scope, names.plural, short, columns.join(" ")));
    }
    assert_eq!(
        table,
        [
            "Namespaced provisions vprov: Ready Advertised Price Free Total Age",
            "Namespaced bids vbid: Round Price Outcome Winner WinningPrice Age",
            "Namespaced jobs vjob: State Provider Price Spent Age",
            "Namespaced awards vaward: Side State Provider Price Age",
            "Cluster gpunodes vgpu: Ready Reason GPUs Model Driver Probed Metered Seen Age",
        ]
    );
}

#[test]
fn status_shows_conditions_first() {
    let condition =
        vendue_crds::conditions::condition("Ready", true, "Valid", "", Some(1), Default::default());
    macro_rules! check {
        ($($kind:ident),*) => {$(
            let status = vendue_crds::$kind {
                conditions: vec![condition.clone()],
                observed_generation: Some(1),
                ..Default::default()
            };
            let text = serde_json::to_string(&status).expect("status serialises");
            assert!(text.starts_with("{\"conditions\":["), "{}: {text}", stringify!($kind));
            let rest = text.split("}],").nth(1).expect("more follows");
            assert!(rest.starts_with("\"observedGeneration\":1"), "{}: {text}", stringify!($kind));
        )*};
    }
    check!(JobStatus, ProvisionStatus, BidStatus, GpuNodeStatus, AwardStatus);
}
