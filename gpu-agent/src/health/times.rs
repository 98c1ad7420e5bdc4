//! How long signs of trouble must last, and how long they must be away: defaults, and what an operator changes. Pure.
//!
//! Input: text like `thermal-onset=30s,error-quiet=1h`. Output: [`Times`]. Invariant: what is accepted is whole seconds within
//! `LIMITS`; every error names the field, what was given and what is accepted.

use std::str::FromStr;
use std::time::Duration;

/// How long signs must last, and how long they must be away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Times {
    /// A slowdown that is shorter is part of normal work.
    pub thermal_onset: Duration,
    /// Without a sign for so long, a thermal fault clears.
    pub thermal_quiet: Duration,
    /// A lost device that answers for so long was reset.
    pub lost_quiet: Duration,
    /// Without a sign for so long, an error that the device survived clears.
    pub error_quiet: Duration,
    /// Longest quiet time that is asked for of a fault that comes back.
    pub longest_quiet: Duration,
    /// A reading that fails again within so long after it worked comes and goes.
    pub unsteady_window: Duration,
    /// For so long, and twice as long each time, one that comes and goes has to work.
    pub unsteady_quiet: Duration,
    /// Pause before a device that did not pass its probe is probed again, twice as long each time.
    pub probe_pause: Duration,
    /// The longest such pause.
    pub probe_longest_pause: Duration,
}

impl Default for Times {
    fn default() -> Self {
        Self {
            thermal_onset: Duration::from_secs(10),
            thermal_quiet: Duration::from_secs(60),
            lost_quiet: Duration::from_secs(15),
            error_quiet: Duration::from_secs(600),
            longest_quiet: Duration::from_secs(6 * 3600),
            unsteady_window: Duration::from_secs(60),
            unsteady_quiet: Duration::from_secs(10),
            probe_pause: Duration::from_secs(600),
            probe_longest_pause: Duration::from_secs(6 * 3600),
        }
    }
}

/// Seconds that each time can have. Beyond a week a fault would in effect never clear.
const LIMITS: std::ops::RangeInclusive<u64> = 1..=7 * 86_400;

type Field = fn(&mut Times) -> &mut Duration;

/// Names of the times, as operators write them.
const FIELDS: [(&str, Field); 9] = [
    ("thermal-onset", |times| &mut times.thermal_onset),
    ("thermal-quiet", |times| &mut times.thermal_quiet),
    ("lost-quiet", |times| &mut times.lost_quiet),
    ("error-quiet", |times| &mut times.error_quiet),
    ("longest-quiet", |times| &mut times.longest_quiet),
    ("unsteady-window", |times| &mut times.unsteady_window),
    ("unsteady-quiet", |times| &mut times.unsteady_quiet),
    ("probe-pause", |times| &mut times.probe_pause),
    ("probe-longest-pause", |times| &mut times.probe_longest_pause),
];

/// Times that start a series, and the one that ends it.
const SERIES: [(&str, &str); 5] = [
    ("thermal-quiet", "longest-quiet"),
    ("lost-quiet", "longest-quiet"),
    ("error-quiet", "longest-quiet"),
    ("unsteady-quiet", "longest-quiet"),
    ("probe-pause", "probe-longest-pause"),
];

/// Why text is no set of times.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TimesError {
    /// Not `NAME=TIME`.
    #[error("{0:?} is not NAME=TIME, for example error-quiet=10m")]
    Form(String),
    /// Not a name.
    #[error("{0:?} is no time of health; accepted: {names}", names = FIELDS.map(|(name, _)| name).join(", "))]
    Name(String),
    /// Not a time.
    #[error("{name} is {given:?}; accepted: a whole number with s, m, h or d, from 1s to 7d")]
    Value {
        /// Which time.
        name: &'static str,
        /// What was given.
        given: String,
    },
    /// A name twice.
    #[error("{0} is given twice")]
    Twice(&'static str),
    /// A series that ends before it begins.
    #[error("{name} is {} s; accepted: at most {most_name}, {} s", given.as_secs(), most.as_secs())]
    Order {
        /// Which time.
        name: &'static str,
        /// What it is.
        given: Duration,
        /// Which one limits it.
        most_name: &'static str,
        /// What that is.
        most: Duration,
    },
}

impl FromStr for Times {
    type Err = TimesError;

    /// Reads `NAME=TIME,NAME=TIME`; an empty text changes nothing.
    fn from_str(text: &str) -> Result<Self, TimesError> {
        let (mut times, mut given) = (Self::default(), vec![]);
        for part in text.split(',').map(str::trim).filter(|part| !part.is_empty()) {
            let (name, value) = part.split_once('=').ok_or_else(|| TimesError::Form(part.to_owned()))?;
            let known = FIELDS.into_iter().find(|(known, _)| *known == name);
            let (name, field) = known.ok_or_else(|| TimesError::Name(name.to_owned()))?;
            if given.contains(&name) {
                return Err(TimesError::Twice(name));
            }
            given.push(name);
            let time = time(value).ok_or_else(|| TimesError::Value { name, given: value.to_owned() })?;
            *field(&mut times) = time;
        }
        times.in_order()
    }
}

impl Times {
    fn in_order(mut self) -> Result<Self, TimesError> {
        for (name, most_name) in SERIES {
            let (given, most) = (self.named(name), self.named(most_name));
            if given > most {
                return Err(TimesError::Order { name, given, most_name, most });
            }
        }
        Ok(self)
    }

    fn named(&mut self, name: &str) -> Duration {
        FIELDS.into_iter().find(|(known, _)| *known == name).map_or(Duration::ZERO, |(_, field)| *field(self))
    }
}

fn time(text: &str) -> Option<Duration> {
    let unit = match text.chars().next_back()? {
        's' => 1,
        'm' => 60,
        'h' => 3_600,
        'd' => 86_400,
        _ => return None,
    };
    let number: u64 = text[..text.len() - 1].parse().ok()?;
    let seconds = number.checked_mul(unit)?;
    LIMITS.contains(&seconds).then(|| Duration::from_secs(seconds))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn operators_change_single_times() {
        assert_eq!("".parse(), Ok(Times::default()));
        let changed = Times {
            thermal_onset: Duration::from_secs(30),
            error_quiet: Duration::from_secs(3_600),
            probe_longest_pause: Duration::from_secs(2 * 86_400),
            ..Times::default()
        };
        assert_eq!("thermal-onset=30s, error-quiet=60m,probe-longest-pause=2d".parse(), Ok(changed));
        // Each name is a time of its own.
        let all = "thermal-onset=1s,thermal-quiet=2s,lost-quiet=3s,error-quiet=4s,unsteady-window=5s,unsteady-quiet=6s,\
                   probe-pause=7s,probe-longest-pause=8s,longest-quiet=9s";
        let expected = Times {
            thermal_onset: Duration::from_secs(1),
            thermal_quiet: Duration::from_secs(2),
            lost_quiet: Duration::from_secs(3),
            error_quiet: Duration::from_secs(4),
            unsteady_window: Duration::from_secs(5),
            unsteady_quiet: Duration::from_secs(6),
            probe_pause: Duration::from_secs(7),
            probe_longest_pause: Duration::from_secs(8),
            longest_quiet: Duration::from_secs(9),
        };
        assert_eq!(all.parse(), Ok(expected));
    }

    #[test]
    fn what_is_wrong_is_named_with_what_is_accepted() {
        for (text, expected) in [
            ("error-quiet", "\"error-quiet\" is not NAME=TIME, for example error-quiet=10m"),
            ("heat=1s", "\"heat\" is no time of health; accepted: thermal-onset, thermal-quiet, "),
            (
                "error-quiet=10",
                "error-quiet is \"10\"; accepted: a whole number with s, m, h or d, from 1s to 7d",
            ),
            ("error-quiet=", "error-quiet is \"\"; accepted: "),
            ("error-quiet=0s", "error-quiet is \"0s\"; accepted: "),
            ("error-quiet=8d", "error-quiet is \"8d\"; accepted: "),
            ("error-quiet=-1s", "error-quiet is \"-1s\"; accepted: "),
            ("error-quiet=99999999999999999999d", "error-quiet is \"99999999999999999999d\"; accepted: "),
            ("error-quiet=1s,error-quiet=2s", "error-quiet is given twice"),
            ("error-quiet=7h", "error-quiet is 25200 s; accepted: at most longest-quiet, 21600 s"),
            ("probe-longest-pause=1m", "probe-pause is 600 s; accepted: at most probe-longest-pause, 60 s"),
        ] {
            let error = text.parse::<Times>().expect_err(text).to_string();
            assert!(error.starts_with(expected), "{error}");
        }
    }
}
