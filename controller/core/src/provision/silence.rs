//! Agents that are not heard any more.
//!
//! Inputs: heartbeats of GpuNodes as a watch brings them, and the listener's own clock. Outputs: the nodes whose agents are
//! silent. Invariants: a node's time is never compared with the listener's, it only has to be another than the last one; what
//! is heard of for the first time, as everything is after a restart, is given the whole [`SILENT_AFTER`].

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use k8s_openapi::jiff::Timestamp;

/// An agent writes every 15 s. One that has not for this long is silent: a shorter time takes nodes off the market for a slow
/// API server, a longer one sells what may be gone.
pub const SILENT_AFTER: Duration = Duration::from_secs(60);

/// When each agent was last heard. Times are those since any one moment, by a clock that is never set.
#[derive(Clone, Debug, Default)]
pub struct Heard(BTreeMap<String, Last>);

#[derive(Clone, Debug)]
struct Last {
    beat: Option<Timestamp>,
    at: Duration,
}

impl Last {
    fn silent_from(&self) -> Duration {
        self.at.saturating_add(SILENT_AFTER)
    }
}

impl Heard {
    /// Takes note of what a GpuNode says of its time, which may be what it said before; says whether its agent was silent until
    /// now and is not any more.
    pub fn hear(&mut self, node: &str, beat: Option<Timestamp>, now: Duration) -> bool {
        let new = Last { beat, at: now };
        match self.0.get_mut(node) {
            None => {
                self.0.insert(node.to_owned(), new);
                false
            }
            Some(last) if last.beat == beat => false,
            Some(last) => {
                let was_silent = last.silent_from() <= now;
                *last = new;
                was_silent
            }
        }
    }

    /// Brings the nodes up to date with those that have a GpuNode: silent ones without are forgotten. What is not heard of at
    /// all, because a list takes its time, counts as heard of now, so that its silence will be noticed.
    pub fn follow(&mut self, there: &BTreeSet<String>, now: Duration) {
        self.0.retain(|node, last| there.contains(node) || last.silent_from() > now);
        for node in there {
            self.0.entry(node.clone()).or_insert(Last { beat: None, at: now });
        }
    }

    /// The nodes whose agents are silent.
    pub fn silent(&self, now: Duration) -> BTreeSet<String> {
        self.0.iter().filter(|(_, last)| last.silent_from() <= now).map(|(node, _)| node.clone()).collect()
    }

    /// When the next agent falls silent, if nothing is heard until then; none while all are silent already.
    pub fn next_silence(&self, now: Duration) -> Option<Duration> {
        self.0.values().map(Last::silent_from).filter(|from| *from > now).min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures::at;

    fn second(n: u64) -> Duration {
        Duration::from_secs(n)
    }

    fn names(heard: &Heard, now: u64) -> Vec<String> {
        heard.silent(second(now)).into_iter().collect()
    }

    #[test]
    fn an_agent_is_silent_a_minute_after_its_last_new_heartbeat() {
        let mut heard = Heard::default();
        assert_eq!((names(&heard, 0), heard.next_silence(second(0))), (vec![], None));
        // Whatever the node's clock says, and whenever it was written: it is news to this listener.
        assert!(!heard.hear("a", Some(at(-100_000)), second(0)));
        assert!(!heard.hear("b", Some(at(100_000)), second(10)));
        assert_eq!((names(&heard, 59), heard.next_silence(second(59))), (vec![], Some(second(60))));
        // The same again, as after the watch began anew, is no sign of life.
        assert!(!heard.hear("a", Some(at(-100_000)), second(59)));
        assert_eq!(
            (names(&heard, 60), heard.next_silence(second(60))),
            (vec!["a".to_owned()], Some(second(70)))
        );
        assert_eq!((names(&heard, 70), heard.next_silence(second(70))), (vec!["a".into(), "b".into()], None));
        // A clock that was set back beats too.
        assert!(heard.hear("b", Some(at(99_000)), second(75)));
        assert!(!heard.hear("b", Some(at(99_015)), second(90)));
        assert_eq!(names(&heard, 149), ["a"]);
        assert_eq!(names(&heard, 150), ["a", "b"]);
    }

    #[test]
    fn a_node_that_is_gone_is_forgotten_and_new_when_it_returns() {
        let mut heard = Heard::default();
        heard.hear("a", None, second(0));
        heard.hear("b", None, second(0));
        let there = BTreeSet::from(["b".to_owned(), "c".to_owned()]);
        // A list that is under way may bring it yet.
        heard.follow(&there, second(59));
        assert_eq!(names(&heard, 60), ["a", "b"]);
        heard.follow(&there, second(60));
        assert_eq!(names(&heard, 100), ["b"]);
        assert!(!heard.hear("a", None, second(100)));
        assert_eq!(names(&heard, 159), ["b", "c"], "what was never heard falls silent too");
    }
}
