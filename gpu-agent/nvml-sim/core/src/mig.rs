//! Laying out GPU instances on a card, as the driver does. Pure.
//!
//! Input: the card's profile and the wanted instances by name. Output: instances with places, ids and UUIDs.
//! Invariant: no two instances share a memory slice, and all begin where the profile allows.

use crate::profile::Profile;
use crate::state::{MigInstance, derived_uuid};

/// Why instances cannot be laid out.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum LayoutError {
    /// The card has no such instance profile.
    #[error("instance profile is {name:?}, accepted for {product}: {accepted}")]
    Unknown {
        /// The name asked for.
        name: String,
        /// The card.
        product: String,
        /// What the card has.
        accepted: String,
    },
    /// The instances do not fit together.
    #[error("no place is left for {name} after {placed} instances")]
    Full {
        /// The one that does not fit.
        name: String,
        /// How many were placed before.
        placed: usize,
    },
}

/// Places instances in the order given, each at the first free place. `salt` makes UUIDs of this layout.
///
/// # Errors
/// When a profile is unknown or does not fit.
pub fn layout(profile: &Profile, names: &[&str], salt: &str) -> Result<Vec<MigInstance>, LayoutError> {
    let mut taken: Vec<(u32, u32)> = Vec::new();
    let mut instances: Vec<MigInstance> = Vec::new();
    for name in names {
        let unknown = || LayoutError::Unknown {
            name: (*name).to_owned(),
            product: profile.product_name.clone(),
            accepted: profile.mig_profile_names(),
        };
        let kind = profile.mig_profile(name).ok_or_else(unknown)?;
        let full = || LayoutError::Full { name: (*name).to_owned(), placed: instances.len() };
        let same = instances.iter().filter(|i| i.profile == *name).count();
        if u32::try_from(same).is_ok_and(|n| n >= kind.max_instances) {
            return Err(full());
        }
        let free = |start: &u32| {
            let end = start.saturating_add(kind.placement_size);
            !taken.iter().any(|(from, to)| *start < *to && *from < end)
        };
        let start = kind.placement_starts.iter().copied().find(free).ok_or_else(full)?;
        taken.push((start, start.saturating_add(kind.placement_size)));
        let id = free_id(kind.slices, &instances);
        instances.push(MigInstance {
            gpu_instance_id: id,
            profile: (*name).to_owned(),
            start,
            uuid: derived_uuid("MIG", salt, id),
        });
    }
    Ok(instances)
}

/// Drivers number instances from a base that depends on their size: 0 for the whole card, 1 for halves, 3 for
/// quarters, 7 for eighths.
fn free_id(slices: u32, instances: &[MigInstance]) -> u32 {
    let base = match slices {
        7 => 0,
        3 | 4 => 1,
        2 => 3,
        _ => 7,
    };
    (base..).find(|id| instances.iter().all(|i| i.gpu_instance_id != *id)).unwrap_or(base)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::profile::built_in;

    fn places(profile: &str, names: &[&str]) -> Result<Vec<(u32, u32)>, LayoutError> {
        let instances = layout(&built_in(profile).expect("profile").1, names, "salt")?;
        Ok(instances.iter().map(|i| (i.gpu_instance_id, i.start)).collect())
    }

    #[test]
    fn instances_take_the_first_free_place() {
        assert_eq!(places("A100", &["3g.40gb", "3g.40gb"]), Ok(vec![(1, 0), (2, 4)]));
        let sevenths = places("H100", &["1g.10gb"; 7]).expect("seven");
        assert_eq!(sevenths, (0..7).map(|n| (7 + n, n)).collect::<Vec<_>>());
        assert_eq!(places("H200", &["3g.71gb", "2g.35gb", "1g.18gb"]), Ok(vec![(1, 0), (3, 4), (7, 6)]));
        assert_eq!(places("B200", &["7g.180gb"]), Ok(vec![(0, 0)]));
    }

    #[test]
    fn what_does_not_fit_is_named() {
        let error = places("H100", &["7g.80gb", "1g.10gb"]).expect_err("full");
        assert_eq!(error.to_string(), "no place is left for 1g.10gb after 1 instances");
        let error = places("H100", &["1g.10gb+me", "1g.10gb+me"]).expect_err("one has media engines");
        assert_eq!(error.to_string(), "no place is left for 1g.10gb+me after 1 instances");
        let error = places("T4", &["1g.10gb"]).expect_err("no MIG");
        assert_eq!(
            error.to_string(),
            r#"instance profile is "1g.10gb", accepted for Tesla T4: none, the card has no MIG"#
        );
    }

    #[test]
    fn uuids_differ_by_instance_and_layout() {
        let profile = built_in("A100").expect("profile").1;
        let one = layout(&profile, &["1g.10gb", "1g.10gb"], "a").expect("layout");
        let two = layout(&profile, &["1g.10gb"], "b").expect("layout");
        assert!(one[0].uuid.starts_with("MIG-") && one[0].uuid.len() == 40, "{}", one[0].uuid);
        assert!(one[0].uuid != one[1].uuid && one[0].uuid != two[0].uuid);
    }
}
