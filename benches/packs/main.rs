//! What a character pack costs: one character with a LoRA and a Canny ControlNet in many expressions, drawn by the real
//! server over HTTP, and by diffusers from the same files.
//!
//! ```text
//! python scripts/bench/make_random_pack.py /data/random_pack
//! cargo bench --bench packs -- --weights /data/random_pack --python python --report benches/results/packs_cpu.json
//! cargo bench --bench packs -- --quick --only mixed
//! ```
//!
//! - `packs`: 20 pictures as one pack, as separate requests each awaited, and by diffusers; time and peak memory;
//! - `loras`: a picture without a LoRA, with one for the first time and again, and with one merged into the weights;
//! - `mixed`: a step of 8 pictures with four sets of LoRAs, with one set, with merged weights and without.
//!
//! Without `--weights` the built-in model is drawn with: that shows that the bench works, not what a large model
//! costs. Where `cargo test` runs benches, it runs the quick form.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "a bench that cannot go on stops, and prints what it measured"
)]

mod diffusers;
mod flops;
mod loras;
mod mixed;
mod packs;
mod subject;
mod watch;

#[path = "../serving/probe.rs"]
#[allow(dead_code, reason = "each bench uses its own part of this")]
mod probe;
#[path = "../../tests/server/mod.rs"]
mod server;
#[path = "../serving/spread.rs"]
mod spread;

use std::path::PathBuf;

use clap::{Parser, ValueEnum};
use serde_json::{Map, Value, json};

use subject::Subject;

#[derive(Debug, Parser)]
struct Args {
    /// Write all numbers to this file, as JSON
    #[arg(long, value_name = "FILE.json")]
    report: Option<PathBuf>,
    /// The date that the report carries
    #[arg(long)]
    date: Option<String>,
    /// A few small pictures with the built-in model, to see that it works: its numbers mean nothing
    #[arg(long)]
    quick: bool,
    /// How often each comparison is repeated
    #[arg(long, default_value_t = 2)]
    rounds: usize,
    /// Only these parts
    #[arg(long, value_enum, value_delimiter = ',')]
    only: Vec<Part>,
    /// Models folder that make_random_pack.py wrote
    #[arg(long, value_name = "DIR")]
    weights: Option<PathBuf>,
    /// Compare with diffusers by this Python
    #[arg(long, value_name = "PROGRAM", requires = "weights")]
    python: Option<PathBuf>,
    /// Pictures that diffusers draws at once, beside one at a time
    #[arg(long, default_value_t = 5)]
    diffusers_batch: usize,
    /// Threads of every program [default: all of the machine's]
    #[arg(long)]
    threads: Option<usize>,
    /// Pictures of a pack
    #[arg(long, default_value_t = 20)]
    pictures: usize,
    /// Steps of a picture
    #[arg(long, default_value_t = 4)]
    steps: usize,
    /// What `cargo bench` adds
    #[arg(long, hide = true)]
    bench: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Part {
    Packs,
    Loras,
    Mixed,
}

/// How much is measured.
struct Plan {
    rounds: usize,
    threads: usize,
    pictures: usize,
    steps: usize,
    python: Option<PathBuf>,
    diffusers_batch: usize,
}

fn main() {
    let args = Args::parse();
    let quick = args.quick || !args.bench;
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let plan = Plan {
        rounds: if quick { 1 } else { args.rounds.max(1) },
        threads: args.threads.unwrap_or(cores).max(1),
        pictures: if quick { 3 } else { args.pictures.max(1) },
        steps: if quick { 2 } else { args.steps.max(2) },
        python: args.python,
        diffusers_batch: args.diffusers_batch.max(1),
    };
    let subject = args.weights.as_deref().map_or_else(Subject::built_in, Subject::random);
    // The part in this process takes as many threads as the servers get.
    rayon_threads(plan.threads);
    let wanted = |part: Part| args.only.is_empty() || args.only.contains(&part);

    let mut report = Map::new();
    if let Some(date) = &args.date {
        report.insert("date".into(), json!(date));
    }
    report.insert("machine".into(), probe::machine());
    report.insert("version".into(), json!(env!("CARGO_PKG_VERSION")));
    report.insert("quick".into(), json!(quick));
    report.insert(
        "drawn".into(),
        json!({
            "model": subject.name, "pixels": subject.side, "steps": plan.steps, "cfg": subject::CFG,
            "sampler": subject::SAMPLER, "scheduler": subject::SCHEDULER, "lora": subject.loras[0],
            "control_strength": subject::CONTROL_STRENGTH, "threads": plan.threads, "rounds": plan.rounds,
        }),
    );
    println!("{}\n{}", report["machine"], report["drawn"]);

    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    for (part, name) in [(Part::Mixed, "mixed"), (Part::Loras, "loras"), (Part::Packs, "packs")] {
        if !wanted(part) {
            continue;
        }
        let load = probe::machine()["load_average_before"].take();
        let mut measured = match part {
            Part::Mixed => mixed::measure(&plan, &subject),
            Part::Loras => runtime.block_on(loras::measure(&plan, &subject)),
            Part::Packs => runtime.block_on(packs::measure(&plan, &subject)),
        };
        measured["load_average_before"] = load;
        report.insert(name.into(), measured);
    }
    if let Some(path) = &args.report {
        let text = serde_json::to_string_pretty(&Value::Object(report)).unwrap();
        std::fs::write(path, text + "\n").unwrap();
        println!("\nreport: {}", path.display());
    }
}

/// Sets the size of the thread pool that is made on first use.
fn rayon_threads(threads: usize) {
    // SAFETY: no other thread runs yet that could read the environment.
    unsafe { std::env::set_var("RAYON_NUM_THREADS", threads.to_string()) };
}
