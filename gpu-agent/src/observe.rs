//! What the agent believes after a reading: the last good inventory, and what is wrong since then. Pure.
//!
//! Invariant: a failed reading never erases the last good one.

use std::borrow::Cow;
use std::time::Duration;

use k8s_openapi::jiff::Timestamp;

use crate::inventory::NodeInventory;
use crate::probe::ProbeError;

/// Outcome of one attempt to read.
#[derive(Debug)]
pub enum Outcome {
    /// It worked.
    Read(NodeInventory),
    /// It failed.
    Failed(ProbeError),
    /// It has not come back yet.
    Hung {
        /// For how long it has been under way.
        since: Duration,
    },
}

/// What is wrong with reading at all.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Problem {
    /// NVML's library cannot be loaded.
    LibraryMissing(String),
    /// The kernel driver is not there.
    DriverNotLoaded(String),
    /// Library and kernel driver differ in version.
    DriverMismatch(String),
    /// The driver was replaced since this process has loaded it.
    Replaced(String),
    /// A call failed otherwise.
    ReadFailed(String),
    /// A call does not come back. The text is the same for as long as it does not.
    Hung,
}

/// What the agent believes.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Observation {
    /// The last good reading and its time.
    pub last_good: Option<(NodeInventory, Timestamp)>,
    /// What is wrong, when the last attempt was no good one.
    pub problem: Option<Problem>,
}

impl Observation {
    /// The belief after one more attempt.
    #[must_use]
    pub fn after(self, outcome: Outcome, now: Timestamp) -> Self {
        let problem = match outcome {
            Outcome::Read(inventory) => {
                return Self { last_good: Some((inventory, now)), problem: None };
            }
            Outcome::Hung { .. } => Problem::Hung,
            Outcome::Failed(error) => {
                let text = error.to_string();
                match error {
                    ProbeError::LibraryMissing { .. } => Problem::LibraryMissing(text),
                    ProbeError::DriverNotLoaded => Problem::DriverNotLoaded(text),
                    ProbeError::DriverMismatch => Problem::DriverMismatch(text),
                    ProbeError::Replaced(_) => Problem::Replaced(text),
                    ProbeError::Call { .. } | ProbeError::ThreadEnded => Problem::ReadFailed(text),
                }
            }
        };
        Self { last_good: self.last_good, problem: Some(problem) }
    }

    /// The same with another problem, as others are told of it.
    #[must_use]
    pub fn telling(&self, problem: Option<&Problem>) -> Cow<'_, Self> {
        if self.problem.as_ref() == problem {
            return Cow::Borrowed(self);
        }
        Cow::Owned(Self { last_good: self.last_good.clone(), problem: problem.cloned() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_keeps_the_last_good_reading_and_success_clears_the_problem() {
        let at = |second| Timestamp::from_second(second).expect("time");
        let inventory = NodeInventory { driver_version: "1".to_owned(), ..NodeInventory::default() };
        let good = Observation::default().after(Outcome::Read(inventory.clone()), at(1));
        assert_eq!(good, Observation { last_good: Some((inventory.clone(), at(1))), problem: None });

        let hung = good.after(Outcome::Hung { since: Duration::from_secs(6) }, at(7));
        let expected =
            Observation { last_good: Some((inventory.clone(), at(1))), problem: Some(Problem::Hung) };
        assert_eq!(hung, expected);
        let mismatch = hung.after(Outcome::Failed(ProbeError::DriverMismatch), at(8));
        let text = "initialise NVML: library and kernel driver differ in version; reboot the node".to_owned();
        assert_eq!(mismatch.problem, Some(Problem::DriverMismatch(text)));
        let healed = mismatch.after(Outcome::Read(inventory.clone()), at(9));
        assert_eq!(healed, Observation { last_good: Some((inventory, at(9))), problem: None });
    }
}
