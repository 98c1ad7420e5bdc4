//! Which Pod has which device: asked of kubelet, never of the Pods themselves.
//!
//! ```text
//!  kubelet --List (kubelet.rs)--> what containers were given --attribute (attribution.rs)--> device -> holders
//!  ResourceSlices (slices.rs) --> UUIDs of devices that claims name -------^   (watcher.rs asks both)
//!  /proc/PID/cgroup (cgroup.rs) --> Pod of a process that uses a device --group (processes.rs)--> what each Pod uses
//! ```
//!
//! * Inputs: kubelet's PodResources API v1, `resource.k8s.io/v1` slices of this node, cgroup files.
//! * Outputs: [`attribution::Attribution`], [`processes::DeviceUse`].
//! * Invariant: a device whose holder is not certain is nobody's.

pub mod api;
pub mod attribution;
pub mod cgroup;
pub mod gauges;
pub mod kubelet;
pub mod processes;
pub mod slices;
pub mod watch_processes;
pub mod watcher;
