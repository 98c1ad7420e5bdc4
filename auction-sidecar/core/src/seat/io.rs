//! What goes into a seat and what comes out.

use crate::award::{AwardProof, AwardTable, Certificate};
use crate::log::LogRecord;
use crate::proof::FaultProof;
use crate::record::Peer;
use std::sync::Arc;
use vendue_market::{Digest, GpuModel, Offer, Order, Outcome, Price, Reason};

/// Input of a seat.
#[derive(Debug, Clone)]
pub enum SeatInput {
    /// Bytes from a member that the transport authenticated.
    Message {
        /// Who sent them.
        from: Peer,
        /// The message.
        bytes: Vec<u8>,
    },
    /// Time has passed.
    Tick,
    /// What the provider sells now; replaces what it sold before.
    Offers {
        /// Offers with the capacity that nobody holds.
        offers: Vec<Offer>,
        /// GPU models that the provider has at all, free or not.
        models: Vec<GpuModel>,
    },
    /// The controller's answer to [`SeatOutput::Hold`].
    Reserved {
        /// The order.
        order: Digest,
        /// The round of the award that was asked for, from [`HoldRequest::certificate`].
        round: u64,
        /// Ok when the devices are held; from then on they must be absent from the offers.
        result: Result<(), Reason>,
    },
}

/// Output of a seat.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum SeatOutput {
    /// Make this durable before anything else of the same call is carried out, and of later calls.
    Persist(Box<LogRecord>),
    /// Send to all other seats.
    Broadcast(Vec<u8>),
    /// Send to one member.
    Send {
        /// The member.
        to: Peer,
        /// The message.
        bytes: Vec<u8>,
    },
    /// A round is decided and certified.
    Decided(Box<Decided>),
    /// A round ended without a certificate; its orders are taken up again.
    Expired {
        /// The round.
        round: u64,
        /// Orders that this seat had listed in it.
        orders: Vec<Digest>,
    },
    /// Ask the controller to take hold of devices for an order that this seat won or stands by for.
    Hold(Box<HoldRequest>),
    /// A held or requested order is no longer this seat's business: let go of the devices.
    Released {
        /// The order.
        order: Digest,
        /// Why.
        cause: ReleaseCause,
    },
    /// A seat did what no honest seat does; shown once for each seat, fault and round.
    Evidence(Box<FaultProof>),
    /// The user chose this seat: the workload comes from that home.
    Taken {
        /// The order.
        order: Digest,
        /// The home that placed it.
        home: u16,
    },
}

/// Why a hold ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReleaseCause {
    /// Another seat has the order.
    TakenElsewhere,
    /// The user withdrew it.
    Cancelled,
    /// The award expired before the user chose.
    Expired,
}

/// What a decided round means, in whole and for this seat.
#[derive(Debug, Clone, PartialEq)]
pub struct Decided {
    /// The certificate.
    pub certificate: Certificate,
    /// All leaves under the award root; gives each order's proof.
    pub table: Arc<AwardTable>,
    /// Every order of the round with its outcome, ascending.
    pub outcomes: Vec<(Digest, Outcome)>,
    /// What became of this seat's own records.
    pub own: Vec<OwnResult>,
    /// Milliseconds from the start of the round to the certificate.
    pub took_ms: u64,
}

/// What became of this seat's record for one order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OwnResult {
    /// The order.
    pub order: Digest,
    /// The job's UID.
    pub job: String,
    /// The offer that was bid, by its local name.
    pub offer: Option<String>,
    /// This seat's own price.
    pub price: Option<Price>,
    /// GPUs that the order asks for.
    pub gpus: u32,
    /// The result.
    pub result: BidResult,
}

/// How a seat fared on one order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BidResult {
    /// It won.
    Won,
    /// It stands by, counted from 1.
    StandBy {
        /// Position among the stand-bys.
        rank: u8,
    },
    /// It bid and lost.
    Lost,
    /// It did not bid, or its bid was not feasible.
    NoBid(Reason),
}

/// An order that a home asks this seat to hold devices for. Certificate and proof are verified.
#[derive(Debug, Clone, PartialEq)]
pub struct HoldRequest {
    /// The order.
    pub order: Order,
    /// The user's signature of it.
    pub order_signature: [u8; 65],
    /// The home that placed it.
    pub home: u16,
    /// The round's certificate.
    pub certificate: Certificate,
    /// The proof of the award.
    pub proof: AwardProof,
    /// 0 for the winner, then the stand-bys.
    pub rank: u8,
    /// Price per GPU-hour that this seat gets.
    pub price: Price,
    /// The offer that was bid, by its local name.
    pub offer: String,
    /// Hold no longer than this without [`SeatOutput::Taken`], in milliseconds since 1970.
    pub expires_ms: u64,
}
