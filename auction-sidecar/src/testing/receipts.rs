//! Awards and signed chains for tests.

use serde_json::json;
use vendue_crds::Award;
use vendue_receipts::{AwardId, Body, BootId, Chain, ChainName, Closed, NodeKey, Opened, Record, Used, Xids};

use crate::bridge::objects::time_of;

/// The award of all tests.
pub(crate) const AWARD: &str = "0011223344556677";
/// When its Award object was made, and its chains begin.
pub(crate) const T: u64 = 1_800_000_000_000;

/// Home's Award of the Job team/digits with two GPUs; conditions are True since the given times.
pub(crate) fn mk_award(id: &str, seat: u16, conditions: &[(&str, u64)]) -> Award {
    let conditions: Vec<_> = conditions
        .iter()
        .map(|(type_, ms)| {
            json!({ "type": type_, "status": "True", "reason": "R", "message": "", "lastTransitionTime": time_of(*ms) })
        })
        .collect();
    serde_json::from_value(json!({
        "apiVersion": "vendue.dev/v1alpha1", "kind": "Award",
        "metadata": {
            "name": "digits-1", "namespace": "team", "uid": "award-uid", "creationTimestamp": time_of(T),
            "ownerReferences": [{ "apiVersion": "vendue.dev/v1alpha1", "kind": "Job", "name": "digits", "uid": "u-1" }],
        },
        "spec": {
            "side": "Home", "id": id, "marketId": "", "round": 7, "orderDigest": "ab".repeat(32), "provider": "alpha",
            "seat": seat, "price": "3.60", "expiresAt": time_of(T),
            "job": { "home": "home", "namespace": "team", "name": "digits", "uid": "u-1", "attempt": 1 },
            "requirements": { "workers": 2, "gpusPerWorker": 1, "cpuMillisPerWorker": 1, "memoryMibPerWorker": 1,
                "runDeadlineSeconds": 60, "image": "i" },
        },
        "status": { "conditions": conditions },
    }))
    .unwrap()
}

/// A node's key.
pub(crate) fn key(n: u8) -> NodeKey {
    NodeKey::from_bytes(&[n; 32]).unwrap()
}

/// The name of the award's chain under a key.
pub(crate) fn name(by: &NodeKey) -> ChainName {
    ChainName::new(AWARD.parse().unwrap(), by.public())
}

/// The award's chain under a key: an opening at `T`, so many windows of a second of one GPU with this driver, a close.
pub(crate) fn signed(by: &NodeKey, gpu: &str, windows: u64, driver: &str) -> Vec<Record> {
    signed_at(T, by, gpu, windows, driver)
}

/// The same from another time on.
pub(crate) fn signed_at(t: u64, by: &NodeKey, gpu: &str, windows: u64, driver: &str) -> Vec<Record> {
    chain(AWARD.parse().unwrap(), t, by, gpu, windows, driver)
}

/// The same of another award.
pub(crate) fn signed_for(award: AwardId, by: &NodeKey, gpu: &str, windows: u64, driver: &str) -> Vec<Record> {
    chain(award, T, by, gpu, windows, driver)
}

fn chain(award: AwardId, t: u64, by: &NodeKey, gpu: &str, windows: u64, driver: &str) -> Vec<Record> {
    let mut chain = Chain::new(award, 0);
    let opened = Body::Opened(Opened { public_key: by.public(), boot: BootId([1; 16]), time_ms: t });
    let used = (0..windows).map(|n| {
        Body::Used(Used {
            device: gpu.parse().unwrap(),
            t0_ms: t + n * 1_000,
            t1_ms: t + (n + 1) * 1_000,
            wall_ns: 1_000_000_000,
            energy: None,
            activity: None,
            memory_peak_bytes: None,
            xids: Xids::default(),
            driver: driver.parse().unwrap(),
        })
    });
    let closed = Body::Closed(Closed { time_ms: t + windows * 1_000 });
    let bodies: Vec<Body> = [opened].into_iter().chain(used).chain([closed]).collect();
    bodies.into_iter().map(|body| chain.sign(body, by).unwrap()).collect()
}
