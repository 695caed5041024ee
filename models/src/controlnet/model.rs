//! The whole network: opening a file for a model, embedding hints, residuals.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use candle_core::{DType, Device, Tensor, bail};

use super::config::CELL;
use super::hint::HintEncoder;
use super::{ControlNetConfig, ControlNetError, ControlNetFamily, ControlNetKind};
use crate::adapter::Adapters;
use crate::arithmetic::{ComputeType, Range};
use crate::checkpoint::{Twins, canonical_names, classify};
use crate::identity::Identity;
use crate::layers::{Linear, channels_last};
use crate::unet::{Condition, ConditionEmbedding, UNetConfig, UNetEncoder, UNetFeatures, UNetInput};
use crate::weights::{Stored, Transform, WeightFile, Weights, WeightsError};

/// What a diffusers folder calls its weights.
const FOLDER_FILES: [&str; 2] =
    ["diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.fp16.safetensors"];

/// diffusers' `ControlNetModel`.
#[derive(Debug, Clone)]
pub struct ControlNet {
    config: ControlNetConfig,
    hint: HintEncoder,
    embedding: ConditionEmbedding,
    encoder: UNetEncoder,
    /// One a skip, the stem's first.
    projections: Vec<Linear>,
    middle_projection: Linear,
    activations: DType,
    weight_bytes: u64,
    identity: Identity,
}

impl ControlNet {
    /// Loads the ControlNet at `path` (a file with diffusers', ldm's or ComfyUI's names, or a diffusers folder)
    /// to steer a model whose UNet is `base`, computing at full precision.
    ///
    /// # Errors
    /// As [`ControlNet::from_file`], and when there is no such file.
    pub fn open(path: &Path, base: &UNetConfig, device: &Device) -> Result<Self, ControlNetError> {
        let file = if path.is_dir() {
            let candidates = FOLDER_FILES.map(|file| path.join(file));
            let Some(file) = candidates.into_iter().find(|file| file.exists()) else {
                return Err(ControlNetError::NoWeights { folder: path.display().to_string() });
            };
            WeightFile::open(&file)?
        } else {
            WeightFile::open(path)?
        };
        Self::from_file(Arc::new(file), base, device, ComputeType::Full)
    }

    /// Loads the ControlNet in `file` to steer a model whose UNet is `base`.
    ///
    /// # Errors
    /// When it is no ControlNet, one of an unsupported form, made for other models than `base`, damaged or
    /// incomplete.
    #[expect(clippy::needless_pass_by_value, reason = "callers have no further use for their handle")]
    pub fn from_file(
        file: Arc<WeightFile>,
        base: &UNetConfig,
        device: &Device,
        compute_type: impl Into<ComputeType>,
    ) -> Result<Self, ControlNetError> {
        let weights = view(&file, base, device)?.computing(compute_type.into(), Range::Half);
        let weight_bytes = weights.bytes();
        let config = ControlNetConfig::detect(&weights, base)?;
        let network = Self::load(config, &weights, weight_bytes)?;
        weights.finish()?;
        Ok(network)
    }

    fn load(config: ControlNetConfig, weights: &Weights, weight_bytes: u64) -> Result<Self, WeightsError> {
        let projections = weights.scope("controlnet_down_blocks");
        let channels = skip_channels(&config.unet);
        let middle = config.unet.block_out_channels.last().copied().unwrap_or(0);
        Ok(Self {
            hint: HintEncoder::load(&config, &weights.scope("controlnet_cond_embedding"))?,
            embedding: ConditionEmbedding::load(&config.unet, weights)?,
            encoder: UNetEncoder::load(&config.unet, weights)?,
            projections: channels
                .into_iter()
                .enumerate()
                .map(|(index, width)| Linear::load_pointwise(&projections.scope(index), width, width))
                .collect::<Result<_, _>>()?,
            middle_projection: Linear::load_pointwise(
                &weights.scope("controlnet_mid_block"),
                middle,
                middle,
            )?,
            config,
            activations: weights.activations(),
            weight_bytes,
            identity: Identity::fresh(),
        })
    }

    /// What the network was built from.
    pub fn config(&self) -> &ControlNetConfig {
        &self.config
    }

    /// What tells its weights from others'.
    pub fn identity(&self) -> Identity {
        self.identity
    }

    /// The type of its activations, hints' embeddings and residuals.
    pub fn activations(&self) -> DType {
        self.activations
    }

    /// Bytes of its weights as loaded.
    pub fn weight_bytes(&self) -> u64 {
        self.weight_bytes
    }

    /// Embeds hint pictures, `[b, 3, 8h, 8w]` with values 0 to 1 `-> [b, h, w, c]`. It depends on nothing else, so
    /// once a picture is enough.
    pub fn embed_hint(&self, hint: &Tensor) -> candle_core::Result<Tensor> {
        let (batch, channels, height, width) = hint.dims4()?;
        let whole = |side: usize| side > 0 && side.is_multiple_of(CELL);
        if batch == 0 || channels != self.config.conditioning_channels || !whole(height) || !whole(width) {
            bail!(
                "ControlNet: the hint has shape {:?}, but [batch, {}, height, width] with sides that {CELL} \
                 divides is needed",
                hint.dims(),
                self.config.conditioning_channels
            );
        }
        // A statement of its own: within the call, the copy would live as long as the call.
        let pixels = channels_last(hint)?.to_dtype(self.activations)?;
        self.hint.forward(pixels)
    }

    /// What to add to the UNet's features for `input`, not scaled yet; channels-last, in the features' order.
    /// `hint` is [`ControlNet::embed_hint`]'s, `[b, h, w, c]`: a row a row of the input. Rows do not influence
    /// each other. The input's adapters, which change the UNet, do not count here.
    pub fn forward(&self, input: &UNetInput<'_>, hint: &Tensor) -> candle_core::Result<UNetFeatures> {
        let (condition, stem) = self.enter(input, hint)?;
        let UNetFeatures { skips, middle } = self.encoder.forward(stem, &condition)?;
        let skips = self.project_skips(skips)?;
        Ok(UNetFeatures { skips, middle: self.project(&middle, &self.middle_projection)? })
    }

    /// The first `count` skips of [`ControlNet::forward`], and nothing below them: what a shallow pass of the UNet
    /// takes.
    pub fn forward_shallow(
        &self,
        input: &UNetInput<'_>,
        hint: &Tensor,
        count: usize,
    ) -> candle_core::Result<Vec<Tensor>> {
        let (condition, stem) = self.enter(input, hint)?;
        self.project_skips(self.encoder.first_skips(stem, &condition, count)?)
    }

    /// The embedded conditioning, and the first convolution's output with the hint added.
    fn enter(&self, input: &UNetInput<'_>, hint: &Tensor) -> candle_core::Result<(Condition, Tensor)> {
        let (batch, channels, height, width) = input.latent.dims4()?;
        let needed = &self.config.unet;
        if channels != needed.in_channels || batch == 0 || height == 0 || width == 0 {
            bail!(
                "ControlNet: latent has shape {:?}, but [batch, {}, height, width] is needed",
                input.latent.dims(),
                needed.in_channels
            );
        }
        let embedded = [batch, height, width, needed.block_out_channels[0]];
        if hint.dims() != embedded {
            bail!("ControlNet: the embedded hint has shape {:?}, but {embedded:?} is needed", hint.dims());
        }
        // Adapters name the UNet's layers; the layers here share the names but are others.
        let adapters = Adapters::none();
        let condition = self.embedding.forward(&UNetInput { adapters, ..*input })?;
        let stem = self.encoder.stem(&channels_last(input.latent)?.to_dtype(self.activations)?, adapters)?;
        let stem = (stem + hint.to_dtype(self.activations)?)?;
        Ok((condition, stem))
    }

    fn project_skips(&self, skips: Vec<Tensor>) -> candle_core::Result<Vec<Tensor>> {
        let projected = skips.into_iter().zip(&self.projections);
        projected.map(|(skip, projection)| self.project(&skip, projection)).collect()
    }

    fn project(&self, feature: &Tensor, projection: &Linear) -> candle_core::Result<Tensor> {
        let projected = projection.forward(feature, Adapters::none())?;
        if !self.config.global_pool_conditions {
            return Ok(projected);
        }
        let mean = projected.mean_keepdim((1, 2))?;
        mean.expand(projected.shape())?.contiguous()
    }
}

/// The view that the network loads from, after everything that a header tells was found right.
fn view(file: &Arc<WeightFile>, base: &UNetConfig, device: &Device) -> Result<Weights, ControlNetError> {
    let (header, origin) = (file.header(), file.name().to_owned());
    let Some(kind) = ControlNetKind::of(header) else {
        return Err(ControlNetError::Kind { origin, kind: classify(header).0 });
    };
    if let Some(problem) = kind.form.problem() {
        return Err(ControlNetError::Unsupported { origin, reason: problem.to_owned() });
    }
    let base = ControlNetFamily::of_base(base);
    if kind.family != base {
        return Err(ControlNetError::Family { origin, found: kind.family, base });
    }
    let names = canonical_names(header).map_err(|Twins { canonical, first, second }| {
        ControlNetError::Ambiguous { origin: origin.clone(), name: canonical, first, second }
    })?;
    let stored =
        |(canonical, name)| (canonical, Stored { file: file.clone(), name, transform: Transform::None });
    let tensors: BTreeMap<String, Stored> = names.into_iter().map(stored).collect();
    Ok(Weights::new(&origin, tensors, device))
}

/// Channels of every skip, in order: the stem's, then each level's stages and its downsampler's.
fn skip_channels(config: &UNetConfig) -> Vec<usize> {
    let levels = &config.block_out_channels;
    let mut channels = vec![levels[0]];
    for (level, &width) in levels.iter().enumerate() {
        let downsampler = usize::from(level + 1 < levels.len());
        channels.extend(std::iter::repeat_n(width, config.layers_per_block + downsampler));
    }
    channels
}
