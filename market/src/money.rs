//! Money as whole millionths: [`Price`] per GPU-hour and [`Cost`].
//!
//! Text form is a decimal string with at most six decimals ("2.50"); it is the only form outside this crate, so
//! no float ever touches money. Prices are greater than zero.

use crate::encode::{Canonical, DecodeError, Reader, Writer};
use serde::{Deserialize, Serialize};
use std::{fmt, str::FromStr};

const UNIT: i64 = 1_000_000;
/// Highest accepted amount in whole units; leaves room so that no cost of a year on a thousand GPUs overflows.
const MAX_WHOLE: i64 = 1_000_000;

/// Why a text is not an amount of money.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MoneyError {
    /// Not a plain decimal number.
    #[error("{0:?} is not an amount; accepted is a decimal number such as \"2.50\"")]
    Syntax(String),
    /// More than six digits after the point.
    #[error("{0:?} has more than six decimals; accepted are at most six, such as \"2.500001\"")]
    Decimals(String),
    /// Zero or negative where a price is wanted.
    #[error("{0:?} is not greater than zero; accepted is \"0.000001\" to \"1000000\"")]
    NotPositive(String),
    /// Above the bound.
    #[error("{0:?} is too large; accepted is at most \"1000000\"")]
    TooLarge(String),
}

/// Parses a decimal string to millionths, at most so many; a leading minus is accepted so that the caller can name the
/// real fault.
fn parse_micros(text: &str, most: i64) -> Result<i64, MoneyError> {
    let syntax = || MoneyError::Syntax(text.to_owned());
    let (negative, digits) = match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text),
    };
    let (whole, fraction) = match digits.split_once('.') {
        Some((w, f)) if !f.is_empty() => (w, f),
        Some(_) => return Err(syntax()),
        None => (digits, ""),
    };
    let plain = |s: &str| s.bytes().all(|b| b.is_ascii_digit());
    if whole.is_empty() || !plain(whole) || !plain(fraction) {
        return Err(syntax());
    }
    if fraction.len() > 6 {
        return Err(MoneyError::Decimals(text.to_owned()));
    }
    let too_large = || MoneyError::TooLarge(text.to_owned());
    let whole: i64 = whole.parse().map_err(|_| too_large())?;
    let fraction: i64 = format!("{fraction:0<6}").parse().map_err(|_| syntax())?;
    let micros = whole.checked_mul(UNIT).and_then(|whole| whole.checked_add(fraction));
    let micros = micros.filter(|micros| *micros <= most).ok_or_else(too_large)?;
    Ok(if negative { -micros } else { micros })
}

/// Writes millionths with at least two and at most six decimals.
fn write_micros(micros: i64, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    let sign = if micros < 0 { "-" } else { "" };
    let abs = micros.unsigned_abs();
    let text = format!("{:06}", abs % UNIT as u64);
    let keep = text.trim_end_matches('0').len().max(2);
    let fraction = text.get(..keep).unwrap_or(&text);
    write!(f, "{sign}{}.{fraction}", abs / UNIT as u64)
}

/// A price per GPU-hour in millionths, always greater than zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Price(i64);

impl Price {
    /// A price from millionths; `None` unless it is in 1..=10^12.
    pub fn from_micros(micros: i64) -> Option<Self> {
        (1..=MAX_WHOLE * UNIT).contains(&micros).then_some(Self(micros))
    }
    /// The price in millionths.
    pub fn micros(self) -> i64 {
        self.0
    }
    /// Price x GPUs x seconds / 3600, rounded half up to a millionth; saturates at the largest cost.
    pub fn cost(self, gpus: u32, seconds: u64) -> Cost {
        let product = i128::from(self.0).saturating_mul(i128::from(gpus)).saturating_mul(i128::from(seconds));
        // Half a millionth is 1800 of 3600 parts.
        let micros = product.saturating_add(1800) / 3600;
        Cost(i64::try_from(micros).unwrap_or(i64::MAX))
    }
}

impl FromStr for Price {
    type Err = MoneyError;
    fn from_str(text: &str) -> Result<Self, MoneyError> {
        let micros = parse_micros(text, MAX_WHOLE * UNIT)?;
        Self::from_micros(micros).ok_or_else(|| MoneyError::NotPositive(text.to_owned()))
    }
}
impl TryFrom<String> for Price {
    type Error = MoneyError;
    fn try_from(text: String) -> Result<Self, MoneyError> {
        text.parse()
    }
}
impl From<Price> for String {
    fn from(price: Price) -> Self {
        price.to_string()
    }
}
impl fmt::Display for Price {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_micros(self.0, f)
    }
}
impl Canonical for Price {
    fn write(&self, w: &mut Writer) {
        w.i64(self.0);
    }
    fn read(r: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Self::from_micros(r.i64()?).ok_or(DecodeError::Invalid("price"))
    }
}

/// An amount of money in millionths, zero or more.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Cost(i64);

impl Cost {
    /// Nothing.
    pub const ZERO: Cost = Cost(0);

    /// A cost from millionths; `None` when negative.
    pub fn from_micros(micros: i64) -> Option<Self> {
        (micros >= 0).then_some(Self(micros))
    }
    /// The cost in millionths.
    pub fn micros(self) -> i64 {
        self.0
    }
    /// The sum; saturates.
    pub fn plus(self, other: Cost) -> Cost {
        Cost(self.0.saturating_add(other.0))
    }
}

impl FromStr for Cost {
    type Err = MoneyError;
    fn from_str(text: &str) -> Result<Self, MoneyError> {
        // Any cost: long runs on many devices cost more than a price may be.
        Self::from_micros(parse_micros(text, i64::MAX)?).ok_or_else(|| MoneyError::Syntax(text.to_owned()))
    }
}
impl TryFrom<String> for Cost {
    type Error = MoneyError;
    fn try_from(text: String) -> Result<Self, MoneyError> {
        text.parse()
    }
}
impl From<Cost> for String {
    fn from(cost: Cost) -> Self {
        cost.to_string()
    }
}
impl fmt::Display for Cost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_micros(self.0, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accepts_and_shows() {
        for (text, micros, shown) in [
            ("2.50", 2_500_000, "2.50"),
            ("2", 2_000_000, "2.00"),
            ("0.000001", 1, "0.000001"),
            ("1.203", 1_203_000, "1.203"),
        ] {
            let price: Price = text.parse().unwrap();
            assert_eq!((price.micros(), price.to_string().as_str()), (micros, shown));
        }
    }

    #[test]
    fn rejects_with_the_right_error() {
        let err = |s: &str| s.parse::<Price>().unwrap_err();
        assert_eq!(err("0"), MoneyError::NotPositive("0".into()));
        assert_eq!(err("-1.5"), MoneyError::NotPositive("-1.5".into()));
        assert_eq!(err("1.1234567"), MoneyError::Decimals("1.1234567".into()));
        assert_eq!(err("1000000.000001"), MoneyError::TooLarge("1000000.000001".into()));
        for bad in ["", ".", "1.", ".5", "1e3", "+1", " 1", "1,5", "--1", "NaN"] {
            assert_eq!(err(bad), MoneyError::Syntax(bad.into()), "{bad}");
        }
    }

    #[test]
    fn cost_rounds_half_up() {
        let p = Price::from_micros(1).unwrap();
        assert_eq!(p.cost(1, 1799), Cost(0));
        assert_eq!(p.cost(1, 1800), Cost(1));
        assert_eq!("2.50".parse::<Price>().unwrap().cost(2, 3600), Cost(5_000_000));
        let largest = Price::from_micros(MAX_WHOLE * UNIT).unwrap();
        assert_eq!(largest.cost(u32::MAX, u64::MAX), Cost(i64::MAX));
    }

    #[test]
    fn cost_parses_its_own_text() {
        let cost = Cost::from_micros(1_234_500).unwrap();
        assert_eq!(cost.to_string().parse::<Cost>().unwrap(), cost);
        let large = Price::from_micros(MAX_WHOLE * UNIT).unwrap().cost(1024, 3600);
        assert_eq!(large.to_string().parse::<Cost>(), Ok(large), "costs are larger than prices");
        assert_eq!(Cost(i64::MAX).to_string().parse::<Cost>(), Ok(Cost(i64::MAX)));
        assert!(matches!("9223372036854.775808".parse::<Cost>(), Err(MoneyError::TooLarge(_))));
        assert!("-1".parse::<Cost>().is_err());
    }
}
