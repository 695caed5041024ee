//! The networks that are measured, and what they are given.

use std::collections::HashMap;
use std::path::Path;

use candle_core::{DType, Device, Tensor};
use darkroom_models::ComputeType;
use darkroom_models::adapter::Adapters;
use darkroom_models::arithmetic::Range;
use darkroom_models::checkpoint::QwenImageParts;
use darkroom_models::qwen_image::{QwenImageConfig, QwenImageInput, QwenImageTransformer2DModel};
use darkroom_models::qwen_vl::{QwenVlTextConfig, QwenVlTextEncoder};
use darkroom_models::vae_qwen::AutoencoderKlQwenImage;
use darkroom_models::weights::Weights;

use crate::Part;

/// Sides of the latent, in cells, and tokens, where nobody gave inputs.
const SIDE: usize = 32;
const TOKENS: usize = 64;

/// For all parts.
pub(crate) struct Inputs {
    /// `[1, 16, h, w]`
    latent: Tensor,
    /// `[1]`
    timesteps: Tensor,
    /// `[1, t, joint]`
    context: Tensor,
    tokens: Vec<u32>,
}

impl Inputs {
    /// `latent`, `timesteps`, `context`, and `tokens` of any whole numbers.
    pub(crate) fn read(file: &Path) -> Self {
        let mut all = candle_core::safetensors::load(file, &Device::Cpu).unwrap();
        let tokens = taken(&mut all, "tokens").flatten_all().unwrap().to_dtype(DType::U32).unwrap();
        Self {
            latent: taken(&mut all, "latent"),
            timesteps: taken(&mut all, "timesteps"),
            context: taken(&mut all, "context"),
            tokens: tokens.to_vec1().unwrap(),
        }
    }

    pub(crate) fn random(parts: &QwenImageParts) -> Self {
        let config = &parts.transformer.as_ref().unwrap().config;
        let vocabulary = parts.text_encoder.as_ref().unwrap().config.vocab_size;
        let random = |shape: &[usize]| Tensor::randn(0f32, 1.0, shape, &Device::Cpu).unwrap();
        Self {
            latent: random(&[1, config.latent_channels(), SIDE, SIDE]),
            timesteps: Tensor::new(&[0.7f32], &Device::Cpu).unwrap(),
            context: random(&[1, TOKENS, config.joint_attention_dim]),
            tokens: (0..TOKENS).map(|i| (i * 7919 % vocabulary) as u32).collect(),
        }
    }
}

fn taken(all: &mut HashMap<String, Tensor>, name: &str) -> Tensor {
    all.remove(name).unwrap_or_else(|| panic!("the inputs lack {name}"))
}

/// A loaded network.
pub(crate) struct Network {
    kind: Kind,
    /// What a plan counts for the weights of this one.
    pub(crate) weight_bytes: u64,
}

enum Kind {
    Transformer(Box<QwenImageTransformer2DModel>),
    TextEncoder(Box<QwenVlTextEncoder>),
    Vae(Box<AutoencoderKlQwenImage>),
}

impl Network {
    /// Layers of the folder's network; of an autoencoder, 1.
    pub(crate) fn depth(parts: &QwenImageParts, part: Part) -> usize {
        match part {
            Part::Transformer => parts.transformer.as_ref().unwrap().config.num_layers,
            Part::TextEncoder => parts.text_encoder.as_ref().unwrap().config.num_hidden_layers,
            Part::Vae => 1,
        }
    }

    /// The first `depth` layers and all that is around them, loaded as the pipeline loads it.
    pub(crate) fn load(parts: &QwenImageParts, part: Part, depth: usize, compute_type: ComputeType) -> Self {
        match part {
            Part::Transformer => {
                let part = parts.transformer.as_ref().unwrap();
                let weights = part.weights.computing(compute_type, Range::WideTransformer);
                let config = QwenImageConfig { num_layers: depth, ..part.config.clone() };
                let (weight_bytes, kind) = weighed(&weights, || {
                    let network = QwenImageTransformer2DModel::load(&config, &weights).unwrap();
                    Kind::Transformer(network.into())
                });
                Self { kind, weight_bytes }
            }
            Part::TextEncoder => {
                let part = parts.text_encoder.as_ref().unwrap();
                let config = QwenVlTextConfig { num_hidden_layers: depth, ..part.config.clone() };
                let (weight_bytes, kind) = weighed(&part.weights, || {
                    Kind::TextEncoder(QwenVlTextEncoder::load(&config, &part.weights).unwrap().into())
                });
                Self { kind, weight_bytes }
            }
            Part::Vae => {
                let part = parts.vae.as_ref().unwrap();
                let weights = part.weights.computing(compute_type, Range::Wide);
                let (weight_bytes, kind) = weighed(&weights, || {
                    Kind::Vae(AutoencoderKlQwenImage::load(&part.config, &weights).unwrap().into())
                });
                Self { kind, weight_bytes }
            }
        }
    }

    /// What a plan counts beside the weights.
    pub(crate) fn step_bytes(&self, inputs: &Inputs) -> usize {
        let (_, _, height, width) = inputs.latent.dims4().unwrap();
        match &self.kind {
            Kind::Transformer(network) => {
                network.forward_bytes(1, height, width, inputs.context.dim(1).unwrap())
            }
            Kind::TextEncoder(network) => network.encode_bytes(1, inputs.tokens.len()),
            Kind::Vae(network) => network.decode_bytes(height, width),
        }
    }

    pub(crate) fn run(&self, inputs: &Inputs) -> Tensor {
        let Inputs { latent, timesteps, context, tokens } = inputs;
        match &self.kind {
            Kind::Transformer(network) => network.forward(&QwenImageInput {
                latent,
                timesteps,
                context,
                context_lengths: None,
                references: &[],
                adapters: Adapters::none(),
            }),
            Kind::TextEncoder(network) => network.encode(std::slice::from_ref(tokens)),
            Kind::Vae(network) => network.decode(latent),
        }
        .unwrap()
    }
}

/// What `load` makes, and the bytes that it took from `weights`.
fn weighed<T>(weights: &Weights, load: impl FnOnce() -> T) -> (u64, T) {
    let before = weights.bytes();
    let loaded = load();
    (before - weights.bytes(), loaded)
}
