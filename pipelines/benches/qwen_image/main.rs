//! The time of Qwen-Image's networks on this machine, by layer, and the memory they take beside what is planned.
//!
//! ```text
//! python scripts/bench/make_random_qwen_image.py /data/random_qwen_image
//! cargo bench -p darkroom-pipelines --bench qwen_image -- --weights /data/random_qwen_image --part transformer
//! python scripts/bench/compare_qwen_image.py --help
//! ```
//!
//! A network of `d` layers is built of the first `d` of the folder's: the time of a layer is the difference between two
//! depths. With `--driven` it does what each line of its input says and answers with a line of JSON, so that another
//! program can have runs of its own between: `load d`, `run d`, `save d FILE`.
//!
//! Without `--weights` the networks are the tests' tiny ones: that shows that the bench works, not what a large model costs.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "a bench that cannot go on stops, and prints what it measured"
)]

mod subject;

use std::collections::BTreeMap;
use std::io::BufRead;
use std::path::{Path, PathBuf};
use std::time::Instant;

use candle_core::{Device, Tensor};
use clap::{Parser, ValueEnum};
use darkroom_models::ComputeType;
use darkroom_models::checkpoint::QwenImageParts;
use serde_json::{Value, json};

use subject::{Inputs, Network};

#[derive(Debug, Parser)]
struct Args {
    /// Diffusers folder; make_random_qwen_image.py makes one
    #[arg(long, value_name = "DIR")]
    weights: Option<PathBuf>,
    /// The network that is run; all of them without it
    #[arg(long, value_enum)]
    part: Option<Part>,
    /// What networks compute in
    #[arg(long, value_enum, default_value_t = Precision::Full)]
    precision: Precision,
    /// Inputs by name, as compare_qwen_image.py writes them [default: random ones of a small picture]
    #[arg(long, value_name = "FILE.safetensors")]
    inputs: Option<PathBuf>,
    /// How often each depth is run
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Do what each line of the input says
    #[arg(long, requires = "part")]
    driven: bool,
    /// What `cargo bench` adds
    #[arg(long, hide = true)]
    bench: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Part {
    Transformer,
    TextEncoder,
    Vae,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Precision {
    Full,
    Bf16,
}

impl From<Precision> for ComputeType {
    fn from(precision: Precision) -> Self {
        match precision {
            Precision::Full => Self::Full,
            Precision::Bf16 => Self::Bf16,
        }
    }
}

/// One part's networks, by depth.
struct Bench {
    folder: PathBuf,
    part: Part,
    compute_type: ComputeType,
    inputs: Inputs,
    loaded: BTreeMap<usize, Network>,
}

impl Bench {
    fn new(args: &Args, part: Part) -> Self {
        let tiny = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/qwen_image/diffusers");
        let folder = args.weights.clone().unwrap_or(tiny);
        let inputs = match &args.inputs {
            Some(file) => Inputs::read(file),
            None => Inputs::random(&parts(&folder)),
        };
        Self { folder, part, compute_type: args.precision.into(), inputs, loaded: BTreeMap::new() }
    }

    /// Builds the network of `depth` layers, and says what it should take.
    fn load(&mut self, depth: usize) -> Value {
        let started = Instant::now();
        // Opened anew: what a network takes is gone from its weights.
        let network = Network::load(&parts(&self.folder), self.part, depth, self.compute_type);
        let seconds = started.elapsed().as_secs_f64();
        let said = json!({
            "seconds": seconds,
            "planned_weight_bytes": network.weight_bytes,
            "planned_step_bytes": network.step_bytes(&self.inputs),
        });
        self.loaded.insert(depth, network);
        said
    }

    fn run(&self, depth: usize) -> (f64, Tensor) {
        let started = Instant::now();
        let out = self.loaded[&depth].run(&self.inputs);
        (started.elapsed().as_secs_f64(), out)
    }

    fn obey(&mut self, line: &str) -> Value {
        let words: Vec<&str> = line.split_whitespace().collect();
        match words[..] {
            ["load", depth] => self.load(depth.parse().unwrap()),
            ["run", depth] => json!({ "seconds": self.run(depth.parse().unwrap()).0 }),
            ["save", depth, file] => {
                let out = self.run(depth.parse().unwrap()).1;
                candle_core::safetensors::save(&[("out", out)].into(), file).unwrap();
                json!({})
            }
            _ => panic!("no order: {line}"),
        }
    }

    /// Each depth in turn, `rounds` times.
    fn measure(&mut self, rounds: usize) {
        let most = Network::depth(&parts(&self.folder), self.part);
        let depths = if most > 1 { vec![most, 1] } else { vec![most] };
        let mut seconds: BTreeMap<usize, Vec<f64>> = BTreeMap::new();
        for &depth in &depths {
            let planned = self.load(depth);
            self.run(depth);
            println!("{:?} of depth {depth}: {planned}, peak {} bytes", self.part, peak_bytes());
        }
        for _ in 0..rounds.max(1) {
            for &depth in &depths {
                seconds.entry(depth).or_default().push(self.run(depth).0);
            }
        }
        let median = |depth: &usize| {
            let mut sorted = seconds[depth].clone();
            sorted.sort_by(f64::total_cmp);
            sorted[sorted.len() / 2]
        };
        for depth in &depths {
            println!("  depth {depth}: median {:.4} s of {:.4?}", median(depth), seconds[depth]);
        }
        if let [deep, shallow] = depths[..] {
            println!("  a layer: {:.4} s", (median(&deep) - median(&shallow)) / (deep - shallow) as f64);
        }
    }
}

fn parts(folder: &Path) -> QwenImageParts {
    QwenImageParts::open(folder, &Device::Cpu).unwrap()
}

/// The largest resident size of this process so far.
fn peak_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok()).unwrap_or(0) << 10
}

fn main() {
    let args = Args::parse();
    if let (true, Some(part)) = (args.driven, args.part) {
        let mut bench = Bench::new(&args, part);
        for line in std::io::stdin().lock().lines() {
            println!("{}", bench.obey(&line.unwrap()));
        }
        return;
    }
    let all = [Part::Transformer, Part::TextEncoder, Part::Vae];
    for part in all.into_iter().filter(|part| args.part.is_none_or(|wanted| wanted == *part)) {
        Bench::new(&args, part).measure(args.rounds);
    }
}
