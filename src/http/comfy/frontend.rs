//! ComfyUI's web front end, from a folder: the `static` folder of the package `comfyui-frontend-package`. A layer over
//! all routes, since its files lie beside them (`/`, `/assets`, `/scripts`, …). Only what no other route answers, and
//! the root and `/assets`, which Darkroom's own page has otherwise, is looked for there.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use axum::extract::{MatchedPath, Request, State};
use axum::http::{HeaderName, HeaderValue, Method, header};
use axum::middleware::Next;
use axum::response::Response;
use serde_json::{Value as Json, json};

use super::files::{self, unquoted};
use crate::workflow::folders::find_below;

/// Routes of Darkroom's page that give way.
const OVERLAID: [&str; 2] = ["/", "/assets/{file}"];
/// The front end needs scripts inside its page, compiles templates, and loads what its user's settings name.
const POLICY: &str = "object-src 'none'; base-uri 'self'; frame-ancestors 'none'";
/// Seconds that browsers may keep pictures of the front end, as ComfyUI tells them.
const PICTURES: &str = "public, max-age=86400";

/// Classes of nodes that the front end takes for granted: without any one of them it shows no list of models.
const EXPECTED: [&str; 10] = [
    "CheckpointLoaderSimple",
    "ImageOnlyCheckpointLoader",
    "LoraLoader",
    "LoraLoaderModelOnly",
    "VAELoader",
    "ControlNetLoader",
    "UNETLoader",
    "UpscaleModelLoader",
    "StyleModelLoader",
    "GLIGENLoader",
];

/// Where the front end lies; cheap to clone.
#[derive(Debug, Clone)]
pub(in crate::http) struct Frontend(Arc<PathBuf>);

/// Why it cannot be served.
#[derive(Debug, thiserror::Error)]
#[error("comfy.frontend: {folder} has no index.html; name the folder 'static' of comfyui-frontend-package", folder = .0.display())]
pub struct FrontendError(PathBuf);

impl Frontend {
    /// The front end in a folder.
    pub(in crate::http) fn open(folder: &Path) -> Result<Self, FrontendError> {
        match find_below(folder, "index.html") {
            Ok(_) => Ok(Self(Arc::new(folder.to_owned()))),
            Err(_) => Err(FrontendError(folder.to_owned())),
        }
    }
}

/// Describes nodes that the front end takes for granted and Darkroom lacks, as ones that menus do not show. Prompts
/// with them are refused as ever.
pub(super) fn add_expected(object_info: &mut Json) {
    let Json::Object(nodes) = object_info else { return };
    for class in EXPECTED {
        nodes.entry(class).or_insert_with(|| {
            json!({
                "input": {"required": {}},
                "input_order": {"required": []},
                "output": [],
                "output_is_list": [],
                "output_name": [],
                "name": class,
                "display_name": class,
                "description": "Darkroom does not have this node.",
                "python_module": "nodes",
                "category": "loaders",
                "output_node": false,
                "deprecated": true,
            })
        });
    }
}

/// The layer.
pub(in crate::http) async fn serve(
    State(frontend): State<Option<Frontend>>,
    request: Request,
    next: Next,
) -> Response {
    let Some(frontend) = frontend else { return next.run(request).await };
    let route = request.extensions().get::<MatchedPath>().map(MatchedPath::as_str);
    let asked = matches!(*request.method(), Method::GET | Method::HEAD);
    if !asked || route.is_some_and(|route| !OVERLAID.contains(&route)) {
        return next.run(request).await;
    }
    let name = match request.uri().path() {
        "/" => Some("index.html".to_owned()),
        path => unquoted(path.trim_start_matches('/')),
    };
    let folder = Arc::clone(&frontend.0);
    let found = tokio::task::spawn_blocking(move || {
        let name = name?;
        find_below(&folder, &name).ok().map(|path| (name, path))
    });
    let Ok(Some((name, path))) = found.await else { return next.run(request).await };
    let media_type = match files::media_type(&name) {
        "text/html" => "text/html; charset=utf-8",
        "text/javascript" => "text/javascript; charset=utf-8",
        "text/css" => "text/css; charset=utf-8",
        other => other,
    };
    match files::send(request.headers(), &path, media_type, headers(&name, media_type)).await {
        Ok(response) => response,
        Err(_) => next.run(request).await,
    }
}

fn headers(name: &str, media_type: &str) -> Vec<(HeaderName, HeaderValue)> {
    let fixed = HeaderValue::from_static;
    let mut headers = Vec::new();
    if name == "index.html" {
        headers.push((header::PRAGMA, fixed("no-cache")));
        headers.push((header::EXPIRES, fixed("0")));
        headers.push((header::CONTENT_SECURITY_POLICY, fixed(POLICY)));
    }
    if media_type.starts_with("image/") {
        headers.push((header::CACHE_CONTROL, fixed(PICTURES)));
    } else {
        headers.push((header::CACHE_CONTROL, fixed("no-cache")));
    }
    headers
}

#[cfg(test)]
mod tests {
    use axum::Router;
    use axum::body::Body;
    use axum::http::StatusCode;
    use axum::middleware::from_fn_with_state;
    use axum::routing::get;
    use http_body_util::BodyExt;
    use tempfile::TempDir;
    use tower::ServiceExt;

    use super::*;

    fn front_end() -> (TempDir, Router) {
        let base = TempDir::new().unwrap();
        let root = base.path().join("static");
        for (name, text) in [
            ("index.html", "front"),
            ("assets/x-1.js", "module"),
            ("assets/lib/deep/y.mjs", "deep"),
            ("v1/tasks", "no"),
        ] {
            let path = root.join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }
        std::fs::write(base.path().join("secret"), "secret").unwrap();
        let routes = Router::new()
            .route("/", get(|| async { "page" }))
            .route("/assets/{file}", get(|| async { "asset" }))
            .route("/v1/tasks", get(|| async { "tasks" }))
            .fallback(|| async { (StatusCode::NOT_FOUND, "nothing") })
            .layer(from_fn_with_state(Some(Frontend::open(&root).unwrap()), serve));
        (base, routes)
    }

    async fn ask(routes: &Router, path: &str) -> (u16, axum::http::HeaderMap, String) {
        let request = Request::get(path).body(Body::empty()).unwrap();
        let (parts, body) = routes.clone().oneshot(request).await.unwrap().into_parts();
        let body = body.collect().await.unwrap().to_bytes();
        (parts.status.as_u16(), parts.headers, String::from_utf8(body.to_vec()).unwrap())
    }

    #[tokio::test]
    async fn its_files_lie_over_the_page_and_beside_the_routes() {
        let (_base, routes) = front_end();
        let (status, headers, body) = ask(&routes, "/").await;
        assert_eq!((status, &*body), (200, "front"));
        assert_eq!(
            (headers["cache-control"].as_bytes(), headers["expires"].as_bytes()),
            (&b"no-cache"[..], &b"0"[..])
        );
        assert_eq!(headers["content-type"], "text/html; charset=utf-8");
        let (_, headers, body) = ask(&routes, "/assets/x-1.js").await;
        assert_eq!(
            (&*body, headers["content-type"].to_str().unwrap()),
            ("module", "text/javascript; charset=utf-8")
        );
        assert_eq!(ask(&routes, "/assets/lib/deep/y.mjs").await.2, "deep");
        assert_eq!(ask(&routes, "/assets/app.js").await.2, "asset");
        assert_eq!(ask(&routes, "/v1/tasks").await.2, "tasks");
    }

    #[tokio::test]
    async fn nothing_outside_its_folder_is_sent() {
        let (_base, routes) = front_end();
        for path in
            ["/../secret", "/%2e%2e/secret", "/assets/../../secret", "/assets", "/..%2fsecret", "/%00"]
        {
            let (status, _, body) = ask(&routes, path).await;
            assert_eq!((status, &*body), (404, "nothing"), "{path}");
        }
    }

    #[test]
    fn the_front_end_finds_every_node_that_it_takes_for_granted() {
        let mut info = json!({"LoraLoader": {"name": "ours"}});
        add_expected(&mut info);
        assert_eq!(info.as_object().unwrap().len(), EXPECTED.len());
        assert_eq!(info["LoraLoader"], json!({"name": "ours"}));
        assert_eq!(info["GLIGENLoader"]["deprecated"], true);
    }

    #[test]
    fn a_folder_without_a_page_is_refused() {
        let (base, _) = front_end();
        let error = Frontend::open(base.path()).unwrap_err().to_string();
        assert!(error.contains("index.html"), "{error}");
    }
}
