//! Finds what a picture is guided by (LoRAs, ControlNets, detectors, removers), checks that it fits the model, and says
//! what there is where it does not. Between the routes and the service's catalog; `requests` has the words of JSON.

mod requests;

pub(super) use requests::{BackgroundName, ControlRequest, DetailRequest, LoraRequest};

use super::error::{ApiError, did_you_mean, shown};
use crate::catalog::AuxiliaryKind;
use crate::config::Config;
use crate::service::{AuxiliaryInfo, ControlType, ModelFit, Service};
use crate::task::LoraSpec;

/// Strengths of LoRAs; negative ones turn their effect round.
const LORA_STRENGTHS: std::ops::RangeInclusive<f64> = -10.0..=10.0;
/// Strengths of ControlNets.
const CONTROL_STRENGTHS: std::ops::RangeInclusive<f64> = 0.0..=10.0;
/// What is shown of a list that has no near name.
const EXAMPLES: usize = 10;

/// Where LoRAs and the like are looked up.
pub(super) trait Shelf: Sync {
    /// Everything of a kind.
    fn list(&self, kind: AuxiliaryKind) -> Vec<AuxiliaryInfo>;
}

impl Shelf for Service {
    fn list(&self, kind: AuxiliaryKind) -> Vec<AuxiliaryInfo> {
        self.auxiliaries(kind)
    }
}

/// What pictures of one model can be guided by.
pub(super) struct Guides<'a> {
    shelf: &'a dyn Shelf,
    config: &'a Config,
    fit: ModelFit,
}

impl<'a> Guides<'a> {
    pub(super) fn new(shelf: &'a dyn Shelf, config: &'a Config, fit: ModelFit) -> Self {
        Self { shelf, config, fit }
    }

    /// The LoRA called `id`, which must fit the model; its name without an extension.
    pub(super) fn lora(&self, field: &str, id: &str) -> Result<AuxiliaryInfo, ApiError> {
        self.find(AuxiliaryKind::Lora, field, id)
    }

    /// The ControlNet called `id`, which must fit the model.
    pub(super) fn control(&self, field: &str, id: &str) -> Result<AuxiliaryInfo, ApiError> {
        self.find(AuxiliaryKind::ControlNet, field, id)
    }

    /// The ControlNet for this use: the configured one, else the first that fits the model.
    pub(super) fn control_for(&self, use_of: ControlType) -> Option<AuxiliaryInfo> {
        let controls = self.shelf.list(AuxiliaryKind::ControlNet);
        let mut fitting = controls
            .into_iter()
            .filter(|control| control.control_type == Some(use_of) && control.suits(&self.fit));
        match use_of.configured(&self.config.controls) {
            Some(id) => fitting.find(|control| control.id == plain(id)),
            None => fitting.next(),
        }
    }

    /// Refuses a use that no ControlNet serves.
    pub(super) fn no_control(&self, field: &str, use_of: ControlType) -> ApiError {
        let model = &self.fit.model;
        let name = use_of.name();
        ApiError::invalid(field, format!("needs a ControlNet for {name}, and none fits the model '{model}'")).hint(
            format!("put one into the models folder's controlnet/, or name it as controls.{name} in the configuration"),
        )
    }

    /// The network that finds faces, if there is one.
    pub(super) fn face_detector(&self) -> Option<String> {
        let there = self.shelf.list(AuxiliaryKind::Detector).into_iter().filter(|one| one.problem.is_none());
        let mut there = there.map(|detector| detector.id);
        match self.config.detail.detector.as_deref() {
            Some(id) => there.find(|there| there == plain(id)),
            None => there.find(|id| id.to_lowercase().contains("face")),
        }
    }

    /// The network that cuts subjects out, if there is one.
    pub(super) fn remover(&self) -> Option<String> {
        let there = self.shelf.list(AuxiliaryKind::Matting).into_iter().filter(|one| one.problem.is_none());
        let mut there = there.map(|remover| remover.id);
        match self.config.background.remover.as_deref() {
            Some(id) => there.find(|there| there == plain(id)),
            None => there.next(),
        }
    }

    /// Whether there is a network that estimates depth.
    pub(super) fn has_depth(&self) -> bool {
        self.shelf.list(AuxiliaryKind::Depth).iter().any(|one| one.problem.is_none())
    }

    /// Which files LoRAs are now: another one of the same name draws another picture.
    pub(super) fn lora_revisions(&self, loras: &[LoraSpec]) -> Vec<u64> {
        // Most pictures have none, and the list looks at the disk.
        let all = if loras.is_empty() { Vec::new() } else { self.shelf.list(AuxiliaryKind::Lora) };
        let revision =
            |spec: &LoraSpec| all.iter().find(|one| one.id == spec.lora).map_or(0, |one| one.revision);
        loras.iter().map(revision).collect()
    }

    fn find(&self, kind: AuxiliaryKind, field: &str, id: &str) -> Result<AuxiliaryInfo, ApiError> {
        let all = self.shelf.list(kind);
        let Some(found) = all.iter().find(|one| one.id == plain(id)) else {
            return Err(missing(kind, field, id, &all));
        };
        if let Some(problem) = &found.problem {
            return Err(ApiError::invalid(field, format!("cannot be '{}': {problem}", shown(id)))
                .hint(format!("put a whole {} in its place, or choose another", kind.name())));
        }
        if let Some(misfit) = found.misfit(&self.fit) {
            let others: Vec<&str> = all
                .iter()
                .filter(|one| one.suits(&self.fit))
                .take(EXAMPLES)
                .map(|one| one.id.as_str())
                .collect();
            let hint = if others.is_empty() {
                format!("there is no {} for this model; choose another model", kind.name())
            } else {
                format!("choose another model, or one that fits this one: {}", others.join(", "))
            };
            return Err(ApiError::invalid(field, format!("does not fit: {misfit}")).hint(hint));
        }
        Ok(found.clone())
    }
}

/// The name as the catalog has it.
fn plain(id: &str) -> &str {
    id.strip_suffix(".safetensors").unwrap_or(id)
}

/// 404 with near names, and where all are listed.
fn missing(kind: AuxiliaryKind, field: &str, id: &str, all: &[AuxiliaryInfo]) -> ApiError {
    let names = || all.iter().map(|one| one.id.as_str());
    let near = did_you_mean(plain(id), names());
    let list = match kind {
        AuxiliaryKind::Lora => "GET /v1/loras lists them",
        AuxiliaryKind::ControlNet => "GET /v1/controlnets lists them",
        _ if all.is_empty() => "there are none in the models folder",
        _ => "leave it out, or name one that is in the models folder",
    };
    let some: Vec<&str> = names().take(EXAMPLES).collect();
    let hint = match near {
        Some(near) => format!("{near} {list}"),
        None if some.is_empty() => list.to_owned(),
        None => format!("{list}; here are {}", some.join(", ")),
    };
    ApiError::not_found(kind.name(), id).field(field).hint(hint)
}

/// Refuses a strength out of bounds, and one that is no number.
pub(super) fn lora_strength(field: &str, strength: f64) -> Result<f64, ApiError> {
    within(field, strength, &LORA_STRENGTHS)
}

/// The same for ControlNets.
pub(super) fn control_strength(field: &str, strength: f64) -> Result<f64, ApiError> {
    within(field, strength, &CONTROL_STRENGTHS)
}

/// A number within bounds; no number is in none.
pub(super) fn within(
    field: &str,
    value: f64,
    range: &std::ops::RangeInclusive<f64>,
) -> Result<f64, ApiError> {
    if range.contains(&value) {
        return Ok(value);
    }
    Err(ApiError::invalid(field, format!("is {value}, must be {} to {}", range.start(), range.end())))
}

#[cfg(test)]
pub(super) mod testing {
    //! A shelf for tests, and a model that some of it fits.

    use super::*;

    /// What is on the shelf.
    #[derive(Default)]
    pub(in crate::http) struct TestShelf(pub(in crate::http) Vec<AuxiliaryInfo>);

    impl Shelf for TestShelf {
        fn list(&self, kind: AuxiliaryKind) -> Vec<AuxiliaryInfo> {
            self.0.iter().filter(|one| one.kind == kind).cloned().collect()
        }
    }

    pub(in crate::http) fn info(kind: AuxiliaryKind, id: &str) -> AuxiliaryInfo {
        AuxiliaryInfo {
            id: id.into(),
            kind,
            family: Some("sdxl"),
            width: Some(128),
            control_type: None,
            trigger_words: Vec::new(),
            bytes: 10,
            revision: 0,
            built_in: false,
            problem: None,
        }
    }

    /// A LoRA `mia` with a trigger word and one `old` that does not fit.
    pub(in crate::http) fn loras() -> Vec<AuxiliaryInfo> {
        let mia = AuxiliaryInfo { trigger_words: vec!["mia_v2".into()], ..info(AuxiliaryKind::Lora, "mia") };
        let old =
            AuxiliaryInfo { family: Some("sd15"), width: Some(768), ..info(AuxiliaryKind::Lora, "old") };
        vec![mia, old]
    }

    pub(in crate::http) fn control(id: &str, use_of: ControlType) -> AuxiliaryInfo {
        AuxiliaryInfo { control_type: Some(use_of), ..info(AuxiliaryKind::ControlNet, id) }
    }

    pub(in crate::http) fn fit() -> ModelFit {
        ModelFit { model: "tiny-sdxl".into(), family: "sdxl".into(), width: Some(128) }
    }
}

#[cfg(test)]
mod tests {
    use super::testing::*;
    use super::*;

    #[test]
    fn an_unknown_lora_is_404_with_near_names_and_one_that_does_not_fit_is_422() {
        let (shelf, config) = (TestShelf(loras()), Config::default());
        let guides = Guides::new(&shelf, &config, fit());
        assert_eq!(guides.lora("id", "mia.safetensors").unwrap().id, "mia");
        let missing = guides.lora("character_lora_id", "miaa").unwrap_err();
        assert_eq!(
            (missing.status().as_u16(), missing.detail().field.as_deref()),
            (404, Some("character_lora_id"))
        );
        let hint = missing.detail().hint.as_deref().unwrap();
        assert!(hint.contains("mia") && hint.contains("GET /v1/loras"), "{hint}");
        let misfit = guides.lora("id", "old").unwrap_err();
        assert_eq!(misfit.status().as_u16(), 422);
        assert!(misfit.detail().message.contains("sd15"), "{misfit:?}");
        assert!(misfit.detail().hint.as_deref().unwrap().contains("mia"));
    }

    #[test]
    fn a_use_takes_the_configured_controlnet_else_the_first_that_fits() {
        let misfit = AuxiliaryInfo { family: Some("sd15"), ..control("a", ControlType::Canny) };
        let others = [control("b", ControlType::Canny), control("c", ControlType::Canny)];
        let shelf = TestShelf([vec![misfit], others.to_vec()].concat());
        let mut config = Config::default();
        let found = |config: &Config| {
            Guides::new(&shelf, config, fit()).control_for(ControlType::Canny).map(|control| control.id)
        };
        assert_eq!(found(&config).as_deref(), Some("b"));
        config.controls.canny = Some("c.safetensors".into());
        assert_eq!(found(&config).as_deref(), Some("c"));
        config.controls.canny = Some("a".into());
        assert_eq!(found(&config), None);
        assert!(Guides::new(&shelf, &config, fit()).control_for(ControlType::Depth).is_none());
    }

    #[test]
    fn strengths_that_are_no_numbers_are_refused() {
        assert_eq!(lora_strength("s", -1.0), Ok(-1.0));
        for wrong in [f64::NAN, f64::INFINITY, -10.1, 11.0] {
            assert!(lora_strength("s", wrong).is_err(), "{wrong}");
        }
        assert!(control_strength("s", -0.1).is_err());
    }
}
