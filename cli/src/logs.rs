//! `logs`: the log of a Job, as the aggregated API streams it.

use std::io::{ErrorKind, IsTerminal, Write};

use futures::{AsyncBufReadExt, TryStreamExt};

use crate::args::{LogOptions, Output};
use crate::cluster::Target;
use crate::error::CliError;
use crate::terminal::Guard;

/// Prints the log until it ends, or until the reader of standard output goes away.
pub async fn run(target: &Target, options: &LogOptions, output: Output) -> Result<(), CliError> {
    let stdout = std::io::stdout();
    // A file or another program gets the log as it is.
    if stdout.is_terminal() && output == Output::Text {
        return write(target, options, output, &mut Guard::new(stdout.lock())).await;
    }
    write(target, options, output, &mut stdout.lock()).await
}

fn query(options: &LogOptions) -> String {
    let mut parts = vec![];
    if options.follow {
        parts.push("follow=true".to_owned());
    }
    if let Some(lines) = options.tail {
        parts.push(format!("tailLines={lines}"));
    }
    parts.join("&")
}

async fn write(
    target: &Target,
    options: &LogOptions,
    output: Output,
    out: &mut impl Write,
) -> Result<(), CliError> {
    let request = target.request("log", &query(options))?;
    let doing = format!("read the log of Job {}/{}", target.namespace, target.job);
    let stream = target.client.request_stream(request).await.map_err(|e| CliError::kube(&doing, &e))?;
    let broken = |e: std::io::Error| CliError::Cluster {
        message: format!("{doing}: the connection broke: {e}"),
        next: "run the command again; nothing is lost".to_owned(),
    };
    match output {
        Output::Text => {
            let mut stream = std::pin::pin!(stream);
            loop {
                let chunk = stream.fill_buf().await.map_err(broken)?;
                let length = chunk.len();
                if length == 0 || !put(out, chunk)? {
                    return Ok(());
                }
                stream.consume_unpin(length);
            }
        }
        Output::Json => {
            let mut lines = stream.lines();
            while let Some(line) = lines.try_next().await.map_err(broken)? {
                if !put(out, format!("{}\n", serde_json::json!({ "line": line })).as_bytes())? {
                    return Ok(());
                }
            }
            Ok(())
        }
    }
}

/// Writes at once; false when nobody reads any more.
fn put(out: &mut impl Write, bytes: &[u8]) -> Result<bool, CliError> {
    match out.write_all(bytes).and_then(|()| out.flush()) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(false),
        Err(error) => Err(CliError::failed(format!("write: {error}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::tests::{fake, status};

    fn options(follow: bool, tail: Option<u64>) -> LogOptions {
        LogOptions { job: "digits".into(), follow, tail }
    }

    #[tokio::test]
    async fn text_is_passed_on_as_it_is() {
        let (target, seen) = fake(Box::new(|_| (200, b"epoch 1\nepoch 2".to_vec())));
        let mut out = vec![];
        write(&target, &options(true, Some(5)), Output::Text, &mut out).await.unwrap();
        assert_eq!(out, b"epoch 1\nepoch 2");
        assert_eq!(
            *seen.lock().unwrap(),
            ["GET /apis/stream.vendue.dev/v1alpha1/namespaces/team/jobs/digits/log?follow=true&tailLines=5"]
        );
    }

    #[tokio::test]
    async fn json_is_one_object_a_line() {
        let (target, _) = fake(Box::new(|_| (200, b"a \"b\"\nc\n".to_vec())));
        let mut out = vec![];
        write(&target, &options(false, None), Output::Json, &mut out).await.unwrap();
        assert_eq!(String::from_utf8(out).unwrap(), "{\"line\":\"a \\\"b\\\"\"}\n{\"line\":\"c\"}\n");
    }

    #[tokio::test]
    async fn refusals_are_told_with_the_servers_words() {
        let (target, _) = fake(Box::new(|_| status(403, "user \"eve\" cannot get jobs/log")));
        let error = write(&target, &options(false, None), Output::Text, &mut vec![]).await.unwrap_err();
        assert_eq!(error.to_string(), "read the log of Job team/digits: user \"eve\" cannot get jobs/log");
        assert_eq!(error.exit_code(), 3);
    }
}
