//! Image stores: images are imported once into a template, and each cluster gets a clone of it.
//!
//! A clone copies the two databases, hard-links the blobs and points to the template's unpacked layers by
//! symbolic links: containers only ever read those, and writes go to layers of the clone's own. That takes
//! milliseconds where an import takes many seconds, and clusters share the page cache of the layers.
//! Invariant: a template is never changed after it has its final name.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use tokio::process::{Child, ChildStdin, Command};

use crate::command::{command, run, run_logged};
use crate::config::{Programs, containerd_at};
use crate::error::{Error, IoContext, Result};
use crate::files;
use crate::images::Image;
use crate::paths::Paths;
use crate::process::{self, ProcessId};
use crate::progress::Progress;
use crate::wait::{self, Poll};

const LIMIT: Duration = Duration::from_secs(600);
const STOPPED: Duration = Duration::from_secs(10);
const BLOBS: &str = "io.containerd.content.v1.content/blobs/sha256";
const SNAPSHOTTER: &str = "io.containerd.snapshotter.v1.overlayfs";
const METADATA: &str = "io.containerd.metadata.v1.bolt";
/// Templates kept, beside those in use.
const KEEP: usize = 8;

/// Makes or finds the template with these images. Images are imported in order, and the template of all but
/// the last is made on the way, so put the one that changes most last.
pub async fn template(
    paths: &Paths,
    bin: &Programs,
    images: &[Image],
    progress: &Progress,
) -> Result<PathBuf> {
    let mut parent: Option<PathBuf> = None;
    let mut key = bin.containerd.display().to_string();
    for image in images {
        key = files::key([
            ("parent", key.as_bytes()),
            ("image", image.key.as_bytes()),
            ("name", image.name.as_bytes()),
        ]);
        let folder = paths.cache().join("stores").join(&key);
        if !folder.exists() {
            let name = format!("import {}", image.name);
            progress.step(&name, make(paths, bin, parent.as_deref(), image, &folder)).await?;
        }
        touch(&folder);
        parent = Some(folder);
    }
    prune(paths)?;
    Ok(parent.unwrap_or_else(|| paths.cache().join("stores/empty")))
}

async fn make(
    paths: &Paths,
    bin: &Programs,
    parent: Option<&Path>,
    image: &Image,
    folder: &Path,
) -> Result<()> {
    let partial = files::with_suffix(folder, ".partial");
    files::remove_dir(&partial)?;
    let root = partial.join("root");
    files::create_dir(&root)?;
    if let Some(parent) = parent {
        clone(parent, &root)?;
    }
    let socket = partial.join("c.sock");
    let none = partial.join("none");
    files::write(
        partial.join("c.toml"),
        containerd_at(&root, &partial.join("state"), &socket, bin, &none, &none),
    )?;
    let log = paths.setup_logs().join("import.log");
    let importer = Importer::start(bin, &partial.join("c.toml"), &socket, &log).await?;
    import(bin, &socket, &root, image, &log, None).await?;
    importer.stop().await?;
    for leftover in ["state", "c.sock", "c.sock.ttrpc", "c.toml"] {
        let path = partial.join(leftover);
        let _ = if path.is_dir() { std::fs::remove_dir_all(&path) } else { std::fs::remove_file(&path) };
    }
    // Snapshots of the parent are links into it; those stay valid under the new name.
    std::fs::rename(&partial, folder).io("rename to", folder)
}

/// A containerd that fills a template. Like a node it lives in namespaces of its own, under `pause -hold`: when this
/// process ends, however it does, so do containerd and its mounts.
#[derive(Debug)]
pub struct Importer {
    child: Child,
    tie: ChildStdin,
    containerd: ProcessId,
}

impl Importer {
    /// Starts it and waits until it answers.
    pub async fn start(bin: &Programs, config: &Path, socket: &Path, log: &Path) -> Result<Self> {
        const HOLD: &str = r#""$CONTAINERD" --config "$CONFIG" & exec "$PAUSE" -hold"#;
        let separate = ["--mount", "--propagation", "private", "--pid", "--fork", "--mount-proc"];
        let mut command = command("unshare", separate);
        command.args(["sh", "-c", HOLD]);
        command.env("CONTAINERD", bin.containerd.join("containerd")).env("CONFIG", config);
        command.env("PAUSE", &bin.pause);
        let (out, err) = crate::command::log_pair(log)?;
        command.stdin(Stdio::piped()).stdout(out).stderr(err).process_group(0);
        let mut child = command.spawn().io("start", "unshare")?;
        let lost = || Error::Command {
            operation: "start containerd".into(),
            program: "unshare".into(),
            detail: format!("ended at once; log {}", log.display()),
        };
        let tie = child.stdin.take().ok_or_else(lost)?;
        let parent = child.id().ok_or_else(lost)?.cast_signed();
        wait_for_socket(bin, socket).await?;
        let first = process::children(parent).into_iter().flat_map(process::children);
        let containerd = first.into_iter().find_map(ProcessId::of).ok_or_else(lost)?;
        Ok(Self { child, tie, containerd })
    }

    /// Its process.
    pub fn process(&self) -> ProcessId {
        self.containerd
    }

    /// Ends it in order, so that its databases are whole.
    pub async fn stop(self) -> Result<()> {
        let Self { mut child, tie, containerd } = self;
        containerd.signal(nix::sys::signal::Signal::SIGTERM)?;
        // What does not end by itself ends with its namespace.
        let _ = containerd.gone(STOPPED).await;
        drop(tie);
        let _ = tokio::time::timeout(STOPPED, child.wait()).await;
        Ok(())
    }
}

/// Waits until a containerd answers.
pub(crate) async fn wait_for_socket(bin: &Programs, socket: &Path) -> Result<()> {
    wait::until("wait for containerd", Duration::from_secs(30), Duration::from_millis(100), || async {
        let look = run("ask containerd", Duration::from_secs(5), ctr(bin, socket, &["version"])).await;
        Ok(look.map_or_else(|e| Poll::Pending(e.to_string()), |_| Poll::Ready(())))
    })
    .await
}

fn ctr(bin: &Programs, socket: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(bin.containerd.join("ctr"));
    command.arg("--address").arg(socket).args(["--namespace", "k8s.io"]).args(args);
    command
}

/// Imports an image into a running containerd; layers that its store has already are not sent. With `node`,
/// ctr runs on that node.
pub async fn import(
    bin: &Programs,
    socket: &Path,
    root: &Path,
    image: &Image,
    log: &Path,
    node: Option<ProcessId>,
) -> Result<()> {
    name_layout(image)?;
    let present = root.join(BLOBS);
    let mut tar = String::from("tar -C \"$LAYOUT\" -cf - oci-layout index.json");
    let blobs = image.layout.join("blobs/sha256");
    for entry in std::fs::read_dir(&blobs).io("list", &blobs)?.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        if !present.join(&name).exists() {
            tar.push_str(" blobs/sha256/");
            tar.push_str(&name);
        }
    }
    let script = format!("{tar} | \"$CTR\" --address \"$SOCKET\" --namespace k8s.io images import --local -");
    let mut shell = node.map_or_else(
        || Command::new("sh"),
        |node| {
            let mut command = crate::node::command_on(node);
            command.arg("sh");
            command
        },
    );
    shell.args(["-c", &script]).env("LAYOUT", &image.layout).env("SOCKET", socket);
    shell.env("CTR", bin.containerd.join("ctr"));
    run_logged("import image", LIMIT, shell, log).await
}

/// Writes the image's full name where containerd looks for it.
fn name_layout(image: &Image) -> Result<()> {
    let path = image.layout.join("index.json");
    let text = files::read(&path)?;
    let mut index: serde_json::Value = serde_json::from_str(&text)
        .map_err(|e| crate::error::Error::Invalid(format!("{}: {e}", path.display())))?;
    if let Some(manifests) = index["manifests"].as_array_mut() {
        for manifest in manifests {
            manifest["annotations"]["io.containerd.image.name"] = image.name.clone().into();
        }
    }
    let new = index.to_string();
    if new == text { Ok(()) } else { files::write_atomic(&path, new) }
}

/// Clones a template into the root of a containerd that is not running.
pub fn clone(template: &Path, root: &Path) -> Result<()> {
    let from = template.join("root");
    for (folder, file) in [(METADATA, "meta.db"), (SNAPSHOTTER, "metadata.db")] {
        let target = root.join(folder);
        files::create_dir(&target)?;
        // Copied, not linked: the databases are written and locked.
        std::fs::copy(from.join(folder).join(file), target.join(file))
            .io("copy", from.join(folder).join(file))?;
    }
    let blobs = root.join(BLOBS);
    files::create_dir(&blobs)?;
    for entry in std::fs::read_dir(from.join(BLOBS)).io("list", from.join(BLOBS))?.flatten() {
        std::fs::hard_link(entry.path(), blobs.join(entry.file_name())).io("link", entry.path())?;
    }
    let snapshots = root.join(SNAPSHOTTER).join("snapshots");
    files::create_dir(&snapshots)?;
    let source = from.join(SNAPSHOTTER).join("snapshots");
    for entry in std::fs::read_dir(&source).io("list", &source)?.flatten() {
        let real = std::fs::canonicalize(entry.path()).io("follow", entry.path())?;
        std::os::unix::fs::symlink(real, snapshots.join(entry.file_name())).io("link", entry.path())?;
    }
    Ok(())
}

/// Marks a template as used, for [`prune`].
fn touch(folder: &Path) {
    // Only the order of removal depends on it.
    let _ = std::fs::write(folder.join("used"), "");
}

fn prune(paths: &Paths) -> Result<()> {
    let folder = paths.cache().join("stores");
    files::create_dir(&folder)?;
    let mut found = Vec::new();
    for entry in std::fs::read_dir(&folder).io("list", &folder)?.flatten() {
        let used = std::fs::metadata(entry.path().join("used")).and_then(|m| m.modified());
        // A folder without the mark is being made right now, or was left by a killed run: age tells.
        let time =
            used.or_else(|_| entry.metadata().and_then(|m| m.modified())).unwrap_or(std::time::UNIX_EPOCH);
        found.push((time, entry.path()));
    }
    found.sort();
    found.reverse();
    let used = in_use(paths);
    for (_, path) in found.into_iter().skip(KEEP).filter(|(_, path)| !used.contains(path)) {
        files::remove_dir(&path)?;
    }
    Ok(())
}

/// Templates that clusters, running or left, point to.
fn in_use(paths: &Paths) -> BTreeSet<PathBuf> {
    let folders =
        |path: PathBuf| std::fs::read_dir(path).into_iter().flatten().flatten().map(|entry| entry.path());
    let snapshots = folders(paths.runs())
        .flat_map(folders)
        .flat_map(|cluster| folders(cluster.join("containerd").join(SNAPSHOTTER).join("snapshots")));
    // A snapshot is <template>/root/<snapshotter>/snapshots/<id>.
    snapshots
        .filter_map(|link| Some(std::fs::read_link(link).ok()?.ancestors().nth(4)?.to_path_buf()))
        .collect()
}
