//! Hand-over at home: RESERVE to the winner, then to the stand-bys in rank; one choice, stored before it is told.
//!
//! Whoever was asked and has not refused may still accept until the award expires, so it is asked again until then.

use super::{Candidate, Choice, Home, HomeOutput, State};
use crate::crypto::UserCrypto;
use crate::drops::DropReason;
use crate::wire::{Body, Cancel, Proof, Refuse, Reserve, Taken};
use vendue_market::Digest;

/// After how many delays a seat that has not answered is asked again.
const ASK_AGAIN: u64 = 4;
/// After how many delays a choice that is not stored is given out again; storing it takes a few API calls.
const CHOOSE_AGAIN: u64 = 16;

type Intake = Result<(), DropReason>;

impl<K: UserCrypto> Home<K> {
    /// Asks the next candidate when it is time; gives the round up when there is none left or it has expired.
    pub(super) fn press_on(&mut self, now_ms: u64, digest: Digest, out: &mut Vec<HomeOutput>) {
        let p = self.record.params;
        let Some(entry) = self.orders.get_mut(&digest) else { return };
        let State::Reserving(r) = &mut entry.state else { return };
        let expired = now_ms >= p.expiry(entry.round);
        let (asked, all) = (r.asked, r.candidates.len());
        let pending = |c: &&Candidate| !c.refused;
        let waiting: Vec<u16> = r.candidates.iter().take(asked).filter(pending).map(|c| c.seat).collect();
        if !expired && asked == all && !waiting.is_empty() {
            r.next_ms = p.expiry(entry.round);
        }
        if now_ms < r.next_ms && !expired {
            self.ask_again(now_ms, digest, &waiting, out);
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
                out.push(HomeOutput::Unserved { order: self.named(&digest), retry_ms });
            }
            return;
        };
        let rank = r.asked as u8;
        r.asked += 1;
        r.next_ms = now_ms + p.handover_ms / 3;
        r.resend_ms = now_ms + ASK_AGAIN * p.delay_ms;
        out.push(HomeOutput::Reserving { order: digest, seat: candidate.seat, rank });
        if let Some(bytes) = self.reserve_bytes(&digest) {
            out.push(HomeOutput::Send { seat: candidate.seat, bytes });
        }
    }

    /// Repeats RESERVE to those that have not answered: it or the answer may be lost.
    fn ask_again(&mut self, now_ms: u64, digest: Digest, waiting: &[u16], out: &mut Vec<HomeOutput>) {
        let delay_ms = self.record.params.delay_ms;
        let Some(State::Reserving(r)) = self.orders.get_mut(&digest).map(|e| &mut e.state) else { return };
        if now_ms < r.resend_ms {
            return;
        }
        r.resend_ms = now_ms + ASK_AGAIN * delay_ms;
        let Some(bytes) = self.reserve_bytes(&digest) else { return };
        out.extend(waiting.iter().map(|seat| HomeOutput::Send { seat: *seat, bytes: bytes.clone() }));
    }

    fn reserve_bytes(&self, digest: &Digest) -> Option<Vec<u8>> {
        let entry = self.orders.get(digest)?;
        let State::Reserving(r) = &entry.state else { return None };
        let reserve = Reserve {
            proof: Proof { certificate: r.certificate.clone(), proof: r.proof.clone() },
            order: entry.order.clone(),
            order_signature: entry.signature,
        };
        Some(self.encode_in(entry.round, Body::Reserve(Box::new(reserve))))
    }

    /// A seat holds the devices: the first one that says so, of those asked, is the choice.
    pub(super) fn take_accept(
        &mut self,
        now_ms: u64,
        seat: u16,
        round: u64,
        digest: Digest,
        out: &mut Vec<HomeOutput>,
    ) -> Intake {
        let p = self.record.params;
        let entry = self.orders.get_mut(&digest).ok_or(DropReason::Unexpected)?;
        let State::Reserving(r) = &entry.state else { return Err(DropReason::Duplicate) };
        if round != entry.round {
            return Err(DropReason::WrongRound);
        }
        if now_ms >= p.expiry(round) {
            return Err(DropReason::Late);
        }
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
        let again_ms = now_ms + CHOOSE_AGAIN * p.delay_ms;
        entry.state = State::Choosing { choice: Box::new(choice.clone()), again_ms, withdrawn: false };
        out.push(HomeOutput::Choose(Box::new(choice)));
        Ok(())
    }

    /// A seat cannot serve the order: ask the next at once.
    pub(super) fn take_refuse(
        &mut self,
        now_ms: u64,
        seat: u16,
        round: u64,
        refuse: &Refuse,
        out: &mut Vec<HomeOutput>,
    ) -> Intake {
        let entry = self.orders.get_mut(&refuse.order).ok_or(DropReason::Unexpected)?;
        let State::Reserving(r) = &mut entry.state else { return Err(DropReason::Unexpected) };
        if round != entry.round {
            return Err(DropReason::WrongRound);
        }
        let asked = r.asked;
        let found = r.candidates.iter_mut().take(asked).enumerate().find(|(_, c)| c.seat == seat);
        let (at, candidate) = found.ok_or(DropReason::Unexpected)?;
        if candidate.refused {
            return Err(DropReason::Duplicate);
        }
        candidate.refused = true;
        if at + 1 == asked || r.candidates.iter().all(|c| c.refused) {
            r.next_ms = now_ms;
        }
        out.push(HomeOutput::PassedOver { order: refuse.order, seat, reason: Some(refuse.reason) });
        Ok(())
    }

    /// The choice is durable: tell everybody, and release the workload to that seat.
    pub(super) fn stored(&mut self, now_ms: u64, digest: Digest, out: &mut Vec<HomeOutput>) {
        let Some(entry) = self.orders.get_mut(&digest) else { return };
        let State::Choosing { choice, withdrawn, .. } = &entry.state else { return };
        let (seat, withdrawn) = (choice.seat, *withdrawn);
        entry.state = State::Taken(seat);
        self.announce(now_ms, digest, Body::Taken(Taken { order: digest, seat }), out);
        // A withdrawn order stays with the stored choice and is closed there; nothing is run.
        if !withdrawn {
            out.push(HomeOutput::HandOver { order: digest, seat });
        }
    }

    /// The choice came to nothing: the seat frees the devices when its award expires, and the order goes on.
    pub(super) fn not_stored(&mut self, now_ms: u64, digest: Digest, out: &mut Vec<HomeOutput>) {
        let Some(entry) = self.orders.get_mut(&digest) else { return };
        let State::Choosing { withdrawn, .. } = &entry.state else { return };
        if *withdrawn {
            entry.state = State::Closed;
            self.announce(now_ms, digest, Body::Cancel(Cancel { order: digest }), out);
        } else if let Some(retry_ms) = self.next_round(now_ms, digest, out) {
            out.push(HomeOutput::Unserved { order: self.named(&digest), retry_ms });
        }
    }

    /// Gives a choice out again that is not stored yet. A withdrawn one that nobody stored ends with its award.
    pub(super) fn choose_again(&mut self, now_ms: u64, digest: Digest, out: &mut Vec<HomeOutput>) {
        let p = self.record.params;
        let Some(entry) = self.orders.get_mut(&digest) else { return };
        let State::Choosing { choice, again_ms, withdrawn } = &mut entry.state else { return };
        if now_ms < *again_ms {
            return;
        }
        if *withdrawn && now_ms >= p.expiry(entry.round) {
            entry.state = State::Closed;
            self.announce(now_ms, digest, Body::Cancel(Cancel { order: digest }), out);
            return;
        }
        *again_ms = now_ms + CHOOSE_AGAIN * p.delay_ms;
        if !*withdrawn {
            out.push(HomeOutput::Choose(choice.clone()));
        }
    }
}
