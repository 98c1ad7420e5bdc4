//! Errors with their exit code and the next step for the user.

use std::path::Path;

/// Why a command did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum CliError {
    /// A check failed, or there is nothing to show.
    #[error("{message}")]
    Failed {
        /// What happened.
        message: String,
        /// What to do about it.
        next: Option<String>,
    },
    /// The command line asks for something that cannot be.
    #[error("{0}")]
    Usage(String),
    /// The cluster cannot be reached, or forbids it.
    #[error("{message}")]
    Cluster {
        /// What happened.
        message: String,
        /// What to do about it.
        next: String,
    },
}

impl CliError {
    /// A failure without advice.
    pub fn failed(message: impl Into<String>) -> Self {
        Self::Failed { message: message.into(), next: None }
    }

    /// A failure with advice.
    pub fn failed_with(message: impl Into<String>, next: impl Into<String>) -> Self {
        Self::Failed { message: message.into(), next: Some(next.into()) }
    }

    /// A file that cannot be read or written.
    pub fn file(path: &Path, error: &std::io::Error) -> Self {
        Self::failed(format!("{}: {error}", path.display()))
    }

    /// What the process exits with.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Failed { .. } => 1,
            Self::Usage(_) => 2,
            Self::Cluster { .. } => 3,
        }
    }

    /// What to do about it.
    pub fn next_step(&self) -> Option<&str> {
        match self {
            Self::Failed { next, .. } => next.as_deref(),
            Self::Usage(_) => Some("kubectl vendue --help"),
            Self::Cluster { next, .. } => Some(next),
        }
    }

    /// Classifies what the API server answered to `doing`.
    pub fn kube(doing: &str, error: &kube::Error) -> Self {
        let kube::Error::Api(status) = error else {
            return Self::Cluster {
                message: format!("{doing}: {}", chain(error)),
                next: "check the context with `kubectl cluster-info`".to_owned(),
            };
        };
        let message = format!("{doing}: {}", status.message);
        match status.code {
            401 => Self::Cluster { message, next: "log in again: the cluster does not know you".to_owned() },
            403 => Self::Cluster {
                message,
                next: "ask the cluster's administrator for the role `edit` in the Job's namespace".to_owned(),
            },
            404 => Self::Failed { message, next: None },
            503 | 504 => Self::Cluster {
                message,
                next: "try again in a moment; then `kubectl vendue doctor`".to_owned(),
            },
            _ => Self::Failed { message, next: Some("kubectl vendue doctor".to_owned()) },
        }
    }
}

/// An error with its causes, without repeating what a cause already said.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        source = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn api(code: u16) -> CliError {
        let mut status = kube::core::Status::failure("no", "Why");
        status.code = code;
        CliError::kube("read Job digits", &kube::Error::Api(status.boxed()))
    }

    #[test]
    fn answers_of_the_server_become_exit_codes() {
        let codes: Vec<_> = [401, 403, 404, 503, 500].map(|c| api(c).exit_code()).into();
        assert_eq!(codes, [3, 3, 1, 3, 1]);
        assert!(api(403).next_step().is_some_and(|n| n.contains("role `edit`")));
        assert_eq!(api(404).to_string(), "read Job digits: no");
    }
}
