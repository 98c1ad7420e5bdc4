//! The market's vocabulary.

use super::Cost::Bytes;
use super::{Target, json, json_value, target};
use crate::bounds::bounded;
use std::fmt::{Debug, Display};
use std::str::FromStr;
use vendue_market::encode::{Canonical, from_hex, to_hex};
use vendue_market::{
    Cost, GpuModel, Histogram, NodeCapacity, Offer, OfferCapacity, Order, Outcome, Price, Requirements,
    glob_match,
};

pub(super) const TARGETS: &[Target] = &[
    target("order", Bytes, canonical::<Order>),
    target("requirements", Bytes, canonical::<Requirements>),
    target("outcome", Bytes, canonical::<Outcome>),
    target("histogram", Bytes, canonical::<Histogram>),
    target("gpu_model", Bytes, canonical::<GpuModel>),
    target("price", Bytes, canonical::<Price>),
    target("node_capacity", Bytes, canonical::<NodeCapacity>),
    target("offer_capacity", Bytes, canonical::<OfferCapacity>),
    target("order_json", Bytes, both::<Order>),
    target("outcome_json", Bytes, both::<Outcome>),
    target("offer_json", Bytes, json::<Offer>),
    target("offer_capacity_json", Bytes, both::<OfferCapacity>),
    target("price_text", Bytes, text::<Price>),
    target("cost", Bytes, cost),
    target("cost_text", Bytes, text::<Cost>),
    target("gpu_model_text", Bytes, text::<GpuModel>),
    target("hex_text", Bytes, hex_text),
    target("image_pattern", Bytes, image_pattern),
];

/// A type with one encoding per value.
pub(crate) fn canonical<T: Canonical + PartialEq + Debug>(bytes: &[u8]) -> bool {
    let Ok(value) = bounded(bytes.len(), 0, || T::from_bytes(bytes)) else { return false };
    let written = value.to_bytes();
    assert_eq!(written, bytes, "{value:?} has two encodings");
    assert_eq!(T::from_bytes(&written), Ok(value));
    true
}

/// JSON of a value that has a canonical encoding too: where both read it, they read the same.
pub(super) fn both<T>(bytes: &[u8]) -> bool
where
    T: Canonical + PartialEq + Debug + serde::Serialize + serde::de::DeserializeOwned,
{
    let Some(value) = json_value::<T>(bytes) else { return false };
    if let Ok(read) = T::from_bytes(&value.to_bytes()) {
        assert_eq!(read, value, "the canonical encoding is of another value");
    }
    true
}

/// A text form: what is shown reads as the same value.
pub(super) fn text<T: FromStr + Display + PartialEq + Debug>(bytes: &[u8]) -> bool {
    let Ok(text) = std::str::from_utf8(bytes) else { return false };
    let Ok(value) = bounded(bytes.len(), 0, || text.parse::<T>()) else { return false };
    assert_eq!(value.to_string().parse::<T>().ok().as_ref(), Some(&value), "{text:?} shows as {value}");
    true
}

/// Any amount there is can be shown and read.
fn cost(bytes: &[u8]) -> bool {
    let Some(cost) = bytes.try_into().ok().map(i64::from_be_bytes).and_then(Cost::from_micros) else {
        return false;
    };
    text::<Cost>(cost.to_string().as_bytes()) || panic!("{cost} does not read back")
}

fn hex_text(bytes: &[u8]) -> bool {
    let Ok(text) = std::str::from_utf8(bytes) else { return false };
    let Some(value) = bounded(bytes.len(), 0, || from_hex(text)) else { return false };
    assert_eq!(to_hex(&value), text, "bytes have two texts");
    true
}

/// A pattern and a text. A pattern without a star matches itself only.
fn image_pattern(bytes: &[u8]) -> bool {
    let Some((pattern, text)) = std::str::from_utf8(bytes).ok().and_then(|s| s.split_once('\n')) else {
        return false;
    };
    let matches = glob_match(pattern, text);
    assert!(pattern.contains('*') || matches == (pattern == text), "{pattern:?} against {text:?}");
    assert!(glob_match(&format!("*{pattern}*"), text) || !matches);
    matches
}
