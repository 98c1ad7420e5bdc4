//! The base of all images: a root file system of the host's own distribution, so that binaries built on the
//! host find the C library they were linked against.

use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::process::Command;

use crate::command::{command, run, run_logged};
use crate::error::{Error, Result};
use crate::files;
use crate::paths::Paths;
use crate::progress::Progress;

const LIMIT: Duration = Duration::from_secs(20 * 60);
const PACKAGES: &str = "python3,python3-venv,ca-certificates";

/// A builder of images with a store of its own in the cache.
#[derive(Clone, Debug)]
pub struct Buildah {
    root: PathBuf,
}

impl Buildah {
    /// The cache's builder.
    pub fn new(paths: &Paths) -> Self {
        Self { root: paths.cache().join("buildah") }
    }

    /// A call of the builder.
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = command("buildah", ["--root"]);
        command.arg(self.root.join("root")).arg("--runroot").arg(self.root.join("run"));
        command.args(["--storage-driver", "overlay"]).args(args);
        command
    }

    /// Whether an image of this name is in the store.
    pub async fn has(&self, image: &str) -> bool {
        run("look for image", Duration::from_secs(60), self.command(&["inspect", "--type", "image", image]))
            .await
            .is_ok()
    }
}

/// The distribution of the host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Distribution {
    /// `debian` or `ubuntu`.
    pub id: String,
    /// Code name, such as `bookworm`.
    pub codename: String,
}

impl Distribution {
    /// Of this machine.
    pub fn of_host() -> Result<Self> {
        Self::parse(&files::read("/etc/os-release")?)
    }

    /// From the text of `/etc/os-release`.
    pub fn parse(text: &str) -> Result<Self> {
        let value = |key: &str| {
            text.lines()
                .find_map(|l| l.strip_prefix(key)?.strip_prefix('='))
                .map(|v| v.trim_matches('"').to_string())
        };
        match (value("ID"), value("VERSION_CODENAME")) {
            (Some(id), Some(codename)) if id == "debian" || id == "ubuntu" => Ok(Self { id, codename }),
            (id, _) => Err(Error::Machine(format!(
                "the test bed makes its images from Debian or Ubuntu, this machine is {}",
                id.unwrap_or_else(|| "unknown".into())
            ))),
        }
    }
}

/// First package mirror that the host itself uses for this distribution, if it can be told.
pub fn host_mirror(distribution: &Distribution) -> Option<String> {
    let mut texts = Vec::new();
    for folder in ["/etc/apt/sources.list.d"] {
        for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
            texts.push(std::fs::read_to_string(entry.path()).unwrap_or_default());
        }
    }
    texts.push(std::fs::read_to_string("/etc/apt/sources.list").unwrap_or_default());
    texts.iter().find_map(|text| mirror_in(text, distribution))
}

/// Finds the mirror in one sources file, of either format.
fn mirror_in(text: &str, distribution: &Distribution) -> Option<String> {
    for stanza in text.split("\n\n") {
        let field = |name: &str| stanza.lines().find_map(|l| l.strip_prefix(name)).map(str::trim);
        let suites = field("Suites:").unwrap_or_default();
        if suites.split_whitespace().any(|s| s == distribution.codename) {
            return field("URIs:")?.split_whitespace().next().map(Into::into);
        }
    }
    let mut lines = text.lines().filter(|l| l.starts_with("deb "));
    lines.find_map(|line| {
        let words: Vec<_> =
            line.split_whitespace().filter(|w| !w.starts_with('[') && !w.ends_with(']')).collect();
        (words.get(2) == Some(&distribution.codename.as_str()))
            .then(|| words.get(1).map(ToString::to_string))?
    })
}

/// Makes or finds the base image and returns its name.
pub async fn prepare(paths: &Paths, progress: &Progress) -> Result<String> {
    let distribution = Distribution::of_host()?;
    let key = files::key([("packages", PACKAGES.as_bytes()), ("suite", distribution.codename.as_bytes())]);
    let image = format!("vendue.local/base:{}-{key}", distribution.codename);
    let buildah = Buildah::new(paths);
    if buildah.has(&image).await {
        return Ok(image);
    }
    let work = paths.cache().join("base.partial");
    progress
        .step(&format!("make base image of {}", distribution.codename), async {
            files::remove_dir(&work)?;
            bootstrap(paths, &distribution, &work).await?;
            commit(&buildah, &work, &image).await?;
            files::remove_dir(&work)
        })
        .await?;
    Ok(image)
}

async fn bootstrap(paths: &Paths, distribution: &Distribution, work: &Path) -> Result<()> {
    let mut debootstrap = command("debootstrap", ["--variant=minbase", &format!("--include={PACKAGES}")]);
    debootstrap.arg(&distribution.codename).arg(work).args(host_mirror(distribution));
    run_logged("make base file system", LIMIT, debootstrap, &paths.setup_logs().join("debootstrap.log"))
        .await?;
    // Package archives and lists are no use in an image.
    for folder in ["var/cache/apt/archives", "var/lib/apt/lists", "usr/share/doc", "usr/share/locale"] {
        files::remove_dir(&work.join(folder))?;
    }
    Ok(())
}

async fn commit(buildah: &Buildah, work: &Path, image: &str) -> Result<()> {
    let container = run("begin base image", LIMIT, buildah.command(&["from", "scratch"])).await?;
    let container = container.trim();
    let folder = work.display().to_string();
    run("fill base image", LIMIT, buildah.command(&["add", "--quiet", container, &folder, "/"])).await?;
    let path = format!("PATH={}", crate::node::SYSTEM_PATH);
    run("set up base image", LIMIT, buildah.command(&["config", "--env", &path, container])).await?;
    run("finish base image", LIMIT, buildah.command(&["commit", "--quiet", container, image])).await?;
    run("clear base image's container", LIMIT, buildah.command(&["rm", container])).await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_distributions() {
        let debian = Distribution::parse("ID=debian\nVERSION_CODENAME=bookworm\n").unwrap();
        assert_eq!(debian, Distribution { id: "debian".into(), codename: "bookworm".into() });
        assert!(
            Distribution::parse("ID=fedora\nVERSION_CODENAME=x\n")
                .unwrap_err()
                .to_string()
                .contains("fedora")
        );
    }

    #[test]
    fn finds_the_mirror_in_both_formats() {
        let distribution = Distribution { id: "debian".into(), codename: "bookworm".into() };
        let new = "Types: deb\nURIs: http://mirror.example/debian\nSuites: bookworm bookworm-updates\n";
        let old = "deb [arch=amd64] http://mirror.example/debian bookworm main\n";
        let other = "deb http://other.example/x stable main\n";
        assert_eq!(mirror_in(new, &distribution).unwrap(), "http://mirror.example/debian");
        assert_eq!(mirror_in(old, &distribution).unwrap(), "http://mirror.example/debian");
        assert_eq!(mirror_in(other, &distribution), None);
    }
}
