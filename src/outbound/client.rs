//! The one HTTP client for addresses that clients choose: checks each hop, follows few redirects, reads bounded
//! bodies, gives up in time.

use std::error::Error as _;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use jiff::Timestamp;
use reqwest::header::{ACCEPT, CONTENT_TYPE, HeaderMap, HeaderValue, LOCATION, RETRY_AFTER};
use reqwest::{Method, Response, StatusCode};
use tokio::sync::Semaphore;
use url::{Host, Url};

use super::address::AddressPolicy;
use super::lookup::{CheckedResolver, Lookup, NoPublicAddress, SystemLookup};
use super::signature::{DELIVERY_HEADER, EVENT_HEADER, SIGNATURE_HEADER, sign_webhook};
use super::{OutboundError, Secret};
use crate::config::OutboundConfig;

/// Most bytes of a URL.
const MAX_URL_BYTES: usize = 2048;
/// Downloads at once; more wait, within their own timeout. Bounds what they hold in memory.
const MAX_DOWNLOADS: usize = 8;
/// Longest `outbound.timeout`, seconds.
const MAX_TIMEOUT: f64 = 3600.0;
/// Seconds that an unused connection is kept.
const IDLE_SECONDS: u64 = 30;

/// Makes the server's own requests; cheap to clone.
#[derive(Clone)]
pub struct Client {
    inner: Arc<Inner>,
}

struct Inner {
    http: reqwest::Client,
    policy: Arc<AddressPolicy>,
    timeout: Duration,
    max_redirects: usize,
    downloads: Semaphore,
}

/// A request before it has an address.
struct Outgoing {
    method: Method,
    headers: HeaderMap,
    body: Bytes,
}

impl Client {
    /// A client within `config`, which asks the operating system for names.
    pub fn new(config: &OutboundConfig) -> Result<Self, OutboundError> {
        Self::with_lookup(config, SystemLookup)
    }

    /// The same with names found by `lookup`; what it finds is checked all the same.
    pub fn with_lookup(config: &OutboundConfig, lookup: impl Lookup) -> Result<Self, OutboundError> {
        let lookup: Arc<dyn Lookup> = Arc::new(lookup);
        let policy = Arc::new(AddressPolicy::new(&config.allow_networks)?);
        let timeout = Some(config.timeout)
            .filter(|&seconds| seconds > 0.0 && seconds <= MAX_TIMEOUT)
            .and_then(|seconds| Duration::try_from_secs_f64(seconds).ok())
            .ok_or_else(|| OutboundError::Config {
                setting: "timeout",
                value: config.timeout.to_string(),
                reason: format!("not a time; write seconds, more than 0 and at most {MAX_TIMEOUT}"),
            })?;
        // reqwest takes the process's TLS provider. An error means that there is one already: just as well.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let builder = || {
            reqwest::Client::builder()
                .user_agent(concat!("darkroom/", env!("CARGO_PKG_VERSION")))
                // A proxy would look up names itself, unchecked.
                .no_proxy()
                .redirect(reqwest::redirect::Policy::none())
                .referer(false)
                .dns_resolver(CheckedResolver::new(Arc::clone(&lookup), Arc::clone(&policy)))
                .pool_idle_timeout(Duration::from_secs(IDLE_SECONDS))
                .pool_max_idle_per_host(1)
        };
        let http = builder().build().or_else(|error| {
            // Minimal containers have no certificates of authorities. Plain HTTP still works there.
            tracing::warn!(
                error = %chain(&error),
                "no certificate authorities on this system: https:// URLs of webhooks and pictures will fail"
            );
            builder()
                .tls_certs_only([])
                .build()
                .map_err(|error| OutboundError::Setup { reason: chain(&error) })
        })?;
        let inner = Inner {
            http,
            policy,
            timeout,
            max_redirects: config.max_redirects,
            downloads: Semaphore::new(MAX_DOWNLOADS),
        };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// What can be said about an address without asking anyone: it is `http` or `https`, holds no credentials, and
    /// its host, if it is a number in whatever spelling, may be asked. Names are judged when they are resolved.
    pub fn check_url(&self, text: &str) -> Result<Url, OutboundError> {
        // Before parsing, which takes time and memory by length; and after, as escapes make it longer.
        check_length(text)?;
        let url = Url::parse(text).map_err(|error| invalid(error.to_string()))?;
        self.checked(url)
    }

    /// The body at `url`, for source pictures: at most `max_bytes`, within the configured time.
    pub async fn download(&self, url: &Url, max_bytes: usize) -> Result<Bytes, OutboundError> {
        let headers = HeaderMap::from_iter([(ACCEPT, HeaderValue::from_static("image/*"))]);
        let request = Outgoing { method: Method::GET, headers, body: Bytes::new() };
        self.in_time(url, async {
            // The semaphore is never closed.
            let _place = self.inner.downloads.acquire().await.ok();
            let response = successful(self.send(url, &request).await?)?;
            read(response, max_bytes).await
        })
        .await
    }

    /// Posts `body`, JSON, signed at `now`. `Ok` if the receiver answers 2xx; of its answer nothing else is read.
    /// Follows 307 and 308 only, as other redirects would not carry the body.
    pub async fn post_webhook(
        &self,
        url: &Url,
        delivery_id: &str,
        event: &str,
        body: Bytes,
        secret: &Secret,
        now: Timestamp,
    ) -> Result<(), OutboundError> {
        let value = |text: &str| {
            HeaderValue::from_str(text)
                .map_err(|_| invalid(format!("'{}' is no header", text.escape_debug())))
        };
        let mut headers = HeaderMap::new();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        for (name, text) in [
            (SIGNATURE_HEADER, sign_webhook(secret, now, &body).as_str()),
            (DELIVERY_HEADER, delivery_id),
            (EVENT_HEADER, event),
        ] {
            headers.insert(
                reqwest::header::HeaderName::from_bytes(name.as_bytes())
                    .map_err(|error| invalid(error.to_string()))?,
                value(text)?,
            );
        }
        let request = Outgoing { method: Method::POST, headers, body };
        self.in_time(url, async {
            successful(self.send(url, &request).await?)?;
            Ok(())
        })
        .await
    }

    /// The longest that one request takes, all its redirects included.
    pub(super) fn timeout(&self) -> Duration {
        self.inner.timeout
    }

    async fn in_time<T>(
        &self,
        url: &Url,
        work: impl Future<Output = Result<T, OutboundError>>,
    ) -> Result<T, OutboundError> {
        tokio::time::timeout(self.inner.timeout, work).await.unwrap_or_else(|_| {
            Err(OutboundError::Timeout { host: host_of(url), seconds: self.inner.timeout.as_secs_f64() })
        })
    }

    /// Asks `url` and follows its redirects, each checked like the first.
    async fn send(&self, url: &Url, request: &Outgoing) -> Result<Response, OutboundError> {
        let mut url = self.checked(url.clone())?;
        for _ in 0..=self.inner.max_redirects {
            let response = self
                .inner
                .http
                .request(request.method.clone(), url.clone())
                .headers(request.headers.clone())
                .body(request.body.clone())
                .send()
                .await
                .map_err(|error| failure(&url, error))?;
            let Some(next) = redirect(&request.method, &response) else { return Ok(response) };
            url = self.next_hop(&url, next)?;
        }
        let reason = format!("no more than {} redirects are followed", self.inner.max_redirects);
        Err(OutboundError::Redirect { host: host_of(&url), reason })
    }

    fn next_hop(&self, from: &Url, location: &HeaderValue) -> Result<Url, OutboundError> {
        let refused = |reason: String| OutboundError::Redirect { host: host_of(from), reason };
        let location = location.to_str().map_err(|_| refused("its Location is not text".into()))?;
        check_length(location).map_err(|error| refused(error.to_string()))?;
        let next =
            from.join(location).map_err(|error| refused(format!("its Location is no URL: {error}")))?;
        if from.scheme() == "https" && next.scheme() == "http" {
            return Err(refused("from https to http none is followed".into()));
        }
        self.checked(next).map_err(|error| refused(error.to_string()))
    }

    fn checked(&self, mut url: Url) -> Result<Url, OutboundError> {
        url.set_fragment(None);
        check_length(url.as_str())?;
        if !matches!(url.scheme(), "http" | "https") {
            return Err(invalid("it must begin with http:// or https://".into()));
        }
        if !url.username().is_empty() || url.password().is_some() {
            return Err(invalid("it must not hold a user name or password".into()));
        }
        let permits = |address: IpAddr| self.inner.policy.permits(address);
        let permitted = match url.host() {
            Some(Host::Ipv4(address)) => permits(address.into()),
            Some(Host::Ipv6(address)) => permits(address.into()),
            Some(Host::Domain(name)) if is_localhost(name) => {
                permits(Ipv4Addr::LOCALHOST.into()) || permits(Ipv6Addr::LOCALHOST.into())
            }
            Some(Host::Domain(_)) => true,
            None => return Err(invalid("it names no host".into())),
        };
        if permitted { Ok(url) } else { Err(OutboundError::NotPublic { host: host_of(&url) }) }
    }
}

fn invalid(reason: String) -> OutboundError {
    OutboundError::InvalidUrl { reason }
}

fn check_length(url: &str) -> Result<(), OutboundError> {
    if url.len() > MAX_URL_BYTES {
        return Err(invalid(format!("it is {} bytes long; at most {MAX_URL_BYTES} are accepted", url.len())));
    }
    Ok(())
}

/// Names that mean this machine wherever they are asked (RFC 6761).
fn is_localhost(name: &str) -> bool {
    let name = name.strip_suffix('.').unwrap_or(name);
    name == "localhost" || name.ends_with(".localhost")
}

fn host_of(url: &Url) -> String {
    url.host_str().unwrap_or_default().to_owned()
}

/// Where `response` sends a request of this method, if it may follow.
fn redirect<'a>(method: &Method, response: &'a Response) -> Option<&'a HeaderValue> {
    let follows = match response.status() {
        StatusCode::TEMPORARY_REDIRECT | StatusCode::PERMANENT_REDIRECT => true,
        StatusCode::MOVED_PERMANENTLY | StatusCode::FOUND | StatusCode::SEE_OTHER => *method == Method::GET,
        _ => false,
    };
    response.headers().get(LOCATION).filter(|_| follows)
}

fn successful(response: Response) -> Result<Response, OutboundError> {
    let status = response.status();
    if status.is_success() {
        return Ok(response);
    }
    Err(OutboundError::Status {
        host: host_of(response.url()),
        status: status.as_u16(),
        retry_after: response
            .headers()
            .get(RETRY_AFTER)
            .and_then(|value| retry_after(value.to_str().ok()?, Timestamp::now())),
    })
}

/// A `Retry-After` header (RFC 9110, 10.2.3): seconds, or a date.
fn retry_after(value: &str, now: Timestamp) -> Option<Duration> {
    let value = value.trim();
    if let Ok(seconds) = value.parse() {
        return Some(Duration::from_secs(seconds));
    }
    let date = jiff::fmt::rfc2822::DateTimeParser::new().parse_timestamp(value).ok()?;
    Some(Duration::try_from(date.duration_since(now)).unwrap_or_default())
}

async fn read(mut response: Response, max_bytes: usize) -> Result<Bytes, OutboundError> {
    let too_large = |url: &Url| OutboundError::TooLarge { host: host_of(url), limit: max_bytes };
    let announced = response.content_length().unwrap_or(0);
    let Some(announced) = usize::try_from(announced).ok().filter(|&bytes| bytes <= max_bytes) else {
        return Err(too_large(response.url()));
    };
    let mut body = BytesMut::with_capacity(announced);
    let url = response.url().clone();
    while let Some(chunk) = response.chunk().await.map_err(|error| failure(&url, error))? {
        if chunk.len() > max_bytes - body.len() {
            return Err(too_large(&url));
        }
        body.extend_from_slice(&chunk);
    }
    Ok(body.freeze())
}

fn failure(url: &Url, error: reqwest::Error) -> OutboundError {
    let host = host_of(url);
    let mut cause = error.source();
    while let Some(inner) = cause {
        if inner.is::<NoPublicAddress>() {
            return OutboundError::NotPublic { host };
        }
        cause = inner.source();
    }
    OutboundError::Unreachable { host, reason: chain(&error.without_url()) }
}

/// What stands at the end of the chain: `connection refused` rather than `error sending request`.
pub(crate) fn innermost(error: &dyn std::error::Error) -> String {
    let mut last = error;
    while let Some(cause) = last.source() {
        last = cause;
    }
    last.to_string()
}

/// An error and its causes in one line.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        let inner_text = inner.to_string();
        if !text.ends_with(&inner_text) {
            text = format!("{text}: {inner_text}");
        }
        cause = inner.source();
    }
    text
}

#[cfg(test)]
#[path = "client_tests.rs"]
mod tests;
