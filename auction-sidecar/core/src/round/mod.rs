//! One round: from sealed bundles to a certificate.
//!
//! [`Round::handle`] takes decoded messages whose evidence signature was checked, local bids, order bodies and ticks,
//! and says what to send. After each input every step whose conditions hold is taken, in the order of the protocol:
//! bundle, set, admit, lock, commit, open, award, certificate. Where view 0 does not commit, a proposer leads each view
//! that follows. A commit of any view is accepted, since it proves itself.
//!
//! The seats agree on a new key in the same way: bundles then hold contributions in the clear, nothing is opened, and what is
//! voted for in the end is the key that follows.
//!
//! Invariants: one bundle, set and AWARD at most is ever signed, and one ADMIT, LOCK, NEWVIEW and PROPOSE in a view; no
//! share is sent without a commit; what is signed comes out as a record of the log before it comes out as a message; a
//! round that was recalled from the log signs no bundle, set, vote or proposal that is not in it.

mod accuse;
mod explain;
mod intake;
mod opening;
mod recall;
mod steps;
mod views;

pub use recall::RecallError;

use crate::award::{AwardTable, Certificate};
use crate::bid::LocalBids;
use crate::clearing::Held;
use crate::crypto::Crypto;
use crate::drops::DropReason;
use crate::evidence::message_hash_by;
use crate::justify;
use crate::log::LogRecord;
use crate::merkle::Tree;
use crate::proof::{Fault, FaultProof};
use crate::record::MarketRecord;
use crate::wire::{
    Body, Commit, CommitMsg, Header, Kind, Listed, MAX_MESSAGE, Message, NewView, Quorum, ShownSet, VoteWord,
};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use vendue_market::{Cleared, Digest, Order};

/// Input of a round.
#[derive(Debug, Clone)]
pub enum RoundInput {
    /// Time has passed.
    Tick,
    /// The answer to [`RoundOutput::NeedBids`]: bids with the orders that they are about, ascending.
    Bids(LocalBids),
    /// A message of this round whose shape, market, epoch, sender and evidence signature were checked.
    Message {
        /// The message.
        message: Box<Message>,
        /// Its bytes.
        bytes: Vec<u8>,
    },
    /// A BUNDLE of this round that was checked like any message, with its digest, which that took.
    Bundle {
        /// The message.
        message: Box<Message>,
        /// Its bytes.
        bytes: Vec<u8>,
        /// The bundle's digest.
        d: Digest,
    },
    /// Order bodies, by digest.
    Orders(Vec<(Digest, Arc<Order>)>),
    /// The answer to [`KeyStep::NeedContribution`].
    Contribution(Vec<u8>),
    /// A set that is final, as somebody else shows it, in a round about keys.
    Committed(CommitMsg),
    /// The answer to [`KeyStep::Agreed`].
    Key {
        /// Names the key that follows.
        root: Digest,
        /// Whether to vote for it; who voted for another key does not.
        vote: bool,
    },
}

/// What a round is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Subject {
    /// Bids, sealed; opened when the set is final, and cleared.
    Auction,
    /// Contributions to a key, in the clear; what follows from them is worked out by who runs the round.
    Keys,
}

/// What a round about keys asks for and gives.
#[derive(Debug, Clone, PartialEq)]
pub enum KeyStep {
    /// Give this seat's contribution before T1.
    NeedContribution,
    /// What was said by the seats of the admitted set, which is final.
    Agreed {
        /// The set.
        set: Digest,
        /// What they said.
        said: Vec<(Listed, Vec<u8>)>,
    },
    /// A quorum voted for the key that this seat found.
    Certified(Certificate),
}

/// Output of a round.
#[derive(Debug, Clone, PartialEq)]
pub enum RoundOutput {
    /// Make this durable before anything of the same call is carried out.
    Persist(LogRecord),
    /// Send to all other seats.
    Broadcast(Vec<u8>),
    /// Send to one seat.
    Send {
        /// The seat.
        to: u16,
        /// The message.
        bytes: Vec<u8>,
    },
    /// Give this seat's bids, none included, before the deadline; without an answer no bundle is sent.
    NeedBids {
        /// Bundles that arrive later are not listed, in milliseconds since 1970.
        deadline_ms: u64,
    },
    /// Give the bodies of these orders.
    NeedOrders(Vec<Digest>),
    /// The round is certified.
    Decided(Box<RoundDecided>),
    /// A message was not used.
    Dropped(DropReason),
    /// A seat did what no honest seat does.
    Evidence(Box<FaultProof>),
    /// Of a round about keys.
    Keys(KeyStep),
}

/// A certified round.
#[derive(Debug, Clone, PartialEq)]
pub struct RoundDecided {
    /// The certificate.
    pub certificate: Certificate,
    /// All leaves.
    pub table: Arc<AwardTable>,
    /// The tree over them.
    pub tree: Arc<Tree>,
    /// Every order's outcome with reasons and holdings, ascending by order.
    pub cleared: Arc<[Cleared]>,
    /// The bodies of these orders.
    pub orders: BTreeMap<Digest, Arc<Order>>,
}

/// Whether this seat has bid.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Bidding {
    /// The round has not started.
    Waiting,
    /// Bids were asked for.
    Asked,
    /// The bundle was sent.
    Sent,
    /// This seat was woken too late to take part before the votes.
    TooLate,
}

/// A vote with what it is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Ballot {
    set: Digest,
    /// The proposal that an ADMIT follows; zero for other votes and in view 0.
    proposal: Digest,
    vote: [u8; 48],
}

/// A justified proposal.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Proposal {
    digest: Digest,
    set: Digest,
    /// The view of the quorum of ADMITs that it follows.
    from: Option<u32>,
}

/// NEWVIEWs with their evidence signatures, by seat.
type Brought = BTreeMap<u16, (NewView, [u8; 65])>;

/// What clearing gave.
#[derive(Debug, Clone)]
struct Result {
    table: Arc<AwardTable>,
    tree: Arc<Tree>,
    root: Digest,
    cleared: Arc<[Cleared]>,
}

/// One round of a market, as one seat sees it.
#[derive(Clone)]
pub struct Round<C: Crypto> {
    record: Arc<MarketRecord>,
    crypto: Arc<C>,
    index: u16,
    round: u64,
    subject: Subject,
    now: u64,
    /// Whether the round is known from the log: before a restart this seat may have said more than it knows.
    recalled: bool,

    bidding: Bidding,
    bundles: BTreeMap<Listed, Held>,
    /// What this seat sealed in its own bundle.
    own_plain: Option<(Listed, Vec<u8>)>,
    in_time: BTreeMap<u16, Digest>,
    sets: BTreeMap<u16, ShownSet>,
    fulls: BTreeMap<Digest, BTreeMap<u16, [u8; 48]>>,
    /// Seats whose FULL vote was not checked yet.
    unchecked: BTreeSet<u16>,
    /// What complete SETs list, by digest.
    digests: BTreeMap<Vec<Digest>, Digest>,
    set_sent: bool,

    /// The view that this seat votes in, and since when.
    view: u32,
    entered_ms: u64,
    /// Votes by view and seat.
    admits: BTreeMap<(u32, u16), Ballot>,
    admit_quorums: BTreeMap<(u32, Digest), Quorum>,
    locks: BTreeMap<(u32, u16), Ballot>,
    /// The last view that this seat sent ADMIT in.
    admitted: Option<u32>,
    /// The last view that this seat sent LOCK in, and the set.
    lock: Option<(u32, Digest)>,
    /// Hashes of the NEWVIEWs that were found good, by view and seat.
    new_views: BTreeMap<u32, BTreeMap<u16, Digest>>,
    /// What the views in which this seat proposes start from.
    to_propose: BTreeMap<u32, Brought>,
    proposals: BTreeMap<u32, Proposal>,
    /// NEWVIEWs without their sender's own SET, by view and seat.
    bare: BTreeSet<(u32, u16)>,

    commit: Option<(Digest, Commit)>,
    /// A commit of another set, which more than f faulty seats can make.
    other_commit: Option<(Digest, Commit)>,
    opens: BTreeMap<u16, [u8; 96]>,
    /// Seats that signed a share that is not theirs: one is enough.
    bad_openers: BTreeSet<u16>,
    open_sent: bool,
    list: Option<Vec<Listed>>,
    /// Lists behind the digests that this seat voted for, FULL or ADMIT. SETs that come later change what would be
    /// derived, not what was voted for, and the commit may name any of these.
    voted_lists: BTreeMap<Digest, Vec<Listed>>,
    opened: Option<C::Opened>,
    /// The orders that the list may award, once all its bundles are there.
    candidates: Option<BTreeSet<Digest>>,
    orders: BTreeMap<Digest, Arc<Order>>,
    /// Whether the list, all its bundles and all bodies of the candidates are here.
    complete: bool,
    orders_asked: BTreeSet<Digest>,
    result: Option<Result>,
    /// Whether what was agreed about a key was given out, and the root of what follows.
    agreed: bool,
    key_root: Option<Digest>,
    award_votes: BTreeMap<u16, Ballot>,
    certificate: Option<Certificate>,
    decided: bool,
    /// Whether the last input told this seat something.
    learned: bool,

    /// First votes, shares and proposals by kind, view and seat, as evidence.
    spoken: BTreeMap<(Kind, u32, u16), Vec<u8>>,
    /// Second SETs of owners, seen in the message that is being taken in.
    other_sets: Vec<ShownSet>,
    accused: BTreeSet<(u16, Fault)>,
    /// Whether what this round cleared to convicts those who voted for something else, once that was judged.
    judged_awards: Option<bool>,

    /// Own messages but the bundle, in the order sent.
    sent: Vec<(Header, Vec<u8>)>,
    resend_at: u64,
    fetch_at: u64,
    helped: BTreeMap<u16, u64>,
    fetches: BTreeMap<u16, u32>,
}

impl<C: Crypto> Round<C> {
    /// A round that this seat takes part in from `now_ms` on.
    pub fn new(record: Arc<MarketRecord>, crypto: Arc<C>, index: u16, round: u64, now_ms: u64) -> Self {
        let params = record.params;
        let bidding = if now_ms >= params.t1(round) { Bidding::TooLate } else { Bidding::Waiting };
        Self {
            resend_at: params.t2(round),
            fetch_at: 0,
            record,
            crypto,
            index,
            round,
            subject: Subject::Auction,
            now: now_ms,
            recalled: false,
            bidding,
            bundles: BTreeMap::new(),
            own_plain: None,
            in_time: BTreeMap::new(),
            sets: BTreeMap::new(),
            fulls: BTreeMap::new(),
            unchecked: BTreeSet::new(),
            digests: BTreeMap::new(),
            set_sent: false,
            view: 0,
            entered_ms: now_ms,
            admits: BTreeMap::new(),
            admit_quorums: BTreeMap::new(),
            locks: BTreeMap::new(),
            admitted: None,
            lock: None,
            new_views: BTreeMap::new(),
            to_propose: BTreeMap::new(),
            proposals: BTreeMap::new(),
            bare: BTreeSet::new(),
            commit: None,
            other_commit: None,
            opens: BTreeMap::new(),
            bad_openers: BTreeSet::new(),
            open_sent: false,
            list: None,
            voted_lists: BTreeMap::new(),
            opened: None,
            candidates: None,
            orders: BTreeMap::new(),
            complete: false,
            orders_asked: BTreeSet::new(),
            result: None,
            agreed: false,
            key_root: None,
            award_votes: BTreeMap::new(),
            certificate: None,
            decided: false,
            learned: false,
            spoken: BTreeMap::new(),
            other_sets: Vec::new(),
            accused: BTreeSet::new(),
            judged_awards: None,
            sent: Vec::new(),
            helped: BTreeMap::new(),
            fetches: BTreeMap::new(),
        }
    }

    /// A round in which the seats agree on contributions to a key. `record` is of a market of its own, so that nothing
    /// that is signed here means anything in an auction.
    pub(crate) fn about_keys(
        record: Arc<MarketRecord>,
        crypto: Arc<C>,
        index: u16,
        round: u64,
        now_ms: u64,
    ) -> Self {
        Self { subject: Subject::Keys, ..Self::new(record, crypto, index, round, now_ms) }
    }

    /// Takes one input and says what to do.
    pub fn handle(&mut self, now_ms: u64, input: RoundInput) -> Vec<RoundOutput> {
        self.now = now_ms;
        let mut out = Vec::new();
        self.learned = false;
        match input {
            RoundInput::Tick => {}
            RoundInput::Bids(bids) => self.send_bundle(&bids, &mut out),
            RoundInput::Message { message, bytes } => self.hear(*message, None, bytes, &mut out),
            RoundInput::Bundle { message, bytes, d } => self.hear(*message, Some(d), bytes, &mut out),
            RoundInput::Orders(orders) => self.take_orders(orders),
            RoundInput::Contribution(bytes) => self.send_contribution(bytes, &mut out),
            RoundInput::Key { root, vote } => self.take_key(root, vote, &mut out),
            RoundInput::Committed(CommitMsg { set, commit }) => {
                let taken = self.take_commit(set, commit, &mut out);
                out.extend(taken.err().map(RoundOutput::Dropped));
            }
        }
        self.progress(&mut out);
        out
    }

    /// Takes a message in and draws its conclusions; `d` is the digest of a bundle, where it is known.
    fn hear(&mut self, message: Message, d: Option<Digest>, bytes: Vec<u8>, out: &mut Vec<RoundOutput>) {
        let Header { seat: from, kind, .. } = message.header;
        // A bundle keeps its bytes itself; of the rest they are what proves who said it.
        let (for_bundle, seen) = match kind {
            Kind::Bundle => (bytes, Self::look(&message, vec![])),
            _ => (vec![], Self::look(&message, bytes)),
        };
        let known = self.known();
        let taken = self.intake(message, d, for_bundle, out);
        self.conclude(seen, taken, out);
        self.learned = taken.is_ok() || self.known() != known;
        if let Err(reason) = taken {
            // Who repeats itself, or goes on to another view, does not know what is known here.
            if reason == DropReason::Duplicate || matches!(kind, Kind::NewView | Kind::Propose) {
                self.help(from, out);
            }
            out.push(RoundOutput::Dropped(reason));
        }
    }

    /// Takes every step whose conditions hold.
    fn progress(&mut self, out: &mut Vec<RoundOutput>) {
        self.ask_for_bids(out);
        self.send_set(out);
        self.enter_view(out);
        self.send_admit(out);
        self.propose(out);
        self.admit_proposal(out);
        self.send_lock(out);
        self.find_commit(out);
        self.send_open(out);
        self.resolve(out);
        self.certify(out);
        self.accuse_wrong_awards(out);
        self.resend(out);
    }

    /// When [`Round::handle`] must be called next, at the latest.
    pub fn next_wake(&self) -> u64 {
        let p = &self.record.params;
        let when = |holds: bool, at: u64| if holds { at } else { 0 };
        let (voting, committed) = (self.commit.is_none() && self.votes(), self.commit.is_some());
        let gated = committed && !self.open_sent;
        let times = [
            p.t0(self.round),
            p.t1(self.round),
            p.t2(self.round),
            p.expiry(self.round),
            when(voting, p.view_ends(self.round, self.view)),
            when(voting, p.x(self.round)),
            when(voting, self.entered_ms + 2 * p.delay_ms),
            when(!self.decided, self.resend_at),
            when(committed && !self.decided, self.fetch_at),
            if gated { p.gate(self.round, self.now) } else { 0 },
        ];
        times.into_iter().filter(|t| *t > self.now).min().unwrap_or(self.now.saturating_add(p.delay_ms))
    }

    /// Whether the round is known from the log: it signs no vote any more.
    pub fn is_recalled(&self) -> bool {
        self.recalled
    }
    /// Whether the round is certified and this seat knows its awards.
    pub fn is_decided(&self) -> bool {
        self.decided
    }
    /// Its number.
    pub fn number(&self) -> u64 {
        self.round
    }
    /// The view that this seat votes in.
    pub fn view(&self) -> u32 {
        self.view
    }
    /// Whether the admitted set is final.
    pub fn is_committed(&self) -> bool {
        self.commit.is_some()
    }
    /// The admitted set and why it is final.
    pub fn commit(&self) -> Option<&(Digest, Commit)> {
        self.commit.as_ref()
    }
    /// The beacon, once shares of a quorum are combined.
    pub fn beacon(&self) -> Option<Digest> {
        self.opened.as_ref().map(|opened| self.crypto.beacon(opened))
    }
    /// The root of the awards that follow, and every order's outcome.
    pub fn cleared(&self) -> Option<(Digest, &[Cleared])> {
        self.result.as_ref().map(|result| (result.root, &*result.cleared))
    }
    /// The certificate.
    pub fn certificate(&self) -> Option<&Certificate> {
        self.certificate.as_ref()
    }
    /// The bodies of the round's orders, as far as they are known.
    pub fn orders(&self) -> &BTreeMap<Digest, Arc<Order>> {
        &self.orders
    }
    /// Whether this seat has sent its share.
    pub fn has_opened(&self) -> bool {
        self.open_sent
    }

    fn n(&self) -> usize {
        usize::from(self.record.n())
    }
    fn q(&self) -> usize {
        usize::from(self.record.q())
    }
    fn f(&self) -> usize {
        usize::from(self.record.f())
    }

    fn header(&self, body: &Body) -> Header {
        Header {
            kind: body.kind(),
            market: self.record.short_id(),
            epoch: self.record.epoch,
            round: self.round,
            seat: self.index,
        }
    }

    /// Signs (where the kind is signed) and encodes a message.
    fn encode(&self, body: Body) -> (Header, Vec<u8>) {
        let message = self.sign(body);
        (message.header, message.encode())
    }

    fn sign(&self, body: Body) -> Message {
        let header = self.header(&body);
        let hash = || message_hash_by::<C::Scheme>(&self.record.market, &header, &body);
        let signature = header.kind.is_signed().then(|| self.crypto.sign(&hash()));
        Message { header, body, signature }
    }

    /// Sends to all other seats, and keeps the bytes so that the same are sent again. Gives the evidence signature.
    fn broadcast(&mut self, body: Body, out: &mut Vec<RoundOutput>) -> Option<[u8; 65]> {
        let message = self.sign(body);
        let bytes = message.encode();
        // What nobody decodes is not said, and not kept either.
        if bytes.len() > MAX_MESSAGE {
            return None;
        }
        self.sent.push((message.header, bytes.clone()));
        self.persist_said(&bytes, out);
        out.push(RoundOutput::Broadcast(bytes));
        message.signature
    }

    /// What a restart must not contradict.
    fn persist_said(&self, bytes: &[u8], out: &mut Vec<RoundOutput>) {
        out.push(RoundOutput::Persist(LogRecord::Said { at_ms: self.now, bytes: bytes.to_vec() }));
    }

    /// What a vote of this round signs.
    fn vote_message(&self, word: VoteWord, view: u32, digest: &Digest) -> Vec<u8> {
        justify::vote_message(&self.record, self.round, word, view, digest)
    }
}

#[cfg(test)]
mod bundle_tests;
#[cfg(test)]
pub(crate) mod tests;
#[cfg(test)]
mod view_tests;
#[cfg(test)]
mod vote_tests;
