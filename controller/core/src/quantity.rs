//! Kubernetes quantities ("500m", "16Gi") as whole numbers.
//!
//! Inputs: the text of a quantity. Outputs: thousandths, MiB, or a count.
//! Invariant: what is available rounds down and what is requested rounds up, so that capacity is never overstated.

use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

/// The quantity in nano-units; `None` when it is not a quantity.
fn nanos(text: &str) -> Option<i128> {
    let text = text.trim();
    let split =
        text.find(|c: char| !(c.is_ascii_digit() || matches!(c, '.' | '+' | '-'))).unwrap_or(text.len());
    let (digits, suffix) = text.split_at(split);
    let (whole, fraction) = digits.split_once('.').unwrap_or((digits, ""));
    let negative = whole.starts_with('-');
    let whole = whole.trim_start_matches(['+', '-']);
    if whole.is_empty() && fraction.is_empty() || fraction.len() > 18 {
        return None;
    }
    let number: i128 = format!("{whole}{fraction}").parse().ok()?;
    let (up, down) = scale(suffix)?;
    // Multiply before dividing: no digit is lost for any suffix and up to 18 decimals.
    let scaled = number.checked_mul(up)?.checked_mul(1_000_000_000)?;
    let value = scaled / down.checked_mul(10i128.pow(fraction.len() as u32))?;
    Some(if negative { -value } else { value })
}

/// Factor of a suffix as a fraction.
fn scale(suffix: &str) -> Option<(i128, i128)> {
    let up = |n: i128| Some((n, 1));
    match suffix {
        "" => up(1),
        "n" => Some((1, 1_000_000_000)),
        "u" => Some((1, 1_000_000)),
        "m" => Some((1, 1_000)),
        "k" => up(1_000),
        "M" => up(1_000_000),
        "G" => up(1_000_000_000),
        "T" => up(1_000_000_000_000),
        "P" => up(1_000_000_000_000_000),
        "E" => up(1_000_000_000_000_000_000),
        "Ki" => up(1 << 10),
        "Mi" => up(1 << 20),
        "Gi" => up(1 << 30),
        "Ti" => up(1 << 40),
        "Pi" => up(1 << 50),
        "Ei" => up(1 << 60),
        _ => {
            let exponent: i32 = suffix.strip_prefix(['e', 'E'])?.parse().ok()?;
            let power = 10i128.checked_pow(exponent.unsigned_abs())?;
            if exponent >= 0 { Some((power, 1)) } else { Some((1, power)) }
        }
    }
}

fn floor(value: i128, unit: i128) -> u64 {
    u64::try_from(value.max(0) / unit).unwrap_or(u64::MAX)
}

fn ceil(value: i128, unit: i128) -> u64 {
    floor(value.max(0).saturating_add(unit - 1), unit)
}

const MILLI: i128 = 1_000_000;
const MIB: i128 = (1 << 20) * 1_000_000_000;

/// Thousandths that are available; zero when unreadable.
pub fn millis_available(q: &Quantity) -> u64 {
    nanos(&q.0).map_or(0, |n| floor(n, MILLI))
}

/// Thousandths that are requested.
pub fn millis_requested(q: &Quantity) -> u64 {
    nanos(&q.0).map_or(0, |n| ceil(n, MILLI))
}

/// MiB that are available; zero when unreadable.
pub fn mib_available(q: &Quantity) -> u64 {
    nanos(&q.0).map_or(0, |n| floor(n, MIB))
}

/// MiB that are requested.
pub fn mib_requested(q: &Quantity) -> u64 {
    nanos(&q.0).map_or(0, |n| ceil(n, MIB))
}

/// A count, such as GPUs.
pub fn count(q: &Quantity) -> u32 {
    nanos(&q.0).map_or(0, |n| u32::try_from(floor(n, MILLI * 1000)).unwrap_or(u32::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn q(text: &str) -> Quantity {
        Quantity(text.to_owned())
    }

    #[test]
    fn reads_every_form() {
        assert_eq!(millis_available(&q("2")), 2000);
        assert_eq!(millis_available(&q("0.1")), 100);
        assert_eq!(millis_available(&q("1500m")), 1500);
        assert_eq!(millis_requested(&q("1u")), 1);
        assert_eq!(mib_available(&q("16Gi")), 16 * 1024);
        assert_eq!(mib_available(&q("24576000Ki")), 24000);
        assert_eq!(mib_available(&q("1e9")), 953);
        assert_eq!(mib_requested(&q("1e9")), 954);
        assert_eq!(mib_requested(&q("1")), 1);
        assert_eq!(count(&q("8")), 8);
        for bad in ["", "x", "1x", "-1", "--"] {
            assert_eq!(millis_available(&q(bad)), 0, "{bad}");
        }
    }
}
