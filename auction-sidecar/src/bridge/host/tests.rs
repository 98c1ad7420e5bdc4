//! The host's side against a scripted API server and a home that answers late, wrongly or not at all.

use std::sync::Arc;

use kube::core::DeserializeGuard;
use serde_json::json;
use tokio::sync::mpsc;
use vendue_auction_core::{SeatInput, SeatOutput};
use vendue_crds::Award;

use super::*;
use crate::bridge::stores::Guarded;
use crate::bridge::tests::{
    BRIDGE, DEADLINE, Fixture, apply, fixture, get, held_award, hold_request, host_context, play, reference,
    some_workload, user_key,
};
use crate::engine::EngineCommand;
use crate::net::{self, Inbound, Members, Net, NetConfig};
use crate::wire::{AwardRef, Handover, HandoverReply, decode, encode};

const AWARD: &str = "/apis/vendue.dev/v1alpha1/namespaces/vendue-a-0011223344556677/awards/award";

fn remembered(context: &HostContext) -> usize {
    context.memory.lock().unwrap().len()
}

fn guard(award: serde_json::Value) -> Arc<DeserializeGuard<Award>> {
    Arc::new(DeserializeGuard(Ok(serde_json::from_value(award).unwrap())))
}

/// An Award whose workload arrived, of the home of the fixture's market.
fn running(version: &str) -> serde_json::Value {
    let mut award = held_award("0011223344556677", &"ab".repeat(32), "");
    award["metadata"]["resourceVersion"] = json!(version);
    award["status"]["conditions"]
        .as_array_mut()
        .unwrap()
        .push(json!({ "type": "HandedOver", "status": "True",
        "reason": "Valid", "message": "", "lastTransitionTime": "2026-01-01T00:00:00Z" }));
    award
}

/// A network in which this process answers its own requests, so that the test is the home.
fn own_home(f: &mut Fixture) -> Net {
    let net = net::start(NetConfig {
        keypair: libp2p::identity::Keypair::generate_ed25519(),
        members: Members::default(),
        own: vec![MemberId::Seat(1), MemberId::Home(0)],
        listen: "/ip4/127.0.0.1/udp/0/quic-v1".parse().unwrap(),
        metrics: f.cluster.metrics.clone(),
    })
    .unwrap();
    f.net = net.handle.clone();
    net
}

async fn asked(net: &mut Net) -> (u64, Inbound) {
    let request = tokio::time::timeout(DEADLINE, net.requests.recv()).await.unwrap().unwrap();
    let Handover::Status { version, .. } = decode::<Handover>("status", &request.body).unwrap() else {
        panic!("not a status")
    };
    (version, request)
}

#[tokio::test]
async fn a_home_that_does_not_answer_holds_nobody_up_and_gets_the_latest() {
    let mut f = fixture();
    let mut net = own_home(&mut f);
    let context = host_context(&f);
    reconcile(guard(running("1")), context.clone()).await.unwrap();
    let (version, first) = asked(&mut net).await;
    assert_eq!(version, 1);
    // The home has not answered; the next changes wait for nothing.
    for version in ["2", "3"] {
        let mut award = running(version);
        award["status"]["state"] = json!(version);
        reconcile(guard(award), context.clone()).await.unwrap();
    }
    first.reply.send(encode(&HandoverReply::Ok));
    let (version, last) = asked(&mut net).await;
    assert_eq!(version, 3, "what is in between is not sent");
    last.reply.send(encode(&HandoverReply::Ok));
}

#[tokio::test]
async fn a_home_that_does_not_know_the_award_is_asked_again() {
    let mut f = fixture();
    let mut net = own_home(&mut f);
    let context = host_context(&f);
    reconcile(guard(running("1")), context.clone()).await.unwrap();
    for reply in [HandoverReply::Unknown, HandoverReply::Refused { reason: String::new() }, HandoverReply::Ok]
    {
        let (_, request) = asked(&mut net).await;
        request.reply.send(encode(&reply));
    }
    let relayed = || context.remembered("0011223344556677", |m| m.relayed.is_some() && !m.relaying).unwrap();
    let done = async {
        while !relayed() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(DEADLINE, done).await.unwrap();
}

#[tokio::test]
async fn requests_about_others_awards_leave_nothing_behind() {
    let f = fixture();
    let context = host_context(&f);
    let award = held_award("0011223344556677", &"ab".repeat(32), "");
    let script = vec![get(AWARD, None), get(AWARD, Some(award))];
    let workload = |award: AwardRef| Handover::Workload { award, workload: "w".into(), salt: "s".into() };
    let unsound = AwardRef { id: "x".repeat(1 << 20), ..reference() };
    let close = Handover::close(&f.record.market, reference(), true, &user_key(&f)).unwrap();
    let requests = async {
        for (from, message) in [
            (MemberId::Home(0), workload(unsound)),
            (MemberId::Home(0), workload(reference())),
            (MemberId::Seat(3), workload(reference())),
        ] {
            assert_eq!(serve(&context, from, message).await, Some(HandoverReply::Unknown));
        }
        // A seat has no key that closes anything.
        let refused = serve(&context, MemberId::Seat(3), close).await;
        assert!(matches!(refused, Some(HandoverReply::Refused { .. })), "{refused:?}");
    };
    tokio::join!(requests, play(f.server, script));
    assert_eq!(remembered(&context), 0);
}

#[tokio::test]
async fn what_is_remembered_goes_with_the_award() {
    let f = fixture();
    let mut context = host_context(&f);
    let (awards, mut writer) = Guarded::empty();
    Arc::get_mut(&mut context).unwrap().awards = awards;
    let award: Award = serde_json::from_value(running("1")).unwrap();
    let there = kube::runtime::watcher::Event::Apply(DeserializeGuard(Ok(award.clone())));
    writer.apply_watcher_event(&there);
    let old = Instant::now().checked_sub(SWEEP_EVERY).unwrap();
    for id in ["0011223344556677", "gone"] {
        context.memory(id, |m| m.since = old);
    }
    context.memory("new", |_| ());
    context.sweep();
    assert!(
        context.remembered("0011223344556677", |_| ()).is_some()
            && context.remembered("new", |_| ()).is_some()
    );
    assert_eq!(remembered(&context), 2);
    writer.apply_watcher_event(&kube::runtime::watcher::Event::Delete(DeserializeGuard(Ok(award))));
    context.sweep();
    assert_eq!(remembered(&context), 1);
}

/// Fills the way to the seat's state machine; what is taken off it makes room again.
fn fill(f: &mut Fixture) -> (mpsc::Sender<EngineCommand>, mpsc::Receiver<EngineCommand>) {
    let (engine, commands) = mpsc::channel(1);
    let offers = SeatInput::Offers { offers: vec![], models: vec![] };
    engine.try_send(EngineCommand::Seat(offers)).unwrap();
    f.engine = engine.clone();
    (engine, commands)
}

#[tokio::test]
async fn an_answer_that_found_no_room_is_given_again() {
    let mut f = fixture();
    let (_engine, mut commands) = fill(&mut f);
    let context = host_context(&f);
    let order = "ab".repeat(32);
    let digest: Digest = from_hex(&order).unwrap().try_into().unwrap();
    let award = || guard(held_award("0011223344556677", &order, ""));
    context.ask(digest, "0011223344556677");
    assert!(reconcile(award(), context.clone()).await.is_err(), "it is tried again soon");
    commands.recv().await.unwrap();
    reconcile(award(), context.clone()).await.unwrap();
    let told = commands.try_recv().unwrap();
    assert!(
        matches!(told, EngineCommand::Seat(SeatInput::Reserved { order, result: Ok(()), .. }) if order == digest)
    );
    reconcile(award(), context).await.unwrap();
    assert!(commands.try_recv().is_err(), "once");
}

#[tokio::test]
async fn a_refusal_that_found_no_room_is_given_again() {
    let mut f = fixture();
    let (_engine, mut commands) = fill(&mut f);
    let context = host_context(&f);
    let provision = "/apis/vendue.dev/v1alpha1/namespaces/gpus/provisions/a100";
    on_event(&context, SeatOutput::Hold(Box::new(hold_request(&f))));
    play(f.server, vec![get(provision, None)]).await;
    assert!(matches!(commands.recv().await, Some(EngineCommand::Seat(SeatInput::Offers { .. }))));
    let told = tokio::time::timeout(DEADLINE, commands.recv()).await.unwrap();
    assert!(matches!(told, Some(EngineCommand::Seat(SeatInput::Reserved { result: Err(_), .. }))));
    assert!(context.asked.lock().unwrap().is_empty());
}

fn workload_request() -> (Handover, String) {
    let workload = some_workload();
    let commitment = hex::encode(vendue_market::commitment(&[5; 32], workload.as_bytes()));
    (Handover::Workload { award: reference(), workload, salt: "05".repeat(32) }, commitment)
}

#[tokio::test]
async fn a_workload_in_the_last_second_is_refused() {
    let f = fixture();
    let context = host_context(&f);
    let (request, commitment) = workload_request();
    let mut award = held_award("0011223344556677", &"ab".repeat(32), &commitment);
    let expires = crate::bridge::objects::time_of(crate::engine::now_ms() + 900);
    award["spec"]["expiresAt"] = json!(expires);
    let script = vec![get(AWARD, Some(award.clone())), get(AWARD, Some(award))];
    let (reply, ()) = tokio::join!(serve(&context, MemberId::Home(0), request), play(f.server, script));
    assert_eq!(reply, Some(HandoverReply::Refused { reason: "the award has expired".into() }));
}

#[tokio::test]
async fn a_workload_for_an_award_that_was_given_up_meanwhile_is_refused() {
    let f = fixture();
    let context = host_context(&f);
    let (request, commitment) = workload_request();
    let award = held_award("0011223344556677", &"ab".repeat(32), &commitment);
    let mut released = award.clone();
    released["spec"]["workloadSecret"] = json!("vendue-workload");
    released["status"]["conditions"]
        .as_array_mut()
        .unwrap()
        .push(json!({ "type": "Released", "status": "True",
        "reason": "AwardExpired", "message": "", "lastTransitionTime": "2026-01-01T00:00:00Z" }));
    let secret = "/api/v1/namespaces/vendue-a-0011223344556677/secrets/vendue-workload";
    let script = vec![
        get(AWARD, Some(award.clone())),
        get(AWARD, Some(award)),
        apply(secret, BRIDGE, vec![]),
        // The answer to the write shows what the controller did; HandedOver is not written.
        apply(AWARD, BRIDGE, vec![("/spec/workloadSecret", json!("vendue-workload"))]).answered(released),
    ];
    let (reply, ()) = tokio::join!(serve(&context, MemberId::Home(0), request), play(f.server, script));
    assert_eq!(reply, Some(HandoverReply::Refused { reason: "the award has ended".into() }));
}
