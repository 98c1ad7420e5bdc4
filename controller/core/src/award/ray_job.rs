//! The one Ray job of an award, across failures, retries and restarts of the head and of this controller.
//!
//! Inputs: what the Award's status records ([`Track`]) and what Ray says ([`Seen`]). Outputs: the next record, whether
//! to submit an attempt, and the outcome when there is one.
//!
//! Invariants: an attempt is submitted only when Ray does not know it, and the next attempt only when the one before
//! has ended or its session (the head's life) is gone, so two never live at once; an outcome is given only for a state
//! that Ray never leaves. Ids are a function of the award and the attempt, so a repeat after a crash finds the first
//! try instead of starting another.

use k8s_openapi::jiff::Timestamp;

/// What the status records of the job.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Track {
    /// Attempt, from 1.
    pub attempt: u32,
    /// Session of the head that the attempt was seen in or submitted to.
    pub session: Option<String>,
}

/// State of a Ray job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RayState {
    /// Accepted, not started.
    Pending,
    /// The entry point runs.
    Running,
    /// It ended with exit code 0.
    Succeeded,
    /// It ended otherwise.
    Failed,
    /// It was stopped.
    Stopped,
}

impl RayState {
    /// Ray's word for the state; `None` for a word that is not known.
    pub fn parse(word: &str) -> Option<Self> {
        match word {
            "PENDING" => Some(Self::Pending),
            "RUNNING" => Some(Self::Running),
            "SUCCEEDED" => Some(Self::Succeeded),
            "FAILED" => Some(Self::Failed),
            "STOPPED" => Some(Self::Stopped),
            _ => None,
        }
    }

    /// Ray's word.
    pub fn word(self) -> &'static str {
        match self {
            Self::Pending => "PENDING",
            Self::Running => "RUNNING",
            Self::Succeeded => "SUCCEEDED",
            Self::Failed => "FAILED",
            Self::Stopped => "STOPPED",
        }
    }
}

/// What Ray says about the tracked attempt.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Seen {
    /// Nothing: the head did not answer, or restarted while it was asked.
    #[default]
    Silent,
    /// The head of this session does not know the attempt.
    Unknown {
        /// The head's session.
        session: String,
    },
    /// The head of this session knows the attempt.
    Job {
        /// The head's session.
        session: String,
        /// The state.
        state: RayState,
        /// Ray's message, and the last lines of the log when it ended badly.
        detail: Detail,
        /// When the entry point started and ended, by the head's clock.
        times: Times,
    },
}

/// When a job ran, by the head's clock.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Times {
    /// Start of the entry point.
    pub started: Option<Timestamp>,
    /// Its end.
    pub ended: Option<Timestamp>,
}

/// Text about a job.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Detail {
    /// Ray's message.
    pub message: String,
    /// Last lines of the driver's log.
    pub log_tail: String,
}

/// How a job ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// With success.
    Succeeded,
    /// With an error, and no retry is left.
    Failed(Detail),
    /// The head was lost while it ran, and no retry is left.
    Lost,
}

/// What to do next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Next {
    /// The new record.
    pub track: Track,
    /// Attempt to submit now.
    pub submit: Option<u32>,
    /// State to show.
    pub state: Option<RayState>,
    /// The end.
    pub outcome: Option<Outcome>,
    /// Why an attempt was given up, when the next one follows.
    pub retried: Option<Detail>,
}

/// Decides on one observation. `retries` is how often a failed attempt may be followed by another.
pub fn step(track: &Track, seen: &Seen, retries: u32) -> Next {
    let keep = |track: Track, state: Option<RayState>| Next {
        track,
        submit: None,
        state,
        outcome: None,
        retried: None,
    };
    let attempt = track.attempt.max(1);
    match seen {
        Seen::Silent => keep(Track { attempt, session: track.session.clone() }, None),
        Seen::Unknown { session } => {
            // Recorded in another session: that head is gone and the attempt with it.
            if track.session.as_ref().is_some_and(|recorded| recorded != session) {
                return again(attempt, session, retries, Detail::default(), Outcome::Lost);
            }
            let track = Track { attempt, session: Some(session.clone()) };
            Next { submit: Some(attempt), ..keep(track, None) }
        }
        Seen::Job { session, state, detail, times: _ } => {
            let here = Track { attempt, session: Some(session.clone()) };
            match state {
                RayState::Pending | RayState::Running => keep(here, Some(*state)),
                RayState::Succeeded => Next { outcome: Some(Outcome::Succeeded), ..keep(here, Some(*state)) },
                RayState::Failed | RayState::Stopped => {
                    let failed = Outcome::Failed(detail.clone());
                    let next = again(attempt, session, retries, detail.clone(), failed);
                    Next { state: Some(*state), ..next }
                }
            }
        }
    }
}

/// The next attempt, or the end when none is left.
fn again(attempt: u32, session: &str, retries: u32, detail: Detail, end: Outcome) -> Next {
    let session = Some(session.to_owned());
    if attempt > retries {
        let track = Track { attempt, session };
        return Next { track, submit: None, state: None, outcome: Some(end), retried: None };
    }
    let track = Track { attempt: attempt + 1, session };
    Next { track, submit: Some(attempt + 1), state: None, outcome: None, retried: Some(detail) }
}

#[cfg(test)]
mod tests;
