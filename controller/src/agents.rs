//! Which agents are heard, by the clock of this process.
//!
//! Inputs: GpuNodes as the watch brings them. Outputs: the nodes whose agents are silent, and a wake-up when that changes.
//! Invariant: a heartbeat that says nothing new of a node wakes nobody: thousands of nodes send hundreds in a second.

use std::collections::BTreeSet;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use kube::ResourceExt;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep};
use vendue_controller_core::provision::{Heard, SILENT_AFTER};
use vendue_crds::GpuNode;

/// Agents of this cluster's nodes.
#[derive(Debug)]
pub struct Agents {
    begun: Instant,
    heard: Mutex<Heard>,
}

impl Default for Agents {
    fn default() -> Self {
        Self { begun: Instant::now(), heard: Mutex::default() }
    }
}

impl Agents {
    fn now(&self) -> Duration {
        self.begun.elapsed()
    }

    fn heard(&self) -> MutexGuard<'_, Heard> {
        self.heard.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes note of what the watch brings; wakes when an agent that was silent is back.
    pub fn hear(&self, node: &GpuNode, changed: &Notify) {
        let beat = node.status.as_ref().and_then(|status| status.observed_at.as_ref()).map(|at| at.0);
        let now = self.now();
        if self.heard().hear(&node.name_any(), beat, now) {
            tracing::info!(node = %node.name_any(), "the agent is heard again");
            changed.notify_one();
        }
    }

    /// Nodes whose agents are silent.
    pub fn silent(&self) -> BTreeSet<String> {
        self.heard().silent(self.now())
    }

    /// Wakes when an agent falls silent, for ever. `there` are the nodes that have a GpuNode.
    pub async fn watch(&self, there: impl Fn() -> BTreeSet<String>, changed: &Notify) {
        let mut known = BTreeSet::new();
        loop {
            let now = self.now();
            let next = self.heard().next_silence(now).map_or(SILENT_AFTER, |at| at.saturating_sub(now));
            // What is first heard of meanwhile falls silent later than that.
            sleep(next.min(SILENT_AFTER)).await;
            self.heard().follow(&there(), self.now());
            let silent = self.silent();
            for node in silent.difference(&known) {
                tracing::warn!(%node, seconds = SILENT_AFTER.as_secs(), "the agent is not heard; nothing of its node is sold");
            }
            if silent.difference(&known).next().is_some() {
                changed.notify_one();
            }
            known = silent;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use futures::FutureExt;
    use serde_json::json;

    use super::*;

    fn node(name: &str, second: u32) -> GpuNode {
        serde_json::from_value(json!({
            "apiVersion": "vendue.dev/v1alpha1", "kind": "GpuNode", "metadata": { "name": name }, "spec": {},
            "status": { "deviceCount": 0, "observedAt": format!("2026-01-01T00:00:{second:02}Z") },
        }))
        .unwrap()
    }

    fn is_woken(changed: &Notify) -> bool {
        changed.notified().now_or_never().is_some()
    }

    #[tokio::test(start_paused = true)]
    async fn an_agent_that_falls_silent_and_one_that_returns_wake_once() {
        let (agents, changed) = (Arc::new(Agents::default()), Arc::new(Notify::new()));
        for name in ["a", "b", "gone"] {
            agents.hear(&node(name, 0), &changed);
        }
        let watched = (agents.clone(), changed.clone());
        let there = || BTreeSet::from(["a".to_owned(), "b".to_owned()]);
        let task = tokio::spawn(async move { watched.0.watch(there, &watched.1).await });
        for beat in 1..=4 {
            tokio::time::sleep(Duration::from_secs(14)).await;
            agents.hear(&node("a", beat), &changed);
            assert!(!is_woken(&changed), "a heartbeat says nothing new");
        }
        // "b" was heard when it was first seen, and "gone" has no GpuNode any more.
        changed.notified().await;
        assert_eq!(agents.silent(), BTreeSet::from(["b".to_owned()]));
        assert_eq!(agents.now().as_secs(), 60);
        agents.hear(&node("b", 1), &changed);
        assert!(is_woken(&changed) && agents.silent().is_empty());
        for (second, silent) in [(116, vec!["a"]), (120, vec!["a", "b"])] {
            changed.notified().await;
            let found = agents.silent().into_iter().collect::<Vec<_>>();
            assert_eq!(
                (agents.now().as_secs(), found),
                (second, silent.into_iter().map(Into::into).collect())
            );
        }
        task.abort();
    }
}
