//! Inputs of what homes and hosts say to each other outside of rounds.

use super::{Inputs, fixture, json, termed};
use serde_json::json as value;
use vendue_auction_core::HomeKeys;
use vendue_auction_core::frames::{
    AwardRef, Bulk, BulkReply, ChainHead, ChainList, FileEntry, Handover, HandoverReply, LOG_PATH,
    encode_bulk,
};
use vendue_crds::AwardStatus;
use vendue_market::encode::Canonical;

pub(super) fn seeds(target: &str) -> Option<Inputs> {
    Some(match target {
        "frame_handover" => requests().iter().map(json).collect(),
        "frame_handover_reply" => {
            let reason = || "no space".to_owned();
            let replies = [
                HandoverReply::Ok,
                HandoverReply::Have { offsets: vec![0, 7, u64::MAX] },
                HandoverReply::Unknown,
                HandoverReply::Refused { reason: reason() },
                HandoverReply::Later { reason: reason() },
            ];
            replies.iter().map(json).collect()
        }
        "frame_bulk" => {
            let read = Bulk::ReadLog { award: award(), offset: 7, wait_ms: 30_000 };
            let put = Bulk::Put { award: award(), file: 2, offset: 4_096 };
            let list = Bulk::ListReceipts { award: award(), round: 7 };
            let chain = "0123456789abcdef-1b84c5567b126440".to_owned();
            let records = Bulk::ReadReceipts { award: award(), round: 7, chain, from: 3 };
            let of_order = [list, records].map(|r| encode_bulk(&r, &termed().orders[0].to_bytes()));
            let others = [encode_bulk(&read, b""), encode_bulk(&put, b"some of the file")];
            of_order.into_iter().chain(others).collect()
        }
        "frame_bulk_reply" => {
            let log = BulkReply::Log { size: 70_000, ended: true };
            let failed = BulkReply::Failed { reason: "gone".into(), retry: false };
            let list = encode_bulk(&BulkReply::Receipts, &json(&chain_list()));
            let others = [BulkReply::Stored { offset: 9 }, BulkReply::Unknown, failed];
            let replies = others.iter().map(|r| encode_bulk(r, b""));
            replies.chain([encode_bulk(&log, b"lines\nof a log"), list]).collect()
        }
        "frame_path" => {
            ["model.pt", "a/b/c", "..a", "a..b/c", "uid-1"].map(|p| p.as_bytes().to_vec()).to_vec()
        }
        "frame_chain_list" => vec![json(&chain_list())],
        _ => return None,
    })
}

fn chain_list() -> ChainList {
    let head = |node: &str, closed| {
        let name = "0123456789abcdef-1b84c5567b126440".to_owned();
        ChainHead { name, node: node.to_owned(), next: 9, closed }
    };
    ChainList { chains: vec![head("n1", true), head("n2", false)] }
}

fn award() -> AwardRef {
    let order = hex::encode(termed().orders[0].digest());
    AwardRef { id: "0123456789abcdef".into(), order, job: "7d3c-1".into(), attempt: 1 }
}

/// The close that the home has signed: award, whether it was not taken up, signature.
pub fn close() -> (AwardRef, bool, String) {
    let keys = HomeKeys::from_json(&fixture().home_key).expect("the home's key");
    let made = Handover::<AwardStatus>::close(&fixture().record.market, award(), true, &keys.user);
    match made {
        Some(Handover::Close { award, not_taken, signature }) => (award, not_taken, signature),
        _ => (award(), true, String::new()),
    }
}

fn status() -> AwardStatus {
    let status = value!({
        "conditions": [{
            "type": "Running", "status": "True", "reason": "Started", "message": "the entry point runs",
            "lastTransitionTime": "2026-11-22T10:00:00Z", "observedGeneration": 2,
        }],
        "observedGeneration": 2,
        "state": "Running",
        "devices": [{"node": "n1", "model": "H100", "workers": 1, "gpus": 8}],
        "runtime": {
            "backend": "native", "attempt": 1, "submissionId": "s-1", "session": "x", "rayStatus": "RUNNING",
            "workersReady": 1, "workerRestarts": 0, "startedAt": "2026-11-22T10:00:00Z",
        },
    });
    serde_json::from_value(status).expect("a status")
}

fn requests() -> Vec<Handover<AwardStatus>> {
    let file = |path: &str| FileEntry { path: path.into(), size: 5, sha256: "0".repeat(64) };
    let (closed, not_taken, signature) = close();
    vec![
        Handover::Workload { award: award(), workload: "{\"a\":1}".into(), salt: "1".repeat(64) },
        Handover::Close { award: closed, not_taken, signature },
        Handover::Status { award: award(), version: 3, status: Box::new(status()) },
        Handover::Manifest { award: award(), files: vec![file("model/a.pt"), file("b"), file(LOG_PATH)] },
        Handover::Delivered { award: award() },
    ]
}
