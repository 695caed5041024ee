//! The UNets against diffusers.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "tests fail by panicking and say what they measured"
)]

mod support;

use candle_core::{DType, Device, Tensor};
use darkroom_models::adapter::Adapters;
use darkroom_models::unet::{FreeU, UNet2DConditionModel, UNetConfig, UNetInput};
use support::{BATCH_TOLERANCE, Cases, REFERENCE_TOLERANCE, assert_close, folder, relative_error};

fn unet(name: &str) -> UNet2DConditionModel {
    let (config, weights) = folder::<UNetConfig>(&format!("{name}/unet"));
    let unet = UNet2DConditionModel::load(&config, &weights).unwrap();
    weights.finish().unwrap();
    unet
}

/// A forward pass' tensors, owned.
#[derive(Clone)]
struct Case {
    latent: Tensor,
    timesteps: Tensor,
    context: Tensor,
    context_lengths: Option<Vec<usize>>,
    pooled: Option<Tensor>,
    size_ids: Option<Tensor>,
}

impl Case {
    fn open(cases: &Cases, name: &str) -> Self {
        Self {
            latent: cases.get(format!("{name}.latent")),
            timesteps: cases.get(format!("{name}.timesteps")),
            context: cases.get(format!("{name}.context")),
            context_lengths: None,
            pooled: cases.find(&format!("{name}.pooled")),
            size_ids: cases.find(&format!("{name}.size_ids")),
        }
    }

    fn input(&self) -> UNetInput<'_> {
        UNetInput {
            latent: &self.latent,
            timesteps: &self.timesteps,
            context: &self.context,
            context_lengths: self.context_lengths.as_deref(),
            pooled: self.pooled.as_ref(),
            size_ids: self.size_ids.as_ref(),
            adapters: Adapters::none(),
        }
    }

    fn row(&self, i: usize) -> Self {
        let row = |x: &Tensor| x.narrow(0, i, 1).unwrap();
        Self {
            latent: row(&self.latent),
            timesteps: row(&self.timesteps),
            context: row(&self.context),
            context_lengths: None,
            pooled: self.pooled.as_ref().map(row),
            size_ids: self.size_ids.as_ref().map(row),
        }
    }
}

fn equals_diffusers(name: &str) {
    let (unet, cases) = (unet(name), Cases::open(&format!("unet_{name}.safetensors")));
    for case in ["batch", "odd"] {
        let output = unet.forward(&Case::open(&cases, case).input()).unwrap();
        let expected = cases.get(format!("{case}.output"));
        assert_close(&format!("{name}, {case}"), &output, &expected, REFERENCE_TOLERANCE);
    }
}

#[test]
fn the_sdxl_unet_equals_diffusers() {
    equals_diffusers("sdxl");
}

#[test]
fn the_sd15_unet_equals_diffusers() {
    equals_diffusers("sd15");
}

#[test]
fn a_batched_row_equals_the_row_alone() {
    for name in ["sdxl", "sd15"] {
        let (unet, cases) = (unet(name), Cases::open(&format!("unet_{name}.safetensors")));
        let case = Case::open(&cases, "batch");
        let together = unet.forward(&case.input()).unwrap();
        for i in 0..3 {
            let alone = unet.forward(&case.row(i).input()).unwrap();
            assert_close(name, &together.narrow(0, i, 1).unwrap(), &alone, BATCH_TOLERANCE);
        }
    }
}

#[test]
fn padding_of_shorter_prompts_is_never_seen() {
    let (unet, cases) = (unet("sdxl"), Cases::open("unet_sdxl.safetensors"));
    let case = Case::open(&cases, "batch");
    let lengths = vec![7, 3, 5];
    let mut padded = case.clone();
    // Padding of absurd values, so that a query that sees it shows.
    let noise = Tensor::full(1e3f32, (3, 2, 80), &Device::Cpu).unwrap();
    padded.context = Tensor::cat(&[&case.context, &noise], 1).unwrap();
    padded.context_lengths = Some(lengths.clone());
    let together = unet.forward(&padded.input()).unwrap();
    for (i, length) in lengths.into_iter().enumerate() {
        let mut alone = case.row(i);
        alone.context = alone.context.narrow(1, 0, length).unwrap();
        let alone = unet.forward(&alone.input()).unwrap();
        assert_close("padded", &together.narrow(0, i, 1).unwrap(), &alone, BATCH_TOLERANCE);
    }
}

#[test]
fn every_input_of_a_row_matters() {
    let (unet, cases) = (unet("sdxl"), Cases::open("unet_sdxl.safetensors"));
    let case = Case::open(&cases, "batch").row(0);
    let reference = unet.forward(&case.input()).unwrap();
    let changed = |change: &dyn Fn(&mut Case)| {
        let mut other = case.clone();
        change(&mut other);
        relative_error(&unet.forward(&other.input()).unwrap(), &reference)
    };
    let least = 1e-3;
    assert!(changed(&|c| c.timesteps = (&c.timesteps - 100.).unwrap()) > least);
    assert!(changed(&|c| c.context = (&c.context * 2.).unwrap()) > least);
    assert!(changed(&|c| c.pooled = c.pooled.as_ref().map(|p| (p * 2.).unwrap())) > least);
    assert!(changed(&|c| c.size_ids = c.size_ids.as_ref().map(|s| (s + 1.).unwrap())) > least);
}

#[test]
fn residuals_reach_the_output_and_wrong_ones_are_refused() {
    let (unet, cases) = (unet("sd15"), Cases::open("unet_sd15.safetensors"));
    let case = Case::open(&cases, "batch");
    let plain = unet.forward(&case.input()).unwrap();
    let nothing = unet
        .forward_with(&case.input(), &FreeU::default(), |features| {
            let mut zeros = features.clone();
            zeros.middle = zeros.middle.zeros_like()?;
            for skip in &mut zeros.skips {
                *skip = skip.zeros_like()?;
            }
            features.add(&zeros)
        })
        .unwrap();
    assert_close("zero residuals", &nothing, &plain, 0.0);
    let doubled = unet
        .forward_with(&case.input(), &FreeU::default(), |features| features.add(&features.clone()))
        .unwrap();
    assert!(relative_error(&doubled, &plain) > 1e-2);
    let too_few = unet.forward_with(&case.input(), &FreeU::default(), |features| {
        let mut residuals = features.clone();
        residuals.skips.pop();
        features.add(&residuals)
    });
    assert!(too_few.unwrap_err().to_string().contains("residuals"));
}

#[test]
fn wrong_shapes_are_refused() {
    let (unet, cases) = (unet("sdxl"), Cases::open("unet_sdxl.safetensors"));
    let case = Case::open(&cases, "batch");
    let refused = |change: &dyn Fn(&mut Case), part: &str| {
        let mut other = case.clone();
        change(&mut other);
        let error = unet.forward(&other.input()).unwrap_err().to_string();
        assert!(error.contains(part), "{error}");
    };
    let zeros = |shape: &[usize]| Tensor::zeros(shape, DType::F32, &Device::Cpu).unwrap();
    refused(&|c| c.latent = zeros(&[3, 5, 16, 12]), "latent");
    refused(&|c| c.latent = zeros(&[3, 4, 16, 0]), "latent");
    refused(&|c| c.latent = zeros(&[3, 4, 16]), "shape");
    refused(&|c| c.timesteps = zeros(&[2]), "timesteps");
    refused(&|c| c.context = zeros(&[2, 7, 80]), "context");
    refused(&|c| c.context = zeros(&[3, 7, 81]), "context");
    refused(&|c| c.context = zeros(&[3, 0, 80]), "context");
    refused(&|c| c.pooled = Some(zeros(&[3, 41])), "pooled");
    refused(&|c| c.pooled = None, "pooled");
    refused(&|c| c.size_ids = Some(zeros(&[3, 5])), "size ids");
    refused(&|c| c.context_lengths = Some(vec![7, 7]), "context lengths");
    refused(&|c| c.context_lengths = Some(vec![7, 8, 1]), "context length");
    refused(&|c| c.context_lengths = Some(vec![7, 0, 1]), "context length");
}
