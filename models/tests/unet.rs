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
use darkroom_models::unet::{
    FreeU, FreeUScales, ShallowFeatures, UNet2DConditionModel, UNetConfig, UNetFeatures, UNetInput,
};
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

/// A whole pass, and copies of what comes from below at each skip, the stem's first.
fn observed(unet: &UNet2DConditionModel, input: &UNetInput<'_>, free_u: &FreeU) -> (Tensor, Vec<Tensor>) {
    let mut below = Vec::new();
    let double = |features: &mut UNetFeatures| features.add(&features.clone());
    let output = unet
        .forward_observed(input, free_u, double, |skip, x| {
            below.push((skip, x.force_contiguous()?));
            Ok(())
        })
        .unwrap();
    let numbers: Vec<usize> = below.iter().map(|(skip, _)| *skip).collect();
    assert_eq!(numbers, (0..unet.config().skip_count()).rev().collect::<Vec<_>>());
    (output, below.into_iter().rev().map(|(_, x)| x).collect())
}

#[test]
fn a_shallow_pass_on_features_of_the_same_input_is_the_whole_pass_to_the_bit() {
    let scales = FreeUScales { backbone: [1.3, 1.4], skip: [0.9, 0.2] };
    for name in ["sdxl", "sd15"] {
        let (unet, cases) = (unet(name), Cases::open(&format!("unet_{name}.safetensors")));
        for case in ["batch", "odd"] {
            let case = Case::open(&cases, case);
            for free_u in [FreeU::default(), FreeU::new(vec![(0, scales)])] {
                let (whole, below) = observed(&unet, &case.input(), &free_u);
                let (height, width) = (case.latent.dim(2).unwrap(), case.latent.dim(3).unwrap());
                for (branch, below) in below.into_iter().enumerate() {
                    let bytes = below.elem_count() * below.dtype().size_in_bytes();
                    let rows = below.dim(0).unwrap();
                    assert_eq!(bytes, rows * unet.kept_bytes(branch, height, width), "{name}, {branch}");
                    let double = |features: &mut ShallowFeatures| {
                        assert_eq!(features.skips.len(), branch + 1);
                        for skip in &mut features.skips {
                            *skip = (&*skip + &*skip)?;
                        }
                        Ok(())
                    };
                    let shallow =
                        unet.forward_shallow(&case.input(), &free_u, branch, below, double).unwrap();
                    assert_close(&format!("{name}, cut at {branch}"), &shallow, &whole, 0.0);
                }
            }
        }
    }
}

#[test]
fn what_is_below_the_cut_and_what_is_above_both_count_in_a_shallow_pass() {
    let (unet, cases) = (unet("sdxl"), Cases::open("unet_sdxl.safetensors"));
    let case = Case::open(&cases, "batch");
    let (whole, below) = observed(&unet, &case.input(), &FreeU::default());
    let mut later = case.clone();
    later.latent = (&later.latent * 0.8).unwrap();
    for (branch, below) in below.into_iter().enumerate() {
        let shallow = |case: &Case, below: Tensor| {
            unet.forward_shallow(&case.input(), &FreeU::default(), branch, below, |_| Ok(())).unwrap()
        };
        let same = shallow(&case, below.clone());
        assert!(relative_error(&same, &whole) > 1e-3, "{branch}: the residuals do nothing");
        assert!(relative_error(&shallow(&later, below.clone()), &same) > 1e-3, "{branch}");
        assert!(relative_error(&shallow(&case, (below * 0.8).unwrap()), &same) > 1e-3, "{branch}");
    }
}

#[test]
fn a_cut_that_is_not_there_and_features_that_do_not_fit_are_refused() {
    let (unet, cases) = (unet("sdxl"), Cases::open("unet_sdxl.safetensors"));
    let case = Case::open(&cases, "batch");
    let (_, below) = observed(&unet, &case.input(), &FreeU::default());
    let refused = |branch: usize, below: Tensor| {
        let shallow = unet.forward_shallow(&case.input(), &FreeU::default(), branch, below, |_| Ok(()));
        shallow.unwrap_err().to_string()
    };
    let count = unet.config().skip_count();
    for branch in [count, usize::MAX] {
        assert!(refused(branch, below[0].clone()).contains("cannot be cut"), "{branch}");
    }
    for (branch, below) in below.iter().enumerate() {
        assert!(refused(branch, below.narrow(0, 0, 1).unwrap()).contains("kept features"), "{branch}");
        assert!(refused(branch, below.narrow(1, 1, 1).unwrap()).contains("kept features"), "{branch}");
    }
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
