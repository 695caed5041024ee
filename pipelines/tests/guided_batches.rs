//! LoRAs and ControlNets in mixed step batches: with the embedded model, its ControlNet and its LoRA, and made-up ones
//! beside them, a picture in company equals the same picture alone.

// A test's own set-up may fail the test.
#![allow(clippy::unwrap_used, clippy::panic)]

#[path = "support/guided.rs"]
mod guided;

use std::sync::OnceLock;

use candle_core::{DType, Device, Tensor};
use darkroom_models::checkpoint::Checkpoint;
use darkroom_models::{ComputeType, adapter::NetworkAdapter};
use darkroom_pipelines::{ImageRequest, Pipeline, Rounding, Speed, StepCache};
use guided::{Model, asset, draw, mixed_requests, relative_error, request};
use proptest::prelude::*;

/// A sample in a mixed batch against the same sample alone, ‖difference‖ / ‖alone‖.
const BATCH_TOLERANCE: f64 = 1e-4;
/// The same LoRAs as adapters and in the weights, which are rounded once to `f16` then: what those 11 bits of a weight
/// cost after a whole run at cfg 5.
const ROUNDED_TOLERANCE: f64 = 1e-3;
fn model() -> &'static Model {
    static MODEL: OnceLock<Model> = OnceLock::new();
    MODEL.get_or_init(|| Model::load(&Device::Cpu, ComputeType::Full))
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
