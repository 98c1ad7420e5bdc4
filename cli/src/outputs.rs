//! `outputs`: the files that a Job left, listed or downloaded.
//!
//! Invariant: a file appears under its name in the folder only when it is whole and its digest is right; paths from the
//! cluster never lead out of the folder.

use std::fs;
use std::io::{IsTerminal, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Component, Path, PathBuf};
use std::time::{Duration, Instant};

use futures::AsyncReadExt;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use vendue_crds::conditions::{self, job as condition};

use crate::args::{Output, OutputOptions};
use crate::cluster::{Target, encode};
use crate::error::CliError;
use crate::report;

/// One file, as the cluster lists it.
#[derive(Deserialize, Serialize, Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Path below the Job's outputs.
    pub path: String,
    /// Size in bytes.
    pub size: u64,
    /// SHA-256, hex.
    pub sha256: String,
}

#[derive(Deserialize, Serialize, Debug)]
struct Listing {
    files: Vec<Entry>,
}

/// Lists or downloads.
pub async fn run(target: &Target, options: &OutputOptions, output: Output) -> Result<(), CliError> {
    let listing = list(target, Duration::from_secs(options.wait)).await?;
    if listing.files.is_empty()
        && let Some(why) = not_delivered(target).await
    {
        let job = format!("{}/{}", target.namespace, target.job);
        return Err(CliError::failed(format!("the outputs of Job {job} were not brought home: {why}")));
    }
    let Some(folder) = &options.to else {
        return report::print(output, &table(&listing.files), &listing);
    };
    let bar = progress(listing.files.iter().map(|f| f.size).sum());
    let saved = download(target, &listing.files, folder, &bar).await;
    bar.finish_and_clear();
    let saved = saved?;
    let text = saved.iter().map(|p| format!("{}\n", p.display())).collect::<String>();
    let text = format!("{text}{} files, each checked by its digest\n", saved.len());
    report::print(
        output,
        &text,
        &serde_json::json!({ "files": listing.files, "folder": folder, "verified": true }),
    )
}

fn table(files: &[Entry]) -> String {
    if files.is_empty() {
        return "the Job left no outputs\n".to_owned();
    }
    let width = files.iter().map(|f| f.path.len()).max().unwrap_or(4).max(4);
    let mut text = format!("{:width$}  {:>12}  SHA-256\n", "FILE", "BYTES");
    for file in files {
        // The names are the provider's: what would steer a terminal is shown, not sent.
        let path = file.path.escape_default().to_string();
        let path = if file.path.contains(char::is_control) { &path } else { &file.path };
        text.push_str(&format!("{path:width$}  {:>12}  {}\n", file.size, file.sha256));
    }
    text
}

fn progress(bytes: u64) -> ProgressBar {
    let target = if std::io::stderr().is_terminal() {
        ProgressDrawTarget::stderr()
    } else {
        ProgressDrawTarget::hidden()
    };
    let bar = ProgressBar::with_draw_target(Some(bytes), target);
    if let Ok(style) =
        ProgressStyle::with_template("{bar:30} {bytes}/{total_bytes} {bytes_per_sec} {wide_msg}")
    {
        bar.set_style(style);
    }
    bar
}

/// The list of files; waits while they are being delivered.
async fn list(target: &Target, patience: Duration) -> Result<Listing, CliError> {
    let doing = format!("list the outputs of Job {}/{}", target.namespace, target.job);
    let start = Instant::now();
    loop {
        match target.client.request::<Listing>(target.request("outputs", "")?).await {
            Ok(listing) => return Ok(listing),
            Err(kube::Error::Api(status)) if status.code == 503 && start.elapsed() < patience => {
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
            Err(error) => return Err(CliError::kube(&doing, &error)),
        }
    }
}

/// Why a Job has no outputs although it may have left some. Who may not read the Job is not told.
async fn not_delivered(target: &Target) -> Option<String> {
    let status = target.get().await.ok()?.status?;
    let delivered = conditions::find(&status.conditions, condition::DELIVERED)?;
    (delivered.status == "False").then(|| delivered.message.clone())
}

/// Downloads all files into `folder`; returns where they lie.
async fn download(
    target: &Target,
    files: &[Entry],
    folder: &Path,
    bar: &ProgressBar,
) -> Result<Vec<PathBuf>, CliError> {
    let places = files.iter().map(|f| place(folder, &f.path)).collect::<Result<Vec<_>, _>>()?;
    fs::create_dir_all(folder).map_err(|e| CliError::file(folder, &e))?;
    for (file, place) in files.iter().zip(&places) {
        bar.set_message(file.path.clone());
        fetch(target, file, place, bar).await?;
    }
    Ok(places)
}

/// Where a file goes: below `folder`, or nowhere.
fn place(folder: &Path, path: &str) -> Result<PathBuf, CliError> {
    let plain = Path::new(path).components().all(|c| matches!(c, Component::Normal(_)));
    if path.is_empty() || !plain || path.contains('\\') || path.contains(char::is_control) {
        return Err(CliError::failed(format!(
            "the cluster names a file {path:?}, which would not lie in the folder"
        )));
    }
    Ok(folder.join(path))
}

async fn fetch(target: &Target, file: &Entry, place: &Path, bar: &ProgressBar) -> Result<(), CliError> {
    let doing = format!("download {}", file.path);
    let parent = place.parent().unwrap_or(Path::new("."));
    fs::create_dir_all(parent).map_err(|e| CliError::file(parent, &e))?;
    let mut part = tempfile::Builder::new()
        .prefix(".vendue-")
        // The umask takes its share, as for any file that a person makes.
        .permissions(fs::Permissions::from_mode(0o666))
        .tempfile_in(parent)
        .map_err(|e| CliError::file(parent, &e))?;
    let request = target.request("outputs", &format!("path={}", encode(&file.path)))?;
    let stream = target.client.request_stream(request).await.map_err(|e| CliError::kube(&doing, &e))?;
    let mut stream = std::pin::pin!(stream);
    let (mut hash, mut size, mut buffer) = (Sha256::new(), 0u64, vec![0u8; 64 << 10]);
    loop {
        let n = stream.read(&mut buffer).await.map_err(|e| CliError::Cluster {
            message: format!("{doing}: the connection broke: {e}"),
            next: "run the command again".to_owned(),
        })?;
        let Some(chunk) = buffer.get(..n).filter(|c| !c.is_empty()) else { break };
        size += n as u64;
        if size > file.size {
            break;
        }
        hash.update(chunk);
        part.write_all(chunk).map_err(|e| CliError::file(part.path(), &e))?;
        bar.inc(n as u64);
    }
    let found = hex::encode(hash.finalize());
    if size != file.size || found != file.sha256 {
        return Err(CliError::failed_with(
            format!(
                "{}: {size} bytes with digest {found}; the list says {} bytes with {}",
                file.path, file.size, file.sha256
            ),
            "run the command again; if it stays so, the store of this cluster is damaged",
        ));
    }
    part.as_file().sync_all().map_err(|e| CliError::file(place, &e))?;
    part.persist(place).map_err(|e| CliError::file(place, &e.error))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::tests::{fake, status};

    fn entry(path: &str, content: &[u8]) -> Entry {
        Entry { path: path.into(), size: content.len() as u64, sha256: hex::encode(Sha256::digest(content)) }
    }

    fn serve(files: Vec<Entry>, content: &'static [u8]) -> Target {
        let listing = serde_json::to_vec(&Listing { files }).unwrap();
        fake(Box::new(move |uri| {
            (200, if uri.contains("path=") { content.to_vec() } else { listing.clone() })
        }))
        .0
    }

    fn options(to: &Path) -> OutputOptions {
        OutputOptions { job: "digits".into(), to: Some(to.to_owned()), wait: 0 }
    }

    #[tokio::test]
    async fn files_arrive_whole() {
        let folder = tempfile::tempdir().unwrap();
        let target = serve(vec![entry("models/model.npz", b"weights")], b"weights");
        run(&target, &options(folder.path()), Output::Json).await.unwrap();
        assert_eq!(fs::read(folder.path().join("models/model.npz")).unwrap(), b"weights");
        assert_eq!(fs::read_dir(folder.path().join("models")).unwrap().count(), 1, "no part is left");
    }

    #[tokio::test]
    async fn a_wrong_digest_leaves_nothing() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("a"), "old").unwrap();
        let target = serve(vec![entry("a", b"weights")], b"weighTs");
        let error = run(&target, &options(folder.path()), Output::Text).await.unwrap_err();
        assert!(error.to_string().contains("7 bytes with digest"), "{error}");
        assert_eq!(error.exit_code(), 1);
        assert_eq!(fs::read(folder.path().join("a")).unwrap(), b"old", "what was there is untouched");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "no part is left");
    }

    #[tokio::test]
    async fn too_much_or_too_little_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        for content in [&b"weights and more"[..], b"weight"] {
            let target = serve(vec![entry("a", b"weights")], content);
            assert!(run(&target, &options(folder.path()), Output::Text).await.is_err());
        }
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    }

    #[test]
    fn paths_stay_in_the_folder() {
        let folder = Path::new("/out");
        assert_eq!(place(folder, "a/b").unwrap(), Path::new("/out/a/b"));
        for bad in ["", "/etc/passwd", "../x", "a/../../x", "a\\b", "a\0b", "a\x1b[2Jb"] {
            assert!(place(folder, bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn names_do_not_steer_the_terminal() {
        let text = table(&[entry("a\x1b]0;owned\x07", b""), entry("modèle.npz", b"")]);
        assert!(!text.contains('\x1b') && text.contains("\\u{1b}") && text.contains("modèle.npz"), "{text}");
    }

    #[tokio::test]
    async fn what_the_server_says_is_told() {
        let (target, _) =
            fake(Box::new(|_| status(404, "the job has no outputs yet: they are delivered when it ends")));
        let error = run(&target, &options(Path::new("/nowhere")), Output::Text).await.unwrap_err();
        assert!(error.to_string().ends_with("they are delivered when it ends"), "{error}");
    }

    #[tokio::test]
    async fn outputs_that_were_not_brought_home_are_no_empty_list() {
        let answer = |delivered: &'static str| {
            move |uri: &str| {
                let body = if uri.contains("stream.") {
                    serde_json::json!({ "files": [] })
                } else {
                    serde_json::json!({
                        "apiVersion": "vendue.dev/v1alpha1", "kind": "Job", "metadata": { "name": "digits" },
                        "spec": { "maxPrice": "1", "runDeadlineSeconds": 60 },
                        "status": { "conditions": [{ "type": "Delivered", "status": delivered, "reason": "R",
                            "message": "12000 files", "lastTransitionTime": "2026-01-01T00:00:00Z" }] },
                    })
                };
                (200, serde_json::to_vec(&body).unwrap())
            }
        };
        let (target, _) = fake(Box::new(answer("False")));
        let error = run(&target, &options(Path::new("/nowhere")), Output::Text).await.unwrap_err();
        assert_eq!(error.to_string(), "the outputs of Job team/digits were not brought home: 12000 files");
        let (target, _) = fake(Box::new(answer("True")));
        let listed = OutputOptions { to: None, ..options(Path::new("/nowhere")) };
        assert!(run(&target, &listed, Output::Text).await.is_ok(), "it left none");
    }
}
