//! Hand-over at home: RESERVE to the winner, then to the stand-bys in rank; one choice, stored before it is told.

use super::{Choice, Home, HomeOutput, State};
use crate::drops::DropReason;
use crate::wire::{Body, Proof, Refuse, Reserve, Taken};
use vendue_market::Digest;

type Intake = Result<(), DropReason>;

impl Home {
    /// Asks the next candidate when it is time; gives the round up when there is none left or it has expired.
    pub(super) fn press_on(&mut self, now_ms: u64, digest: Digest, out: &mut Vec<HomeOutput>) {
        let p = self.record.params;
        let Some(entry) = self.orders.get_mut(&digest) else { return };
        let State::Reserving(r) = &mut entry.state else { return };
        let expired = now_ms >= p.expiry(entry.round);
        if now_ms < r.next_ms && !expired {
            return;
        }
        if let Some(waited_for) =
            r.asked.checked_sub(1).and_then(|i| r.candidates.get(i)).filter(|c| !c.refused)
        {
            out.push(HomeOutput::PassedOver { order: digest, seat: waited_for.seat, reason: None });
        }
        let next = r.candidates.get(r.asked).filter(|_| !expired).cloned();
        let Some(candidate) = next else {
            if let Some(retry_ms) = self.next_round(now_ms, digest, out) {
                out.push(HomeOutput::Unserved { order: digest, retry_ms });
            }
            return;
        };
        let rank = r.asked as u8;
        r.asked += 1;
        r.next_ms = now_ms + p.handover_ms / 3;
        let reserve = Reserve {
            proof: Proof { certificate: r.certificate.clone(), proof: r.proof.clone() },
            order: entry.order.clone(),
            order_signature: entry.signature,
        };
        out.push(HomeOutput::Reserving { order: digest, seat: candidate.seat, rank });
        let bytes = self.encode(Body::Reserve(Box::new(reserve)));
        out.push(HomeOutput::Send { seat: candidate.seat, bytes });
    }

    /// A seat holds the devices: the first one that says so, of those asked, is the choice.
    pub(super) fn take_accept(&mut self, seat: u16, digest: Digest, out: &mut Vec<HomeOutput>) -> Intake {
        let entry = self.orders.get_mut(&digest).ok_or(DropReason::Unexpected)?;
        let State::Reserving(r) = &entry.state else { return Err(DropReason::Duplicate) };
        let asked = r.candidates.iter().take(r.asked).zip(0u8..);
        let found = asked.into_iter().find(|(c, _)| c.seat == seat && !c.refused);
        let (candidate, rank) = found.ok_or(DropReason::Unexpected)?;
        let choice = Choice {
            order: digest,
            seat,
            rank,
            price: candidate.price,
            certificate: r.certificate.clone(),
            proof: r.proof.clone(),
        };
        entry.state = State::Choosing(Box::new(choice.clone()));
        out.push(HomeOutput::Choose(Box::new(choice)));
        Ok(())
    }

    /// A seat cannot serve the order: ask the next at once.
    pub(super) fn take_refuse(
        &mut self,
        now_ms: u64,
        seat: u16,
        refuse: &Refuse,
        out: &mut Vec<HomeOutput>,
    ) -> Intake {
        let entry = self.orders.get_mut(&refuse.order).ok_or(DropReason::Unexpected)?;
        let State::Reserving(r) = &mut entry.state else { return Err(DropReason::Unexpected) };
        let asked = r.asked;
        let found = r.candidates.iter_mut().take(asked).enumerate().find(|(_, c)| c.seat == seat);
        let (at, candidate) = found.ok_or(DropReason::Unexpected)?;
        if candidate.refused {
            return Err(DropReason::Duplicate);
        }
        candidate.refused = true;
        if at + 1 == asked {
            r.next_ms = now_ms;
        }
        out.push(HomeOutput::PassedOver { order: refuse.order, seat, reason: Some(refuse.reason) });
        Ok(())
    }

    /// The choice is durable: tell everybody, and release the workload to that seat.
    pub(super) fn stored(&mut self, now_ms: u64, digest: Digest, out: &mut Vec<HomeOutput>) {
        let Some(entry) = self.orders.get_mut(&digest) else { return };
        let State::Choosing(choice) = &entry.state else { return };
        let seat = choice.seat;
        entry.state = State::Taken(seat);
        self.announce(now_ms, digest, Body::Taken(Taken { order: digest, seat }), out);
        out.push(HomeOutput::HandOver { order: digest, seat });
    }
}
