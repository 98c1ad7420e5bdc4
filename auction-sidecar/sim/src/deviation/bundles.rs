//! Bundles that are not what an honest seat sends: late, to few, several, copied, changed, or with records that it could
//! not keep.

use super::{Actor, Deviation, FalseRecords, Letter, Outgoing};
use std::collections::BTreeSet;
use vendue_auction_core::Crypto;
use vendue_auction_core::wire::{Body, Bundle, Header, Kind, Message, View, view_digest};
use vendue_market::encode::{Canonical, Writer};
use vendue_market::{Digest, NodeCapacity, OfferCapacity, tagged_hash};

impl<C: Crypto> Actor<C> {
    pub(super) fn change_bundle(
        &mut self,
        deviation: Deviation,
        mut o: Outgoing,
        message: Message,
    ) -> Vec<Outgoing> {
        let round = message.header.round;
        let Body::Bundle(mut bundle) = message.body else { return vec![o] };
        let version = match deviation {
            Deviation::TwoBundles => u8::from(o.to % 2 == 1),
            Deviation::ManyBundles => o.to.to_be_bytes()[1],
            _ => 0,
        };
        match deviation {
            Deviation::PartialBundle(count) => {
                let others: Vec<u16> = self.others().collect();
                let start = (round % others.len().max(1) as u64) as usize;
                let mut chosen = others.iter().cycle().skip(start).take(usize::from(count));
                return if chosen.any(|s| *s == o.to) { vec![o] } else { vec![] };
            }
            Deviation::LateBundle(ms) => {
                o.delay_ms += ms;
                return vec![o];
            }
            Deviation::CopiedBundle => return vec![],
            Deviation::FalseRecords(how) => {
                o.letter = self.false_records(round, how, &bundle.order_view).unwrap_or(o.letter);
                return vec![o];
            }
            Deviation::TwoBundles | Deviation::ManyBundles if version > 0 => {
                bundle.payload.iter_mut().for_each(|b| *b ^= version);
            }
            Deviation::MauledBundle(0) => bundle.u[5] ^= 1,
            Deviation::MauledBundle(1) => bundle.v[5] ^= 1,
            Deviation::MauledBundle(2) => bundle.payload.iter_mut().take(1).for_each(|b| *b ^= 1),
            Deviation::MauledBundle(3) => bundle.order_view.clear(),
            Deviation::MauledBundle(_) => {
                bundle.u = [0; 48];
                bundle.u[0] = 0xc0;
            }
            _ => return self.filter(deviation, o, Kind::Bundle),
        }
        o.letter = self.sign(round, Body::Bundle(bundle));
        vec![o]
    }

    /// A bundle with records of its own making, sealed like any other; the same for every receiver.
    fn false_records(&mut self, round: u64, how: FalseRecords, view: &[Digest]) -> Option<Letter> {
        if let Some(made) = self.made.get(&round) {
            return Some(made.clone());
        }
        let mut order_view: BTreeSet<Digest> = view.iter().copied().collect();
        match how {
            FalseRecords::ForeignOrders => order_view.extend((1..4u8).map(|i| [i; 32])),
            FalseRecords::AllOrders => {
                self.orders.extend(view);
                order_view.extend(self.orders.iter().rev().take(50));
            }
            _ => {}
        }
        let order_view: View = order_view.into_iter().collect::<Vec<Digest>>().into();
        let plaintext = plaintext(how, order_view.len())?;
        let mut bundle = Bundle { order_view, u: [0; 48], v: [0; 32], payload: vec![] };
        let header = Header {
            kind: Kind::Bundle,
            market: self.record.short_id(),
            epoch: self.record.epoch,
            round,
            seat: self.seat,
        };
        let parts: [&[u8]; 3] = [&self.record.market, &header.to_bytes(), &view_digest(&bundle.order_view)];
        let sealed_with = tagged_hash("VENDUE-V1-SEAL-HEADER", &parts);
        let sealed = self.crypto.seal(round, &sealed_with, &plaintext).ok()?;
        (bundle.u, bundle.v, bundle.payload) = (sealed.u, sealed.v, sealed.payload);
        let made = self.sign(round, Body::Bundle(bundle));
        self.made.insert(round, made.clone());
        Some(made)
    }
}

/// A padded plaintext with one record for each of so many orders, or what is said to be one.
fn plaintext(how: FalseRecords, orders: usize) -> Option<Vec<u8>> {
    let node = NodeCapacity {
        model: "H100".parse().ok()?,
        gpu_memory_mib: 81_920,
        free_gpus: 1_000,
        cpu_millis: 1_000_000_000,
        memory_mib: 1_000_000_000,
        disk_mib: 1_000_000_000,
    };
    let capacity = match how {
        FalseRecords::NoCapacity => vec![],
        _ => vec![OfferCapacity::of(vec![node])],
    };
    let records = match how {
        FalseRecords::TwiceEach => orders * 2,
        _ => orders,
    };
    // Cheaper than anybody, or than anything can be.
    let price: i64 = match how {
        FalseRecords::NegativePrice => -1_000_000,
        FalseRecords::Shill(price) => price,
        _ => 1_000_000,
    };
    let mut w = Writer::new();
    w.u8(1).list(&capacity, |w, c| c.write(w)).list(&vec![(); records], |w, ()| {
        w.u8(1).i64(price).u16(0);
    });
    let body = w.finish();
    let mut out = Writer::new();
    out.bytes(&body);
    let mut bytes = out.finish();
    bytes.resize(bytes.len().next_power_of_two().max(256), 0);
    Some(bytes)
}
