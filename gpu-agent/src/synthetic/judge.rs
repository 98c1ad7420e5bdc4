//! From what was measured to whether a card is what it says. Pure.
//!
//! | finding | when | result |
//! |---|---|---|
//! | memory | less than NVML says held its pattern, and CUDA says that the rest was free | Failed, `MemoryMissing` |
//! | | less held, because somebody else had the rest | NotRun, `Busy` |
//! | bandwidth | below a share of the model's; of a model that is not known, of what its own figures give | Failed, `BandwidthLow` |
//! | clock | below a share of the model's, or of the card's own | Failed, `ClockLow` |
//!
//! Invariants: a card passes only when everything was measured and nothing was found; the first finding is the reason, the
//! message names all.

use vendue_crds::{GpuProbe, ProbeResult};

use super::measure::{BLOCK, Measured};
use super::reasons;
use super::table::Table;

/// What NVML says of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Claim<'a> {
    /// Its name.
    pub product_name: &'a str,
    /// Its memory.
    pub memory_bytes: u64,
}

/// Compares what was measured with what is said.
#[must_use]
pub fn judge(table: &Table, claim: Claim<'_>, measured: &Measured) -> GpuProbe {
    let verdict = |result, reason: &str, message: String| GpuProbe {
        memory_mib: Some(signed(measured.intact >> 20)),
        bandwidth_megabytes_per_second: Some(signed(measured.bandwidth_mbps)),
        sm_clock_mhz: Some(signed(measured.sm_clock_mhz)),
        ..GpuProbe::without_figures(result, reason, message)
    };
    let least = table.tolerances.least_memory(claim.memory_bytes);
    if measured.intact < least && is_in_use(measured, least) {
        let (free, total) = (measured.memory.free >> 20, measured.memory.total >> 20);
        let message = format!("{free} MiB of {total} are free: somebody uses the device");
        return verdict(ProbeResult::NotRun, reasons::BUSY, message);
    }
    let findings =
        [memory(claim, measured, least), bandwidth(table, claim, measured), clock(table, claim, measured)];
    let findings: Vec<_> = findings.into_iter().flatten().collect();
    match findings.first() {
        Some((reason, _)) => {
            let texts: Vec<&str> = findings.iter().map(|(_, text)| text.as_str()).collect();
            verdict(ProbeResult::Failed, reason, texts.join("; "))
        }
        None => {
            let message = format!(
                "{} MiB, {} GB/s, {} MHz",
                measured.intact >> 20,
                measured.bandwidth_mbps / 1_000,
                measured.sm_clock_mhz
            );
            verdict(ProbeResult::Passed, reasons::PASSED, message)
        }
    }
}

type Finding = Option<(&'static str, String)>;

/// Whether everything that was free is in order, of a card that is as large for CUDA as it is for NVML.
fn is_in_use(measured: &Measured, least: u64) -> bool {
    let Measured { memory, intact, .. } = measured;
    // The end of the free memory is smaller than a block, and the first block needs tables of its own.
    memory.total >= least && memory.free < least && intact + 2 * BLOCK >= memory.free
}

fn memory(claim: Claim<'_>, measured: &Measured, least: u64) -> Finding {
    (measured.intact < least).then(|| {
        let (found, said) = (measured.intact >> 20, claim.memory_bytes >> 20);
        let text =
            format!("memory: {found} MiB hold what is written to them, {said} MiB are said to be there");
        (reasons::MEMORY_MISSING, text)
    })
}

fn bandwidth(table: &Table, claim: Claim<'_>, measured: &Measured) -> Finding {
    let known = table.model(claim.product_name).map(|model| model.bandwidth_mbps);
    let wanted = known.unwrap_or_else(|| measured.figures.bandwidth_mbps());
    is_below(measured.bandwidth_mbps, wanted, table.tolerances.min_bandwidth_percent).then(|| {
        let (found, said) = (measured.bandwidth_mbps / 1_000, wanted / 1_000);
        (reasons::BANDWIDTH_LOW, format!("memory bandwidth: {found} GB/s, the model has {said} GB/s"))
    })
}

fn clock(table: &Table, claim: Claim<'_>, measured: &Measured) -> Finding {
    let known = table.model(claim.product_name).map(|model| model.sm_clock_mhz);
    let wanted = known.unwrap_or(measured.figures.sm_clock_mhz);
    is_below(measured.sm_clock_mhz, wanted, table.tolerances.min_clock_percent).then(|| {
        let found = measured.sm_clock_mhz;
        (reasons::CLOCK_LOW, format!("clock under load: {found} MHz, the model has {wanted} MHz"))
    })
}

/// Nothing measured is below everything, also where nothing is known.
fn is_below(found: u64, wanted: u64, percent: u64) -> bool {
    found == 0 || u128::from(found) * 100 < u128::from(wanted) * u128::from(percent)
}

fn signed(n: u64) -> i64 {
    i64::try_from(n).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::super::measure::{Figures, Memory};
    use super::*;

    const H100: Claim<'static> = Claim { product_name: "NVIDIA H100 80GB HBM3", memory_bytes: 81_559 << 20 };

    fn honest() -> Measured {
        Measured {
            figures: Figures { sm_clock_mhz: 1_980, memory_clock_mhz: 2_619, memory_bus_bits: 5_120 },
            memory: Memory { free: 80_500 << 20, total: 81_008 << 20 },
            intact: 80_384 << 20,
            bandwidth_mbps: 2_900_000,
            sm_clock_mhz: 1_965,
        }
    }

    fn judged(claim: Claim<'_>, change: impl FnOnce(&mut Measured)) -> GpuProbe {
        let mut measured = honest();
        change(&mut measured);
        judge(&Table::built_in().expect("table"), claim, &measured)
    }

    fn outcome(claim: Claim<'_>, change: impl FnOnce(&mut Measured)) -> (ProbeResult, String) {
        let probe = judged(claim, change);
        (probe.result, probe.reason)
    }

    fn failed(reason: &str) -> (ProbeResult, String) {
        (ProbeResult::Failed, reason.to_owned())
    }

    #[test]
    fn a_card_that_is_what_it_says_passes_with_its_figures() {
        let expected = GpuProbe {
            result: ProbeResult::Passed,
            reason: "Passed".to_owned(),
            message: Some("80384 MiB, 2900 GB/s, 1965 MHz".to_owned()),
            memory_mib: Some(80_384),
            bandwidth_megabytes_per_second: Some(2_900_000),
            sm_clock_mhz: Some(1_965),
            at: None,
        };
        assert_eq!(judged(H100, |_| {}), expected);
    }

    #[test]
    fn missing_memory_is_told_from_memory_that_somebody_has() {
        let lies = judged(Claim { memory_bytes: 188_000 << 20, ..H100 }, |_| {});
        assert_eq!((lies.result, lies.reason.as_str()), (ProbeResult::Failed, "MemoryMissing"));
        let said = "memory: 80384 MiB hold what is written to them, 188000 MiB are said to be there";
        assert_eq!(lies.message.as_deref(), Some(said));
        assert_eq!(outcome(H100, |m| m.intact = 60_000 << 20), failed("MemoryMissing"));
        let used = |m: &mut Measured| (m.memory.free, m.intact) = (40_000 << 20, 39_936 << 20);
        assert_eq!(outcome(H100, used), (ProbeResult::NotRun, "Busy".to_owned()));
        // What is free and does not hold its pattern is not excused by what somebody has.
        let both = |m: &mut Measured| (m.memory.free, m.intact) = (40_000 << 20, 20_000 << 20);
        assert_eq!(outcome(H100, both), failed("MemoryMissing"));
        // Smaller for CUDA than for NVML: nobody has the rest.
        let smaller = |m: &mut Measured| {
            m.memory = Memory { free: 40_000 << 20, total: 40_500 << 20 };
            m.intact = 39_936 << 20;
        };
        assert_eq!(outcome(H100, smaller), failed("MemoryMissing"));
    }

    #[test]
    fn slow_cards_fail_at_the_tolerance_and_not_above() {
        let bandwidth = |mbps| outcome(H100, |m| m.bandwidth_mbps = mbps);
        assert_eq!(bandwidth(3_350_000 * 6 / 10 - 1), failed("BandwidthLow"));
        assert_eq!(bandwidth(3_350_000 * 6 / 10).0, ProbeResult::Passed);
        assert_eq!(bandwidth(0), failed("BandwidthLow"));
        let clock = |mhz| outcome(H100, |m| m.sm_clock_mhz = mhz);
        assert_eq!(clock(1_980 * 8 / 10 - 1), failed("ClockLow"));
        assert_eq!(clock(1_980 * 8 / 10).0, ProbeResult::Passed);
        assert_eq!(clock(0), failed("ClockLow"));
    }

    #[test]
    fn the_table_outweighs_what_the_card_says_and_unknown_models_are_held_to_their_own_word() {
        let modest = |m: &mut Measured| {
            m.figures = Figures { sm_clock_mhz: 900, memory_clock_mhz: 500, memory_bus_bits: 256 };
            (m.bandwidth_mbps, m.sm_clock_mhz) = (30_000, 890);
        };
        assert_eq!(outcome(H100, modest), failed("BandwidthLow"));
        let unknown = Claim { product_name: "NVIDIA X9", ..H100 };
        assert_eq!(outcome(unknown, modest).0, ProbeResult::Passed);
        assert_eq!(outcome(unknown, |m| m.bandwidth_mbps = 2_000_000), failed("BandwidthLow"));
        assert_eq!(outcome(unknown, |m| m.sm_clock_mhz = 1_500), failed("ClockLow"));
    }

    #[test]
    fn the_message_names_everything_that_was_found() {
        let probe = judged(Claim { memory_bytes: 188_000 << 20, ..H100 }, |m| {
            (m.bandwidth_mbps, m.sm_clock_mhz) = (800_000, 990);
        });
        let message = probe.message.expect("message");
        assert!(
            message.contains("memory: ") && message.contains("800 GB/s, the model has 3350 GB/s"),
            "{message}"
        );
        assert!(message.contains("990 MHz, the model has 1980 MHz"), "{message}");
        assert!(message.chars().count() <= 256);
    }
}
