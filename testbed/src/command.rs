//! Running host programs: always with a deadline, and with errors that carry the end of their output.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use tokio::io::AsyncWriteExt as _;
use tokio::process::Command;

use crate::error::{Error, IoContext, Result};

/// How many characters of a failed program's output an error keeps.
const TAIL: usize = 1500;

/// Runs a program to its end and returns its standard output.
pub async fn run(operation: &str, limit: Duration, command: Command) -> Result<String> {
    run_with_input(operation, limit, command, "").await
}

/// Like [`run`], with text on the program's standard input.
pub async fn run_with_input(
    operation: &str,
    limit: Duration,
    mut command: Command,
    input: &str,
) -> Result<String> {
    let program = describe(&command);
    let fail =
        |detail: String| Error::Command { operation: operation.into(), program: program.clone(), detail };
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    let mut child = command.spawn().map_err(|e| fail(format!("could not be started: {e}")))?;
    let stdin = child.stdin.take();
    let work = async {
        if let Some(mut stdin) = stdin {
            // A program that does not read its input may close it early: its exit status tells.
            let _ = stdin.write_all(input.as_bytes()).await;
        }
        child.wait_with_output().await
    };
    let output = tokio::time::timeout(limit, work)
        .await
        .map_err(|_| Error::timeout(format!("{operation}: `{program}`"), limit, ""))?
        .map_err(|e| fail(e.to_string()))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let mut text = String::from_utf8_lossy(&output.stderr).into_owned();
    if text.trim().is_empty() {
        text = String::from_utf8_lossy(&output.stdout).into_owned();
    }
    Err(fail(format!("ended with {}: {}", output.status, tail(&text))))
}

/// Runs a program with both outputs appended to a log file; an error carries the end of the log.
pub async fn run_logged(operation: &str, limit: Duration, mut command: Command, log: &Path) -> Result<()> {
    let program = describe(&command);
    let fail =
        |detail: String| Error::Command { operation: operation.into(), program: program.clone(), detail };
    let (out, err) = log_pair(log)?;
    command.stdin(Stdio::null()).stdout(out).stderr(err).kill_on_drop(true);
    let mut child = command.spawn().map_err(|e| fail(format!("could not be started: {e}")))?;
    let status = tokio::time::timeout(limit, child.wait())
        .await
        .map_err(|_| {
            Error::timeout(format!("{operation}: `{program}`"), limit, format!("log: {}", log.display()))
        })?
        .map_err(|e| fail(e.to_string()))?;
    if status.success() {
        return Ok(());
    }
    let text = std::fs::read_to_string(log).unwrap_or_default();
    Err(fail(format!("ended with {status}; {}: {}", log.display(), tail(&text))))
}

/// Opens a log file twice, for a program's two outputs.
pub fn log_pair(log: &Path) -> Result<(Stdio, Stdio)> {
    if let Some(parent) = log.parent() {
        crate::files::create_dir(parent)?;
    }
    let file = std::fs::File::options().create(true).append(true).open(log).io("open", log)?;
    let copy = file.try_clone().io("open", log)?;
    Ok((file.into(), copy.into()))
}

/// A command by name with arguments; a shorter way to write the usual case.
pub fn command<S: AsRef<std::ffi::OsStr>>(
    program: impl AsRef<std::ffi::OsStr>,
    args: impl IntoIterator<Item = S>,
) -> Command {
    let mut command = Command::new(program);
    command.args(args);
    command
}

fn describe(command: &Command) -> String {
    let std = command.as_std();
    let mut text = std.get_program().to_string_lossy().into_owned();
    for arg in std.get_args().take(4) {
        text.push(' ');
        text.push_str(&arg.to_string_lossy());
    }
    text
}

fn tail(text: &str) -> String {
    let text = text.trim();
    let skip = text.chars().count().saturating_sub(TAIL);
    text.chars().skip(skip).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn failing_program_reports_its_error_output() {
        let command = command("sh", ["-c", "echo wrong >&2; exit 3"]);
        let error = run("try", Duration::from_secs(5), command).await.unwrap_err().to_string();
        assert!(error.contains("try") && error.contains("wrong"), "{error}");
    }

    #[tokio::test]
    async fn slow_program_is_cut_off() {
        let error = run("nap", Duration::from_millis(50), command("sleep", ["5"])).await.unwrap_err();
        assert!(matches!(error, Error::Timeout { .. }), "{error}");
    }

    #[tokio::test]
    async fn input_reaches_the_program() {
        let out = run_with_input("echo", Duration::from_secs(5), Command::new("cat"), "hello").await.unwrap();
        assert_eq!(out, "hello");
    }
}
