//! Between API objects and the market.

pub mod bids;
pub mod cluster;
pub mod home;
pub mod host;
pub mod objects;
pub mod offers;
pub mod stores;
