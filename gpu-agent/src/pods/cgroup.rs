//! From a process to its Pod: the names of its cgroups hold the Pod's UID.
//!
//! Input: `/proc/PID/cgroup`. Output: the Pod's UID. Both cgroup versions and both drivers of kubelet are known:
//! `.../kubepods-burstable-pod<uid with _>.slice/...` (systemd) and `.../kubepods/burstable/pod<uid>/...` (cgroupfs).
//! Static Pods have the hash of their manifest for a UID.

use std::path::{Path, PathBuf};

/// Why the Pod of a process is not known.
#[derive(Debug, thiserror::Error)]
pub enum CgroupError {
    /// The file cannot be read: as a rule the process ended.
    #[error("read {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: std::io::Error,
    },
}

/// The UID of the Pod that a process belongs to; `None` for one of the node itself.
///
/// # Errors
/// When the process is gone or hidden.
pub fn pod_of(proc: &Path, pid: u32) -> Result<Option<String>, CgroupError> {
    let path = proc.join(pid.to_string()).join("cgroup");
    match std::fs::read_to_string(&path) {
        Ok(text) => Ok(pod_uid(&text)),
        Err(source) => Err(CgroupError::Read { path, source }),
    }
}

/// The UID in the text of a process's cgroup file: lines of `ID:CONTROLLERS:PATH`.
#[must_use]
pub fn pod_uid(text: &str) -> Option<String> {
    text.lines().filter_map(|line| line.splitn(3, ':').nth(2)).find_map(uid_in_path)
}

/// From a cgroup namespace of its own, as a container has it, the agent sees the way from itself: `/../../pod<uid>/...`.
fn uid_in_path(path: &str) -> Option<String> {
    let is_kubelets = path.contains("kubepods") || path.starts_with("/../");
    path.split('/').filter(|_| is_kubelets).find_map(|part| {
        // Systemd's units name the way to them, with `-` in between: `kubelet-kubepods-burstable-pod<uid>.slice`.
        let unit = part.strip_suffix(".slice").and_then(|way| way.rsplit('-').next());
        let uid = unit.unwrap_or(part).strip_prefix("pod")?.replace('_', "-");
        is_uid(&uid).then_some(uid)
    })
}

/// A UUID, or the 32 digits of a static Pod's hash.
fn is_uid(text: &str) -> bool {
    let digits = text.bytes().filter(|b| *b != b'-');
    let is_hex = digits.clone().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
    is_hex && digits.count() == 32 && matches!(text.len(), 32 | 36)
}

#[cfg(test)]
mod tests {
    use super::*;

    const UID: &str = "0a1b2c3d-0011-4455-8899-aabbccddeeff";

    #[test]
    fn both_drivers_and_both_versions() {
        let escaped = UID.replace('-', "_");
        for path in [
            format!(
                "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{escaped}.slice/cri-containerd-12.scope"
            ),
            format!("/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod{escaped}.slice/x"),
            format!("/kubepods.slice/kubepods-pod{escaped}.slice/crio-12.scope"),
            format!("/kubepods/burstable/pod{UID}/12"),
            format!("/kubepods/pod{UID}/12"),
            // Kubelet in a container, as in kind.
            format!("/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-pod{escaped}.slice/x"),
            format!("/docker/34/kubelet/kubepods/besteffort/pod{UID}/12"),
            // Seen from another container.
            format!("/../../kubepods-besteffort-pod{escaped}.slice/cri-containerd-12.scope"),
            format!("/../../../burstable/pod{UID}/12"),
        ] {
            assert_eq!(pod_uid(&format!("0::{path}\n")).as_deref(), Some(UID), "{path}");
            let v1 = format!("12:pids:/user.slice\n3:cpu,cpuacct:{path}\n1:name=systemd:/init.scope\n");
            assert_eq!(pod_uid(&v1).as_deref(), Some(UID), "{path}");
        }
        let hash = "0123456789abcdef0123456789abcdef";
        assert_eq!(pod_uid(&format!("0::/kubepods/burstable/pod{hash}/1")).as_deref(), Some(hash));
    }

    #[test]
    fn other_processes_have_no_pod() {
        for text in [
            "",
            "0::/system.slice/containerd.service\n",
            "0::/kubepods.slice/kubepods-burstable.slice/x\n",
            "0::/kubepods/burstable/podnot-a-uid/1\n",
            "0::/user/pod0a1b2c3d-0011-4455-8899-aabbccddeeff/x\n",
            "no colons",
            // This process, and another container of the same Pod, seen from a container.
            "0::/",
            "0::/../cri-containerd-12.scope",
        ] {
            assert_eq!(pod_uid(text), None, "{text:?}");
        }
    }

    #[test]
    fn a_process_that_is_gone_is_an_error_that_names_the_file() {
        let proc = tempfile::tempdir().expect("dir");
        std::fs::create_dir(proc.path().join("7")).expect("dir");
        std::fs::write(proc.path().join("7/cgroup"), format!("0::/kubepods/pod{UID}/1")).expect("file");
        assert_eq!(pod_of(proc.path(), 7).expect("pod").as_deref(), Some(UID));
        let error = pod_of(proc.path(), 8).expect_err("gone").to_string();
        assert!(error.contains("8/cgroup"), "{error}");
    }
}
