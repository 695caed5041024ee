//! The outermost layers: counting, a request id and a log line for every request, panics turned into 500 with an id, headers
//! that keep browsers safe, and which other sites may call (CORS).

use std::any::Any;
use std::panic::AssertUnwindSafe;
use std::time::{Duration, Instant};

use axum::extract::{MatchedPath, Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use futures_util::FutureExt;
use tower_http::cors::{AllowOrigin, CorsLayer};
use tracing::Instrument;
use uuid::Uuid;

use super::app::{App, SetupError};
use super::error::ApiError;
use crate::metrics::{ByReason, ByRequest, ByRoute};

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// Longest request id that is taken over from a client, bytes.
const REQUEST_ID_BYTES: usize = 128;
/// How long a browser may keep the answer of a preflight.
const PREFLIGHT_AGE: Duration = Duration::from_secs(600);
/// The page and `/docs` load nothing from elsewhere. Swagger's page styles its elements inline.
const POLICY: &str = "default-src 'self'; img-src 'self' data: blob:; style-src 'self' 'unsafe-inline'; \
                      script-src 'self'; connect-src 'self'; object-src 'none'; base-uri 'none'; \
                      form-action 'self'; frame-ancestors 'none'";

/// Gives the request an id, logs how it ended, and answers for a handler that panicked.
pub(super) async fn observe(mut request: Request, next: Next) -> Response {
    let id = request_id(request.headers());
    if let Ok(value) = HeaderValue::from_str(&id) {
        request.headers_mut().insert(REQUEST_ID, value);
    }
    let method = request.method().clone();
    let route = request.extensions().get::<MatchedPath>().map_or("-", MatchedPath::as_str).to_owned();
    let quiet = matches!(route.as_str(), "/health" | "/ready" | "/metrics");
    let span = tracing::info_span!("request", %id, %method, route);
    let started = Instant::now();
    async move {
        let mut response = match AssertUnwindSafe(next.run(request)).catch_unwind().await {
            Ok(response) => response,
            Err(panic) => ApiError::internal(&format!("a handler panicked: {}", panic_text(panic.as_ref())))
                .into_response(),
        };
        if let Ok(value) = HeaderValue::from_str(&id) {
            response.headers_mut().insert(REQUEST_ID, value);
        }
        let status = response.status().as_u16();
        let ms = started.elapsed().as_secs_f64() * 1e3;
        if quiet {
            tracing::debug!(status, ms, "answered");
        } else {
            tracing::info!(status, ms, "answered");
        }
        response
    }
    .instrument(span)
    .await
}

/// Counts the request, how long its answer took, and what was refused for a limit.
pub(super) async fn count(State(app): State<App>, request: Request, next: Next) -> Response {
    let method = method_label(request.method());
    let route = request.extensions().get::<MatchedPath>().map_or("-", MatchedPath::as_str).to_owned();
    let started = Instant::now();
    let response = next.run(request).await;
    let metrics = app.service.metrics();
    let status = response.status().as_u16();
    metrics
        .http_time
        .get_or_create(&ByRoute { route: route.clone() })
        .observe(started.elapsed().as_secs_f64());
    metrics.http_requests.get_or_create(&ByRequest { method: method.into(), route, status }).inc();
    if let Some(reason) = response.extensions().get::<ApiError>().and_then(limit_of) {
        metrics.refusals.get_or_create(&ByReason { reason }).inc();
    }
    response
}

/// Clients may send any word as a method; labels are few.
fn method_label(method: &Method) -> &'static str {
    match method.as_str() {
        "GET" => "GET",
        "HEAD" => "HEAD",
        "POST" => "POST",
        "PUT" => "PUT",
        "PATCH" => "PATCH",
        "DELETE" => "DELETE",
        "OPTIONS" => "OPTIONS",
        _ => "other",
    }
}

/// The limit that a refusal stands for. The service counts a full queue itself, whoever met it.
fn limit_of(error: &ApiError) -> Option<&'static str> {
    let limit = matches!(
        error.status(),
        StatusCode::REQUEST_TIMEOUT | StatusCode::PAYLOAD_TOO_LARGE | StatusCode::TOO_MANY_REQUESTS
    );
    (limit && error.detail().kind != "queue_full").then_some(error.detail().kind)
}

/// The client's own request id if it is a plain one, else a new one.
fn request_id(headers: &HeaderMap) -> String {
    let given = headers.get(REQUEST_ID).and_then(|value| value.to_str().ok());
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    match given {
        Some(id) if (1..=REQUEST_ID_BYTES).contains(&id.len()) && id.chars().all(plain) => id.to_owned(),
        _ => Uuid::now_v7().simple().to_string(),
    }
}

fn panic_text(panic: &(dyn Any + Send)) -> &str {
    panic
        .downcast_ref::<String>()
        .map(String::as_str)
        .or_else(|| panic.downcast_ref::<&str>().copied())
        .unwrap_or("without a message")
}

/// Headers that keep browsers from guessing types, framing the page and loading foreign scripts.
pub(super) async fn harden(request: Request, next: Next) -> Response {
    let mut response = next.run(request).await;
    let headers = response.headers_mut();
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(header::REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
    headers.insert(header::X_FRAME_OPTIONS, HeaderValue::from_static("DENY"));
    headers.entry(header::CONTENT_SECURITY_POLICY).or_insert(HeaderValue::from_static(POLICY));
    response
}

/// Lets pages of these origins call the API from a browser; `*` lets all.
pub(super) fn cors(origins: &[String]) -> Result<CorsLayer, SetupError> {
    let origin = if origins.iter().any(|origin| origin == "*") {
        AllowOrigin::any()
    } else {
        AllowOrigin::list(origins.iter().map(|origin| parse_origin(origin)).collect::<Result<Vec<_>, _>>()?)
    };
    Ok(CorsLayer::new()
        .allow_origin(origin)
        .allow_methods([Method::GET, Method::POST, Method::DELETE])
        .allow_headers([
            header::AUTHORIZATION,
            header::CONTENT_TYPE,
            header::RANGE,
            header::IF_RANGE,
            header::IF_NONE_MATCH,
            HeaderName::from_static("x-api-key"),
            HeaderName::from_static("idempotency-key"),
            HeaderName::from_static("last-event-id"),
            REQUEST_ID,
        ])
        .expose_headers([
            header::ETAG,
            header::LOCATION,
            header::RETRY_AFTER,
            header::CONTENT_RANGE,
            header::ACCEPT_RANGES,
            header::CONTENT_DISPOSITION,
            REQUEST_ID,
            HeaderName::from_static("idempotency-replayed"),
        ])
        .max_age(PREFLIGHT_AGE))
}

fn parse_origin(origin: &str) -> Result<HeaderValue, SetupError> {
    let refused = || SetupError::Origin { origin: origin.to_owned() };
    let url = url::Url::parse(origin).map_err(|_| refused())?;
    // What a browser sends has no path, so an origin with one would never match.
    if url.origin().ascii_serialization() != origin.trim_end_matches('/').to_ascii_lowercase() {
        return Err(refused());
    }
    HeaderValue::from_str(&url.origin().ascii_serialization()).map_err(|_| refused())
}

#[cfg(test)]
mod tests {
    use axum::Router;
    use axum::body::Body;
    use axum::middleware::from_fn;
    use axum::routing::get;
    use http_body_util::BodyExt;
    use tower::ServiceExt;

    use super::*;

    fn router(origins: &[&str]) -> Router {
        let origins: Vec<String> = origins.iter().map(|origin| (*origin).to_owned()).collect();
        Router::new()
            .route("/fine", get(|| async { "fine" }))
            .route(
                "/panics",
                get(|| async {
                    if true {
                        panic!("a secret reason")
                    }
                }),
            )
            .layer(cors(&origins).unwrap())
            .layer(from_fn(harden))
            .layer(from_fn(observe))
    }

    async fn ask(router: Router, request: axum::http::request::Builder) -> Response {
        router.oneshot(request.body(Body::empty()).unwrap()).await.unwrap()
    }

    #[tokio::test]
    async fn a_panic_is_500_with_an_id_and_without_its_reason() {
        let response = ask(router(&[]), axum::http::Request::get("/panics")).await;
        assert_eq!(response.status(), StatusCode::INTERNAL_SERVER_ERROR);
        let body = response.into_body().collect().await.unwrap().to_bytes();
        let body: serde_json::Value = serde_json::from_slice(&body).unwrap();
        assert_eq!(body["error"]["type"], "internal");
        assert_eq!(body["error"]["id"].as_str().unwrap().len(), 32);
        assert!(!body.to_string().contains("secret"), "{body}");
    }

    #[test]
    fn only_limits_are_counted_and_a_full_queue_once() {
        let limit = |error: ApiError| limit_of(&error);
        assert_eq!(limit(ApiError::too_large("x")), Some("payload_too_large"));
        assert_eq!(limit(ApiError::too_many("rate_limit", "x", 1)), Some("rate_limit"));
        assert_eq!(limit(ApiError::too_many("queue_full", "x", 1)), None);
        assert_eq!(limit(ApiError::not_found("task", "x")), None);
        assert_eq!(method_label(&Method::from_bytes(b"ANYTHING").unwrap()), "other");
    }

    #[tokio::test]
    async fn every_answer_has_a_request_id_the_clients_own_if_it_is_plain() {
        let with = |id: &'static str| axum::http::Request::get("/fine").header("x-request-id", id);
        let response = ask(router(&[]), with("abc-1")).await;
        assert_eq!(response.headers()["x-request-id"], "abc-1");
        let response = ask(router(&[]), with("a b\"c")).await;
        assert_eq!(response.headers()["x-request-id"].len(), 32);
        assert_eq!(response.headers()["x-content-type-options"], "nosniff");
        assert!(response.headers().contains_key("content-security-policy"));
    }

    #[tokio::test]
    async fn only_listed_origins_may_call_from_a_browser() {
        let from = |origin: &'static str| {
            axum::http::Request::builder()
                .method("OPTIONS")
                .uri("/fine")
                .header("origin", origin)
                .header("access-control-request-method", "POST")
                .header("access-control-request-headers", "authorization,content-type")
        };
        let allowed = |response: &Response| response.headers().get("access-control-allow-origin").cloned();
        let listed = ["https://a.example"];
        let response = ask(router(&listed), from("https://a.example")).await;
        assert_eq!(allowed(&response).unwrap(), "https://a.example");
        let headers = response.headers()["access-control-allow-headers"].to_str().unwrap();
        assert!(headers.contains("authorization"), "{headers}");
        assert_eq!(allowed(&ask(router(&listed), from("https://b.example")).await), None);
        assert_eq!(allowed(&ask(router(&[]), from("https://a.example")).await), None);
        assert_eq!(allowed(&ask(router(&["*"]), from("https://b.example")).await).unwrap(), "*");
        let request = axum::http::Request::get("/fine").header("origin", "https://a.example");
        let response = ask(router(&listed), request).await;
        let exposed = response.headers()["access-control-expose-headers"].to_str().unwrap();
        assert!(exposed.contains("etag") && exposed.contains("retry-after"), "{exposed}");
    }

    #[test]
    fn an_origin_that_could_never_match_is_refused() {
        for wrong in ["example.com", "https://example.com/path", "", "https://"] {
            assert!(cors(&[wrong.to_owned()]).is_err(), "{wrong}");
        }
        assert!(cors(&["http://localhost:3000/".to_owned()]).is_ok());
    }
}
