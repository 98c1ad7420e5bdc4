//! Chains of receipts with records of every kind.

use super::{Inputs, json};
use vendue_market::encode::Canonical;
use vendue_receipts::delivery::{Answer, Answered, Batch, BookId, Piece};
use vendue_receipts::{
    Activity, ActivitySource, AwardHeads, AwardId, Bill, Body, BootId, Chain, ChainHeads, ChainName, Clock,
    Closed, DeviceId, Energy, Equivocation, Evidence, FILE_VERSION, FileAward, FileChain, FileJob, Gap,
    GapReason, NodeKey, Opened, ReceiptsFile, ReceiptsHeads, Record, Rotated, SignedHour, Tree, Used, Xids,
};

const AWARD: AwardId = AwardId([1; 8]);

fn key(seed: u8) -> NodeKey {
    NodeKey::from_bytes(&[seed; 32]).expect("a key")
}

fn device() -> DeviceId {
    "GPU-4c1c1a0e-0f1e-4b6f-a0b2-9d3f6a7c1e55".parse().expect("a name")
}

fn used(t0_ms: u64, t1_ms: u64, counter_mj: u64) -> Body {
    let mut xids = Xids::default();
    [31, 79].into_iter().for_each(|code| xids.add(code));
    Body::Used(Used {
        device: device(),
        t0_ms,
        t1_ms,
        wall_ns: (t1_ms - t0_ms) * 1_000_000,
        energy: Some(Energy { used_mj: 1_000, counter_mj }),
        activity: Some(Activity { source: ActivitySource::SmActive, average_millionths: 500_000 }),
        memory_peak_bytes: Some(80 << 30),
        xids,
        driver: "580.95.05".parse().expect("a name"),
    })
}

fn opened(time_ms: u64) -> Body {
    Body::Opened(Opened { public_key: key(1).public(), boot: BootId([2; 16]), time_ms })
}

/// An award's chain and the idle chain around it. The window of the award ends at `end_ms`.
fn chains(end_ms: u64) -> [Vec<Record>; 2] {
    let gap = Gap {
        device: Some(device()),
        t0_ms: end_ms,
        t1_ms: end_ms + 500,
        reason: GapReason::DeviceLost,
        energy: None,
        xids: Xids::default(),
    };
    let all = Gap { device: None, t0_ms: end_ms + 500, t1_ms: end_ms + 600, ..gap.clone() };
    let time_ms = end_ms + 600;
    let of_award = vec![
        opened(1_000),
        used(1_000, end_ms, 9_000),
        Body::Gap(gap),
        Body::Gap(all),
        Body::Clock(Clock { time_ms, system_ms: time_ms + 2_000 }),
        Body::Rotated(Rotated { time_ms, next_key: key(3).public() }),
        Body::Closed(Closed { time_ms }),
    ];
    let idle = vec![opened(0), used(0, 1_000, 8_000), used(time_ms, time_ms + 100, 12_000)];
    [sign(AWARD, of_award), sign(AwardId::IDLE, idle)]
}

fn sign(award: AwardId, bodies: Vec<Body>) -> Vec<Record> {
    let (mut chain, mut key, next) = (Chain::new(award, 0), key(1), self::key(3));
    let mut signed = vec![];
    for body in bodies {
        signed.push(chain.sign(body, &key).expect("the next record"));
        if chain.key() == Some(next.public()) {
            key = self::key(3);
        }
    }
    signed
}

pub(super) fn seeds(target: &str) -> Option<Inputs> {
    let [award, idle] = chains(11_000);
    let all = || award.iter().chain(&idle);
    let bytes = |records: &[Record]| records.iter().flat_map(Record::encode).collect::<Vec<u8>>();
    Some(match target {
        "receipt" => all().map(Record::encode).collect(),
        "receipt_body" => all().map(|record| record.body.to_bytes()).collect(),
        "receipt_json" => all().map(json).collect(),
        "receipt_names" => {
            let names = ["0123456789abcdef", "0123456789abcdef-1b84c5567b126440", "GPU-0", "580.95.05"];
            names.map(|t| t.as_bytes().to_vec()).to_vec()
        }
        "receipt_chain" => vec![bytes(&award), bytes(&idle), bytes(&award[..3])],
        "receipt_chain_json" => {
            let mut chain = Chain::new(AWARD, 7);
            award.iter().for_each(|record| chain.replay(record).expect("the next record"));
            vec![json(&chain), json(&Chain::new(AWARD, 7))]
        }
        "receipt_node" => vec![bytes(&all().cloned().collect::<Vec<_>>()), bytes(&idle)],
        "receipt_equivocation" => {
            let [other, _] = chains(12_000);
            vec![json(&Equivocation { first: award[1].clone(), second: other[1].clone() })]
        }
        "receipt_hour" => vec![SignedHour::sign(3, 7, [4; 32], &key(1)).statement.to_bytes()],
        "receipt_hour_json" => vec![json(&SignedHour::sign(3, 7, [4; 32], &key(1)))],
        "receipt_inclusion" => Tree::new(&[[1; 32], [2; 32], [3; 32]]).prove(1).iter().map(json).collect(),
        "receipt_file" => vec![json(&file(&award))],
        "receipt_heads" => vec![json(&heads())],
        "receipt_batch" => {
            let piece = Piece { name: name(), records: award.clone() };
            vec![json(&Batch { chains: vec![piece], ..Batch::default() })]
        }
        "receipt_answer" => {
            let taken = Answered { name: name(), next: Some(7), error: None, later: false };
            let refused =
                Answered { name: name(), next: None, error: Some("record 7".to_owned()), later: true };
            let chains = vec![taken, refused];
            vec![json(&Answer { chains, ended: vec![AWARD], book: Some(BookId([5; 16])), hours: vec![3] })]
        }
        "receipt_billed" => {
            let mut bill = Bill::new(3_600_000, 0, None);
            award.iter().for_each(|record| bill.add(record));
            vec![json(&bill.sums())]
        }
        _ => return None,
    })
}

fn heads() -> ReceiptsHeads {
    let job = FileJob { namespace: "lab".to_owned(), name: "digits".to_owned(), uid: "1".to_owned() };
    let chain =
        ChainHeads { name: name().to_string(), records: 7, until_ms: 11_000, ..ChainHeads::default() };
    let chains = vec![ChainHeads { closed: true, ..chain.clone() }, chain];
    let ended_at = Some("2026-11-23T10:00:00Z".to_owned());
    ReceiptsHeads { version: 1, job, awards: vec![AwardHeads { id: AWARD.to_string(), ended_at, chains }] }
}

fn name() -> ChainName {
    ChainName::new(AWARD, key(1).public())
}

/// A file of one chain and both forms of evidence.
fn file(award: &[Record]) -> ReceiptsFile {
    let [other, _] = chains(12_000);
    let chain = name().to_string();
    let records = Box::new(Equivocation { first: award[1].clone(), second: other[1].clone() });
    let evidence = vec![
        Evidence::Equivocation { chain: chain.clone(), records },
        Evidence::Refused { chain, sequence: 3, reason: "record 3: does not continue".to_owned() },
    ];
    let chain = FileChain { node: "n1".to_owned(), records: award.to_vec() };
    let award = FileAward {
        id: AWARD.to_string(),
        price: "3.60".to_owned(),
        started_at: Some("2026-06-01T12:00:05Z".to_owned()),
        evidence,
        chains: vec![chain],
        ..FileAward::default()
    };
    ReceiptsFile { version: FILE_VERSION, job: FileJob::default(), awards: vec![award] }
}
