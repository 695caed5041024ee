//! What works beside models, as clients see it: LoRAs, ControlNets, and the networks that find faces, depth and
//! backgrounds.

use super::Service;
use crate::catalog::{AuxiliaryEntry, AuxiliaryKind};
use crate::config::ControlsConfig;

/// What a ControlNet is steered by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ControlType {
    /// Edges.
    Canny,
    /// Skeletons.
    OpenPose,
    /// Nearness.
    Depth,
}

impl ControlType {
    /// All.
    pub const ALL: [Self; 3] = [Self::Canny, Self::OpenPose, Self::Depth];

    /// Its name in requests, answers and the configuration.
    pub fn name(self) -> &'static str {
        match self {
            Self::Canny => "canny",
            Self::OpenPose => "openpose",
            Self::Depth => "depth",
        }
    }

    /// What the names of such files say, in lower case.
    fn words(self) -> &'static [&'static str] {
        match self {
            Self::Canny => &["canny"],
            Self::OpenPose => &["openpose", "open_pose", "dwpose", "dw_pose"],
            Self::Depth => &["depth"],
        }
    }

    /// The id that the configuration names for it.
    pub fn configured(self, config: &ControlsConfig) -> Option<&str> {
        match self {
            Self::Canny => config.canny.as_deref(),
            Self::OpenPose => config.openpose.as_deref(),
            Self::Depth => config.depth.as_deref(),
        }
    }

    /// What the ControlNet called `id` is for: as configured, else as its name says.
    fn of(id: &str, config: &ControlsConfig) -> Option<Self> {
        let plain = |id: &str| id.strip_suffix(".safetensors").unwrap_or(id).to_owned();
        let configured = Self::ALL
            .into_iter()
            .find(|kind| kind.configured(config).is_some_and(|named| plain(named) == id));
        let name = id.to_lowercase();
        configured.or_else(|| {
            Self::ALL.into_iter().find(|kind| kind.words().iter().any(|word| name.contains(word)))
        })
    }
}

/// A file that works beside models, as clients see it.
#[derive(Debug, Clone, PartialEq)]
pub struct AuxiliaryInfo {
    /// Its id.
    pub id: String,
    /// What sort.
    pub kind: AuxiliaryKind,
    /// `sdxl`, `sd15`, `flux`, …, where its header tells.
    pub family: Option<&'static str>,
    /// Columns of the text that its cross-attention reads, where it has any.
    pub width: Option<usize>,
    /// What it is steered by, if it is a ControlNet.
    pub control_type: Option<ControlType>,
    /// Words that call what a LoRA was trained on.
    pub trigger_words: Vec<String>,
    /// Bytes of the file.
    pub bytes: u64,
    /// Changes with the file.
    pub revision: u64,
    /// Whether it is compiled in.
    pub built_in: bool,
    /// Why it cannot be used, if its header says so.
    pub problem: Option<String>,
}

/// What decides whether a LoRA or a ControlNet fits a model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelFit {
    /// The model's id.
    pub model: String,
    /// `sdxl`, `sd15`, …
    pub family: String,
    /// Columns of the text that its cross-attention reads, where its header tells.
    pub width: Option<usize>,
}

impl AuxiliaryInfo {
    /// Why it does not go with a model, if that can be told before it is tried.
    pub fn misfit(&self, fit: &ModelFit) -> Option<String> {
        let ModelFit { model, family, width } = fit;
        let (id, what) = (&self.id, self.kind.name());
        if let Some(own) = self.family
            && own != family
        {
            return Some(format!("the {what} '{id}' is for {own}, the model '{model}' is {family}"));
        }
        match (self.width, width) {
            (Some(own), Some(theirs)) if own != *theirs => Some(format!(
                "the {what} '{id}' reads text of width {own}, the model '{model}' has width {theirs}: it was made for \
                 another model"
            )),
            _ => None,
        }
    }

    /// Whether it can be used with a model, as far as headers tell.
    pub fn suits(&self, fit: &ModelFit) -> bool {
        self.problem.is_none() && self.misfit(fit).is_none()
    }
}

impl Service {
    /// Everything of a kind, built-in ones first. Looks at the disk.
    pub fn auxiliaries(&self, kind: AuxiliaryKind) -> Vec<AuxiliaryInfo> {
        self.0.catalog.auxiliaries(kind).into_iter().map(|entry| self.auxiliary_info(entry)).collect()
    }

    /// All LoRAs.
    pub fn loras(&self) -> Vec<AuxiliaryInfo> {
        self.auxiliaries(AuxiliaryKind::Lora)
    }

    /// All ControlNets.
    pub fn control_nets(&self) -> Vec<AuxiliaryInfo> {
        self.auxiliaries(AuxiliaryKind::ControlNet)
    }

    /// What decides whether something fits this model.
    pub fn model_fit(&self, model: &str) -> Option<ModelFit> {
        let entry = self.0.catalog.find(model)?;
        let width = self.0.catalog.width(&entry);
        Some(ModelFit { family: super::models::family(&entry), model: entry.id, width })
    }

    fn auxiliary_info(&self, entry: AuxiliaryEntry) -> AuxiliaryInfo {
        let about = self.0.catalog.about(&entry);
        let control_type = (entry.kind == AuxiliaryKind::ControlNet)
            .then(|| ControlType::of(&entry.id, &self.0.config.controls))
            .flatten();
        AuxiliaryInfo {
            kind: entry.kind,
            family: about.family,
            width: about.width,
            control_type,
            trigger_words: about.trigger_words,
            bytes: entry.bytes,
            revision: entry.revision(),
            built_in: entry.is_built_in(),
            problem: about.problem,
            id: entry.id,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lora(family: Option<&'static str>, width: Option<usize>) -> AuxiliaryInfo {
        AuxiliaryInfo {
            id: "mia".into(),
            kind: AuxiliaryKind::Lora,
            family,
            width,
            control_type: None,
            trigger_words: Vec::new(),
            bytes: 1,
            revision: 0,
            built_in: false,
            problem: None,
        }
    }

    #[test]
    fn what_was_made_for_another_model_is_told_by_family_and_width() {
        let fit = ModelFit { model: "tiny".into(), family: "sdxl".into(), width: Some(128) };
        assert_eq!(lora(Some("sdxl"), Some(128)).misfit(&fit), None);
        assert_eq!(lora(None, None).misfit(&fit), None);
        let family = lora(Some("sd15"), Some(768)).misfit(&fit).unwrap();
        assert!(family.contains("sd15") && family.contains("'tiny'"), "{family}");
        let width = lora(Some("sdxl"), Some(2048)).misfit(&fit).unwrap();
        assert!(width.contains("2048") && width.contains("128"), "{width}");
    }

    #[test]
    fn a_controlnets_use_is_what_the_configuration_or_its_name_says() {
        let config = ControlsConfig { depth: Some("special.safetensors".into()), ..Default::default() };
        let of = |id| ControlType::of(id, &config);
        assert_eq!(of("sdxl/diffusers_xl_Canny_full"), Some(ControlType::Canny));
        assert_eq!(of("control-dwpose"), Some(ControlType::OpenPose));
        assert_eq!(of("special"), Some(ControlType::Depth));
        assert_eq!(of("tile"), None);
    }
}
