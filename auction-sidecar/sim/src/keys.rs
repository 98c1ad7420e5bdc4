//! The keys of a simulated market: real ones, or made up for the stand-in cryptography.
//!
//! Inputs: what the market is to be like, and a random source. Outputs: the market record and, as often as wanted, the
//! cryptography of a seat or of the home.

use crate::epochs::NextEpoch;
use crate::mock::{MockCrypto, MockScheme, MockUser};
use rand_chacha::ChaCha20Rng;
use rand_core::RngCore;
use std::sync::Arc;
use vendue_auction_core::record::rules_hash;
use vendue_auction_core::{
    Crypto, Curves, DealSpec, HomeKeys, HomeRecord, KeyError, KeyOrigin, MarketRecord, MemberSpec, Params,
    Scheme, SeatCrypto, SeatKeys, SeatRecord, UserCrypto, deal,
};
use vendue_market::ClearingRules;

/// Keys of a market.
pub trait Keys: Sized {
    /// What checks signatures.
    type Scheme: Scheme;
    /// A seat's cryptography.
    type Seat: Crypto<Scheme = Self::Scheme, Opened = <Self::Scheme as Scheme>::Opened>;
    /// A home's.
    type User: UserCrypto<Scheme = Self::Scheme>;

    /// Makes the keys of all members.
    fn deal(spec: &DealSpec, rng: &mut ChaCha20Rng) -> Result<Self, KeyError>;
    /// The market.
    fn record(&self) -> Arc<MarketRecord>;
    /// The cryptography of a seat.
    fn seat(&self, seat: u16) -> Result<Self::Seat, KeyError>;
    /// The cryptography of the home.
    fn user(&self) -> Result<Self::User, KeyError>;
    /// The record of the next epoch, and the cryptography of a seat in it.
    fn next(&self, _seat: u16) -> Result<(Arc<MarketRecord>, Self::Seat), KeyError> {
        Err(KeyError::Mismatch("next epoch"))
    }
}

/// A market of so many seats and one home.
pub fn spec(seats: u16, params: Params) -> DealSpec {
    let member = |name: String| MemberSpec { peer_id: format!("peer-{name}"), name, addresses: vec![] };
    DealSpec {
        name: "sim".into(),
        params,
        seats: (0..seats).map(|i| member(format!("provider-{i}"))).collect(),
        homes: vec![member("home".into())],
    }
}

/// Keys for secp256k1 and BLS12-381.
pub struct RealKeys {
    record: Arc<MarketRecord>,
    seats: Vec<String>,
    home: String,
    next: Option<NextEpoch>,
}

impl Keys for RealKeys {
    type Scheme = Curves;
    type Seat = SeatCrypto;
    type User = HomeKeys;

    fn deal(spec: &DealSpec, rng: &mut ChaCha20Rng) -> Result<Self, KeyError> {
        let dealt = deal(spec, rng)?;
        let home = dealt.homes.first().ok_or(KeyError::Mismatch("number of homes"))?;
        Ok(Self {
            seats: dealt.seats.iter().map(|k| k.to_json().to_string()).collect(),
            home: home.to_json().to_string(),
            record: Arc::new(dealt.record.record),
            next: None,
        })
    }
    fn record(&self) -> Arc<MarketRecord> {
        self.record.clone()
    }
    fn seat(&self, seat: u16) -> Result<SeatCrypto, KeyError> {
        let text = self.seats.get(usize::from(seat)).ok_or(KeyError::Mismatch("seat number"))?;
        Ok(SeatCrypto::new(self.record.clone(), SeatKeys::from_json(text)?))
    }
    fn user(&self) -> Result<HomeKeys, KeyError> {
        HomeKeys::from_json(&self.home)
    }
    fn next(&self, seat: u16) -> Result<(Arc<MarketRecord>, SeatCrypto), KeyError> {
        let next = self.next.as_ref().ok_or(KeyError::Mismatch("next epoch"))?;
        let text = next.files.get(usize::from(seat)).ok_or(KeyError::Mismatch("seat number"))?;
        let keys = SeatKeys::from_json(text)?;
        keys.check(&next.record)?;
        Ok((next.record.clone(), SeatCrypto::new(next.record.clone(), keys)))
    }
}

impl RealKeys {
    /// Gives the seats the keys of the next epoch.
    pub(crate) fn set_next(&mut self, next: NextEpoch) {
        self.next = Some(next);
    }
    /// A seat's secret keys in their file form, to sign what it did not say.
    pub fn seat_file(&self, seat: u16) -> Option<&str> {
        self.seats.get(usize::from(seat)).map(String::as_str)
    }
    /// The home's secret key in its file form.
    pub fn home_file(&self) -> &str {
        &self.home
    }
}

/// Keys for the stand-in: random bytes.
pub struct MockKeys {
    record: Arc<MarketRecord>,
}

fn random<const N: usize>(rng: &mut ChaCha20Rng) -> [u8; N] {
    let mut bytes = [0; N];
    rng.fill_bytes(&mut bytes);
    bytes
}

impl Keys for MockKeys {
    type Scheme = MockScheme;
    type Seat = MockCrypto;
    type User = MockUser;

    fn deal(spec: &DealSpec, rng: &mut ChaCha20Rng) -> Result<Self, KeyError> {
        let seats = (0u16..).zip(&spec.seats).map(|(index, member)| SeatRecord {
            index,
            provider: member.name.clone(),
            evidence_key: random(rng),
            vote_key: random(rng),
            vote_key_proof: random(rng),
            seal_share_key: random(rng),
            peer_id: member.peer_id.clone(),
            addresses: member.addresses.clone(),
        });
        let seats: Vec<SeatRecord> = seats.collect();
        let homes = spec.homes.iter().map(|member| HomeRecord {
            name: member.name.clone(),
            user_key: random(rng),
            peer_id: member.peer_id.clone(),
            addresses: member.addresses.clone(),
        });
        let homes = homes.collect();
        let record = MarketRecord {
            version: 1,
            name: spec.name.clone(),
            market: random(rng),
            epoch: 0,
            seats,
            homes,
            seal_key: random(rng),
            params: spec.params,
            rules_hash: rules_hash(),
            clearing: ClearingRules::latest(),
            key_origin: KeyOrigin::InsecureDealer,
            generation: None,
        };
        Ok(Self { record: Arc::new(record) })
    }
    fn record(&self) -> Arc<MarketRecord> {
        self.record.clone()
    }
    fn seat(&self, seat: u16) -> Result<MockCrypto, KeyError> {
        Ok(MockCrypto::new(self.record.clone(), seat))
    }
    fn user(&self) -> Result<MockUser, KeyError> {
        self.record.home(0).map(|h| MockUser(h.user_key)).ok_or(KeyError::Mismatch("number of homes"))
    }
}
