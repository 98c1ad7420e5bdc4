//! What a seat does with each message: the checks that every message passes, then the part that it is for.

use super::{Proven, Seat, SeatOutput};
use crate::award::Certificate;
use crate::crypto::Crypto;
use crate::drops::DropReason;
use crate::evidence::{bundle_hash_by, message_hash_by, received_hash_by};
use crate::pool::{Closed, Known, NotReplaced};
use crate::record::Peer;
use crate::round::RoundInput;
use crate::verify;
use crate::wire::{
    Again, Body, Fetch, Header, Kind, MAX_MESSAGE, Message, Receipt, Reply, decode, peek_kind,
};
use std::sync::Arc;
use vendue_market::{Digest, Order};

/// How many rounds ahead of the clock a message may be.
const MAX_ROUNDS_AHEAD: u64 = 2;

/// Longest time that an order may ask to be looked after.
const MAX_ORDER_LIFE_MS: u64 = 7 * 24 * 3600 * 1000;

type Intake = Result<(), DropReason>;

impl<C: Crypto> Seat<C> {
    pub(super) fn intake(
        &mut self,
        now_ms: u64,
        from: Peer,
        bytes: Vec<u8>,
        out: &mut Vec<SeatOutput>,
    ) -> Intake {
        if bytes.len() > MAX_MESSAGE {
            return Err(DropReason::Oversize);
        }
        let kind = peek_kind(&bytes).ok_or(DropReason::Malformed)?;
        if !self.limits.admit(now_ms, from, kind) {
            return Err(DropReason::Quota);
        }
        let message = decode(&bytes, self.record.n()).map_err(|_| DropReason::Malformed)?;
        let is_ours = message.header.market == self.record.short_id();
        if !is_ours || !self.epochs.fits(&message.header, &message.body) {
            return Err(DropReason::Foreign);
        }
        let sender = if kind.is_from_home() {
            Peer::Home(message.header.seat)
        } else {
            Peer::Seat(message.header.seat)
        };
        // Homes ask for proofs only, under their own number, also where the cluster's seat is what the transport knows.
        let home = Peer::Home(message.header.seat);
        let home_asks = matches!(message.body, Body::Fetch(Fetch::Proof(_)))
            && (from == home || self.is_own_home(from, home));
        if sender != from && !home_asks && !self.is_own_home(from, sender) {
            return Err(DropReason::WrongSender);
        }
        match message.body {
            Body::Fetch(Fetch::Orders(wanted)) => self.serve_orders(now_ms, from, &wanted, out),
            Body::Fetch(Fetch::Proof(order)) => self.serve_proof(from, &order, out),
            Body::Reply(Reply::Order(bytes)) => self.take_fetched_order(now_ms, &bytes, out),
            Body::Receipt(_) | Body::Accept(_) | Body::Refuse(_) | Body::Proof(_) => {
                Err(DropReason::Unexpected)
            }
            // Keys are generated under a market id of their own.
            Body::DealKey(_) | Body::Deal(_) | Body::Acks(_) => Err(DropReason::Unexpected),
            _ if kind.is_from_home() => self.take_from_home(now_ms, message, out),
            _ => self.for_round(now_ms, message, bytes, out),
        }
    }

    /// A cluster that holds a seat and places orders too has one transport identity for both.
    fn is_own_home(&self, from: Peer, sender: Peer) -> bool {
        let id = |peer| match peer {
            Peer::Seat(i) => self.record.seat(i).map(|s| s.peer_id.as_str()),
            Peer::Home(i) => self.record.home(i).map(|h| h.peer_id.as_str()),
        };
        id(from).is_some() && id(from) == id(sender)
    }

    /// A message of a round: from a seat, signed by it, not too far ahead, not over.
    fn for_round(
        &mut self,
        now_ms: u64,
        mut message: Message,
        bytes: Vec<u8>,
        out: &mut Vec<SeatOutput>,
    ) -> Intake {
        let params = self.record.params;
        let round = message.header.round;
        if round > params.round_at(now_ms).saturating_add(MAX_ROUNDS_AHEAD) || now_ms >= params.expiry(round)
        {
            return Err(DropReason::WrongRound);
        }
        if !self.takes_part(round) {
            return Err(DropReason::Observing);
        }
        let seat = self.record.seat(message.header.seat).ok_or(DropReason::WrongSender)?;
        if message.header.seat == self.index {
            return Err(DropReason::WrongSender);
        }
        if let Body::Bundle(bundle) = &mut message.body {
            self.views.share(&mut bundle.order_view);
        }
        let d = match &message.body {
            Body::Bundle(bundle) => Some(bundle.digest(&message.header)),
            _ => None,
        };
        if let Some(signature) = &message.signature {
            let market = &self.record.market;
            let hash = match &d {
                Some(d) => bundle_hash_by::<C::Scheme>(market, &message.header, d),
                None => received_hash_by::<C::Scheme>(market, &message, &bytes),
            };
            if !self.crypto().verify(&hash, signature, &seat.evidence_key) {
                return Err(DropReason::BadSignature);
            }
        } else if !self.rounds.contains_key(&round) {
            // Only what a seat signed may wake this seat up for a round.
            return Err(DropReason::WrongRound);
        }
        if !self.open_round(now_ms, round) {
            return Err(DropReason::WrongRound);
        }
        let message = Box::new(message);
        let input = match d {
            Some(d) => RoundInput::Bundle { message, bytes, d },
            None => RoundInput::Message { message, bytes },
        };
        self.drive(now_ms, round, input, out);
        Ok(())
    }

    /// A message of a home, signed by its user key.
    fn take_from_home(&mut self, now_ms: u64, message: Message, out: &mut Vec<SeatOutput>) -> Intake {
        let Message { header, body, signature } = message;
        let home = header.seat;
        let signature = signature.ok_or(DropReason::Malformed)?;
        match body {
            Body::Order(o) => return self.take_order(now_ms, home, o.order, signature, out),
            Body::Again(again) => return self.take_again(now_ms, home, *again, signature, out),
            _ => {}
        }
        let key = self.record.home(home).ok_or(DropReason::WrongSender)?.user_key;
        let hash = message_hash_by::<C::Scheme>(&self.record.market, &header, &body);
        if !self.crypto().verify(&hash, &signature, &key) {
            return Err(DropReason::BadSignature);
        }
        match body {
            Body::Taken(taken) => self.close(now_ms, home, taken.order, Closed::Taken(taken.seat), out),
            Body::Cancel(cancel) => self.close(now_ms, home, cancel.order, Closed::Cancelled, out),
            Body::Withdraw(w) => {
                let mut made = self.pool.made_until(home, &w.job, w.attempt, w.round);
                made.retain(|order| *order != w.except);
                for order in made {
                    self.close(now_ms, home, order, Closed::Cancelled, out)?;
                }
                Ok(())
            }
            Body::Reserve(reserve) => self.reserve(now_ms, home, header.round, *reserve, out),
            _ => Err(DropReason::Unexpected),
        }
    }

    /// Checks an order and keeps it; the receipt is sent again for an order that is known.
    fn take_order(
        &mut self,
        now_ms: u64,
        home: u16,
        order: Order,
        signature: [u8; 65],
        out: &mut Vec<SeatOutput>,
    ) -> Intake {
        let digest = order.digest();
        if let Some(known) = self.pool.get(&digest) {
            self.receipt(home, digest, known.received_ms, out);
            return Err(DropReason::Duplicate);
        }
        self.check_order(now_ms, home, &order, &digest, &signature)?;
        // A body that comes early is worth nothing without the certificate that permits it.
        if order.after.is_some() || self.pool.is_over(&digest, home) {
            return Err(DropReason::Unexpected);
        }
        // A home that lost its memory orders anew: nobody waits for what it ordered before.
        for old in self.pool.made_before(home, &order).ok_or(DropReason::Unexpected)? {
            self.close(now_ms, home, old, Closed::Cancelled, out)?;
        }
        if !self.pool.has_room(home) {
            return Err(DropReason::Quota);
        }
        self.pool.insert(digest, Known { order: Arc::new(order), signature, home, received_ms: now_ms });
        self.receipt(home, digest, now_ms, out);
        Ok(())
    }

    /// Takes an order's next body in the place of those before it, if a certified round gave it to nobody.
    fn take_again(
        &mut self,
        now_ms: u64,
        home: u16,
        again: Again,
        signature: [u8; 65],
        out: &mut Vec<SeatOutput>,
    ) -> Intake {
        let Again { order, before, proof } = again;
        let digest = order.digest();
        if let Some(known) = self.pool.get(&digest) {
            self.receipt(home, digest, known.received_ms, out);
            return Err(DropReason::Duplicate);
        }
        self.check_order(now_ms, home, &order, &digest, &signature)?;
        verify::again(&self.record, &order, &before, &proof.certificate, &proof.proof)
            .map_err(|_| DropReason::BadSignature)?;
        self.check_certificate(now_ms, home, &proof.certificate)?;
        let (round, last) = (proof.certificate.round, before.digest());
        let until_ms = now_ms.saturating_add(self.record.params.lifetime());
        self.pool.replace(home, &order, round, until_ms).map_err(|e| match e {
            NotReplaced::Stale => DropReason::Unexpected,
            NotReplaced::Full => DropReason::Quota,
        })?;
        // Home has seen what became of the body before.
        self.proven.remove(&last);
        // A last word about either body counts, also one that was faster than this message.
        if self.pool.closed(&last, home).is_some() || self.pool.is_over(&digest, home) {
            return Err(DropReason::Unexpected);
        }
        if !self.pool.has_room(home) {
            return Err(DropReason::Quota);
        }
        self.pool.insert(digest, Known { order: Arc::new(order), signature, home, received_ms: now_ms });
        self.receipt(home, digest, now_ms, out);
        Ok(())
    }

    /// Checks a certificate that a home shows. All orders of a round have one: its votes are checked once. Checking is
    /// costly and anybody can make what looks like one, so each home has its share of this second.
    pub(super) fn check_certificate(&mut self, now_ms: u64, home: u16, certificate: &Certificate) -> Intake {
        let record = self.epochs.record_of(certificate.round).ok_or(DropReason::Foreign)?.clone();
        let known = self.certified.get(&certificate.round) == Some(&certificate.root);
        let own = certificate.market == record.market && certificate.epoch == record.epoch;
        if !(known && own) {
            if !self.limits.certificate(now_ms, home) {
                return Err(DropReason::Quota);
            }
            verify::certificate_by::<C::Scheme>(&record, certificate)
                .map_err(|_| DropReason::BadSignature)?;
            self.certified.insert(certificate.round, certificate.root);
        }
        Ok(())
    }

    fn check_order(
        &self,
        now_ms: u64,
        home: u16,
        order: &Order,
        digest: &Digest,
        signature: &[u8; 65],
    ) -> Intake {
        if order.expires_ms <= now_ms {
            return Err(DropReason::Late);
        }
        // What is remembered of an order is kept until then.
        if order.expires_ms > now_ms.saturating_add(MAX_ORDER_LIFE_MS) {
            return Err(DropReason::Quota);
        }
        match verify::named_order_by::<C::Scheme>(&self.record, order, digest, signature) {
            Ok(signer) if signer == home => Ok(()),
            Ok(_) | Err(verify::VerifyError::UnknownHome) => Err(DropReason::WrongSender),
            Err(verify::VerifyError::OrderMarket) => Err(DropReason::Foreign),
            Err(_) => Err(DropReason::BadSignature),
        }
    }

    fn receipt(&self, home: u16, order: Digest, received_ms: u64, out: &mut Vec<SeatOutput>) {
        let models = self.models.iter().take(crate::wire::MAX_KNOWN_MODELS).cloned().collect();
        let from_round = self.record.params.listable_from(received_ms);
        self.send_home(home, Body::Receipt(Receipt { order, from_round, models }), out);
    }

    /// Sends what a member asked for, or drops it when the member has had its share of this second.
    pub(super) fn reply(&mut self, now_ms: u64, to: Peer, bytes: Vec<u8>, out: &mut Vec<SeatOutput>) {
        if peek_kind(&bytes) == Some(Kind::Reply) && !self.limits.reply(now_ms, to, bytes.len()) {
            self.drops.add(DropReason::Quota);
            return;
        }
        out.push(SeatOutput::Send { to, bytes });
    }

    fn serve_orders(
        &mut self,
        now_ms: u64,
        from: Peer,
        wanted: &[Digest],
        out: &mut Vec<SeatOutput>,
    ) -> Intake {
        let mut found = vec![];
        for known in wanted.iter().filter_map(|digest| self.pool.body(digest)) {
            let header = Header { seat: known.home, ..self.header(Kind::Order) };
            let body = Body::Order(crate::wire::OrderMsg { order: Order::clone(&known.order) });
            let inner = Message { header, body, signature: Some(known.signature) }.encode();
            found.push(self.encode(Body::Reply(Reply::Order(inner))));
        }
        for bytes in found {
            self.reply(now_ms, from, bytes, out);
        }
        Ok(())
    }

    fn serve_proof(&self, from: Peer, order: &Digest, out: &mut Vec<SeatOutput>) -> Intake {
        let Proven { bytes, .. } = self.proven.get(order).ok_or(DropReason::Unexpected)?;
        out.push(SeatOutput::Send { to: from, bytes: bytes.clone() });
        Ok(())
    }

    /// An order that rounds wait for: taken by digest, for those rounds only.
    fn take_fetched_order(&mut self, now_ms: u64, bytes: &[u8], out: &mut Vec<SeatOutput>) -> Intake {
        let message = decode(bytes, self.record.n()).map_err(|_| DropReason::Malformed)?;
        let Body::Order(o) = message.body else { return Err(DropReason::Unexpected) };
        let (digest, order) = (o.order.digest(), Arc::new(o.order));
        let waiting: Vec<u64> =
            self.rounds.iter().filter(|(_, a)| a.wanted.contains(&digest)).map(|(round, _)| *round).collect();
        if waiting.is_empty() {
            return Err(DropReason::Unexpected);
        }
        for round in waiting {
            if let Some(active) = self.rounds.get_mut(&round) {
                active.wanted.remove(&digest);
            }
            self.drive(now_ms, round, RoundInput::Orders(vec![(digest, order.clone())]), out);
        }
        Ok(())
    }
}
