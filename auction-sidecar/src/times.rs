//! Times and durations as people and programs write them.
//!
//! Inputs: text, milliseconds since 1970. Outputs: the other form. Invariant: a time is told in UTC, as RFC 3339 has it.

use k8s_openapi::jiff::{SignedDuration, Timestamp};

/// A time with its zone, as milliseconds since 1970.
pub fn parse_time(text: &str) -> Result<u64, String> {
    let time: Timestamp = text
        .parse()
        .map_err(|e| format!("{e}; accepted: a time with its zone, for example 2027-01-31T12:00:00Z"))?;
    u64::try_from(time.as_millisecond()).map_err(|_| "a time before 1970".to_owned())
}

/// A duration, in milliseconds.
pub fn parse_duration(text: &str) -> Result<u64, String> {
    let accepted = "accepted: a duration with its unit, for example 90s, 30m or 1h 30m";
    let duration: SignedDuration = text.parse().map_err(|e| format!("{e}; {accepted}"))?;
    u64::try_from(duration.as_millis()).map_err(|_| format!("it is below zero; {accepted}"))
}

/// A time as RFC 3339; the number where it is none that has such a form.
pub fn time(ms: u64) -> String {
    let time = i64::try_from(ms).ok().and_then(|ms| Timestamp::from_millisecond(ms).ok());
    time.map_or_else(|| format!("{ms} ms"), |time| time.to_string())
}

/// A duration in whole seconds.
pub fn duration(ms: u64) -> String {
    format!("{:#}", SignedDuration::from_secs(i64::try_from(ms / 1000).unwrap_or(i64::MAX)))
}

/// How far off a time is.
pub fn how_far(at_ms: u64, now_ms: u64) -> String {
    match at_ms.checked_sub(now_ms) {
        Some(left) => format!("in {}", duration(left)),
        None => format!("{} ago", duration(now_ms - at_ms)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_mean_the_same_everywhere() {
        let noon = 1_801_396_800_000;
        assert_eq!(parse_time("2027-01-31T12:00:00Z"), Ok(noon));
        assert_eq!(parse_time("2027-01-31T14:00:00.5+02:00"), Ok(noon + 500));
        for bad in ["2027-01-31T12:00:00", "tomorrow", "+90s", "1960-01-01T00:00:00Z"] {
            assert!(parse_time(bad).is_err(), "{bad}");
        }
        assert_eq!(
            (time(noon), time(noon + 500)),
            ("2027-01-31T12:00:00Z".into(), "2027-01-31T12:00:00.5Z".into())
        );
        assert_eq!(time(u64::MAX), format!("{} ms", u64::MAX));
    }

    #[test]
    fn durations_have_units_and_no_sign() {
        for (text, ms) in [("2m", 120_000), ("1h 30m", 5_400_000), ("1h", 3_600_000), ("PT90S", 90_000)] {
            assert_eq!(parse_duration(text), Ok(ms), "{text}");
        }
        for bad in ["", "90", "-1h", "soon"] {
            assert!(parse_duration(bad).unwrap_err().contains("1h 30m"), "{bad}");
        }
        assert_eq!(how_far(5_460_900, 0), "in 1h 31m");
        assert_eq!(how_far(0, 61_000), "1m 1s ago");
    }
}
