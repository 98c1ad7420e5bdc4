//! Which devices a process may see, as NVIDIA's container runtime would arrange it by `NVIDIA_VISIBLE_DEVICES`.

use crate::state::State;

/// Name of the environment variable.
pub const ENV: &str = "NVIDIA_VISIBLE_DEVICES";

/// Devices that a process may see.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Visibility {
    /// All: the variable is not set, or says `all`.
    #[default]
    All,
    /// None: the variable is empty, or says `none` or `void`.
    None,
    /// Those listed by UUID or index.
    Listed(Vec<String>),
}

impl Visibility {
    /// Reads the variable's value.
    #[must_use]
    pub fn from_env_value(value: Option<&str>) -> Self {
        match value.map(str::trim) {
            None | Some("all") => Self::All,
            Some("" | "none" | "void") => Self::None,
            Some(list) => Self::Listed(
                list.split(',').map(str::trim).filter(|s| !s.is_empty()).map(str::to_owned).collect(),
            ),
        }
    }

    /// Indexes of the visible devices, in order of index: the position in this list is the index that the process
    /// sees. Entries that match no device are ignored.
    #[must_use]
    pub fn apply(&self, state: &State) -> Vec<u32> {
        let listed = |uuid: &str, index: u32| match self {
            Self::All => true,
            Self::None => false,
            Self::Listed(entries) => entries.iter().any(|e| e == uuid || e.parse() == Ok(index)),
        };
        state.devices.iter().filter(|d| listed(&d.uuid, d.index)).map(|d| d.index).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn visible(value: Option<&str>, state: &State) -> Vec<u32> {
        Visibility::from_env_value(value).apply(state)
    }

    #[test]
    fn words_uuids_and_indexes() {
        let state = State::generate(&[("L40S".to_owned(), 4)], "s", 0).expect("state");
        assert_eq!(visible(None, &state), [0, 1, 2, 3]);
        assert_eq!(visible(Some("all"), &state), [0, 1, 2, 3]);
        for nothing in ["", "none", "void", " ", "GPU-unknown", "9"] {
            assert_eq!(visible(Some(nothing), &state), [0u32; 0], "{nothing:?}");
        }
        let uuids = format!("{}, {}", state.devices[3].uuid, state.devices[1].uuid);
        assert_eq!(visible(Some(&uuids), &state), [1, 3]);
        assert_eq!(visible(Some("2,0,2"), &state), [0, 2]);
    }
}
