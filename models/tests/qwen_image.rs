//! Qwen-Image's denoiser against diffusers, with tokens where ComfyUI puts them.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "tests fail by panicking and say what they measured"
)]

mod support;

use std::collections::HashMap;
use std::sync::Arc;

use candle_core::{DType, Device, Tensor};
use darkroom_models::adapter::{Adapters, LayerAdapter, NetworkAdapter};
use darkroom_models::qwen_image::{QwenImageConfig, QwenImageInput, QwenImageTransformer2DModel};
use darkroom_models::weights::{WeightFile, Weights, WeightsError};
use support::{BATCH_TOLERANCE, Cases, REFERENCE_TOLERANCE, assert_close, folder, golden, relative_error};

/// How many layers the golden networks have.
const LAYERS: [usize; 2] = [1, 3];
const CASES: [&str; 7] = ["square", "oblong", "odd_grid", "odd_sides", "lengths", "edit", "edit_large"];

fn opened(layers: usize) -> (QwenImageConfig, Weights) {
    folder(&format!("qwen_image/transformer_{layers}"))
}

fn network(layers: usize) -> QwenImageTransformer2DModel {
    let (config, weights) = opened(layers);
    let network = QwenImageTransformer2DModel::load(&config, &weights).unwrap();
    weights.finish().unwrap();
    network
}

fn cases(layers: usize) -> Cases {
    Cases::open(&format!("qwen_image/cases_{layers}.safetensors"))
}

/// A forward pass' tensors, owned.
#[derive(Clone)]
struct Case {
    latent: Tensor,
    timesteps: Tensor,
    context: Tensor,
    lengths: Option<Vec<usize>>,
    references: Vec<Tensor>,
}

impl Case {
    fn open(cases: &Cases, name: &str) -> Self {
        let references = (0..).map_while(|i| cases.find(&format!("{name}.references.{i}")));
        Self {
            latent: cases.get(format!("{name}.latent")),
            timesteps: cases.get(format!("{name}.timesteps")),
            context: cases.get(format!("{name}.context")),
            lengths: cases.find(&format!("{name}.lengths")).map(|lengths| {
                lengths.to_vec1::<i64>().unwrap().into_iter().map(|length| length as usize).collect()
            }),
            references: references.collect(),
        }
    }

    fn run_with(
        &self,
        network: &QwenImageTransformer2DModel,
        adapters: &Adapters,
    ) -> candle_core::Result<Tensor> {
        network.forward(&QwenImageInput {
            latent: &self.latent,
            timesteps: &self.timesteps,
            context: &self.context,
            context_lengths: self.lengths.as_deref(),
            references: &self.references.iter().collect::<Vec<_>>(),
            adapters,
        })
    }

    fn run(&self, network: &QwenImageTransformer2DModel) -> Tensor {
        self.run_with(network, Adapters::none()).unwrap()
    }

    fn rows(&self) -> usize {
        self.latent.dim(0).unwrap()
    }

    /// One row, its padding cut off.
    fn row(&self, i: usize) -> Self {
        let row = |x: &Tensor| x.narrow(0, i, 1).unwrap();
        let context = row(&self.context);
        Self {
            latent: row(&self.latent),
            timesteps: row(&self.timesteps),
            context: match &self.lengths {
                Some(lengths) => context.narrow(1, 0, lengths[i]).unwrap(),
                None => context,
            },
            lengths: None,
            references: self.references.iter().map(row).collect(),
        }
    }
}

#[test]
fn the_denoiser_equals_diffusers() {
    for layers in LAYERS {
        let (network, cases) = (network(layers), cases(layers));
        for case in CASES {
            let output = Case::open(&cases, case).run(&network);
            let expected = cases.get(format!("{case}.output"));
            assert_close(&format!("{layers} layers, {case}"), &output, &expected, REFERENCE_TOLERANCE);
            let largest = |x: &Tensor| {
                x.abs().unwrap().flatten_all().unwrap().max(0).unwrap().to_scalar::<f32>().unwrap()
            };
            let worst = largest(&(output - &expected).unwrap()) / largest(&expected);
            assert!(worst <= REFERENCE_TOLERANCE, "{layers} layers, {case}: {worst:e}");
        }
    }
}

#[test]
fn a_batched_or_padded_row_equals_the_row_alone() {
    let (network, cases) = (network(3), cases(3));
    for name in ["oblong", "lengths", "edit"] {
        let case = Case::open(&cases, name);
        let together = case.run(&network);
        for i in 0..case.rows() {
            let alone = case.row(i).run(&network);
            let row = together.narrow(0, i, 1).unwrap();
            assert_close(&format!("{name}, row {i}"), &row, &alone, BATCH_TOLERANCE);
        }
    }
}

#[test]
fn padding_is_never_seen() {
    let (network, cases) = (network(3), cases(3));
    let case = Case::open(&cases, "lengths");
    let (rows, tokens, width) = case.context.dims3().unwrap();
    let own: Vec<f32> = case
        .lengths
        .iter()
        .flatten()
        .flat_map(|&length| (0..tokens * width).map(move |i| if i / width < length { 1. } else { 0. }))
        .collect();
    let own = Tensor::from_vec(own, (rows, tokens, width), &Device::Cpu).unwrap();
    let mut other = case.clone();
    // Absurd values, so that a query that sees them shows.
    other.context = ((&case.context * &own).unwrap() + ((1. - &own).unwrap() * 1e3).unwrap()).unwrap();
    assert_close("other padding", &other.run(&network), &case.run(&network), 0.0);
    // Unless lengths are not given.
    let unmasked = |case: &Case| Case { lengths: None, ..case.clone() }.run(&network);
    assert!(relative_error(&unmasked(&other), &unmasked(&case)) > 1e-3);
}

#[test]
fn lengths_that_do_not_differ_from_the_tokens_change_nothing() {
    let (network, cases) = (network(1), cases(1));
    let case = Case::open(&cases, "oblong");
    let mut whole = case.clone();
    whole.lengths = Some(vec![5, 5]);
    assert_close("whole", &whole.run(&network), &case.run(&network), 0.0);
}

#[test]
fn streamed_blocks_give_what_held_ones_do_to_the_bit() {
    for layers in LAYERS {
        let (held, cases) = (network(layers), cases(layers));
        let (config, weights) = opened(layers);
        let streamed = QwenImageTransformer2DModel::load(&config, &weights.streaming()).unwrap();
        weights.finish().unwrap();
        for case in CASES {
            let case = Case::open(&cases, case);
            // Twice: blocks are read again.
            for _ in 0..2 {
                assert_close("streamed", &case.run(&streamed), &case.run(&held), 0.0);
            }
        }
    }
}

#[test]
fn every_input_of_a_row_matters() {
    let (network, cases) = (network(3), cases(3));
    let case = Case::open(&cases, "edit").row(1);
    let reference = case.run(&network);
    let changed = |change: &dyn Fn(&mut Case)| {
        let mut other = case.clone();
        change(&mut other);
        relative_error(&other.run(&network), &reference)
    };
    let least = 1e-3;
    assert!(changed(&|c| c.timesteps = (&c.timesteps + 0.1).unwrap()) > least);
    assert!(changed(&|c| c.context = (&c.context * -1.).unwrap()) > least);
    assert!(changed(&|c| c.references[1] = (&c.references[1] * 2.).unwrap()) > least);
    assert!(changed(&|c| c.references.truncate(1)) > least);
    // A picture's number is where it stands.
    let mut same = case.clone();
    same.references = vec![case.references[1].clone(), case.references[1].clone()];
    let mut first = same.clone();
    first.references[0] = case.references[1].zeros_like().unwrap();
    let mut second = same.clone();
    second.references[1] = case.references[1].zeros_like().unwrap();
    assert!(relative_error(&first.run(&network), &second.run(&network)) > 1e-5);
}

#[test]
fn an_adapter_changes_the_rows_that_have_it_and_no_other() {
    let (network, cases) = (network(3), cases(3));
    let case = Case::open(&cases, "lengths");
    let plain = case.run(&network);
    let factor = |shape: (usize, usize)| Tensor::randn(0f32, 0.5, shape, &Device::Cpu).unwrap();
    for (layer, inputs, outputs) in [
        ("img_in", 16, 32),
        ("txt_in", 24, 32),
        ("time_text_embed.timestep_embedder.linear_1", 256, 32),
        ("transformer_blocks.1.attn.to_q", 32, 32),
        ("transformer_blocks.1.attn.add_v_proj", 32, 32),
        ("transformer_blocks.2.attn.to_out.0", 32, 32),
        ("transformer_blocks.0.attn.to_add_out", 32, 32),
        ("transformer_blocks.2.img_mod.1", 32, 192),
        ("transformer_blocks.0.txt_mod.1", 32, 192),
        ("transformer_blocks.2.img_mlp.net.0.proj", 32, 128),
        ("transformer_blocks.1.txt_mlp.net.2", 128, 32),
        ("norm_out.linear", 32, 64),
        ("proj_out", 32, 16),
    ] {
        let change = LayerAdapter::LowRank { down: factor((2, inputs)), up: factor((outputs, 2)) };
        let adapter = NetworkAdapter::new(HashMap::from([(layer.to_owned(), change)]));
        let adapters = Adapters::new(vec![(1..2, Arc::new(adapter))]);
        let changed = case.run_with(&network, &adapters).unwrap();
        for i in 0..3 {
            let row = |x: &Tensor| x.narrow(0, i, 1).unwrap();
            let error = relative_error(&row(&changed), &row(&plain));
            assert_eq!(error > 1e-4, i == 1, "{layer}, row {i}: {error:e}");
            assert!(i == 1 || error == 0.0, "{layer}, row {i}: {error:e}");
        }
    }
}

#[test]
fn wrong_shapes_are_refused() {
    let (network, cases) = (network(1), cases(1));
    let case = Case::open(&cases, "edit");
    let refused = |change: &dyn Fn(&mut Case), part: &str| {
        let mut other = case.clone();
        change(&mut other);
        let error = other.run_with(&network, Adapters::none()).unwrap_err().to_string();
        assert!(error.contains(part), "{error}");
    };
    let zeros = |shape: &[usize]| Tensor::zeros(shape, DType::F32, &Device::Cpu).unwrap();
    refused(&|c| c.latent = zeros(&[2, 5, 8, 4]), "latent");
    refused(&|c| c.latent = zeros(&[2, 4, 8, 0]), "latent");
    refused(&|c| c.latent = zeros(&[2, 4, 8]), "latent");
    refused(&|c| c.latent = zeros(&[0, 4, 8, 4]), "latent");
    refused(&|c| c.timesteps = zeros(&[3]), "timesteps");
    refused(&|c| c.timesteps = zeros(&[2, 1]), "timesteps");
    refused(&|c| c.context = zeros(&[1, 6, 24]), "context");
    refused(&|c| c.context = zeros(&[2, 6, 23]), "context");
    refused(&|c| c.context = zeros(&[2, 0, 24]), "context");
    refused(&|c| c.lengths = Some(vec![6]), "context lengths");
    refused(&|c| c.lengths = Some(vec![6, 7]), "context length");
    refused(&|c| c.lengths = Some(vec![0, 6]), "context length");
    refused(&|c| c.references[0] = zeros(&[1, 4, 4, 4]), "reference");
    refused(&|c| c.references[1] = zeros(&[2, 3, 4, 4]), "reference");
    refused(&|c| c.references[1] = zeros(&[2, 4, 0, 4]), "reference");
}

/// The golden network's file with some tensors left out and others of another shape.
fn damaged(left_out: &str, misshapen: &str) -> (tempfile::TempDir, Weights) {
    let path = golden("qwen_image/transformer_3/diffusion_pytorch_model.safetensors");
    let mut tensors = candle_core::safetensors::load(path, &Device::Cpu).unwrap();
    tensors.remove(left_out);
    if let Some(tensor) = tensors.get_mut(misshapen) {
        *tensor = Tensor::cat(&[&*tensor, &*tensor], 0).unwrap();
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("damaged.safetensors");
    candle_core::safetensors::save(&tensors, &path).unwrap();
    let weights = Weights::from_file(Arc::new(WeightFile::open(&path).unwrap()), &Device::Cpu);
    (folder, weights)
}

#[test]
fn a_missing_or_misshapen_tensor_is_named() {
    let (config, weights) = opened(3);
    let names = weights.names();
    assert_eq!(names.len(), 13 + 3 * 32);
    for name in names.iter().filter(|name| !name.contains("_blocks.1.")) {
        for streamed in [false, true] {
            let load = |weights: &Weights| {
                let weights = if streamed { weights.streaming() } else { weights.clone() };
                QwenImageTransformer2DModel::load(&config, &weights).unwrap_err()
            };
            let (_folder, weights) = damaged(name, "");
            let error = load(&weights);
            assert!(matches!(error, WeightsError::Missing { .. }), "{error}");
            assert!(error.to_string().contains(name.as_str()), "{name}: {error}");
            let (_folder, weights) = damaged("", name);
            let error = load(&weights);
            assert!(matches!(error, WeightsError::Shape { .. }), "{error}");
            assert!(error.to_string().contains(name.as_str()), "{name}: {error}");
        }
    }
}

#[test]
fn a_config_that_does_not_fit_the_file_or_itself_is_refused() {
    let (config, _) = opened(3);
    let load = |change: &dyn Fn(&mut QwenImageConfig)| {
        let mut config = config.clone();
        change(&mut config);
        let (_, weights) = opened(3);
        QwenImageTransformer2DModel::load(&config, &weights).unwrap_err().to_string()
    };
    assert!(load(&|c| c.num_layers = 4).contains("transformer_blocks.3"));
    assert!(load(&|c| c.joint_attention_dim = 32).contains("txt_norm"));
    assert!(load(&|c| c.num_attention_heads = 3).contains("timestep_embedder"));
    assert!(load(&|c| c.axes_dims_rope = [4, 4, 6]).contains("axes_dims_rope"));
    assert!(load(&|c| c.num_layers = 0).contains("num_layers"));
    assert!(load(&|c| c.patch_size = 0).contains("patch_size"));
}
