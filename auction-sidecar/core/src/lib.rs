//! The auction protocol SBA-1 as plain state machines: no network, no clock, no random source, no Kubernetes.
//!
//! # Driving a seat
//! A process that holds a seat owns one [`Seat`] and calls [`Seat::handle`] with the time in milliseconds since 1970
//! and an [`SeatInput`]; it does what the returned [`SeatOutput`]s say. It also calls `handle(now, SeatInput::Tick)`
//! no later than [`Seat::next_wake`]; ticking early or often is harmless. There are no other timers.
//! - `SeatInput::Offers` replaces what the provider sells. Send it at start and on every change; offered capacity is
//!   what nobody holds. Capacity that an accepted award holds must be gone from it before `SeatInput::Reserved`.
//! - `SeatInput::Message { from, bytes }`: `from` is who the *transport* authenticated
//!   ([`MarketRecord::peer`]). Anything malformed, foreign or repeated is dropped and counted in [`Seat::dropped`].
//! - `SeatOutput::Persist` is to be durable before anything else of the same call, or of a later one, is carried out.
//!   [`Seat::restore`] takes these records back after a restart; without a log, start with [`Seat::new`].
//! - `SeatOutput::Broadcast` goes to all other seats, `Send` to one member. Both are fire and forget: when a member
//!   cannot be reached the message is dropped, the protocol resends what matters.
//! - `SeatOutput::Decided` carries certificate, award table and what became of this seat's own bids.
//! - `SeatOutput::Hold` asks the provider's controller to take hold of devices; answer with `SeatInput::Reserved`.
//!   `SeatOutput::Released` ends that; `SeatOutput::Taken` says that the workload will come from that home.
//! - [`Seat::take_next`] gives it the next key epoch, well before its first round if possible; a seat that restarts between
//!   the two is given both by [`Seat::restore_in`]. [`Home::take_next`] gives a home the record.
//! - `SeatOutput::Evidence` is a [`proof::FaultProof`] of what another seat did; anybody can [`proof::verify`] it.
//!
//! # Driving a home
//! [`Home`] works alike. `HomeInput::Submit` makes and signs an order and sends it. `HomeOutput::Choose` must be
//! stored durably, then answered by `HomeInput::Stored`; only then `HomeOutput::HandOver` says that the workload
//! may be sent to that one seat. A cluster that is both home and seat routes by [`wire::Kind::is_for_home`].
//!
//! # Invariants
//! A seat sends no share before the admitted set is final; the awards are a function of what was admitted and of
//! the beacon; capacity in open rounds is offered once; decoding never panics and accepts one encoding per value.

pub mod award;
pub mod crypto;
pub mod evidence;
pub mod frames;
pub mod keygen;
pub mod keys;
pub mod log;
pub mod merkle;
pub mod params;
pub mod proof;
pub mod record;
pub mod secret;
pub mod verify;
pub mod wire;

mod bid;
mod clearing;
mod drops;
mod epochs;
mod home;
mod justify;
mod limits;
mod plaintext;
mod pool;
mod round;
mod seat;

pub use award::{AwardFile, AwardProof, AwardTable, Certificate, CertificateFile, Leaf, OrderLeaf};
pub use bid::{LocalBids, OfferedPart, OwnBid, Sought, bids};
pub use clearing::seal_ceiling;
pub use crypto::{Crypto, Curves, Scheme, SeatCrypto, UserCrypto};
pub use drops::{DropReason, Drops};
pub use epochs::{Epochs, NextEpochError};
pub use home::{Choice, Home, HomeInput, HomeOutput, NewOrder};
pub use justify::{Derived, derive, follow, proposer, set_digest};
pub use keys::{
    DealSpec, Dealt, HomeKeyFile, HomeKeys, KeyError, MemberSpec, SeatKeyFile, SeatKeys, deal, deal_with,
};
pub use params::{ParamError, Params};
pub use plaintext::Plaintext;
pub use record::{HomeRecord, KeyOrigin, MarketRecord, Peer, RecordError, SeatRecord, SignedMarketRecord};
pub use round::{KeyStep, RecallError, Round, RoundDecided, RoundInput, RoundOutput};
pub use seat::{BidResult, Decided, HoldRequest, OwnResult, ReleaseCause, Seat, SeatInput, SeatOutput};
