//! What a seat decided in a round, step by step.
//!
//! Inputs: what it signed, as its log has it, and what changed in the state machine that was given the same. Output: the
//! steps in the order of time and, within one time, of the protocol.

use super::lookup::Lookup;
use crate::log::LogRecord;
use crate::round::Round;
use crate::wire::{Body, Commit, Message, decode};
use vendue_market::{Digest, RecordKind};

/// A step, and when it was taken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decision {
    /// The seat's time.
    pub at_ms: u64,
    /// The step.
    pub step: Step,
}

/// What a seat decides in a round, or finds decided.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Its process was started anew.
    Restart,
    /// It sealed what it bids.
    Bundle {
        /// Orders that it lists.
        orders: usize,
        /// Orders that it bids on.
        bids: usize,
    },
    /// It said which bundles it had in time.
    Set {
        /// Of so many seats.
        listed: usize,
        /// Whether it votes for all of them at once.
        full: bool,
    },
    /// It gave a view up and told the proposer of the next one what it holds.
    NewView {
        /// The next one.
        view: u32,
    },
    /// It proposed a set.
    Propose {
        /// The view.
        view: u32,
        /// The set.
        set: Digest,
    },
    /// Its first vote for a set.
    Admit {
        /// The view.
        view: u32,
        /// The set.
        set: Digest,
    },
    /// Its second vote, after a quorum of first ones.
    Lock {
        /// The view.
        view: u32,
        /// The set.
        set: Digest,
    },
    /// The set is final.
    Committed {
        /// The set.
        set: Digest,
        /// Why.
        commit: Commit,
    },
    /// It sent its share.
    Share,
    /// A quorum of shares opened the round.
    Opened {
        /// The beacon.
        beacon: Digest,
    },
    /// It voted for the awards.
    Award {
        /// Their root.
        root: Digest,
    },
    /// A quorum did.
    Certified {
        /// The root.
        root: Digest,
    },
}

impl Step {
    /// Its place among the steps of one time: view, then phase.
    fn place(&self) -> (u32, u8) {
        match self {
            Step::Restart => (0, 0),
            Step::Bundle { .. } => (0, 1),
            Step::Set { .. } => (0, 2),
            Step::NewView { view } => (*view, 3),
            Step::Propose { view, .. } => (*view, 4),
            Step::Admit { view, .. } => (*view, 5),
            Step::Lock { view, .. } => (*view, 6),
            Step::Committed { .. } => (u32::MAX, 0),
            Step::Share => (u32::MAX, 1),
            Step::Opened { .. } => (u32::MAX, 2),
            Step::Award { .. } => (u32::MAX, 3),
            Step::Certified { .. } => (u32::MAX, 4),
        }
    }

    /// The step that a message of the seat is.
    fn of(message: &Message, past: &[&LogRecord]) -> Option<Self> {
        Some(match &message.body {
            Body::Bundle(bundle) => Step::Bundle { orders: bundle.order_view.len(), bids: bids(past) },
            Body::Set(set) => Step::Set {
                listed: set.held.iter().filter(|d| **d != [0; 32]).count(),
                full: set.full.is_some(),
            },
            Body::NewView(v) => Step::NewView { view: v.view },
            Body::Propose(p) => Step::Propose { view: p.view, set: p.set },
            Body::Admit(a) => Step::Admit { view: a.view, set: a.set },
            Body::Lock(l) => Step::Lock { view: l.view, set: l.set },
            Body::Open(_) => Step::Share,
            Body::Award(a) => Step::Award { root: a.root },
            _ => return None,
        })
    }
}

/// The set or root that a message is for.
pub(super) fn subject(bytes: &[u8], n: u16) -> Option<Digest> {
    match Step::of(&decode(bytes, n).ok()?, &[])? {
        Step::Propose { set, .. } | Step::Admit { set, .. } | Step::Lock { set, .. } => Some(set),
        Step::Award { root } => Some(root),
        _ => None,
    }
}

/// On how many orders the last bids before are.
fn bids(past: &[&LogRecord]) -> usize {
    let last = past.iter().rev().find_map(|r| match r {
        LogRecord::Bids { bids, .. } => Some(bids),
        _ => None,
    });
    last.map_or(0, |b| b.records.iter().filter(|r| matches!(r.kind, RecordKind::Bid { .. })).count())
}

/// The steps of a round as they become known.
#[derive(Debug, Default)]
pub(super) struct Story {
    steps: Vec<Decision>,
    committed: bool,
    opened: bool,
    certified: bool,
}

impl Story {
    /// A restart; what is known from the log is not decided again.
    pub(super) fn restart(&mut self, at_ms: u64) {
        self.steps.push(Decision { at_ms, step: Step::Restart });
    }

    /// A message that the seat signed, and that follows.
    pub(super) fn said(&mut self, at_ms: u64, bytes: &[u8], n: u16, past: &[&LogRecord]) {
        let step = decode(bytes, n).ok().and_then(|message| Step::of(&message, past));
        self.steps.extend(step.map(|step| Decision { at_ms, step }));
    }

    /// What the state machine found since it was looked at last.
    pub(super) fn look(&mut self, at_ms: u64, machine: &Round<Lookup>) {
        if let Some((set, commit)) = machine.commit().filter(|_| !self.committed) {
            self.committed = true;
            self.steps.push(Decision { at_ms, step: Step::Committed { set: *set, commit: commit.clone() } });
        }
        if let Some(beacon) = machine.beacon().filter(|_| !self.opened) {
            self.opened = true;
            self.steps.push(Decision { at_ms, step: Step::Opened { beacon } });
        }
        if let Some(certificate) = machine.certificate().filter(|_| !self.certified) {
            self.certified = true;
            self.steps.push(Decision { at_ms, step: Step::Certified { root: certificate.root } });
        }
    }

    /// All steps in their order.
    pub(super) fn tell(mut self) -> Vec<Decision> {
        self.steps.sort_by_key(|d| (d.at_ms, d.step.place()));
        self.steps
    }
}
