//! The market's vocabulary and its one matcher.
//!
//! Money, requirements, capacity, orders, reasons, the function that says whether an order fits on given nodes,
//! the function that turns opened bids into awards, and the one that explains them. The same [`fit`] serves screening
//! at home, the bid engine of a seat, and clearing, so the three can never disagree about what "fits" means.
//!
//! Inputs and outputs are plain values: no clock, no randomness, no I/O. Everything that is signed or hashed has
//! exactly one encoding (see [`encode`]); a value that decodes re-encodes to the same bytes.

pub mod encode;

mod capacity;
mod clear;
mod fit;
mod money;
mod order;
mod reason;
mod requirements;
mod rules;
mod terms;

pub use capacity::{
    AcceptRules, MAX_NODES, MAX_OFFERS, NodeCapacity, Offer, OfferCapacity, OfferNode, commit_devices,
    glob_match,
};
pub use clear::{
    Award, Cleared, ClearingInput, Explanation, Holding, ListedOrder, NoBid, OpenedBundle, Outcome,
    RecordKind, STAND_BYS, SeatVerdict, StandBy, Verdict, clear, explain, rank,
};
pub use fit::{Free, Node, Placement, Used, fit, fit_offer, fits, take};
pub use money::{Cost, MoneyError, Price};
pub use order::{MAX_JOB, Order, Unserved, commitment};
pub use reason::{Histogram, Reason};
pub use requirements::{GpuModel, ModelError, Requirements, RequirementsError};
pub use rules::{
    Bidder, ClearingRules, FIRST_RULES, LATEST_RULES, MAX_STANDING, RulesError, ScoreWeights, SeatFacts,
};
pub use terms::{BidTerms, MAX_REGION, MAX_REGIONS, SealedCeiling, Terms, is_region};

/// A SHA-256 digest.
pub type Digest = [u8; 32];

/// SHA-256 over a domain tag and parts, each part preceded by its length so that no two inputs collide.
pub fn tagged_hash(tag: &str, parts: &[&[u8]]) -> Digest {
    use sha2::Digest as _;
    let mut hasher = sha2::Sha256::new();
    for part in std::iter::once(tag.as_bytes()).chain(parts.iter().copied()) {
        hasher.update((part.len() as u64).to_be_bytes());
        hasher.update(part);
    }
    hasher.finalize().into()
}
