//! A seeded network of seats and a home in one process: the real state machines and the real cryptography, with
//! virtual time, delays, losses, partitions, skewed clocks, faulty seats, and provider controllers that take hold of
//! devices. The invariants of the protocol are checked at every send.
//!
//! Inputs: a [`Config`] and what the caller does to the [`World`]. Outputs: what seats and home reported, what was
//! sent, and a hash over every delivery. The same configuration and calls give the same hash.

pub mod bench;
mod controller;
mod deviation;
mod invariants;
mod schedule;
mod world;

pub use controller::{Answer, Controller};
pub use deviation::{Deviation, KindName};
pub use invariants::{Violation, Watch};
pub use schedule::{Report, Schedule, all_deviations};
pub use world::{Config, Event, Fault, Hold, Partition, World};

use vendue_auction_core::Params;
use vendue_market::{AcceptRules, NodeCapacity, Offer, OfferNode, Price, Requirements};

/// A market clock with D = 100 ms that starts one second into virtual time.
pub fn clock() -> Params {
    Params { delay_ms: 100, period_ms: 600, genesis_ms: 1_000, handover_ms: 6_000 }
}

/// An offer of `gpus` H100 on one node at `price` millionths.
pub fn offer(name: &str, price: i64, gpus: u32) -> Option<Offer> {
    let capacity = NodeCapacity {
        model: "H100".parse().ok()?,
        gpu_memory_mib: 81_920,
        free_gpus: gpus,
        cpu_millis: 128_000,
        memory_mib: 1_000_000,
        disk_mib: 1_000_000,
    };
    Some(Offer {
        name: name.into(),
        price: Price::from_micros(price)?,
        nodes: vec![OfferNode { name: format!("{name}-node-0"), capacity }],
        rules: AcceptRules::any(),
    })
}

/// What an order for `workers` workers of one GPU each needs, at most at `max_price` millionths.
pub fn requirements(workers: u32, max_price: i64) -> Option<Requirements> {
    Some(Requirements {
        gpu_models: vec![],
        min_gpu_memory_mib: 0,
        workers,
        gpus_per_worker: 1,
        cpu_millis_per_worker: 1_000,
        memory_mib_per_worker: 2_000,
        disk_mib_per_worker: 0,
        max_price: Price::from_micros(max_price)?,
        run_seconds: 600,
        image: "registry.example/train:1".into(),
        include_providers: vec![],
        exclude_providers: vec![],
    })
}
