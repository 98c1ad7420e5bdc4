//! Metrics of what was metered: the [`Tally`] as Prometheus asks for it.
//!
//! * Input: the newest tally, shared with the thread that meters. Output: counters, made when they are asked for.
//! * Invariant: one answer is one tally, so that no counter is seen half-way.

use std::sync::{Arc, Mutex, PoisonError};

use prometheus::core::{Collector, Desc};
use prometheus::proto::{Metric, MetricFamily, MetricType};
use vendue_receipts::{AwardId, GapReason};

use super::tally::{Tally, Whose};
use crate::families::{family, label, metric};

/// Name, help, labels.
const COUNTERS: [(&str, &str, &[&str]); 3] = [
    (
        "vendue_metered_gpu_seconds_total",
        "Time in use according to durable receipts, by award (idle: nobody's) and device",
        &["award", "gpu_uuid"],
    ),
    (
        "vendue_metered_energy_joules_total",
        "Energy in use according to durable receipts, by award (idle: nobody's) and device",
        &["award", "gpu_uuid"],
    ),
    (
        "vendue_metering_gap_seconds_total",
        "Time of devices that nobody is charged for because it was not observed or not stored, by award and reason",
        &["award", "reason"],
    ),
];

/// The counters.
#[derive(Clone)]
pub struct MeterCounters {
    descs: Vec<Desc>,
    tally: Arc<Mutex<Arc<Tally>>>,
}

impl MeterCounters {
    /// Counters of nothing yet.
    ///
    /// # Errors
    /// When a definition is wrong.
    pub fn new() -> Result<Self, prometheus::Error> {
        let desc = |(name, help, labels): &(&str, &str, &[&str])| {
            let labels = labels.iter().map(|label| (*label).to_owned()).collect();
            Desc::new((*name).to_owned(), (*help).to_owned(), labels, std::collections::HashMap::new())
        };
        let descs = COUNTERS.iter().map(desc).collect::<Result<_, _>>()?;
        Ok(Self { descs, tally: Arc::default() })
    }

    /// Shows this from now on.
    pub fn show(&self, tally: Arc<Tally>) {
        *self.tally.lock().unwrap_or_else(PoisonError::into_inner) = tally;
    }
}

impl Collector for MeterCounters {
    fn desc(&self) -> Vec<&Desc> {
        self.descs.iter().collect()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let tally = Arc::clone(&self.tally.lock().unwrap_or_else(PoisonError::into_inner));
        let (mut times, mut energies, mut gaps) = (vec![], vec![], vec![]);
        for (whose, of_award) in tally.iter() {
            let award = name(whose);
            for (device, sums) in &of_award.devices {
                let labels = [("award", award.as_str()), ("gpu_uuid", device.as_str())];
                times.push(counter(labels, float(sums.wall_ns) / 1e9));
                energies.extend(sums.energy_mj.map(|mj| counter(labels, float(mj) / 1e3)));
            }
            let of_reason = |(reason, ms)| {
                counter([("award", award.as_str()), ("reason", word(reason))], float(ms) / 1e3)
            };
            gaps.extend(of_award.gaps_ms().map(of_reason));
        }
        let families = COUNTERS.iter().zip([times, energies, gaps]);
        families.map(|((name, help, _), metrics)| family(name, MetricType::COUNTER, help, metrics)).collect()
    }
}

fn name(whose: Whose) -> String {
    match whose {
        Whose::Award(award) if award == AwardId::IDLE => "idle".to_owned(),
        Whose::Award(award) => award.to_string(),
        Whose::Other => "other".to_owned(),
    }
}

/// As receipts say it.
fn word(reason: GapReason) -> &'static str {
    match reason {
        GapReason::AgentDown => "agent_down",
        GapReason::Reboot => "reboot",
        GapReason::DeviceLost => "device_lost",
        GapReason::DeviceNotReadable => "device_not_readable",
        GapReason::CounterReset => "counter_reset",
        GapReason::StoreFailed => "store_failed",
        GapReason::DiskLost => "disk_lost",
        GapReason::Clock => "clock",
        GapReason::Suspend => "suspend",
    }
}

fn counter(labels: [(&str, &str); 2], value: f64) -> Metric {
    metric(labels.map(|(name, value)| label(name, value)).to_vec(), MetricType::COUNTER, value)
}

/// Exact up to 2^53: 104 days of one device in nanoseconds, and then to a millionth of a second.
#[allow(clippy::cast_precision_loss)]
fn float(value: u64) -> f64 {
    value as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reasons_are_told_as_in_receipts() {
        for reason in GapReason::ALL {
            assert_eq!(serde_json::to_value(reason).expect("json"), word(reason));
        }
    }
}
