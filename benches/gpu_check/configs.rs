//! The configs of the random models: SDXL base 1.0's as published, and a tiny one of the same structure.

use serde_json::{Value, json};

use crate::Outcome;

/// Configs of a model's parts, as a diffusers folder has them.
pub(crate) struct Configs {
    pub(crate) unet: Value,
    pub(crate) vae: Value,
    pub(crate) text_encoder: Value,
    pub(crate) text_encoder_2: Value,
    /// Channels of the levels of its ControlNet's picture encoder.
    pub(crate) hint: Vec<usize>,
}

impl Configs {
    /// SDXL.
    pub(crate) fn full() -> Self {
        Self {
            unet: json!({
                "_class_name": "UNet2DConditionModel",
                "sample_size": 128, "in_channels": 4, "out_channels": 4,
                "block_out_channels": [320, 640, 1280], "layers_per_block": 2,
                "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
                "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
                "transformer_layers_per_block": [1, 2, 10], "attention_head_dim": [5, 10, 20],
                "cross_attention_dim": 2048, "use_linear_projection": true, "norm_num_groups": 32,
                "addition_embed_type": "text_time", "addition_time_embed_dim": 256,
                "projection_class_embeddings_input_dim": 2816,
            }),
            vae: json!({
                "_class_name": "AutoencoderKL",
                "in_channels": 3, "out_channels": 3, "latent_channels": 4, "layers_per_block": 2,
                "block_out_channels": [128, 256, 512, 512], "norm_num_groups": 32, "sample_size": 1024,
                "down_block_types": vec!["DownEncoderBlock2D"; 4], "up_block_types": vec!["UpDecoderBlock2D"; 4],
                "scaling_factor": 0.13025, "force_upcast": true,
            }),
            text_encoder: clip("CLIPTextModel", "quick_gelu", [768, 3072, 12, 12]),
            text_encoder_2: clip("CLIPTextModelWithProjection", "gelu", [1280, 5120, 32, 20]),
            hint: vec![16, 32, 96, 256],
        }
    }

    /// A fifth of the width, and less deep.
    pub(crate) fn tiny() -> Self {
        let mut all = Self::full();
        let unet = [
            ("block_out_channels", json!([64, 128, 128])),
            ("layers_per_block", json!(1)),
            ("transformer_layers_per_block", json!([1, 1, 2])),
            ("attention_head_dim", json!([1, 2, 2])),
            ("cross_attention_dim", json!(128)),
            ("addition_time_embed_dim", json!(32)),
            ("projection_class_embeddings_input_dim", json!(6 * 32 + 64)),
        ];
        unet.into_iter().for_each(|(name, value)| all.unet[name] = value);
        all.vae["block_out_channels"] = json!([32, 32, 64, 64]);
        all.vae["layers_per_block"] = json!(1);
        all.text_encoder = clip("CLIPTextModel", "quick_gelu", [64, 128, 2, 1]);
        all.text_encoder_2 = clip("CLIPTextModelWithProjection", "gelu", [64, 128, 3, 1]);
        all.hint = vec![16, 32, 32, 32];
        all
    }

    /// A part's config as the library reads it.
    pub(crate) fn read<C: serde::de::DeserializeOwned>(config: &Value) -> Outcome<C> {
        Ok(serde_json::from_value(config.clone())?)
    }

    /// What diffusers makes the ControlNet from.
    pub(crate) fn control_net(&self) -> Value {
        let shared = [
            "in_channels",
            "block_out_channels",
            "layers_per_block",
            "down_block_types",
            "transformer_layers_per_block",
            "attention_head_dim",
            "cross_attention_dim",
            "use_linear_projection",
            "norm_num_groups",
            "addition_embed_type",
            "addition_time_embed_dim",
            "projection_class_embeddings_input_dim",
        ];
        let mut config =
            json!({"_class_name": "ControlNetModel", "conditioning_embedding_out_channels": self.hint});
        for name in shared {
            config[name] = self.unet[name].clone();
        }
        config
    }
}

/// Width, width between, layers, heads.
fn clip(class: &str, activation: &str, [width, between, layers, heads]: [usize; 4]) -> Value {
    json!({
        "architectures": [class], "model_type": "clip_text_model",
        "vocab_size": 49_408, "hidden_size": width, "intermediate_size": between, "projection_dim": width,
        "num_hidden_layers": layers, "num_attention_heads": heads, "max_position_embeddings": 77,
        "hidden_act": activation, "layer_norm_eps": 1e-5,
        "bos_token_id": 49_406, "eos_token_id": 49_407, "pad_token_id": 1,
    })
}

/// How both sides read what the UNet says.
pub(crate) fn scheduler() -> Value {
    json!({
        "_class_name": "EulerDiscreteScheduler",
        "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "num_train_timesteps": 1000,
        "prediction_type": "epsilon", "steps_offset": 1, "timestep_spacing": "leading",
    })
}

/// What a diffusers folder says that it is.
pub(crate) fn model_index() -> Value {
    json!({
        "_class_name": "StableDiffusionXLPipeline", "force_zeros_for_empty_prompt": false,
        "unet": ["diffusers", "UNet2DConditionModel"], "vae": ["diffusers", "AutoencoderKL"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "text_encoder_2": ["transformers", "CLIPTextModelWithProjection"],
        "tokenizer": ["transformers", "CLIPTokenizer"], "tokenizer_2": ["transformers", "CLIPTokenizer"],
        "scheduler": ["diffusers", "EulerDiscreteScheduler"],
    })
}
