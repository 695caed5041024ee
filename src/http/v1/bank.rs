//! `DELETE /v1/expression-bank`: forget stored expressions.

use axum::Json;
use axum::extract::State;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use crate::http::app::App;
use crate::http::auth::Client;
use crate::http::error::ApiError;
use crate::http::extract::Params;

#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct BankParams {
    /// Only this character's: its `character_id`, or the `character_lora_id` where there was none.
    character: Option<String>,
}

/// What was forgotten.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct ForgottenBody {
    /// How many pictures the bank no longer knows. Tasks that have them keep them.
    removed: u64,
}

/// Forgets pictures of the expression bank: one character's, or all of this key.
#[utoipa::path(
    delete,
    path = "/v1/expression-bank",
    tag = "character packs",
    params(BankParams),
    responses((status = 200, body = ForgottenBody, description = "They are forgotten"))
)]
pub(super) async fn forget(
    State(app): State<App>,
    client: Client,
    Params(params): Params<BankParams>,
) -> Result<Json<ForgottenBody>, ApiError> {
    let removed = app.service.invalidate_bank(&client.owner, params.character.as_deref()).await?;
    Ok(Json(ForgottenBody { removed }))
}
