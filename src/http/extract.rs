//! What handlers take from a request: a JSON body, query parameters, an id in the path. Each is checked before it
//! is believed, and fails with an [`ApiError`] that says what is wrong and where.

use std::str::FromStr;
use std::time::Duration;

use axum::extract::{FromRequest, FromRequestParts, Path, Query, Request};
use axum::http::request::Parts;
use axum::http::{HeaderMap, StatusCode, header};
use bytes::Bytes;
use http_body_util::{BodyExt, LengthLimitError, Limited};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer};
use sha2::{Digest, Sha256};
use tokio::sync::OwnedSemaphorePermit;

use super::app::App;
use super::error::{ApiError, did_you_mean, shown};
use crate::service::Idempotency;
use crate::task::IdError;

/// Bodies up to this size, bytes, are read at once; larger ones wait for their share of memory.
const SMALL_BODY: usize = 64 << 10;
/// Longest `Idempotency-Key`, bytes.
const IDEMPOTENCY_KEY: usize = 255;

/// A JSON body, and what makes a repeated request the same one.
pub(super) struct Body<T> {
    /// The body as its type.
    pub(super) value: T,
    /// From the header `Idempotency-Key`.
    pub(super) idempotency: Option<Idempotency>,
    /// The memory that a large body was granted; until the request is answered.
    _share: Option<OwnedSemaphorePermit>,
}

impl<T: DeserializeOwned> FromRequest<App> for Body<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, app: &App) -> Result<Self, ApiError> {
        require_json(request.headers())?;
        let key = idempotency_key(request.headers())?;
        let path = request.uri().path().to_owned();
        let (bytes, share) = read_body(request, app).await?;
        let value = parse_json(&bytes)?;
        let idempotency = key.map(|key| Idempotency { key, fingerprint: fingerprint(&path, &bytes) });
        Ok(Self { value, idempotency, _share: share })
    }
}

fn require_json(headers: &HeaderMap) -> Result<(), ApiError> {
    let given = headers.get(header::CONTENT_TYPE).map(|value| value.to_str().unwrap_or_default());
    let essence = given.unwrap_or_default().split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    if essence == "application/json" || (essence.starts_with("application/") && essence.ends_with("+json")) {
        return Ok(());
    }
    let message = match given {
        None => "the request has no Content-Type".to_owned(),
        Some(other) => format!("the Content-Type '{}' is not understood", shown(other)),
    };
    Err(ApiError::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "unsupported_media_type", message)
        .hint("send JSON with the header 'Content-Type: application/json'"))
}

pub(super) async fn read_body(
    request: Request,
    app: &App,
) -> Result<(Bytes, Option<OwnedSemaphorePermit>), ApiError> {
    let limit = app.config.limits.body_bytes;
    let too_large = || {
        ApiError::too_large(format!("the body has more than {limit} bytes"))
            .hint("give large pictures by URL, or make them smaller")
    };
    let declared = request
        .headers()
        .get(header::CONTENT_LENGTH)
        .and_then(|value| value.to_str().ok())
        .and_then(|value| value.parse::<u64>().ok());
    if declared.is_some_and(|bytes| bytes > limit as u64) {
        return Err(too_large());
    }
    let expected = declared.and_then(|bytes| usize::try_from(bytes).ok()).unwrap_or(limit);
    let patience = Duration::from_secs_f64(app.config.server.body_timeout.clamp(0.001, 86_400.0));
    let reading = async {
        let share =
            if expected > SMALL_BODY { Some(app.body_share(expected, patience / 2).await?) } else { None };
        let bytes = Limited::new(request.into_body(), limit).collect().await.map_err(|error| {
            if error.downcast_ref::<LengthLimitError>().is_some() {
                too_large()
            } else {
                ApiError::malformed("the body could not be read to its end")
            }
        })?;
        Ok((bytes.to_bytes(), share))
    };
    tokio::time::timeout(patience, reading).await.unwrap_or_else(|_| {
        Err(ApiError::new(
            StatusCode::REQUEST_TIMEOUT,
            "request_timeout",
            format!("the request's body did not arrive within {} seconds", patience.as_secs_f64()),
        ))
    })
}

/// Reads JSON. Text that is no JSON is 400 with line and column; JSON that is something else than asked for is 422
/// and names the field.
pub(super) fn parse_json<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, ApiError> {
    if bytes.iter().all(u8::is_ascii_whitespace) {
        return Err(ApiError::malformed("the body is empty").hint("send a JSON object"));
    }
    let mut reader = serde_json::Deserializer::from_slice(bytes);
    let value = serde_path_to_error::deserialize(&mut reader)
        .map_err(|error| json_error(&error.path().to_string(), error.inner()))?;
    reader.end().map_err(|error| json_error(".", &error))?;
    Ok(value)
}

fn json_error(path: &str, error: &serde_json::Error) -> ApiError {
    let text = shown_message(&error.to_string());
    if !error.is_data() {
        return ApiError::malformed(format!("the body is not valid JSON: {text}"));
    }
    let refusal = |message: String| ApiError::new(StatusCode::UNPROCESSABLE_ENTITY, "invalid_value", message);
    if let Some((what, word, known)) = unknown_word(&error.to_string()) {
        let near = did_you_mean(&word, known.iter().map(String::as_str));
        let hint = near.or_else(|| (!known.is_empty()).then(|| format!("known: {}", known.join(", "))));
        return if what == "field" {
            let field = path_of(path, &word);
            refusal(format!("there is no field '{field}'")).field(field).maybe_hint(hint)
        } else {
            let path = shown_message(path);
            refusal(format!("{path} cannot be '{}'", shown(&word))).field(path).maybe_hint(hint)
        };
    }
    let path = &shown_message(path);
    if let Some(name) =
        error.to_string().strip_prefix("missing field `").and_then(|rest| rest.split('`').next())
    {
        let field = if path == "." { name.to_owned() } else { format!("{path}.{name}") };
        return refusal(format!("{field} is missing")).field(field);
    }
    if path == "." { refusal(text) } else { refusal(format!("{path}: {text}")).field(path.clone()) }
}

/// Where an unknown field is: the path may name the object that it is in, or the field itself.
fn path_of(path: &str, word: &str) -> String {
    let parent = path.strip_suffix(word).map_or(path, |parent| parent.trim_end_matches('.'));
    match parent {
        "" | "." | "?" => shown(word),
        _ => format!("{}.{}", shown_message(parent), shown(word)),
    }
}

/// Takes serde's "unknown field `a`, expected one of `b`, `c`" apart: (`field` or `variant`, a, [b, c]).
fn unknown_word(message: &str) -> Option<(&'static str, String, Vec<String>)> {
    let (what, rest) = [("field", "unknown field `"), ("variant", "unknown variant `")]
        .into_iter()
        .find_map(|(what, start)| message.strip_prefix(start).map(|rest| (what, rest)))?;
    // A field's name may hold anything; serde's own words come last.
    let (word, expected) =
        rest.rsplit_once("`, expected ").or_else(|| rest.rsplit_once("`, there are no"))?;
    let known = expected.split('`').skip(1).step_by(2).map(str::to_owned).collect();
    Some((what, word.to_owned(), known))
}

/// Messages quote the client's values, which may be long.
fn shown_message(message: &str) -> String {
    if message.chars().count() <= 300 {
        return message.to_owned();
    }
    let start: String = message.chars().take(200).collect();
    let from_end: Vec<char> = message.chars().rev().take(80).collect();
    let end: String = from_end.into_iter().rev().collect();
    format!("{start} … {end}")
}

fn idempotency_key(headers: &HeaderMap) -> Result<Option<String>, ApiError> {
    let Some(value) = headers.get("idempotency-key") else { return Ok(None) };
    match value.to_str() {
        Ok(key) if (1..=IDEMPOTENCY_KEY).contains(&key.len()) => Ok(Some(key.to_owned())),
        _ => Err(ApiError::malformed(format!(
            "the Idempotency-Key must be 1 to {IDEMPOTENCY_KEY} visible ASCII characters"
        ))),
    }
}

fn fingerprint(path: &str, body: &[u8]) -> String {
    let mut digest = Sha256::new();
    digest.update(path.as_bytes());
    digest.update([0]);
    digest.update(body);
    hex::encode(digest.finalize())
}

/// Query parameters.
pub(super) struct Params<T>(pub(super) T);

impl<T: DeserializeOwned + Send> FromRequestParts<App> for Params<T> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &App) -> Result<Self, ApiError> {
        match Query::<T>::try_from_uri(&parts.uri) {
            Ok(Query(value)) => Ok(Self(value)),
            Err(error) => Err(ApiError::malformed(shown_message(&error.body_text()))),
        }
    }
}

/// The id in the path. A text that cannot be an id names nothing: 404.
pub(super) struct Id<T>(pub(super) T);

impl<T: FromStr<Err = IdError> + Send> FromRequestParts<App> for Id<T> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, ApiError> {
        let Name(text) = Name::from_request_parts(parts, app).await?;
        text.parse().map(Self).map_err(|error: IdError| ApiError::not_found(error.what, &text))
    }
}

/// The one name in the path, as text.
pub(super) struct Name(pub(super) String);

impl FromRequestParts<App> for Name {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, ApiError> {
        match Path::<String>::from_request_parts(parts, app).await {
            Ok(Path(text)) => Ok(Self(text)),
            Err(error) => Err(ApiError::malformed(shown_message(&error.body_text()))),
        }
    }
}

/// The two names in the path, as texts.
pub(super) struct Names(pub(super) String, pub(super) String);

impl FromRequestParts<App> for Names {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, ApiError> {
        match Path::<(String, String)>::from_request_parts(parts, app).await {
            Ok(Path((one, other))) => Ok(Self(one, other)),
            Err(error) => Err(ApiError::malformed(shown_message(&error.body_text()))),
        }
    }
}

/// A yes or no in a query: `?wait`, `?wait=1`, `?wait=true`.
pub(super) fn flag<'de, D: Deserializer<'de>>(deserializer: D) -> Result<bool, D::Error> {
    let text = String::deserialize(deserializer)?;
    match text.to_ascii_lowercase().as_str() {
        "" | "1" | "true" | "yes" => Ok(true),
        "0" | "false" | "no" => Ok(false),
        _ => Err(serde::de::Error::custom(format!("'{}' is neither true nor false", shown(&text)))),
    }
}

/// Memory for large bodies and decoded pictures, shared out in KiB.
pub(super) fn kib(bytes: usize) -> u32 {
    u32::try_from(bytes.div_ceil(1024)).unwrap_or(u32::MAX).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, Deserialize, PartialEq)]
    #[serde(deny_unknown_fields)]
    struct Inner {
        width: u32,
        #[serde(default)]
        word: Option<Word>,
    }

    #[derive(Debug, Deserialize, PartialEq)]
    #[serde(rename_all = "snake_case")]
    enum Word {
        Standard,
        Urgent,
    }

    #[derive(Debug, Deserialize, PartialEq)]
    #[serde(deny_unknown_fields)]
    struct Outer {
        requests: Vec<Inner>,
    }

    fn refused(text: &str) -> (u16, Option<String>, String, Option<String>) {
        let error = parse_json::<Outer>(text.as_bytes()).unwrap_err();
        let detail = error.detail().clone();
        (error.status().as_u16(), detail.field, detail.message, detail.hint)
    }

    #[test]
    fn broken_json_is_400_and_says_where() {
        let (status, field, message, _) = refused("{\n  \"requests\": [,]\n}");
        assert_eq!((status, field), (400, None));
        assert!(message.contains("line 2 column"), "{message}");
        for broken in ["", "  ", "{", "{\"requests\": []} x", "\u{0}", &"[".repeat(100_000)] {
            let error = parse_json::<Outer>(broken.as_bytes()).unwrap_err();
            assert!(matches!(error.status().as_u16(), 400 | 422), "{error:?}");
        }
    }

    #[test]
    fn an_unknown_field_is_422_by_its_path_with_the_nearest_name() {
        let (status, field, _, hint) = refused(r#"{"requests": [{"width": 8}, {"widht": 8}]}"#);
        assert_eq!((status, field.as_deref()), (422, Some("requests[1].widht")));
        assert_eq!(hint.as_deref(), Some("did you mean width?"));
        let (_, field, _, hint) = refused(r#"{"zzzzz": 1}"#);
        assert_eq!((field.as_deref(), hint.as_deref()), (Some("zzzzz"), Some("known: requests")));
    }

    #[test]
    fn a_wrong_type_a_missing_field_and_an_unknown_word_name_the_field() {
        let (status, field, ..) = refused(r#"{"requests": [{"width": "wide"}]}"#);
        assert_eq!((status, field.as_deref()), (422, Some("requests[0].width")));
        let (status, field, ..) = refused(r#"{"requests": [{}]}"#);
        assert_eq!((status, field.as_deref()), (422, Some("requests[0].width")));
        let (status, field, _, hint) = refused(r#"{"requests": [{"width": 1, "word": "urgnt"}]}"#);
        assert_eq!((status, field.as_deref()), (422, Some("requests[0].word")));
        assert_eq!(hint.as_deref(), Some("did you mean urgent?"));
    }

    #[test]
    fn an_error_never_repeats_a_long_value_whole() {
        let (_, _, message, _) = refused(&format!(r#"{{"requests": "{}"}}"#, "x".repeat(100_000)));
        assert!(message.len() < 1000, "{}", message.len());
        let (_, field, message, _) = refused(&format!(r#"{{"{}": 1}}"#, "y".repeat(100_000)));
        assert!(message.len() < 1000 && field.unwrap().len() < 1000);
    }

    #[test]
    fn only_json_is_read() {
        let with = |value: &'static str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::CONTENT_TYPE, value.parse().unwrap());
            require_json(&headers).map_err(|error| error.status().as_u16())
        };
        assert_eq!(with("application/json; charset=utf-8"), Ok(()));
        assert_eq!(with("application/problem+json"), Ok(()));
        assert_eq!(with("text/plain"), Err(415));
        assert_eq!(with("multipart/form-data; boundary=x"), Err(415));
        assert_eq!(require_json(&HeaderMap::new()).unwrap_err().status().as_u16(), 415);
    }

    #[test]
    fn the_same_body_at_another_route_is_another_request() {
        assert_eq!(fingerprint("/a", b"x"), fingerprint("/a", b"x"));
        assert_ne!(fingerprint("/a", b"x"), fingerprint("/b", b"x"));
        assert_ne!(fingerprint("/a", b"x"), fingerprint("/a", b"y"));
    }
}
