//! `vendue-auction deal`: keys of a whole market from one dealer, for development.
//!
//! Inputs: names and addresses. Outputs: `market.json` (signed, marked insecure), `issuer.json` (the key that it is signed
//! with), `keys/<name>.json` and `secrets/<name>.yaml` for each cluster. Invariant: files with secrets are readable by their owner only, and an
//! existing deal is never overwritten.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::DirBuilderExt;
use std::path::PathBuf;
use std::time::{SystemTime, UNIX_EPOCH};

use base64::Engine;
use libp2p::Multiaddr;
use rand_core::{CryptoRng, RngCore};
use vendue_auction_core::secret::{self, SecretBytes};
use vendue_auction_core::{DealSpec, Dealt, HomeKeys, KeyError, MemberSpec, Params, SeatKeys, deal_with};
use vendue_market::{ClearingRules, SeatFacts};
use zeroize::Zeroizing;

use crate::keys::{IssuerFile, KeysError, KeysFile, transport};
use crate::new_file::{NewFileError, write_new};

/// What to deal.
#[derive(Debug, Clone)]
pub struct DealOptions {
    /// Name of the market.
    pub market: String,
    /// Seats: name and address.
    pub seats: Vec<(String, Multiaddr)>,
    /// Homes by name; a name that is also a seat's is one cluster with both.
    pub homes: Vec<String>,
    /// Regions of seats, by name; a seat that is not named has none.
    pub regions: Vec<(String, String)>,
    /// Bound on the one-way delay, milliseconds.
    pub delay_ms: u64,
    /// From one round to the next, milliseconds.
    pub period_ms: u64,
    /// Time to hand over after voting has stopped, milliseconds.
    pub handover_ms: u64,
    /// Folder to write to.
    pub out: PathBuf,
}

/// Why nothing was dealt.
#[derive(Debug, thiserror::Error)]
pub enum DealError {
    /// The names cannot be used.
    #[error("{0}")]
    Names(String),
    /// The operating system gives no random bytes.
    #[error("random bytes: {0}")]
    Random(getrandom::Error),
    /// The keys cannot be made.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// A transport key cannot be made.
    #[error(transparent)]
    Transport(#[from] KeysError),
    /// A folder cannot be made.
    #[error("create folder {path}: {source}")]
    Folder {
        /// The folder.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A file cannot be written.
    #[error(transparent)]
    File(#[from] NewFileError),
    /// A key file cannot be encoded.
    #[error("encode keys: {0}")]
    Encode(#[from] serde_json::Error),
}

/// The operating system's random bytes.
struct OsRandom(Option<getrandom::Error>);

impl RngCore for OsRandom {
    fn next_u32(&mut self) -> u32 {
        rand_core::impls::next_u32_via_fill(self)
    }
    fn next_u64(&mut self) -> u64 {
        rand_core::impls::next_u64_via_fill(self)
    }
    fn fill_bytes(&mut self, bytes: &mut [u8]) {
        // The trait cannot fail here: the error is kept, and the deal is thrown away when there is one.
        if let Err(error) = getrandom::fill(bytes) {
            self.0 = Some(error);
        }
    }
    fn try_fill_bytes(&mut self, bytes: &mut [u8]) -> Result<(), rand_core::Error> {
        self.fill_bytes(bytes);
        Ok(())
    }
}

impl CryptoRng for OsRandom {}

/// Deals and writes everything. Returns the path of the market record.
pub fn run(options: &DealOptions) -> Result<PathBuf, DealError> {
    check_names(options)?;
    let mut random = OsRandom(None);
    let mut secrets: BTreeMap<String, SecretBytes> = BTreeMap::new();
    for name in options.seats.iter().map(|(name, _)| name).chain(&options.homes) {
        if !secrets.contains_key(name) {
            let mut secret = Zeroizing::new([0u8; 32]);
            random.fill_bytes(secret.as_mut_slice());
            secrets.insert(name.clone(), SecretBytes::new(secret));
        }
    }
    let dealt = deal_with(&spec(options, &secrets)?, clearing(options)?, &mut random)?;
    if let Some(error) = random.0 {
        return Err(DealError::Random(error));
    }
    write_all(options, &dealt, &secrets)
}

fn check_names(options: &DealOptions) -> Result<(), DealError> {
    let sound = |name: &str| {
        (1..=63).contains(&name.len())
            && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
    };
    let seats: Vec<_> = options.seats.iter().map(|(name, _)| name).collect();
    for list in [seats, options.homes.iter().collect()] {
        if let Some(bad) = list.iter().find(|n| !sound(n)) {
            return Err(DealError::Names(format!(
                "{bad:?} is no name; accepted: 1 to 63 of a-z, 0-9 and '-'"
            )));
        }
        let unique: std::collections::BTreeSet<_> = list.iter().collect();
        if unique.len() != list.len() {
            return Err(DealError::Names("two seats or two homes have the same name".to_owned()));
        }
    }
    Ok(())
}

fn spec(options: &DealOptions, secrets: &BTreeMap<String, SecretBytes>) -> Result<DealSpec, DealError> {
    let member = |name: &str, addresses: Vec<String>| -> Result<MemberSpec, DealError> {
        let secret = secrets.get(name).ok_or_else(|| DealError::Names(format!("{name} has no key")))?;
        let peer_id = transport(secret)?.public().to_peer_id().to_string();
        Ok(MemberSpec { name: name.to_owned(), peer_id, addresses })
    };
    let seats = options
        .seats
        .iter()
        .map(|(name, address)| member(name, vec![address.to_string()]))
        .collect::<Result<_, _>>()?;
    let homes = options.homes.iter().map(|name| member(name, vec![])).collect::<Result<_, _>>()?;
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_millis());
    let params = Params {
        delay_ms: options.delay_ms,
        period_ms: options.period_ms,
        genesis_ms: u64::try_from(now).unwrap_or(0),
        handover_ms: options.handover_ms,
    };
    Ok(DealSpec { name: options.market.clone(), params, seats, homes })
}

/// The rules of clearing, with what is known of each seat.
fn clearing(options: &DealOptions) -> Result<ClearingRules, DealError> {
    let regions: BTreeMap<&str, &str> =
        options.regions.iter().map(|(seat, region)| (seat.as_str(), region.as_str())).collect();
    if regions.len() != options.regions.len() {
        return Err(DealError::Names("--region names a seat twice".to_owned()));
    }
    if let Some(unknown) = regions.keys().find(|name| options.seats.iter().all(|(seat, _)| seat != *name)) {
        return Err(DealError::Names(format!("--region names {unknown:?}, which is no seat")));
    }
    let mut rules = ClearingRules::latest();
    if !regions.is_empty() {
        let facts = |(seat, _): &(String, Multiaddr)| SeatFacts {
            region: regions.get(seat.as_str()).copied().unwrap_or_default().to_owned(),
            ..SeatFacts::default()
        };
        rules.seats = options.seats.iter().map(facts).collect();
    }
    Ok(rules)
}

fn write_all(
    options: &DealOptions,
    dealt: &Dealt,
    secrets: &BTreeMap<String, SecretBytes>,
) -> Result<PathBuf, DealError> {
    for folder in ["keys", "secrets"] {
        let path = options.out.join(folder);
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&path)
            .map_err(|source| DealError::Folder { path, source })?;
    }
    for (name, secret) in secrets {
        let seat = options.seats.iter().position(|(n, _)| n == name).and_then(|i| dealt.seats.get(i));
        let home = options.homes.iter().position(|n| n == name).and_then(|i| dealt.homes.get(i));
        let file = KeysFile {
            name: name.clone(),
            transport: secret.clone(),
            seat: seat.map(SeatKeys::to_file),
            home: home.map(HomeKeys::to_file),
        };
        let json = secret::to_json(&file)?;
        write_new(&options.out.join("keys").join(format!("{name}.json")), json.as_bytes(), 0o600)?;
        let manifest = secret_manifest(json.as_bytes());
        write_new(&options.out.join("secrets").join(format!("{name}.yaml")), manifest.as_bytes(), 0o600)?;
    }
    let issuer = IssuerFile { issuer: SecretBytes::new(dealt.issuer.to_bytes()) };
    write_new(&options.out.join("issuer.json"), secret::to_json(&issuer)?.as_bytes(), 0o600)?;
    let record = options.out.join("market.json");
    write_new(&record, dealt.record.to_json().as_bytes(), 0o644)?;
    Ok(record)
}

/// The Secret that the Deployment mounts.
fn secret_manifest(keys: &[u8]) -> Zeroizing<String> {
    const HEAD: &str = "apiVersion: v1\nkind: Secret\nmetadata:\n  name: vendue-keys\n  labels:\n    \
        app.kubernetes.io/managed-by: vendue\ntype: Opaque\ndata:\n  keys.json: ";
    let data = Zeroizing::new(base64::engine::general_purpose::STANDARD.encode(keys));
    // Made in its full size: text that grows leaves copies of itself.
    let mut text = Zeroizing::new(String::with_capacity(HEAD.len() + data.len() + 1));
    text.push_str(HEAD);
    text.push_str(&data);
    text.push('\n');
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keys::Keys;
    use std::os::unix::fs::PermissionsExt;
    use vendue_auction_core::{KeyOrigin, Peer, SignedMarketRecord};

    #[test]
    fn a_deal_is_private_complete_and_not_overwritten() {
        let dir = tempfile::tempdir().unwrap();
        let address: Multiaddr = "/ip4/10.77.2.2/udp/30470/quic-v1".parse().unwrap();
        let options = DealOptions {
            regions: vec![],
            market: "demo".into(),
            seats: ["alpha", "bravo", "charlie", "delta"].map(|n| (n.to_owned(), address.clone())).to_vec(),
            homes: vec!["home".into(), "alpha".into()],
            delay_ms: 125,
            period_ms: 750,
            handover_ms: 5000,
            out: dir.path().join("deal"),
        };
        let record =
            SignedMarketRecord::from_json(&fs::read_to_string(run(&options).unwrap()).unwrap()).unwrap();
        assert_eq!(record.record.key_origin, KeyOrigin::InsecureDealer);
        for (name, own) in [
            ("alpha", vec![Peer::Seat(0), Peer::Home(1)]),
            ("delta", vec![Peer::Seat(3)]),
            ("home", vec![Peer::Home(0)]),
        ] {
            let path = options.out.join(format!("keys/{name}.json"));
            assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
            let keys = Keys::from_json(&fs::read_to_string(path).unwrap(), &record.record).unwrap();
            assert_eq!(keys.own(), own);
            let manifest = fs::read_to_string(options.out.join(format!("secrets/{name}.yaml"))).unwrap();
            assert!(manifest.contains("name: vendue-keys") && manifest.contains("keys.json: "));
        }
        assert!(matches!(run(&options), Err(DealError::File(error)) if error.is_there()));
        let twice = DealOptions { homes: vec!["home".into(), "home".into()], ..options.clone() };
        assert!(matches!(run(&twice), Err(DealError::Names(_))));
        let in_regions = |regions: &[(&str, &str)], out: &str| {
            let regions =
                regions.iter().map(|(seat, region)| ((*seat).to_owned(), (*region).to_owned())).collect();
            run(&DealOptions { regions, out: dir.path().join(out), ..options.clone() })
        };
        let path = in_regions(&[("bravo", "eu-north")], "regions").unwrap();
        let record = SignedMarketRecord::from_json(&fs::read_to_string(path).unwrap()).unwrap().record;
        let regions: Vec<&str> = (0..4).map(|seat| record.clearing.facts(seat).region.as_str()).collect();
        assert_eq!(regions, ["", "eu-north", "", ""]);
        for bad in [&[("echo", "x")][..], &[("alpha", "x"), ("alpha", "y")]] {
            let error = in_regions(bad, "bad").unwrap_err().to_string();
            assert!(error.contains("--region names"), "{error}");
        }
    }
}
