//! An API server for one agent: one Node, one GpuNode, and when each was written.
//!
//! Invariant: it answers what a real one answers to the calls that the agent makes; any other call is `404`; one
//! that fell silent answers nothing.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::{Method, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

use super::{NAME, NodeError, io};

/// What the server has.
struct Objects {
    node: Value,
    gpu_node: Option<Value>,
    writes: u64,
    written: Instant,
}

struct Shared {
    objects: Mutex<Objects>,
    changed: Condvar,
    silent: AtomicBool,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Objects> {
        self.objects.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The server.
pub struct ApiServer {
    shared: Arc<Shared>,
    address: SocketAddr,
    task: JoinHandle<()>,
}

impl Drop for ApiServer {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl ApiServer {
    /// A server with the Node and nothing else.
    ///
    /// # Errors
    /// When there is no port.
    pub async fn start() -> Result<Self, NodeError> {
        let node = json!({
            "apiVersion": "v1", "kind": "Node",
            "metadata": { "name": NAME, "uid": "u-1", "resourceVersion": "1" }, "spec": {},
        });
        let objects = Objects { node, gpu_node: None, writes: 0, written: Instant::now() };
        let shared = Arc::new(Shared {
            objects: Mutex::new(objects),
            changed: Condvar::new(),
            silent: AtomicBool::new(false),
        });
        let listener = TcpListener::bind("127.0.0.1:0").await.map_err(io("listen for the agent"))?;
        let address = listener.local_addr().map_err(io("listen for the agent"))?;
        let router = Router::new().fallback(answer).with_state(Arc::clone(&shared));
        // Ends with the handle; an error would show as an agent that cannot write.
        let task = tokio::spawn(async move { drop(axum::serve(listener, router).await) });
        Ok(Self { shared, address, task })
    }

    /// How a client finds it.
    #[must_use]
    pub fn kubeconfig(&self) -> String {
        let server = self.address;
        format!(
            "apiVersion: v1\nkind: Config\ncurrent-context: c\n\
             clusters: [{{name: c, cluster: {{server: 'http://{server}'}}}}]\n\
             contexts: [{{name: c, context: {{cluster: c, user: u}}}}]\nusers: [{{name: u, user: {{}}}}]\n"
        )
    }

    /// Waits until the GpuNode's status is as wanted, and gives it with the time of that write.
    #[must_use]
    pub fn wait(&self, limit: Duration, wanted: impl Fn(&Value) -> bool) -> Option<(Value, Instant)> {
        let deadline = Instant::now() + limit;
        let mut objects = self.shared.lock();
        loop {
            let status = objects.gpu_node.as_ref().map(|node| &node["status"]);
            if let Some(status) = status.filter(|status| wanted(status)) {
                return Some((status.clone(), objects.written));
            }
            let left = deadline.checked_duration_since(Instant::now())?;
            objects =
                self.shared.changed.wait_timeout(objects, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// The Node as it is now.
    #[must_use]
    pub fn node(&self) -> Value {
        self.shared.lock().node.clone()
    }

    /// From now on requests are taken and never answered.
    pub fn fall_silent(&self) {
        self.shared.silent.store(true, Ordering::Relaxed);
    }

    /// Writes of the GpuNode so far.
    #[must_use]
    pub fn writes(&self) -> u64 {
        self.shared.lock().writes
    }
}

/// RFC 7386, as far as the agent's patches go: objects are merged, all else is replaced.
fn merge(into: &mut Value, patch: &Value) {
    match (into, patch) {
        (Value::Object(into), Value::Object(patch)) => {
            for (name, value) in patch {
                merge(into.entry(name.clone()).or_insert(Value::Null), value);
            }
        }
        (into, patch) => *into = patch.clone(),
    }
}

async fn answer(State(shared): State<Arc<Shared>>, method: Method, uri: Uri, body: Bytes) -> Response {
    if shared.silent.load(Ordering::Relaxed) {
        std::future::pending::<()>().await;
    }
    let body: Value = serde_json::from_slice(&body).unwrap_or_default();
    let (code, object) = call(&shared, &method, uri.path(), uri.query().unwrap_or_default(), &body);
    (code, [(header::CONTENT_TYPE, "application/json")], object.to_string()).into_response()
}

fn call(shared: &Shared, method: &Method, path: &str, query: &str, body: &Value) -> (StatusCode, Value) {
    let mut objects = shared.lock();
    let gpu_node = format!("/apis/vendue.dev/v1alpha1/gpunodes/{NAME}");
    let applies = query.contains("force=true");
    let answer = if path == format!("/api/v1/nodes/{NAME}") {
        if *method == Method::PATCH {
            merge(&mut objects.node, body);
        }
        Some(objects.node.clone())
    } else if path == gpu_node && *method == Method::PATCH {
        let mut object = body.clone();
        object["metadata"]["generation"] = json!(1);
        let status = objects.gpu_node.as_mut().map(|old| old["status"].take());
        object["status"] = status.unwrap_or_default();
        Some(objects.gpu_node.insert(object).clone())
    } else if path == format!("{gpu_node}/status") && *method == Method::PATCH {
        objects.gpu_node.as_mut().map(|object| {
            if applies {
                object["status"] = body["status"].clone();
            } else {
                merge(object, body);
            }
            object.clone()
        })
    } else {
        None
    };
    if answer.is_some() && path.starts_with(&gpu_node) {
        objects.writes += 1;
        objects.written = Instant::now();
    }
    drop(objects);
    shared.changed.notify_all();
    answer.map_or_else(
        || {
            let text = format!("{method} {path}");
            let status = json!({
                "kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": "NotFound",
                "code": 404, "message": text,
            });
            (StatusCode::NOT_FOUND, status)
        },
        |object| (StatusCode::OK, object),
    )
}
