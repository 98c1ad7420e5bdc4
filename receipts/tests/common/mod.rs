//! A chain with a record of every kind, and shorthands.
#![allow(dead_code, clippy::unwrap_used, clippy::missing_panics_doc, missing_docs)]

use vendue_receipts::*;

pub const SECOND_NS: u64 = 1_000_000_000;
pub const AWARD: AwardId = AwardId([1, 2, 3, 4, 5, 6, 7, 8]);

pub fn key(seed: u8) -> NodeKey {
    NodeKey::from_bytes(&[seed; 32]).unwrap()
}

pub fn device(name: &str) -> DeviceId {
    name.parse().unwrap()
}

pub fn opened(key: &NodeKey, time_ms: u64) -> Body {
    Body::Opened(Opened { public_key: key.public(), boot: BootId([9; 16]), time_ms })
}

pub fn window(name: &str, t0_ms: u64, t1_ms: u64) -> Used {
    Used {
        device: device(name),
        t0_ms,
        t1_ms,
        wall_ns: (t1_ms - t0_ms) * 1_000_000,
        energy: None,
        activity: Some(Activity { source: ActivitySource::SmActive, average_millionths: 750_000 }),
        memory_peak_bytes: Some(80 << 30),
        xids: Xids::default(),
        driver: "580.95.05".parse().unwrap(),
    }
}

pub fn used(name: &str, t0_ms: u64, t1_ms: u64) -> Body {
    Body::Used(window(name, t0_ms, t1_ms))
}

pub fn metered(name: &str, t0_ms: u64, t1_ms: u64, used_mj: u64, counter_mj: u64) -> Body {
    Body::Used(Used { energy: Some(Energy { used_mj, counter_mj }), ..window(name, t0_ms, t1_ms) })
}

pub fn gap(name: Option<&str>, t0_ms: u64, t1_ms: u64, reason: GapReason) -> Body {
    let device = name.map(device);
    Body::Gap(Gap { device, t0_ms, t1_ms, reason, energy: None, xids: Xids::default() })
}

pub fn closed(time_ms: u64) -> Body {
    Body::Closed(Closed { time_ms })
}

/// Signs bodies into a chain.
pub fn chain(award: AwardId, key: &NodeKey, bodies: Vec<Body>) -> Vec<Record> {
    let mut chain = Chain::new(award, 0);
    bodies.into_iter().map(|body| chain.sign(body, key).unwrap()).collect()
}

/// A chain with a record of every kind, and with every field.
pub fn full_chain() -> Vec<Record> {
    let (old, new) = (key(1), key(2));
    let mut xids = Xids::default();
    [79, 31, 79].into_iter().for_each(|code| xids.add(code));
    let energy = Some(Energy { used_mj: 3_000, counter_mj: 13_000 });
    let mut chain = Chain::new(AWARD, 0);
    let bodies = vec![
        opened(&old, 1_000),
        metered("GPU-0", 1_000, 11_000, 7_000, 10_000),
        Body::Gap(Gap {
            device: Some(device("GPU-0")),
            t0_ms: 11_000,
            t1_ms: 12_000,
            reason: GapReason::DeviceLost,
            energy,
            xids: xids.clone(),
        }),
        Body::Clock(Clock { time_ms: 12_000, system_ms: 3_612_000 }),
        Body::Rotated(Rotated { time_ms: 12_000, next_key: new.public() }),
    ];
    let mut records: Vec<Record> = bodies.into_iter().map(|b| chain.sign(b, &old).unwrap()).collect();
    let later = vec![
        Body::Used(Used { xids, activity: None, memory_peak_bytes: None, ..window("GPU-1", 12_000, 20_000) }),
        gap(None, 20_000, 25_000, GapReason::Reboot),
        closed(25_000),
    ];
    records.extend(later.into_iter().map(|b| chain.sign(b, &new).unwrap()));
    records
}
