//! Previews of latents against the pictures that they become, with the built-in model.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test that cannot go on fails; it says what it measured"
)]

use std::path::Path;

use candle_core::Device;
use darkroom_models::checkpoint::Checkpoint;
use darkroom_pipelines::noise::BatchPosition;
use darkroom_pipelines::sampler::SamplerKind;
use darkroom_pipelines::schedule::Scheduler;
use darkroom_pipelines::{
    ImageRequest, LatentPreview, PIXELS_PER_CELL, Picture, Pipeline, Sample, Source, Speed,
};

/// A finished latent's preview against the picture: measured 0.083 and 0.094 (noise is 0.45 away).
const MOST_AWAY: f32 = 0.12;
/// The same, as a correlation: measured 0.93 and 0.91.
const LEAST_ALIKE: f32 = 0.85;

fn pipeline() -> Pipeline {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../assets/tiny-sdxl.safetensors");
    Pipeline::load(&Checkpoint::open(&path, &Device::Cpu).unwrap(), &Device::Cpu).unwrap()
}

fn request(prompt: &str, seed: u64) -> ImageRequest {
    ImageRequest {
        prompt: prompt.into(),
        negative_prompt: String::new(),
        steps: 12,
        cfg: 3.0,
        sampler: SamplerKind::Dpmpp2m,
        scheduler: Scheduler::Karras,
        seed,
        position: BatchPosition::ALONE,
        denoise: 1.0,
        clip_skip: None,
        source: Source::Empty { width: 128, height: 128 },
        loras: None,
        controls: Vec::new(),
        speed: Speed::default(),
        shift: None,
    }
}

/// The mean of each cell's pixels.
fn shrunk(picture: &Picture) -> Picture {
    let (width, height) = (picture.width() / PIXELS_PER_CELL, picture.height() / PIXELS_PER_CELL);
    let mut data = vec![0f32; width * height * 3];
    for (i, value) in picture.data().iter().enumerate() {
        let (pixel, channel) = (i / 3, i % 3);
        let (x, y) = (pixel % picture.width() / PIXELS_PER_CELL, pixel / picture.width() / PIXELS_PER_CELL);
        data[(y * width + x) * 3 + channel] += value / (PIXELS_PER_CELL * PIXELS_PER_CELL) as f32;
    }
    Picture::new(width, height, data).unwrap()
}

/// Mean absolute difference of two pictures of one size, 0 to 1.
fn difference(a: &Picture, b: &Picture) -> f32 {
    assert_eq!((a.width(), a.height()), (b.width(), b.height()));
    a.data().iter().zip(b.data()).map(|(a, b)| (a - b).abs()).sum::<f32>() / a.data().len() as f32
}

/// Pearson's correlation.
fn correlation(a: &Picture, b: &Picture) -> f32 {
    let mean = |p: &Picture| p.data().iter().sum::<f32>() / p.data().len() as f32;
    let (ma, mb) = (mean(a), mean(b));
    let product = |a: &Picture, b: &Picture, ma: f32, mb: f32| -> f32 {
        a.data().iter().zip(b.data()).map(|(x, y)| (x - ma) * (y - mb)).sum()
    };
    product(a, b, ma, mb) / (product(a, a, ma, ma) * product(b, b, mb, mb)).sqrt()
}

#[test]
fn previews_look_like_the_picture_and_more_so_as_it_is_drawn() {
    let pipeline = pipeline();
    let preview = LatentPreview::fit(&pipeline).unwrap();
    let requests = [request("1girl, red hair, smile", 1), request("1boy, blue hair, angry", 2)];
    let mut samples = pipeline.prepare(&requests).unwrap();
    let shown = |samples: &[Sample]| -> Vec<Picture> {
        samples.iter().map(|sample| preview.render(sample.preview_latent()).unwrap()).collect()
    };
    let noise = shown(&samples);
    let step = |samples: &mut [Sample]| {
        pipeline.step(&mut samples.iter_mut().collect::<Vec<_>>()).unwrap();
    };
    (0..6).for_each(|_| step(&mut samples));
    let halfway = shown(&samples);
    assert!(samples.iter().all(|sample| sample.latent().is_none() && sample.progress() == (6, 12)));
    while samples.iter().any(|sample| sample.latent().is_none()) {
        step(&mut samples);
    }
    let finished = shown(&samples);
    let latents: Vec<_> = samples.iter().map(|sample| sample.latent().unwrap()).collect();
    for (i, picture) in pipeline.decode(&latents).unwrap().iter().enumerate() {
        let picture = shrunk(picture);
        let away = [&noise[i], &halfway[i], &finished[i]].map(|preview| difference(preview, &picture));
        let alike = correlation(&finished[i], &picture);
        println!("{i}: noise, halfway, finished {away:?}; correlation {alike}");
        let [noise, halfway, finished] = away;
        assert!(finished < MOST_AWAY, "{i}: {finished}");
        assert!(alike > LEAST_ALIKE, "{i}: {alike}");
        assert!(halfway < noise / 2.0, "{i}: {halfway} halfway, {noise} at the start");
    }
}
