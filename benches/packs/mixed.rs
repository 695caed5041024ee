//! A step of one batch whose pictures have LoRAs in different ways, in this process: pipelines without a server, so
//! that nothing but the network's call is timed.

use std::sync::Arc;
use std::time::Instant;

use candle_core::Device;
use darkroom_models::lora::LoraFile;
use darkroom_models::weights::WeightFile;
use darkroom_pipelines::noise::BatchPosition;
use darkroom_pipelines::{ImageRequest, LoraSet, Pipeline, Rounding, Sample, Source, Speed, StackedLora};
use serde_json::{Value, json};

use crate::Plan;
use crate::flops::Flops;
use crate::spread::{Spread, rounded};
use crate::subject::{self, Subject};

/// Pictures of the batch.
const PICTURES: usize = 8;
/// Sets of LoRAs in the mixed batch.
const SETS: usize = 4;
/// Steps of each way in a round.
const STEPS: usize = 2;

/// A batch that steps again and again.
struct Way<'p> {
    name: &'static str,
    pipeline: &'p Pipeline,
    samples: Vec<Sample>,
    seconds: Vec<f64>,
}

impl Way<'_> {
    fn step(&mut self) -> f64 {
        let mut batch: Vec<&mut Sample> = self.samples.iter_mut().collect();
        let started = Instant::now();
        self.pipeline.step(&mut batch).unwrap();
        started.elapsed().as_secs_f64()
    }
}

/// All numbers.
pub(crate) fn measure(plan: &Plan, subject: &Subject) -> Value {
    let pipeline = Pipeline::load(&subject.checkpoint(), &Device::Cpu).unwrap();
    let mut bind = Vec::new();
    let mut stack = Vec::new();
    for set in 0..SETS {
        let id = &subject.loras[set % subject.loras.len()];
        // What has been used already comes once more at another strength: a set of its own.
        let strength = 1.0 - 0.2 * (set / subject.loras.len()) as f64;
        let file = subject.lora(id);
        let started = Instant::now();
        let file = WeightFile::from_static(id, Box::leak(file.into_boxed_slice())).unwrap();
        let lora = Arc::new(pipeline.bind_lora(&LoraFile::open(Arc::new(file)).unwrap()).unwrap());
        let one = StackedLora { name: id.as_str().into(), lora, strength, text_strength: strength };
        stack.push(Arc::new(pipeline.lora_set(vec![one]).unwrap()));
        bind.push(started.elapsed().as_secs_f64());
    }
    let started = Instant::now();
    let merged = pipeline.with_merged(&stack[0], Rounding::None).unwrap();
    let merge = started.elapsed().as_secs_f64();

    let steps = plan.rounds * STEPS + 2;
    let batch = |pipeline: &Pipeline, set: &dyn Fn(usize) -> Option<usize>| {
        let requests: Vec<ImageRequest> = (0..PICTURES)
            .map(|index| request(subject, index, steps, set(index).map(|set| Arc::clone(&stack[set]))))
            .collect();
        pipeline.prepare(&requests).unwrap()
    };
    let way = |name, pipeline, set: &dyn Fn(usize) -> Option<usize>| Way {
        name,
        pipeline,
        samples: batch(pipeline, set),
        seconds: Vec::new(),
    };
    let mut ways = [
        way("no LoRA", &pipeline, &|_| None),
        way("one set, merged", &merged, &|_| Some(0)),
        way("one set, adapters", &pipeline, &|_| Some(0)),
        way("four sets, adapters", &pipeline, &|index| Some(index % SETS)),
    ];
    // Touches weights and buffers for the first time.
    ways.iter_mut().for_each(|way| {
        way.step();
    });
    for round in 0..plan.rounds * STEPS {
        for turn in 0..SETS {
            let way = &mut ways[(turn + round) % SETS];
            let seconds = way.step();
            way.seconds.push(seconds);
        }
    }

    let flops = Flops::of(
        pipeline.unet_config().unwrap(),
        pipeline.unet_weights(),
        stack[0].unet(),
        subject.side / 8,
    );
    println!(
        "\nA step of {PICTURES} pictures with guidance, {} pixels, {} steps each way",
        subject.side,
        ways[0].seconds.len()
    );
    println!("{:>24} {:>10} {:>24} {:>10}", "", "median", "over no LoRA, in turn", "range");
    let mut rows = Vec::new();
    for way in &ways {
        let spread = Spread::of(way.seconds.iter().copied());
        let over = over(way, &ways[0]);
        println!(
            "{:>24} {:>9.3}s {:>23.1}% {:>9.1}% to {:.1}%",
            way.name,
            spread.median(),
            over.median(),
            over.at(0.0),
            over.at(1.0)
        );
        rows.push(json!({
            "way": way.name, "step_seconds": spread.json(), "overhead_percent": over.json(),
            "flops_per_second": rounded(flops.base * (2 * PICTURES) as f64 / spread.median()),
        }));
    }
    let mixed_over_one = over(&ways[3], &ways[2]);
    let share = 100.0 * flops.low_rank / flops.base;
    println!(
        "four sets over one, both by adapters: {:.1}% ({:.1}% to {:.1}%); low-rank products by counting: {share:.1}% of {:.1} GFLOP a row",
        mixed_over_one.median(),
        mixed_over_one.at(0.0),
        mixed_over_one.at(1.0),
        flops.base / 1e9
    );
    println!(
        "binding a LoRA takes {:.3}s, merging one {merge:.3}s; merged weights take {} MiB",
        Spread::of(bind.iter().copied()).median(),
        pipeline.merged_bytes(&stack[0], Rounding::None) >> 20
    );
    json!({
        "pictures": PICTURES,
        "sets": SETS,
        "ways": rows,
        "mixed_over_one_set_percent": mixed_over_one.json(),
        "low_rank_share_of_flops_percent": rounded(share),
        "base_gflop_a_row": rounded(flops.base / 1e9),
        "bind_seconds": Spread::of(bind).json(),
        "merge_seconds": rounded(merge),
        "merged_mib": pipeline.merged_bytes(&stack[0], Rounding::None) >> 20,
        "lora_mib": rounded(subject.lora(&subject.loras[0]).len() as f64 / f64::from(1 << 20)),
    })
}

/// Percent that each step of one way took longer than the other's of the same turn.
fn over(way: &Way<'_>, reference: &Way<'_>) -> Spread {
    Spread::of(way.seconds.iter().zip(&reference.seconds).map(|(a, b)| 100.0 * (a / b - 1.0)))
}

fn request(subject: &Subject, index: usize, steps: usize, loras: Option<Arc<LoraSet>>) -> ImageRequest {
    ImageRequest {
        prompt: subject::prompt(index),
        negative_prompt: subject::NEGATIVE.into(),
        steps,
        cfg: subject::CFG,
        sampler: subject::SAMPLER.parse().unwrap(),
        scheduler: subject::SCHEDULER.parse().unwrap(),
        seed: subject::SEED,
        position: BatchPosition::ALONE,
        denoise: 1.0,
        clip_skip: None,
        source: Source::Empty { width: subject.side, height: subject.side },
        loras,
        controls: Vec::new(),
        speed: Speed::default(),
        shift: None,
    }
}
