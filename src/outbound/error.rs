//! Why a request of the server's own was not made or did not work. Messages name the host at most: paths and
//! queries of webhooks often hold their receivers' secrets.

use std::time::Duration;

/// A request of the server's own that was refused or failed.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum OutboundError {
    /// A setting cannot be used.
    #[error("outbound.{setting} is '{value}': {reason}")]
    Config {
        /// The setting's name in its section.
        setting: &'static str,
        /// Its value.
        value: String,
        /// What is wrong, and what to write instead.
        reason: String,
    },
    /// The text is not an address that the server could ask.
    #[error("the URL cannot be used: {reason}")]
    InvalidUrl {
        /// What is wrong.
        reason: String,
    },
    /// The host is not on the public internet and not excepted.
    #[error(
        "the host '{host}' is not public; outbound.allow_networks in the server's configuration makes exceptions"
    )]
    NotPublic {
        /// The host.
        host: String,
    },
    /// A redirect leads where none may lead.
    #[error("'{host}' redirects, but {reason}")]
    Redirect {
        /// Who redirects.
        host: String,
        /// Why it is not followed.
        reason: String,
    },
    /// No answer within the time for the whole request.
    #[error("'{host}' did not finish its answer within {seconds} seconds")]
    Timeout {
        /// The host that was asked first.
        host: String,
        /// The limit.
        seconds: f64,
    },
    /// The body is larger than it may be.
    #[error("'{host}' sends more than {limit} bytes")]
    TooLarge {
        /// Who sends it.
        host: String,
        /// The limit, bytes.
        limit: usize,
    },
    /// The answer is not a success.
    #[error("'{host}' answered with status {status}")]
    Status {
        /// Who answered.
        host: String,
        /// The HTTP status.
        status: u16,
        /// How long to wait, if the answer says so.
        retry_after: Option<Duration>,
    },
    /// Name resolution, connection, TLS or HTTP failed.
    #[error("'{host}' cannot be reached: {reason}")]
    Unreachable {
        /// The host.
        host: String,
        /// What failed.
        reason: String,
    },
    /// The HTTP client could not be set up.
    #[error("the HTTP client cannot be set up: {reason}")]
    Setup {
        /// What failed.
        reason: String,
    },
}

impl OutboundError {
    /// Whether the address itself is at fault, and not what happened there: 422 rather than a failed download.
    pub fn is_refused_address(&self) -> bool {
        matches!(self, Self::InvalidUrl { .. } | Self::NotPublic { .. })
    }
}
