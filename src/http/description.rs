//! What the API says of itself: `/openapi.json`, made from the routes themselves, and the page at `/docs` that reads
//! it.

use std::sync::Arc;

use axum::Router;
use axum::http::header;
use axum::response::IntoResponse;
use axum::routing::get;
use bytes::Bytes;
use utoipa::openapi::security::{
    ApiKey, ApiKeyValue, Http, HttpAuthScheme, SecurityRequirement, SecurityScheme,
};
use utoipa::openapi::{Content, OpenApi, Ref, RefOr, ResponseBuilder};
use utoipa::{OpenApi as _, ToSchema};
use utoipa_axum::router::OpenApiRouter;
use utoipa_swagger_ui::{Config as SwaggerConfig, SwaggerUi};

use super::app::{App, SetupError};
use super::error::{ErrorBody, ErrorDetail};
use super::{comfy, openai, page_files, probes, simple, v1};

#[derive(utoipa::OpenApi)]
#[openapi(
    info(
        title = "Darkroom",
        description = "A native diffusion server. Errors of every route have the shape of `ErrorBody`, but those of \
                       OpenAI's route, which have OpenAI's, and of ComfyUI's, which have ComfyUI's. ComfyUI's routes \
                       are there under `/api` as well, but for `/internal`."
    ),
    components(schemas(ErrorBody, ErrorDetail, comfy::ComfyErrorBody))
)]
struct Frame;

/// Every route with its description. A route that is not in here is not served.
pub(super) fn routes(comfyui: bool) -> OpenApiRouter<App> {
    let ours = OpenApiRouter::with_openapi(Frame::openapi())
        .merge(v1::routes())
        .merge(openai::routes())
        .merge(simple::routes())
        .merge(probes::routes())
        .merge(page_files::routes());
    if comfyui { ours.merge(comfy::routes()) } else { ours }
}

/// Adds what holds for all routes: keys, and the body of errors.
pub(super) fn complete(mut document: OpenApi) -> OpenApi {
    let components = document.components.get_or_insert_default();
    components.add_security_scheme("bearer", SecurityScheme::Http(Http::new(HttpAuthScheme::Bearer)));
    components.add_security_scheme(
        "api_key",
        SecurityScheme::ApiKey(ApiKey::Header(ApiKeyValue::new("X-API-Key"))),
    );
    let scopes: [&str; 0] = [];
    // A server without keys asks for none.
    document.security = Some(vec![
        SecurityRequirement::new("bearer", scopes),
        SecurityRequirement::new("api_key", scopes),
        SecurityRequirement::default(),
    ]);
    let error = |schema: &str| {
        let schema = RefOr::<utoipa::openapi::Schema>::Ref(Ref::from_schema_name(schema));
        ResponseBuilder::new()
            .description("Why not")
            .content("application/json", Content::new(Some(schema)))
            .build()
    };
    for (path, item) in &mut document.paths.paths {
        let operations = [
            ("get", &mut item.get),
            ("post", &mut item.post),
            ("patch", &mut item.patch),
            ("delete", &mut item.delete),
        ];
        for (method, operation) in operations {
            let Some(operation) = operation else { continue };
            operation.operation_id = Some(operation_name(method, path));
            let responses = &mut operation.responses.responses;
            let comfyui = operation.tags.iter().flatten().any(|tag| tag == comfy::TAG);
            let body = if comfyui { comfy::ComfyErrorBody::name() } else { ErrorBody::name() };
            responses.entry("default".to_owned()).or_insert_with(|| RefOr::T(error(&body)));
        }
    }
    document
}

/// A name for generated clients: `post_v1_images_batch`.
fn operation_name(method: &str, path: &str) -> String {
    let words = path.split(|c: char| !c.is_ascii_alphanumeric()).filter(|word| !word.is_empty());
    std::iter::once(method).chain(words).collect::<Vec<_>>().join("_")
}

/// `/openapi.json` and `/docs`.
pub(super) fn pages(document: &OpenApi) -> Result<Router<App>, SetupError> {
    let json = Bytes::from(serde_json::to_vec(document)?);
    let config = SwaggerConfig::new(["/openapi.json"])
        .try_it_out_enabled(true)
        .persist_authorization(true)
        // Else the page would ask a server elsewhere about this document.
        .validator_url("none");
    let docs: Router<App> = SwaggerUi::new("/docs").config(config).into();
    let json = Arc::new(json);
    let served = move || {
        let json = Bytes::clone(&json);
        async move { ([(header::CONTENT_TYPE, "application/json")], json).into_response() }
    };
    Ok(docs.route("/openapi.json", get(served)))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use serde_json::Value;

    use super::*;

    fn document() -> Value {
        let (_, document) = routes(true).split_for_parts();
        serde_json::to_value(complete(document)).unwrap()
    }

    #[test]
    fn every_route_of_the_contract_is_described() {
        let document = document();
        let described: BTreeSet<String> = document["paths"]
            .as_object()
            .unwrap()
            .iter()
            .flat_map(|(path, item)| {
                item.as_object().unwrap().keys().map(move |method| format!("{method} {path}"))
            })
            .collect();
        let expected = [
            "delete /userdata/{file}",
            "delete /v1/expression-bank",
            "delete /v1/tasks/{id}",
            "get /",
            "get /api/v1/images/models",
            "get /api/v1/models",
            "get /assets/{file}",
            "get /darkroom",
            "get /embeddings",
            "get /experiment/models",
            "get /experiment/models/preview/{folder}/{path_index}/{filename}",
            "get /experiment/models/{folder}",
            "get /extensions",
            "get /features",
            "get /health",
            "get /history",
            "get /history/{prompt_id}",
            "get /i18n",
            "get /internal/files/{type}",
            "get /internal/folder_paths",
            "get /internal/logs",
            "get /internal/logs/raw",
            "get /metrics",
            "get /models",
            "get /models/{folder}",
            "get /object_info",
            "get /object_info/{node_class}",
            "get /prompt",
            "get /queue",
            "get /ready",
            "get /settings",
            "get /settings/{id}",
            "get /system_stats",
            "get /userdata",
            "get /userdata/{file}",
            "get /users",
            "get /v1/controlnets",
            "get /v1/expressions",
            "get /v1/images/{id}",
            "get /v1/loras",
            "get /v1/models",
            "get /v1/models/{id}",
            "get /v1/poses",
            "get /v1/poses/{file}",
            "get /v1/queue",
            "get /v1/tasks",
            "get /v1/tasks/ws",
            "get /v1/tasks/{id}",
            "get /v1/tasks/{id}/events",
            "get /v1/templates",
            "get /v1/templates/{set}/{file}",
            "get /v2/userdata",
            "get /view",
            "get /view_metadata/{folder}",
            "get /workflow_templates",
            "get /ws",
            "patch /internal/logs/subscribe",
            "post /api/v1/images/generate",
            "post /free",
            "post /history",
            "post /interrupt",
            "post /prompt",
            "post /queue",
            "post /settings",
            "post /settings/{id}",
            "post /upload/image",
            "post /upload/mask",
            "post /userdata/{file}",
            "post /userdata/{file}/move/{dest}",
            "post /users",
            "post /v1/character-packs/expressions",
            "post /v1/character-packs/full-body",
            "post /v1/character-packs/outfit-change",
            "post /v1/character-packs/prototypes",
            "post /v1/character-packs/stickers",
            "post /v1/images",
            "post /v1/images/batch",
            "post /v1/images/generations",
            "post /v1/models/{id}/load",
            "post /v1/models/{id}/unload",
            "post /v1/scenes/generate",
        ];
        assert_eq!(described, expected.map(str::to_owned).into());
    }

    #[test]
    fn every_reference_of_the_description_leads_somewhere() {
        fn walk<'a>(value: &'a Value, found: &mut Vec<&'a str>) {
            match value {
                Value::Object(map) => {
                    found.extend(map.get("$ref").and_then(Value::as_str));
                    map.values().for_each(|value| walk(value, found));
                }
                Value::Array(list) => list.iter().for_each(|value| walk(value, found)),
                _ => {}
            }
        }
        let document = document();
        let mut references = Vec::new();
        walk(&document, &mut references);
        assert!(!references.is_empty());
        for reference in references {
            let pointer = reference.strip_prefix('#').unwrap();
            assert!(document.pointer(pointer).is_some(), "{reference}");
        }
    }

    #[test]
    fn every_operation_has_a_name_of_its_own_a_summary_and_an_error() {
        let document = document();
        assert!(document["openapi"].as_str().unwrap().starts_with("3."));
        let mut names = BTreeSet::new();
        for (path, item) in document["paths"].as_object().unwrap() {
            for (method, operation) in item.as_object().unwrap() {
                let name = operation["operationId"].as_str().unwrap();
                assert!(names.insert(name.to_owned()), "{name} twice: {method} {path}");
                assert!(operation["summary"].is_string(), "{method} {path}");
                assert!(operation["responses"]["default"].is_object(), "{method} {path}");
            }
        }
    }

    #[test]
    fn requests_say_that_other_fields_are_refused() {
        let document = document();
        for name in [
            "ImagesRequest",
            "BatchRequest",
            "PrototypesRequest",
            "ExpressionsRequest",
            "FullBodyRequest",
            "PoseData",
            "OutfitChangeRequest",
            "StickersRequest",
            "SceneRequest",
            "LoraRequest",
            "ControlRequest",
            "DetailRequest",
        ] {
            assert_eq!(document["components"]["schemas"][name]["additionalProperties"], false, "{name}");
        }
    }
}
