//! Jobs as the scenarios apply them: small scripts, as few words as possible.

use serde_json::{Value, json};

/// Name of the Ray image in the clusters.
pub const IMAGE: &str = "vendue.local/ray:2.60.0";

/// A Job with one file, under construction.
#[derive(Clone, Debug)]
pub struct Job {
    /// Name of the Job and of its ConfigMap.
    pub name: String,
    /// The Job's spec, open to any change.
    pub spec: Value,
    /// The script `main.py`.
    pub script: String,
}

/// A Job of one worker with one GPU that runs `script`.
pub fn job(name: &str, script: &str) -> Job {
    Job {
        name: name.into(),
        script: script.into(),
        spec: json!({
            "maxPrice": "9.00",
            "runDeadlineSeconds": 600,
            "searchSeconds": 120,
            "train": {
                "image": IMAGE,
                "entrypoint": "python main.py",
                "files": { "configMapName": name },
                "volumeMib": 64,
                "workers": { "replicas": 1, "gpus": 1, "cpuMillis": 200, "memoryMib": 1024, "sharedMemoryMib": 128,
                             "diskMib": 64 },
            },
        }),
    }
}

impl Job {
    /// Sets a field by its path, `spec` left out: `job.with("/train/workers/gpus", json!(2))`.
    pub fn with(mut self, path: &str, value: Value) -> Self {
        let (parent, key) = path.rsplit_once('/').expect("a path with a slash");
        let parent = if parent.is_empty() { Some(&mut self.spec) } else { self.spec.pointer_mut(parent) };
        parent.expect("the parent exists")[key] = value;
        self
    }

    /// Leaves a field out.
    pub fn without(mut self, path: &str) -> Self {
        let (parent, key) = path.rsplit_once('/').expect("a path with a slash");
        let parent = if parent.is_empty() { Some(&mut self.spec) } else { self.spec.pointer_mut(parent) };
        parent.and_then(Value::as_object_mut).expect("the parent is an object").remove(key);
        self
    }

    /// The manifest: ConfigMap and Job.
    pub fn manifest(&self) -> String {
        let map = json!({ "apiVersion": "v1", "kind": "ConfigMap", "metadata": { "name": self.name },
                          "data": { "main.py": self.script } });
        let job = json!({ "apiVersion": "vendue.dev/v1alpha1", "kind": "Job", "metadata": { "name": self.name },
                          "spec": self.spec });
        json!({ "apiVersion": "v1", "kind": "List", "items": [map, job] }).to_string()
    }
}
