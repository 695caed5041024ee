//! `GET /v1/loras` and `GET /v1/controlnets`: what works beside models.

use axum::Json;
use axum::extract::State;
use serde::Serialize;
use utoipa::ToSchema;

use crate::http::app::App;
use crate::http::auth::Client;
use crate::service::{AuxiliaryInfo, ControlType};

/// All LoRAs.
#[derive(Debug, PartialEq, Serialize, ToSchema)]
pub(super) struct LoraListBody {
    /// Built-in ones first, then by name.
    loras: Vec<LoraInfoBody>,
}

/// A LoRA.
#[derive(Debug, PartialEq, Serialize, ToSchema)]
pub(super) struct LoraInfoBody {
    /// Its id, as requests name it.
    id: String,
    /// `sdxl`, `sd15`, …: the models that it was made for; null where its header does not tell.
    family: Option<&'static str>,
    /// Words that call what it was trained on, from its metadata.
    trigger_words: Vec<String>,
    /// Bytes of the file.
    bytes: u64,
    /// Whether it is compiled in.
    built_in: bool,
    /// Why it cannot be used.
    #[serde(skip_serializing_if = "Option::is_none")]
    problem: Option<String>,
}

/// All ControlNets.
#[derive(Debug, PartialEq, Serialize, ToSchema)]
pub(super) struct ControlNetListBody {
    /// Built-in ones first, then by name.
    controlnets: Vec<ControlNetInfoBody>,
}

/// A ControlNet.
#[derive(Debug, PartialEq, Serialize, ToSchema)]
pub(super) struct ControlNetInfoBody {
    /// Its id, as requests name it.
    id: String,
    /// `canny`, `openpose` or `depth`: as the configuration or its name says; null where neither does.
    #[serde(rename = "type")]
    control_type: Option<&'static str>,
    /// `sdxl`, `sd15`, …: the models that it was made for; null where its header does not tell.
    family: Option<&'static str>,
    /// Bytes of the file.
    bytes: u64,
    /// Whether it is compiled in.
    built_in: bool,
    /// Why it cannot be used.
    #[serde(skip_serializing_if = "Option::is_none")]
    problem: Option<String>,
}

impl From<AuxiliaryInfo> for LoraInfoBody {
    fn from(info: AuxiliaryInfo) -> Self {
        let AuxiliaryInfo { id, family, trigger_words, bytes, built_in, problem, .. } = info;
        Self { id, family, trigger_words, bytes, built_in, problem }
    }
}

impl From<AuxiliaryInfo> for ControlNetInfoBody {
    fn from(info: AuxiliaryInfo) -> Self {
        let control_type = info.control_type.map(ControlType::name);
        let AuxiliaryInfo { id, family, bytes, built_in, problem, .. } = info;
        Self { id, control_type, family, bytes, built_in, problem }
    }
}

/// Lists LoRAs.
#[utoipa::path(
    get,
    path = "/v1/loras",
    tag = "models",
    responses((status = 200, body = LoraListBody, description = "All LoRAs"))
)]
pub(super) async fn loras(State(app): State<App>, _client: Client) -> Json<LoraListBody> {
    Json(LoraListBody { loras: app.service.loras().into_iter().map(Into::into).collect() })
}

/// Lists ControlNets.
#[utoipa::path(
    get,
    path = "/v1/controlnets",
    tag = "models",
    responses((status = 200, body = ControlNetListBody, description = "All ControlNets"))
)]
pub(super) async fn control_nets(State(app): State<App>, _client: Client) -> Json<ControlNetListBody> {
    Json(ControlNetListBody { controlnets: app.service.control_nets().into_iter().map(Into::into).collect() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::guides::testing::{control, loras};

    #[test]
    fn a_lora_is_listed_with_its_words_and_a_controlnet_with_its_type() {
        let mia = serde_json::to_value(LoraInfoBody::from(loras().remove(0))).unwrap();
        assert_eq!((&mia["id"], &mia["trigger_words"][0]), (&"mia".into(), &"mia_v2".into()));
        assert!(mia.get("problem").is_none());
        let canny = ControlNetInfoBody::from(control("xl", ControlType::Canny));
        let canny = serde_json::to_value(canny).unwrap();
        assert_eq!((&canny["type"], &canny["family"]), (&"canny".into(), &"sdxl".into()));
    }
}
