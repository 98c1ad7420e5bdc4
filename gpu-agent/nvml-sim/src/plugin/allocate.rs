//! What kubelet is told: the list of devices, and what a container needs. Pure.
//!
//! Invariant: a container gets exactly the devices that it was given, and nothing that it may write.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use super::api;
use crate::state::{DeviceHealth, State};
use crate::{source, visible};

/// Where things are on the node, and where they go in a container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout {
    /// The library on the node.
    pub library: PathBuf,
    /// The state file on the node. Its whole folder is mounted: the file is replaced on every change, and a mount
    /// of the file alone would go on showing the old one.
    pub state: PathBuf,
    /// Folder in the container under which `lib/libnvidia-ml.so.1` and `state/` appear.
    pub container_dir: PathBuf,
}

/// Why devices cannot be handed out.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum AllocateError {
    /// No such device.
    #[error("allocate: no device {0:?}")]
    Unknown(String),
    /// The device is there, but broken.
    #[error("allocate: device {0:?} is unhealthy")]
    Unhealthy(String),
}

/// All devices with their health.
#[must_use]
pub fn devices(state: &State) -> api::ListAndWatchResponse {
    let device = |d: &crate::state::Device| api::Device {
        id: d.uuid.clone(),
        health: if d.health == DeviceHealth::Healthy { api::HEALTHY } else { api::UNHEALTHY }.to_owned(),
    };
    api::ListAndWatchResponse { devices: state.devices.iter().map(device).collect() }
}

/// Answers a request for devices.
///
/// # Errors
/// When a device is unknown or unhealthy.
pub fn allocate(
    state: &State,
    layout: &Layout,
    request: &api::AllocateRequest,
) -> Result<api::AllocateResponse, AllocateError> {
    let container_responses = request
        .container_requests
        .iter()
        .map(|container| for_container(state, layout, &container.devices_ids))
        .collect::<Result<_, _>>()?;
    Ok(api::AllocateResponse { container_responses })
}

fn for_container(
    state: &State,
    layout: &Layout,
    ids: &[String],
) -> Result<api::ContainerAllocateResponse, AllocateError> {
    let mut chosen = Vec::with_capacity(ids.len());
    for id in ids {
        let device =
            state.devices.iter().find(|d| d.uuid == *id).ok_or_else(|| AllocateError::Unknown(id.clone()))?;
        if device.health != DeviceHealth::Healthy {
            return Err(AllocateError::Unhealthy(id.clone()));
        }
        chosen.push((device.index, device.uuid.as_str()));
    }
    chosen.sort_unstable();
    let uuids: Vec<&str> = chosen.into_iter().map(|(_, uuid)| uuid).collect();

    let library_dir = layout.container_dir.join("lib");
    let state_dir = layout.container_dir.join("state");
    let file_name = layout.state.file_name().unwrap_or_default();
    let envs = HashMap::from([
        (visible::ENV.to_owned(), uuids.join(",")),
        (source::ENV.to_owned(), text(&state_dir.join(file_name))),
        ("LD_LIBRARY_PATH".to_owned(), text(&library_dir)),
    ]);
    let mounts = vec![
        read_only(&layout.library, &library_dir.join("libnvidia-ml.so.1")),
        read_only(layout.state.parent().unwrap_or(Path::new("/")), &state_dir),
    ];
    Ok(api::ContainerAllocateResponse { envs, mounts })
}

fn read_only(host: &Path, container: &Path) -> api::Mount {
    api::Mount { container_path: text(container), host_path: text(host), read_only: true }
}

fn text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fixture() -> (State, Layout) {
        let layout = Layout {
            library: "/opt/sim/libnvidia-ml.so.1".into(),
            state: "/run/sim/n1/state.json".into(),
            container_dir: "/usr/local/nvidia-sim".into(),
        };
        (State::generate(&[("H100".to_owned(), 3)], "s", 0).expect("state"), layout)
    }

    fn request(ids: &[&str]) -> api::AllocateRequest {
        let devices_ids = ids.iter().map(|id| (*id).to_owned()).collect();
        api::AllocateRequest { container_requests: vec![api::ContainerAllocateRequest { devices_ids }] }
    }

    #[test]
    fn container_gets_library_state_and_only_its_devices() {
        let (state, layout) = fixture();
        let (first, last) = (&state.devices[0].uuid, &state.devices[2].uuid);
        let answer = allocate(&state, &layout, &request(&[last, first])).expect("allocate");
        let expected = api::ContainerAllocateResponse {
            envs: HashMap::from(
                [
                    ("NVIDIA_VISIBLE_DEVICES", format!("{first},{last}")),
                    ("VENDUE_NVML_STATE", "/usr/local/nvidia-sim/state/state.json".to_owned()),
                    ("LD_LIBRARY_PATH", "/usr/local/nvidia-sim/lib".to_owned()),
                ]
                .map(|(k, v)| (k.to_owned(), v)),
            ),
            mounts: vec![
                api::Mount {
                    container_path: "/usr/local/nvidia-sim/lib/libnvidia-ml.so.1".to_owned(),
                    host_path: "/opt/sim/libnvidia-ml.so.1".to_owned(),
                    read_only: true,
                },
                api::Mount {
                    container_path: "/usr/local/nvidia-sim/state".to_owned(),
                    host_path: "/run/sim/n1".to_owned(),
                    read_only: true,
                },
            ],
        };
        assert_eq!(answer, api::AllocateResponse { container_responses: vec![expected] });
    }

    #[test]
    fn unknown_and_broken_devices_are_refused() {
        let (mut state, layout) = fixture();
        let unknown = allocate(&state, &layout, &request(&["GPU-x"]));
        assert_eq!(unknown, Err(AllocateError::Unknown("GPU-x".to_owned())));
        state.devices[1].health = DeviceHealth::Lost;
        let id = state.devices[1].uuid.clone();
        assert_eq!(allocate(&state, &layout, &request(&[&id])), Err(AllocateError::Unhealthy(id.clone())));
        let health: Vec<_> = devices(&state).devices.into_iter().map(|d| d.health).collect();
        assert_eq!(health, ["Healthy", "Unhealthy", "Healthy"]);
    }
}
