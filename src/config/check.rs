//! What texts of the configuration must be beyond their type. Each check answers with the end of a sentence that
//! begins with "must be".

use std::net::IpAddr;

use darkroom_models::device::DeviceName;
use url::Url;

type Checked = Result<(), &'static str>;

/// An address to listen on.
pub(super) fn address(text: &str) -> Checked {
    let parsed = text.parse::<IpAddr>();
    parsed.map(drop).map_err(|_| "an IP address, such as 127.0.0.1, 0.0.0.0 or ::1 (no name)")
}

/// Where clients reach the server.
pub(super) fn public_url(text: &str) -> Checked {
    let fits = web(text).is_some_and(|url| url.query().is_none() && url.fragment().is_none());
    if fits { Ok(()) } else { Err("an http:// or https:// address without ? and #") }
}

/// An S3 endpoint.
pub(super) fn endpoint(text: &str) -> Checked {
    web(text).map(drop).ok_or("an http:// or https:// address")
}

/// What a browser calls from, as it says in `Origin`: scheme, host, port, nothing behind.
pub(super) fn origin(text: &str) -> Checked {
    // A browser sends no slash at the end, and would never match one.
    let bare = |url: &Url| url.path() == "/" && !text.ends_with('/') && url.query().is_none();
    if text == "*" || web(text).is_some_and(|url| bare(&url) && url.fragment().is_none()) {
        return Ok(());
    }
    Err("* or an origin without a path, such as https://app.example.com")
}

/// A database.
pub(super) fn database(text: &str) -> Checked {
    let known = ["sqlite:", "postgres://", "postgresql://"];
    if known.iter().any(|scheme| text.starts_with(scheme) && text.len() > scheme.len()) {
        return Ok(());
    }
    Err("sqlite:PATH or postgres://USER:PASSWORD@HOST/DATABASE")
}

/// A store of pictures.
pub(super) fn images(text: &str) -> Checked {
    let fits = match Url::parse(text) {
        Ok(url) if url.scheme() == "s3" => url.host_str().is_some_and(|bucket| !bucket.is_empty()),
        Ok(url) => url.scheme() == "file" && url.to_file_path().is_ok(),
        Err(_) => false,
    };
    if fits { Ok(()) } else { Err("file:///FOLDER or s3://BUCKET/PREFIX") }
}

/// A device.
pub(super) fn device(text: &str) -> Checked {
    text.parse::<DeviceName>().map(|_| ()).map_err(|_| "auto, cpu or cuda:0, cuda:1, …")
}

/// A network in CIDR notation, or one address.
pub(super) fn network(text: &str) -> Checked {
    let (address, bits) = text.split_once('/').map_or((text, None), |(a, b)| (a, Some(b)));
    let most = match address.parse::<IpAddr>() {
        Ok(IpAddr::V4(_)) => 32,
        Ok(IpAddr::V6(_)) => 128,
        Err(_) => return Err("a network or an address, such as 10.1.0.0/16 or ::1"),
    };
    match bits.map(str::parse::<u8>) {
        None => Ok(()),
        Some(Ok(bits)) if bits <= most => Ok(()),
        Some(_) => Err("a network whose part behind the / is 0 to 32 (IPv4) or 0 to 128 (IPv6)"),
    }
}

/// An http or https address with a host, and no user or password in it.
fn web(text: &str) -> Option<Url> {
    let url = Url::parse(text).ok()?;
    let plain = url.username().is_empty() && url.password().is_none() && url.has_host();
    (matches!(url.scheme(), "http" | "https") && plain).then_some(url)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn tells_apart(check: fn(&str) -> Checked, good: &[&str], bad: &[&str]) {
        for text in good {
            assert_eq!(check(text), Ok(()), "{text}");
        }
        for text in bad {
            assert!(check(text).is_err(), "{text}");
        }
    }

    #[test]
    fn addresses_that_cannot_be_meant_are_refused() {
        tells_apart(address, &["127.0.0.1", "::", "0.0.0.0"], &["localhost", "127.0.0.1:80", "", "[::1]"]);
        tells_apart(
            public_url,
            &["https://a.example", "http://a.example:8188/images"],
            &["a.example", "ftp://a.example", "https://", "https://a.example/?x", "https://u:p@a.example"],
        );
        tells_apart(
            origin,
            &["*", "https://a.example", "http://localhost:3000"],
            &["https://a.example/", "https://a.example/app", "a.example", "null"],
        );
        tells_apart(endpoint, &["http://127.0.0.1:9000"], &["127.0.0.1:9000", "s3://bucket"]);
    }

    #[test]
    fn stores_that_do_not_exist_are_refused() {
        tells_apart(
            database,
            &["sqlite:tasks.db", "sqlite::memory:", "postgres://u:p@h/d", "postgresql://h/d"],
            &["mysql://h/d", "tasks.db", "sqlite:", "postgres://"],
        );
        tells_apart(
            images,
            &["file:///var/images", "s3://bucket", "s3://bucket/prefix"],
            &["s3://", "/var/images", "gs://bucket", "file://host/images"],
        );
    }

    #[test]
    fn networks_are_in_cidr_notation() {
        tells_apart(
            network,
            &["10.1.0.0/16", "127.0.0.1", "::1/128", "0.0.0.0/0"],
            &["10.1.0.0/33", "::1/129", "10.1/16", "10.0.0.0/", "example.com", "10.0.0.0/-1"],
        );
    }
}
