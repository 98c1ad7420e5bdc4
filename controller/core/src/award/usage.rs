//! What a run used and costs.
//!
//! Inputs: when it started and ended, GPUs, price. Outputs: a [`UsageStatus`].
//! Invariant: seconds are whole and never shrink; cost is computed in one place, by the market's money type.

use k8s_openapi::jiff::Timestamp;
use vendue_crds::{AwardRuntimeStatus, Decimal, UsageStatus};
use vendue_market::Price;

/// Seconds between two writes of usage while nothing else changes; each write reaches home over the network.
pub const WRITE_EVERY_SECONDS: i64 = 10;

/// Usage at `now`; `None` before the start.
pub fn usage(runtime: &AwardRuntimeStatus, gpus: u32, price: Price, now: Timestamp) -> Option<UsageStatus> {
    let started = runtime.started_at.as_ref()?.0;
    let end = runtime.ended_at.as_ref().map_or(now, |t| t.0);
    let seconds = end.duration_since(started).as_secs().max(0);
    Some(UsageStatus {
        gpus: i32::try_from(gpus).unwrap_or(i32::MAX),
        seconds,
        gpu_seconds: seconds.saturating_mul(i64::from(gpus)),
        cost: Decimal::from(price.cost(gpus, u64::try_from(seconds).unwrap_or(0))),
        restarts: runtime.attempt.saturating_sub(1).max(0),
    })
}

/// The usage to write: the old one while it is fresh and the run goes on.
pub fn throttled(old: Option<&UsageStatus>, new: Option<UsageStatus>, ended: bool) -> Option<UsageStatus> {
    match (old, new) {
        (Some(old), Some(new)) if new.seconds < old.seconds => Some(old.clone()),
        (Some(old), Some(new))
            if !ended && old.restarts == new.restarts && new.seconds - old.seconds < WRITE_EVERY_SECONDS =>
        {
            Some(old.clone())
        }
        (old, new) => new.or_else(|| old.cloned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(1_800_000_000 + second).unwrap()
    }

    #[test]
    fn counts_from_start_to_end() {
        let price: Price = "1.80".parse().unwrap();
        let mut run = AwardRuntimeStatus { attempt: 2, ..AwardRuntimeStatus::default() };
        assert_eq!(usage(&run, 2, price, at(0)), None);
        run.started_at = Some(Time(at(0)));
        let expected = |seconds: i64, cost: &str| UsageStatus {
            gpus: 2,
            seconds,
            gpu_seconds: seconds * 2,
            cost: Decimal(cost.into()),
            restarts: 1,
        };
        assert_eq!(usage(&run, 2, price, at(100)), Some(expected(100, "0.10")));
        run.ended_at = Some(Time(at(1000)));
        assert_eq!(usage(&run, 2, price, at(5000)), Some(expected(1000, "1.00")));

        let (old, new) = (expected(100, "0.10"), expected(105, "0.105"));
        assert_eq!(throttled(Some(&old), Some(new.clone()), false), Some(old.clone()));
        assert_eq!(throttled(Some(&old), Some(new.clone()), true), Some(new.clone()));
        assert_eq!(throttled(Some(&new), Some(old), true), Some(new));
    }
}
