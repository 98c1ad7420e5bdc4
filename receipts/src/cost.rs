//! What a window costs.

/// Nanoseconds of an hour.
const HOUR_NS: u128 = 3_600_000_000_000;

/// The cost of one record in millionths: price in millionths for a GPU-hour times its length, rounded half up once.
/// `None` for more than there are numbers for.
pub fn cost_micros(price_micros_per_gpu_hour: u64, wall_ns: u64) -> Option<u64> {
    let exact = u128::from(price_micros_per_gpu_hour) * u128::from(wall_ns);
    u64::try_from((exact + HOUR_NS / 2) / HOUR_NS).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_is_rounded_half_up_once() {
        let hour = HOUR_NS as u64;
        assert_eq!(cost_micros(2_500_000, hour), Some(2_500_000));
        // Ten seconds at 2.50 an hour are 6,944.4 millionths.
        assert_eq!(cost_micros(2_500_000, 10_000_000_000), Some(6_944));
        assert_eq!(cost_micros(1, hour / 2), Some(1));
        assert_eq!(cost_micros(1, hour / 2 - 1), Some(0));
        assert_eq!(cost_micros(0, u64::MAX), Some(0));
        assert_eq!(cost_micros(u64::MAX, hour), Some(u64::MAX));
        assert_eq!(cost_micros(u64::MAX, hour + 1), None);
    }
}
