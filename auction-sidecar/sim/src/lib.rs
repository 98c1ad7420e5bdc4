//! A seeded network of seats and a home in one process: the real state machines, with the real cryptography or a stand-in
//! for it, virtual time, delays, losses, partitions, clocks that are wrong, faulty seats and homes, and provider
//! controllers that take hold of devices. The invariants of the protocol are checked at every send.
//!
//! Inputs: a [`Config`] and what the caller does to the [`World`], or a [`Schedule`]. Outputs: what seats and home
//! reported, what was sent, what did not hold, and a hash over every delivery. The same configuration and calls give the
//! same hash.
//!
//! # Where each behaviour of the protocol's list is
//! | behaviour | deviation of a seat, or else |
//! |---|---|
//! | B1 silent | `Silent`, `Mute` |
//! | B2, B3, B12 to some only | `Only`, `PartialBundle` |
//! | B4, B5 versions of a bundle | `TwoBundles`, `ManyBundles` |
//! | B6 at the edge of T1 | `LateBundle` |
//! | B7, B8, B9, B10 copied, mauled, garbage, bad points | `CopiedBundle`, `MauledBundle`; each bit in the tests of `sealed-bid` |
//! | B11 records that it cannot keep | `FalseRecords` |
//! | B13 to B17 SETs | `TwoSets`, `Omit` (by all f in `tests/byzantine.rs`), `ClaimAll`, `StarvedSet`, `FalseFull` |
//! | B18, B19, B25 votes | `TwoAdmits`, `TwoLocks`, `Echo`, `LastMoment`, `AdmitAll` |
//! | B20 to B24 shares and commits | `EarlyShare`, `Mute(Open)`, `ShiftedShare` (two of them cancel), `WrongShare`, `ForgedCommit` |
//! | B26 awards | `TwoAwards`, `WrongAward` |
//! | B27 certificates kept back or late | `HoardedProof`, `LateProof`; posting by rank on a chain is not part of the core |
//! | B28 data withheld | `Mute(Reply)` after `Only(Bundle)` |
//! | B29 floods, oversize, slow | `FetchFlood`, `Oversize`, `Slow`; slow readers of a connection in the tests of the sidecar's `net` |
//! | B30 replay | `Replay`; another market and epoch in `tests/market.rs` |
//! | B31 clocks | `Schedule::skew_ms`, `clocks_set`, `freezes` |
//! | B32 partitions | `Schedule::partitions`, at each phase in `tests/byzantine.rs` |
//! | B33 two replicas | `TwoReplicas` |
//! | B34 orders to few, two bodies | `HomeFault::OrderToFew`, `HomeFault::TwoBodies` |
//! | B35 shill bids | `FalseRecords::Shill`; what it does to a second price in `tests/byzantine.rs` |
//! | B36 ties | `Schedule::one_price`; that ties are uniform in the tests of `market` |
//! | B37 key generation | [`generation::KeyDeviation`]; each message in the tests of `sealed-bid` |
//! | B38 restart without memory | `Schedule::restarts` (looks on, as it must), `careless_restarts` (does not); with its log `logged_restarts`, and `stops` between any two records |
//! | B39 another's share | `StolenShare` |
//! | B40, B45 views | `TwoProposals`, `FalseProposal`, `Mute(Propose)`, `OldView`, `JunkAdmit`, `ForgedNewView`, `OtherSetInView`, `SetToProposer` |
//! | B41 partial bundles in turn | `PartialBundle`, with its cost in `tests/byzantine.rs` |
//! | B42 the gate | `LateOpen`, `Ungated` |
//! | B43 false proofs | `Frame`; every proof that a seat shows is judged again (I6) |
//! | B44, B46 orders out of turn | `FalseRecords::ForeignOrders`, `FalseRecords::AllOrders`, `HomeFault::FalseCertificate` |
//! | B47 waking the others late | `LastWake` |

pub mod bench;
mod controller;
pub mod costs;
mod deviation;
mod epochs;
pub mod explore;
pub mod generation;
mod invariants;
pub mod keys;
pub mod mock;
mod schedule;
pub mod sweep;
mod world;

pub use controller::{Answer, Controller};
pub use deviation::{Deviation, FalseRecords, KindName, all_deviations};
pub use epochs::NextEpoch;
pub use invariants::{Violation, Watch};
pub use schedule::{Report, Schedule};
pub use world::{Config, Event, Fault, Freeze, Hold, HomeFault, LearnError, Partition, Stop, World};

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
        nodes: vec![OfferNode::of(format!("{name}-node-0"), capacity)],
        rules: AcceptRules::any(),
        terms: vendue_market::BidTerms::default(),
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
