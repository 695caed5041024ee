//! Refusals as clients read them: `{"error": {"type", "message", "field"?, "hint"?, "id"?}}` with the statuses that
//! the API promises. Every handler and extractor of `http` fails with an [`ApiError`].

use axum::Json;
use axum::http::{HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use utoipa::ToSchema;
use uuid::Uuid;

use crate::service::ServiceError;

/// Longest piece of a client's own text that an error repeats, characters.
const SHOWN: usize = 80;

/// The body of every refusal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub(crate) struct ErrorBody {
    /// What went wrong.
    pub(crate) error: ErrorDetail,
}

/// What went wrong.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub(crate) struct ErrorDetail {
    /// A word for programs: `invalid_value`, `queue_full`, …
    #[serde(rename = "type")]
    pub(crate) kind: &'static str,
    /// A sentence for people.
    pub(crate) message: String,
    /// The request's field, as a path: `requests[3].width`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) field: Option<String>,
    /// What to do about it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) hint: Option<String>,
    /// Names a defect in the server's log (status 500 only).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) id: Option<String>,
}

/// A refusal: a status, a body, and the headers that belong to it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ApiError(Box<Refusal>);

#[derive(Debug, Clone, PartialEq, Eq)]
struct Refusal {
    status: StatusCode,
    detail: ErrorDetail,
    headers: Vec<(HeaderName, HeaderValue)>,
}

impl ApiError {
    /// A refusal with this status; `kind` is the word for programs.
    pub(crate) fn new(status: StatusCode, kind: &'static str, message: impl Into<String>) -> Self {
        let detail = ErrorDetail { kind, message: message.into(), field: None, hint: None, id: None };
        Self(Box::new(Refusal { status, detail, headers: Vec::new() }))
    }

    /// 400: the request cannot be read.
    pub(crate) fn malformed(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "malformed_request", message)
    }

    /// 401: a key is needed, or this one is not known.
    pub(crate) fn unauthorized(message: impl Into<String>) -> Self {
        Self::new(StatusCode::UNAUTHORIZED, "unauthorized", message)
            .with_header(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer realm=\"darkroom\""))
            .hint("send the header 'Authorization: Bearer dk_…'; 'darkroom keys create' makes keys")
    }

    /// 403: known, but not allowed.
    pub(crate) fn forbidden(message: impl Into<String>) -> Self {
        Self::new(StatusCode::FORBIDDEN, "forbidden", message)
    }

    /// 404: no such thing, or it is someone else's.
    pub(crate) fn not_found(what: &str, id: &str) -> Self {
        Self::new(StatusCode::NOT_FOUND, "not_found", format!("there is no {what} '{}'", shown(id)))
    }

    /// 413: more bytes than the limit.
    pub(crate) fn too_large(message: impl Into<String>) -> Self {
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, "payload_too_large", message)
    }

    /// 422: `field` has a value that cannot be used; `message` goes on from its name.
    pub(crate) fn invalid(field: impl Into<String>, message: impl Into<String>) -> Self {
        let field = field.into();
        let message = format!("{field} {}", message.into());
        Self::new(StatusCode::UNPROCESSABLE_ENTITY, "invalid_value", message).field(field)
    }

    /// 429: come back after `seconds`.
    pub(crate) fn too_many(kind: &'static str, message: impl Into<String>, seconds: u64) -> Self {
        Self::new(StatusCode::TOO_MANY_REQUESTS, kind, message).retry_after(seconds)
    }

    /// 503: not now; come back after `seconds`.
    pub(crate) fn unavailable(kind: &'static str, message: impl Into<String>, seconds: u64) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, kind, message).retry_after(seconds)
    }

    /// 500: a defect. Logs `what` under a new id, which is all that the client is told.
    pub(crate) fn internal(what: &str) -> Self {
        let id = Uuid::new_v4().simple().to_string();
        tracing::error!(error_id = %id, "{what}");
        let mut error = Self::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            "internal",
            "something went wrong inside the server; its log has more under this id",
        );
        error.0.detail.id = Some(id);
        error
    }

    /// Names the request's field.
    #[must_use]
    pub(crate) fn field(mut self, field: impl Into<String>) -> Self {
        self.0.detail.field = Some(field.into());
        self
    }

    /// Says what to do.
    #[must_use]
    pub(crate) fn hint(mut self, hint: impl Into<String>) -> Self {
        self.0.detail.hint = Some(hint.into());
        self
    }

    /// The same, where there is something to say.
    #[must_use]
    pub(crate) fn maybe_hint(self, hint: Option<String>) -> Self {
        match hint {
            Some(hint) => self.hint(hint),
            None => self,
        }
    }

    /// Adds a header of the answer.
    #[must_use]
    pub(crate) fn with_header(mut self, name: HeaderName, value: HeaderValue) -> Self {
        self.0.headers.push((name, value));
        self
    }

    fn retry_after(self, seconds: u64) -> Self {
        self.with_header(header::RETRY_AFTER, HeaderValue::from(seconds.max(1)))
    }

    /// The same refusal with its field inside of `parent`: `width` within `requests[3]` is `requests[3].width`.
    #[must_use]
    pub(crate) fn within(mut self, parent: &str) -> Self {
        let detail = &mut self.0.detail;
        detail.field = Some(match detail.field.take() {
            Some(field) => {
                if let Some(rest) = detail.message.strip_prefix(field.as_str()) {
                    detail.message = format!("{parent}.{field}{rest}");
                }
                format!("{parent}.{field}")
            }
            None => parent.to_owned(),
        });
        self
    }

    /// The same refusal with its field called as this dialect calls it: pairs of (our name, theirs).
    #[must_use]
    pub(crate) fn renamed(mut self, names: &[(&str, &str)]) -> Self {
        let detail = &mut self.0.detail;
        let Some(field) = &detail.field else { return self };
        if let Some((ours, theirs)) = names.iter().find(|(ours, _)| field == ours) {
            if let Some(rest) = detail.message.strip_prefix(ours) {
                detail.message = format!("{theirs}{rest}");
            }
            detail.field = Some((*theirs).to_owned());
        }
        self
    }

    /// The status.
    pub(crate) fn status(&self) -> StatusCode {
        self.0.status
    }

    /// What the body says.
    pub(crate) fn detail(&self) -> &ErrorDetail {
        &self.0.detail
    }

    /// The body.
    pub(crate) fn body(&self) -> ErrorBody {
        ErrorBody { error: self.0.detail.clone() }
    }
}

impl IntoResponse for ApiError {
    /// The answer carries the refusal itself as an extension, so that another dialect can word it anew.
    fn into_response(self) -> Response {
        let mut response = (self.0.status, Json(self.body())).into_response();
        for (name, value) in &self.0.headers {
            response.headers_mut().insert(name.clone(), value.clone());
        }
        response.extensions_mut().insert(self);
        response
    }
}

impl From<ServiceError> for ApiError {
    fn from(error: ServiceError) -> Self {
        let message = error.to_string();
        match error {
            ServiceError::NotFound { what, id } => Self::not_found(what, &id),
            ServiceError::QueueFull { retry_after, .. } => Self::too_many("queue_full", message, retry_after),
            ServiceError::IdempotencyConflict { .. } => {
                Self::new(StatusCode::CONFLICT, "idempotency_conflict", message)
                    .hint("use a new Idempotency-Key for each new request")
            }
            ServiceError::Conflict { .. } => Self::new(StatusCode::CONFLICT, "conflict", message),
            ServiceError::Draining => Self::unavailable("draining", message, 10),
            ServiceError::StorageUnavailable { .. } => Self::unavailable("storage_unavailable", message, 10),
            ServiceError::Invalid { field, message } => Self::invalid(field, message),
            ServiceError::Internal { message } => Self::internal(&message),
        }
    }
}

/// The beginning of a client's own text, for an error.
pub(crate) fn shown(text: &str) -> String {
    let mut shown: String = text.chars().take(SHOWN).collect();
    if shown.len() < text.len() {
        shown.push('…');
    }
    shown
}

/// `did you mean …?` for a word that is none of `known`, if one is near.
pub(crate) fn did_you_mean<'a>(word: &str, known: impl IntoIterator<Item = &'a str>) -> Option<String> {
    let word: String = word.chars().take(SHOWN).collect::<String>().to_lowercase();
    let mut scored: Vec<(f64, &str)> = known
        .into_iter()
        .map(|candidate| (strsim::jaro_winkler(&word, &candidate.to_lowercase()), candidate))
        .filter(|(score, _)| *score > 0.8)
        .collect();
    scored.sort_by(|a, b| b.0.total_cmp(&a.0));
    let near: Vec<&str> = scored.into_iter().take(2).map(|(_, candidate)| candidate).collect();
    (!near.is_empty()).then(|| format!("did you mean {}?", near.join(" or ")))
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt;
    use serde_json::{Value, json};

    use super::*;

    async fn answer(error: ApiError) -> (StatusCode, axum::http::HeaderMap, Value) {
        let response = error.into_response();
        let (parts, body) = response.into_parts();
        let bytes = body.collect().await.unwrap().to_bytes();
        (parts.status, parts.headers, serde_json::from_slice(&bytes).unwrap())
    }

    #[tokio::test]
    async fn every_service_error_has_its_status_and_type() {
        let text = || "why".to_owned();
        let cases = [
            (ServiceError::NotFound { what: "task", id: "x".into() }, 404, "not_found"),
            (ServiceError::QueueFull { message: text(), retry_after: 7 }, 429, "queue_full"),
            (ServiceError::IdempotencyConflict { key: "k".into() }, 409, "idempotency_conflict"),
            (ServiceError::Conflict { message: text() }, 409, "conflict"),
            (ServiceError::Draining, 503, "draining"),
            (ServiceError::StorageUnavailable { message: text() }, 503, "storage_unavailable"),
            (ServiceError::Invalid { field: "cfg".into(), message: text() }, 422, "invalid_value"),
            (ServiceError::Internal { message: text() }, 500, "internal"),
        ];
        for (error, status, kind) in cases {
            let (got, headers, body) = answer(error.clone().into()).await;
            assert_eq!((got.as_u16(), body["error"]["type"].as_str()), (status, Some(kind)), "{error:?}");
            assert_eq!(headers.contains_key("retry-after"), matches!(status, 429 | 503), "{error:?}");
            assert_eq!(body["error"]["id"].is_string(), status == 500, "{error:?}");
        }
    }

    #[tokio::test]
    async fn each_refusal_has_the_body_of_the_contract() {
        let (status, headers, body) = answer(ApiError::too_many("rate_limited", "slow down", 3)).await;
        assert_eq!(status.as_u16(), 429);
        assert_eq!(headers["retry-after"], "3");
        assert_eq!(body, json!({"error": {"type": "rate_limited", "message": "slow down"}}));

        let (status, headers, _) = answer(ApiError::unauthorized("no key")).await;
        assert_eq!(status.as_u16(), 401);
        assert!(headers["www-authenticate"].to_str().unwrap().starts_with("Bearer"));

        for (error, status, kind) in [
            (ApiError::malformed("m"), 400, "malformed_request"),
            (ApiError::forbidden("m"), 403, "forbidden"),
            (ApiError::not_found("route", "/x"), 404, "not_found"),
            (ApiError::too_large("m"), 413, "payload_too_large"),
            (ApiError::unavailable("loading", "m", 1), 503, "loading"),
        ] {
            let (got, _, body) = answer(error).await;
            assert_eq!((got.as_u16(), body["error"]["type"].as_str()), (status, Some(kind)));
        }
    }

    #[tokio::test]
    async fn a_defects_reason_stays_in_the_log() {
        let (_, _, body) = answer(ApiError::internal("the secret path /etc/x")).await;
        assert!(!body.to_string().contains("secret"), "{body}");
    }

    #[test]
    fn a_field_within_a_list_is_named_by_its_path() {
        let error = ApiError::invalid("width", "is 7, must be 16 to 64").within("requests[3]");
        assert_eq!(error.detail().field.as_deref(), Some("requests[3].width"));
        assert_eq!(error.detail().message, "requests[3].width is 7, must be 16 to 64");
    }

    #[test]
    fn a_dialects_own_field_name_replaces_ours() {
        let error = ApiError::invalid("steps", "must be 1 to 9").renamed(&[("steps", "num_inference_steps")]);
        assert_eq!(error.detail().field.as_deref(), Some("num_inference_steps"));
        assert_eq!(error.detail().message, "num_inference_steps must be 1 to 9");
    }

    #[test]
    fn only_near_words_are_suggested() {
        assert_eq!(did_you_mean("eulr", ["euler", "heun"]).as_deref(), Some("did you mean euler?"));
        assert_eq!(did_you_mean("zzz", ["euler", "heun"]), None);
    }
}
