//! The network of one generation: who the seats are there, and where they are reached.
//!
//! Inputs: the terms, the seat's keys, the addresses that the operator gives. Outputs: the transport identity of this process
//! and the table of the others. Invariants: an identity counts in one generation only and is that of no member of the running
//! market, so a process of the market refuses it in the handshake and none of its links is touched; no address is one at
//! which the market's record says that a seat runs.

use std::collections::BTreeMap;

use libp2p::identity::{Keypair, PublicKey, secp256k1};
use libp2p::{Multiaddr, PeerId};
use vendue_auction_core::keygen::Terms;
use vendue_auction_core::{MarketRecord, SeatKeys};

use super::GenerateError;
use crate::net::{Member, MemberId, Members};

fn failed(reason: impl std::fmt::Display) -> GenerateError {
    GenerateError::Link(reason.to_string())
}

/// The own identity.
pub(super) fn keypair(terms: &Terms, keys: &SeatKeys) -> Result<Keypair, GenerateError> {
    let mut secret = terms.link_secret(&keys.evidence).map_err(failed)?.to_bytes();
    let secret = secp256k1::SecretKey::try_from_bytes(secret.as_mut_slice()).map_err(failed)?;
    Ok(secp256k1::Keypair::from(secret).into())
}

fn peer(terms: &Terms, seat: u16) -> Result<PeerId, GenerateError> {
    let key = terms.link_key(seat).map_err(failed)?;
    let key = secp256k1::PublicKey::try_from_bytes(&key).map_err(failed)?;
    Ok(PublicKey::from(key).to_peer_id())
}

/// The other seats. Each must have an address for this: at that in the record its running seat listens.
pub(super) fn members(
    record: &MarketRecord,
    terms: &Terms,
    own: u16,
    given: &[(String, Multiaddr)],
) -> Result<Members, GenerateError> {
    let mut addresses: BTreeMap<&str, &Multiaddr> = BTreeMap::new();
    for (name, address) in given {
        if !record.seats.iter().any(|seat| seat.provider == *name) {
            return Err(GenerateError::UnknownSeat(name.clone()));
        }
        if addresses.insert(name, address).is_some() {
            return Err(GenerateError::SeatTwice(name.clone()));
        }
        let text = address.to_string();
        if let Some(runs) = record.seats.iter().find(|seat| seat.addresses.contains(&text)) {
            let (seat, runs) = (name.clone(), runs.provider.clone());
            return Err(GenerateError::RunningSeat { seat, address: text, runs });
        }
    }
    let mut members = vec![];
    for seat in record.seats.iter().filter(|seat| seat.index != own) {
        let name = seat.provider.clone();
        let Some(address) = addresses.get(name.as_str()) else { return Err(GenerateError::NoAddress(name)) };
        let (id, peer) = (MemberId::Seat(seat.index), peer(terms, seat.index)?);
        members.push(Member { id, name, peer, address: Some((*address).clone()) });
    }
    Ok(Members::new(members, peer(terms, own)?))
}
