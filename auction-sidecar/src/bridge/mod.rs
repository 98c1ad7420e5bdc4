//! Between API objects and the market.

pub mod cluster;
pub mod objects;
pub mod offers;
