//! The chart `vendue-crds` holds exactly what the types say. When this fails: `cargo crdgen --out
//! charts/vendue-crds/templates`, and look at the difference before you commit it.

use std::{fs, path::Path};

use serde_json::Value;

#[test]
fn chart_holds_the_generated_crds_and_nothing_else() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../charts/vendue-crds/templates");
    let mut expected: Vec<String> = vec![];
    for crd in vendue_crds::crds() {
        let file = format!("{}.yaml", crd.spec.names.plural);
        let text = fs::read_to_string(folder.join(&file)).unwrap_or_else(|e| panic!("{file}: {e}"));
        let mut found: Value = serde_saphyr::from_str(&text).expect("YAML");
        let kept = found["metadata"]["annotations"].take();
        assert_eq!(
            kept["helm.sh/resource-policy"], "keep",
            "{file}: uninstalling must not delete the objects"
        );
        found["metadata"].as_object_mut().expect("metadata").remove("annotations");
        let generated = serde_json::to_value(&crd).expect("CRD serialises");
        assert!(
            found == generated,
            "{file} differs from the types; run `cargo crdgen --out charts/vendue-crds/templates`"
        );
        expected.push(file);
    }
    let mut found: Vec<String> = fs::read_dir(&folder)
        .expect("templates")
        .map(|entry| entry.expect("entry").file_name().to_string_lossy().into_owned())
        .collect();
    found.sort();
    expected.sort();
    assert_eq!(found, expected, "files in {}", folder.display());
}
