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

    /// The keys of all views.
    pub fn keys(&self) -> Vec<String> {
        self.views.read().unwrap_or_else(PoisonError::into_inner).keys().cloned().collect()
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

/// As [`feed`], of a kind that a cluster may be without: then there are no objects of it.
pub async fn feed_if_served<K, V>(
    what: &'static str,
    api: Api<K>,
    cache: Arc<Cache<V>>,
    changed: Arc<Notify>,
    view: impl Fn(&K) -> Option<V> + Send + 'static,
) where
    K: Resource + Clone + DeserializeOwned + Debug + Send + 'static,
    V: Clone + PartialEq,
{
    let events = none_if_not_served(watcher(api, watcher::Config::default()).default_backoff());
    consume(what, events, &cache, &changed, view).await;
}

/// A kind that is not there has no objects. The stream below asks for it again and again, with patience.
fn none_if_not_served<K>(
    events: impl Stream<Item = watcher::Result<watcher::Event<K>>>,
) -> impl Stream<Item = watcher::Result<watcher::Event<K>>> {
    events.flat_map(|event| {
        let none = match &event {
            Err(watcher::Error::InitialListFailed(kube::Error::Api(status))) => status.is_not_found(),
            _ => false,
        };
        let empty = [Ok(watcher::Event::Init), Ok(watcher::Event::InitDone)];
        futures::stream::iter(if none { Vec::from(empty) } else { vec![event] })
    })
}

/// Feeds a cache until the events end.
pub async fn consume<K, V>(
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

    #[tokio::test]
    async fn a_kind_that_is_not_served_has_no_objects_and_one_that_is_forbidden_is_not_known() {
        let failed = |code: u16, reason: &str| {
            let status = kube::core::Status { code, reason: reason.to_owned(), ..Default::default() };
            Err(watcher::Error::InitialListFailed(kube::Error::Api(Box::new(status))))
        };
        let view = |_: &ConfigMap| Some(());
        for (code, reason, known) in [(404, "NotFound", true), (403, "Forbidden", false), (500, "", false)] {
            let cache = Cache::default();
            let events = none_if_not_served(futures::stream::iter([failed(code, reason)]));
            consume("t", events, &cache, &Notify::new(), view).await;
            assert_eq!((cache.ready(), cache.all().len()), (known, 0), "{code}");
        }
    }
}
