//! What all routes about files share: where files are, how they are sent, and ComfyUI's way of refusing: a status and
//! at most a plain sentence.

use std::io;
use std::path::Path;

use axum::body::{Body, Bytes};
use axum::extract::FromRequestParts;
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use futures_util::stream;
use jiff::Timestamp;
use tokio::io::{AsyncReadExt, AsyncSeekExt};
use utoipa::IntoResponses;

use crate::http::app::App;
use crate::http::error::ApiError;
use crate::http::range::{self, Part};
use crate::workflow::Folders;
use crate::workflow::folders::{FileError, NameError};

/// Bytes of a file that are read at once.
const CHUNK: usize = 1 << 16;

/// What the routes about files work with.
pub(super) struct Files {
    pub(super) app: App,
    pub(super) folders: Folders,
}

impl FromRequestParts<App> for Files {
    type Rejection = ApiError;

    async fn from_request_parts(_: &mut Parts, app: &App) -> Result<Self, ApiError> {
        Ok(Self { app: app.clone(), folders: app.comfy()?.workflows.folders.clone() })
    }
}

impl Files {
    /// Most bytes of a request's body.
    pub(super) fn body_bytes(&self) -> usize {
        self.app.config.comfy.max_upload_bytes
    }

    /// Runs work on files beside the server's own threads.
    pub(super) async fn work<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Folders) -> Result<T, Refusal> + Send + 'static,
    ) -> Result<T, Refusal> {
        let folders = self.folders.clone();
        let done = tokio::task::spawn_blocking(move || work(&folders)).await;
        done.unwrap_or_else(|error| Err(Refusal::defect(&error)))
    }

    /// The same for work that decodes pictures: only a few do at once.
    pub(super) async fn picture_work<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Folders) -> Result<T, Refusal> + Send + 'static,
    ) -> Result<T, Refusal> {
        let folders = self.folders.clone();
        let done = self.app.picture_work(move || work(&folders)).await;
        // What went wrong is in the log already.
        done.unwrap_or_else(|error| Err(Refusal::of(error.status())))
    }
}

/// What every route about files may refuse with, for the description.
#[derive(IntoResponses)]
#[expect(dead_code, reason = "described, not made")]
pub(super) enum Refusals {
    /// The request cannot be read, or a name is refused
    #[response(status = 400, content_type = "text/plain")]
    Bad(String),
    /// The name leads outside
    #[response(status = 403, content_type = "text/plain")]
    Outside(String),
    /// There is no such file
    #[response(status = 404, content_type = "text/plain")]
    Missing(String),
    /// The body has more bytes than `comfy.max_upload_bytes`
    #[response(status = 413, content_type = "text/plain")]
    TooLarge(String),
}

/// A status with at most a sentence.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Refusal(pub(super) StatusCode, pub(super) String);

impl Refusal {
    /// Of a status alone.
    pub(super) fn of(status: StatusCode) -> Self {
        Self(status, String::new())
    }

    /// 400 with a sentence.
    pub(super) fn bad(message: impl Into<String>) -> Self {
        Self(StatusCode::BAD_REQUEST, message.into())
    }

    /// 500: what went wrong is for the log alone.
    pub(super) fn defect(what: &dyn std::fmt::Display) -> Self {
        tracing::error!("a request about files failed: {what}");
        Self::of(StatusCode::INTERNAL_SERVER_ERROR)
    }
}

impl From<FileError> for Refusal {
    fn from(error: FileError) -> Self {
        let status = match error {
            FileError::Name(NameError::Outside) | FileError::Outside => StatusCode::FORBIDDEN,
            FileError::Missing => return Self::of(StatusCode::NOT_FOUND),
            FileError::Io(error) => return Self::defect(&error),
            _ => StatusCode::BAD_REQUEST,
        };
        Self(status, error.to_string())
    }
}

impl From<io::Error> for Refusal {
    fn from(error: io::Error) -> Self {
        FileError::from(error).into()
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        (self.0, self.1).into_response()
    }
}

/// The media type of a file by its name, as Python's `mimetypes` guesses.
pub(super) fn media_type(name: &str) -> &'static str {
    let extension = name.rsplit_once('.').map_or("", |(_, extension)| extension).to_ascii_lowercase();
    match &*extension {
        "png" | "apng" => "image/png",
        "jpg" | "jpeg" | "jpe" => "image/jpeg",
        "webp" => "image/webp",
        "gif" => "image/gif",
        "bmp" => "image/bmp",
        "avif" => "image/avif",
        "svg" => "image/svg+xml",
        "ico" => "image/vnd.microsoft.icon",
        "tif" | "tiff" => "image/tiff",
        "json" | "map" => "application/json",
        "js" | "mjs" => "text/javascript",
        "css" => "text/css",
        "html" | "htm" => "text/html",
        "xhtml" => "application/xhtml+xml",
        "xml" => "text/xml",
        "txt" | "log" => "text/plain",
        "md" => "text/markdown",
        "csv" => "text/csv",
        "pdf" => "application/pdf",
        "zip" => "application/zip",
        "wasm" => "application/wasm",
        "woff" => "font/woff",
        "woff2" => "font/woff2",
        "ttf" => "font/ttf",
        "mp4" => "video/mp4",
        "webm" => "video/webm",
        "mov" => "video/quicktime",
        "mkv" => "video/x-matroska",
        "mp3" => "audio/mpeg",
        "wav" => "audio/x-wav",
        "ogg" => "audio/ogg",
        "flac" => "audio/flac",
        "opus" => "audio/opus",
        _ => "application/octet-stream",
    }
}

/// The media type to send a file with that a client put there: what a browser would run is a download.
pub(super) fn harmless_media_type(name: &str) -> &'static str {
    match media_type(name) {
        "text/html" | "application/xhtml+xml" | "text/javascript" | "text/css" => "application/octet-stream",
        other => other,
    }
}

/// `filename="…"`, as ComfyUI writes it, with what would end it early escaped.
pub(super) fn disposition(name: &str) -> Option<HeaderValue> {
    let name: String = name.chars().filter(|c| !c.is_control()).collect();
    let escaped = name.replace('\\', "\\\\").replace('"', "\\\"");
    HeaderValue::from_bytes(format!("filename=\"{escaped}\"").as_bytes()).ok()
}

/// Sends a file, or the part of it that is asked for, as it is read.
pub(super) async fn send(
    request: &HeaderMap,
    path: &Path,
    media_type: &'static str,
    more: impl IntoIterator<Item = (HeaderName, HeaderValue)>,
) -> Result<Response, Refusal> {
    let mut file = tokio::fs::File::open(path).await?;
    let metadata = file.metadata().await?;
    if !metadata.is_file() {
        return Err(Refusal::of(StatusCode::NOT_FOUND));
    }
    let length = metadata.len();
    let since = metadata.modified().ok().and_then(|modified| Timestamp::try_from(modified).ok());
    let etag = format!("\"{:x}-{length:x}\"", since.map_or(0, Timestamp::as_nanosecond));
    let mut headers = HeaderMap::new();
    headers.extend(more);
    headers.insert(header::ACCEPT_RANGES, HeaderValue::from_static("bytes"));
    if let Ok(etag) = HeaderValue::try_from(&etag) {
        headers.insert(header::ETAG, etag);
    }
    let date = since.map(|since| since.strftime("%a, %d %b %Y %H:%M:%S GMT").to_string());
    if let Some(date) = date.and_then(|date| HeaderValue::try_from(date).ok()) {
        headers.insert(header::LAST_MODIFIED, date);
    }
    if range::is_known(request, &etag) {
        return Ok((StatusCode::NOT_MODIFIED, headers).into_response());
    }
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(media_type));
    let whole = usize::try_from(length).unwrap_or(usize::MAX);
    let (status, from, length) = match range::part(request, &etag, whole) {
        Part::Whole => (StatusCode::OK, 0, length),
        Part::Bytes { from, to } => {
            let range = format!("bytes {from}-{to}/{length}");
            if let Ok(range) = HeaderValue::try_from(range) {
                headers.insert(header::CONTENT_RANGE, range);
            }
            (StatusCode::PARTIAL_CONTENT, from as u64, (to - from) as u64 + 1)
        }
        Part::Unsatisfiable => {
            let range = [(header::CONTENT_RANGE, format!("bytes */{length}"))];
            return Ok((StatusCode::RANGE_NOT_SATISFIABLE, range).into_response());
        }
    };
    if from > 0 {
        file.seek(io::SeekFrom::Start(from)).await?;
    }
    headers.insert(header::CONTENT_LENGTH, HeaderValue::from(length));
    Ok((status, headers, Body::from_stream(read(file, length))).into_response())
}

/// So many bytes of a file. One that is cut meanwhile ends the answer.
fn read(file: tokio::fs::File, length: u64) -> impl futures_util::Stream<Item = io::Result<Bytes>> {
    stream::try_unfold((file, length), |(mut file, left)| async move {
        if left == 0 {
            return Ok(None);
        }
        let mut chunk = vec![0; CHUNK.min(usize::try_from(left).unwrap_or(CHUNK))];
        let read = file.read(&mut chunk).await?;
        if read == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        chunk.truncate(read);
        Ok(Some((Bytes::from(chunk), (file, left - read as u64))))
    })
}

/// A name once more without `%` escapes; what does not read as UTF-8 is none.
pub(super) fn unquoted(text: &str) -> Option<String> {
    if !text.contains('%') {
        return Some(text.to_owned());
    }
    let digit = |byte: Option<&u8>| byte.and_then(|byte| char::from(*byte).to_digit(16));
    let bytes = text.as_bytes();
    let mut plain = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while let Some(byte) = bytes.get(at) {
        match (*byte == b'%').then(|| (digit(bytes.get(at + 1)), digit(bytes.get(at + 2)))) {
            Some((Some(high), Some(low))) => {
                plain.push((high * 16 + low) as u8);
                at += 3;
            }
            _ => {
                plain.push(*byte);
                at += 1;
            }
        }
    }
    String::from_utf8(plain).ok()
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt;

    use super::*;

    #[test]
    fn what_a_browser_would_run_is_a_download() {
        for name in ["a.html", "a.HTM", "b.js", "c.mjs", "d.css", "e.xhtml", "noext", "f.safetensors"] {
            assert_eq!(harmless_media_type(name), "application/octet-stream", "{name}");
        }
        assert_eq!(harmless_media_type("a.b.PNG"), "image/png");
        assert_eq!(harmless_media_type("w.json"), "application/json");
    }

    #[test]
    fn a_name_cannot_end_its_header() {
        let header = disposition("a\"; x=\"b\\\r\nY: é.png").unwrap();
        assert_eq!(header.as_bytes(), "filename=\"a\\\"; x=\\\"b\\\\Y: é.png\"".as_bytes());
    }

    #[test]
    fn names_are_unquoted_once() {
        assert_eq!(unquoted("a%2Fb%20c%"), Some("a/b c%".to_owned()));
        assert_eq!(unquoted("%252e"), Some("%2e".to_owned()));
        assert_eq!(unquoted("%ff"), None);
        assert_eq!(unquoted("%zz%4"), Some("%zz%4".to_owned()));
    }

    #[tokio::test]
    async fn a_file_is_sent_whole_in_part_or_not_again() {
        let folder = tempfile::TempDir::new().unwrap();
        let path = folder.path().join("a");
        let bytes: Vec<u8> = (0..CHUNK * 2 + 100).map(|at| (at % 251) as u8).collect();
        std::fs::write(&path, &bytes).unwrap();
        let ask = async |name: Option<(HeaderName, &str)>| {
            let name = name.map(|(name, value)| (name, HeaderValue::try_from(value).unwrap()));
            let headers: HeaderMap = name.into_iter().collect();
            let (parts, body) = send(&headers, &path, "image/png", []).await.unwrap().into_parts();
            (parts.status.as_u16(), parts.headers, body.collect().await.unwrap().to_bytes())
        };
        let (status, headers, body) = ask(None).await;
        assert_eq!((status, &*body, headers["content-length"].as_bytes()), (200, &*bytes, &b"131172"[..]));
        let etag = headers["etag"].to_str().unwrap();
        assert_eq!(ask(Some((header::IF_NONE_MATCH, etag))).await.0, 304);
        let (status, headers, body) = ask(Some((header::RANGE, "bytes=65530-65540"))).await;
        assert_eq!((status, &*body), (206, &bytes[65_530..=65_540]));
        assert_eq!(headers["content-range"], "bytes 65530-65540/131172");
        assert_eq!(ask(Some((header::RANGE, "bytes=999999-"))).await.0, 416);
        assert!(send(&HeaderMap::new(), folder.path(), "x/y", []).await.is_err());
    }
}
