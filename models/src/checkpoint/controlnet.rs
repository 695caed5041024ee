//! ControlNet files, told by their headers: which models one is made for, whether it is of a form that can be
//! used, and the canonical names of its tensors. The network itself is in `controlnet`.

use std::collections::BTreeMap;
use std::fmt;

use serde::Serialize;

use super::kind::{classify, unet_kind};
use super::{ModelKind, keys};
use crate::unet::UNetConfig;
use crate::weights::Header;

/// What cldm's files keep a ControlNet under, beside the base model that some of them hold too.
const CLDM: &str = "control_model.";

/// The models that a ControlNet is made for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum ControlNetFamily {
    /// SDXL base and its finetunes.
    Sdxl,
    /// Stable Diffusion 1.x and its finetunes.
    Sd15,
    /// Stable Diffusion 2.x.
    Sd2,
    /// Models that are not recognised (Flux, Stable Diffusion 3, …).
    Unknown,
}

impl ControlNetFamily {
    /// The family of the models whose UNet has this config.
    pub fn of_base(base: &UNetConfig) -> Self {
        Self::of(Some(base.cross_attention_dim), base.addition.is_some())
    }

    fn of(context: Option<usize>, addition: bool) -> Self {
        if context.is_none() && !addition {
            return Self::Unknown;
        }
        match unet_kind(context, addition) {
            ModelKind::Sdxl => Self::Sdxl,
            ModelKind::Sd15 => Self::Sd15,
            ModelKind::Sd2 => Self::Sd2,
            _ => Self::Unknown,
        }
    }
}

impl fmt::Display for ControlNetFamily {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Sdxl => "SDXL",
            Self::Sd15 => "SD 1.5",
            Self::Sd2 => "SD 2",
            Self::Unknown => "another model family",
        })
    }
}

/// In what form a file holds a ControlNet. Only [`ControlNetForm::Plain`] can be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum ControlNetForm {
    /// One network for one type of control.
    Plain,
    /// One network for many types of control, which is told the type (xinsir's "union").
    Union,
    /// Low-rank differences to the base model (Stability's "control-lora").
    ControlLora,
    /// Full differences to the base model.
    Difference,
}

impl ControlNetForm {
    /// Why a file of this form cannot be used, and what can instead.
    pub fn problem(self) -> Option<&'static str> {
        match self {
            Self::Plain => None,
            Self::Union => {
                Some("control-type union models are not supported yet: use a ControlNet for one control type")
            }
            Self::ControlLora => {
                Some("control-LoRA files are not supported: use the full ControlNet of the same control type")
            }
            Self::Difference => Some(
                "it holds differences to a base model, not a whole network: use the full ControlNet of the \
                 same control type",
            ),
        }
    }
}

/// What a ControlNet file is, from its header alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct ControlNetKind {
    /// The models that it is made for.
    pub family: ControlNetFamily,
    /// Whether it is of a form that can be used.
    pub form: ControlNetForm,
}

impl ControlNetKind {
    /// `None` when the file is no ControlNet.
    pub fn of(header: &Header) -> Option<Self> {
        if classify(header).0 != ModelKind::ControlNet {
            return None;
        }
        let prefix = prefix(header);
        let names = || header.tensors.keys().filter_map(|name| name.strip_prefix(prefix));
        let has = |start: &str| names().any(|name| name.starts_with(start));
        let context = header.tensors.iter().find(|(name, _)| {
            name.starts_with(prefix) && name.ends_with(".transformer_blocks.0.attn2.to_k.weight")
        });
        let context = context.and_then(|(_, info)| info.shape.get(1).copied());
        // What other families' ControlNets project with.
        let family = if has("controlnet_blocks.") || has("controlnet_x_embedder.") {
            ControlNetFamily::Unknown
        } else {
            ControlNetFamily::of(context, has("add_embedding.") || has("label_emb."))
        };
        let marked = |mark: &str| header.tensors.contains_key(mark);
        let form = if marked("lora_controlnet") {
            ControlNetForm::ControlLora
        } else if marked("difference") {
            ControlNetForm::Difference
        } else if ["task_embedding", "control_add_embedding.", "transformer_layes."].into_iter().any(has) {
            ControlNetForm::Union
        } else {
            ControlNetForm::Plain
        };
        Some(Self { family, form })
    }
}

fn prefix(header: &Header) -> &'static str {
    let from = (std::ops::Bound::Included(CLDM), std::ops::Bound::Unbounded);
    let mut within = header.tensors.range::<str, _>(from);
    if within.next().is_some_and(|(name, _)| name.starts_with(CLDM)) { CLDM } else { "" }
}

/// Two stored tensors with the same meaning.
pub(crate) struct Twins {
    pub(crate) canonical: String,
    pub(crate) first: String,
    pub(crate) second: String,
}

/// Canonical (diffusers') to stored name of every tensor of the ControlNet that `header` describes. A base
/// model in the same file is left out; names that no layout knows stay as they are.
pub(crate) fn canonical_names(header: &Header) -> Result<BTreeMap<String, String>, Twins> {
    let prefix = prefix(header);
    let own = || header.tensors.keys().filter_map(|name| Some((name, name.strip_prefix(prefix)?)));
    let layers = keys::layers_per_block(own().map(|(_, inner)| inner)).unwrap_or(1);
    let last_hint = keys::last_hint_convolution(own().map(|(_, inner)| inner)).unwrap_or(0);
    let mut names = BTreeMap::new();
    for (stored, inner) in own() {
        // None of these names needs more than renaming.
        let canonical =
            keys::controlnet(inner, layers, last_hint).map_or_else(|| inner.to_owned(), |(name, _)| name);
        if let Some(first) = names.insert(canonical.clone(), stored.clone()) {
            return Err(Twins { canonical, first, second: stored.clone() });
        }
    }
    Ok(names)
}
