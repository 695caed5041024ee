//! `GET /v1/images/{id}`: stored pictures, whole, in part or small.

use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use jiff::Timestamp;
use serde::Deserialize;
use utoipa::{IntoParams, ToSchema};

use crate::http::addresses::Signature;
use crate::http::app::App;
use crate::http::auth::Client;
use crate::http::error::ApiError;
use crate::http::extract::{Id, Params, flag};
use crate::http::range::{self, Part};
use crate::picture::{ReadLimits, thumbnail};
use crate::service::StoredImage;
use crate::task::ImageId;

/// Widths of thumbnails, pixels.
const WIDTHS: std::ops::RangeInclusive<u32> = 16..=2048;
/// A stored picture never changes, and is its owner's alone.
const CACHE: &str = "private, max-age=31536000, immutable";

#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct FileParams {
    /// A thumbnail of this width, 16 to 2048 pixels; never larger than the picture.
    #[param(minimum = 16, maximum = 2048)]
    width: Option<u32>,
    /// Have browsers save it.
    #[serde(default, deserialize_with = "flag")]
    #[param(value_type = Option<bool>)]
    download: bool,
}

/// The bytes of a file. Only described: what is sent is [`Sent`].
#[derive(ToSchema)]
#[schema(value_type = String, format = Binary)]
#[expect(dead_code, reason = "described, not made")]
struct FileBody(Vec<u8>);

/// A file to send.
struct Sent {
    bytes: Bytes,
    mime: HeaderValue,
    etag: String,
    /// Name to save it by.
    name: Option<String>,
}

/// Sends a stored picture.
///
/// A signed address (`expires` and `signature`) needs no key. Parts are sent on `Range`, and nothing on a matching
/// `If-None-Match`.
#[utoipa::path(
    get,
    path = "/v1/images/{id}",
    tag = "images",
    params(("id" = String, Path, description = "The picture's id"), FileParams, Signature),
    responses(
        (status = 200, description = "The picture", content(
            (FileBody = "image/png"), (FileBody = "image/webp"), (FileBody = "image/jpeg")
        )),
        (status = 206, description = "The part that was asked for"),
        (status = 304, description = "The client has it already"),
        (status = 416, body = crate::http::error::ErrorBody, description = "The picture has no such part")
    )
)]
pub(super) async fn fetch(
    State(app): State<App>,
    client: Option<Client>,
    Id(id): Id<ImageId>,
    Params(params): Params<FileParams>,
    Params(signature): Params<Signature>,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    check_width(params.width)?;
    let stored = if signature.is_given() {
        signature.check(&id, app.service.link_secret(), Timestamp::now())?;
        app.service.image_by_signature(&id).await?
    } else {
        let client =
            client.ok_or_else(|| ApiError::unauthorized("this needs an API key or a signed address"))?;
        app.service.image(&client.owner, &id).await?
    };
    let name = params.download.then(|| format!("{id}.{}", stored.image.format.extension()));
    let sent = match params.width {
        Some(width) if (width as usize) < stored.image.width => {
            let etag = format!("\"{id}-w{width}\"");
            // Known without making it again.
            if range::is_known(&headers, &etag) {
                return Ok(not_modified(&etag));
            }
            small(&app, stored, width, etag, name).await?
        }
        _ => whole(&stored, format!("\"{id}\""), name),
    };
    send(&headers, sent)
}

fn check_width(width: Option<u32>) -> Result<(), ApiError> {
    match width {
        Some(width) if !WIDTHS.contains(&width) => Err(ApiError::invalid(
            "width",
            format!("is {width}, must be {} to {}", WIDTHS.start(), WIDTHS.end()),
        )),
        _ => Ok(()),
    }
}

fn whole(stored: &StoredImage, etag: String, name: Option<String>) -> Sent {
    let mime = HeaderValue::from_static(stored.image.format.mime());
    Sent { bytes: stored.bytes.clone(), mime, etag, name }
}

async fn small(
    app: &App,
    stored: StoredImage,
    width: u32,
    etag: String,
    name: Option<String>,
) -> Result<Sent, ApiError> {
    let id = stored.image.id.clone();
    let made = app.picture_work(move || thumbnail(&stored.bytes, width, &ReadLimits::default())).await?;
    let (bytes, mime) =
        made.map_err(|error| ApiError::internal(&format!("thumbnail of picture {id}: {error}")))?;
    // A thumbnail may be of another format than its picture.
    let extension = mime.rsplit('/').next().unwrap_or("img");
    let name = name.map(|_| format!("{id}-{width}.{extension}"));
    Ok(Sent { bytes: bytes.into(), mime: HeaderValue::from_static(mime), etag, name })
}

fn send(headers: &HeaderMap, sent: Sent) -> Result<Response, ApiError> {
    if range::is_known(headers, &sent.etag) {
        return Ok(not_modified(&sent.etag));
    }
    let length = sent.bytes.len();
    let (status, bytes, content_range) = match range::part(headers, &sent.etag, length) {
        Part::Whole => (StatusCode::OK, sent.bytes, None),
        Part::Bytes { from, to } => {
            let content_range = format!("bytes {from}-{to}/{length}");
            (StatusCode::PARTIAL_CONTENT, sent.bytes.slice(from..=to), Some(content_range))
        }
        Part::Unsatisfiable => {
            let status = StatusCode::RANGE_NOT_SATISFIABLE;
            let error =
                ApiError::new(status, "range_not_satisfiable", format!("the file has {length} bytes"));
            let all = text(format!("bytes */{length}"));
            return Err(error.with_header(header::CONTENT_RANGE, all));
        }
    };
    let mut response = (status, Body::from(bytes)).into_response();
    let mut set = |name: HeaderName, value: HeaderValue| response.headers_mut().insert(name, value);
    set(header::CONTENT_TYPE, sent.mime);
    set(header::ETAG, text(sent.etag));
    set(header::CACHE_CONTROL, HeaderValue::from_static(CACHE));
    set(header::ACCEPT_RANGES, HeaderValue::from_static("bytes"));
    if let Some(content_range) = content_range {
        set(header::CONTENT_RANGE, text(content_range));
    }
    if let Some(name) = sent.name {
        set(header::CONTENT_DISPOSITION, text(format!("attachment; filename=\"{name}\"")));
    }
    Ok(response)
}

fn not_modified(etag: &str) -> Response {
    let mut response = StatusCode::NOT_MODIFIED.into_response();
    response.headers_mut().insert(header::ETAG, text(etag.to_owned()));
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static(CACHE));
    response
}

/// A header's value of ids and numbers, which are always plain.
fn text(value: String) -> HeaderValue {
    HeaderValue::try_from(value).unwrap_or(HeaderValue::from_static(""))
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt;

    use super::*;

    async fn ask(headers: &[(HeaderName, &'static str)], name: Option<&str>) -> (u16, HeaderMap, Bytes) {
        let headers: HeaderMap =
            headers.iter().map(|(name, value)| (name.clone(), HeaderValue::from_static(value))).collect();
        let sent = Sent {
            bytes: Bytes::from_static(b"0123456789"),
            mime: HeaderValue::from_static("image/png"),
            etag: "\"e\"".into(),
            name: name.map(str::to_owned),
        };
        let response = send(&headers, sent).unwrap_or_else(IntoResponse::into_response);
        let (parts, body) = response.into_parts();
        (parts.status.as_u16(), parts.headers, body.collect().await.unwrap().to_bytes())
    }

    #[tokio::test]
    async fn a_picture_is_sent_whole_with_its_version() {
        let (status, headers, bytes) = ask(&[], None).await;
        assert_eq!((status, bytes.as_ref()), (200, b"0123456789".as_ref()));
        assert_eq!(
            (&headers["etag"], &headers["content-type"]),
            (&"\"e\"".parse().unwrap(), &"image/png".parse().unwrap())
        );
        assert_eq!(headers["cache-control"], CACHE);
        assert_eq!(headers["accept-ranges"], "bytes");
        assert!(!headers.contains_key("content-disposition"));
    }

    #[tokio::test]
    async fn a_part_is_206_and_a_part_behind_the_end_416() {
        let (status, headers, bytes) = ask(&[(header::RANGE, "bytes=-3")], None).await;
        assert_eq!((status, bytes.as_ref()), (206, b"789".as_ref()));
        assert_eq!(headers["content-range"], "bytes 7-9/10");
        let (status, headers, _) = ask(&[(header::RANGE, "bytes=10-")], None).await;
        assert_eq!((status, headers["content-range"].to_str().unwrap()), (416, "bytes */10"));
    }

    #[tokio::test]
    async fn a_known_version_is_304_without_a_body() {
        let (status, headers, bytes) =
            ask(&[(header::IF_NONE_MATCH, "\"e\""), (header::RANGE, "bytes=0-1")], None).await;
        assert_eq!((status, bytes.len()), (304, 0));
        assert_eq!(headers["etag"], "\"e\"");
    }

    #[tokio::test]
    async fn a_download_has_a_name() {
        let (_, headers, _) = ask(&[], Some("a.png")).await;
        assert_eq!(headers["content-disposition"], "attachment; filename=\"a.png\"");
    }

    #[test]
    fn a_thumbnail_is_16_to_2048_wide() {
        assert!(
            check_width(None).is_ok() && check_width(Some(16)).is_ok() && check_width(Some(2048)).is_ok()
        );
        for wrong in [0, 15, 2049] {
            assert_eq!(check_width(Some(wrong)).unwrap_err().detail().field.as_deref(), Some("width"));
        }
    }
}
