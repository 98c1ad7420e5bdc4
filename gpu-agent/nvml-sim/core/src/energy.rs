//! Exact amounts of energy.
//!
//! Power is in whole milliwatts and time in whole nanoseconds, so an integral of piecewise constant power is a whole
//! number of milliwatt-nanoseconds (10^-12 J) and nothing is ever rounded before it is shown.

use serde::{Deserialize, Serialize};

/// Energy in milliwatt-nanoseconds. A file holds it as text, because JSON numbers end at 64 bits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Energy(pub u128);

/// Milliwatt-nanoseconds in one millijoule.
const PER_MILLIJOULE: u128 = 1_000_000_000;

impl Energy {
    /// What `power_milliwatts` uses in `nanoseconds`.
    #[must_use]
    pub fn of(power_milliwatts: u32, nanoseconds: u64) -> Self {
        Self(u128::from(power_milliwatts) * u128::from(nanoseconds))
    }

    /// Whole millijoules, as NVML counts.
    #[must_use]
    pub fn millijoules(self) -> u64 {
        u64::try_from(self.0 / PER_MILLIJOULE).unwrap_or(u64::MAX)
    }

    /// Sum.
    #[must_use]
    pub fn plus(self, other: Self) -> Self {
        Self(self.0.saturating_add(other.0))
    }

    /// Difference; never below nothing.
    #[must_use]
    pub fn minus(self, other: Self) -> Self {
        Self(self.0.saturating_sub(other.0))
    }
}

impl TryFrom<String> for Energy {
    type Error = String;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse().map(Self).map_err(|e| format!("{text:?} is no number of milliwatt-nanoseconds: {e}"))
    }
}

impl From<Energy> for String {
    fn from(energy: Energy) -> Self {
        energy.0.to_string()
    }
}

/// Energy counters at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct EnergyMark {
    /// What NVML's counter shows at the mark.
    pub counter: Energy,
    /// What was really used until the mark.
    pub used: Energy,
    /// The moment, on the simulated clock. Time before it adds nothing.
    pub at_ns: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_round_trips_beyond_64_bits() {
        let energy = Energy::of(u32::MAX, u64::MAX).plus(Energy(1));
        let text = serde_json::to_string(&energy).expect("json");
        assert_eq!(serde_json::from_str::<Energy>(&text).expect("parse"), energy);
        assert!(serde_json::from_str::<Energy>(r#""12x""#).is_err());
        assert_eq!(Energy::of(70_000, 10_000_000_000).millijoules(), 700_000);
        assert_eq!(Energy(1).minus(Energy(2)), Energy(0));
    }
}
