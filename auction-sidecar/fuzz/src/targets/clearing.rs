//! Clearing: rules, orders and opened bundles that nobody has looked at before.

use super::Cost::{Bytes, Signature};
use super::{Target, json_value, target};
use std::collections::BTreeSet;
use vendue_auction_core::Plaintext;
use vendue_market::encode::Canonical;
use vendue_market::{
    Cleared, ClearingInput, ClearingRules, Digest, ListedOrder, OpenedBundle, Order, Outcome, STAND_BYS,
    clear, explain,
};

pub(super) const TARGETS: &[Target] =
    &[target("clearing_rules", Bytes, clearing_rules), target("clearing", Signature, clearing)];

/// Seats of the rounds that are cleared here.
pub const SEATS: u16 = 4;

/// Rules that are accepted know every seat or none, and have a score for each.
fn clearing_rules(bytes: &[u8]) -> bool {
    let Some(rules) = json_value::<ClearingRules>(bytes) else { return false };
    let accepted = rules.check(SEATS).is_ok();
    assert!(!accepted || rules.seats.is_empty() || rules.seats.len() == usize::from(SEATS));
    // Whatever they say, seats that are not in them have nothing.
    assert_eq!(rules.score(u16::MAX), 0);
    (0..SEATS).for_each(|seat| assert!(rules.score(seat) <= u64::MAX / 2));
    accepted
}

/// A part of an input, behind its length.
fn part<'b>(bytes: &mut &'b [u8]) -> Option<&'b [u8]> {
    let (len, rest) = bytes.split_first_chunk::<4>()?;
    let (part, rest) = rest.split_at_checked(u32::from_be_bytes(*len) as usize)?;
    *bytes = rest;
    Some(part)
}

/// A round to clear.
struct Round {
    rules: ClearingRules,
    orders: Vec<Order>,
    /// The orders' digests, as the bundles speak of them.
    view: Vec<Digest>,
    /// Each seat's, with its provider's name.
    bundles: Vec<(String, Plaintext)>,
}

impl Round {
    fn listed(&self) -> Vec<ListedOrder<'_>> {
        self.view.iter().zip(&self.orders).map(|(digest, order)| ListedOrder::of(*digest, order)).collect()
    }
    fn opened(&self) -> Vec<OpenedBundle<'_>> {
        let opened = |(seat, (provider, plain))| {
            let Plaintext { capacity, records }: &Plaintext = plain;
            OpenedBundle { seat, provider, capacity, orders: &self.view, records }
        };
        (0..SEATS)
            .zip(self.bundles.iter().map(|(provider, plain)| (provider.as_str(), plain)))
            .map(opened)
            .collect()
    }
}

/// Rules, a number of orders, the orders, and the plaintext of each seat's bundle.
fn read(mut bytes: &[u8]) -> Option<Round> {
    let rules: ClearingRules = serde_json::from_slice(part(&mut bytes)?).ok()?;
    rules.check(SEATS).ok()?;
    let (count, rest) = bytes.split_first()?;
    bytes = rest;
    let orders: Option<Vec<Order>> =
        (0..*count % 16).map(|_| Order::from_bytes(part(&mut bytes)?).ok()).collect();
    let orders = orders?;
    let mut bundles = vec![];
    for seat in 0..SEATS {
        let Some(padded) = part(&mut bytes) else { break };
        let plain = Plaintext::from_padded(padded, orders.len()).ok()?;
        bundles.push((format!("provider-{seat}"), plain));
    }
    let view = orders.iter().map(Order::digest).collect();
    Some(Round { rules, orders, view, bundles })
}

/// Each order has one outcome within its ceiling, the same in whatever sequence things come, and a reason for each seat.
fn clearing(bytes: &[u8]) -> bool {
    let Some(round) = read(bytes) else { return false };
    let (garbage, orders, bundles) = (BTreeSet::new(), round.listed(), round.opened());
    let input = ClearingInput {
        rules: &round.rules,
        beacon: &[5; 32],
        expires_ms: 31_000,
        seats: SEATS,
        orders: &orders,
        bundles: &bundles,
        garbage: &garbage,
    };
    let cleared = clear(&input);
    let digests: BTreeSet<_> = round.view.iter().copied().collect();
    assert!(cleared.iter().map(|c| c.order).eq(digests), "each order has one outcome");
    cleared.iter().for_each(|c| explained(&input, &cleared, c));
    let last_first: Vec<_> = orders.iter().rev().copied().collect();
    let bundles: Vec<_> = bundles.iter().rev().copied().collect();
    assert_eq!(clear(&ClearingInput { orders: &last_first, bundles: &bundles, ..input }), cleared);
    true
}

fn explained(input: &ClearingInput<'_>, all: &[Cleared], cleared: &Cleared) {
    let why = explain(input, all, &cleared.order).expect("an order of the round");
    assert_eq!(why.seats.len(), usize::from(SEATS));
    let Outcome::Award(award) = &cleared.outcome else { return };
    let order = input.orders.iter().find(|o| o.digest == cleared.order).expect("an order of the round");
    assert!(order.ceiling.is_some_and(|ceiling| award.price <= ceiling), "{award:?} is above the ceiling");
    assert!(award.stand_bys.len() <= STAND_BYS && award.stand_bys.iter().all(|s| s.seat != award.seat));
    let won = why.seats.iter().filter(|s| matches!(s.verdict, vendue_market::Verdict::Won { .. }));
    assert!(won.map(|s| s.seat).eq([award.seat]), "one seat has won");
}
