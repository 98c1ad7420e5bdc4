//! Hand-over at the seat: RESERVE, the controller's answer, ACCEPT or REFUSE, and the user's last word.

use super::rounds::persist;
use super::{HandOver, HoldRequest, ReleaseCause, Seat, SeatOutput, Stage};
use crate::crypto::Crypto;
use crate::drops::DropReason;
use crate::log::LogRecord;
use crate::pool::Closed;
use crate::record::Peer;
use crate::verify;
use crate::wire::{Accept, Body, Refuse, Reserve};
use vendue_market::{Digest, Outcome, Price, Reason};

type Intake = Result<(), DropReason>;

impl<C: Crypto> Seat<C> {
    /// Home asks this seat to hold devices: check that it may, then ask the controller.
    pub(super) fn reserve(
        &mut self,
        now_ms: u64,
        home: u16,
        said_round: u64,
        reserve: Reserve,
        out: &mut Vec<SeatOutput>,
    ) -> Intake {
        let order = reserve.order.digest();
        let certificate = &reserve.proof.certificate;
        let (round, proof) = (certificate.round, &reserve.proof.proof);
        if said_round != round {
            return Err(DropReason::WrongRound);
        }
        if let Some(known) = self.handovers.get(&order).filter(|h| h.home == home) {
            let (stage, known_round) = (known.stage, known.round);
            if known_round == round {
                self.answer(home, order, round, stage, out);
                return Err(DropReason::Duplicate);
            }
            // What was said about another award is no answer for this one.
            if known_round > round || stage == Stage::Taken || now_ms < self.record.params.expiry(known_round)
            {
                return Err(DropReason::Unexpected);
            }
        }
        match verify::named_order_by::<C::Scheme>(
            &self.record,
            &reserve.order,
            &order,
            &reserve.order_signature,
        ) {
            Ok(signer) if signer == home => {}
            _ => return Err(DropReason::BadSignature),
        }
        verify::named_outcome(&self.record, certificate, proof, &reserve.order, &order)
            .map_err(|_| DropReason::BadSignature)?;
        self.check_certificate(now_ms, home, certificate)?;
        let Outcome::Award(award) = &proof.leaf.outcome else { return Err(DropReason::Unexpected) };
        let places = std::iter::once((award.seat, award.price, award.spec))
            .chain(award.stand_bys.iter().map(|s| (s.seat, s.price, s.spec)));
        let mine = (0u8..).zip(places).find(|(_, (seat, _, _))| *seat == self.index);
        let (rank, (_, price, spec)): (u8, (u16, Price, u16)) = mine.ok_or(DropReason::Unexpected)?;
        let until_ms = proof.leaf.expires_ms;
        if now_ms >= until_ms || self.pool.is_over(&order, home) {
            return Err(DropReason::Late);
        }
        let offer = self.offer_names.get(&round).and_then(|names| names.get(usize::from(spec))).cloned();
        // The user's last word may take a moment longer than the award lives.
        let stage = if offer.is_some() { Stage::Asked } else { Stage::Refused(Reason::NoOffer) };
        let entry = HandOver { home, round, until_ms: until_ms + 4 * self.record.params.delay_ms, stage };
        // The controller may take devices as long as it is asked.
        if let Some(promise) = self.promises.get_mut(&order).filter(|p| p.round == round) {
            promise.until_ms = entry.until_ms;
        }
        if let Some(HandOver { stage: Stage::Asked | Stage::Held, .. }) = self.handovers.insert(order, entry)
        {
            out.push(SeatOutput::Released { order, cause: ReleaseCause::Expired });
            persist(out, LogRecord::Freed { order });
        }
        self.persist_promise(&order, out);
        self.persist_handover(&order, out);
        match offer {
            Some(offer) => out.push(SeatOutput::Hold(Box::new(HoldRequest {
                order: reserve.order,
                order_signature: reserve.order_signature,
                home,
                certificate: reserve.proof.certificate,
                proof: reserve.proof.proof,
                rank,
                price,
                offer,
                expires_ms: until_ms,
            }))),
            None => self.answer(home, order, round, stage, out),
        }
        Ok(())
    }

    /// Lets the log know what a home was told, or is about to be.
    pub(super) fn persist_handover(&self, order: &Digest, out: &mut Vec<SeatOutput>) {
        let Some(&HandOver { home, round, until_ms, stage }) = self.handovers.get(order) else { return };
        if let Some(answer) = stage.answer() {
            persist(out, LogRecord::HandOver { order: *order, home, round, until_ms, answer });
        }
    }

    /// Says (again) what the controller said.
    fn answer(&self, home: u16, order: Digest, round: u64, stage: Stage, out: &mut Vec<SeatOutput>) {
        let body = match stage {
            Stage::Asked => return,
            Stage::Held | Stage::Taken => Body::Accept(Accept { order }),
            Stage::Refused(reason) => Body::Refuse(Refuse { order, reason }),
        };
        out.push(SeatOutput::Send { to: Peer::Home(home), bytes: self.encode_in(round, body) });
    }

    /// The controller's answer. From here on the devices are missing from the offers, so the promise ends.
    pub(super) fn reserved(
        &mut self,
        now_ms: u64,
        order: Digest,
        round: u64,
        result: Result<(), Reason>,
        out: &mut Vec<SeatOutput>,
    ) {
        let Some(handover) = self.handovers.get_mut(&order) else {
            // Too late: the order was closed or expired meanwhile, and whoever asked has been told to let go.
            return;
        };
        if handover.round != round || handover.stage != Stage::Asked || now_ms >= handover.until_ms {
            return;
        }
        handover.stage = match result {
            Ok(()) => Stage::Held,
            Err(reason) => Stage::Refused(reason),
        };
        let (home, stage) = (handover.home, handover.stage);
        if self.promises.get(&order).is_some_and(|p| p.round == round) {
            self.promises.remove(&order);
        }
        self.persist_handover(&order, out);
        self.answer(home, order, round, stage, out);
    }

    /// The user's word that an order is taken or withdrawn.
    pub(super) fn close(
        &mut self,
        now_ms: u64,
        home: u16,
        order: Digest,
        how: Closed,
        out: &mut Vec<SeatOutput>,
    ) -> Intake {
        if let Some(known) = self.pool.closed(&order, home) {
            return Err(if known == how { DropReason::Duplicate } else { DropReason::Conflict });
        }
        let owners = [
            self.pool.get(&order).map(|k| k.home),
            self.handovers.get(&order).map(|h| h.home),
            self.promises.get(&order).map(|p| p.home),
        ];
        if owners.into_iter().flatten().any(|owner| owner != home) {
            return Err(DropReason::WrongSender);
        }
        self.pool.close(order, home, how, now_ms, &self.record.params);
        let mine = how == Closed::Taken(self.index);
        match self.handovers.get_mut(&order) {
            Some(h) if mine && h.stage == Stage::Held => {
                h.stage = Stage::Taken;
                self.persist_handover(&order, out);
                out.push(SeatOutput::Taken { order, home });
            }
            Some(h) if !mine && matches!(h.stage, Stage::Asked | Stage::Held) => {
                self.handovers.remove(&order);
                persist(out, LogRecord::Freed { order });
                let cause = match how {
                    Closed::Taken(_) => ReleaseCause::TakenElsewhere,
                    Closed::Cancelled => ReleaseCause::Cancelled,
                };
                out.push(SeatOutput::Released { order, cause });
            }
            _ => {}
        }
        if self.promises.remove(&order).is_some() {
            persist(out, LogRecord::Freed { order });
            self.persist_handover(&order, out);
        }
        Ok(())
    }
}
