//! What a model of GPU is. Profiles are data: one JSON file per model under `profiles/`.
//!
//! A state file carries its own copy of each profile that it uses, so a test can bend one (a card that lies about
//! its memory, say) without rebuilding the library.

use serde::{Deserialize, Serialize};

/// The built-in profiles: name, then the file's text. `A100` is short for the 80 GB card.
const BUILT_IN: [(&str, &str); 8] = [
    ("B200", include_str!("../profiles/b200.json")),
    ("H200", include_str!("../profiles/h200.json")),
    ("H100", include_str!("../profiles/h100.json")),
    ("A100", include_str!("../profiles/a100-80gb.json")),
    ("A100-80GB", include_str!("../profiles/a100-80gb.json")),
    ("A100-40GB", include_str!("../profiles/a100-40gb.json")),
    ("L40S", include_str!("../profiles/l40s.json")),
    ("T4", include_str!("../profiles/t4.json")),
];

/// NVIDIA's GPU generations that a profile can name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Architecture {
    /// Turing, for example T4.
    Turing,
    /// Ampere, for example A100.
    Ampere,
    /// Ada Lovelace, for example L40S.
    Ada,
    /// Hopper, for example H100.
    Hopper,
    /// Blackwell, for example B200.
    Blackwell,
}

/// Everything that is the same for each card of one model.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Profile {
    /// Name as the driver gives it, for example `NVIDIA H100 80GB HBM3`.
    pub product_name: String,
    /// GPU generation.
    pub architecture: Architecture,
    /// CUDA compute capability, major and minor.
    pub compute_capability: [i32; 2],
    /// Number of CUDA cores.
    pub cores: u32,
    /// Frame buffer as `nvidia-smi` shows it, in MiB.
    pub memory_mib: u64,
    /// Share of the frame buffer that driver and firmware keep, in MiB.
    pub reserved_memory_mib: u64,
    /// Size of the BAR1 window, in MiB.
    pub bar1_mib: u64,
    /// PCI device and vendor id, for example `0x233010DE`.
    pub pci_device_id: HexId,
    /// PCI subsystem id, for example `0x16C110DE`.
    pub pci_subsystem_id: HexId,
    /// Highest PCIe generation.
    pub pcie_generation: u32,
    /// Highest number of PCIe lanes.
    pub pcie_width: u32,
    /// Memory bus width in bits.
    pub memory_bus_width: u32,
    /// Power drawn with no work, in milliwatts.
    pub idle_power_milliwatts: u32,
    /// Default and highest power limit, in milliwatts.
    pub power_limit_milliwatts: u32,
    /// Lowest power limit that may be set, in milliwatts.
    pub min_power_limit_milliwatts: u32,
    /// Temperature with no work.
    pub idle_temperature_celsius: u32,
    /// Temperature at full load.
    pub max_temperature_celsius: u32,
    /// Temperature at which clocks are cut.
    pub slowdown_temperature_celsius: u32,
    /// Temperature at which the card turns itself off.
    pub shutdown_temperature_celsius: u32,
    /// SM clock with no work, in MHz.
    pub idle_sm_clock_mhz: u32,
    /// SM clock at full load, in MHz.
    pub max_sm_clock_mhz: u32,
    /// Memory clock, in MHz.
    pub memory_clock_mhz: u32,
    /// Video engine clock, in MHz.
    pub video_clock_mhz: u32,
    /// Version of the card's firmware.
    pub vbios_version: String,
    /// Part number of the board.
    pub board_part_number: String,
    /// Number of fans; data-centre cards have none.
    pub fans: u32,
    /// Number of SMs.
    pub multiprocessors: u32,
    /// Highest rate at which memory is read or written, in megabytes per second.
    pub memory_bandwidth_mbps: u64,
    /// Whether damaged rows of memory are replaced; older cards retire pages instead.
    pub row_remapping: bool,
    /// NVLink, on a card that has it.
    pub nvlink: Option<NvLink>,
    /// Where the figures are from.
    pub sources: Vec<String>,
    /// GPU instance profiles; a card without any cannot be split.
    pub mig: Vec<MigProfile>,
}

/// NVLink of a card.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct NvLink {
    /// Number of links.
    pub links: u32,
    /// Version in NVML's numbering: 4 is NVLink 3.0, 6 is 4.0, 7 is 5.0.
    pub version: u32,
    /// Speed of one link in one direction, in megabytes per second.
    pub mbps: u32,
}

/// One way to cut a GPU instance out of a card.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct MigProfile {
    /// Name, for example `1g.10gb`.
    pub name: String,
    /// Number of the `NVML_GPU_INSTANCE_PROFILE_*` constant.
    pub gpu_instance_profile: u32,
    /// Id that `nvidia-smi mig -lgip` prints.
    pub profile_id: u32,
    /// Compute slices.
    pub slices: u32,
    /// How many fit on an empty card.
    pub max_instances: u32,
    /// Memory, in MiB.
    pub memory_mib: u64,
    /// Number of SMs.
    pub multiprocessors: u32,
    /// Copy engines.
    pub copy_engines: u32,
    /// Video decoders.
    pub decoders: u32,
    /// JPEG engines.
    pub jpeg_engines: u32,
    /// Optical-flow engines.
    pub ofa_engines: u32,
    /// Memory slices at which an instance may begin.
    pub placement_starts: Vec<u32>,
    /// Memory slices that an instance takes, of eight.
    pub placement_size: u32,
}

impl Profile {
    /// Whether the card can be split into MIG instances.
    #[must_use]
    pub fn mig_capable(&self) -> bool {
        !self.mig.is_empty()
    }

    /// The GPU instance profile of that name.
    #[must_use]
    pub fn mig_profile(&self, name: &str) -> Option<&MigProfile> {
        self.mig.iter().find(|p| p.name == name)
    }

    /// Names of the GPU instance profiles, for error messages.
    #[must_use]
    pub fn mig_profile_names(&self) -> String {
        if self.mig.is_empty() {
            return "none, the card has no MIG".to_owned();
        }
        self.mig.iter().map(|p| p.name.as_str()).collect::<Vec<_>>().join(", ")
    }
}

/// A 32-bit number written in a JSON file as hexadecimal text, as PCI ids are in every other tool.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct HexId(pub u32);

impl TryFrom<String> for HexId {
    type Error = String;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        let digits = text.strip_prefix("0x").unwrap_or(&text);
        u32::from_str_radix(digits, 16)
            .map(Self)
            .map_err(|e| format!("{text:?} is not a 32-bit hex number: {e}"))
    }
}

impl From<HexId> for String {
    fn from(id: HexId) -> Self {
        format!("0x{:08X}", id.0)
    }
}

/// Why a profile could not be had.
#[derive(Debug, thiserror::Error)]
pub enum ProfileError {
    /// No built-in profile has this name.
    #[error("unknown profile {name:?}; known: {}", names().join(", "))]
    Unknown {
        /// The name asked for.
        name: String,
    },
    /// A built-in file does not parse; a test makes sure that this cannot ship.
    #[error("profile {name:?} is broken: {source}")]
    Broken {
        /// The profile's name.
        name: String,
        /// What the parser says.
        source: serde_json::Error,
    },
}

/// Names of the built-in profiles.
#[must_use]
pub fn names() -> Vec<&'static str> {
    BUILT_IN.iter().map(|(name, _)| *name).collect()
}

/// The built-in profile of that name, in any case.
///
/// # Errors
/// When no profile has the name.
pub fn built_in(name: &str) -> Result<(String, Profile), ProfileError> {
    let (known, text) = BUILT_IN
        .iter()
        .find(|(known, _)| known.eq_ignore_ascii_case(name))
        .ok_or_else(|| ProfileError::Unknown { name: name.to_owned() })?;
    let profile = serde_json::from_str(text)
        .map_err(|source| ProfileError::Broken { name: (*known).to_owned(), source })?;
    Ok(((*known).to_owned(), profile))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_built_in_profile_parses_and_is_plausible() {
        for name in names() {
            let (known, p) = built_in(&name.to_lowercase()).expect("built-in profile");
            assert_eq!(known, name);
            assert!(p.product_name.starts_with("NVIDIA ") || name == "T4", "{name}");
            assert!(!p.sources.is_empty(), "{name}: figures need a source");
            for m in &p.mig {
                assert!(m.multiprocessors <= p.multiprocessors && m.memory_mib <= p.memory_mib, "{}", m.name);
                let last = m.placement_starts.iter().max().expect("a place");
                assert!(last + m.placement_size <= 8, "{name} {}: eight memory slices", m.name);
            }
            assert!(p.reserved_memory_mib < p.memory_mib / 10, "{name}");
            assert!(p.idle_power_milliwatts < p.min_power_limit_milliwatts, "{name}");
            assert!(p.min_power_limit_milliwatts < p.power_limit_milliwatts, "{name}");
            assert!(p.max_temperature_celsius < p.slowdown_temperature_celsius, "{name}");
            assert_eq!(p.pci_device_id.0 & 0xFFFF, 0x10DE, "{name}: vendor is NVIDIA");
        }
    }

    #[test]
    fn memory_sizes_are_those_nvidia_smi_shows() {
        let sizes: Vec<u64> =
            names().into_iter().map(|n| built_in(n).expect("profile").1.memory_mib).collect();
        assert_eq!(sizes, [183_359, 143_771, 81_559, 81_920, 81_920, 40_960, 46_068, 15_360]);
    }

    #[test]
    fn unknown_profile_names_the_known_ones() {
        let text = built_in("H900").expect_err("no such card").to_string();
        assert_eq!(
            text,
            r#"unknown profile "H900"; known: B200, H200, H100, A100, A100-80GB, A100-40GB, L40S, T4"#
        );
    }
}
