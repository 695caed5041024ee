//! From an opened checkpoint to a pipeline: which network computes in what, where each goes, and what is left over.

use std::sync::Arc;

use candle_core::Device;
use darkroom_models::ComputeType;
use darkroom_models::arithmetic::Range;
use darkroom_models::checkpoint::{
    Checkpoint, CheckpointParts, Component, ModelKind, Prediction as CheckpointPrediction, PredictionType,
    QwenImageParts,
};
use darkroom_models::clip::{ClipTextConfig, ClipTextEncoder};
use darkroom_models::qwen_image::QwenImageTransformer2DModel;
use darkroom_models::qwen_vl::QwenVlTextEncoder;
use darkroom_models::tokenizer::ClipTokenizer;
use darkroom_models::unet::{UNet2DConditionModel, UNetConfig};
use darkroom_models::vae::{AutoencoderKl, VaeConfig};
use darkroom_models::vae_qwen::{AutoencoderKlQwenImage, QwenVaeConfig};
use darkroom_models::weights::Kept;

use super::loras::KeptWeights;
use super::plan::{self, MemoryPlan, Placement};
use super::{LoadOptions, Pipeline, memory};
use crate::PipelineError;
use crate::autoencoder::{Autoencoder, LatentFormat};
use crate::network::Network;
use crate::request::Limits;
use crate::schedule::{ModelSampling, Prediction};
use crate::text_encoders::TextEncoders;

/// Bytes of activations that the VAE may take before it goes by tiles.
const DEFAULT_ACTIVATION_BUDGET: usize = 6 << 30;
/// The shift of Qwen-Image's noise levels in ComfyUI, where no node says another.
const QWEN_IMAGE_SHIFT: f64 = 1.15;

/// A checkpoint's parts, each of which may be missing.
pub(super) struct Parts<'a> {
    origin: &'a str,
    kind: ModelKind,
    prediction: &'a CheckpointPrediction,
    pub(super) unet: Option<&'a Component<UNetConfig>>,
    pub(super) vae: Option<&'a Component<VaeConfig>>,
    pub(super) clip_l: Option<&'a Component<ClipTextConfig>>,
    pub(super) clip_g: Option<&'a Component<ClipTextConfig>>,
}

/// What models of a family multiply latents by (ComfyUI's `latent_formats`), where no VAE's config says it.
fn own_latent_scale(kind: ModelKind) -> f64 {
    if kind == ModelKind::Sd15 { 0.18215 } else { 0.13025 }
}

impl Pipeline {
    /// Builds the networks of an opened checkpoint, computing in `f32` throughout. Every tensor of every part must be used.
    pub fn load(checkpoint: &Checkpoint, device: &Device) -> Result<Self, PipelineError> {
        Self::load_at(checkpoint, device, ComputeType::Full)
    }

    /// The same with other [`LoadOptions`], of which a [`ComputeType`] alone is one. The text encoders' activations are always `f32`:
    /// they take a small part of the time and everything else hangs on them.
    pub fn load_at(
        checkpoint: &Checkpoint,
        device: &Device,
        options: impl Into<LoadOptions>,
    ) -> Result<Self, PipelineError> {
        let Checkpoint { origin, kind, prediction, unet, vae, clip_l, clip_g, .. } = checkpoint;
        let parts = Parts {
            origin,
            kind: *kind,
            prediction,
            unet: Some(unet),
            vae: Some(vae),
            clip_l: Some(clip_l),
            clip_g: clip_g.as_ref(),
        };
        Self::load_parts(&parts, device, options.into())
    }

    /// The same of a checkpoint that may lack parts: a UNet, text encoders or a VAE from a file of their own. Stages
    /// that need what is missing fail and name it.
    pub fn load_partial(
        checkpoint: &CheckpointParts,
        device: &Device,
        options: impl Into<LoadOptions>,
    ) -> Result<Self, PipelineError> {
        let CheckpointParts { origin, kind, prediction, unet, vae, clip_l, clip_g, .. } = checkpoint;
        let parts = Parts {
            origin,
            kind: *kind,
            prediction,
            unet: unet.as_ref(),
            vae: vae.as_ref(),
            clip_l: clip_l.as_ref(),
            clip_g: clip_g.as_ref(),
        };
        Self::load_parts(&parts, device, options.into())
    }

    fn load_parts(
        checkpoint: &Parts<'_>,
        device: &Device,
        options: LoadOptions,
    ) -> Result<Self, PipelineError> {
        let compute_type = options.compute_type;
        let prediction = match checkpoint.prediction.kind {
            PredictionType::Epsilon => Prediction::Epsilon,
            PredictionType::V => Prediction::V,
        };
        let vae_device = darkroom_models::device::beside(device)?;
        let mut weight_bytes = memory::network_bytes(checkpoint, compute_type);
        let text_bytes = memory::text_bytes(checkpoint);
        let text_device = options.text_device(weight_bytes + text_bytes, device);
        if text_device.same_device(device) {
            weight_bytes += text_bytes;
        } else {
            tracing::info!(
                origin = checkpoint.origin,
                "text encoders compute on the CPU: the card has no room for them"
            );
        }
        if let Some(budget) = options.budget.filter(|budget| weight_bytes > *budget) {
            return Err(PipelineError::TooLarge {
                origin: checkpoint.origin.into(),
                bytes: weight_bytes,
                budget,
            });
        }
        let text_encoder = |part: &Component<ClipTextConfig>| -> Result<_, PipelineError> {
            let weights = part.weights.on(&text_device);
            weights.keep();
            let encoder = ClipTextEncoder::load(&part.config, &weights)?;
            weights.finish()?;
            Ok((encoder, weights.kept()))
        };
        let (clip_l, kept_clip_l) = checkpoint.clip_l.map(text_encoder).transpose()?.unzip();
        let (clip_g, kept_clip_g) = checkpoint.clip_g.map(text_encoder).transpose()?.unzip();
        let vae = |part: &Component<VaeConfig>| -> Result<_, PipelineError> {
            let vae = AutoencoderKl::load(
                &part.config,
                &part.weights.on(&vae_device).computing(compute_type, Range::Wide),
            )?;
            part.weights.finish()?;
            Ok(vae)
        };
        let latent_scale = match checkpoint.vae {
            Some(vae) => vae.config.scaling_factor,
            None => own_latent_scale(checkpoint.kind),
        };
        let vae = checkpoint.vae.map(vae).transpose()?;
        let unet = |part: &Component<UNetConfig>| -> Result<_, PipelineError> {
            let weights = part.weights.computing(compute_type, Range::Half);
            weights.keep();
            let unet = UNet2DConditionModel::load(&part.config, &weights)?;
            weights.finish()?;
            Ok((unet, weights.kept()))
        };
        let (unet, kept_unet) = checkpoint.unet.map(unet).transpose()?.unzip();
        let kept = KeptWeights {
            unet: kept_unet.unwrap_or_else(|| Kept::none(checkpoint.origin, device)),
            clip_l: kept_clip_l.unwrap_or_else(|| Kept::none(checkpoint.origin, &text_device)),
            clip_g: kept_clip_g,
        };
        Ok(Self {
            kind: checkpoint.kind,
            device: device.clone(),
            vae_device,
            origin: checkpoint.origin.into(),
            text: TextEncoders::Clip {
                tokenizer: ClipTokenizer::standard()?,
                clip_l: clip_l.map(Box::new),
                clip_g: clip_g.map(Box::new),
            },
            network: unet.map(|unet| Network::UNet(unet.into())),
            kept: Arc::new(kept),
            merged: None,
            vae: vae.map(|vae| Autoencoder::Kl(vae.into())),
            latent_format: LatentFormat::Scaled(latent_scale),
            sampling: match checkpoint.prediction.zero_terminal_snr {
                true => ModelSampling::zero_terminal_snr(prediction),
                false => ModelSampling::scaled_linear(prediction),
            },
            limits: Limits::default(),
            embeddings: None,
            compute_type,
            activation_budget: DEFAULT_ACTIVATION_BUDGET,
            weight_bytes,
        })
    }

    /// The same of Qwen-Image, which may lack parts. Where `options` say that there is not room for everything, blocks of
    /// the text encoder, and then of the transformer, are read from their files each time that their turn comes.
    ///
    /// # Errors
    /// A tensor is missing, damaged or of another shape than its network needs, or there is no room even so.
    pub fn load_qwen_image(
        parts: &QwenImageParts,
        device: &Device,
        options: impl Into<LoadOptions>,
    ) -> Result<Self, PipelineError> {
        let options = options.into();
        let vae_device = darkroom_models::device::beside(device)?;
        let plan = MemoryPlan::of(parts, device, &options);
        if let Some(budget) = options.budget.filter(|budget| plan.resident_bytes() > *budget) {
            let (origin, bytes) = (parts.origin.clone(), plan.resident_bytes());
            return Err(PipelineError::TooLarge { origin, bytes, budget });
        }
        let placed = |weights: darkroom_models::weights::Weights, placement| match placement {
            Placement::Resident => weights,
            Placement::Streamed => weights.streaming(),
        };
        let encoder = parts.text_encoder.as_ref().map(|part| -> Result<_, PipelineError> {
            let weights = placed(part.weights.on(device), plan.text_encoder.placement);
            let encoder = QwenVlTextEncoder::load(&part.config, &weights)?;
            weights.finish()?;
            Ok(encoder)
        });
        let encoder = encoder.transpose()?;
        let vae = parts.vae.as_ref().map(|part| -> Result<_, PipelineError> {
            let weights = part.weights.on(&vae_device).computing(options.compute_type, Range::Wide);
            let vae = AutoencoderKlQwenImage::load(&part.config, &weights)?;
            part.weights.finish()?;
            Ok(vae)
        });
        let vae = vae.transpose()?;
        let transformer = parts.transformer.as_ref().map(|part| -> Result<_, PipelineError> {
            let weights = plan::transformer_weights(&part.weights, options.compute_type);
            let weights = placed(weights, plan.transformer.placement);
            weights.keep();
            let transformer = QwenImageTransformer2DModel::load(&part.config, &weights)?;
            weights.finish()?;
            Ok((transformer, weights.kept()))
        });
        let (transformer, kept) = transformer.transpose()?.unzip();
        let none = |device: &Device| Kept::none(&parts.origin, device);
        let kept =
            KeptWeights { unet: kept.unwrap_or_else(|| none(device)), clip_l: none(device), clip_g: None };
        let vae_config = parts.vae.as_ref().map_or_else(QwenVaeConfig::default, |part| part.config.clone());
        Ok(Self {
            kind: ModelKind::QwenImage,
            device: device.clone(),
            vae_device,
            origin: parts.origin.as_str().into(),
            text: TextEncoders::QwenVl { tokenizer: parts.tokenizer.clone(), encoder: encoder.map(Box::new) },
            network: transformer.map(|network| Network::QwenImage(network.into())),
            kept: kept.into(),
            merged: None,
            vae: vae.map(|vae| Autoencoder::QwenImage(vae.into())),
            latent_format: LatentFormat::Normalised(vae_config),
            sampling: ModelSampling::flux(QWEN_IMAGE_SHIFT),
            limits: Limits::default(),
            embeddings: None,
            compute_type: options.compute_type,
            activation_budget: match options.budget {
                Some(_) => usize::try_from(plan.decode_bytes).unwrap_or(DEFAULT_ACTIVATION_BUDGET),
                None => DEFAULT_ACTIVATION_BUDGET,
            },
            weight_bytes: plan.resident_bytes(),
        })
    }
}
