//! What goes into a home and what comes out.

use crate::award::{AwardProof, Certificate};
use std::collections::BTreeSet;
use vendue_market::{Digest, GpuModel, Histogram, Order, Price, Reason, Requirements, Terms};

/// An order to be made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewOrder {
    /// The job's UID.
    pub job: String,
    /// Counts the orders of one job.
    pub attempt: u32,
    /// What is needed.
    pub requirements: Requirements,
    /// What is asked for beyond that.
    pub terms: Box<Terms>,
    /// Commitment to the workload.
    pub commitment: Digest,
    /// How long to look for a provider, as a time in milliseconds since 1970.
    pub expires_ms: u64,
}

/// Input of a home.
// Few of these exist at a time; boxing would only make them harder to read.
#[allow(clippy::large_enum_variant)]
#[derive(Debug, Clone)]
pub enum HomeInput {
    /// Bytes from a seat that the transport authenticated.
    Message {
        /// The seat.
        from: u16,
        /// The message.
        bytes: Vec<u8>,
    },
    /// Time has passed.
    Tick,
    /// Make, sign and send an order. The same job and attempt again changes nothing; after a restart it makes another
    /// order, and seats drop the one before.
    Submit(Box<NewOrder>),
    /// The same for an order with a ceiling that nobody knows before its round is opened. Each body has it sealed to its own
    /// first round. A home that is started anew does not know it any more: then the last body's round is the last.
    SubmitSealed {
        /// The order, without a sealed ceiling in its terms.
        order: Box<NewOrder>,
        /// The ceiling.
        ceiling: Price,
    },
    /// After a restart: go on with an order that was awarded, and with its choice if one was stored.
    Resume {
        /// The order as it was signed.
        order: Box<Order>,
        /// The stored choice.
        choice: Option<Choice>,
    },
    /// The choice of an order is stored durably.
    Stored {
        /// The order.
        order: Digest,
    },
    /// The choice of an order is not stored and never will be.
    NotStored {
        /// The order.
        order: Digest,
    },
    /// Withdraw all orders of a job's attempt, also those that were made before a restart.
    Withdraw {
        /// The job's UID.
        job: String,
        /// Counts the orders of one job.
        attempt: u32,
    },
    /// Withdraw an order, also one that was made before a restart.
    Cancel {
        /// The order.
        order: Digest,
    },
    /// Forget an order that is closed.
    Forget {
        /// The order.
        order: Digest,
    },
}

/// The seat that gets an order. Once stored it never changes.
#[derive(Debug, Clone, PartialEq)]
pub struct Choice {
    /// The order.
    pub order: Digest,
    /// The seat.
    pub seat: u16,
    /// 0 for the winner, then the stand-bys.
    pub rank: u8,
    /// The seat's price per GPU-hour.
    pub price: Price,
    /// The round's certificate.
    pub certificate: Certificate,
    /// The proof of the award.
    pub proof: AwardProof,
}

/// Output of a home.
// Few of these exist at a time; boxing would only make them harder to read.
#[allow(clippy::large_enum_variant)]
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum HomeOutput {
    /// Send to all seats.
    Broadcast(Vec<u8>),
    /// Send to one seat.
    Send {
        /// The seat.
        seat: u16,
        /// The message.
        bytes: Vec<u8>,
    },
    /// An order was made and signed; it is named by this digest from now on.
    Ordered {
        /// The digest.
        digest: Digest,
        /// The order.
        order: Box<Order>,
        /// The user's signature.
        signature: [u8; 65],
        /// When its first round starts.
        starts_ms: u64,
    },
    /// Another seat holds the order.
    Received {
        /// The order.
        order: Digest,
        /// Seats that hold it.
        seats: BTreeSet<u16>,
        /// Whether f + 1 seats do, so that its round will serve it.
        enough: bool,
        /// GPU models that these seats have at all.
        models: BTreeSet<GpuModel>,
    },
    /// A certified round gave the order to nobody and it is listed again at once, in a new body: from now on the order
    /// is named by that body's digest. What is said about it under the old one is still understood.
    Relisted {
        /// The digest so far.
        order: Digest,
        /// The digest from now on.
        digest: Digest,
    },
    /// A certified round gave the order to a seat.
    Awarded {
        /// The order.
        order: Digest,
        /// The body that was awarded.
        body: Box<Order>,
        /// The user's signature of it.
        signature: [u8; 65],
        /// The certificate, verified.
        certificate: Certificate,
        /// The proof, verified.
        proof: AwardProof,
    },
    /// A certified round gave the order to nobody.
    NotAwarded {
        /// The order.
        order: Digest,
        /// The round.
        round: u64,
        /// Why, by provider.
        histogram: Histogram,
        /// GPU models that the market's seats have at all.
        models: BTreeSet<GpuModel>,
        /// When it is tried again; `None` when its time is over.
        retry_ms: Option<u64>,
    },
    /// The order's round should have given a result by now; it still may.
    Delayed {
        /// The order.
        order: Digest,
        /// The round.
        round: u64,
        /// Seats that hold the order; fewer than a quorum of the seats cannot decide a round.
        receipts: u16,
        /// When it is tried again if no result comes.
        retry_ms: u64,
    },
    /// The order's round ended without a certificate that names it.
    RoundMissed {
        /// The order.
        order: Digest,
        /// The round.
        round: u64,
        /// Seats that hold the order.
        receipts: u16,
        /// When it is tried again.
        retry_ms: u64,
    },
    /// A seat was asked to hold the devices.
    Reserving {
        /// The order.
        order: Digest,
        /// The seat.
        seat: u16,
        /// 0 for the winner, then the stand-bys.
        rank: u8,
    },
    /// A seat refused or did not answer in time.
    PassedOver {
        /// The order.
        order: Digest,
        /// The seat.
        seat: u16,
        /// Its reason; none when it did not answer.
        reason: Option<Reason>,
    },
    /// Winner and stand-bys all failed, or the choice could not be stored.
    Unserved {
        /// The order.
        order: Digest,
        /// When it is tried again.
        retry_ms: u64,
    },
    /// A seat holds the devices: store this durably, then give [`HomeInput::Stored`]; once it is sure that it is not
    /// stored and never will be, give [`HomeInput::NotStored`]. Repeated until either comes.
    Choose(Box<Choice>),
    /// The choice is stored and announced: send the workload to this seat and no other.
    HandOver {
        /// The order.
        order: Digest,
        /// The seat.
        seat: u16,
    },
    /// The time to look for a provider is over.
    GivenUp {
        /// The order.
        order: Digest,
    },
}
