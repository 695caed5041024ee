//! What LoRAs need of a pipeline: the pristine weights to bind to, and variants of it with LoRAs merged in.

use std::sync::Arc;

use darkroom_models::lora::{self, DenoiserKind, Lora, LoraFile, LoraPart, LoraTarget};
use darkroom_models::qwen_image::QwenImageTransformer2DModel;
use darkroom_models::unet::UNet2DConditionModel;
use darkroom_models::weights::{Kept, KeptTensor};
use darkroom_models::{ComputeType, Computed};

use super::Pipeline;
use crate::PipelineError;
use crate::lora::{LoraSet, StackedLora};
use crate::network::Network;

/// What becomes of merged weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rounding {
    /// Each is rounded once to the type that the model's file stores it in, as ComfyUI does: they take no more memory
    /// than the model's own.
    ToStored,
    /// They stay in `f32`: what is drawn equals what adapters draw, to the last bits of a product.
    None,
}

/// What the networks took from the model's file, unchanged.
pub(super) struct KeptWeights {
    pub(super) unet: Kept,
    pub(super) clip_l: Kept,
    pub(super) clip_g: Option<Kept>,
}

impl Pipeline {
    /// Finds the layers that a LoRA changes and brings it to where their networks are.
    ///
    /// # Errors
    /// When it was made for another family of models, or is damaged.
    pub fn bind_lora(&self, file: &LoraFile) -> Result<Lora, PipelineError> {
        let target = LoraTarget {
            denoiser: &self.kept.unet,
            kind: self.network.as_ref().map(|network| match network {
                Network::UNet(unet) => DenoiserKind::UNet(unet.config()),
                Network::QwenImage(_) => DenoiserKind::QwenImage,
            }),
            clip_l: &self.kept.clip_l,
            clip_g: self.kept.clip_g.as_ref(),
        };
        Ok(file.bind(&target)?)
    }

    /// A stack of bound LoRAs, ready to draw with.
    pub fn lora_set(&self, stack: Vec<StackedLora>) -> Result<LoraSet, PipelineError> {
        let part = |part: fn(&Lora) -> &LoraPart, strength: fn(&StackedLora) -> f64| {
            stack.iter().map(|stacked| (part(&stacked.lora), strength(stacked))).collect::<Vec<_>>()
        };
        let unet = lora::adapter(&self.kept.unet, &part(|lora| &lora.unet, |stacked| stacked.strength))?;
        let text = |stacked: &StackedLora| stacked.text_strength;
        let clip_l = lora::adapter(&self.kept.clip_l, &part(|lora| &lora.clip_l, text))?;
        let clip_g = match &self.kept.clip_g {
            Some(kept) => lora::adapter(kept, &part(|lora| &lora.clip_g, text))?,
            None => Default::default(),
        };
        Ok(LoraSet::new(stack, unet, clip_l, clip_g))
    }

    /// Whether LoRAs can be merged into the weights so that the picture does not show it. In 8 bits a changed layer would be
    /// rounded anew; blocks that are read from the file each time are not there to be changed.
    pub fn can_merge(&self) -> bool {
        let kept = &self.kept.unet;
        kept.computed() != Computed::Fp8 && !kept.is_stored_eight_bit() && !kept.is_streamed()
    }

    /// This pipeline with a stack merged into its UNet's weights. It shares everything that the stack does not change;
    /// dropping it leaves this one as it was. It draws samples of this very stack only.
    pub fn with_merged(&self, set: &Arc<LoraSet>, rounding: Rounding) -> Result<Self, PipelineError> {
        let merge = match rounding {
            Rounding::ToStored => lora::merge,
            Rounding::None => lora::merge_unrounded,
        };
        let replaced = merge(&self.kept.unet, &set.unet_stack())?;
        let weights = self.kept.unet.with_replaced(replaced);
        let network = match self.network()? {
            Network::UNet(unet) => Network::UNet(UNet2DConditionModel::load(unet.config(), &weights)?.into()),
            Network::QwenImage(transformer) => {
                Network::QwenImage(QwenImageTransformer2DModel::load(transformer.config(), &weights)?.into())
            }
        };
        weights.finish()?;
        Ok(Self { network: Some(network), merged: Some(Arc::clone(set)), ..self.clone() })
    }

    /// Bytes that [`Self::with_merged`] takes beside this pipeline's own.
    pub fn merged_bytes(&self, set: &LoraSet, rounding: Rounding) -> u64 {
        let changed = |name: &str| {
            let layer = name.rsplit_once('.').map_or(name, |(layer, _)| layer);
            set.unet.get(layer).is_some()
        };
        let weights = self.kept.unet.iter().filter(|(name, _)| changed(name));
        let bytes = |kept: &KeptTensor| match rounding {
            Rounding::ToStored => kept.bytes(),
            Rounding::None if kept.is_eight_bit() => kept.bytes(),
            Rounding::None => {
                (kept.tensor.elem_count() * self.kept.unet.activations().size_in_bytes()) as u64
            }
        };
        weights.map(|(_, kept)| bytes(kept)).sum()
    }

    /// The network's weights as they are in the model's file, by canonical name.
    pub fn unet_weights(&self) -> &Kept {
        &self.kept.unet
    }

    /// The network's shape: what ControlNets must fit.
    ///
    /// # Errors
    /// When the checkpoint has no UNet.
    pub fn unet_config(&self) -> Result<&darkroom_models::unet::UNetConfig, PipelineError> {
        Ok(self.unet()?.config())
    }

    /// What its UNet's products are formed in.
    pub fn computed(&self) -> Computed {
        self.kept.unet.computed()
    }

    /// What its networks were asked to compute in.
    pub fn compute_type(&self) -> ComputeType {
        self.compute_type
    }

    /// Where its tensors are.
    pub fn device(&self) -> &candle_core::Device {
        &self.device
    }
}
