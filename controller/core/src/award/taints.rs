//! Taints that the Pods of awards tolerate.
//!
//! Inputs: taints of a node. Outputs: tolerations of Pods, and whether they are enough. Invariant: a node is sold only when the
//! Pods that an award will have could be placed on it.

use k8s_openapi::api::core::v1::{Taint, Toleration};
use vendue_crds::names;

use crate::provision::GPU_RESOURCE;

/// What the Pods of awards tolerate: what keeps Pods without GPUs away, and what the agent says of devices in trouble. An award
/// that holds devices keeps them, and a Pod of it that is made anew has to get to them; what is sold the market judges by the
/// devices' health.
pub fn tolerations() -> Vec<Toleration> {
    let exists = |key: &str, effect: Option<&str>| Toleration {
        key: Some(key.to_owned()),
        operator: Some("Exists".to_owned()),
        effect: effect.map(str::to_owned),
        ..Toleration::default()
    };
    let agents = names::TAINTS.map(|key| exists(key, Some(names::TAINT_EFFECT)));
    std::iter::once(exists(GPU_RESOURCE, None)).chain(agents).collect()
}

/// Whether a taint keeps the Pods of awards away.
pub(crate) fn repels(taint: &Taint) -> bool {
    let tolerated = |toleration: &Toleration| {
        toleration.key.as_ref() == Some(&taint.key)
            && toleration.effect.as_ref().is_none_or(|effect| *effect == taint.effect)
    };
    taint.effect != "PreferNoSchedule" && !tolerations().iter().any(tolerated)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn taint(key: &str, effect: &str) -> Taint {
        Taint { key: key.to_owned(), effect: effect.to_owned(), ..Taint::default() }
    }

    #[test]
    fn the_agents_taints_repel_no_award_and_others_do() {
        for key in names::TAINTS {
            assert!(!repels(&taint(key, "NoSchedule")), "{key}");
            assert!(repels(&taint(key, "NoExecute")), "{key}: that is not the agent's");
        }
        for effect in ["NoSchedule", "NoExecute", "PreferNoSchedule"] {
            assert!(!repels(&taint(GPU_RESOURCE, effect)), "{effect}");
            assert_eq!(repels(&taint("dedicated", effect)), effect != "PreferNoSchedule", "{effect}");
        }
    }
}
