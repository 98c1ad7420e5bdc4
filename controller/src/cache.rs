//! Small views of many objects, kept up to date by a watch.
//!
//! Inputs: a watch. Outputs: a map of views, and a wake-up for whoever waits for changes.
//! Invariants: only views stay in memory, never whole objects; a cache that has not seen a complete list says so.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use futures::{Stream, StreamExt};
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Resource, ResourceExt};
use serde::de::DeserializeOwned;
use tokio::sync::Notify;

/// Views by `namespace/name`.
#[derive(Debug)]
pub struct Cache<V> {
    views: RwLock<BTreeMap<String, V>>,
    ready: AtomicBool,
}

impl<V> Default for Cache<V> {
    fn default() -> Self {
        Self { views: RwLock::default(), ready: AtomicBool::new(false) }
    }
}

impl<V: Clone + PartialEq> Cache<V> {
    /// Whether a complete list was seen.
    pub fn ready(&self) -> bool {
        self.ready.load(Ordering::Acquire)
    }

    /// All views, by `namespace/name`.
    pub fn all(&self) -> BTreeMap<String, V> {
        self.views.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// One view.
    pub fn get(&self, namespace: &str, name: &str) -> Option<V> {
        let key = format!("{namespace}/{name}");
        self.views.read().unwrap_or_else(PoisonError::into_inner).get(&key).cloned()
    }

    /// A view that is so.
    pub fn find(&self, is: impl Fn(&V) -> bool) -> Option<V> {
        let views = self.views.read().unwrap_or_else(PoisonError::into_inner);
        views.values().find(|view| is(view)).cloned()
    }

    /// Puts one view in, or takes it out; says whether that changed anything.
    fn put(&self, key: String, view: Option<V>) -> bool {
        let mut views = self.views.write().unwrap_or_else(PoisonError::into_inner);
        match view {
            Some(view) if views.get(&key) == Some(&view) => false,
            Some(view) => {
                views.insert(key, view);
                true
            }
            None => views.remove(&key).is_some(),
        }
    }

    /// Puts a complete list in.
    fn replace(&self, list: BTreeMap<String, V>) -> bool {
        let mut views = self.views.write().unwrap_or_else(PoisonError::into_inner);
        let first = !self.ready.swap(true, Ordering::AcqRel);
        let changed = first || *views != list;
        *views = list;
        changed
    }

    /// A complete cache of these views.
    #[cfg(test)]
    pub fn filled(list: impl IntoIterator<Item = (String, V)>) -> Self {
        let cache = Self::default();
        cache.replace(list.into_iter().collect());
        cache
    }
}

fn key<K: Resource>(object: &K) -> String {
    format!("{}/{}", object.namespace().unwrap_or_default(), object.name_any())
}

/// Feeds a cache from a watch, for ever. `view` gives `None` for objects that do not matter.
pub async fn feed<K, V>(
    what: &'static str,
    api: Api<K>,
    cache: Arc<Cache<V>>,
    changed: Arc<Notify>,
    view: impl Fn(&K) -> Option<V> + Send + 'static,
) where
    K: Resource + Clone + DeserializeOwned + Debug + Send + 'static,
    V: Clone + PartialEq,
{
    let events = watcher(api, watcher::Config::default()).default_backoff();
    consume(what, events, &cache, &changed, view).await;
}

async fn consume<K, V>(
    what: &'static str,
    events: impl Stream<Item = watcher::Result<watcher::Event<K>>>,
    cache: &Cache<V>,
    changed: &Notify,
    view: impl Fn(&K) -> Option<V>,
) where
    K: Resource,
    V: Clone + PartialEq,
{
    let mut events = std::pin::pin!(events);
    let mut list = BTreeMap::new();
    while let Some(event) = events.next().await {
        let wake = match event {
            Ok(watcher::Event::Init) => {
                list.clear();
                false
            }
            Ok(watcher::Event::InitApply(object)) => {
                list.extend(view(&object).map(|v| (key(&object), v)));
                false
            }
            Ok(watcher::Event::InitDone) => cache.replace(std::mem::take(&mut list)),
            Ok(watcher::Event::Apply(object)) => cache.put(key(&object), view(&object)),
            Ok(watcher::Event::Delete(object)) => cache.put(key(&object), None),
            Err(error) => {
                tracing::warn!(what, %error, "watch failed; trying again");
                false
            }
        };
        if wake {
            changed.notify_one();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::api::core::v1::ConfigMap;
    use kube::runtime::watcher::Event;

    fn object(name: &str, value: &str) -> ConfigMap {
        let mut map =
            ConfigMap { data: Some([("v".to_owned(), value.to_owned())].into()), ..Default::default() };
        map.metadata.name = Some(name.to_owned());
        map.metadata.namespace = Some("ns".to_owned());
        map
    }

    #[tokio::test]
    async fn follows_lists_and_changes() {
        let cache = Cache::default();
        let view = |m: &ConfigMap| m.data.as_ref()?.get("v").filter(|v| *v != "skip").cloned();
        let feed = |events: Vec<Event<ConfigMap>>| futures::stream::iter(events.into_iter().map(Ok));
        let notify = Notify::new();
        consume("t", feed(vec![Event::Init, Event::InitApply(object("a", "1"))]), &cache, &notify, view)
            .await;
        assert!(!cache.ready());
        let events = vec![
            Event::Init,
            Event::InitApply(object("a", "1")),
            Event::InitApply(object("b", "skip")),
            Event::InitDone,
            Event::Apply(object("c", "3")),
            Event::Apply(object("a", "skip")),
        ];
        consume("t", feed(events), &cache, &notify, view).await;
        assert!(cache.ready());
        assert_eq!(cache.all(), BTreeMap::from([("ns/c".to_owned(), "3".to_owned())]));
        consume("t", feed(vec![Event::Init, Event::InitDone]), &cache, &notify, view).await;
        assert!(cache.all().is_empty());
    }
}
