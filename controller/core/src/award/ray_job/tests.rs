//! The state machine against a model of Ray that fails, restarts and forgets at random.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

fn job(session: &str, state: RayState) -> Seen {
    let detail = Detail { message: "m".into(), log_tail: "l".into() };
    Seen::Job { session: session.into(), state, detail, times: Times::default() }
}

fn track(attempt: u32, session: Option<&str>) -> Track {
    Track { attempt, session: session.map(Into::into) }
}

#[test]
fn submits_follows_and_ends() {
    let unknown = Seen::Unknown { session: "s1".into() };
    let first = step(&Track::default(), &unknown, 0);
    assert_eq!(
        first,
        Next { track: track(1, Some("s1")), submit: Some(1), state: None, outcome: None, retried: None }
    );
    let running = step(&first.track, &job("s1", RayState::Running), 0);
    assert_eq!((running.submit, running.state, running.outcome), (None, Some(RayState::Running), None));
    let done = step(&running.track, &job("s1", RayState::Succeeded), 0);
    assert_eq!((done.submit, done.outcome), (None, Some(Outcome::Succeeded)));
    assert_eq!(step(&running.track, &Seen::Silent, 0).track, running.track);
}

#[test]
fn retries_as_often_as_asked() {
    let failed = job("s1", RayState::Failed);
    let next = step(&track(1, Some("s1")), &failed, 1);
    assert_eq!((next.submit, next.track.attempt, next.outcome), (Some(2), 2, None));
    assert!(matches!(step(&next.track, &failed, 1).outcome, Some(Outcome::Failed(_))));
    assert!(matches!(
        step(&track(1, None), &job("s1", RayState::Stopped), 0).outcome,
        Some(Outcome::Failed(_))
    ));
}

#[test]
fn a_new_session_means_the_attempt_is_lost() {
    let unknown = Seen::Unknown { session: "s2".into() };
    let next = step(&track(1, Some("s1")), &unknown, 2);
    assert_eq!((next.submit, next.track), (Some(2), track(2, Some("s2"))));
    assert_eq!(step(&track(3, Some("s1")), &unknown, 2).outcome, Some(Outcome::Lost));
    // The same session without the job: the submission never arrived.
    assert_eq!(step(&track(2, Some("s2")), &unknown, 2).submit, Some(2));
}

#[test]
fn words_round_trip() {
    for state in
        [RayState::Pending, RayState::Running, RayState::Succeeded, RayState::Failed, RayState::Stopped]
    {
        assert_eq!(RayState::parse(state.word()), Some(state));
    }
    assert_eq!(RayState::parse("BORED"), None);
}

/// A head with its jobs; a restart forgets and kills them.
#[derive(Default)]
struct Head {
    session: u32,
    jobs: BTreeMap<u32, RayState>,
    /// Attempts that ever ended with success.
    succeeded: Vec<u32>,
}

impl Head {
    fn live(&self) -> usize {
        self.jobs.values().filter(|s| matches!(s, RayState::Pending | RayState::Running)).count()
    }

    fn see(&self, attempt: u32) -> Seen {
        let session = format!("s{}", self.session);
        match self.jobs.get(&attempt) {
            None => Seen::Unknown { session },
            Some(state) => {
                Seen::Job { session, state: *state, detail: Detail::default(), times: Times::default() }
            }
        }
    }

    /// As the client submits: an id that is known is left alone.
    fn submit(&mut self, attempt: u32) {
        self.jobs.entry(attempt).or_insert(RayState::Pending);
    }
}

#[derive(Clone, Debug)]
enum Event {
    /// The controller looks; `written` says whether its status arrived, `submitted` whether its POST did.
    Reconcile {
        written: bool,
        submitted: bool,
    },
    Silent,
    Advance(RayState),
    HeadRestarts,
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        5 => (any::<bool>(), any::<bool>())
            .prop_map(|(written, submitted)| Event::Reconcile { written, submitted }),
        3 => Just(Event::Reconcile { written: true, submitted: true }),
        1 => Just(Event::Silent),
        2 => Just(Event::Advance(RayState::Running)),
        2 => prop_oneof![Just(RayState::Succeeded), Just(RayState::Failed)].prop_map(Event::Advance),
        1 => Just(Event::HeadRestarts),
    ]
}

proptest! {
    #[test]
    fn never_two_alive_and_never_loses_an_end(
        events in prop::collection::vec(event(), 1..80), retries in 0u32..4,
    ) {
        let mut head = Head::default();
        let mut recorded = Track::default();
        let mut ended = None;
        for event in events {
            match event {
                Event::Silent => {
                    let next = step(&recorded, &Seen::Silent, retries);
                    prop_assert!(next.submit.is_none() && next.outcome.is_none());
                }
                Event::Advance(to) => {
                    let live = head.jobs.iter_mut()
                        .find(|(_, s)| matches!(s, RayState::Pending | RayState::Running));
                    if let Some((attempt, state)) = live {
                        *state = to;
                        if to == RayState::Succeeded {
                            head.succeeded.push(*attempt);
                        }
                    }
                }
                Event::HeadRestarts => {
                    head.session += 1;
                    head.jobs.clear();
                    head.succeeded.clear();
                }
                Event::Reconcile { written, submitted } if ended.is_none() => {
                    let attempt = recorded.attempt.max(1);
                    let next = step(&recorded, &head.see(attempt), retries);
                    prop_assert!(next.track.attempt <= retries + 1);
                    prop_assert!(next.submit.is_none() || next.outcome.is_none());
                    if let Some(submit) = next.submit {
                        if submitted {
                            head.submit(submit);
                        } else {
                            // The plan's order: a POST that fails ends the reconcile before the status.
                            continue;
                        }
                    }
                    // What Ray ended with success is reported as that, and nothing else is started after it.
                    if head.succeeded.contains(&attempt) {
                        prop_assert_eq!(&next.outcome, &Some(Outcome::Succeeded));
                    }
                    if written {
                        recorded = next.track;
                        ended = next.outcome;
                    }
                }
                Event::Reconcile { .. } => {}
            }
            prop_assert!(head.live() <= 1, "two submissions are alive");
        }
    }
}
