//! Inputs from rounds as a whole: logs, what a seat is told, what is cleared, and fault proofs of every form.

use super::{Inputs, fixture, json, sized, step, termed};
use crate::fixture::rules_with_tables;
use crate::targets::{HOME, SEAT, TORN};
use vendue_auction_core::award::CertificateFile;
use vendue_auction_core::log::{Answer, LogRecord, SegmentHead, encode_frame};
use vendue_auction_core::wire::{Kind, Listed, peek_kind};
use vendue_auction_core::{LocalBids, Plaintext};
use vendue_market::encode::Canonical;
use vendue_market::{ClearingRules, Reason};

pub(super) fn seeds(target: &str) -> Option<Inputs> {
    Some(match target {
        "log_record" => records().iter().map(|r| sized(4, &r.encode())).collect(),
        "log_segment" => segments(),
        "log_replay" => {
            termed().logs.iter().take(1).map(|log| parts(log.iter().map(LogRecord::encode))).collect()
        }
        "clearing_rules" => rules().iter().map(json).collect(),
        "clearing" => rounds(),
        "fault_proof_form" => forms(),
        _ => return None,
    })
}

/// Each part behind its length.
fn parts(parts: impl IntoIterator<Item = Vec<u8>>) -> Vec<u8> {
    let with_length = |part: Vec<u8>| [&(part.len() as u32).to_be_bytes(), part.as_slice()].concat();
    parts.into_iter().flat_map(with_length).collect()
}

/// A few records of each kind.
fn records() -> Vec<LogRecord> {
    let order = termed().orders[0].digest();
    let hand_over = |answer| LogRecord::HandOver { order, home: 0, round: 40, until_ms: 90_000, answer };
    let made = [
        LogRecord::Observe { at_ms: 1, until_ms: 2 },
        hand_over(Answer::Held),
        hand_over(Answer::Taken),
        hand_over(Answer::Refused(Reason::FreeGpus)),
        LogRecord::Freed { order },
        LogRecord::Omitted { at_ms: 3, round: 40 },
        LogRecord::List { round: 40, list: (0..3).map(|seat| Listed { seat, d: [4; 32] }).collect() },
    ];
    let logs = termed().logs.iter().take(2).flatten().cloned();
    let mut of_kind = std::collections::BTreeMap::<u8, usize>::new();
    let mut few = |record: &LogRecord| {
        let count = of_kind.entry(record.encode()[0]).or_default();
        *count += 1;
        *count <= 6
    };
    made.into_iter().chain(logs).filter(|r| few(r)).collect()
}

fn segment(number: u64, records: &[LogRecord]) -> Vec<u8> {
    let market = fixture().record.market;
    let head = SegmentHead { market, seat: SEAT, generation: 3, number, seed: [6; 16] };
    let mut bytes = head.encode();
    for record in records {
        let frame = encode_frame(&record.encode(), &head, bytes.len() as u64);
        bytes.extend(frame);
    }
    bytes
}

/// Whole, empty, and torn at several places.
fn segments() -> Inputs {
    let whole = segment(0, &records());
    let cut = |len: usize| [&[TORN], &whole[..len]].concat();
    let long = segment(1, &termed().logs[0]);
    vec![
        [&[0], whole.as_slice()].concat(),
        [&[TORN], long.as_slice()].concat(),
        [&[0], segment(2, &[]).as_slice()].concat(),
        cut(20),
        cut(whole.len() - 3),
        cut(whole.len() / 2),
    ]
}

/// What seat 0 hears in the round with terms: the orders, then the others' messages.
pub(super) fn a_round_with_terms() -> Vec<u8> {
    let t = termed();
    // The target's clock starts before the first round; waiting is at most 2.55 s a step.
    let mut wait = t.told_ms.saturating_sub(fixture().starts_ms) / crate::targets::UNIT_MS;
    let mut steps = vec![];
    while wait > 0 {
        let part = wait.min(255);
        steps.extend(step(HOME, part as u8, &[]));
        wait -= part;
    }
    t.told.iter().for_each(|order| steps.extend(step(HOME, 0, order)));
    steps.extend(step(HOME, 30, &[]));
    for kind in [Kind::Bundle, Kind::Set, Kind::Open, Kind::Award] {
        let said = t.heard.iter().filter(|(_, m)| peek_kind(m) == Some(kind)).take(3);
        said.for_each(|(from, m)| steps.extend(step(*from as u8 - 1, 1, m)));
    }
    steps
}

fn rules() -> [ClearingRules; 3] {
    [ClearingRules::default(), ClearingRules::latest(), rules_with_tables()]
}

/// What was bid in the round with terms, cleared by each of the rules; with no orders; with fewer seats.
fn rounds() -> Inputs {
    let t = termed();
    let mut orders = t.orders.clone();
    orders.sort_by_key(|o| o.digest());
    let bids = |log: &Vec<LogRecord>| {
        log.iter().find_map(|r| match r {
            LogRecord::Bids { bids, .. } => Some(LocalBids::clone(bids)),
            _ => None,
        })
    };
    let plain = |b: LocalBids| Plaintext {
        capacity: b.parts.into_iter().map(|p| p.capacity).collect(),
        records: b.records.into_iter().map(|r| r.kind).collect(),
    };
    let bundles: Vec<Vec<u8>> = t.logs.iter().filter_map(bids).map(|b| plain(b).to_padded()).collect();
    let bodies = parts(orders.iter().map(Canonical::to_bytes));
    let round = |rules: &ClearingRules, seats: usize| {
        let count = [orders.len() as u8];
        let sealed = parts(bundles.iter().take(seats).cloned());
        [parts([json(rules)]).as_slice(), &count, &bodies, &sealed].concat()
    };
    let none = Plaintext { capacity: vec![], records: vec![] }.to_padded();
    let empty = [parts([json(&ClearingRules::latest())]).as_slice(), &[0], &parts([none])].concat();
    let mut all: Inputs = rules().iter().map(|rules| round(rules, 4)).collect();
    all.extend([round(&ClearingRules::latest(), 2), empty]);
    all
}

/// A proof of each form there is, whether it proves anything or not.
fn forms() -> Inputs {
    let said = |kind| hex::encode(fixture().of_kind(kind).next().cloned().unwrap_or_default());
    let certificate = CertificateFile::from(&fixture().certificates()[0]);
    let path = &fixture().award_files()[0].proof.path;
    let (digest, aggregate) = (hex::encode([7; 32]), hex::encode([8; 48]));
    let listed = serde_json::json!({"seat": 1, "d": digest});
    let quorum = serde_json::json!({"quorum": {
        "ballot": "admit", "round": 1, "view": 0, "digest": digest, "signers": "0e", "aggregate": aggregate,
    }});
    let made = [
        serde_json::json!({"two_votes": {"first": quorum, "second": {"message": said(Kind::Admit)}}}),
        serde_json::json!({"against_lock": {
            "admit": said(Kind::Admit), "proposal": said(Kind::Propose), "lock": said(Kind::Lock),
        }}),
        serde_json::json!({"hidden_set": {"view": said(Kind::NewView), "set": {"message": said(Kind::Set)}}}),
        serde_json::json!({"hidden_set": {
            "view": said(Kind::NewView), "set": {"full": {"digest": digest, "aggregate": aggregate}},
        }}),
        serde_json::json!({"garbage": {"certificate": certificate, "bundle": listed, "path": path}}),
        serde_json::json!({"bad_message": {"message": said(Kind::Open)}}),
    ];
    fixture().proofs.iter().map(json).chain(made.iter().map(json)).collect()
}
