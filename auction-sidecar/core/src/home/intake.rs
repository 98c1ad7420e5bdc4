//! What a home does with each message of a seat.

use super::{Candidate, Home, HomeOutput, Reserving, State};
use crate::crypto::{Scheme, UserCrypto};
use crate::drops::DropReason;
use crate::evidence::received_hash_by;
use crate::verify;
use crate::wire::{Body, Cancel, MAX_MESSAGE, Proof, Receipt, Taken, decode};
use vendue_market::Outcome;

type Intake = Result<(), DropReason>;

impl<K: UserCrypto> Home<K> {
    pub(super) fn intake(
        &mut self,
        now_ms: u64,
        from: u16,
        bytes: &[u8],
        out: &mut Vec<HomeOutput>,
    ) -> Intake {
        if bytes.len() > MAX_MESSAGE {
            return Err(DropReason::Oversize);
        }
        let message = decode(bytes, self.record.n()).map_err(|_| DropReason::Malformed)?;
        let header = message.header;
        if header.market != self.record.short_id() || !self.epochs.fits(&header, &message.body) {
            return Err(DropReason::Foreign);
        }
        let seat =
            self.record.seat(header.seat).filter(|s| s.index == from).ok_or(DropReason::WrongSender)?;
        if let Some(signature) = &message.signature {
            let hash = received_hash_by::<K::Scheme>(&self.record.market, &message, bytes);
            if !K::Scheme::verify_signature(&hash, signature, &seat.evidence_key) {
                return Err(DropReason::BadSignature);
            }
        }
        match message.body {
            Body::Receipt(receipt) => self.take_receipt(from, receipt, out),
            Body::Proof(proof) => self.take_proof(now_ms, from, *proof, out),
            Body::Accept(accept) => self.take_accept(now_ms, from, header.round, accept.order, out),
            Body::Refuse(refuse) => self.take_refuse(now_ms, from, header.round, &refuse, out),
            _ => Err(DropReason::Unexpected),
        }
    }

    fn take_receipt(&mut self, seat: u16, receipt: Receipt, out: &mut Vec<HomeOutput>) -> Intake {
        let needed = usize::from(self.record.f()) + 1;
        let entry = self.orders.get_mut(&receipt.order).ok_or(DropReason::Unexpected)?;
        if entry.receipts.contains_key(&seat) {
            return Err(DropReason::Duplicate);
        }
        entry.receipts.insert(seat, receipt.from_round);
        entry.models.extend(receipt.models);
        out.push(HomeOutput::Received {
            order: receipt.order,
            seats: entry.receipts.keys().copied().collect(),
            enough: entry.receipts.len() >= needed,
            models: entry.models.clone(),
        });
        Ok(())
    }

    /// A round's result for an order: nothing in it is believed before it is verified against the market record.
    fn take_proof(&mut self, now_ms: u64, from: u16, message: Proof, out: &mut Vec<HomeOutput>) -> Intake {
        let Proof { certificate, proof } = message;
        let digest = proof.leaf.order;
        if self.named(&digest) != digest {
            return Err(self.refuse_earlier(from, digest, &proof.leaf.outcome, out));
        }
        let entry = self.orders.get(&digest).ok_or(DropReason::Unexpected)?;
        match entry.state {
            State::Waiting => {}
            State::Taken(seat) if certificate.round != entry.round => {
                // The seat awarded the order again, so it missed that the order is taken.
                let bytes = self.encode(Body::Taken(Taken { order: digest, seat }));
                out.push(HomeOutput::Send { seat: from, bytes });
                return Err(DropReason::Duplicate);
            }
            State::Closed => {
                let bytes = self.encode(Body::Cancel(Cancel { order: digest }));
                out.push(HomeOutput::Send { seat: from, bytes });
                return Err(DropReason::Duplicate);
            }
            _ => return Err(DropReason::Duplicate),
        }
        if certificate.round != entry.round {
            let known = certificate.round < entry.round;
            return Err(if known { DropReason::Duplicate } else { DropReason::WrongRound });
        }
        if now_ms >= self.record.params.expiry(certificate.round) {
            return Err(DropReason::Late);
        }
        let record = self.epochs.record_of(certificate.round).ok_or(DropReason::Foreign)?;
        verify::certificate_by::<K::Scheme>(record, &certificate)
            .and_then(|()| verify::named_outcome(&self.record, &certificate, &proof, &entry.order, &digest))
            .map_err(|_| DropReason::BadSignature)?;
        match proof.leaf.outcome.clone() {
            Outcome::Award(award) => {
                out.push(HomeOutput::Awarded {
                    order: digest,
                    body: Box::new(entry.order.clone()),
                    signature: entry.signature,
                    certificate: certificate.clone(),
                    proof: proof.clone(),
                });
                let winner = Candidate { seat: award.seat, price: award.price, refused: false };
                let others = award.stand_bys.iter().map(|s| Candidate {
                    seat: s.seat,
                    price: s.price,
                    refused: false,
                });
                let candidates = std::iter::once(winner).chain(others).collect();
                let next = Reserving {
                    certificate,
                    proof,
                    candidates,
                    asked: 0,
                    next_ms: now_ms,
                    resend_ms: u64::MAX,
                };
                if let Some(entry) = self.orders.get_mut(&digest) {
                    entry.state = State::Reserving(Box::new(next));
                }
            }
            Outcome::None(histogram) => {
                let (round, models) = (entry.round, entry.models.clone());
                let mut then = vec![];
                let retry_ms = self.list_again(now_ms, digest, Proof { certificate, proof }, &mut then);
                out.push(HomeOutput::NotAwarded { order: digest, round, histogram, models, retry_ms });
                out.extend(then);
            }
        }
        Ok(())
    }
}
