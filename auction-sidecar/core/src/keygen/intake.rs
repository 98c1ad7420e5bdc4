//! What a key generation does with each message.

use super::attempts::Attempt;
use super::{KeyGeneration, KeyOutput, Word};
use crate::crypto::Crypto;
use crate::drops::DropReason;
use crate::evidence::message_hash_by;
use crate::log::LogRecord;
use crate::record::Peer;
use crate::round::{Round, RoundInput};
use crate::wire::{
    Body, Cert, Fetch, Kind, Listed, MAX_MESSAGE, Message, Reply, VoteWord, decode, peek_kind, vote_bytes,
};
use vendue_sealed_bid::dkg::{Dealing, DkgError};

type Intake = Result<(), DropReason>;

impl<C: Crypto> KeyGeneration<C> {
    pub(super) fn intake(&mut self, from: u16, bytes: Vec<u8>, out: &mut Vec<KeyOutput>) -> Intake {
        if bytes.len() > MAX_MESSAGE {
            return Err(DropReason::Oversize);
        }
        let kind = peek_kind(&bytes).ok_or(DropReason::Malformed)?;
        if !self.limits.admit(self.now, Peer::Seat(from), kind) {
            return Err(DropReason::Quota);
        }
        let message = self.check(&bytes)?;
        if message.header.seat != from || from == self.index {
            return Err(DropReason::WrongSender);
        }
        match message.body {
            Body::DealKey(_) | Body::Deal(_) | Body::Acks(_) => {
                self.tell(from, None, out);
                self.take_own_word(message, bytes, out)
            }
            Body::Fetch(Fetch::Dealings(wanted)) => self.serve(from, &wanted, out),
            Body::Reply(Reply::Dealing(deal)) => self.take_fetched(deal, out),
            _ => self.take_of_attempt(message, bytes, out),
        }
    }

    /// Gives a seat the dealings that it asks for, as far as this seat has them and gives one seat so much.
    fn serve(&mut self, to: u16, wanted: &[Listed], out: &mut Vec<KeyOutput>) -> Intake {
        let found = wanted.iter().filter_map(|l| self.heard.get(&(l.seat, l.d))).cloned();
        for deal in found.collect::<Vec<_>>() {
            let bytes = self.encode(Body::Reply(Reply::Dealing(deal)));
            if !self.limits.reply(self.now, Peer::Seat(to), bytes.len()) {
                return Err(DropReason::Quota);
            }
            out.push(KeyOutput::Send { to, bytes });
        }
        Ok(())
    }

    fn take_of_attempt(&mut self, message: Message, bytes: Vec<u8>, out: &mut Vec<KeyOutput>) -> Intake {
        let (from, attempt) = (message.header.seat, message.header.round);
        if let Body::Bundle(bundle) = &message.body
            && (bundle.payload.len() > Word::most_bytes(&self.setup) || !bundle.order_view.is_empty())
        {
            return Err(DropReason::Malformed);
        }
        self.tell(from, Some(attempt), out);
        if self.is_done() && !self.attempts.contains_key(&attempt) {
            return Ok(());
        }
        if !self.attempts.contains_key(&attempt) {
            // Only what a seat signed begins an attempt here, and none that is far ahead; or a certificate of one that passed.
            let is_near = self.terms.begun(self.now).map_or(attempt == 0, |now| attempt <= now + 1);
            if !is_near || attempt >= self.terms.attempts() {
                return Err(DropReason::WrongRound);
            }
            match &message.body {
                Body::Cert(cert) => self.open_certified(attempt, cert)?,
                _ if message.signature.is_some() => self.open_attempt(attempt),
                _ => return Err(DropReason::WrongRound),
            }
        }
        self.drive(attempt, RoundInput::Message { message: Box::new(message), bytes }, out);
        Ok(())
    }

    /// Takes part in an attempt that others have brought to a key while this seat was away: it signs nothing in it but a
    /// vote for that key, and asks for what was agreed.
    fn open_certified(&mut self, attempt: u64, cert: &Cert) -> Intake {
        let (record, crypto) = (&self.record, &self.crypto);
        let (market, epoch) = (&record.market, record.epoch);
        let seats: Vec<u16> = cert.quorum.signers.iter().collect();
        let message = vote_bytes(VoteWord::Award, market, epoch, attempt, 0, &cert.root);
        let enough = seats.len() >= usize::from(record.q());
        if !enough || !crypto.verify_aggregate(&seats, &message, &cert.quorum.aggregate) {
            return Err(DropReason::BadSignature);
        }
        let (record, crypto) = (record.clone(), crypto.clone());
        let round = Round::observe_about_keys(record, crypto, self.index, attempt, self.now);
        self.attempts.insert(attempt, Attempt::new(round));
        Ok(())
    }

    /// Decodes a message of this generation and checks its signature.
    fn check(&self, bytes: &[u8]) -> Result<Message, DropReason> {
        let message = decode(bytes, self.record.n()).map_err(|_| DropReason::Malformed)?;
        if message.header.market != self.record.short_id() || message.header.epoch != self.record.epoch {
            return Err(DropReason::Foreign);
        }
        let seat = self.record.seat(message.header.seat).ok_or(DropReason::WrongSender)?;
        if let Some(signature) = &message.signature {
            let hash = message_hash_by::<C::Scheme>(&self.record.market, &message.header, &message.body);
            if !self.crypto.verify(&hash, signature, &seat.evidence_key) {
                return Err(DropReason::BadSignature);
            }
        }
        Ok(message)
    }

    /// What a seat says before the attempts.
    fn take_own_word(&mut self, message: Message, bytes: Vec<u8>, out: &mut Vec<KeyOutput>) -> Intake {
        let seat = message.header.seat;
        if message.header.round != 0 {
            return Err(DropReason::WrongRound);
        }
        match message.body {
            Body::DealKey(announced) => {
                if self.learn_key(seat, &announced)? {
                    self.hear(bytes, out);
                }
                Ok(())
            }
            Body::Deal(deal) => self.take_deal(seat, &deal.dealing, bytes, out),
            Body::Acks(acks) => match self.said_held.get(&seat) {
                Some(known) if *known == acks.held => Err(DropReason::Duplicate),
                Some(_) => Err(DropReason::Conflict),
                None => {
                    self.said_held.insert(seat, acks.held);
                    self.hear(bytes, out);
                    Ok(())
                }
            },
            _ => Err(DropReason::Unexpected),
        }
    }

    /// Takes a dealing; of each dealer the first two versions are kept. The bytes are durable before they are acknowledged.
    pub(super) fn take_deal(
        &mut self,
        seat: u16,
        dealing: &[u8],
        bytes: Vec<u8>,
        out: &mut Vec<KeyOutput>,
    ) -> Intake {
        let versions = self.heard.range((seat, [0; 32])..=(seat, [255; 32])).count();
        if self.heard.values().any(|known| *known == bytes) {
            return Err(DropReason::Duplicate);
        }
        if versions >= 2 {
            return Err(DropReason::Conflict);
        }
        self.keep_deal(seat, dealing, bytes, out)
    }

    fn keep_deal(&mut self, seat: u16, dealing: &[u8], bytes: Vec<u8>, out: &mut Vec<KeyOutput>) -> Intake {
        let dealing = Dealing::read(&self.setup, dealing).map_err(|_| DropReason::Malformed)?;
        if dealing.dealer() != seat {
            return Err(DropReason::WrongSender);
        }
        let digest = dealing.digest();
        // The same commitment in other words is no other dealing. What is no good for this seat, others may still hold.
        if let Err(DkgError::Duplicate(_)) = self.player.receive(dealing, &self.secrets.deal) {
            return Err(DropReason::Conflict);
        }
        self.hear(bytes.clone(), out);
        self.heard.insert((seat, digest), bytes);
        Ok(())
    }

    /// Keeps what a restart is to know again.
    fn hear(&self, bytes: Vec<u8>, out: &mut Vec<KeyOutput>) {
        out.push(KeyOutput::Persist(LogRecord::Heard { at_ms: self.now, bytes }));
    }

    /// Takes a dealing that was asked for: it is its dealer's own word.
    fn take_fetched(&mut self, bytes: Vec<u8>, out: &mut Vec<KeyOutput>) -> Intake {
        let message = self.check(&bytes)?;
        let (Kind::Deal, Body::Deal(deal)) = (message.header.kind, message.body) else {
            return Err(DropReason::Unexpected);
        };
        let seat = message.header.seat;
        let digest = Dealing::read(&self.setup, &deal.dealing).map_err(|_| DropReason::Malformed)?.digest();
        if !self.waits_for(seat, &digest) || self.heard.contains_key(&(seat, digest)) {
            return Err(DropReason::Unexpected);
        }
        self.keep_deal(seat, &deal.dealing, bytes, out)
    }
}
