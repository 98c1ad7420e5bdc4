//! A machine on which every kind of value differs from its default somewhere, and stands still.

use std::error::Error;
use std::path::Path;
use std::time::Duration;

use vendue_gpu_sim::clock::Clock;
use vendue_gpu_sim::fault::{Fault, ThrottleReason};
use vendue_gpu_sim::fleet::Fleet;
use vendue_gpu_sim::load::Work;
use vendue_gpu_sim::{mig, profile};

/// Number of its devices.
pub const DEVICES: usize = 5;

/// The machine, with its state file in `dir`.
pub fn fleet(dir: &Path) -> Result<Fleet, Box<dyn Error>> {
    let groups = [("H100", 2), ("A100", 1), ("T4", 1), ("B200", 1)];
    let clock = Clock::stopped(1_000_000_000_000);
    let fleet = Fleet::create(&dir.join("state.json"), &groups, "python", clock)?;
    let instances = mig::layout(&profile::built_in("H100")?.1, &["3g.40gb", "1g.10gb"], "x")?;
    fleet.inject(Some(1), Fault::Mig { enabled: true, instances })?;
    let cut = Fault::Throttle { reason: ThrottleReason::HwThermal, clock_percent: 60, for_ns: None };
    fleet.inject(Some(2), cut)?;
    fleet.inject(Some(4), Fault::Ecc { corrected: 5, uncorrected: 2, sram: true })?;
    let rows = Fault::RowRemap { correctable: 1, uncorrectable: 2, pending: true, failed: false };
    fleet.inject(Some(4), rows)?;
    for (pid, device, gpu_instance, intensity) in
        [(10, 0, None, 37), (11, 0, None, 20), (12, 1, Some(7), 90), (13, 2, None, 100), (14, 3, None, 5)]
    {
        let memory_mib = 1_000 + u64::from(pid);
        fleet.load(Work { pid, device, gpu_instance, intensity, memory_mib, ..Work::default() })?;
    }
    fleet.advance(Duration::from_millis(12_345))?;
    Ok(fleet)
}
