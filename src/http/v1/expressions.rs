//! `GET /v1/expressions`: which expressions packs know. The words are common tags, so that other models draw them,
//! too.

use axum::Json;
use axum::extract::State;
use serde::Serialize;
use utoipa::ToSchema;

use crate::http::app::App;
use crate::http::auth::Client;

/// The expressions that packs know.
#[derive(Debug, PartialEq, Serialize, ToSchema)]
pub(super) struct ExpressionListBody {
    /// In the order in which packs show them.
    expressions: Vec<ExpressionBody>,
}

/// An expression.
#[derive(Debug, PartialEq, Serialize, ToSchema)]
pub(super) struct ExpressionBody {
    /// What requests call it: `smile_gentle`.
    name: String,
    /// What people call it: `Gentle smile`.
    label: String,
    /// The tags that draw it.
    tags: String,
    /// Other words for it that requests may use.
    synonyms: Vec<String>,
    /// Whether the built-in model was trained on it.
    built_in_model: bool,
}

/// Lists the expressions that packs know.
#[utoipa::path(
    get,
    path = "/v1/expressions",
    tag = "character packs",
    responses((status = 200, body = ExpressionListBody, description = "All expressions"))
)]
pub(super) async fn list(State(app): State<App>, _client: Client) -> Json<ExpressionListBody> {
    let vocabulary = &app.words.vocabulary;
    let expressions = vocabulary.every().enumerate().map(|(index, expression)| ExpressionBody {
        built_in_model: index < vocabulary.expressions.len(),
        name: expression.name.clone(),
        label: expression.label.clone(),
        tags: expression.tags.clone(),
        synonyms: expression.synonyms.clone(),
    });
    Json(ExpressionListBody { expressions: expressions.collect() })
}
