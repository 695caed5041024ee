//! Addresses of pictures: relative or under the public URL, and signed ones that need no key for a while.

use axum::http::{HeaderMap, header};
use jiff::Timestamp;
use serde::Deserialize;
use utoipa::IntoParams;

use super::error::ApiError;
use crate::config::ServerConfig;
use crate::outbound::Secret;
use crate::outbound::signature::{LinkError, signed_path, verify_path};
use crate::task::ImageId;

/// How long a signed address works, seconds.
pub(super) const SIGNED_SECONDS: i64 = 3600;

/// Where a client finds pictures.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Addresses {
    /// The public URL without a slash at its end; empty for relative addresses.
    public: String,
    /// What to put before absolute addresses.
    absolute: String,
}

impl Addresses {
    pub(super) fn new(server: &ServerConfig, headers: &HeaderMap) -> Self {
        let public = server.public_url.as_deref().unwrap_or_default().trim_end_matches('/').to_owned();
        let absolute = if public.is_empty() {
            let scheme = if server.tls_cert.is_some() { "https" } else { "http" };
            format!(
                "{scheme}://{}",
                host(headers).unwrap_or_else(|| format!("{}:{}", server.host, server.port))
            )
        } else {
            public.clone()
        };
        Self { public, absolute }
    }

    /// `/v1/images/{id}`, under the public URL where there is one.
    pub(super) fn image(&self, id: &ImageId) -> String {
        format!("{}{}", self.public, path(id))
    }

    /// An absolute address that works without a key for [`SIGNED_SECONDS`].
    pub(super) fn signed_image(&self, id: &ImageId, secret: &Secret, now: Timestamp) -> String {
        let expires = now.as_second().saturating_add(SIGNED_SECONDS);
        format!("{}{}", self.absolute, signed_path(secret, &path(id), expires))
    }
}

fn path(id: &ImageId) -> String {
    format!("/v1/images/{id}")
}

/// The Host header, where it is one: letters, digits, dots, dashes, colons and brackets.
fn host(headers: &HeaderMap) -> Option<String> {
    let host = headers.get(header::HOST)?.to_str().ok()?;
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | ':' | '[' | ']' | '_');
    (!host.is_empty() && host.len() <= 255 && host.chars().all(plain)).then(|| host.to_owned())
}

/// The part of an address that stands for a key.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct Signature {
    /// Of a signed address: when it stops working, seconds since 1970.
    pub(super) expires: Option<i64>,
    /// Of a signed address: hexadecimal HMAC-SHA256.
    pub(super) signature: Option<String>,
}

impl Signature {
    /// Whether the address claims to be signed.
    pub(super) fn is_given(&self) -> bool {
        self.signature.is_some()
    }

    /// Refuses an address that is not signed by this server for this picture, or no longer.
    pub(super) fn check(&self, id: &ImageId, secret: &Secret, now: Timestamp) -> Result<(), ApiError> {
        let (Some(expires), Some(signature)) = (self.expires, &self.signature) else {
            return Err(ApiError::forbidden("a signed address has both expires and signature"));
        };
        verify_path(secret, &path(id), expires, signature, now).map_err(|error| match error {
            LinkError::Mismatch => ApiError::forbidden(error.to_string()),
            LinkError::Expired => ApiError::forbidden(error.to_string()).hint("ask for the task again"),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::task::{TaskId, TaskKind};

    fn image() -> ImageId {
        TaskId::new(TaskKind::Images).image(0)
    }

    fn secret(text: &str) -> Secret {
        Secret::new(&text.repeat(32), "the test").unwrap()
    }

    fn signature_of(url: &str) -> Signature {
        let query = url.split_once('?').unwrap().1;
        let field = |name: &str| {
            query.split('&').find_map(|pair| pair.strip_prefix(name)?.strip_prefix('=').map(str::to_owned))
        };
        Signature { expires: field("expires").map(|n| n.parse().unwrap()), signature: field("signature") }
    }

    #[test]
    fn a_signed_address_works_for_its_picture_until_it_expires() {
        let (id, now) = (image(), Timestamp::now());
        let addresses = Addresses::new(&ServerConfig::default(), &HeaderMap::new());
        let signature = signature_of(&addresses.signed_image(&id, &secret("a"), now));
        assert_eq!(signature.check(&id, &secret("a"), now), Ok(()));
        let status = |result: Result<(), ApiError>| result.unwrap_err().status().as_u16();
        let later = now + jiff::SignedDuration::from_secs(SIGNED_SECONDS);
        assert_eq!(status(signature.check(&id, &secret("a"), later)), 403);
        assert_eq!(status(signature.check(&image(), &secret("a"), now)), 403);
        assert_eq!(status(signature.check(&id, &secret("b"), now)), 403);
        let longer = Signature { expires: signature.expires.map(|at| at + 1), ..signature.clone() };
        assert_eq!(status(longer.check(&id, &secret("a"), now)), 403);
        let none = Signature { expires: None, ..signature };
        assert_eq!(status(none.check(&id, &secret("a"), now)), 403);
    }

    #[test]
    fn pictures_are_under_the_public_url_or_relative() {
        let id = image();
        let mut server = ServerConfig::default();
        assert_eq!(Addresses::new(&server, &HeaderMap::new()).image(&id), format!("/v1/images/{id}"));
        server.public_url = Some("https://pictures.example.com/".into());
        let addresses = Addresses::new(&server, &HeaderMap::new());
        assert_eq!(addresses.image(&id), format!("https://pictures.example.com/v1/images/{id}"));
    }

    #[test]
    fn an_absolute_address_takes_the_host_that_the_client_used_unless_it_is_none() {
        let mut headers = HeaderMap::new();
        headers.insert(header::HOST, "box.local:9000".parse().unwrap());
        let of = |headers: &HeaderMap| Addresses::new(&ServerConfig::default(), headers).absolute;
        assert_eq!(of(&headers), "http://box.local:9000");
        headers.insert(header::HOST, "a/b@c".parse().unwrap());
        assert_eq!(of(&headers), "http://127.0.0.1:8188");
    }
}
