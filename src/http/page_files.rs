//! The page and its files, compiled in. It is at `/`, unless ComfyUI's front end is, and always at `/darkroom`: its
//! addresses are relative, and lead to the same places from both.

use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use sha2::{Digest, Sha256};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::app::App;
use super::error::ApiError;
use super::extract::Name;
use super::range;

const INDEX: &str = include_str!("page/index.html");
/// Its scripts, which are modules of each other, and its style.
const FILES: [(&str, &str, &str); 4] = [
    ("app.js", JAVASCRIPT, include_str!("page/app.js")),
    ("dom.js", JAVASCRIPT, include_str!("page/dom.js")),
    ("guides.js", JAVASCRIPT, include_str!("page/guides.js")),
    ("style.css", "text/css; charset=utf-8", include_str!("page/style.css")),
];
const JAVASCRIPT: &str = "text/javascript; charset=utf-8";

/// Its routes.
pub(super) fn routes() -> OpenApiRouter<App> {
    OpenApiRouter::new().routes(routes!(index)).routes(routes!(index_again)).routes(routes!(asset))
}

/// Shows the page.
#[utoipa::path(
    get,
    path = "/",
    tag = "page",
    security(()),
    responses((status = 200, content_type = "text/html", body = String, description = "The page"))
)]
async fn index(headers: HeaderMap) -> Response {
    file(&headers, "text/html; charset=utf-8", INDEX)
}

/// Shows the page, also where ComfyUI's front end is at `/`.
#[utoipa::path(
    get,
    path = "/darkroom",
    tag = "page",
    security(()),
    responses((status = 200, content_type = "text/html", body = String, description = "The page"))
)]
async fn index_again(headers: HeaderMap) -> Response {
    index(headers).await
}

/// Sends a file of the page.
#[utoipa::path(
    get,
    path = "/assets/{file}",
    tag = "page",
    security(()),
    params(("file" = String, Path, description = "`app.js`, `style.css`, …")),
    responses((
        status = 200,
        description = "The file",
        content((String = "text/javascript"), (String = "text/css"))
    ))
)]
async fn asset(Name(name): Name, headers: HeaderMap) -> Result<Response, ApiError> {
    match FILES.iter().find(|(known, ..)| *known == name) {
        Some((_, mime, text)) => Ok(file(&headers, mime, text)),
        None => Err(ApiError::not_found("file", &name)),
    }
}

/// Browsers ask each time whether it is still the same: a new server has a new page.
fn file(headers: &HeaderMap, mime: &'static str, text: &'static str) -> Response {
    let etag = format!("\"{}\"", hex::encode(&Sha256::digest(text.as_bytes())[..8]));
    let mut response = if range::is_known(headers, &etag) {
        StatusCode::NOT_MODIFIED.into_response()
    } else {
        ([(header::CONTENT_TYPE, mime)], text).into_response()
    };
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    if let Ok(etag) = HeaderValue::try_from(etag) {
        response.headers_mut().insert(header::ETAG, etag);
    }
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_module_that_a_script_imports_is_a_file_of_the_page() {
        for (name, _, text) in FILES.iter().filter(|(name, ..)| name.ends_with(".js")) {
            for line in text.lines().filter(|line| line.starts_with("import ")) {
                let module = line.split("\"./").nth(1).and_then(|rest| rest.split('"').next()).unwrap();
                assert!(FILES.iter().any(|(known, ..)| *known == module), "{name}: {line}");
            }
        }
    }

    #[test]
    fn a_file_is_sent_once_and_then_known_by_its_version() {
        let first = file(&HeaderMap::new(), "text/css", "body {}");
        assert_eq!(first.status(), StatusCode::OK);
        let mut headers = HeaderMap::new();
        headers.insert(header::IF_NONE_MATCH, first.headers()[header::ETAG].clone());
        assert_eq!(file(&headers, "text/css", "body {}").status(), StatusCode::NOT_MODIFIED);
        assert_eq!(file(&headers, "text/css", "body { }").status(), StatusCode::OK);
    }
}
