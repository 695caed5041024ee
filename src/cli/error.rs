//! Errors as a person at a terminal sees them: what is wrong in one line, what to do in the next, and an exit
//! status that scripts can tell apart.

use std::process::ExitCode;

/// A command that did not work.
#[derive(Debug, thiserror::Error)]
pub(super) enum CommandError {
    /// The command line asks for something that cannot be: exit status 2, as clap's own.
    #[error("{message}")]
    Usage {
        /// What is wrong.
        message: String,
        /// What to do.
        fix: Option<String>,
    },
    /// The command line is fine, the work failed: exit status 1.
    #[error("{message}")]
    Failure {
        /// What is wrong.
        message: String,
        /// What to do.
        fix: Option<String>,
    },
}

#[expect(clippy::needless_pass_by_value, reason = "by value they fit map_err")]
impl CommandError {
    /// A bad command line.
    pub(super) fn usage(message: impl ToString, fix: impl Into<String>) -> Self {
        Self::Usage { message: message.to_string(), fix: Some(fix.into()) }
    }

    /// Failed work, and what to do.
    pub(super) fn failure(message: impl ToString, fix: impl Into<String>) -> Self {
        Self::Failure { message: message.to_string(), fix: Some(fix.into()) }
    }

    /// Failed work whose message says all there is to say.
    pub(super) fn plain(message: impl ToString) -> Self {
        Self::Failure { message: message.to_string(), fix: None }
    }

    /// The lines for standard error.
    pub(super) fn lines(&self) -> String {
        let (Self::Usage { message, fix } | Self::Failure { message, fix }) = self;
        // A message is one line whatever a file put into it.
        let message = message.replace(['\n', '\r'], " ");
        match fix {
            Some(fix) => format!("error: {message}\n  fix: {fix}"),
            None => format!("error: {message}"),
        }
    }

    /// The exit status.
    pub(super) fn status(&self) -> ExitCode {
        match self {
            Self::Usage { .. } => ExitCode::from(2),
            Self::Failure { .. } => ExitCode::from(1),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_is_one_line_and_one_line_of_what_to_do() {
        let error = CommandError::usage("a\nb", "do c");
        assert_eq!(error.lines(), "error: a b\n  fix: do c");
        assert_eq!(CommandError::plain("x").lines(), "error: x");
    }
}
