//! What the parts of a workload take beside its workers.
//!
//! Invariant: capacity counting, allocation and the Pods use the same numbers, or a node is promised twice.

/// CPU request of the head Pod, courier included, thousandths of a core.
pub const HEAD_CPU_MILLIS: u64 = RAY_HEAD_CPU_MILLIS + COURIER_CPU_MILLIS;
/// Memory request of the head Pod, courier included, MiB.
pub const HEAD_MEMORY_MIB: u64 = RAY_HEAD_MEMORY_MIB + COURIER_MEMORY_MIB;
/// Ephemeral storage request of the head Pod, courier included, MiB.
pub const HEAD_DISK_MIB: u64 = RAY_HEAD_DISK_MIB + COURIER_DISK_MIB;

/// CPU request of the Ray head: it waits most of the time.
pub const RAY_HEAD_CPU_MILLIS: u64 = 200;
/// Memory request of the Ray head (measured: 0.98 GB with the dashboard).
pub const RAY_HEAD_MEMORY_MIB: u64 = 1024;
/// Memory limit of the Ray head; the entry point's own process runs there too.
pub const RAY_HEAD_MEMORY_LIMIT_MIB: u64 = 4096;
/// Ephemeral storage request of the Ray head: logs.
pub const RAY_HEAD_DISK_MIB: u64 = 256;
/// Ephemeral storage limit of the Ray head; above it kubelet evicts the Pod.
pub const RAY_HEAD_DISK_LIMIT_MIB: u64 = 4096;
/// Shared memory of the Ray head, MiB.
pub const HEAD_SHARED_MEMORY_MIB: u64 = 128;

/// CPU request of the courier.
pub const COURIER_CPU_MILLIS: u64 = 20;
/// Memory request of the courier.
pub const COURIER_MEMORY_MIB: u64 = 32;
/// Memory limit of the courier.
pub const COURIER_MEMORY_LIMIT_MIB: u64 = 128;
/// Ephemeral storage request of the courier.
pub const COURIER_DISK_MIB: u64 = 16;

/// Least object store that Ray starts with, bytes.
pub const MIN_OBJECT_STORE_BYTES: u64 = 78_643_200;
