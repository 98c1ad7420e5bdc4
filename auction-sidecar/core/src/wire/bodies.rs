//! Message bodies.
//!
//! Points and signatures stay byte arrays here: whether they are valid is judged where they are used.

use super::views::{NewView, Propose};
use super::{Header, SIGNATURE_LEN, Signers, View};
use crate::award::{AwardProof, Certificate};
use serde::{Deserialize, Serialize};
use vendue_market::encode::hex_array;
use vendue_market::{Digest, GpuModel, Order, Reason, tagged_hash};

/// Most orders listed in one round.
pub const MAX_ORDERS: usize = 4096;
/// Most bytes of a sealed payload.
pub const MAX_PAYLOAD: usize = 512 * 1024;
/// Most bytes of a dealing: that of 256 seats has fewer.
pub const MAX_DEALING: usize = 32 * 1024;
/// Most GPU models in a receipt.
pub const MAX_KNOWN_MODELS: usize = 64;
/// Most items in one FETCH.
pub const MAX_FETCH: usize = 256;

/// BUNDLE: all of a seat's bids of a round, sealed once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bundle {
    /// Orders that the seat knew, ascending.
    pub order_view: View,
    /// Key encapsulation, compressed G1.
    pub u: [u8; 48],
    /// Masked seed.
    pub v: [u8; 32],
    /// Encrypted payload.
    pub payload: Vec<u8>,
}

impl Bundle {
    /// d: names the bundle in sets.
    pub fn digest(&self, header: &Header) -> Digest {
        bundle_digest(header, &self.order_view.digest(), &self.u, &self.v, &self.payload_digest())
    }

    /// Digest of the encrypted payload.
    pub fn payload_digest(&self) -> Digest {
        tagged_hash("VENDUE-V1-PAYLOAD", &[&self.payload])
    }
}

/// d of a bundle whose order view and payload are known by their digests only.
pub(crate) fn bundle_digest(
    header: &Header,
    view: &Digest,
    u: &[u8; 48],
    v: &[u8; 32],
    payload: &Digest,
) -> Digest {
    tagged_hash("VENDUE-V1-BUNDLE", &[&header.to_bytes(), view, u, v, payload])
}

/// SET: the bundles that a seat held in time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SetMsg {
    /// d by seat; zero where none was held.
    pub held: Vec<Digest>,
    /// The FULL vote, present exactly if no entry is zero.
    pub full: Option<[u8; 48]>,
}

/// ADMIT: first vote of a view.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Admit {
    /// The view.
    pub view: u32,
    /// The admitted set.
    pub set: Digest,
    /// Digest of the view's proposal; zero in view 0.
    pub proposal: Digest,
    /// The vote.
    pub vote: [u8; 48],
}

/// Aggregated votes of several seats.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Quorum {
    /// Who voted.
    pub signers: Signers,
    /// The aggregated vote.
    pub aggregate: [u8; 48],
}

/// LOCK: second vote of a view, with the quorum of ADMITs that permits it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lock {
    /// The view.
    pub view: u32,
    /// The admitted set.
    pub set: Digest,
    /// q ADMITs.
    pub quorum: Quorum,
    /// The vote.
    pub vote: [u8; 48],
}

/// The proof that an admitted set is final.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Commit {
    /// All seats signed that their own set is complete and equal.
    Fast {
        /// Aggregate of all FULL votes.
        aggregate: [u8; 48],
    },
    /// A quorum LOCKed the set in one view.
    Locked {
        /// The view.
        view: u32,
        /// The LOCKs.
        quorum: Quorum,
    },
}

/// COMMIT: a commit on its own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CommitMsg {
    /// The admitted set.
    pub set: Digest,
    /// The proof that it is final.
    pub commit: Commit,
}

/// OPEN: a seal share, with the commit that permits it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OpenShare {
    /// The admitted set.
    pub set: Digest,
    /// The proof that it is final.
    pub commit: Commit,
    /// The share, compressed G2.
    pub share: [u8; 96],
}

/// AWARD: a vote for the round's awards.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AwardVote {
    /// Merkle root of the awards.
    pub root: Digest,
    /// The vote.
    pub vote: [u8; 48],
}

/// CERT: the certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cert {
    /// Merkle root of the awards.
    pub root: Digest,
    /// q AWARD votes.
    pub quorum: Quorum,
}

/// ORDER: an order's body; the evidence signature is the user's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OrderMsg {
    /// The order.
    pub order: Order,
}

/// AGAIN: an order's next body, to be listed before the last one could be; the evidence signature is the user's, of the
/// new body.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Again {
    /// The new body.
    pub order: Order,
    /// The body before it.
    pub before: Order,
    /// Certificate and proof that the round that listed `before` gave it to nobody.
    pub proof: Proof,
}

/// RECEIPT: a seat's word that it holds an order and will list it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Receipt {
    /// The order.
    pub order: Digest,
    /// The first round that starts one delay after the seat got the order: it can list the order from then on.
    pub from_round: u64,
    /// GPU models that the provider has at all, free or not, ascending.
    pub models: Vec<GpuModel>,
}

/// TAKEN: the user's word that a seat got the order; frees all other holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Taken {
    /// The order.
    pub order: Digest,
    /// The seat that has it.
    pub seat: u16,
}

/// CANCEL: the user's word that an order is withdrawn.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cancel {
    /// The order.
    pub order: Digest,
}

/// The user's word on a whole search: every body of it that was made up to that round is withdrawn.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Withdraw {
    /// The job's UID.
    pub job: String,
    /// Counts the orders of one job.
    pub attempt: u32,
    /// First round that a body made now would name.
    pub round: u64,
    /// A body that has its own last word, which may come before or after this one.
    pub except: Digest,
}

/// A certificate with the proof of one order's outcome, and the order itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Proof {
    /// The certificate.
    pub certificate: Certificate,
    /// The outcome's leaf and path.
    pub proof: AwardProof,
}

/// RESERVE: home asks a winner or stand-by to take hold of the devices.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reserve {
    /// Why the seat is asked.
    pub proof: Proof,
    /// The order, so that a seat that lost it can still serve it.
    pub order: Order,
    /// The user's signature of the order.
    pub order_signature: [u8; 65],
}

/// ACCEPT: the seat's controller holds the devices.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Accept {
    /// The order.
    pub order: Digest,
}

/// REFUSE: the seat cannot serve the order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refuse {
    /// The order.
    pub order: Digest,
    /// Why.
    pub reason: Reason,
}

/// DEALKEY: the key that values dealt to a seat are sealed to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DealKeyMsg {
    /// The key, compressed G1.
    pub key: [u8; 48],
    /// The digest of the commitment to the polynomial that the seat is going to deal.
    pub commitment: Digest,
}

/// DEAL: a dealing; who generates keys reads what is in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Deal {
    /// The dealing.
    pub dealing: Vec<u8>,
}

/// ACKS: the commitments that a seat holds good values of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Acks {
    /// Digest by dealer; zero where there is no good value.
    pub held: Vec<Digest>,
}

/// FETCH: asks a seat for data by digest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fetch {
    /// Bundles of the round.
    Bundles(Vec<Listed>),
    /// Orders.
    Orders(Vec<Digest>),
    /// The list A with this digest.
    Set(Digest),
    /// The outcome of an order, by certificate.
    Proof(Digest),
    /// Dealings of a key generation, by dealer and digest of the commitment.
    Dealings(Vec<Listed>),
}

/// A bundle by seat and d.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Listed {
    /// The seat.
    pub seat: u16,
    /// The bundle's digest.
    #[serde(with = "hex_array")]
    pub d: Digest,
}

/// REPLY: data that was asked for. It proves itself by digest or by its own signature.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reply {
    /// A whole signed BUNDLE message.
    Bundle(Vec<u8>),
    /// A whole signed ORDER message.
    Order(Vec<u8>),
    /// A list A.
    Set(Vec<Listed>),
    /// That a seat signed two bundles, which nobody asked for.
    TwoBundles {
        /// The seat.
        seat: u16,
        /// The digests of the bundles, ascending, with the seat's signatures.
        versions: [(Digest, [u8; SIGNATURE_LEN]); 2],
    },
    /// A whole signed DEAL message.
    Dealing(Vec<u8>),
}

/// Any body.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs)] // Each variant wraps the type of its name.
pub enum Body {
    Bundle(Bundle),
    Set(SetMsg),
    Admit(Admit),
    Lock(Lock),
    Open(OpenShare),
    Commit(CommitMsg),
    Award(AwardVote),
    NewView(NewView),
    Propose(Propose),
    Cert(Cert),
    Order(OrderMsg),
    Again(Box<Again>),
    Receipt(Receipt),
    Taken(Taken),
    Cancel(Cancel),
    /// See [`Withdraw`].
    Withdraw(Withdraw),
    Reserve(Box<Reserve>),
    Accept(Accept),
    Refuse(Refuse),
    Proof(Box<Proof>),
    Fetch(Fetch),
    Reply(Reply),
    /// See [`DealKeyMsg`].
    DealKey(DealKeyMsg),
    /// See [`Deal`].
    Deal(Deal),
    /// See [`Acks`].
    Acks(Acks),
}
