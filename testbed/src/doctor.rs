//! Tells what this machine lacks to run the test bed, each with the command that fixes it.
//!
//! [`examine`] looks at the machine, [`judge`] is the pure part. Ports are not looked at: each cluster listens in a network
//! namespace of its own, so that nobody on the machine can have taken one; what others can take is an address range.

use std::net::Ipv4Addr;
use std::path::Path;

use serde::Serialize;

use crate::files;
use crate::paths::Paths;
use crate::tools::which;

const GIB: u64 = 1 << 30;
/// Memory that five clusters and the demo's training take.
const MEMORY: u64 = 6 * GIB;
/// Disk that a warm start takes; the first set-up takes more.
const DISK: u64 = 3 * GIB;
/// Disk for the first set-up: compilers' caches, tools and images.
const DISK_COLD: u64 = 20 * GIB;

/// Programs from packages: program, package, whether the test bed can do without.
const PROGRAMS: [(&str, &str); 9] = [
    ("runc", "runc"),
    ("nft", "nftables"),
    ("conntrack", "conntrack"),
    ("debootstrap", "debootstrap"),
    ("buildah", "buildah"),
    ("ip", "iproute2"),
    ("nsenter", "util-linux"),
    ("strip", "binutils"),
    ("python3", "python3"),
];

/// One thing that is missing or odd.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// What is wrong.
    pub problem: String,
    /// The command, or the step, that fixes it.
    pub fix: String,
    /// Whether nothing works without it.
    pub blocks: bool,
    /// The package that brings it, if one does.
    pub package: Option<String>,
}

/// What was seen of the machine.
#[derive(Clone, Debug, Default)]
pub struct Machine {
    /// Running as root.
    pub root: bool,
    /// Programs not found on the search path.
    pub missing_programs: Vec<&'static str>,
    /// Version of Go, as `(major, minor)`.
    pub go: Option<(u32, u32)>,
    /// Version of Python, as `(major, minor)`.
    pub python: Option<(u32, u32)>,
    /// Kernel features not found.
    pub missing_kernel: Vec<&'static str>,
    /// Whether any control group hierarchy is mounted, and whether it is the unified one.
    pub cgroups: Option<bool>,
    /// Available memory in bytes.
    pub memory: u64,
    /// Free disk in bytes where the cache is.
    pub disk: u64,
    /// Whether the tools are built already.
    pub warm: bool,
    /// Links of others whose routes lie in the test bed's address ranges, with the range.
    pub taken_ranges: Vec<(String, Ipv4Addr)>,
    /// Markets that a killed run left.
    pub leftovers: Vec<String>,
    /// Why the distribution does not do, if it does not.
    pub distribution: Option<String>,
}

/// Looks at this machine.
pub fn examine(paths: &Paths) -> Vec<Finding> {
    judge(&look(paths))
}

fn look(paths: &Paths) -> Machine {
    Machine {
        root: nix::unistd::geteuid().is_root(),
        missing_programs: PROGRAMS.iter().map(|(p, _)| *p).filter(|p| which(p).is_none()).collect(),
        go: version_of("go", "version"),
        python: version_of("python3", "--version"),
        missing_kernel: missing_kernel(),
        cgroups: cgroups(),
        memory: available_memory(),
        disk: free_disk(paths.cache()),
        warm: crate::tools::find(paths).is_ok(),
        taken_ranges: taken_ranges(&std::fs::read_to_string("/proc/net/route").unwrap_or_default()),
        leftovers: leftovers(paths),
        distribution: crate::base::Distribution::of_host().err().map(|e| e.to_string()),
    }
}

/// Turns what was seen into findings.
pub fn judge(machine: &Machine) -> Vec<Finding> {
    let mut found = Vec::new();
    let mut add = |problem: String, fix: &str, blocks: bool| {
        found.push(Finding { problem, fix: fix.into(), blocks, package: None });
    };
    if !machine.root {
        add("not running as root".into(), "run the same command with sudo -E", true);
    }
    if let Some(text) = &machine.distribution {
        add(text.clone(), "use a Debian or Ubuntu machine, or --kubeconfig with clusters you have", true);
    }
    match machine.go {
        None => {
            add("Go is not installed".into(), "install Go 1.26 or newer and put it on PATH", !machine.warm)
        }
        Some(v) if v < (1, 26) => {
            add(format!("Go {}.{} is too old", v.0, v.1), "install Go 1.26 or newer", !machine.warm)
        }
        Some(_) => {}
    }
    if machine.python.is_some_and(|v| v < (3, 11)) {
        add("Python is older than 3.11".into(), "install Python 3.11 or newer", !machine.warm);
    }
    for feature in &machine.missing_kernel {
        add(
            format!("the kernel lacks {feature}"),
            &format!("modprobe {feature}, or use another kernel"),
            true,
        );
    }
    match machine.cgroups {
        None => add("no control groups are mounted".into(), "mount -t cgroup2 none /sys/fs/cgroup", true),
        Some(true) => {
            add("only control groups v2: not tried yet".into(), "nothing to do; tell us how it went", false)
        }
        Some(false) => {}
    }
    if machine.memory < MEMORY {
        add(
            format!("only {} MiB of memory available", machine.memory >> 20),
            "free memory: five clusters with a training job need 6 GiB",
            true,
        );
    }
    let disk = if machine.warm { DISK } else { DISK_COLD };
    if machine.disk < disk {
        let problem = format!(
            "only {} MiB of disk free in the cache's file system, {} needed",
            machine.disk >> 20,
            disk >> 20
        );
        add(problem, "free disk, or set VENDUE_CACHE to a folder with more", true);
    }
    for (link, range) in &machine.taken_ranges {
        let problem = format!("the route to {range} over {link} lies in an address range of the test bed");
        add(problem, &format!("ip route delete {range}, or take {link} down"), true);
    }
    for name in &machine.leftovers {
        add(format!("a killed run left market {name}"), "testbed clean (its next start does it too)", false);
    }
    found.extend(machine.missing_programs.iter().map(|program| missing_program(program)));
    found
}

fn missing_program(program: &str) -> Finding {
    let package = PROGRAMS.iter().find(|(p, _)| *p == program).map_or(program, |(_, package)| *package);
    Finding {
        problem: format!("program {program} is missing"),
        fix: format!("apt-get install --yes --no-install-recommends {package} (testbed setup does it)"),
        blocks: true,
        package: Some(package.into()),
    }
}

/// Findings as text, one per line with its fix.
pub fn report(findings: &[Finding]) -> String {
    let line =
        |f: &Finding| format!("  {} {}\n      fix: {}\n", if f.blocks { "✗" } else { "!" }, f.problem, f.fix);
    findings.iter().map(line).collect()
}

fn version_of(program: &str, arg: &str) -> Option<(u32, u32)> {
    let output = std::process::Command::new(which(program)?).arg(arg).output().ok()?;
    parse_version(&String::from_utf8_lossy(&output.stdout))
}

/// First `N.M` in a text such as `go version go1.26.8 linux/amd64`.
fn parse_version(text: &str) -> Option<(u32, u32)> {
    text.split_whitespace().find_map(|word| {
        let mut parts = word.trim_start_matches(|c: char| !c.is_ascii_digit()).split('.');
        Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
    })
}

fn missing_kernel() -> Vec<&'static str> {
    let filesystems = std::fs::read_to_string("/proc/filesystems").unwrap_or_default();
    let mut missing = Vec::new();
    if !filesystems.contains("overlay") && !module_exists("overlay") {
        missing.push("overlay");
    }
    for (feature, probe) in
        [("nf_tables", "/proc/net/netfilter"), ("bridge", "/sys/module/bridge"), ("veth", "/sys/module/veth")]
    {
        if !Path::new(probe).exists()
            && !Path::new("/sys/module").join(feature).exists()
            && !module_exists(feature)
        {
            missing.push(feature);
        }
    }
    missing
}

/// Whether the module is built in or can be loaded.
fn module_exists(name: &str) -> bool {
    let Ok(release) = std::fs::read_to_string("/proc/sys/kernel/osrelease") else { return false };
    let folder = Path::new("/lib/modules").join(release.trim());
    // A kernel without a module tree has everything built in, as far as anybody can tell.
    !folder.exists()
        || ["modules.dep", "modules.builtin"].iter().any(|list| {
            std::fs::read_to_string(folder.join(list)).unwrap_or_default().contains(&format!("/{name}.ko"))
        })
}

/// Routes of the kernel's table that lie in a range of the test bed but are not its own.
fn taken_ranges(table: &str) -> Vec<(String, Ipv4Addr)> {
    let mut taken = Vec::new();
    for line in table.lines().skip(1) {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let (Some(link), Some(destination)) = (fields.first(), fields.get(1)) else { continue };
        let Ok(raw) = u32::from_str_radix(destination, 16) else { continue };
        // The kernel prints the address as it lies in memory.
        let address = Ipv4Addr::from(raw.to_le_bytes());
        let [first, second, ..] = address.octets();
        if first == 10 && crate::spec::is_ours(second) && !link.starts_with("vdm") {
            taken.push(((*link).to_string(), address));
        }
    }
    taken
}

/// Markets with a state file but nobody who stands for them.
fn leftovers(paths: &Paths) -> Vec<String> {
    let folders =
        std::fs::read_dir(paths.runs()).into_iter().flatten().flatten().filter(|e| e.path().is_dir());
    folders
        .filter(|e| !crate::state::MarketState::load(&e.path()).ok().flatten().is_some_and(|s| s.is_live()))
        .map(|e| e.file_name().to_string_lossy().into_owned())
        .collect()
}

fn cgroups() -> Option<bool> {
    let mounts = std::fs::read_to_string("/proc/self/mounts").ok()?;
    let kind = |kind: &str| mounts.lines().any(|l| l.split_whitespace().nth(2) == Some(kind));
    match (kind("cgroup"), kind("cgroup2")) {
        (true, _) => Some(false),
        (false, true) => Some(true),
        (false, false) => None,
    }
}

fn available_memory() -> u64 {
    let text = files::read("/proc/meminfo").unwrap_or_default();
    let line = text.lines().find_map(|l| l.strip_prefix("MemAvailable:"));
    line.and_then(|l| l.split_whitespace().next()?.parse::<u64>().ok()).unwrap_or(0) * 1024
}

fn free_disk(path: &Path) -> u64 {
    let existing = path.ancestors().find(|p| p.exists()).unwrap_or(Path::new("/"));
    nix::sys::statvfs::statvfs(existing).map_or(0, |s| s.blocks_available() * s.fragment_size())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn good() -> Machine {
        Machine {
            root: true,
            go: Some((1, 26)),
            python: Some((3, 11)),
            cgroups: Some(false),
            memory: 20 * GIB,
            disk: 50 * GIB,
            distribution: None,
            ..Machine::default()
        }
    }

    #[test]
    fn a_good_machine_has_no_findings() {
        assert_eq!(judge(&good()), []);
    }

    #[test]
    fn each_lack_is_named_with_its_fix() {
        let vpn = ("tun0".to_string(), Ipv4Addr::new(10, 77, 0, 0));
        let cases: [(Machine, &str, &str); 8] = [
            (Machine { taken_ranges: vec![vpn], ..good() }, "10.77.0.0 over tun0", "ip route delete"),
            (Machine { leftovers: vec!["demo".into()], ..good() }, "demo", "testbed clean"),
            (Machine { root: false, ..good() }, "root", "sudo"),
            (Machine { go: Some((1, 22)), ..good() }, "1.22", "1.26"),
            (Machine { missing_programs: vec!["nft"], ..good() }, "nft", "nftables"),
            (Machine { missing_kernel: vec!["veth"], ..good() }, "veth", "modprobe"),
            (Machine { memory: GIB, ..good() }, "1024 MiB of memory", "free memory"),
            (Machine { disk: GIB, ..good() }, "disk", "VENDUE_CACHE"),
        ];
        for (machine, problem, fix) in cases {
            let found = judge(&machine);
            assert_eq!(found.len(), 1, "{problem}");
            assert!(found[0].problem.contains(problem) && found[0].fix.contains(fix), "{found:?}");
        }
    }

    #[test]
    fn a_warm_cache_needs_neither_go_nor_much_disk() {
        let machine = Machine { warm: true, go: None, disk: 5 * GIB, ..good() };
        assert!(judge(&machine).iter().all(|f| !f.blocks));
    }

    #[test]
    fn only_routes_of_others_take_a_range() {
        let table =
            "Iface\tDestination\tGateway\neth0\t00000000\t0\ntun0\t00004D0A\t0\nvdm0-1\t0001570A\t0\n";
        assert_eq!(taken_ranges(table), [("tun0".to_string(), Ipv4Addr::new(10, 77, 0, 0))]);
    }

    #[test]
    fn versions_are_found_in_text() {
        assert_eq!(parse_version("go version go1.26.8 linux/amd64"), Some((1, 26)));
        assert_eq!(parse_version("Python 3.11.7"), Some((3, 11)));
        assert_eq!(parse_version("none"), None);
    }
}
