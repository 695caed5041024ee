//! The parts of `scripts/gpu-check` that run Darkroom: one stage a process, so that what goes wrong in one (a crash
//! too, or a card that hangs) is of no consequence to the others. What a stage finds it writes as lines of JSON while
//! it goes on; the script makes the report of them. `docs/gpu-check.md` says what is measured.
//!
//! ```text
//! gpu_check kernels --device cuda:0 --work /tmp/check --lines /tmp/check/kernels.jsonl
//! ```
#![allow(clippy::print_stdout, reason = "a bench says on the terminal what it does")]

mod architecture;
mod configs;
mod device;
mod fused;
mod kernels;
mod likeness;
mod machine;
mod measure;
mod networks;
mod operations;
mod pictures;
mod profile;
mod random;
mod record;
mod speed;
mod subject;
mod weights;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Parser, ValueEnum};

use device::Target;
use record::Record;

/// What a stage returns; errors are told to people.
pub(crate) type Outcome<T> = Result<T, Box<dyn std::error::Error + Send + Sync>>;

#[derive(Debug, Parser)]
struct Args {
    /// Which part
    #[arg(value_enum)]
    stage: Stage,
    /// `cpu`, or `cuda:0`
    #[arg(long, default_value = "cpu")]
    device: String,
    /// Folder of Darkroom's sources, for reference data of tests
    #[arg(long, value_name = "DIR", default_value = ".")]
    root: PathBuf,
    /// Folder for weights; those that are there are used again
    #[arg(long, value_name = "DIR")]
    work: PathBuf,
    /// File that findings are appended to
    #[arg(long, value_name = "FILE.jsonl")]
    lines: PathBuf,
    /// Tiny sizes, to see that everything runs: its numbers mean nothing
    #[arg(long)]
    quick: bool,
    /// Seconds that the stage may take; cases that do not fit are left out
    #[arg(long, default_value_t = 600.0)]
    seconds: f64,
    /// What random inputs are drawn from
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Cases that are not to be tried (again)
    #[arg(long, value_name = "CASE")]
    skip: Vec<String>,
    /// What `cargo bench` adds
    #[arg(long, hide = true)]
    bench: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Stage {
    /// Makes the random model that the others draw with
    Weights,
    /// What the card is, and what it can do at most
    Machine,
    /// Each operation against the CPU's in f32
    Kernels,
    /// Each network against the CPU's in f32
    Networks,
    /// Whole pictures against the CPU's in f32
    Pictures,
    /// How fast pictures are drawn
    Speed,
    /// What a step's time goes into
    Profile,
    /// One step alone, for profilers to look at
    Step,
}

/// What every stage is given.
pub(crate) struct Plan {
    pub(crate) target: Target,
    pub(crate) root: PathBuf,
    pub(crate) work: PathBuf,
    pub(crate) quick: bool,
    pub(crate) seed: u64,
}

fn main() -> ExitCode {
    // A server for the pack: the program itself, so that one file is enough to carry to a machine.
    if std::env::args_os().nth(1).is_some_and(|first| first == "serve") {
        return darkroom::cli::main();
    }
    let args = Args::parse();
    let mut record = match Record::open(&args.lines, Duration::from_secs_f64(args.seconds), args.skip) {
        Ok(record) => record,
        Err(error) => {
            println!("gpu_check: {}: {error}", args.lines.display());
            return ExitCode::FAILURE;
        }
    };
    let done = Target::open(&args.device).and_then(|target| {
        record.watch(&target.device);
        let plan = Plan { target, root: args.root, work: args.work, quick: args.quick, seed: args.seed };
        match args.stage {
            Stage::Weights => weights::make(&plan, &mut record),
            Stage::Machine => machine::look(&plan, &mut record),
            Stage::Kernels => kernels::check(&plan, &mut record),
            Stage::Networks => networks::check(&plan, &mut record),
            Stage::Pictures => pictures::check(&plan, &mut record),
            Stage::Speed => speed::measure(&plan, &mut record),
            Stage::Profile => profile::measure(&plan, &mut record),
            Stage::Step => profile::one_step(&plan),
        }
    });
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            record.failed(&error.to_string());
            println!("gpu_check: {error}");
            ExitCode::FAILURE
        }
    }
}
