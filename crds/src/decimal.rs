//! Money in the API: a decimal string, never a float.
//!
//! Inputs: what a user wrote. Outputs: the string as written, and [`vendue_market::Price`] on demand.
//! Invariant: the type itself accepts any string of at most 20 characters; the admission rule beside each field says
//! what is accepted there, so that the error names the field and the value.

use std::borrow::Cow;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};
use vendue_market::{MoneyError, Price};

/// A decimal number with at most six places, as a string: `"2.50"`.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Decimal(pub String);

impl Decimal {
    /// Parses the text as a price per GPU-hour.
    pub fn price(&self) -> Result<Price, MoneyError> {
        self.0.parse()
    }
}

impl<T: std::fmt::Display> From<T> for Decimal {
    fn from(value: T) -> Self {
        Self(value.to_string())
    }
}

impl JsonSchema for Decimal {
    fn schema_name() -> Cow<'static, str> {
        "Decimal".into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "string", "maxLength": 20 })
    }
}
