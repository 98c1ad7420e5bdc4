//! A home that asks, a seat that answers as the test says.

use std::sync::Mutex;

use kube::core::DeserializeGuard;
use kube::runtime::{reflector, watcher};
use vendue_auction_core::MarketRecord;
use vendue_crds::CertificateData;
use vendue_receipts::Record;

use super::*;
use crate::bridge::host;
use crate::bridge::stores::Guarded;
use crate::bridge::tests::{DEADLINE, Fixture, award_id, event, fixture, order, play, proof, user_key};
use crate::net::{self, Members, Net, NetConfig};
use crate::receipts::ShelfOptions;
use crate::store::Store;
use crate::testing::receipts::{T, key, mk_award};
use crate::wire::encode;

/// A chain as the seat says that it is, and its records.
type Told = (ChainHead, Vec<Record>);
type Writer = reflector::store::Writer<DeserializeGuard<Award>>;

struct Stage {
    context: Arc<HomeContext>,
    shelf: Arc<Shelf>,
    writer: Writer,
    award: Award,
    /// What the seat has: chains with their nodes, and whether it says that they are closed.
    chains: Arc<Mutex<Vec<Told>>>,
    asked: Arc<Mutex<Vec<String>>>,
}

fn now() -> u64 {
    T + 60_000
}

/// This process is home and seat 0; the test is the seat.
fn stage(f: &mut Fixture) -> Stage {
    let mut net = net::start(NetConfig {
        keypair: libp2p::identity::Keypair::generate_ed25519(),
        members: Members::default(),
        own: vec![MemberId::Seat(0), MemberId::Home(0)],
        listen: "/ip4/127.0.0.1/udp/0/quic-v1".parse().unwrap(),
        metrics: f.cluster.metrics.clone(),
    })
    .unwrap();
    f.net = net.handle.clone();
    let order = order(f, [7; 32]);
    let mut award = mk_award(&award_id(f, &order), 0, &[("HandedOver", T), ("Running", T)]);
    let proof = proof(&order);
    let file = AwardFile { order: order.clone(), order_signature: [1; 65], proof };
    let file = serde_json::to_string(&file).unwrap();
    award.spec.certificate = Some(CertificateData { certificate: String::new(), award: file });
    award.spec.order_digest = hex::encode(order.digest());
    let (awards, mut writer) = Guarded::empty();
    for event in [watcher::Event::Init, watcher::Event::InitApply(guard(&award)), watcher::Event::InitDone] {
        writer.apply_watcher_event(&event);
    }
    let store = Arc::new(Store::open(&f.dir.path().join("store"), 10).unwrap());
    let (record, handle, engine) = (f.record.clone(), f.net.clone(), f.engine.clone());
    let home = (0, user_key(f));
    let context = HomeContext::new(f.cluster.clone(), record, home, handle, engine, awards, store);
    let dir = f.dir.path().join("receipts");
    let options = ShelfOptions { dir, segment_bytes: 1 << 20, max_bytes: 1 << 20, retain_ms: 1 << 40 };
    let shelf = Arc::new(Shelf::open(options).unwrap());
    let (chains, asked) = (Arc::<Mutex<Vec<_>>>::default(), Arc::<Mutex<Vec<_>>>::default());
    let (has, log, record) = (chains.clone(), asked.clone(), f.record.clone());
    tokio::spawn(async move { answer(&mut net, &has, &log, &record).await });
    Stage { context: Arc::new(context), shelf, writer, award, chains, asked }
}

fn guard(award: &Award) -> DeserializeGuard<Award> {
    DeserializeGuard(Ok(award.clone()))
}

/// The seat: two records at a time.
async fn answer(net: &mut Net, has: &Mutex<Vec<Told>>, log: &Mutex<Vec<String>>, record: &MarketRecord) {
    while let Some(request) = net.requests.recv().await {
        let (bulk, data) = decode_bulk::<Bulk>("request", &request.body).unwrap();
        let (Bulk::ListReceipts { award, round } | Bulk::ReadReceipts { award, round, .. }) = &bulk else {
            panic!("{bulk:?}")
        };
        assert!(
            host::is_of(record, MemberId::Home(0), (award, *round), &data),
            "a real seat would not answer"
        );
        let chains = has.lock().unwrap().clone();
        let answer = match bulk {
            Bulk::ListReceipts { .. } => {
                log.lock().unwrap().push("list".into());
                encode(&ChainList { chains: chains.into_iter().map(|(head, _)| head).collect() }).to_vec()
            }
            Bulk::ReadReceipts { chain, from, .. } => {
                log.lock().unwrap().push(format!("{from}"));
                let found = chains.into_iter().find(|(head, _)| head.name == chain).unwrap().1;
                let records = found.iter().filter(|record| record.sequence >= from).take(2);
                records.flat_map(Record::encode).collect()
            }
            other => panic!("{other:?}"),
        };
        request.reply.send(encode_bulk(&BulkReply::Receipts, &answer));
    }
}

impl Stage {
    fn id(&self) -> AwardId {
        self.award.spec.id.parse().unwrap()
    }

    /// The records of a chain of this award under a key.
    fn signed(&self, by: u8, driver: &str) -> Vec<Record> {
        let gpu = format!("GPU-{by}");
        crate::testing::receipts::signed_for(self.id(), &key(by), &gpu, 3, driver)
    }

    /// The seat has these records of a chain, and says that it has so many.
    fn has(&self, by: u8, records: &[Record], closed: bool) {
        let name = ChainName::new(self.id(), key(by).public()).to_string();
        let next = records.last().map_or(0, |record| record.sequence + 1);
        let head = ChainHead { name, node: format!("n{by}"), next, closed };
        let mut chains = self.chains.lock().unwrap();
        chains.retain(|(other, _)| other.name != head.name);
        chains.push((head, records.to_vec()));
    }

    async fn turn(&self) -> Result<Pulled, PullError> {
        let subject = Subject::of(&self.award).unwrap();
        tokio::time::timeout(DEADLINE, turn(self.context.clone(), self.shelf.clone(), subject, now()))
            .await
            .unwrap()
    }

    fn asked(&self) -> Vec<String> {
        std::mem::take(&mut *self.asked.lock().unwrap())
    }
}

#[tokio::test]
async fn what_is_new_comes_home_until_everything_is_here() {
    let mut f = fixture();
    let stage = stage(&mut f);
    assert_eq!(stage.turn().await.unwrap(), Pulled { new: 0, is_whole: false }, "nobody metered it yet");
    let (one, two) = (stage.signed(1, "1"), stage.signed(2, "1"));
    stage.has(1, &one[..3], false);
    assert_eq!(stage.turn().await.unwrap(), Pulled { new: 3, is_whole: false });
    assert_eq!(stage.asked(), ["list", "list", "0", "2"]);
    stage.has(1, &one, true);
    assert_eq!(stage.turn().await.unwrap(), Pulled { new: 2, is_whole: false }, "the other GPU is missing");
    stage.has(2, &two, true);
    assert_eq!(stage.turn().await.unwrap(), Pulled { new: 5, is_whole: true });
    stage.asked();
    assert_eq!(stage.turn().await.unwrap(), Pulled { new: 0, is_whole: true });
    assert_eq!(stage.asked(), ["list"], "nothing comes twice");
    let nodes: Vec<_> =
        stage.shelf.chains(stage.id()).into_iter().map(|chain| (chain.node, chain.next)).collect();
    assert!(nodes.contains(&("n1".into(), 5)) && nodes.contains(&("n2".into(), 5)), "{nodes:?}");
}

#[tokio::test]
async fn another_story_is_an_event_and_evidence_once() {
    let mut f = fixture();
    let stage = stage(&mut f);
    let (one, other) = (stage.signed(1, "1"), stage.signed(1, "2"));
    stage.has(1, &one[..3], false);
    stage.turn().await.unwrap();
    stage.has(1, &other, true);
    let server = tokio::spawn(play(f.server, vec![event()]));
    for _ in 0..2 {
        assert_eq!(stage.turn().await.unwrap(), Pulled { new: 0, is_whole: false });
    }
    server.await.unwrap();
    let evidence = stage.shelf.evidence(stage.id());
    let [Evidence::Equivocation { records, .. }] = &evidence[..] else { panic!("{evidence:?}") };
    assert_eq!((records.first.sequence, records.verify()), (2, Ok(key(1).public())));
    assert_eq!(stage.context.metrics.receipts.with_label_values(&["equivocation"]).get(), 1);
    assert_eq!(job_of(&stage.award).name.as_deref(), Some("digits"));
}

#[tokio::test]
async fn records_that_do_not_verify_are_evidence_and_the_other_chains_come() {
    let mut f = fixture();
    let stage = stage(&mut f);
    let mut bad = stage.signed(1, "1");
    bad[1].signature[7] ^= 1;
    stage.has(1, &bad, true);
    stage.has(2, &stage.signed(2, "1"), true);
    let (result, ()) = tokio::join!(stage.turn(), play(f.server, vec![event()]));
    assert_eq!(result.unwrap(), Pulled { new: 5, is_whole: false });
    let evidence = stage.shelf.evidence(stage.id());
    assert!(matches!(&evidence[..], [Evidence::Refused { sequence: 0, .. }]), "{evidence:?}");
    assert_eq!(stage.context.metrics.receipts.with_label_values(&["refused"]).get(), 1);
}

#[tokio::test]
async fn the_awards_of_the_watch_are_asked_about_until_nothing_more_can_come() {
    let mut f = fixture();
    let mut stage = stage(&mut f);
    let mut puller = Puller::new(stage.context.clone(), stage.shelf.clone(), now);
    let due = |puller: &mut Puller| puller.due(BTreeSet::new());
    let [subject] = &due(&mut puller)[..] else { panic!("one award runs") };
    assert_eq!(puller.due(BTreeSet::from([0])), [], "its seat is busy");
    puller.finished(subject, Ok(Pulled { new: 1, is_whole: false }));
    assert_eq!(due(&mut puller), [], "not again at once");
    stage.award = mk_award(&stage.award.spec.id, 0, &[("HandedOver", T), ("Released", T + 9_000)]);
    stage.writer.apply_watcher_event(&watcher::Event::Apply(guard(&stage.award)));
    let [subject] = &due(&mut puller)[..] else { panic!("it was released") };
    puller.finished(subject, Err(PullError::Slow));
    assert_eq!(due(&mut puller), []);
    puller.finished(subject, Ok(Pulled { new: 0, is_whole: true }));
    assert_eq!((due(&mut puller), puller.progress.len()), (vec![], 1));
    stage.writer.apply_watcher_event(&watcher::Event::Delete(guard(&stage.award)));
    due(&mut puller);
    assert_eq!(puller.progress.len(), 0, "nothing is remembered of what is gone");
    assert_eq!(stage.context.metrics.receipts.with_label_values(&["stored"]).get(), 1);
}
