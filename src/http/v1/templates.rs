//! `GET /v1/templates`: the template pictures that packs can follow. Names are looked up in lists; no request names a
//! path.

use axum::Json;
use axum::extract::State;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use sha2::{Digest, Sha256};
use utoipa::ToSchema;

use crate::http::app::App;
use crate::http::auth::Client;
use crate::http::error::ApiError;
use crate::http::extract::Names;
use crate::http::range;
use crate::templates::{TemplateError, TemplateSet};

/// All sets.
#[derive(Debug, PartialEq, Serialize, ToSchema)]
pub(super) struct TemplateListBody {
    /// By name.
    sets: Vec<TemplateSetBody>,
}

/// A set of templates.
#[derive(Debug, PartialEq, Serialize, ToSchema)]
pub(super) struct TemplateSetBody {
    /// What requests call it.
    name: String,
    /// Whether it is compiled in.
    built_in: bool,
    /// Whether packs follow it that name none.
    is_default: bool,
    /// Its pictures.
    templates: Vec<TemplateBody>,
}

/// A template.
#[derive(Debug, PartialEq, Serialize, ToSchema)]
pub(super) struct TemplateBody {
    /// The expression that it is for.
    name: String,
    /// Where its picture is, below the server's address.
    url: String,
}

impl TemplateSetBody {
    fn new(set: &TemplateSet, default: &str) -> Self {
        let body = |name: String| TemplateBody { url: address(&set.name, &name), name };
        Self {
            is_default: set.name == default,
            built_in: set.built_in,
            templates: set.pictures.iter().cloned().map(body).collect(),
            name: set.name.clone(),
        }
    }
}

/// `/v1/templates/SET/NAME.png`, with what addresses cannot hold written as they want it.
fn address(set: &str, name: &str) -> String {
    let encoded = |text: &str| {
        url::form_urlencoded::byte_serialize(text.as_bytes()).collect::<String>().replace('+', "%20")
    };
    format!("/v1/templates/{}/{}.png", encoded(set), encoded(name))
}

/// Lists the templates that packs can follow.
#[utoipa::path(
    get,
    path = "/v1/templates",
    tag = "character packs",
    responses((status = 200, body = TemplateListBody, description = "All sets"))
)]
pub(super) async fn list(State(app): State<App>, _client: Client) -> Json<TemplateListBody> {
    let default = &app.config.templates.set;
    let sets = app.templates.sets().into_iter().map(|set| TemplateSetBody::new(&set, default));
    Json(TemplateListBody { sets: sets.collect() })
}

/// Sends a template's picture.
#[utoipa::path(
    get,
    path = "/v1/templates/{set}/{file}",
    tag = "character packs",
    params(
        ("set" = String, Path, description = "The set"),
        ("file" = String, Path, description = "The expression and `.png`: `smile_gentle.png`")
    ),
    responses(
        (status = 200, content_type = "image/png", body = String, description = "The picture"),
        (status = 304, description = "The client has it already")
    )
)]
pub(super) async fn picture(
    State(app): State<App>,
    _client: Client,
    Names(set, file): Names,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    let missing =
        || ApiError::not_found("template", &format!("{set}/{file}")).hint("GET /v1/templates lists all");
    let name = file.strip_suffix(".png").ok_or_else(missing)?;
    let found = app.templates.set(&set).map_err(|_| missing())?;
    let bytes =
        app.templates.read(&found, name, app.config.limits.source_bytes).map_err(|error| match error {
            TemplateError::Unreadable { .. } => ApiError::invalid("file", format!("cannot be sent: {error}")),
            _ => missing(),
        })?;
    Ok(png(&headers, bytes.into_owned()))
}

/// A picture that may change with the next server: browsers ask each time whether it is still the same.
pub(super) fn png(headers: &HeaderMap, bytes: Vec<u8>) -> Response {
    let etag = format!("\"{}\"", hex::encode(&Sha256::digest(&bytes)[..8]));
    let mut response = if range::is_known(headers, &etag) {
        StatusCode::NOT_MODIFIED.into_response()
    } else {
        ([(header::CONTENT_TYPE, "image/png")], bytes).into_response()
    };
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("private, no-cache"));
    if let Ok(etag) = HeaderValue::try_from(etag) {
        response.headers_mut().insert(header::ETAG, etag);
    }
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_set_lists_its_pictures_with_addresses() {
        let set = TemplateSet { name: "my set".into(), built_in: false, pictures: vec!["sad".into()] };
        let body = serde_json::to_value(TemplateSetBody::new(&set, "my set")).unwrap();
        assert_eq!(body["is_default"], true);
        assert_eq!(body["templates"][0]["url"], "/v1/templates/my%20set/sad.png");
    }

    #[test]
    fn a_picture_is_sent_once_and_then_known() {
        let first = png(&HeaderMap::new(), b"png".to_vec());
        assert_eq!(first.headers()[header::CONTENT_TYPE], "image/png");
        let mut headers = HeaderMap::new();
        headers.insert(header::IF_NONE_MATCH, first.headers()[header::ETAG].clone());
        assert_eq!(png(&headers, b"png".to_vec()).status(), StatusCode::NOT_MODIFIED);
        assert_eq!(png(&headers, b"gnp".to_vec()).status(), StatusCode::OK);
    }
}
