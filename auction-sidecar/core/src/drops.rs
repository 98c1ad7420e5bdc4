//! Counters of messages that were not used, by reason.

use std::collections::BTreeMap;

/// Why a message was dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum DropReason {
    /// It does not decode.
    Malformed,
    /// It is longer than accepted.
    Oversize,
    /// It belongs to another market or epoch.
    Foreign,
    /// The header names another sender than the transport does, or the sender may not send this kind.
    WrongSender,
    /// The signature or vote does not verify.
    BadSignature,
    /// Seen before.
    Duplicate,
    /// It contradicts an earlier message of the same sender.
    Conflict,
    /// It came after its time.
    Late,
    /// Its round is unknown, too far ahead or over.
    WrongRound,
    /// This seat only observes that round.
    Observing,
    /// Nobody asked for it or it names an unknown order.
    Unexpected,
    /// The sender's quota is used up.
    Quota,
}

impl DropReason {
    /// Every reason.
    pub const ALL: [DropReason; 12] = [
        DropReason::Malformed,
        DropReason::Oversize,
        DropReason::Foreign,
        DropReason::WrongSender,
        DropReason::BadSignature,
        DropReason::Duplicate,
        DropReason::Conflict,
        DropReason::Late,
        DropReason::WrongRound,
        DropReason::Observing,
        DropReason::Unexpected,
        DropReason::Quota,
    ];

    /// The name used as a metric label.
    pub fn name(self) -> &'static str {
        match self {
            DropReason::Malformed => "malformed",
            DropReason::Oversize => "oversize",
            DropReason::Foreign => "foreign",
            DropReason::WrongSender => "wrong_sender",
            DropReason::BadSignature => "bad_signature",
            DropReason::Duplicate => "duplicate",
            DropReason::Conflict => "conflict",
            DropReason::Late => "late",
            DropReason::WrongRound => "wrong_round",
            DropReason::Observing => "observing",
            DropReason::Unexpected => "unexpected",
            DropReason::Quota => "quota",
        }
    }
}

/// Dropped messages by reason.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Drops(BTreeMap<DropReason, u64>);

impl Drops {
    /// Counts one.
    pub fn add(&mut self, reason: DropReason) {
        let count = self.0.entry(reason).or_default();
        *count = count.saturating_add(1);
    }
    /// How many were dropped for this reason.
    pub fn count(&self, reason: DropReason) -> u64 {
        self.0.get(&reason).copied().unwrap_or_default()
    }
    /// How many were dropped in all.
    pub fn total(&self) -> u64 {
        self.0.values().fold(0, |a, b| a.saturating_add(*b))
    }
}
