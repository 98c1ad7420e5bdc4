//! The home's side: the choice of seat, and who may speak of an award.

use super::*;

#[tokio::test]
async fn the_choice_of_seat_is_stored_before_it_is_confirmed() {
    let mut f = fixture();
    let context = home_context(&f);
    let order = order(&f, [7; 32]);
    let (digest, proof, certificate) = (order.digest(), proof(&order), certificate(&f));
    let id = award_id(&f, &order);
    let (job, award) = (
        "/apis/vendue.dev/v1alpha1/namespaces/team/jobs/digits/status",
        "/apis/vendue.dev/v1alpha1/namespaces/team/awards/digits-1",
    );
    let auction =
        |outcome: &str| vec![("/status/auction/outcome", json!(outcome)), ("/metadata/uid", json!("u-1"))];
    let seat = |seat: i32, price: &str| {
        vec![
            ("/spec/id", json!(id)),
            ("/spec/seat", json!(seat)),
            ("/spec/price", json!(price)),
            ("/metadata/ownerReferences/0/uid", json!("u-1")),
        ]
    };
    let script = vec![
        apply(job, BRIDGE, auction("Pending")),
        apply(award, BRIDGE, seat(0, "1.10")),
        apply(job, BRIDGE, auction("Awarded")),
        event(),
        // The stand-by holds the devices: the Award names it before the choice is confirmed.
        apply(award, BRIDGE, seat(1, "1.80")),
        apply(
            &format!("{award}/status"),
            RELAY,
            vec![
                ("/status/conditions/0/type", json!("Held")),
                ("/status/conditions/0/status", json!("True")),
            ],
        ),
        event(),
    ];
    home::submitted(&context, job_key(), 1);
    home::on_event(&context, ordered(&order));
    home::on_event(&context, awarded(&order, &certificate, &proof));
    let choice =
        Choice { order: digest, seat: 1, rank: 1, price: "1.80".parse().unwrap(), certificate, proof };
    home::on_event(&context, HomeOutput::Choose(Box::new(choice)));
    play(f.server, script).await;
    let told = tokio::time::timeout(DEADLINE, f.commands.recv()).await.unwrap();
    let Some(EngineCommand::Home(told)) = told else { panic!("{told:?}") };
    assert!(matches!(*told, HomeInput::Stored { order } if order == digest));
}

#[tokio::test]
async fn status_of_another_seat_is_not_taken() {
    let f = fixture();
    let context = home_context(&f);
    let mut award = held_award("0011223344556677", &"ab".repeat(32), "");
    award["spec"]["side"] = json!("Home");
    let list =
        json!({ "kind": "AwardList", "apiVersion": "vendue.dev/v1alpha1", "metadata": {}, "items": [award] });
    let empty =
        json!({ "kind": "AwardList", "apiVersion": "vendue.dev/v1alpha1", "metadata": {}, "items": [] });
    let script = vec![
        get("/apis/vendue.dev/v1alpha1/awards", Some(list)),
        get("/apis/vendue.dev/v1alpha1/awards", Some(empty)),
    ];
    let status = || Handover::Status { award: reference(), version: 1, status: Box::default() };
    let requests = async {
        let seats = BTreeSet::from([2, 3]);
        let mut replies = Vec::new();
        for seat in seats {
            replies.push(home::serve(&context, MemberId::Seat(seat), status()).await);
        }
        replies
    };
    let (replies, ()) = tokio::join!(requests, play(f.server, script));
    assert_eq!(replies, [Some(HandoverReply::Unknown), Some(HandoverReply::Unknown)]);
}

#[tokio::test]
async fn an_order_that_is_listed_again_is_awarded_under_its_last_body() {
    let f = fixture();
    let context = home_context(&f);
    let first = order(&f, [7; 32]);
    let after = vendue_market::Unserved { order: first.digest(), round: 5, root: [3; 32] };
    let last = vendue_market::Order { first_round: 7, after: Some(after), ..first.clone() };
    let (names, id) = ([first.digest(), last.digest()].map(hex::encode), award_id(&f, &last));
    let (job, award) = (
        "/apis/vendue.dev/v1alpha1/namespaces/team/jobs/digits/status",
        "/apis/vendue.dev/v1alpha1/namespaces/team/awards/digits-1",
    );
    let auction = |outcome: &str, tried: i32, order: &str| {
        vec![
            ("/status/auction/outcome", json!(outcome)),
            ("/status/auction/roundsTried", json!(tried)),
            ("/status/auction/orderDigest", json!(order)),
        ]
    };
    let script = vec![
        apply(job, BRIDGE, auction("Pending", 0, &names[0])),
        apply(job, BRIDGE, auction("NoFeasibleBid", 1, &names[0])),
        event(),
        // The second round without an award follows at once, and is counted, but not told.
        apply(award, BRIDGE, vec![("/spec/id", json!(id)), ("/spec/orderDigest", json!(names[1]))]),
        apply(job, BRIDGE, auction("Awarded", 3, &names[1])),
        event(),
    ];
    home::submitted(&context, job_key(), 1);
    home::on_event(&context, ordered(&first));
    let between = [9; 32];
    for (order, next, round) in [(first.digest(), between, 5), (between, last.digest(), 6)] {
        let histogram = vendue_market::Histogram::new(4);
        let models = BTreeSet::new();
        home::on_event(
            &context,
            HomeOutput::NotAwarded { order, round, histogram, models, retry_ms: Some(now_ms()) },
        );
        home::on_event(&context, HomeOutput::Relisted { order, digest: next });
    }
    home::on_event(&context, awarded(&last, &certificate(&f), &proof(&last)));
    play(f.server, script).await;
}
