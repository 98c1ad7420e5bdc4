//! The thread that owns NVML, and the watchdog over it.
//!
//! NVML calls can block for seconds, or for ever when firmware hangs. So they run here, one at a time, and the async
//! side waits with a limit. A call that does not come back stays the one call under way: no second one is started on
//! top of it, and its answer is taken when it comes.

use std::sync::mpsc;
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::{Instant, timeout};

use super::{DeviceProbe, ProbeError};
use crate::inventory::NodeInventory;
use crate::observe::Outcome;

type Reply = oneshot::Sender<Result<NodeInventory, ProbeError>>;

/// Handle of the reading thread. Dropping it ends the thread after the call under way.
#[derive(Debug)]
pub struct ProbeThread {
    requests: mpsc::Sender<Reply>,
    under_way: Option<(oneshot::Receiver<Result<NodeInventory, ProbeError>>, Instant)>,
    limit: Duration,
}

impl ProbeThread {
    /// Starts the thread; readings longer than `limit` count as hung.
    ///
    /// # Errors
    /// When the system starts no thread.
    pub fn start(mut probe: impl DeviceProbe, limit: Duration) -> std::io::Result<Self> {
        let (requests, inbox) = mpsc::channel::<Reply>();
        std::thread::Builder::new().name("nvml".to_owned()).spawn(move || {
            while let Ok(reply) = inbox.recv() {
                // The receiver is gone only when the agent ends.
                drop(reply.send(probe.read()));
            }
        })?;
        Ok(Self { requests, under_way: None, limit })
    }

    /// Reads once, or goes on waiting for a reading that hangs.
    pub async fn read(&mut self) -> Outcome {
        let (mut answer, started) = match self.under_way.take() {
            Some(call) => call,
            None => {
                let (reply, answer) = oneshot::channel();
                if self.requests.send(reply).is_err() {
                    return Outcome::Failed(ProbeError::ThreadEnded);
                }
                (answer, Instant::now())
            }
        };
        match timeout(self.limit, &mut answer).await {
            Ok(Ok(Ok(inventory))) => Outcome::Read(inventory),
            Ok(Ok(Err(error))) => Outcome::Failed(error),
            Ok(Err(_)) => Outcome::Failed(ProbeError::ThreadEnded),
            Err(_) => {
                self.under_way = Some((answer, started));
                Outcome::Hung { since: started.elapsed() }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Blocks each reading until the test lets it go.
    struct Gate {
        open: mpsc::Receiver<()>,
        readings: mpsc::Sender<()>,
    }

    impl DeviceProbe for Gate {
        fn read(&mut self) -> Result<NodeInventory, ProbeError> {
            self.readings.send(()).expect("test listens");
            self.open.recv().expect("test lets go");
            Ok(NodeInventory::default())
        }
    }

    #[tokio::test]
    async fn a_hung_call_is_reported_not_repeated_and_its_answer_is_taken() {
        let (open, gate) = mpsc::channel();
        let (readings, started) = mpsc::channel();
        let mut thread =
            ProbeThread::start(Gate { open: gate, readings }, Duration::from_millis(20)).expect("thread");
        assert!(matches!(thread.read().await, Outcome::Hung { .. }));
        assert!(matches!(thread.read().await, Outcome::Hung { since } if since >= Duration::from_millis(40)));
        started.recv().expect("one call began");
        assert!(started.try_recv().is_err(), "and no second one on top of it");
        open.send(()).expect("open");
        let mut outcome = thread.read().await;
        while matches!(outcome, Outcome::Hung { .. }) {
            outcome = thread.read().await;
        }
        assert!(matches!(outcome, Outcome::Read(_)));
    }

    struct Panics;

    impl DeviceProbe for Panics {
        fn read(&mut self) -> Result<NodeInventory, ProbeError> {
            panic!("a broken driver")
        }
    }

    #[tokio::test]
    async fn a_dead_thread_is_an_error_not_a_hang() {
        let mut thread = ProbeThread::start(Panics, Duration::from_secs(60)).expect("thread");
        for _ in 0..2 {
            assert!(matches!(thread.read().await, Outcome::Failed(ProbeError::ThreadEnded)));
        }
    }
}
