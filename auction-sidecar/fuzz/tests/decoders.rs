//! Every public decoder of what the auction reads from others has a target: the sources are searched for decoders, and
//! what is found is compared with a list that names the target of each.
#![allow(clippy::unwrap_used)] // Helpers of tests fail like tests.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use vendue_auction_fuzz::{all, corpus};

/// Crates by the name that the list gives them, and where their sources are.
const CRATES: [(&str, &str); 5] = [
    ("market", "../../market/src"),
    ("signatures", "../../signatures/src"),
    ("receipts", "../../receipts/src"),
    ("core", "../core/src"),
    ("sealed_bid", "../sealed-bid/src"),
];

/// How the names of functions that decode begin.
const VERBS: [&str; 6] = ["read", "from_", "decode", "peek", "parse", "try_from"];
/// Traits whose implementations decode.
const TRAITS: [&str; 4] = ["Canonical", "FromStr", "Deserialize", "TryFrom"];

/// The target of each decoder. JSON of a type that is a part of another is read by that one's target.
const TARGET_OF: &[(&str, &str)] = &[
    ("core::AwardFile as Deserialize", "award_file"),
    ("core::AwardProof as Deserialize", "award_file"),
    ("core::OrderLeaf as Deserialize", "award_file"),
    ("core::Path as Deserialize", "award_file"),
    ("core::OrderLeaf as Canonical", "order_leaf"),
    ("core::CertificateFile as Deserialize", "certificate_file"),
    ("core::FaultProof as Deserialize", "fault_proof_form"),
    ("core::FaultProof::from_json", "fault_proof"),
    ("core::Absence as Deserialize", "fault_proof_form"),
    ("core::BundleHead as Deserialize", "fault_proof_form"),
    ("core::HexDigest as Deserialize", "fault_proof_form"),
    ("core::Accused as Deserialize", "fault_proof_form"),
    ("core::WrongAward as Deserialize", "fault_proof_form"),
    ("core::AgainstLock as Deserialize", "fault_proof_form"),
    ("core::BadMessage as Deserialize", "fault_proof_form"),
    ("core::HiddenSet as Deserialize", "fault_proof_form"),
    ("core::OwnSet as Deserialize", "fault_proof_form"),
    ("core::Ballot as Deserialize", "fault_proof_form"),
    ("core::Voted as Deserialize", "fault_proof_form"),
    ("core::TwoVotes as Deserialize", "fault_proof_form"),
    ("core::Double as Deserialize", "fault_proof_form"),
    ("core::SignedBundle as Deserialize", "fault_proof_form"),
    ("core::Garbage as Deserialize", "fault_proof_form"),
    ("core::Listed as Deserialize", "fault_proof_form"),
    ("core::Signed as Deserialize", "fault_proof_form"),
    ("core::AwardRef as Deserialize", "frame_handover"),
    ("core::FileEntry as Deserialize", "frame_handover"),
    ("core::Handover as Deserialize", "frame_handover"),
    ("core::HandoverReply as Deserialize", "frame_handover_reply"),
    ("core::Bulk as Deserialize", "frame_bulk"),
    ("core::BulkReply as Deserialize", "frame_bulk_reply"),
    ("core::ChainHead as Deserialize", "frame_chain_list"),
    ("core::ChainList as Deserialize", "frame_chain_list"),
    ("core::ChainList::decode", "frame_chain_list"),
    ("core::frames::decode", "frame_handover"),
    ("core::frames::decode_bulk", "frame_bulk"),
    ("signatures::SigningKey::from_bytes", "secret_scalars"),
    ("core::SecretBytes as Deserialize", "seat_key_file"),
    ("core::secret::from_json", "seat_key_file"),
    ("core::SeatKeyFile as Deserialize", "seat_key_file"),
    ("core::SeatKeys::from_file", "seat_key_file"),
    ("core::SeatKeys::from_json", "seat_key_file"),
    ("core::HomeKeyFile as Deserialize", "home_key_file"),
    ("core::HomeKeys::from_file", "home_key_file"),
    ("core::HomeKeys::from_json", "home_key_file"),
    ("core::MarketRecord as Deserialize", "market_record_keys"),
    ("core::SeatRecord as Deserialize", "market_record_keys"),
    ("core::HomeRecord as Deserialize", "market_record_keys"),
    ("core::KeyOrigin as Deserialize", "market_record_keys"),
    ("core::Params as Deserialize", "market_record_keys"),
    ("core::Generation as Deserialize", "market_record_keys"),
    ("core::SignedMarketRecord as Deserialize", "market_record"),
    ("core::SignedMarketRecord::from_json", "market_record"),
    ("core::LogRecord::decode", "log_record"),
    ("core::log::read_segment", "log_segment"),
    ("core::Header::read", "header"),
    ("core::Kind::from_code", "header"),
    ("core::Plaintext::from_padded", "plaintext"),
    ("core::Signers::from_bitmap", "signers"),
    ("core::Word::read", "dkg_word"),
    ("core::wire::decode", "message"),
    ("core::wire::peek_kind", "message"),
    ("market::AcceptRules as Deserialize", "offer_json"),
    ("market::Offer as Deserialize", "offer_json"),
    ("market::OfferNode as Deserialize", "offer_json"),
    ("market::BidTerms as Deserialize", "offer_json"),
    ("market::BidTerms::read", "plaintext"),
    ("market::ClearingRules as Deserialize", "clearing_rules"),
    ("market::ScoreWeights as Deserialize", "clearing_rules"),
    ("market::SeatFacts as Deserialize", "clearing_rules"),
    ("market::Cost as Deserialize", "cost_text"),
    ("market::Cost as FromStr", "cost_text"),
    ("market::Cost as TryFrom", "cost_text"),
    ("market::Cost::from_micros", "cost"),
    ("market::GpuModel as Canonical", "gpu_model"),
    ("market::GpuModel as Deserialize", "order_json"),
    ("market::GpuModel as FromStr", "gpu_model_text"),
    ("market::GpuModel as TryFrom", "order_json"),
    ("market::Histogram as Canonical", "histogram"),
    ("market::Histogram as Deserialize", "outcome_json"),
    ("market::NodeCapacity as Canonical", "node_capacity"),
    ("market::NodeCapacity as Deserialize", "offer_json"),
    ("market::OfferCapacity as Canonical", "offer_capacity"),
    ("market::OfferCapacity as Deserialize", "offer_capacity_json"),
    ("market::Order as Canonical", "order"),
    ("market::Order as Deserialize", "order_json"),
    ("market::Requirements as Canonical", "requirements"),
    ("market::Requirements as Deserialize", "order_json"),
    ("market::SealedCeiling as Deserialize", "order_json"),
    ("market::Terms as Deserialize", "order_json"),
    ("market::Unserved as Deserialize", "order_json"),
    ("market::Outcome as Canonical", "outcome"),
    ("market::Outcome as Deserialize", "outcome_json"),
    ("market::Award as Deserialize", "outcome_json"),
    ("market::StandBy as Deserialize", "outcome_json"),
    ("market::Reason as Deserialize", "outcome_json"),
    ("market::Reason::from_code", "outcome"),
    ("market::Price as Canonical", "price"),
    ("market::Price as Deserialize", "order_json"),
    ("market::Price as FromStr", "price_text"),
    ("market::Price as TryFrom", "order_json"),
    ("market::Price::from_micros", "price"),
    ("market::encode::from_hex", "hex_text"),
    ("receipts::Record as Deserialize", "receipt_json"),
    ("receipts::Body as Deserialize", "receipt_json"),
    ("receipts::Opened as Deserialize", "receipt_json"),
    ("receipts::Used as Deserialize", "receipt_json"),
    ("receipts::Energy as Deserialize", "receipt_json"),
    ("receipts::Activity as Deserialize", "receipt_json"),
    ("receipts::ActivitySource as Deserialize", "receipt_json"),
    ("receipts::Gap as Deserialize", "receipt_json"),
    ("receipts::GapReason as Deserialize", "receipt_json"),
    ("receipts::Clock as Deserialize", "receipt_json"),
    ("receipts::Rotated as Deserialize", "receipt_json"),
    ("receipts::Closed as Deserialize", "receipt_json"),
    ("receipts::Xid as Deserialize", "receipt_json"),
    ("receipts::Xids as Deserialize", "receipt_json"),
    ("receipts::Version as Deserialize", "receipt_json"),
    ("receipts::AwardId as Deserialize", "receipt_json"),
    ("receipts::BootId as Deserialize", "receipt_json"),
    ("receipts::PublicKey as Deserialize", "receipt_json"),
    ("receipts::Name as Deserialize", "receipt_json"),
    ("receipts::Record as Canonical", "receipt"),
    ("receipts::Body as Canonical", "receipt_body"),
    ("receipts::Xids as TryFrom", "receipt"),
    ("receipts::Name as TryFrom", "receipt"),
    ("receipts::Name as FromStr", "receipt_names"),
    ("receipts::AwardId as FromStr", "receipt_names"),
    ("receipts::encoding::read_records", "receipt_chain"),
    ("receipts::Chain as Deserialize", "receipt_chain_json"),
    ("receipts::Totals as Deserialize", "receipt_chain_json"),
    ("receipts::DeviceState as Deserialize", "receipt_chain_json"),
    ("receipts::Equivocation as Deserialize", "receipt_equivocation"),
    ("receipts::HourStatement as Canonical", "receipt_hour"),
    ("receipts::HourStatement as Deserialize", "receipt_hour_json"),
    ("receipts::SignedHour as Deserialize", "receipt_hour_json"),
    ("receipts::Inclusion as Deserialize", "receipt_inclusion"),
    ("receipts::Sibling as Deserialize", "receipt_inclusion"),
    ("receipts::ChainName as FromStr", "receipt_names"),
    ("receipts::ReceiptsFile as Deserialize", "receipt_file"),
    ("receipts::FileJob as Deserialize", "receipt_file"),
    ("receipts::FileAward as Deserialize", "receipt_file"),
    ("receipts::FileChain as Deserialize", "receipt_file"),
    ("receipts::Evidence as Deserialize", "receipt_file"),
    ("receipts::ReceiptsHeads as Deserialize", "receipt_heads"),
    ("receipts::AwardHeads as Deserialize", "receipt_heads"),
    ("receipts::ChainHeads as Deserialize", "receipt_heads"),
    ("receipts::Batch as Deserialize", "receipt_batch"),
    ("receipts::Piece as Deserialize", "receipt_batch"),
    ("receipts::ChainName as Deserialize", "receipt_batch"),
    ("receipts::Answer as Deserialize", "receipt_answer"),
    ("receipts::Answered as Deserialize", "receipt_answer"),
    ("receipts::BookId as Deserialize", "receipt_answer"),
    ("receipts::Billed as Deserialize", "receipt_billed"),
    ("receipts::NodeKey::from_bytes", "secret_scalars"),
    ("sealed_bid::BidKey::from_bytes", "seat_key_file"),
    ("sealed_bid::DealKey::from_bytes", "secret_scalars"),
    ("sealed_bid::DealerSeed::from_bytes", "dkg_dealing"),
    ("sealed_bid::SealShare::from_bytes", "secret_scalars"),
    ("sealed_bid::VoteKey::from_bytes", "secret_scalars"),
    ("sealed_bid::KeySet::from_bytes", "dkg_key_set"),
    ("sealed_bid::Contribution::read", "dkg_contribution"),
    ("sealed_bid::Dealing::read", "dkg_dealing"),
    ("sealed_bid::RecipientKey::from_bytes", "dkg_recipient_key"),
    ("sealed_bid::Recovery::read_part", "dkg_part"),
    ("sealed_bid::Recovery::read_split", "dkg_split"),
    ("sealed_bid::MultiVote::from_bytes", "multi_vote"),
    ("sealed_bid::SignerSet::from_bytes", "signer_set"),
    ("sealed_bid::SignerSet::from_seats", "signer_set"),
    ("sealed_bid::VoteKeySet::from_checked", "multi_vote_verify"),
];

/// The first word of a text.
fn word(text: &str) -> &str {
    let end = text.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(text.len());
    &text[..end]
}

/// Trait and type of a line that opens an implementation.
fn implements(line: &str) -> Option<(Option<&str>, &str)> {
    let rest = line.strip_prefix("impl")?;
    let mut depth = 0;
    let generics = rest.char_indices().find(|(_, c)| {
        depth += i32::from(*c == '<') - i32::from(*c == '>');
        depth == 0
    });
    let rest = rest[generics.map_or(0, |(at, c)| at + usize::from(c == '>'))..].trim_start();
    match rest.split_once(" for ") {
        Some((of, owner)) => Some((Some(word(of)), word(owner))),
        None => Some((None, word(rest))),
    }
}

/// The decoders that one file makes public. `module` is where its free functions are.
fn of_file(krate: &str, module: &str, text: &str, found: &mut BTreeSet<String>) {
    let (mut owner, mut derives) = (None, false);
    for line in text.lines().take_while(|l| !l.starts_with("#[cfg(test)]")) {
        if let Some((of, of_type)) = implements(line) {
            owner = Some(of_type);
            found.extend(of.filter(|t| TRAITS.contains(t)).map(|t| format!("{krate}::{of_type} as {t}")));
        } else if line.starts_with('}') {
            owner = None;
        } else if line.starts_with("#[derive(") {
            derives = line.contains("Deserialize");
        }
        let opens = line.strip_prefix("pub struct ").or_else(|| line.strip_prefix("pub enum "));
        if let Some(name) = opens {
            found.extend(derives.then(|| format!("{krate}::{} as Deserialize", word(name))));
            derives = false;
        }
        let function = line.trim_start().strip_prefix("pub fn ").map(word);
        let Some(function) = function.filter(|f| VERBS.iter().any(|v| f.starts_with(v))) else { continue };
        let place = owner.unwrap_or(module);
        found.insert(
            [krate, place, function].iter().filter(|p| !p.is_empty()).copied().collect::<Vec<_>>().join("::"),
        );
    }
}

fn of_folder(krate: &str, module: &str, folder: &Path, found: &mut BTreeSet<String>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_stem().unwrap().to_str().unwrap().to_owned();
        // The first folder or file below the crate's names the module.
        let module =
            if module.is_empty() && !["lib", "mod"].contains(&name.as_str()) { &name } else { module };
        if path.is_dir() {
            of_folder(krate, module, &path, found);
        } else if !name.ends_with("tests") {
            of_file(krate, module, &std::fs::read_to_string(&path).unwrap(), found);
        }
    }
}

fn decoders() -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for (krate, folder) in CRATES {
        of_folder(krate, "", &Path::new(env!("CARGO_MANIFEST_DIR")).join(folder), &mut found);
    }
    found
}

#[test]
fn every_public_decoder_is_in_the_list_and_has_a_target_with_a_corpus() {
    let listed: BTreeMap<&str, &str> = TARGET_OF.iter().copied().collect();
    assert_eq!(listed.len(), TARGET_OF.len(), "a decoder is listed twice");
    let found = decoders();
    let missing: Vec<_> = found.iter().filter(|d| !listed.contains_key(d.as_str())).collect();
    assert!(missing.is_empty(), "decoders without a target: {missing:#?}");
    let gone: Vec<_> = listed.keys().filter(|d| !found.contains(**d)).collect();
    assert!(gone.is_empty(), "no such decoder: {gone:#?}");
    let targets: BTreeSet<&str> = all().map(|t| t.name).collect();
    for (decoder, target) in listed {
        assert!(targets.contains(target), "{decoder} has no target {target}");
        assert!(!corpus::seeds(target).is_empty(), "{target} has no corpus");
    }
}

#[test]
fn every_message_kind_has_a_target() {
    let targets: BTreeSet<String> = all().map(|t| t.name.to_owned()).collect();
    for kind in vendue_auction_core::wire::Kind::ALL {
        assert!(targets.contains(&format!("wire_{}", kind.name())), "{kind:?}");
    }
}

#[test]
fn a_decoder_that_is_new_is_found_wherever_it_stands() {
    let text = "\
#[derive(Debug, Deserialize)]\n#[serde(x)]\npub struct New;\n\
impl New {\n    pub fn from_wire(bytes: &[u8]) {}\n    fn read_in(r: u8) {}\n    pub(crate) fn read(r: u8) {}\n}\n\
impl<'de, T: Into<U>> Deserialize<'de> for Wrapped<T> {\n}\nimpl Canonical for Other {\n}\n\
pub fn decode_it(bytes: &[u8]) {}\n#[cfg(test)]\npub fn read_test() {}\n";
    let mut found = BTreeSet::new();
    of_file("core", "wire", text, &mut found);
    let expected = [
        "core::New as Deserialize",
        "core::New::from_wire",
        "core::Other as Canonical",
        "core::Wrapped as Deserialize",
        "core::wire::decode_it",
    ];
    assert!(found.iter().eq(expected), "{found:#?}");
}

#[test]
fn the_corpus_has_a_proof_of_every_form_and_a_record_of_every_kind() {
    let forms = corpus::seeds("fault_proof_form");
    let form = |bytes: &Vec<u8>| -> Option<String> {
        let value: serde_json::Value = serde_json::from_slice(bytes).ok()?;
        value.as_object()?.keys().next().cloned()
    };
    let forms: BTreeSet<String> = forms.iter().filter_map(form).collect();
    let expected = [
        "absence",
        "against_lock",
        "bad_message",
        "double",
        "garbage",
        "hidden_set",
        "two_votes",
        "wrong_award",
    ];
    assert!(forms.iter().eq(expected), "{forms:?}");
    // The first byte of an input says how many seats there are, the second the kind of the record.
    let kinds: BTreeSet<u8> = corpus::seeds("log_record").iter().map(|r| r[1]).collect();
    assert!(kinds.iter().copied().eq(1..=11), "{kinds:?}");
    // Each term that an order may have is in an order of the corpus.
    let orders = corpus::seeds("order_json").join(&b'\n');
    let text = String::from_utf8(orders).unwrap();
    for term in [
        "regions\":[\"",
        "\"pinned\":\"",
        "second_price\":true",
        "sealed_ceiling\":{",
        "interruptible\":true",
    ] {
        assert!(text.contains(term), "{term}");
    }
}
