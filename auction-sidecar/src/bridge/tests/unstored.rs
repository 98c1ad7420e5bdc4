//! Choices that cannot be stored, and Awards of earlier rounds that are in the way.

use super::*;

const AWARD: &str = "/apis/vendue.dev/v1alpha1/namespaces/team/awards/digits-1";
const JOB: &str = "/apis/vendue.dev/v1alpha1/namespaces/team/jobs/digits/status";

fn refused(code: u16, reason: &str) -> (u16, Answer) {
    let status =
        json!({ "kind": "Status", "status": "Failure", "reason": reason, "code": code, "message": "no" });
    (code, Answer::Json(status))
}

fn apply_refused(path: &str, (status, answer): (u16, Answer)) -> Call {
    Call { status, answer, ..apply(path, BRIDGE, vec![]) }
}

/// Only as it was read: a write that comes in between must survive.
fn delete_as_read() -> Call {
    Call {
        method: "DELETE",
        path: AWARD.into(),
        manager: None,
        body: vec![("/preconditions/uid", json!("old-uid")), ("/preconditions/resourceVersion", json!("41"))],
        status: 200,
        answer: Answer::Json(json!({ "kind": "Status", "status": "Success" })),
    }
}

fn old_award(id: &str, held: bool) -> Value {
    let mut award = held_award(id, &"ab".repeat(32), "");
    award["metadata"] =
        json!({ "name": "digits-1", "namespace": "team", "uid": "old-uid", "resourceVersion": "41" });
    award["spec"]["side"] = json!("Home");
    if !held {
        award["status"] = json!({});
    }
    award
}

struct Rig {
    f: Fixture,
    context: Arc<HomeContext>,
    choice: Choice,
}

/// An order whose task runs; its award ends in `left_ms`.
fn rig(left_ms: i64) -> Rig {
    let f = fixture();
    let context = home_context(&f);
    let order = order(&f, [7; 32]);
    let (digest, mut proof, certificate) = (order.digest(), proof(&order), certificate(&f));
    proof.leaf.expires_ms = now_ms().saturating_add_signed(left_ms);
    home::submitted(&context, job_key(), 1);
    let (order, starts_ms) = (Box::new(order), now_ms());
    home::on_event(&context, HomeOutput::Ordered { digest, order, signature: [1; 65], starts_ms });
    let choice =
        Choice { order: digest, seat: 1, rank: 1, price: "1.80".parse().unwrap(), certificate, proof };
    home::on_event(&context, HomeOutput::Choose(Box::new(choice.clone())));
    Rig { f, context, choice }
}

fn held_status() -> Call {
    let held = vec![("/metadata/uid", json!("new-uid")), ("/status/conditions/0/type", json!("Held"))];
    apply(&format!("{AWARD}/status"), RELAY, held)
}

async fn told(commands: &mut mpsc::Receiver<EngineCommand>) -> HomeInput {
    match tokio::time::timeout(DEADLINE, commands.recv()).await.unwrap() {
        Some(EngineCommand::Home(input)) => *input,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn an_award_of_an_earlier_round_makes_room() {
    let mut rig = rig(60_000);
    let id = award_id(&rig.f, &order(&rig.f, [7; 32]));
    let mut written = old_award(&id, false);
    written["metadata"]["uid"] = json!("new-uid");
    let apply_again = Call {
        answer: Answer::Json(written),
        ..apply(AWARD, BRIDGE, vec![("/spec/id", json!(id)), ("/spec/seat", json!(1))])
    };
    let script = vec![
        apply(JOB, BRIDGE, vec![]),
        apply_refused(AWARD, refused(422, "Invalid")),
        get(AWARD, Some(old_award("ffffffffffffffff", false))),
        delete_as_read(),
        apply_again,
        held_status(),
        event(),
    ];
    play(rig.f.server, script).await;
    assert!(
        matches!(told(&mut rig.f.commands).await, HomeInput::Stored { order } if order == rig.choice.order)
    );
}

#[tokio::test]
async fn a_choice_that_was_not_stored_in_time_goes_with_its_award() {
    let mut rig = rig(-1);
    let id = award_id(&rig.f, &order(&rig.f, [7; 32]));
    let script = vec![
        apply(JOB, BRIDGE, vec![]),
        apply_refused(AWARD, refused(500, "InternalError")),
        get(AWARD, Some(old_award(&id, false))),
        delete_as_read(),
    ];
    play(rig.f.server, script).await;
    let said = told(&mut rig.f.commands).await;
    assert!(matches!(said, HomeInput::NotStored { order } if order == rig.choice.order), "{said:?}");
    drop(rig.context);
}

#[tokio::test]
async fn a_choice_whose_write_only_seemed_to_fail_is_stored() {
    let mut rig = rig(-1);
    let id = award_id(&rig.f, &order(&rig.f, [7; 32]));
    let script = vec![
        apply(JOB, BRIDGE, vec![]),
        apply_refused(AWARD, refused(500, "InternalError")),
        get(AWARD, Some(old_award(&id, true))),
        event(),
    ];
    play(rig.f.server, script).await;
    let said = told(&mut rig.f.commands).await;
    assert!(matches!(said, HomeInput::Stored { order } if order == rig.choice.order), "{said:?}");
}

#[tokio::test]
async fn nobody_says_that_a_choice_came_to_nothing_while_that_is_not_known() {
    let mut rig = rig(-1);
    let script = vec![
        apply(JOB, BRIDGE, vec![]),
        apply_refused(AWARD, refused(500, "InternalError")),
        apply_refused(AWARD, refused(500, "InternalError")),
    ];
    let unread = script.into_iter().enumerate().map(|(i, call)| match i {
        2 => Call { method: "GET", manager: None, ..call },
        _ => call,
    });
    play(rig.f.server, unread.collect()).await;
    assert!(rig.f.commands.try_recv().is_err());
}

#[tokio::test]
async fn a_round_without_an_award_ends_what_a_restart_found() {
    let f = fixture();
    let context = home_context(&f);
    let order = order(&f, [7; 32]);
    let (digest, proof, certificate, id) =
        (order.digest(), proof(&order), certificate(&f), award_id(&f, &order));
    home::submitted(&context, job_key(), 1);
    let (body, signature) = (Box::new(order), [1; 65]);
    let ordered = HomeOutput::Ordered { digest, order: body.clone(), signature, starts_ms: now_ms() };
    home::on_event(&context, ordered);
    home::on_event(&context, HomeOutput::Awarded { order: digest, body, signature, certificate, proof });
    let (histogram, models) = (vendue_market::Histogram::new(4), BTreeSet::new());
    home::on_event(
        &context,
        HomeOutput::NotAwarded { order: digest, round: 9, histogram, models, retry_ms: None },
    );
    let script = vec![
        apply(JOB, BRIDGE, vec![]),
        apply(AWARD, BRIDGE, vec![("/spec/id", json!(id))]),
        apply(JOB, BRIDGE, vec![("/status/auction/outcome", json!("Awarded"))]),
        get(AWARD, Some(old_award(&id, false))),
        delete_as_read(),
        apply(JOB, BRIDGE, vec![("/status/auction/outcome", json!("NoFeasibleBid"))]),
        event(),
        event(),
    ];
    play(f.server, script).await;
}
