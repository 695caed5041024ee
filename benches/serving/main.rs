//! The server under load: starts the real program on a free port of the loopback, with the built-in model and a data
//! folder of its own, and measures what a client sees over HTTP.
//!
//! ```text
//! cargo bench --bench serving
//! cargo bench --bench serving -- --report benches/results/serving_cpu.json --date 2026-11-21
//! cargo bench --bench serving -- --quick --only overhead
//! ```
//!
//! - `steps`: a network call by batch size;
//! - `batching`: 64 mixed requests one at a time, together, and by the command line, a process each;
//! - `priorities`: latency of a mixed load by priority; when an urgent request starts among 60 others;
//! - `overhead`: what a request takes beside the network, and a hit in the expression bank.
//!
//! Client and server share the machine's cores. Where `cargo test` runs benches, it runs the quick form.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "a bench that cannot go on stops, and prints what it measured"
)]

mod batching;
mod overhead;
mod priorities;
#[allow(dead_code, reason = "each bench uses its own part of this")]
mod probe;
mod spread;
mod steps;
mod workload;

#[path = "../../tests/server/mod.rs"]
mod server;

use std::path::PathBuf;

use clap::{Parser, ValueEnum};
use serde_json::{Map, Value, json};

#[derive(Debug, Parser)]
struct Args {
    /// Write all numbers to this file, as JSON
    #[arg(long, value_name = "FILE.json")]
    report: Option<PathBuf>,
    /// The date that the report carries
    #[arg(long)]
    date: Option<String>,
    /// A few requests of each kind, to see that it works: its numbers mean nothing
    #[arg(long)]
    quick: bool,
    /// How often each comparison is repeated
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Only these parts
    #[arg(long, value_enum, value_delimiter = ',')]
    only: Vec<Part>,
    /// Folder for the servers' data; its disk is part of what is measured [default: the system's temporary folder]
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    /// What `cargo bench` adds
    #[arg(long, hide = true)]
    bench: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Part {
    Steps,
    Batching,
    Priorities,
    Overhead,
}

/// How much is measured, and where the data lies.
struct Plan {
    quick: bool,
    rounds: usize,
    data: PathBuf,
}

impl Plan {
    /// `full`, or `quick` in the quick form.
    fn count(&self, full: usize, quick: usize) -> usize {
        if self.quick { quick } else { full }
    }

    fn folder(&self) -> tempfile::TempDir {
        tempfile::TempDir::new_in(&self.data).unwrap()
    }
}

/// A server as it comes.
const NO_FLAGS: [&str; 0] = [];

fn main() {
    let args = Args::parse();
    let quick = args.quick || !args.bench;
    let plan = Plan {
        quick,
        rounds: if quick { 1 } else { args.rounds.max(1) },
        data: args.data.clone().unwrap_or_else(std::env::temp_dir),
    };
    let wanted = |part: Part| args.only.is_empty() || args.only.contains(&part);
    let mut report = Map::new();
    if let Some(date) = &args.date {
        report.insert("date".into(), json!(date));
    }
    report.insert("machine".into(), probe::machine());
    report.insert("version".into(), json!(env!("CARGO_PKG_VERSION")));
    report.insert("quick".into(), json!(quick));
    println!("{}", report["machine"]);

    // The client takes one thread: the server needs the others.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    if wanted(Part::Steps) {
        report.insert("steps".into(), steps::measure(&plan));
    }
    if wanted(Part::Batching) || wanted(Part::Priorities) {
        let folder = plan.folder();
        let server = server::Server::start(folder.path(), NO_FLAGS);
        let (batching, rate) = runtime.block_on(batching::measure(&plan, &server));
        report.insert("batching".into(), batching);
        if wanted(Part::Priorities) {
            report.insert("priorities".into(), runtime.block_on(priorities::measure(&plan, &server, rate)));
        }
        let memory = probe::memory(server.pid());
        println!("\nserver's memory: {memory}");
        report.insert("memory".into(), memory);
    }
    if wanted(Part::Overhead) {
        report.insert("overhead".into(), overhead::measure(&plan, &runtime));
    }
    if let Some(path) = &args.report {
        let text = serde_json::to_string_pretty(&Value::Object(report)).unwrap();
        std::fs::write(path, text + "\n").unwrap();
        println!("\nreport: {}", path.display());
    }
}
