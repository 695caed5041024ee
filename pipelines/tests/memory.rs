//! What a pipeline allocates against what it says it takes. A test binary of its own, with a counting allocator and
//! one test, so that nothing else is counted.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test that cannot go on fails; it says what it measured"
)]

#[path = "../../models/tests/support/counting.rs"]
mod counting;

use std::path::Path;

use candle_core::Device;
use counting::measure;
use darkroom_models::checkpoint::Checkpoint;
use darkroom_models::tokenizer::ClipTokenizer;
use darkroom_pipelines::noise::BatchPosition;
use darkroom_pipelines::sampler::SamplerKind;
use darkroom_pipelines::schedule::Scheduler;
use darkroom_pipelines::{ImageRequest, PIXELS_PER_CELL, Pipeline, Sample, Source, Speed, StepCache};

fn request(seed: u64, width: usize, height: usize) -> ImageRequest {
    ImageRequest {
        prompt: "1girl, red hair".into(),
        negative_prompt: String::new(),
        steps: 4,
        cfg: 3.0,
        sampler: SamplerKind::Euler,
        scheduler: Scheduler::Normal,
        seed,
        position: BatchPosition::ALONE,
        denoise: 1.0,
        clip_skip: None,
        source: Source::Empty { width, height },
        loras: None,
        controls: Vec::new(),
        speed: Speed::default(),
        shift: None,
    }
}

#[test]
fn estimates_bound_what_is_allocated_and_are_not_far_above_it() {
    // On one thread: with more, chance decides which of them first needs its scratch memory when.
    rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap().install(check);
}

fn check() {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    ClipTokenizer::standard().unwrap(); // all pipelines share it
    for file in ["../assets/tiny-sdxl.safetensors", "tests/golden/comfyui/sdxl-tiny.safetensors"] {
        let checkpoint = Checkpoint::open(&here.join(file), &Device::Cpu).unwrap();
        let (_, held, pipeline) = measure(|| Pipeline::load(&checkpoint, &Device::Cpu).unwrap());
        let estimate = pipeline.weight_bytes() as usize;
        println!("{file}: {held} bytes held, {estimate} estimated");
        assert!(held.abs_diff(estimate) < estimate / 20, "{file}: {held} bytes held, {estimate} estimated");

        for (width, height) in [(256, 256), (392, 264)] {
            let (rows, columns) = (height / PIXELS_PER_CELL, width / PIXELS_PER_CELL);
            for batch in [1, 3] {
                let requests: Vec<_> = (0..batch).map(|seed| request(seed, width, height)).collect();
                let mut samples = pipeline.prepare(&requests).unwrap();
                let mut step = || {
                    let mut all: Vec<&mut Sample> = samples.iter_mut().collect();
                    pipeline.step(&mut all).unwrap();
                };
                step(); // what threads keep for the next time is there after the first
                let (used, _, ()) = measure(step);
                let estimate = pipeline.step_bytes(2 * requests.len(), rows, columns);
                let said = format!("{file} {width}x{height}, {batch}: {used} bytes, {estimate} estimated");
                println!("{said}");
                assert!(used <= estimate, "{said}");
                assert!(used >= estimate / 3, "{said}");

                let step_cache = Some(StepCache { cache_interval: 2, cache_branch_id: None });
                let speed = Speed { guidance_interval: None, step_cache };
                let cached: Vec<_> =
                    requests.iter().map(|request| ImageRequest { speed, ..request.clone() }).collect();
                let mut samples = pipeline.prepare(&cached).unwrap();
                let kept: usize = samples.iter().map(Sample::cache_bytes).sum();
                assert_eq!(kept, requests.len() * pipeline.cache_bytes(&speed, rows, columns));
                for evaluation in ["whole", "shallow", "whole again"] {
                    let (used, held, ()) = measure(|| {
                        let mut all: Vec<&mut Sample> = samples.iter_mut().collect();
                        pipeline.step(&mut all).unwrap();
                    });
                    // What was kept before counts already when the second and the third begin.
                    let bound = if evaluation == "whole" { estimate + kept } else { estimate };
                    let said = format!(
                        "{file} {width}x{height}, {batch}, {evaluation}: {used} bytes, {bound} estimated"
                    );
                    println!("{said}; {held} held of {kept}");
                    assert!(used <= bound, "{said}");
                }
            }
        }
    }
}
