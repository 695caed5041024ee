//! Refusals as OpenAI's clients expect them: `{"error": {"message", "type", "param", "code"}}`.

use axum::Json;
use axum::extract::Request;
use axum::http::{StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use utoipa::ToSchema;

use crate::http::error::ApiError;

/// Routes of this dialect.
const ROUTES: [&str; 1] = ["/v1/images/generations"];

/// The body of every refusal.
#[derive(Debug, PartialEq, Eq, Serialize, ToSchema)]
pub(super) struct OpenAiErrorBody {
    /// What went wrong.
    error: OpenAiError,
}

/// What went wrong.
#[derive(Debug, PartialEq, Eq, Serialize, ToSchema)]
struct OpenAiError {
    /// A sentence for people.
    message: String,
    /// `invalid_request_error`, `rate_limit_error`, `server_error`, …
    #[serde(rename = "type")]
    kind: &'static str,
    /// The request's field.
    param: Option<String>,
    /// A word for programs.
    code: Option<&'static str>,
}

/// The layer: rewords every refusal of this dialect's routes, wherever it came from.
pub(in crate::http) async fn reword(request: Request, next: Next) -> Response {
    let ours = ROUTES.contains(&request.uri().path());
    let mut response = next.run(request).await;
    let error = if ours { response.extensions_mut().remove::<ApiError>() } else { None };
    let Some(error) = error else { return response };
    let (status, body) = worded(&error);
    let mut reworded = (status, Json(body)).into_response();
    for (name, value) in response.headers() {
        if name != header::CONTENT_TYPE && name != header::CONTENT_LENGTH {
            reworded.headers_mut().append(name.clone(), value.clone());
        }
    }
    reworded.extensions_mut().insert(error);
    reworded
}

fn worded(error: &ApiError) -> (StatusCode, OpenAiErrorBody) {
    let detail = error.detail();
    // OpenAI has no 422: values out of range are plain bad requests there.
    let status = match error.status() {
        StatusCode::UNPROCESSABLE_ENTITY => StatusCode::BAD_REQUEST,
        other => other,
    };
    let (kind, code) = match status {
        StatusCode::UNAUTHORIZED => ("invalid_request_error", Some("invalid_api_key")),
        StatusCode::FORBIDDEN => ("permission_error", Some("permission_denied")),
        StatusCode::NOT_FOUND if detail.field.as_deref() == Some("model") => {
            ("invalid_request_error", Some("model_not_found"))
        }
        StatusCode::TOO_MANY_REQUESTS => ("rate_limit_error", Some("rate_limit_exceeded")),
        status if status.is_server_error() => ("server_error", Some(detail.kind)),
        _ => ("invalid_request_error", Some(detail.kind)),
    };
    let mut message = detail.message.clone();
    for more in detail.hint.iter().map(|hint| format!("; {hint}")) {
        message.push_str(&more);
    }
    if let Some(id) = &detail.id {
        message = format!("{message} ({id})");
    }
    (status, OpenAiErrorBody { error: OpenAiError { message, kind, param: detail.field.clone(), code } })
}

#[cfg(test)]
mod tests {
    use axum::Router;
    use axum::body::Body;
    use axum::middleware::from_fn;
    use axum::routing::post;
    use http_body_util::BodyExt;
    use serde_json::Value;
    use tower::ServiceExt;

    use super::*;

    async fn ask(path: &str, error: ApiError) -> (u16, axum::http::HeaderMap, Value) {
        let handler = || async move { error };
        let router = Router::new()
            .route("/v1/images/generations", post(handler.clone()))
            .route("/v1/images", post(handler))
            .layer(from_fn(reword));
        let request = Request::post(path).body(Body::empty()).unwrap();
        let (parts, body) = router.oneshot(request).await.unwrap().into_parts();
        let body = body.collect().await.unwrap().to_bytes();
        (parts.status.as_u16(), parts.headers, serde_json::from_slice(&body).unwrap())
    }

    #[tokio::test]
    async fn refusals_have_openais_shape_on_its_route_alone() {
        let error = || ApiError::invalid("n", "must be 1 to 10");
        let (status, headers, body) = ask("/v1/images/generations", error()).await;
        assert_eq!(status, 400);
        assert_eq!(headers.get_all("content-type").iter().count(), 1);
        assert_eq!(body["error"]["type"], "invalid_request_error");
        assert_eq!(body["error"]["param"], "n");
        assert_eq!(body["error"]["code"], "invalid_value");
        let (status, _, body) = ask("/v1/images", error()).await;
        assert_eq!((status, body["error"]["type"].as_str()), (422, Some("invalid_value")));
    }

    #[tokio::test]
    async fn each_status_has_the_type_and_code_that_clients_look_at() {
        let cases = [
            (ApiError::unauthorized("x"), 401, "invalid_request_error", "invalid_api_key"),
            (
                ApiError::not_found("model", "m").field("model"),
                404,
                "invalid_request_error",
                "model_not_found",
            ),
            (ApiError::too_many("queue_full", "x", 9), 429, "rate_limit_error", "rate_limit_exceeded"),
            (ApiError::internal("x"), 500, "server_error", "internal"),
            (ApiError::unavailable("draining", "x", 9), 503, "server_error", "draining"),
        ];
        for (error, status, kind, code) in cases {
            let (got, headers, body) = ask("/v1/images/generations", error).await;
            assert_eq!(got, status);
            assert_eq!(
                (body["error"]["type"].as_str(), body["error"]["code"].as_str()),
                (Some(kind), Some(code))
            );
            assert_eq!(headers.contains_key("retry-after"), matches!(status, 429 | 503));
        }
    }
}
