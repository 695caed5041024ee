//! A ControlNet's shape, read off its tensors. What these do not show (heads, norm groups, the size ids' width)
//! it shares with the model that it steers.

use super::{ControlNetError, ControlNetFamily};
use crate::unet::UNetConfig;
use crate::weights::{Weights, WeightsError};

/// Most levels of a hint encoder; every one but the first halves the picture.
const MAX_HINT_LEVELS: usize = 8;
/// Widest level of a hint encoder: its first one sees every pixel.
const MAX_HINT_CHANNELS: usize = 1024;
/// Channels of the pictures that hints are.
const PICTURE_CHANNELS: usize = 3;
/// Pixels a latent cell along a side: what hint encoders shrink by.
pub(super) const CELL: usize = 8;

/// The shape of a ControlNet.
#[derive(Debug, Clone, PartialEq)]
pub struct ControlNetConfig {
    /// The shared part: the UNet's downward half and middle. It may have fewer transformer layers than the
    /// model's UNet, or none; `out_channels` is the model's and unused.
    pub unet: UNetConfig,
    /// Channels of the hint picture (3).
    pub conditioning_channels: usize,
    /// Channels of the hint encoder's levels (16, 32, 96, 256); every level but the first halves the picture.
    pub conditioning_embedding_out_channels: Vec<usize>,
    /// Whether residuals are averaged over the picture ("shuffle" ControlNets): what they tell then has no
    /// place.
    pub global_pool_conditions: bool,
}

impl ControlNetConfig {
    /// The shape of the ControlNet in `weights` (canonical names, nothing taken yet), which is to steer a model
    /// whose UNet is `base`.
    ///
    /// # Errors
    /// [`ControlNetError::Shape`] when its residuals would not fit the model's features or it was trained on
    /// other conditioning, [`ControlNetError::Undetectable`] when tensors are missing that tell the shape.
    pub(super) fn detect(weights: &Weights, base: &UNetConfig) -> Result<Self, ControlNetError> {
        base.validate().map_err(candle_core::Error::wrap).map_err(WeightsError::from)?;
        let tensors = Tensors(weights);
        let [_, in_channels, _, _] = tensors.need("conv_in.weight")?;
        let levels = tensors.count(|level| conv1(level, 0));
        let layers_per_block = tensors.count(|layer| conv1(0, layer));
        let block_out_channels = (0..levels)
            .map(|level| tensors.need::<4>(&conv1(level, 0)).map(|[channels, ..]| channels))
            .collect::<Result<Vec<_>, _>>()?;
        let transformer_layers =
            (0..levels).map(|level| tensors.depth(&format!("down_blocks.{level}"))).collect::<Vec<_>>();
        let mid_transformer_layers = tensors.depth("mid_block");
        let attention = (0..levels)
            .map(|level| format!("down_blocks.{level}"))
            .chain(["mid_block".to_owned()])
            .map(|block| format!("{block}.attentions.0"))
            .find(|attention| weights.contains(&format!("{attention}.proj_in.weight")));
        let (mut cross_attention_dim, mut use_linear_projection) =
            (base.cross_attention_dim, base.use_linear_projection);
        if let Some(attention) = attention {
            [_, cross_attention_dim] =
                tensors.need(&format!("{attention}.transformer_blocks.0.attn2.to_k.weight"))?;
            let projection = weights.shape(&format!("{attention}.proj_in.weight"));
            use_linear_projection = projection.is_some_and(|shape| shape.len() == 2);
        }
        let projection = match weights.contains("add_embedding.linear_1.weight") {
            true => Some(tensors.need::<2>("add_embedding.linear_1.weight")?[1]),
            false => None,
        };

        let expect = Expected { origin: weights.origin(), base: ControlNetFamily::of_base(base) };
        expect.same("latent channels", &in_channels, &base.in_channels)?;
        expect.same("channels a level", &block_out_channels, &base.block_out_channels)?;
        expect.same("layers a level", &layers_per_block, &base.layers_per_block)?;
        expect.same("context width", &cross_attention_dim, &base.cross_attention_dim)?;
        let theirs = base.addition.as_ref().map(|addition| addition.projection_input_dim);
        expect.same("width of pooled prompt and sizes", &projection, &theirs)?;
        // Fewer layers make a smaller ControlNet for the same model; how many heads more would have, nothing says.
        expect.at_most("transformer layers a level", &transformer_layers, &base.transformer_layers)?;
        let middles = ([mid_transformer_layers], [base.mid_transformer_layers]);
        expect.at_most("transformer layers of the middle", &middles.0, &middles.1)?;

        let (conditioning_channels, conditioning_embedding_out_channels) = tensors.hint()?;
        Ok(Self {
            unet: UNetConfig {
                transformer_layers,
                mid_transformer_layers,
                use_linear_projection,
                ..base.clone()
            },
            conditioning_channels,
            conditioning_embedding_out_channels,
            global_pool_conditions: is_pooled(weights.origin()),
        })
    }
}

/// Whether residuals are to be averaged. No tensor tells, so the file's name does, as in ComfyUI:
/// `…_shuffle.safetensors`, `…_shuffle_fp16.safetensors`.
fn is_pooled(origin: &str) -> bool {
    let stem = origin.strip_suffix(".safetensors").unwrap_or(origin);
    stem.strip_suffix("_fp16").unwrap_or(stem).ends_with("_shuffle")
}

fn conv1(level: usize, layer: usize) -> String {
    format!("down_blocks.{level}.resnets.{layer}.conv1.weight")
}

/// What the model has, for comparison.
struct Expected<'a> {
    origin: &'a str,
    base: ControlNetFamily,
}

impl Expected<'_> {
    fn same<T: PartialEq + std::fmt::Debug>(
        &self,
        what: &str,
        found: &T,
        model: &T,
    ) -> Result<(), ControlNetError> {
        if found == model { Ok(()) } else { Err(self.differ(what, found, model)) }
    }

    fn at_most(&self, what: &str, found: &[usize], model: &[usize]) -> Result<(), ControlNetError> {
        let fits = found.iter().zip(model).all(|(found, model)| found <= model);
        if fits { Ok(()) } else { Err(self.differ(what, &found, &model)) }
    }

    fn differ<T: std::fmt::Debug>(&self, what: &str, found: &T, model: &T) -> ControlNetError {
        ControlNetError::Shape {
            origin: self.origin.to_owned(),
            base: self.base,
            reason: format!("its {what}: {found:?}, the model's: {model:?}"),
        }
    }
}

struct Tensors<'a>(&'a Weights);

impl Tensors<'_> {
    fn undetectable(&self, reason: impl Into<String>) -> ControlNetError {
        ControlNetError::Undetectable { origin: self.0.origin().to_owned(), reason: reason.into() }
    }

    fn need<const RANK: usize>(&self, name: &str) -> Result<[usize; RANK], ControlNetError> {
        let shape = self.0.shape(name).ok_or_else(|| self.undetectable(format!("it has no '{name}'")))?;
        <[usize; RANK]>::try_from(shape.as_slice())
            .map_err(|_| self.undetectable(format!("'{name}' has shape {shape:?}, not {RANK} dimensions")))
    }

    /// How many of `name(0)`, `name(1)`, … there are before the first gap.
    fn count(&self, name: impl Fn(usize) -> String) -> usize {
        (0..).take_while(|index| self.0.contains(&name(*index))).count()
    }

    /// Transformer layers of a block's first attention. Another number in its other ones is found on loading.
    fn depth(&self, block: &str) -> usize {
        self.count(|index| format!("{block}.attentions.0.transformer_blocks.{index}.attn1.to_q.weight"))
    }

    /// The hint's channels (always those of a picture), and those of its encoder's levels.
    fn hint(&self) -> Result<(usize, Vec<usize>), ControlNetError> {
        const ENCODER: &str = "controlnet_cond_embedding";
        let [first, channels, _, _] = self.need(&format!("{ENCODER}.conv_in.weight"))?;
        let blocks = self.count(|index| format!("{ENCODER}.blocks.{index}.weight"));
        let mut levels = vec![first];
        for level in 0..(blocks / 2).min(MAX_HINT_LEVELS) {
            let [width, ..] = self.need::<4>(&format!("{ENCODER}.blocks.{}.weight", 2 * level + 1))?;
            levels.push(width);
        }
        if channels != PICTURE_CHANNELS {
            return Err(ControlNetError::Unsupported {
                origin: self.0.origin().to_owned(),
                reason: format!(
                    "its hints have {channels} channels: use a ControlNet whose hints are pictures                      ({PICTURE_CHANNELS} channels)"
                ),
            });
        }
        if let Some(width) = levels.iter().find(|width| !(1..=MAX_HINT_CHANNELS).contains(*width)) {
            return Err(self.undetectable(format!(
                "its hint encoder has a level of {width} channels; 1 to {MAX_HINT_CHANNELS} are possible"
            )));
        }
        let shrinks = 1 << (levels.len() - 1);
        if shrinks != CELL {
            return Err(self.undetectable(format!(
                "its hint encoder shrinks pictures by {shrinks}, but a latent cell has {CELL} pixels a side"
            )));
        }
        Ok((channels, levels))
    }
}

#[cfg(test)]
mod tests {
    use super::is_pooled;

    #[test]
    fn only_a_name_that_ends_in_shuffle_is_pooled() {
        assert!(is_pooled("models/control_v11e_sd15_shuffle.safetensors"));
        assert!(is_pooled("control_v11e_sd15_shuffle_fp16.safetensors"));
        assert!(!is_pooled("shuffle/canny.safetensors"));
        assert!(!is_pooled("shuffled.safetensors"));
    }
}
