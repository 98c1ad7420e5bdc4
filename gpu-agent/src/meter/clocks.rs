//! The clocks of this machine, and which boot it is.

use std::time::{SystemTime, UNIX_EPOCH};

use nix::time::{ClockId, clock_gettime};
use vendue_receipts::BootId;

use super::sights::Clocks;

/// The clocks now.
///
/// # Errors
/// When the kernel lacks one.
pub fn now() -> std::io::Result<Clocks> {
    let steady_ns = read(ClockId::CLOCK_BOOTTIME)?;
    let suspended_ns = steady_ns.saturating_sub(read(ClockId::CLOCK_MONOTONIC)?);
    let system = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let system_ms = u64::try_from(system.as_millis()).unwrap_or(u64::MAX);
    Ok(Clocks { steady_ns, suspended_ns, system_ms })
}

fn read(clock: ClockId) -> std::io::Result<u64> {
    let time = std::time::Duration::from(clock_gettime(clock)?);
    Ok(u64::try_from(time.as_nanos()).unwrap_or(u64::MAX))
}

/// The id of a boot, from the UUID that the kernel gives it.
#[must_use]
pub fn boot(uuid: &str) -> Option<BootId> {
    let digits: String = uuid.chars().filter(|c| *c != '-').collect();
    let number = u128::from_str_radix(&digits, 16).ok().filter(|_| digits.len() == 32)?;
    Some(BootId(number.to_be_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steady_time_runs_and_the_boot_is_what_the_kernel_says() {
        let (first, second) = (now().expect("clocks"), now().expect("clocks"));
        assert!(first.steady_ns <= second.steady_ns && first.suspended_ns <= first.steady_ns);
        assert!(first.system_ms > 1_700_000_000_000);
        let id = boot("01020304-0506-0708-090a-0b0c0d0e0f10").expect("boot");
        assert_eq!(id, BootId([1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16]));
        for odd in ["", "01020304", "0102030405060708090a0b0c0d0e0f1x", "0102030405060708090a0b0c0d0e0f1011"]
        {
            assert_eq!(boot(odd), None, "{odd:?}");
        }
    }
}
