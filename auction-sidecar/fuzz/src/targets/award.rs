//! Certificates, awards and market records, as files and against a market.

use super::Cost::{Bytes, Pairing, Signature};
use super::{SIZES, Target, json_value, target};
use crate::bounds::bounded;
use crate::fixture::fixture;
use vendue_auction_core::award::{AwardFile, CertificateFile};
use vendue_auction_core::{MarketRecord, SignedMarketRecord, verify};
use vendue_market::Outcome;

pub(super) const TARGETS: &[Target] = &[
    target("certificate_file", Bytes, certificate_file),
    target("certificate_verify", Pairing, certificate_verify),
    target("award_file", Signature, award_file),
    target("market_record", Signature, market_record),
    target("market_record_keys", Pairing, market_record_keys),
];

/// A certificate has one file, for a market of one size.
fn certificate_file(bytes: &[u8]) -> bool {
    let Some(file) = json_value::<CertificateFile>(bytes) else { return false };
    let mut read = false;
    for n in SIZES {
        if let Ok(certificate) = bounded(bytes.len(), n, || file.certificate(n)) {
            assert_eq!(CertificateFile::from(&certificate), file, "a certificate has two files");
            read = true;
        }
    }
    read
}

/// Only the votes of the seats make a certificate: one that verifies is one that was made.
fn certificate_verify(bytes: &[u8]) -> bool {
    let Some(file) = json_value::<CertificateFile>(bytes) else { return false };
    let Ok(certificate) = file.certificate(fixture().record.n()) else { return false };
    let accepted = verify::certificate(&fixture().record, &certificate).is_ok();
    assert!(!accepted || fixture().certificates().contains(&certificate), "forged: {certificate:?}");
    accepted
}

/// An award that verifies is one that was made, whatever its file looks like.
fn award_file(bytes: &[u8]) -> bool {
    let Some(file) = json_value::<AwardFile>(bytes) else { return false };
    let record = &fixture().record;
    let home = verify::order(record, &file.order, &file.order_signature);
    for certificate in fixture().certificates() {
        let outcome = verify::outcome(record, certificate, &file.proof, &file.order);
        if let (Ok(_), Ok(()), Outcome::Award(_)) = (&home, outcome, &file.proof.leaf.outcome) {
            let made = |f: &&AwardFile| f.proof == file.proof && f.order == file.order;
            assert!(fixture().award_files().iter().any(|f| made(&f)), "forged: {file:?}");
        }
    }
    home.is_ok()
}

/// A record that is accepted is the one that its issuer signed.
fn market_record(bytes: &[u8]) -> bool {
    let Ok(text) = std::str::from_utf8(bytes) else { return false };
    let Ok(signed) = SignedMarketRecord::from_json(text) else { return false };
    assert_eq!(SignedMarketRecord::from_json(&signed.to_json()).as_ref(), Ok(&signed));
    let issued = [&fixture().signed, &fixture().signed_with_tables];
    let same = |known: &&SignedMarketRecord| signed.record == known.record;
    assert!(signed.issuer_key != issued[0].issuer_key || issued.iter().any(same), "forged");
    true
}

/// The checks of a record behind its signature, which whoever issues one could make fail.
fn market_record_keys(bytes: &[u8]) -> bool {
    let Some(record) = json_value::<MarketRecord>(bytes) else { return false };
    let accepted = record.validate();
    assert_eq!(record.validate().is_ok(), accepted.is_ok());
    if accepted.is_ok() {
        assert!(record.q() > 2 * record.f() && record.q() + record.f() == record.n());
        assert!(record.params.order_step() > 0 && record.params.last_view() > 0);
    }
    accepted.is_ok()
}
