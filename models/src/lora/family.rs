//! Which kind of model a LoRA was made for, told by the names of its modules and the width of the context that its
//! cross-attention looks at.

use std::fmt;

use serde::Serialize;

/// A kind of model that LoRAs are made for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Family {
    /// Stable Diffusion 1.x.
    Sd15,
    /// Stable Diffusion 2.x.
    Sd2,
    /// SDXL.
    Sdxl,
    /// Stable Diffusion 3.
    Sd3,
    /// Flux.
    Flux,
    /// Qwen-Image.
    QwenImage,
    /// Wan.
    Wan,
    /// Stable Cascade.
    Cascade,
    /// A UNet with a context of another width.
    UNet {
        /// The width.
        context: usize,
    },
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Sd15 => "Stable Diffusion 1.5",
            Self::Sd2 => "Stable Diffusion 2",
            Self::Sdxl => "SDXL",
            Self::Sd3 => "Stable Diffusion 3",
            Self::Flux => "Flux",
            Self::QwenImage => "Qwen-Image",
            Self::Wan => "Wan",
            Self::Cascade => "Stable Cascade",
            Self::UNet { context } => return write!(f, "a UNet with a context of width {context}"),
        })
    }
}

impl Family {
    /// By the width of the UNet's context.
    pub(super) fn of_context(width: usize) -> Self {
        match width {
            768 => Self::Sd15,
            1024 => Self::Sd2,
            2048 => Self::Sdxl,
            context => Self::UNet { context },
        }
    }

    /// By a module's name alone: models that are no UNets.
    pub(super) fn of_name(module: &str) -> Option<Self> {
        let has = |part: &str| module.contains(part);
        Some(match () {
            () if has("lora_prior_") => Self::Cascade,
            () if has("double_blocks") || has("single_blocks") || has("single_transformer_blocks") => {
                Self::Flux
            }
            () if has("joint_blocks") || has("joint_transformer_blocks") => Self::Sd3,
            () if has("transformer_blocks")
                && ["img_mod", "txt_mod", "img_mlp", "txt_mlp"].into_iter().any(has)
                || joint_block(module).is_some_and(|block| block >= SD3_BLOCKS) =>
            {
                Self::QwenImage
            }
            () if (has("blocks.") || has("blocks_"))
                && (has(".cross_attn.")
                    || has("_cross_attn_")
                    || has(".self_attn.")
                    || has("_self_attn_"))
                && !has("encoder") =>
            {
                Self::Wan
            }
            () => return None,
        })
    }

    /// Whether a module is the layer of a UNet's cross-attention that reads the context.
    pub(super) fn reads_context(module: &str) -> bool {
        [".attn2.to_k", ".attn2.processor.to_k", "_attn2_to_k"].iter().any(|end| module.ends_with(end))
    }
}

/// The most blocks that Stable Diffusion 3 has; Flux has fewer of this name. Qwen-Image has 60.
const SD3_BLOCKS: usize = 38;

/// The number of the block that a layer of an attention over pictures and text together is in, which several models
/// call alike: `transformer_blocks.40.attn.to_q`.
pub(super) fn joint_block(module: &str) -> Option<usize> {
    let (_, rest) = module.split_once("transformer_blocks")?;
    let rest = rest.strip_prefix(['.', '_'])?;
    let (number, rest) = rest.split_once(['.', '_'])?;
    let inner = rest.strip_prefix("attn")?.strip_prefix(['.', '_'])?;
    (inner.starts_with("to_") || inner.starts_with("add_")).then(|| number.parse().ok())?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn models_without_a_unet_are_told_by_their_names() {
        for (module, family) in [
            ("lora_unet_double_blocks_0_img_attn_qkv", Family::Flux),
            ("transformer.single_transformer_blocks.3.attn.to_q", Family::Flux),
            ("lora_unet_double_blocks_0_img_mod_lin", Family::Flux),
            ("lora_unet_double_blocks_0_txt_mlp_0", Family::Flux),
            ("transformer.single_transformer_blocks.38.attn.to_q", Family::Flux),
            ("transformer_blocks.0.img_mod.1", Family::QwenImage),
            ("transformer.transformer_blocks.0.txt_mod.1", Family::QwenImage),
            ("diffusion_model.transformer_blocks.0.img_mlp.net.0.proj", Family::QwenImage),
            ("lora_unet_transformer_blocks_0_txt_mlp_net_2", Family::QwenImage),
            ("lycoris_transformer_blocks_59_img_mod_1", Family::QwenImage),
            ("transformer_blocks.59.attn.to_q", Family::QwenImage),
            ("base_model.model.transformer_blocks.38.attn.add_k_proj", Family::QwenImage),
            ("lora_unet_transformer_blocks_40_attn_to_add_out", Family::QwenImage),
            ("diffusion_model.joint_blocks.0.x_block.attn.qkv", Family::Sd3),
            ("diffusion_model.blocks.0.cross_attn.k", Family::Wan),
            ("lora_unet_blocks_0_self_attn_q", Family::Wan),
        ] {
            assert_eq!(Family::of_name(module), Some(family), "{module}");
        }
        for module in [
            "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn1_to_q",
            "lora_te1_text_model_encoder_layers_0_self_attn_q_proj",
            "text_encoder.text_model.encoder.layers.0.self_attn.q_proj",
            "unet.mid_block.attentions.0.transformer_blocks.0.attn2.processor.to_k",
            "lora_unet_input_blocks_4_1_transformer_blocks_0_attn2_to_k",
            // Stable Diffusion 3's and Flux's, too.
            "transformer.transformer_blocks.37.attn.to_q",
            "transformer.transformer_blocks.0.attn.add_q_proj",
            "transformer_blocks.99999999999999999999.attn.to_q",
            "transformer_blocks.40.attn1.to_q",
        ] {
            assert_eq!(Family::of_name(module), None, "{module}");
        }
    }
}
