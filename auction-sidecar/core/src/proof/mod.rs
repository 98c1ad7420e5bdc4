//! Fault proofs: what a seat signed that no honest seat signs, as objects that prove it to anybody with the market
//! record.
//!
//! Inputs: a [`FaultProof`] and the record. Output of [`verify`]: who is guilty of what, or why nothing is proven. No
//! clock, no network, no state. Invariant: an honest seat satisfies no proof, under any schedule; [`Fault::Absent`]
//! holds this only where the network delivers in time.
//!
//! Only scored, because nobody can show them: a withheld share or vote, slow posting of certificates, a leaked share,
//! bundle data withheld after admission. Two certificates of one round need more than f faults; the seats in both are
//! guilty by their votes in the two.

mod absence;
mod award;
mod double;
mod garbage;
mod hidden;
mod lock;
mod message;
mod votes;

pub(crate) use absence::speaks_against;
pub use absence::{Absence, BundleHead};
pub use award::{Accused, WrongAward};
pub(crate) use double::place;
pub use double::{Double, SignedBundle};
pub use garbage::Garbage;
pub use hidden::{HiddenSet, OwnSet};
pub use lock::AgainstLock;
pub use message::BadMessage;
pub use votes::{Ballot, TwoVotes, Voted};

use crate::crypto::{Curves, Scheme};
use crate::evidence::received_hash_by;
use crate::record::MarketRecord;
use crate::wire::{Message, decode};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use vendue_market::encode::{from_hex, to_hex};

/// What a seat is guilty of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fault {
    /// Two bundles in one round.
    TwoBundles,
    /// Two SETs in one round.
    TwoSets,
    /// Two ADMITs, two LOCKs, two NEWVIEWs or two proposals in one view.
    TwoVotes,
    /// An ADMIT against an own lock, or for a proposal that does not follow from what it shows.
    AgainstLock,
    /// A NEWVIEW that leaves out the SET of its own that the seat had signed.
    HiddenSet,
    /// Two AWARDs in one round.
    TwoAwards,
    /// A bundle that too few seats got in time.
    Absent,
    /// An admitted bundle that cannot be read.
    Garbage,
    /// A seal share that is not the seat's.
    BadShare,
    /// A vote that does not verify, or a message whose justification does not.
    Unjustified,
    /// A vote for awards that do not follow from what was admitted.
    WrongAward,
}

/// How much a fault is to cost; the amounts are parameters of a market.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Severity {
    /// No software that follows the protocol does this.
    Severe,
    /// At least as much as absence.
    Small,
    /// Standing: small, doubles when repeated, decays.
    Standing,
}

impl Fault {
    /// What it costs.
    pub fn severity(self) -> Severity {
        match self {
            Fault::Absent => Severity::Standing,
            Fault::Garbage => Severity::Small,
            _ => Severity::Severe,
        }
    }
}

/// A signed message, as bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Signed(pub Vec<u8>);

impl Serialize for Signed {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.serialize_str(&to_hex(&self.0))
    }
}

impl<'de> Deserialize<'de> for Signed {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let text = String::deserialize(d)?;
        let bytes = from_hex(&text).ok_or_else(|| serde::de::Error::custom("not lower-case hex"))?;
        Ok(Self(bytes))
    }
}

/// Evidence against seats of one market.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum FaultProof {
    /// Two statements where one is allowed.
    Double(Double),
    /// Two votes where one is allowed, at least one of them in an aggregate.
    TwoVotes(TwoVotes),
    /// A vote against an own lock.
    AgainstLock(AgainstLock),
    /// A NEWVIEW without the own SET.
    HiddenSet(HiddenSet),
    /// A bundle that too few seats got in time.
    Absence(Box<Absence>),
    /// An unreadable bundle.
    Garbage(Garbage),
    /// One message that is wrong by itself.
    BadMessage(BadMessage),
    /// A vote for wrong awards.
    WrongAward(Box<WrongAward>),
}

/// Why a proof proves nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Unproven {
    /// A message in it is none, or of another kind than is needed.
    #[error("a message in the proof is malformed or of the wrong kind")]
    Malformed,
    /// Of another market or epoch.
    #[error("the proof is of another market or epoch")]
    Foreign,
    /// Not signed by the seat that it is said to be from.
    #[error("a signature in the proof does not verify")]
    Signature,
    /// The messages are not about the same seat, round and view.
    #[error("the messages in the proof do not belong together")]
    Unrelated,
    /// The certificate or commit does not verify.
    #[error("the certificate or commit in the proof does not verify")]
    Certificate,
    /// What is shown is not what was certified.
    #[error("the proof shows something else than what was certified")]
    NotCertified,
    /// Everything is as an honest seat would have done it.
    #[error("the proof shows nothing that an honest seat does not do")]
    Innocent,
}

/// What a proof comes to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// These seats are guilty of this.
    Guilty {
        /// The seats, ascending.
        seats: Vec<u16>,
        /// What they did.
        fault: Fault,
    },
    /// Nothing is proven.
    Unproven(Unproven),
}

type Judged = Result<(Vec<u16>, Fault), Unproven>;

/// Judges a proof by the public keys of a record that was checked before.
pub fn verify(proof: &FaultProof, record: &MarketRecord) -> Verdict {
    verify_by::<Curves>(proof, record)
}

/// [`verify`] with the signatures of a scheme.
pub fn verify_by<S: Scheme>(proof: &FaultProof, record: &MarketRecord) -> Verdict {
    let judged = match proof {
        FaultProof::Double(p) => p.judge::<S>(record),
        FaultProof::TwoVotes(p) => p.judge::<S>(record),
        FaultProof::AgainstLock(p) => p.judge::<S>(record),
        FaultProof::HiddenSet(p) => p.judge::<S>(record),
        FaultProof::Absence(p) => p.judge::<S>(record),
        FaultProof::Garbage(p) => p.judge::<S>(record),
        FaultProof::BadMessage(p) => p.judge::<S>(record),
        FaultProof::WrongAward(p) => p.judge::<S>(record),
    };
    match judged {
        Ok((seats, fault)) => Verdict::Guilty { seats, fault },
        Err(why) => Verdict::Unproven(why),
    }
}

impl FaultProof {
    /// The JSON form.
    pub fn to_json(&self) -> String {
        // Serialising to memory fails only for maps with non-string keys, which a proof does not have.
        serde_json::to_string(self).unwrap_or_default()
    }
    /// Reads the JSON form.
    pub fn from_json(text: &str) -> Result<Self, serde_json::Error> {
        serde_json::from_str(text)
    }
}

/// Decodes a message of a seat and checks that the seat signed it.
fn open<S: Scheme>(record: &MarketRecord, signed: &Signed) -> Result<Message, Unproven> {
    let message = decode(&signed.0, record.n()).map_err(|_| Unproven::Malformed)?;
    let header = &message.header;
    if header.market != record.short_id() || header.epoch != record.epoch {
        return Err(Unproven::Foreign);
    }
    if header.kind.is_from_home() {
        return Err(Unproven::Malformed);
    }
    let seat = record.seat(header.seat).ok_or(Unproven::Signature)?;
    let signature = message.signature.ok_or(Unproven::Malformed)?;
    let hash = received_hash_by::<S>(&record.market, &message, &signed.0);
    let good = S::verify_signature(&hash, &signature, &seat.evidence_key);
    if good { Ok(message) } else { Err(Unproven::Signature) }
}

#[cfg(test)]
mod tests;
#[cfg(test)]
mod vector_tests;
