//! What cards of each model measure, and how much less still counts. Pure; the numbers and their sources are in
//! `models.json`.

use serde::Deserialize;

/// The table as the program ships it.
const BUILT_IN: &str = include_str!("models.json");

/// Everything that a measurement is compared with.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Table {
    /// How much less still counts.
    pub tolerances: Tolerances,
    /// Where the figures of the models come from.
    pub sources: Vec<String>,
    /// Cards that are known.
    pub models: Vec<Model>,
}

/// How much less still counts.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Tolerances {
    /// Memory that need not be there, in MiB.
    pub memory_missing_mib: u64,
    /// The same as a share of the whole, which is added.
    pub memory_missing_percent: u64,
    /// Least share of the model's bandwidth.
    pub min_bandwidth_percent: u64,
    /// Least share of the model's clock.
    pub min_clock_percent: u64,
    /// Where these come from.
    pub sources: Vec<String>,
}

/// A card.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Model {
    /// Name as NVML gives it.
    pub product_name: String,
    /// Bandwidth of its memory in MB/s.
    pub bandwidth_mbps: u64,
    /// Boost clock of its multiprocessors.
    pub sm_clock_mhz: u64,
}

impl Table {
    /// The table that the program ships.
    ///
    /// # Errors
    /// When it cannot be read; a test makes sure that this cannot ship.
    pub fn built_in() -> Result<Self, serde_json::Error> {
        serde_json::from_str(BUILT_IN)
    }

    /// The card of this name.
    #[must_use]
    pub fn model(&self, product_name: &str) -> Option<&Model> {
        self.models.iter().find(|model| model.product_name == product_name)
    }
}

impl Tolerances {
    /// Least memory that a card with so much has to have.
    #[must_use]
    pub fn least_memory(&self, bytes: u64) -> u64 {
        let missing = (bytes / 100).saturating_mul(self.memory_missing_percent);
        bytes.saturating_sub(missing).saturating_sub(self.memory_missing_mib << 20)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn the_shipped_table_is_sound() {
        let table = Table::built_in().expect("table");
        let names: BTreeSet<_> = table.models.iter().map(|m| m.product_name.as_str()).collect();
        assert_eq!(names.len(), table.models.len(), "each name once");
        assert!(!table.sources.is_empty() && !table.tolerances.sources.is_empty());
        for model in &table.models {
            assert!((100_000..20_000_000).contains(&model.bandwidth_mbps), "{model:?}");
            assert!((500..4_000).contains(&model.sm_clock_mhz), "{model:?}");
        }
        let Tolerances { min_bandwidth_percent, min_clock_percent, .. } = table.tolerances;
        assert!((1..=100).contains(&min_bandwidth_percent) && (1..=100).contains(&min_clock_percent));
        assert_eq!(table.model("NVIDIA H100 PCIe").map(|m| m.sm_clock_mhz), Some(1755));
        assert_eq!(table.model("NVIDIA H100"), None);
    }

    #[test]
    fn small_and_large_cards_may_lack_what_driver_and_firmware_keep() {
        let tolerances = Table::built_in().expect("table").tolerances;
        assert_eq!(tolerances.least_memory(100 << 30), (98 << 30) - (1 << 30));
        assert_eq!(tolerances.least_memory(1 << 20), 0);
    }
}
