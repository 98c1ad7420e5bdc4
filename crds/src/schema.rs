//! What the generated schemas need before an API server gets them.
//!
//! Inputs: a CRD as `kube` derives it. Outputs: the same CRD with the bounds that upstream's Condition type has in Go and
//! k8s-openapi's does not. Invariant: nothing but the items of `status.conditions` is touched.

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::{
    CustomResourceDefinition, JSONSchemaProps, JSONSchemaPropsOrArray,
};

/// Bounds of metav1.Condition: field, most characters.
const CONDITION: [(&str, i64); 4] = [("type", 316), ("status", 16), ("reason", 1024), ("message", 32_768)];

/// Bounds the strings of `status.conditions` as metav1.Condition does.
pub fn bound_conditions(mut crd: CustomResourceDefinition) -> CustomResourceDefinition {
    for version in &mut crd.spec.versions {
        let root = version.schema.as_mut().and_then(|s| s.open_api_v3_schema.as_mut());
        if let Some(item) = root.and_then(condition_item) {
            for (field, max) in CONDITION {
                if let Some(props) = item.properties.as_mut().and_then(|p| p.get_mut(field)) {
                    props.max_length = Some(max);
                }
            }
        }
    }
    crd
}

fn condition_item(root: &mut JSONSchemaProps) -> Option<&mut JSONSchemaProps> {
    let status = root.properties.as_mut()?.get_mut("status")?;
    let conditions = status.properties.as_mut()?.get_mut("conditions")?;
    match conditions.items.as_mut()? {
        JSONSchemaPropsOrArray::Schema(item) => Some(item),
        JSONSchemaPropsOrArray::Schemas(_) => None,
    }
}
