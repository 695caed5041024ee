//! Noise against torch and k-diffusion; `scripts/golden/sampling.py` makes the golden files.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::collections::HashMap;
use std::path::PathBuf;

use candle_core::{Device, Tensor};
use darkroom_pipelines::noise::{
    BatchPosition, BrownianNoise, DefaultNoise, MAX_DRAW, NoiseError, StepNoise, TorchGenerator,
    indexed_noise, initial_noise,
};
use proptest::prelude::*;

fn golden(name: &str) -> HashMap<String, Tensor> {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name);
    candle_core::safetensors::load(path, &Device::Cpu).unwrap()
}

fn values(tensor: &Tensor) -> Vec<f32> {
    tensor.flatten_all().unwrap().to_vec1().unwrap()
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

#[test]
fn randn_has_the_bits_of_torch() {
    let golden = golden("randn.safetensors");
    for (name, tensor) in &golden {
        let (seed, n) = name.split_once('.').unwrap();
        let mut generator = TorchGenerator::new(seed.parse().unwrap());
        let drawn = match n.parse() {
            Ok(n) => generator.randn(n),
            // Draws one after the other: small ones leave a value for the next small one.
            Err(_) => [3, 16, 4, 40].into_iter().flat_map(|n| generator.randn(n)).collect(),
        };
        assert_eq!(bits(&drawn), bits(&values(tensor)), "{name}");
    }
    assert_eq!(golden.len(), 54);
}

#[test]
fn only_the_low_32_bits_of_a_seed_count() {
    assert_eq!(TorchGenerator::new(5).randn(32), TorchGenerator::new((1 << 32) + 5).randn(32));
    assert_ne!(TorchGenerator::new(5).randn(32), TorchGenerator::new(6).randn(32));
}

proptest! {
    #[test]
    fn a_slice_of_a_draw_equals_the_draw_and_leaves_the_generator_where_it_would(
        seed: u64, total in 1usize..400, start in 0usize..400, length in 0usize..400, before in 0usize..20
    ) {
        let start = start.min(total);
        let range = start..(start + length).min(total);
        let (mut whole, mut sliced) = (TorchGenerator::new(seed), TorchGenerator::new(seed));
        prop_assert_eq!(whole.randn(before), sliced.randn(before));
        prop_assert_eq!(&whole.randn(total)[range.clone()], &sliced.randn_range(total, range)[..]);
        prop_assert_eq!(whole.randn(17), sliced.randn(17));
    }

    #[test]
    fn samples_of_a_batch_share_one_draw(
        seed: u64, size in 1usize..5, channels in 1usize..5, height in 1usize..6, width in 1usize..6
    ) {
        let shape = [channels, height, width];
        let numel = channels * height * width;
        let whole = TorchGenerator::new(seed).randn(size * numel);
        for index in 0..size {
            let position = BatchPosition { index, size };
            let noise = initial_noise(seed, position, &shape, &Device::Cpu).unwrap();
            prop_assert_eq!(noise.dims(), &shape);
            prop_assert_eq!(values(&noise), &whole[index * numel..(index + 1) * numel]);
        }
    }
}

#[test]
fn the_first_step_noise_of_a_seed_is_its_initial_noise() {
    let position = BatchPosition { index: 1, size: 3 };
    let shape = [4, 4, 4];
    let mut noise = DefaultNoise::new(9, position, &shape, &Device::Cpu).unwrap();
    let initial = initial_noise(9, position, &shape, &Device::Cpu).unwrap();
    assert_eq!(values(&noise.next(2.0, 1.0).unwrap()), values(&initial));
    assert_ne!(values(&noise.next(1.0, 0.5).unwrap()), values(&initial));
}

#[test]
fn brownian_noise_has_the_bits_of_torchsde() {
    let golden = golden("brownian.safetensors");
    let sigmas = values(&golden["sigmas"]);
    let queries: Vec<Vec<f32>> = golden["queries"].to_vec2().unwrap();
    let mut cases = 0;
    for (name, draws) in &golden {
        let Some(seed) = name.strip_suffix(".draws") else { continue };
        let (size, shape) = (draws.dims()[1], &draws.dims()[2..]);
        for index in 0..size {
            let position = BatchPosition { index, size };
            let mut noise =
                BrownianNoise::new(seed.parse().unwrap(), position, shape, &sigmas, &Device::Cpu).unwrap();
            for (i, query) in queries.iter().enumerate() {
                let expected = values(&draws.get(i).unwrap().get(index).unwrap());
                let drawn = values(&noise.next(query[0], query[1]).unwrap());
                assert_eq!(bits(&drawn), bits(&expected), "{name}, sample {index}, query {query:?}");
            }
            cases += 1;
        }
    }
    assert_eq!(cases, 8);
}

#[test]
fn brownian_noise_does_not_depend_on_earlier_queries() {
    let new =
        || BrownianNoise::new(3, BatchPosition::ALONE, &[2, 8], &[9.0, 0.5, 0.0], &Device::Cpu).unwrap();
    let mut used = new();
    for (from, to) in [(8.0, 1.0), (1.0, 0.6), (9.0, 8.0)] {
        used.next(from, to).unwrap();
    }
    assert_eq!(values(&used.next(4.0, 2.0).unwrap()), values(&new().next(4.0, 2.0).unwrap()));
}

#[test]
fn noise_that_cannot_be_is_an_error() {
    let draw =
        |shape: &[usize], index, size| initial_noise(0, BatchPosition { index, size }, shape, &Device::Cpu);
    assert!(matches!(draw(&[4, 4], 2, 2), Err(NoiseError::Position { index: 2, size: 2 })));
    assert!(matches!(draw(&[4, 4], 0, 0), Err(NoiseError::Position { .. })));
    assert!(matches!(draw(&[4, 0], 0, 1), Err(NoiseError::Draw { .. })));
    assert!(matches!(draw(&[MAX_DRAW], 0, 2), Err(NoiseError::Draw { .. })));
    assert!(matches!(draw(&[usize::MAX, 2], 0, 1), Err(NoiseError::Draw { .. })));
    let brownian = |sigmas: &[f32]| BrownianNoise::new(0, BatchPosition::ALONE, &[16], sigmas, &Device::Cpu);
    assert!(matches!(brownian(&[0.0]), Err(NoiseError::Interval(_))));
    assert!(matches!(brownian(&[f32::NAN, 1.0]), Err(NoiseError::Interval(_))));
    assert!(matches!(brownian(&[f32::INFINITY, 1.0]), Err(NoiseError::Interval(_))));
    let mut noise = brownian(&[5.0, 1.0]).unwrap();
    assert!(matches!(noise.next(2.0, 2.0), Err(NoiseError::Step { .. })));
    assert!(matches!(noise.next(f32::NAN, 2.0), Err(NoiseError::Step { .. })));
}

#[test]
fn noise_of_numbered_batches_is_comfyuis() {
    let golden = golden("batch_index.safetensors");
    let places = golden["places"].to_vec1::<i64>().unwrap();
    let mut draws = 0;
    for (name, theirs) in golden.iter().filter(|(name, _)| *name != "places") {
        let seed: u64 = name.split_once('.').unwrap().0.parse().unwrap();
        for (i, place) in places.iter().enumerate() {
            let theirs = theirs.get(i).unwrap();
            let ours = indexed_noise(seed, *place as usize, theirs.dims(), &Device::Cpu).unwrap();
            assert_eq!(bits(&values(&ours)), bits(&values(&theirs)), "{name}: place {place}");
            draws += 1;
        }
    }
    assert_eq!(draws, 16);
    assert!(indexed_noise(0, usize::MAX, &[4, 8, 8], &Device::Cpu).is_err());
    assert!(indexed_noise(0, 1 << 40, &[4, 8, 8], &Device::Cpu).is_err());
}
