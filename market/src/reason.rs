//! Why a provider does not serve an order, and how many providers gave each reason.

use crate::encode::{Canonical, DecodeError, Reader, Writer};
use serde::{Deserialize, Serialize};
use std::{collections::BTreeMap, fmt};

/// Why one provider does not serve one order. Codes are part of the wire format and never reused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[repr(u8)]
pub enum Reason {
    /// No node has an accepted GPU model.
    Model = 1,
    /// GPUs of an accepted model have too little memory.
    Memory = 2,
    /// Too few GPUs are free in all.
    FreeGpus = 3,
    /// Enough GPUs are free, but not together on one node for each worker.
    GpusPerNode = 4,
    /// Too little CPU beside the GPUs.
    Cpu = 5,
    /// Too little host memory beside the GPUs.
    HostMemory = 6,
    /// Too little disk beside the GPUs.
    Disk = 7,
    /// The price is above the order's ceiling.
    Price = 8,
    /// The provider does not accept the image.
    Image = 9,
    /// The run deadline is longer than the provider accepts.
    RunTime = 10,
    /// The order excludes the provider.
    Excluded = 11,
    /// The order names other providers only.
    NotIncluded = 12,
    /// The provider's bundle did not name the order.
    NotListed = 13,
    /// No bundle of the provider was admitted.
    Silent = 14,
    /// The provider's bundle could not be read.
    Garbage = 15,
    /// The provider advertises nothing.
    NoOffer = 16,
    /// It fitted, but the capacity went to other orders of the same round.
    Outbid = 17,
    /// The provider does not serve the home that placed the order.
    Home = 18,
    /// The order is for another provider only.
    Pinned = 19,
    /// The seat is not in an accepted region.
    Region = 20,
    /// The seat's attestation level is too low.
    Attestation = 21,
    /// The seat's standing is too low.
    Standing = 22,
    /// The provider may interrupt runs, and the order does not allow it.
    Interruption = 23,
    /// The run does not fit into the time of the order or of the bid.
    Window = 24,
    /// The order's sealed ceiling does not open.
    Ceiling = 25,
    /// The market's rules of clearing do not know the order's terms.
    Rules = 26,
}

impl Reason {
    /// Every reason, by code.
    pub const ALL: [Reason; 26] = [
        Reason::Model,
        Reason::Memory,
        Reason::FreeGpus,
        Reason::GpusPerNode,
        Reason::Cpu,
        Reason::HostMemory,
        Reason::Disk,
        Reason::Price,
        Reason::Image,
        Reason::RunTime,
        Reason::Excluded,
        Reason::NotIncluded,
        Reason::NotListed,
        Reason::Silent,
        Reason::Garbage,
        Reason::NoOffer,
        Reason::Outbid,
        Reason::Home,
        Reason::Pinned,
        Reason::Region,
        Reason::Attestation,
        Reason::Standing,
        Reason::Interruption,
        Reason::Window,
        Reason::Ceiling,
        Reason::Rules,
    ];

    /// The stable code.
    pub fn code(self) -> u8 {
        self as u8
    }
    /// The reason with this code.
    pub fn from_code(code: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|r| r.code() == code)
    }
    /// How far judging got before it failed, in the order in which constraints are judged; of several offers the one
    /// that got furthest gives the reason.
    pub fn closeness(self) -> u8 {
        match self {
            Reason::Silent | Reason::Garbage | Reason::NotListed | Reason::NoOffer => 0,
            Reason::Rules | Reason::Ceiling => 0,
            Reason::Pinned | Reason::Excluded | Reason::NotIncluded => 1,
            Reason::Region | Reason::Attestation | Reason::Standing => 1,
            Reason::Home => 2,
            Reason::Image => 3,
            Reason::RunTime => 4,
            Reason::Interruption => 5,
            Reason::Window => 6,
            Reason::Model | Reason::Memory | Reason::FreeGpus | Reason::GpusPerNode => 6 + self.code(),
            Reason::Cpu | Reason::HostMemory | Reason::Disk | Reason::Price => 6 + self.code(),
            Reason::Outbid => u8::MAX,
        }
    }
    /// The plain word used in messages and metrics.
    pub fn name(self) -> &'static str {
        match self {
            Reason::Model => "model",
            Reason::Memory => "memory",
            Reason::FreeGpus => "free GPUs",
            Reason::GpusPerNode => "GPUs per node",
            Reason::Cpu => "CPU",
            Reason::HostMemory => "host memory",
            Reason::Disk => "disk",
            Reason::Price => "price",
            Reason::Image => "image",
            Reason::RunTime => "run time",
            Reason::Excluded => "excluded",
            Reason::NotIncluded => "not included",
            Reason::NotListed => "not listed",
            Reason::Silent => "silent",
            Reason::Garbage => "unreadable bundle",
            Reason::NoOffer => "no offer",
            Reason::Outbid => "capacity taken in the round",
            Reason::Home => "home not served",
            Reason::Pinned => "pinned to another",
            Reason::Region => "region",
            Reason::Attestation => "attestation",
            Reason::Standing => "standing",
            Reason::Interruption => "may interrupt",
            Reason::Window => "time window",
            Reason::Ceiling => "sealed ceiling unreadable",
            Reason::Rules => "terms unknown to the rules",
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// How many of the market's providers gave each reason. Shows as `0 of 4 providers: 2 model, 1 memory, 1 free GPUs`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Histogram {
    /// Providers in the market.
    pub providers: u16,
    /// Providers by reason.
    #[serde(deserialize_with = "counts")]
    pub counts: BTreeMap<Reason, u16>,
}

/// Reads counts of which none is zero: a histogram has one form in files, too.
fn counts<'de, D: serde::Deserializer<'de>>(d: D) -> Result<BTreeMap<Reason, u16>, D::Error> {
    let counts = BTreeMap::<Reason, u16>::deserialize(d)?;
    if counts.values().any(|n| *n == 0) {
        return Err(serde::de::Error::custom("a reason is given by no provider"));
    }
    Ok(counts)
}

impl Histogram {
    /// An empty histogram over a market of `providers`.
    pub fn new(providers: u16) -> Self {
        Self { providers, counts: BTreeMap::new() }
    }
    /// A histogram of these reasons, one for each provider that gave one.
    pub fn of(providers: u16, reasons: impl IntoIterator<Item = Reason>) -> Self {
        let mut counts = [0u16; Reason::ALL.len() + 1];
        for reason in reasons {
            if let Some(count) = counts.get_mut(usize::from(reason.code())) {
                *count = count.saturating_add(1);
            }
        }
        let count = |reason: Reason| counts.get(usize::from(reason.code())).copied().unwrap_or_default();
        let counts = Reason::ALL.map(|reason| (reason, count(reason)));
        Self { providers, counts: counts.into_iter().filter(|(_, n)| *n > 0).collect() }
    }
    /// Counts one provider.
    pub fn add(&mut self, reason: Reason) {
        let count = self.counts.entry(reason).or_default();
        *count = count.saturating_add(1);
    }
    /// Providers that gave a reason.
    pub fn total(&self) -> u16 {
        self.counts.values().fold(0, |sum, n| sum.saturating_add(*n))
    }
}

impl fmt::Display for Histogram {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of {} providers", self.providers.saturating_sub(self.total()), self.providers)?;
        let mut entries: Vec<_> = self.counts.iter().filter(|(_, n)| **n > 0).collect();
        // Most frequent first; equal counts keep the order of the codes.
        entries.sort_by_key(|(reason, n)| (std::cmp::Reverse(**n), reason.code()));
        for (i, (reason, n)) in entries.into_iter().enumerate() {
            write!(f, "{} {n} {reason}", if i == 0 { ":" } else { "," })?;
        }
        Ok(())
    }
}

impl Canonical for Histogram {
    fn write(&self, w: &mut Writer) {
        let entries: Vec<_> = self.counts.iter().filter(|(_, n)| **n > 0).collect();
        w.u16(self.providers).list(&entries, |w, (reason, n)| {
            w.u8(reason.code()).u16(**n);
        });
    }
    fn read(r: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let providers = r.u16()?;
        let entries = r.list("reasons", Reason::ALL.len(), |r| {
            let reason = Reason::from_code(r.u8()?).ok_or(DecodeError::Invalid("reason"))?;
            Ok((reason, r.u16()?))
        })?;
        // Ascending and non-zero: the only form that the writer produces.
        let ascending = entries.windows(2).all(|w| matches!(w, [a, b] if a.0 < b.0));
        if !ascending || entries.iter().any(|(_, n)| *n == 0) {
            return Err(DecodeError::Invalid("histogram"));
        }
        Ok(Self { providers, counts: entries.into_iter().collect() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shows_like_the_manual() {
        let mut h = Histogram::new(4);
        for r in [Reason::Memory, Reason::Model, Reason::FreeGpus, Reason::Model] {
            h.add(r);
        }
        assert_eq!(h.to_string(), "0 of 4 providers: 2 model, 1 memory, 1 free GPUs");
        assert_eq!(Histogram::new(3).to_string(), "3 of 3 providers");
        assert_eq!(Histogram::from_bytes(&h.to_bytes()).unwrap(), h);
    }

    #[test]
    fn codes_are_unique_and_reversible() {
        for (i, reason) in Reason::ALL.into_iter().enumerate() {
            assert_eq!(usize::from(reason.code()), i + 1);
            assert_eq!(Reason::from_code(reason.code()), Some(reason));
        }
        assert_eq!(Reason::from_code(0), None);
    }

    #[test]
    fn only_one_encoding() {
        for bad in [vec![0, 4, 0, 0, 0, 1, 1, 0, 0], vec![0, 4, 0, 0, 0, 2, 2, 0, 1, 1, 0, 1]] {
            assert_eq!(Histogram::from_bytes(&bad), Err(DecodeError::Invalid("histogram")));
        }
        let json = |counts: &str| format!("{{\"providers\":4,\"counts\":{counts}}}");
        assert!(serde_json::from_str::<Histogram>(&json("{\"Model\":1}")).is_ok());
        assert!(serde_json::from_str::<Histogram>(&json("{\"Model\":1,\"Home\":0}")).is_err());
    }
}
