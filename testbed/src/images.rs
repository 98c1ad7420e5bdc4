//! The images that run in the clusters: pause, Ray and Vendue's own.
//!
//! Each is built from a recipe in `images/` on the base image and written as an image layout in the cache,
//! keyed by what goes into it. Layers are left uncompressed: they are read back on the same machine.

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::base::{self, Buildah};
use crate::command::{command, run, run_logged};
use crate::config::PAUSE_IMAGE;
use crate::error::{Error, IoContext, Result};
use crate::files;
use crate::lock::Lock;
use crate::paths::Paths;
use crate::progress::Progress;

/// Name of the Ray image.
pub const RAY_IMAGE: &str = "vendue.local/ray:2.60.0";
/// Name of Vendue's image.
pub const VENDUE_IMAGE: &str = "vendue.local/vendue:dev";
/// Vendue's programs that go into its image.
pub const VENDUE_PROGRAMS: [&str; 4] =
    ["vendue-controller", "vendue-auction", "vendue-gpu-agent", "kubectl-vendue"];

/// Beginning of the names of folders that Vendue's image is built from.
const CONTEXT: &str = "vendue.context";
const LIMIT: Duration = Duration::from_secs(30 * 60);

/// An image as a layout folder on the host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Image {
    /// Full name with tag.
    pub name: String,
    /// Folder with the image layout.
    pub layout: PathBuf,
    /// Key of its content.
    pub key: String,
}

fn image_at(paths: &Paths, kind: &str, name: &str, key: String) -> Image {
    Image { name: name.into(), layout: paths.cache().join("images").join(format!("{kind}-{key}")), key }
}

/// Builds or finds the images that do not depend on Vendue's code.
pub async fn prepare(paths: &Paths, pause: &Path, progress: &Progress) -> Result<Vec<Image>> {
    let base = base::prepare(paths, progress).await?;
    Ok(vec![pause_image(paths, pause, progress).await?, ray_image(paths, &base, progress).await?])
}

async fn pause_image(paths: &Paths, program: &Path, progress: &Progress) -> Result<Image> {
    let bytes = std::fs::read(program).io("read", program)?;
    let image = image_at(paths, "pause", PAUSE_IMAGE, files::key([("pause", bytes.as_slice())]));
    if image.layout.exists() {
        return Ok(image);
    }
    let context = paths.cache().join("images/pause.context");
    files::remove_dir(&context)?;
    files::write(context.join("pause"), bytes)?;
    std::fs::set_permissions(context.join("pause"), std::fs::Permissions::from_mode(0o755))
        .io("mark", &context)?;
    files::write(
        context.join("Containerfile"),
        "FROM scratch\nCOPY pause /pause\nUSER 65535:65535\nENTRYPOINT [\"/pause\"]\n",
    )?;
    progress.step("build pause image", build(paths, &context, &image, None)).await?;
    files::remove_dir(&context)?;
    Ok(image)
}

async fn ray_image(paths: &Paths, base: &str, progress: &Progress) -> Result<Image> {
    let recipe = paths.image_recipes().join("ray");
    let content = files::key_of_folder(&recipe, |_| true)?;
    let key = files::key([("recipe", content.as_bytes()), ("base", base.as_bytes())]);
    let image = image_at(paths, "ray", RAY_IMAGE, key);
    if !image.layout.exists() {
        progress.step("build Ray image", build(paths, &recipe, &image, Some(base))).await?;
    }
    Ok(image)
}

/// Builds or finds the image of Vendue's programs in `programs` (a Cargo target folder such as
/// `target/release`). Programs that are not there are left out if `partial` is set, else an error.
pub async fn vendue_image(
    paths: &Paths,
    programs: &Path,
    partial: bool,
    progress: &Progress,
) -> Result<Image> {
    // The builder knows images by name: two builds at once would write each other's content.
    let limit = Duration::from_secs(600);
    let _lock =
        Lock::take(&paths.cache().join("image.lock"), "another image build is at work", limit).await?;
    // Of builds that were killed: with the lock held nobody builds.
    remove_contexts(&paths.cache().join("images"))?;
    let base = base::prepare(paths, progress).await?;
    let recipe = paths.image_recipes().join("vendue/Containerfile");
    let mut parts = vec![
        ("recipe".to_string(), std::fs::read(&recipe).io("read", &recipe)?),
        ("base".into(), base.clone().into_bytes()),
    ];
    let mut present = Vec::new();
    for name in VENDUE_PROGRAMS {
        let path = programs.join(name);
        if path.exists() {
            parts.push((name.to_string(), std::fs::read(&path).io("read", &path)?));
            present.push(path);
        } else if !partial {
            return Err(Error::Machine(format!(
                "{} is not built: build the workspace first",
                path.display()
            )));
        }
    }
    let key = files::key(parts.iter().map(|(name, bytes)| (name.as_str(), bytes.as_slice())));
    let image = image_at(paths, "vendue", VENDUE_IMAGE, key);
    if image.layout.exists() {
        return Ok(image);
    }
    progress
        .step("build Vendue image", async {
            let context = paths.cache().join(format!("images/{CONTEXT}-{}", std::process::id()));
            files::create_dir(context.join("bin"))?;
            for path in &present {
                let target = context.join("bin").join(path.file_name().unwrap_or_default());
                // Debug information is of no use in a container, and most of a debug build's size.
                let mut strip = command("strip", ["--strip-all", "-o"]);
                strip.arg(target).arg(path);
                run("strip program", LIMIT, strip).await?;
            }
            std::fs::copy(&recipe, context.join("Containerfile")).io("copy", &recipe)?;
            build(paths, &context, &image, Some(&base)).await?;
            files::remove_dir(&context)
        })
        .await?;
    prune(paths, "vendue-", 3)?;
    Ok(image)
}

async fn build(paths: &Paths, context: &Path, image: &Image, base: Option<&str>) -> Result<()> {
    let buildah = Buildah::new(paths);
    let mut bud = buildah.command(&["bud", "--isolation", "chroot", "--layers", "--tag", &image.name]);
    if let Some(base) = base {
        bud.args(["--build-arg", &format!("BASE={base}")]);
        // The host may trust a certificate authority of its own on the way to the package index.
        bud.args(["--volume", "/etc/ssl/certs:/etc/ssl/certs:ro"]);
    }
    bud.arg(context);
    run_logged("build image", LIMIT, bud, &paths.setup_logs().join("buildah.log")).await?;
    let partial = files::with_suffix(&image.layout, ".partial");
    files::remove_dir(&partial)?;
    let target = format!("oci:{}:{}", partial.display(), image.name);
    let push = buildah.command(&["push", "--quiet", "--disable-compression", &image.name, &target]);
    run("write image", LIMIT, push).await?;
    std::fs::rename(&partial, &image.layout).io("rename to", &image.layout)
}

fn remove_contexts(folder: &Path) -> Result<()> {
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        if entry.file_name().to_string_lossy().starts_with(CONTEXT) {
            files::remove_dir(&entry.path())?;
        }
    }
    Ok(())
}

/// Removes all but the newest folders of a kind from the image cache.
fn prune(paths: &Paths, prefix: &str, keep: usize) -> Result<()> {
    let folder = paths.cache().join("images");
    let mut found = Vec::new();
    for entry in std::fs::read_dir(&folder).io("list", &folder)?.flatten() {
        if entry.file_name().to_string_lossy().starts_with(prefix) {
            let modified = entry.metadata().and_then(|m| m.modified()).unwrap_or(std::time::UNIX_EPOCH);
            found.push((modified, entry.path()));
        }
    }
    found.sort();
    found.reverse();
    for (_, path) in found.into_iter().skip(keep) {
        files::remove_dir(&path)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn contexts_of_killed_builds_go_and_images_stay() {
        let folder = tempfile::tempdir().unwrap();
        for name in ["vendue.context-1/bin", "vendue.context-22", "vendue-0123", "ray-4567"] {
            std::fs::create_dir_all(folder.path().join(name)).unwrap();
        }
        remove_contexts(folder.path()).unwrap();
        let names = std::fs::read_dir(folder.path()).unwrap().flatten().map(|e| e.file_name());
        let mut left: Vec<_> = names.map(|n| n.into_string().unwrap()).collect();
        left.sort();
        assert_eq!(left, ["ray-4567", "vendue-0123"]);
    }
}
