//! When an award's receipts are asked for. Pure.
//!
//! Inputs: an Award, what became of the last times, the time. Outputs: when the next time is, if ever. Invariants: every
//! award that was handed over is asked about after it ended, until everything is here or a day is over; a seat that brings
//! nothing new is asked less and less often.

use std::collections::BTreeSet;

use vendue_crds::conditions::{self, award as condition};
use vendue_crds::{Award, AwardSide};
use vendue_receipts::{AwardId, ChainName};

use crate::bridge::objects::{conditions_of, ms_of};
use crate::wire::ChainHead;

/// Between two times while the award runs.
pub const EVERY_MS: u64 = 30_000;
/// After its end, until everything is here; longer each time that nothing new comes.
const SOON_MS: u64 = 5_000;
/// The longest pause.
const LONGEST_MS: u64 = 600_000;
/// So long after the end of an award the rest is given up.
const GIVE_UP_MS: u64 = 24 * 3_600_000;
/// A chain whose time is ahead of the clock here by more is refused: it would never be old enough to go.
const MAX_AHEAD_MS: u64 = 24 * 3_600_000;
/// A record of a GPU is for ten seconds; events make some shorter.
const RECORD_SECONDS: u64 = 4;
/// Records that an award may have beside those of its time.
const RECORDS_ANYWAY: u64 = 10_000;

/// How far an award is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    /// It runs.
    Running,
    /// It has ended.
    Finished,
    /// Nothing of it is left at the provider.
    Released,
}

/// An award as it matters here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Subject {
    /// Its id.
    pub id: AwardId,
    /// The seat that serves it.
    pub seat: u16,
    /// How far it is.
    pub phase: Phase,
    /// When this cluster wrote it: the provider's word would bound nothing.
    pub since_ms: u64,
    /// When it ended.
    pub ended_ms: Option<u64>,
    /// Its GPUs.
    pub gpus: u64,
}

impl Subject {
    /// What an Award says; `None` while there can be no receipts.
    pub fn of(award: &Award) -> Option<Self> {
        let list = conditions_of(award);
        let is = |type_: &str| conditions::is_true(list, type_);
        let handed_over = is(condition::HANDED_OVER) && award.spec.side == AwardSide::Home;
        let runtime = award.status.as_ref().and_then(|s| s.runtime.as_ref());
        let started = is(condition::RUNNING) || runtime.is_some_and(|r| r.started_at.is_some());
        let phase = if is(condition::RELEASED) {
            Phase::Released
        } else if is(condition::FINISHED) {
            Phase::Finished
        } else if started {
            Phase::Running
        } else {
            return None;
        };
        let when = |type_: &str| conditions::find(list, type_).map(|c| ms_of(&c.last_transition_time));
        let ended = |type_| if is(type_) { when(type_) } else { None };
        let needs = &award.spec.requirements;
        let gpus = i64::from(needs.workers) * i64::from(needs.gpus_per_worker);
        handed_over.then_some(())?;
        Some(Self {
            id: award.spec.id.parse().ok()?,
            seat: u16::try_from(award.spec.seat).ok()?,
            phase,
            since_ms: award.metadata.creation_timestamp.as_ref().map(ms_of).unwrap_or(u64::MAX),
            ended_ms: ended(condition::RELEASED).max(ended(condition::FINISHED)),
            gpus: u64::try_from(gpus).unwrap_or_default(),
        })
    }

    /// Most records that the award can have by now: a provider that sends more makes them up.
    pub fn most_records(&self, now_ms: u64) -> u64 {
        let seconds =
            self.ended_ms.map_or(now_ms, |end| end.min(now_ms)).saturating_sub(self.since_ms) / 1_000;
        (seconds / RECORD_SECONDS).saturating_mul(self.gpus.max(1)).saturating_add(RECORDS_ANYWAY)
    }
}

/// What became of the last times.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Progress {
    /// The last time.
    asked_ms: Option<u64>,
    /// How far the award was when the seat last answered.
    answered: Option<Phase>,
    /// Times in a row that failed, or that brought nothing after the end.
    quiet: u32,
    /// Nothing more can come.
    is_whole: bool,
}

impl Progress {
    /// When the seat is to be asked next; `None` for never.
    pub fn next_ms(&self, subject: &Subject, now_ms: u64) -> Option<u64> {
        let over = subject.ended_ms.is_some_and(|end| end.saturating_add(GIVE_UP_MS) <= now_ms);
        if over || (self.is_whole && subject.phase == Phase::Released) {
            return None;
        }
        let Some(asked_ms) = self.asked_ms else { return Some(0) };
        // At each step of the award at once, unless the seat does not answer.
        if self.quiet == 0 && self.answered.is_some_and(|phase| phase < subject.phase) {
            return Some(0);
        }
        let first = if subject.phase == Phase::Running { EVERY_MS } else { SOON_MS };
        let pause = first.saturating_mul(1 << self.quiet.min(8)).min(LONGEST_MS);
        Some(asked_ms.saturating_add(pause))
    }

    /// The seat answered: so many records were new.
    pub fn answered(&mut self, subject: &Subject, now_ms: u64, new: u64, is_whole: bool) {
        let goes_on = new > 0 || subject.phase == Phase::Running || self.answered != Some(subject.phase);
        self.quiet = if goes_on { 0 } else { self.quiet.saturating_add(1) };
        (self.asked_ms, self.answered, self.is_whole) = (Some(now_ms), Some(subject.phase), is_whole);
    }

    /// It did not.
    pub fn failed(&mut self, now_ms: u64) {
        (self.asked_ms, self.quiet) = (Some(now_ms), self.quiet.saturating_add(1));
    }
}

/// Whether nothing more can come: every chain is closed and here, and each GPU is in one.
pub fn is_whole(
    subject: &Subject,
    listed: &[ChainHead],
    here: impl Fn(ChainName) -> (u64, bool),
    devices: usize,
) -> bool {
    let all_here = listed.iter().all(|head| {
        let Ok(name) = head.name.parse() else { return true };
        let (next, gone) = here(name);
        gone || (head.closed && next >= head.next)
    });
    !listed.is_empty() && all_here && devices as u64 >= subject.gpus
}

/// Whether the time of a chain is one that can be.
pub fn is_plausible(end_ms: u64, now_ms: u64) -> bool {
    end_ms <= now_ms.saturating_add(MAX_AHEAD_MS)
}

/// Which awards are asked about now: those that wait longest, one of each seat that is not busy, at most so many.
pub fn due<'s>(
    subjects: impl Iterator<Item = (&'s Subject, Progress)>,
    busy: &BTreeSet<u16>,
    now_ms: u64,
    most: usize,
) -> Vec<AwardId> {
    let mut waiting: Vec<_> = subjects
        .filter(|(subject, _)| !busy.contains(&subject.seat))
        .filter_map(|(subject, progress)| {
            Some((progress.next_ms(subject, now_ms)?, subject.id, subject.seat))
        })
        .filter(|(at, _, _)| *at <= now_ms)
        .collect();
    waiting.sort_unstable();
    let mut seats = busy.clone();
    waiting.retain(|(_, _, seat)| seats.insert(*seat));
    waiting.truncate(most.saturating_sub(busy.len()));
    waiting.into_iter().map(|(_, id, _)| id).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::receipts::mk_award;

    const S: u64 = 1_000;
    const T: u64 = 1_800_000_000 * S;

    fn subject(conditions: &[(&str, u64)]) -> Option<Subject> {
        Subject::of(&mk_award("0011223344556677", 3, conditions))
    }

    fn running() -> Subject {
        subject(&[("HandedOver", T), ("Running", T)]).unwrap()
    }

    fn ended(phase: Phase) -> Subject {
        Subject { phase, ended_ms: Some(T + 100 * S), ..running() }
    }

    #[test]
    fn awards_that_were_handed_over_and_began() {
        assert_eq!(subject(&[("Held", T)]), None);
        assert_eq!(subject(&[("HandedOver", T)]), None);
        assert_eq!(subject(&[("Released", T)]), None, "never handed over");
        let found = running();
        assert_eq!((found.phase, found.seat, found.gpus, found.since_ms), (Phase::Running, 3, 2, T));
        let found = subject(&[("HandedOver", T), ("Finished", T + 5 * S)]).unwrap();
        assert_eq!((found.phase, found.ended_ms), (Phase::Finished, Some(T + 5 * S)));
        let found = subject(&[("HandedOver", T), ("Finished", T + 5 * S), ("Released", T + 9 * S)]).unwrap();
        assert_eq!((found.phase, found.ended_ms), (Phase::Released, Some(T + 9 * S)));
    }

    #[test]
    fn every_half_minute_and_at_each_step() {
        let mut progress = Progress::default();
        assert_eq!(progress.next_ms(&running(), T), Some(0), "at once");
        progress.answered(&running(), T, 0, false);
        progress.answered(&running(), T + EVERY_MS, 0, false);
        assert_eq!(progress.next_ms(&running(), T), Some(T + 2 * EVERY_MS), "quiet chains go on");
        for phase in [Phase::Finished, Phase::Released] {
            assert_eq!(progress.next_ms(&ended(phase), T), Some(0));
            progress.answered(&ended(phase), T, 0, false);
            assert_eq!(progress.next_ms(&ended(phase), T), Some(T + SOON_MS));
        }
    }

    #[test]
    fn a_seat_that_is_silent_or_says_nothing_new_is_asked_less_often() {
        let (mut failing, mut quiet) = (Progress::default(), Progress::default());
        let released = ended(Phase::Released);
        let mut pauses = vec![];
        quiet.answered(&released, T, 0, false);
        for _ in 0..8 {
            failing.failed(T);
            quiet.answered(&released, T, 0, false);
            assert_eq!(failing.next_ms(&released, T), quiet.next_ms(&released, T));
            pauses.push(failing.next_ms(&released, T).unwrap() - T);
        }
        assert_eq!(pauses, [10, 20, 40, 80, 160, 320, 600, 600].map(|s| s * S));
        failing.failed(T);
        assert!(failing.next_ms(&released, T).unwrap() > T, "a step does not hurry a seat that is silent");
        quiet.answered(&released, T, 1, false);
        assert_eq!(quiet.next_ms(&released, T), Some(T + SOON_MS));
    }

    #[test]
    fn until_everything_is_here_or_a_day_is_over() {
        let released = ended(Phase::Released);
        let mut progress = Progress::default();
        progress.answered(&ended(Phase::Finished), T, 3, true);
        assert!(progress.next_ms(&ended(Phase::Finished), T).is_some(), "more nodes may come");
        progress.answered(&released, T, 0, true);
        assert_eq!(progress.next_ms(&released, T), None);
        let day = 86_400 * S;
        let end = T + 100 * S;
        assert!(Progress::default().next_ms(&released, end + day - 1).is_some());
        assert_eq!(Progress::default().next_ms(&released, end + day), None);
    }

    #[test]
    fn whole_is_every_chain_closed_and_every_gpu_seen() {
        let head = |key: u8, next, closed| ChainHead {
            name: format!("0011223344556677-{key:016x}"),
            node: "n".into(),
            next,
            closed,
        };
        let here = |name: ChainName| if name.key[7] == 9 { (0, true) } else { (5, false) };
        let whole = |listed: &[ChainHead], devices| is_whole(&running(), listed, here, devices);
        assert!(whole(&[head(1, 5, true), head(9, 70, true)], 2));
        assert!(!whole(&[head(1, 5, true)], 1), "a GPU is in no chain yet");
        assert!(!whole(&[head(1, 5, false)], 2));
        assert!(!whole(&[head(1, 6, true)], 2));
        assert!(!whole(&[], 2));
    }

    #[test]
    fn one_award_of_a_seat_at_a_time_those_that_wait_longest_first() {
        let of = |id: u8, seat| Subject { id: AwardId([id; 8]), seat, ..running() };
        let all = [of(1, 0), of(2, 0), of(3, 1), of(4, 2), of(5, 3)];
        let mut asked = Progress::default();
        asked.answered(&running(), T, 1, false);
        let progress = |s: &Subject| if s.id.0[0] == 1 { asked } else { Progress::default() };
        let now = T + EVERY_MS;
        let due = |busy: &[u16], most| {
            let busy = busy.iter().copied().collect();
            let found = due(all.iter().map(|s| (s, progress(s))), &busy, now, most);
            found.iter().map(|id| id.0[0]).collect::<Vec<_>>()
        };
        assert_eq!(due(&[], 64), [2, 3, 4, 5]);
        assert_eq!(due(&[1], 64), [2, 4, 5]);
        assert_eq!(due(&[1], 2), [2]);
        assert_eq!(due(&[0, 1, 2, 3], 64).len(), 0);
    }

    #[test]
    fn a_provider_cannot_send_more_records_than_there_can_be() {
        let subject = running();
        assert_eq!(subject.most_records(T), 10_000);
        let day = T + 86_400 * S;
        assert_eq!(subject.most_records(day), 10_000 + 2 * 21_600);
        assert_eq!(ended(Phase::Finished).most_records(day), 10_000 + 2 * 25);
        assert!(is_plausible(T, T) && !is_plausible(day + 1, T));
    }
}
