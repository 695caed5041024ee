//! The native API, one file a resource.

mod auxiliaries;
mod bank;
mod batch;
mod character_packs;
mod events;
mod expressions;
mod follow;
mod image_files;
mod image_request;
mod images;
mod models;
mod poses;
mod queue;
mod scenes;
mod socket;
mod tasks;
mod templates;

use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::app::App;

pub(super) use events::data_url;
pub(super) use image_request::{FormatName, ImagesRequest};
pub(super) use images::Drawing;
pub(super) use models::models as model_list;
pub(super) use socket::origin_may_listen;

/// Its routes.
pub(super) fn routes() -> OpenApiRouter<App> {
    OpenApiRouter::new()
        .routes(routes!(images::create))
        .routes(routes!(batch::create))
        .routes(routes!(image_files::fetch))
        .routes(routes!(character_packs::prototypes))
        .routes(routes!(character_packs::expressions))
        .routes(routes!(character_packs::full_body))
        .routes(routes!(character_packs::outfit_change))
        .routes(routes!(character_packs::stickers))
        .routes(routes!(scenes::generate))
        .routes(routes!(expressions::list))
        .routes(routes!(poses::list))
        .routes(routes!(poses::picture))
        .routes(routes!(templates::list))
        .routes(routes!(templates::picture))
        .routes(routes!(tasks::list))
        .routes(routes!(tasks::show, tasks::cancel))
        .routes(routes!(events::stream))
        .routes(routes!(socket::open))
        .routes(routes!(models::list))
        .routes(routes!(models::show))
        .routes(routes!(models::load))
        .routes(routes!(models::unload))
        .routes(routes!(auxiliaries::loras))
        .routes(routes!(auxiliaries::control_nets))
        .routes(routes!(queue::show))
        .routes(routes!(bank::forget))
}
