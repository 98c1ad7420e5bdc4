//! Seats that make the next key, and a process that is given it.

use std::collections::BTreeMap;
use std::fs;

use vendue_auction_core::evidence::{EvidenceKey, record_hash};
use vendue_auction_core::keygen::{
    Generated, KeyGeneration, KeyInput, KeyOutput, KeySecrets, LEAST_NOTICE_MS, Terms, next_record,
};
use vendue_auction_core::secret;
use vendue_sealed_bid::dkg::{DealKey, DealerSeed, Purpose};

use super::*;
use crate::deal::{self, DealOptions};
use crate::keys::KeysFile;

/// When the seats make the next key.
fn start(record: &MarketRecord) -> u64 {
    record.params.genesis_ms + 10_000
}

/// A market in a folder, with the keys of its next epoch.
struct Market {
    dir: tempfile::TempDir,
    issuer: EvidenceKey,
    current: SignedMarketRecord,
    next: MarketRecord,
}

impl Market {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let address = |i: u16| format!("/ip4/127.0.0.1/udp/{}/quic-v1", 4_000 + i).parse().unwrap();
        let options = DealOptions {
            market: "m".into(),
            seats: (0..4).map(|i| (format!("p{i}"), address(i))).collect(),
            homes: vec!["p0".into()],
            regions: vec![],
            delay_ms: 100,
            period_ms: 600,
            handover_ms: 5_000,
            out: dir.path().join("deal"),
        };
        deal::run(&options).unwrap();
        let text = fs::read_to_string(options.out.join("market.json")).unwrap();
        let record = SignedMarketRecord::from_json(&text).unwrap().record;
        let issuer = EvidenceKey::from_bytes(&[7; 32]).unwrap();
        let current = sign(&issuer, record);
        let mut market = Self { next: current.record.clone(), dir, issuer, current };
        market.generate();
        market
    }

    fn file(&self, seat: u16) -> KeysFile {
        let path = self.dir.path().join(format!("deal/keys/p{seat}.json"));
        secret::from_json(&fs::read_to_string(path).unwrap()).unwrap()
    }

    fn keys(&self, seat: u16) -> SeatKeys {
        SeatKeys::from_file(self.file(seat).seat.as_ref().unwrap()).unwrap()
    }

    /// Makes the key and writes what an operator gives each process.
    fn generate(&mut self) {
        let record = Arc::new(self.current.record.clone());
        let made = generate(&record, &terms(&record), (0..4).map(|seat| self.keys(seat)).collect());
        let first = &made[&0];
        self.next = next_record(&record, &terms(&record), first.set, &first.outcome.keys, &first.certificate)
            .unwrap();
        self.write("next.json", &sign(&self.issuer, self.next.clone()).to_json());
        for (seat, made) in made {
            let keys = SeatKeys { share: made.share.unwrap(), ..self.keys(seat) };
            let file = KeysFile { seat: Some(keys.to_file()), ..self.file(seat) };
            self.write(&format!("{seat}.json"), &secret::to_json(&file).unwrap());
        }
    }

    fn write(&self, name: &str, text: &str) {
        fs::write(self.dir.path().join(name), text).unwrap();
    }

    fn args(&self, record: &str, keys: Option<&str>) -> NextArgs {
        let path = |name: &str| self.dir.path().join(name);
        NextArgs { next_market_record: Some(path(record)), next_keys: keys.map(path) }
    }

    /// What becomes of seat 0 that starts with these files.
    fn start(&self, record: &str, keys: Option<&str>) -> Result<Epochs<Arc<SeatCrypto>>, NextError> {
        let mut next = NextEpoch::read(&self.args(record, keys), &self.current)?.unwrap();
        let record = Arc::new(self.current.record.clone());
        let now = start(&record);
        let crypto = Arc::new(SeatCrypto::new(record.clone(), self.keys(0)));
        let mut epochs = Epochs::new(record, crypto);
        next.give_seat(&mut epochs, 0, now).map(|()| epochs)
    }
}

fn sign(issuer: &EvidenceKey, record: MarketRecord) -> SignedMarketRecord {
    let signature = issuer.sign(&record_hash(&record));
    SignedMarketRecord { record, issuer_key: issuer.public_key(), signature }
}

pub(crate) fn terms(record: &MarketRecord) -> Terms {
    Terms::new(record, Purpose::Key, start(record), LEAST_NOTICE_MS).unwrap()
}

/// The record that follows, with keys that the seats begin to make so long after the market's first round.
pub(crate) fn generated(record: &MarketRecord, keys: Vec<SeatKeys>, after_ms: u64) -> MarketRecord {
    let start = record.params.genesis_ms + after_ms;
    let terms = Terms::new(record, Purpose::Key, start, LEAST_NOTICE_MS).unwrap();
    let made = generate(&Arc::new(record.clone()), &terms, keys);
    let first = &made[&0];
    next_record(record, &terms, first.set, &first.outcome.keys, &first.certificate).unwrap()
}

/// The seats' key generation on a network that delivers at once.
pub(crate) fn generate(
    record: &Arc<MarketRecord>,
    terms: &Terms,
    keys: Vec<SeatKeys>,
) -> BTreeMap<u16, Generated> {
    let begins = terms.start_ms();
    let mut seats: Vec<_> = keys
        .into_iter()
        .map(|keys| {
            let seat = keys.seat;
            let byte = |label: u8| [label + seat as u8; 32];
            let deal = DealKey::generate(&byte(10)).unwrap();
            let secrets = KeySecrets { seed: DealerSeed::from_bytes(&byte(50)), deal, old: None };
            let crypto = Arc::new(SeatCrypto::new(record.clone(), keys));
            KeyGeneration::new(terms.clone(), seat, crypto, secrets, begins).unwrap()
        })
        .collect();
    let (mut done, mut now, mut queue) = (BTreeMap::new(), begins, vec![]);
    while done.len() < 4 && now < begins + 60_000 {
        let inputs = std::mem::take(&mut queue).into_iter();
        let ticks = (0..4u16).map(|to| (to, KeyInput::Tick));
        for (to, input) in inputs.chain(ticks) {
            for output in seats[usize::from(to)].handle(now, input) {
                let message = |bytes| KeyInput::Message { from: to, bytes };
                match output {
                    KeyOutput::Broadcast(bytes) => {
                        let others = (0..4).filter(|other| *other != to);
                        queue.extend(others.map(|other| (other, message(bytes.clone()))));
                    }
                    KeyOutput::Send { to: other, bytes } => queue.push((other, message(bytes))),
                    KeyOutput::Done(made) => {
                        done.insert(to, *made);
                    }
                    KeyOutput::Persist(_) | KeyOutput::Evidence(_) | KeyOutput::Fruitless { .. } => {}
                }
            }
        }
        now += 20;
    }
    done
}

#[test]
fn a_process_starts_with_the_next_epoch_or_says_what_is_wrong_with_it() {
    let market = Market::new();
    let error =
        |record: &str, keys: Option<&str>| market.start(record, keys).map(|_| ()).unwrap_err().to_string();
    assert!(market.start("next.json", Some("0.json")).is_ok());
    let none = NextArgs { next_market_record: None, next_keys: None };
    assert!(NextEpoch::read(&none, &market.current).unwrap().is_none());

    assert!(error("none.json", None).contains("none.json"));
    assert!(error("next.json", None).contains("give --next-keys"));
    // The keys of this seat in the current epoch, and those of another seat.
    let file = secret::to_json(&market.file(0)).unwrap();
    market.write("old.json", &file);
    assert!(error("next.json", Some("old.json")).contains("seal share does not match the market record"));
    assert!(error("next.json", Some("1.json")).contains("the share is not that of seat 0"));
    let other = EvidenceKey::from_bytes(&[8; 32]).unwrap();
    market.write("other.json", &sign(&other, market.next.clone()).to_json());
    assert!(error("other.json", Some("0.json")).contains("another issuer"));
    let mut early = market.next.clone();
    early.generation.as_mut().unwrap().first_round -= 1;
    market.write("early.json", &sign(&market.issuer, early).to_json());
    assert!(error("early.json", Some("0.json")).contains("does not follow that of epoch 0"));
    // After the change both files are those of one epoch.
    market.write("same.json", &market.current.to_json());
    assert!(market.start("same.json", Some("old.json")).is_ok());
}

#[test]
fn a_home_needs_the_record_only() {
    let market = Market::new();
    let next = NextEpoch::read(&market.args("next.json", None), &market.current).unwrap().unwrap();
    let keys = vendue_auction_core::HomeKeys::from_file(market.file(0).home.as_ref().unwrap()).unwrap();
    let record = Arc::new(market.current.record.clone());
    let mut home = Home::new(record.clone(), 0, keys);
    assert!(next.give_home(&mut home, start(&record)).is_ok());
    let wrong = NextEpoch { record: Arc::new(MarketRecord { epoch: 5, ..(*record).clone() }), seat: None };
    assert!(matches!(wrong.give_home(&mut home, start(&record)), Err(NextError::Next(_))));
}
