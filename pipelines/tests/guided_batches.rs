//! LoRAs and ControlNets in mixed step batches: with the embedded model, its ControlNet and its LoRA, and made-up ones
//! beside them, a picture in company equals the same picture alone.

// A test's own set-up may fail the test.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use candle_core::{DType, Device, Tensor};
use darkroom_models::checkpoint::Checkpoint;
use darkroom_models::controlnet::ControlNet;
use darkroom_models::lora::{Lora, LoraFile};
use darkroom_models::weights::WeightFile;
use darkroom_models::{Precision, adapter::NetworkAdapter};
use darkroom_pipelines::noise::BatchPosition;
use darkroom_pipelines::{
    Control, ImageRequest, LoraSet, Picture, Pipeline, Rounding, Source, Speed, StackedLora, StepCache,
};
use proptest::prelude::*;

/// A sample in a mixed batch against the same sample alone, ‖difference‖ / ‖alone‖.
const BATCH_TOLERANCE: f64 = 1e-4;
/// The same LoRAs as adapters and in the weights, which are rounded once to `f16` then: what those 11 bits of a weight
/// cost after a whole run at cfg 5.
const ROUNDED_TOLERANCE: f64 = 1e-3;
const SIDE: usize = 64;

struct Model {
    pipeline: Pipeline,
    loras: HashMap<&'static str, Arc<Lora>>,
    controls: [Arc<ControlNet>; 2],
}

fn asset(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../assets").join(name)
}

fn open(path: &Path) -> Arc<WeightFile> {
    Arc::new(WeightFile::open(path).unwrap())
}

fn model() -> &'static Model {
    static MODEL: OnceLock<Model> = OnceLock::new();
    MODEL.get_or_init(|| {
        let checkpoint = Checkpoint::open(&asset("tiny-sdxl.safetensors"), &Device::Cpu).unwrap();
        let pipeline = Pipeline::load(&checkpoint, &Device::Cpu).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let made = folder.path().join("made.safetensors");
        candle_core::safetensors::save(&made_up_lora(), &made).unwrap();
        let bind = |path: &Path| {
            let lora = pipeline.bind_lora(&LoraFile::open(open(path)).unwrap()).unwrap();
            assert_eq!(lora.unmatched, Vec::<String>::new());
            Arc::new(lora)
        };
        let loras =
            HashMap::from([("tinychan", bind(&asset("lora-tinychan.safetensors"))), ("made", bind(&made))]);
        let other = folder.path().join("other.safetensors");
        candle_core::safetensors::save(&other_control_net(), &other).unwrap();
        let control = |path: &Path| {
            let config = pipeline.unet_config().unwrap();
            Arc::new(ControlNet::from_file(open(path), config, &Device::Cpu, Precision::Full).unwrap())
        };
        let controls = [control(&asset("tiny-canny.safetensors")), control(&other)];
        Model { pipeline, loras, controls }
    })
}

fn random(seed: u64, shape: &[usize], scale: f32) -> Tensor {
    let count = shape.iter().product::<usize>();
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let values: Vec<f32> = (0..count)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            ((state >> 40) as f32 / (1 << 23) as f32 - 1.0) * scale
        })
        .collect();
    Tensor::from_vec(values, shape, &Device::Cpu).unwrap()
}

/// A LoRA in kohya's keys on a linear layer, a 3×3 convolution and a text encoder.
fn made_up_lora() -> HashMap<String, Tensor> {
    let mut tensors = HashMap::new();
    let mut add = |layer: &str, down: &[usize], up: &[usize]| {
        let seed = layer.len() as u64;
        tensors.insert(format!("{layer}.lora_down.weight"), random(seed, down, 0.3));
        tensors.insert(format!("{layer}.lora_up.weight"), random(seed + 1, up, 0.3));
        tensors.insert(format!("{layer}.alpha"), Tensor::new(1.5f32, &Device::Cpu).unwrap());
    };
    add("lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn2_to_v", &[3, 128], &[96, 3]);
    add("lora_unet_down_blocks_0_resnets_0_conv1", &[2, 64, 3, 3], &[64, 2, 1, 1]);
    add("lora_te1_text_model_encoder_layers_0_self_attn_q_proj", &[2, 64], &[64, 2]);
    tensors
}

/// The embedded ControlNet with other output projections: another network of the same shape.
fn other_control_net() -> HashMap<String, Tensor> {
    let mut tensors = candle_core::safetensors::load(asset("tiny-canny.safetensors"), &Device::Cpu).unwrap();
    for (name, tensor) in &mut tensors {
        if name.starts_with("controlnet_down_blocks") && name.ends_with("weight") {
            *tensor = (&*tensor * -0.7).unwrap();
        }
    }
    tensors
}

impl Model {
    fn set(&self, stack: &[(&str, f64, f64)]) -> Arc<LoraSet> {
        let stack = stack
            .iter()
            .map(|(name, strength, text_strength)| StackedLora {
                name: (*name).into(),
                lora: self.loras[name].clone(),
                strength: *strength,
                text_strength: *text_strength,
            })
            .collect();
        Arc::new(self.pipeline.lora_set(stack).unwrap())
    }

    fn control(&self, which: usize, seed: usize, strength: f64, start: f64, end: f64) -> Control {
        // Lines at places of the seed's choice.
        let line = |x: usize, y: usize| (x + seed * 7) % 23 < 2 || (y + seed * 5) % 19 < 2;
        let pixel = |i: usize| if line(i % SIDE, i / SIDE) { [1.0; 3] } else { [0.0; 3] };
        let picture = Picture::new(SIDE, SIDE, (0..SIDE * SIDE).flat_map(pixel).collect()).unwrap();
        let network = self.controls[which].clone();
        let hint = Control::embed(&network, &picture, SIDE, SIDE, &Device::Cpu).unwrap();
        Control { network, hint, strength, start, end }
    }

    fn draw(&self, requests: &[ImageRequest]) -> Vec<Tensor> {
        draw(&self.pipeline, requests)
    }
}

fn draw(pipeline: &Pipeline, requests: &[ImageRequest]) -> Vec<Tensor> {
    let mut samples = pipeline.prepare(requests).unwrap();
    pipeline.denoise(&mut samples, 16, &mut |_| ()).unwrap();
    samples.iter().map(|sample| sample.latent().unwrap().clone()).collect()
}

fn request(prompt: &str, seed: u64, steps: usize) -> ImageRequest {
    ImageRequest {
        prompt: prompt.into(),
        negative_prompt: "bad".into(),
        steps,
        cfg: 5.0,
        sampler: "dpmpp_2m".parse().unwrap(),
        scheduler: "karras".parse().unwrap(),
        seed,
        position: BatchPosition::ALONE,
        denoise: 1.0,
        clip_skip: None,
        source: Source::Empty { width: SIDE, height: SIDE },
        loras: None,
        controls: Vec::new(),
        speed: Speed::default(),
    }
}

fn relative_error(ours: &Tensor, theirs: &Tensor) -> f64 {
    let norm = |x: &Tensor| {
        let x = x.to_dtype(DType::F64).unwrap();
        x.sqr().unwrap().sum_all().unwrap().to_scalar::<f64>().unwrap().sqrt()
    };
    norm(&(ours - theirs).unwrap()) / norm(theirs)
}

/// Eight pictures with three sets of LoRAs and none, two ControlNets and none, several step counts and samplers.
fn mixed_requests(model: &Model) -> Vec<ImageRequest> {
    let one = model.set(&[("tinychan", 1.0, 1.0)]);
    let two = model.set(&[("made", 0.8, 0.8)]);
    let both = model.set(&[("tinychan", 0.5, 0.0), ("made", -0.6, 1.2)]);
    let control = |which, seed, strength, start, end| model.control(which, seed, strength, start, end);
    let with = |request: ImageRequest, loras: Option<&Arc<LoraSet>>, controls: Vec<Control>| ImageRequest {
        loras: loras.cloned(),
        controls,
        ..request
    };
    let sampled = |request: ImageRequest, sampler: &str, cfg| ImageRequest {
        sampler: sampler.parse().unwrap(),
        cfg,
        ..request
    };
    vec![
        with(request("1girl, smile", 1, 5), Some(&one), vec![control(0, 1, 0.8, 0.0, 1.0)]),
        with(request("1girl", 2, 3), None, vec![]),
        with(request("1boy, angry", 3, 4), Some(&both), vec![control(1, 2, 0.5, 0.0, 0.6)]),
        sampled(with(request("1girl, sad", 4, 6), Some(&two), vec![]), "euler_ancestral", 7.5),
        with(request("1girl, red hair", 5, 5), Some(&one), vec![]),
        sampled(with(request("scenery", 6, 4), None, vec![control(0, 3, 1.0, 0.3, 1.0)]), "heun", 1.0),
        with(
            request("1girl, wink", 7, 3),
            Some(&two),
            vec![control(0, 4, 0.4, 0.0, 1.0), control(1, 5, 0.7, 0.0, 1.0), control(0, 6, 0.3, 0.0, 1.0)],
        ),
        sampled(with(request("1girl, smile", 8, 5), Some(&both), vec![]), "dpmpp_sde", 1.0),
    ]
}

#[test]
fn eight_pictures_with_three_lora_sets_and_two_controlnets_in_one_batch_equal_each_alone() {
    let model = model();
    let requests = mixed_requests(model);
    let together = model.draw(&requests);
    for (index, (request, batched)) in requests.iter().zip(&together).enumerate() {
        let alone = model.draw(std::slice::from_ref(request)).remove(0);
        let error = relative_error(batched, &alone);
        println!("picture {index}: {error:.1e}");
        assert!(error <= BATCH_TOLERANCE, "picture {index}: {error}");
    }
}

#[test]
fn with_step_caching_they_equal_each_alone_as_well() {
    let model = model();
    let requests: Vec<ImageRequest> = mixed_requests(model)
        .into_iter()
        .enumerate()
        .map(|(index, request)| {
            let step_cache = Some(StepCache { cache_interval: 2 + index % 2, cache_branch_id: None });
            ImageRequest { speed: Speed { guidance_interval: None, step_cache }, ..request }
        })
        .collect();
    let together = model.draw(&requests);
    for (index, (request, batched)) in requests.iter().zip(&together).enumerate() {
        let alone = model.draw(std::slice::from_ref(request)).remove(0);
        let error = relative_error(batched, &alone);
        println!("picture {index}: {error:.1e}");
        assert!(error <= BATCH_TOLERANCE, "picture {index}: {error}");
    }
}

#[test]
fn every_lora_and_every_control_changes_its_own_picture() {
    let model = model();
    for (index, request) in mixed_requests(model).into_iter().enumerate() {
        let plain =
            model.draw(&[ImageRequest { loras: None, controls: Vec::new(), ..request.clone() }]).remove(0);
        if request.loras.is_some() {
            let without = model.draw(&[ImageRequest { loras: None, ..request.clone() }]).remove(0);
            let with = model.draw(std::slice::from_ref(&request)).remove(0);
            assert!(relative_error(&with, &without) > 0.01, "picture {index}: the LoRA does nothing");
        }
        if !request.controls.is_empty() {
            let with = model.draw(&[ImageRequest { loras: None, ..request.clone() }]).remove(0);
            assert!(relative_error(&with, &plain) > 0.01, "picture {index}: the ControlNet does nothing");
        }
    }
}

#[test]
fn merged_weights_and_adapters_draw_the_same_picture() {
    let model = model();
    for stack in [&[("tinychan", 1.0, 1.0)][..], &[("tinychan", 0.5, 0.0), ("made", -0.6, 1.2)][..]] {
        let set = model.set(stack);
        let request = ImageRequest { loras: Some(set.clone()), ..request("1girl, smile", 1, 5) };
        let adapted = model.draw(std::slice::from_ref(&request)).remove(0);
        for (rounding, tolerance) in
            [(Rounding::None, BATCH_TOLERANCE), (Rounding::ToStored, ROUNDED_TOLERANCE)]
        {
            let merged = model.pipeline.with_merged(&set, rounding).unwrap();
            let merged = draw(&merged, std::slice::from_ref(&request)).remove(0);
            let error = relative_error(&merged, &adapted);
            println!("{stack:?} {rounding:?}: {error:.1e}");
            assert!(error <= tolerance, "{stack:?} {rounding:?}: {error}");
        }
    }
}

#[test]
fn merging_leaves_the_base_as_the_file_has_it() {
    let model = model();
    let before = model.draw(&[request("1girl, smile", 1, 3)]).remove(0);
    let set = model.set(&[("tinychan", 1.0, 1.0), ("made", 1.0, 1.0)]);
    let merged = model.pipeline.with_merged(&set, Rounding::ToStored).unwrap();
    let request_with = ImageRequest { loras: Some(set), ..request("1girl, smile", 1, 3) };
    let _ = draw(&merged, &[request_with]);
    drop(merged);
    let after = model.draw(&[request("1girl, smile", 1, 3)]).remove(0);
    assert_eq!(bits(&before), bits(&after));
    // Byte for byte: every tensor that the network holds is the file's.
    let pristine = Checkpoint::open(&asset("tiny-sdxl.safetensors"), &Device::Cpu).unwrap();
    let fresh = Pipeline::load(&pristine, &Device::Cpu).unwrap();
    let mut count = 0;
    for ((name, held), (fresh_name, stored)) in
        model.pipeline.unet_weights().iter().zip(fresh.unet_weights().iter())
    {
        assert_eq!((name, held.tensor.dtype()), (fresh_name, stored.tensor.dtype()));
        assert_eq!(bits(&held.tensor), bits(&stored.tensor), "{name}");
        count += 1;
    }
    assert!(count > 100, "{count}");
}

fn bits(tensor: &Tensor) -> Vec<u32> {
    let values = tensor.to_dtype(DType::F32).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
    values.into_iter().map(f32::to_bits).collect()
}

#[test]
fn weights_with_other_loras_in_them_are_never_used_for_a_sample() {
    let model = model();
    let merged = model.pipeline.with_merged(&model.set(&[("tinychan", 1.0, 1.0)]), Rounding::None).unwrap();
    for loras in [None, Some(model.set(&[("made", 1.0, 1.0)]))] {
        let mut samples = merged.prepare(&[ImageRequest { loras, ..request("1girl", 1, 2) }]).unwrap();
        let error = merged.denoise(&mut samples, 4, &mut |_| ()).unwrap_err();
        assert!(error.to_string().contains("loras"), "{error}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 6, ..ProptestConfig::default() })]

    #[test]
    fn any_mix_of_pictures_equals_each_alone(picked in proptest::sample::subsequence((0..8usize).collect::<Vec<_>>(), 2..5)) {
        let model = model();
        let all = mixed_requests(model);
        let requests: Vec<ImageRequest> = picked.iter().map(|index| all[*index].clone()).collect();
        let together = model.draw(&requests);
        for (request, batched) in requests.iter().zip(&together) {
            let alone = model.draw(std::slice::from_ref(request)).remove(0);
            prop_assert!(relative_error(batched, &alone) <= BATCH_TOLERANCE);
        }
    }
}

#[test]
fn a_set_without_effect_changes_nothing() {
    let model = model();
    assert!(NetworkAdapter::default().is_empty());
    let plain = model.draw(&[request("1girl", 1, 2)]).remove(0);
    let none = model.set(&[]);
    let with = model.draw(&[ImageRequest { loras: Some(none), ..request("1girl", 1, 2) }]).remove(0);
    assert_eq!(bits(&plain), bits(&with));
}
