//! The one encoding of a record, its digest, and the hash that is signed.
//!
//! Input: records, or bytes of anybody. Output: bytes, digests, records. Invariant: what decodes encodes to the same
//! bytes. Integers are big-endian; texts and lists have a u32 length before them; what may be missing has a byte 0 or 1
//! before it.

use crate::chain::{ChainError, Fault};
use crate::names::{AwardId, BootId, Name, PublicKey};
use crate::record::*;
use std::sync::OnceLock;
use vendue_market::encode::{Canonical, DecodeError, Reader, Writer};
use vendue_market::{Digest, tagged_hash};
use vendue_signatures::{Domain, Field, keccak, typed_hash};

/// Domain of the digests of records.
const TAG: &str = "VENDUE-V1-RECEIPT";
/// No record is longer.
pub const MAX_ENCODED: usize = 1024;

impl Record {
    /// The record without its signature.
    fn write_unsigned(&self, w: &mut Writer) {
        w.u8(Version::NUMBER).raw(&self.award.0).u64(self.sequence).raw(&self.previous);
        self.body.write(w);
    }

    /// What the record's signature signs.
    pub fn signed_hash(&self) -> Digest {
        signed_hash(&self.digest())
    }

    /// The record's bytes.
    pub fn encode(&self) -> Vec<u8> {
        self.to_bytes()
    }

    /// The digest by which the next record names this one. The signature is not in it: a record that is signed twice
    /// is still one record.
    pub fn digest(&self) -> Digest {
        let mut w = Writer::with_capacity(MAX_ENCODED);
        self.write_unsigned(&mut w);
        tagged_hash(TAG, &[&w.finish()])
    }
}

/// What the signature of a record with this digest signs.
pub(crate) fn signed_hash(digest: &Digest) -> Digest {
    static TYPE: OnceLock<(Domain, Digest)> = OnceLock::new();
    let (domain, receipt) = TYPE.get_or_init(|| (Domain::plain(), keccak(&[b"Receipt(bytes32 digest)"])));
    typed_hash(domain, receipt, &[Field::Word(digest)])
}

/// Records one after another, as they are stored and sent. The error names the first that is none.
pub fn read_records(bytes: &[u8]) -> Result<Vec<Record>, ChainError> {
    let (mut r, mut records) = (Reader::new(bytes), vec![]);
    while !r.rest().is_empty() {
        let at = records.len() as u64;
        records.push(Record::read(&mut r).map_err(|error| ChainError { record: at, fault: error.into() })?);
    }
    Ok(records)
}

impl From<DecodeError> for Fault {
    fn from(error: DecodeError) -> Self {
        if error == DecodeError::Invalid("version") { Fault::Version } else { Fault::Malformed(error) }
    }
}

impl Canonical for Record {
    fn write(&self, w: &mut Writer) {
        self.write_unsigned(w);
        w.raw(&self.signature);
    }
    fn read(r: &mut Reader<'_>) -> Result<Self, DecodeError> {
        if r.u8()? != Version::NUMBER {
            return Err(DecodeError::Invalid("version"));
        }
        Ok(Self {
            version: Version,
            award: AwardId(r.array()?),
            sequence: r.u64()?,
            previous: r.array()?,
            body: Body::read(r)?,
            signature: r.array()?,
        })
    }
}

impl Canonical for Body {
    fn write(&self, w: &mut Writer) {
        match self {
            Self::Opened(Opened { public_key, boot, time_ms }) => {
                w.u8(1).raw(&public_key.0).raw(&boot.0).u64(*time_ms);
            }
            Self::Used(used) => {
                w.u8(2);
                write_used(used, w);
            }
            Self::Gap(gap) => {
                w.u8(3);
                write_gap(gap, w);
            }
            Self::Clock(Clock { time_ms, system_ms }) => {
                w.u8(4).u64(*time_ms).u64(*system_ms);
            }
            Self::Rotated(Rotated { time_ms, next_key }) => {
                w.u8(5).u64(*time_ms).raw(&next_key.0);
            }
            Self::Closed(Closed { time_ms }) => {
                w.u8(6).u64(*time_ms);
            }
        }
    }
    fn read(r: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(match r.u8()? {
            1 => Self::Opened(Opened {
                public_key: PublicKey(r.array()?),
                boot: BootId(r.array()?),
                time_ms: r.u64()?,
            }),
            2 => Self::Used(read_used(r)?),
            3 => Self::Gap(read_gap(r)?),
            4 => Self::Clock(Clock { time_ms: r.u64()?, system_ms: r.u64()? }),
            5 => Self::Rotated(Rotated { time_ms: r.u64()?, next_key: PublicKey(r.array()?) }),
            6 => Self::Closed(Closed { time_ms: r.u64()? }),
            _ => return Err(DecodeError::Invalid("kind")),
        })
    }
}

fn write_option<T>(w: &mut Writer, value: Option<&T>, write: impl FnOnce(&mut Writer, &T)) {
    w.u8(u8::from(value.is_some()));
    if let Some(value) = value {
        write(w, value);
    }
}

fn read_option<T>(
    r: &mut Reader<'_>,
    what: &'static str,
    read: impl FnOnce(&mut Reader<'_>) -> Result<T, DecodeError>,
) -> Result<Option<T>, DecodeError> {
    match r.u8()? {
        0 => Ok(None),
        1 => read(r).map(Some),
        _ => Err(DecodeError::Invalid(what)),
    }
}

fn read_name<const MAX: usize>(r: &mut Reader<'_>, what: &'static str) -> Result<Name<MAX>, DecodeError> {
    r.str(what, MAX)?.try_into().map_err(|_| DecodeError::Invalid(what))
}

fn write_energy(w: &mut Writer, energy: &Energy) {
    w.u64(energy.used_mj).u64(energy.counter_mj);
}

fn read_energy(r: &mut Reader<'_>) -> Result<Energy, DecodeError> {
    Ok(Energy { used_mj: r.u64()?, counter_mj: r.u64()? })
}

fn write_xids(w: &mut Writer, xids: &Xids) {
    w.list(xids.as_slice(), |w, xid| {
        w.u32(xid.code).u32(xid.count);
    });
}

fn read_xids(r: &mut Reader<'_>) -> Result<Xids, DecodeError> {
    r.list("xids", MAX_XIDS, |r| Ok(Xid { code: r.u32()?, count: r.u32()? }))?.try_into()
}

/// Every field is named, so that one that is added is not forgotten here.
fn write_used(used: &Used, w: &mut Writer) {
    let Used { device, t0_ms, t1_ms, wall_ns, energy, activity, memory_peak_bytes, xids, driver } = used;
    w.str(device.as_str()).u64(*t0_ms).u64(*t1_ms).u64(*wall_ns);
    write_option(w, energy.as_ref(), write_energy);
    write_option(w, activity.as_ref(), |w, activity| {
        let source = match activity.source {
            ActivitySource::SmActive => 1,
            ActivitySource::Utilization => 2,
        };
        w.u8(source).u32(activity.average_millionths);
    });
    write_option(w, memory_peak_bytes.as_ref(), |w, peak| {
        w.u64(*peak);
    });
    write_xids(w, xids);
    w.str(driver.as_str());
}

fn read_used(r: &mut Reader<'_>) -> Result<Used, DecodeError> {
    Ok(Used {
        device: read_name(r, "device")?,
        t0_ms: r.u64()?,
        t1_ms: r.u64()?,
        wall_ns: r.u64()?,
        energy: read_option(r, "energy", read_energy)?,
        activity: read_option(r, "activity", |r| {
            let source = match r.u8()? {
                1 => ActivitySource::SmActive,
                2 => ActivitySource::Utilization,
                _ => return Err(DecodeError::Invalid("activity source")),
            };
            Ok(Activity { source, average_millionths: r.u32()? })
        })?,
        memory_peak_bytes: read_option(r, "memory peak", |r| r.u64())?,
        xids: read_xids(r)?,
        driver: read_name(r, "driver")?,
    })
}

fn write_gap(gap: &Gap, w: &mut Writer) {
    let Gap { device, t0_ms, t1_ms, reason, energy, xids } = gap;
    write_option(w, device.as_ref(), |w, device| {
        w.str(device.as_str());
    });
    let code = GapReason::ALL.iter().position(|r| r == reason).unwrap_or_default() as u8 + 1;
    w.u64(*t0_ms).u64(*t1_ms).u8(code);
    write_option(w, energy.as_ref(), write_energy);
    write_xids(w, xids);
}

fn read_gap(r: &mut Reader<'_>) -> Result<Gap, DecodeError> {
    Ok(Gap {
        device: read_option(r, "device", |r| read_name(r, "device"))?,
        t0_ms: r.u64()?,
        t1_ms: r.u64()?,
        reason: r
            .u8()?
            .checked_sub(1)
            .and_then(|at| GapReason::ALL.get(usize::from(at)).copied())
            .ok_or(DecodeError::Invalid("reason"))?,
        energy: read_option(r, "energy", read_energy)?,
        xids: read_xids(r)?,
    })
}
