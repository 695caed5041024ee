//! OpenAI's images API: requests and answers as its published clients expect them. The list of models is the native
//! one, which has OpenAI's fields.

mod errors;
mod generations;

use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::app::App;

pub(super) use errors::reword;

/// Its routes.
pub(super) fn routes() -> OpenApiRouter<App> {
    OpenApiRouter::new().routes(routes!(generations::create))
}
