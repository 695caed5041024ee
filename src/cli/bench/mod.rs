//! `darkroom bench`: sends one workflow, with other seeds each time, to Darkroom and to another server that speaks
//! ComfyUI's API, and says which is faster and whether they draw the same pictures. How users compare with their own
//! ComfyUI.
//!
//! Both servers are warmed up first and then take turns (A B, B A, …), so that what else the machine does meets both.
//! [`peer`] speaks to a server, [`compare`] looks at pictures, [`memory`] at processes, [`report`] writes it down.

mod args;
mod compare;
mod memory;
mod peer;
mod report;

use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};
use serde_json::{Value, json};
use url::Url;

pub(super) use args::BenchArgs;
use peer::{Peer, PeerError, Picture};
use report::{Figures, Report, Side};

use super::error::CommandError;
use super::print_result;

/// Trivial prompts for the fixed overhead of each server.
const OVERHEAD_PROMPTS: usize = 30;
/// How long the own server may take to start.
const START: Duration = Duration::from_secs(120);

pub(super) fn run(args: &BenchArgs, quiet: bool) -> Result<(), CommandError> {
    // Fails where one is installed already, which is as good.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let workflow = Workflow::read(&args.workflow, &args.vary)?;
    let own = match &args.url {
        Some(url) => Own { url: address(url)?, _server: None },
        None => Own::start(args)?,
    };
    let other = args.against.as_deref().map(address).transpose()?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let runtime = runtime.map_err(CommandError::plain)?;
    let report = runtime.block_on(measure(args, &workflow, &own.url, other.as_ref(), quiet));
    let report = report.map_err(|error| {
        CommandError::failure(
            &error,
            "try the workflow there by hand; `darkroom run` says more about Darkroom's side",
        )
    })?;
    print_result(&report.table())?;
    if let Some(path) = &args.json {
        let text = serde_json::to_string_pretty(&report.json()).map_err(CommandError::plain)?;
        let cannot = |error| CommandError::plain(format!("{}: {error}", path.display()));
        std::fs::write(path, text + "\n").map_err(cannot)?;
    }
    Ok(())
}

async fn measure(
    args: &BenchArgs,
    workflow: &Workflow,
    own: &Url,
    other: Option<&Url>,
    quiet: bool,
) -> Result<Report, PeerError> {
    let mut sides = vec![Runner::new("darkroom", own, args)?];
    if let Some(url) = other {
        sides.push(Runner::new("other", url, args)?);
    }
    let prompts = args.warmup + args.n;
    let bar = bar((sides.len() * prompts) as u64, quiet);
    for side in &mut sides {
        bar.set_message(format!("{}: warm-up", side.name));
        // Seeds that are not measured: nothing of what is measured is cached.
        let seeds = (0..args.warmup as u64).map(|i| args.seed.wrapping_add(1_000_000 + i)).collect();
        side.round(workflow, seeds, args.concurrency, &bar).await?;
        side.forget();
    }
    let rounds = args.rounds.min(args.n).max(1);
    for round in 0..rounds {
        let (from, to) = (round * args.n / rounds, (round + 1) * args.n / rounds);
        let seeds: Vec<u64> = (from..to).map(|i| args.seed.wrapping_add(i as u64)).collect();
        let mut order: Vec<usize> = (0..sides.len()).collect();
        if round % 2 == 1 {
            order.reverse();
        }
        for index in order {
            let side = &mut sides[index];
            bar.set_message(format!("{}: round {} of {rounds}", side.name, round + 1));
            side.round(workflow, seeds.clone(), args.concurrency, &bar).await?;
        }
    }
    bar.finish_and_clear();
    let mut results = Vec::with_capacity(sides.len());
    for side in &sides {
        let (trivial, cached) = side.overhead().await?;
        results.push(Side {
            name: side.name.to_owned(),
            url: side.peer.url().to_string(),
            latency: Figures::of(&side.latencies),
            rounds: side.rounds.clone(),
            trivial: Figures::of(&trivial),
            cached: Figures::of(&cached),
            peak_memory: memory::peak(side.peer.url()),
            system: side.peer.system().await,
        });
    }
    let pictures = match &sides[..] {
        [own, other] => Some(compare::pictures(own, other).await?),
        _ => None,
    };
    Ok(Report {
        workflow: args.workflow.display().to_string(),
        prompts: args.n,
        concurrency: args.concurrency,
        warmup: args.warmup,
        sides: results,
        pictures,
    })
}

fn bar(length: u64, quiet: bool) -> ProgressBar {
    if quiet {
        return ProgressBar::hidden();
    }
    let style = ProgressStyle::with_template("{bar:32.red} {pos:>4}/{len} prompts  {msg}");
    ProgressBar::new(length).with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
}

/// One server and what was measured of it.
struct Runner {
    name: &'static str,
    peer: Arc<Peer>,
    /// Seconds of each prompt.
    latencies: Vec<f64>,
    /// Prompts a second of each round.
    rounds: Vec<f64>,
    /// The pictures of each seed.
    drawn: BTreeMap<u64, Vec<Picture>>,
}

impl Runner {
    fn new(name: &'static str, url: &Url, args: &BenchArgs) -> Result<Self, PeerError> {
        let key = args.key.as_deref().filter(|_| name == "darkroom");
        let peer = Peer::new(url.clone(), key, Duration::from_secs(args.timeout))?;
        let (latencies, rounds) = (Vec::new(), Vec::new());
        Ok(Self { name, peer: Arc::new(peer), latencies, rounds, drawn: BTreeMap::new() })
    }

    fn forget(&mut self) {
        self.latencies.clear();
        self.rounds.clear();
        self.drawn.clear();
    }

    /// Sends the workflow with each seed, `concurrency` at a time, each of those as a client of its own.
    async fn round(
        &mut self,
        workflow: &Workflow,
        seeds: Vec<u64>,
        concurrency: usize,
        bar: &ProgressBar,
    ) -> Result<(), PeerError> {
        if seeds.is_empty() {
            return Ok(());
        }
        let mut clients = Vec::new();
        for _ in 0..concurrency.min(seeds.len()) {
            clients.push(self.peer.connect().await?);
        }
        let count = seeds.len();
        let queue = Arc::new(std::sync::Mutex::new(seeds.into_iter()));
        let bar = Arc::new(bar.clone());
        let started = Instant::now();
        let mut work = tokio::task::JoinSet::new();
        for mut client in clients {
            let (queue, bar, workflow) = (Arc::clone(&queue), Arc::clone(&bar), workflow.clone());
            work.spawn(async move {
                let mut done = Vec::new();
                loop {
                    let seed = queue.lock().unwrap_or_else(std::sync::PoisonError::into_inner).next();
                    let Some(seed) = seed else { return Ok::<_, PeerError>(done) };
                    let started = Instant::now();
                    let pictures = client.run(workflow.with_seed(seed)).await?;
                    done.push((seed, started.elapsed().as_secs_f64(), pictures));
                    bar.inc(1);
                }
            });
        }
        while let Some(done) = work.join_next().await {
            for (seed, seconds, pictures) in done.map_err(|_| PeerError::Lost)?? {
                self.latencies.push(seconds);
                self.drawn.insert(seed, pictures);
            }
        }
        self.rounds.push(count as f64 / started.elapsed().as_secs_f64());
        Ok(())
    }

    /// Seconds from POST to the history entry of a workflow that does nearly nothing: run, and taken from the cache.
    async fn overhead(&self) -> Result<(Vec<f64>, Vec<f64>), PeerError> {
        let trivial = |color: usize| {
            json!({
                "1": {"class_type": "EmptyImage", "inputs": {"width": 64, "height": 64, "batch_size": 1, "color": color}},
                "2": {"class_type": "PreviewImage", "inputs": {"images": ["1", 0]}},
            })
        };
        let mut client = self.peer.connect().await?;
        let (mut run, mut cached) = (Vec::new(), Vec::new());
        for i in 0..OVERHEAD_PROMPTS {
            for figures in [&mut run, &mut cached] {
                let started = Instant::now();
                client.run(trivial(i + 1)).await?;
                figures.push(started.elapsed().as_secs_f64());
            }
        }
        Ok((run, cached))
    }
}

/// The workflow, and where its seeds are.
#[derive(Clone)]
struct Workflow {
    graph: Value,
    /// `(node, input)`.
    seeds: Vec<(String, String)>,
}

impl Workflow {
    fn read(path: &Path, vary: &[String]) -> Result<Self, CommandError> {
        let text = std::fs::read_to_string(path)
            .map_err(|error| CommandError::plain(format!("{}: {error}", path.display())))?;
        let graph: Value = serde_json::from_str(&text)
            .map_err(|error| CommandError::plain(format!("{}: not JSON: {error}", path.display())))?;
        let Some(nodes) =
            graph.as_object().filter(|nodes| nodes.values().all(|n| n["class_type"].is_string()))
        else {
            return Err(CommandError::failure(
                format!("{} is no workflow in API format", path.display()),
                "in ComfyUI, save it with Workflow > Export (API)",
            ));
        };
        let mut seeds = Vec::new();
        if vary.is_empty() {
            for (id, node) in nodes {
                for (name, value) in node["inputs"].as_object().into_iter().flatten() {
                    if matches!(name.as_str(), "seed" | "noise_seed") && value.is_number() {
                        seeds.push((id.clone(), name.clone()));
                    }
                }
            }
        }
        for place in vary {
            let known = place.rsplit_once('.').filter(|(id, name)| {
                nodes.get(*id).is_some_and(|node| node["inputs"].get(*name).is_some_and(Value::is_number))
            });
            let Some((id, name)) = known else {
                return Err(CommandError::usage(
                    format!("--vary {place}: the workflow has no such number"),
                    "it looks like 3.seed: a node's id and the name of its input",
                ));
            };
            seeds.push((id.to_owned(), name.to_owned()));
        }
        if seeds.is_empty() {
            return Err(CommandError::usage(
                "the workflow has no seed: every prompt would be taken from the cache",
                "say with --vary NODE.INPUT which number is to change",
            ));
        }
        Ok(Self { graph, seeds })
    }

    fn with_seed(&self, seed: u64) -> Value {
        let mut graph = self.graph.clone();
        for (node, input) in &self.seeds {
            graph[node]["inputs"][input] = seed.into();
        }
        graph
    }
}

/// An address on the command line.
fn address(text: &str) -> Result<Url, CommandError> {
    let fix = "it looks like http://127.0.0.1:8188";
    let url = Url::parse(text).map_err(|error| CommandError::usage(format!("'{text}': {error}"), fix))?;
    if url.scheme() != "http" {
        return Err(CommandError::usage(format!("'{text}' is no http address"), fix));
    }
    Ok(url)
}

/// The Darkroom that is measured; one that was started for it ends with it.
struct Own {
    url: Url,
    _server: Option<OwnServer>,
}

struct OwnServer {
    child: Child,
    _data: tempfile::TempDir,
}

impl Drop for OwnServer {
    fn drop(&mut self) {
        // Nothing of it is kept, so nothing is lost.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Own {
    /// Starts this very program as a server of its own, with an empty data folder.
    fn start(args: &BenchArgs) -> Result<Self, CommandError> {
        use std::io::{BufRead, BufReader};
        let program = std::env::current_exe().map_err(CommandError::plain)?;
        let data = tempfile::tempdir().map_err(CommandError::plain)?;
        let mut command = Command::new(program);
        command.args(["serve", "--port", "0", "--data-dir"]).arg(data.path());
        for (flag, value) in [("--models-dir", &args.models_dir), ("--comfy-input-dir", &args.input_dir)] {
            if let Some(value) = value {
                command.arg(flag).arg(value);
            }
        }
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut child = command.spawn().map_err(CommandError::plain)?;
        let output = child.stdout.take();
        let server = OwnServer { child, _data: data };
        let (say, hear) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            let mut line = String::new();
            if let Some(output) = output {
                let _ = BufReader::new(output).read_line(&mut line);
            }
            let _ = say.send(line);
        });
        let line = hear.recv_timeout(START).unwrap_or_default();
        let Some(url) = line.trim().strip_prefix("listening on ") else {
            return Err(CommandError::failure(
                "the server that is to be measured does not start",
                "`darkroom serve` with the same folders says why; or start one and pass --url",
            ));
        };
        Ok(Self { url: address(url)?, _server: Some(server) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str, vary: &[&str]) -> Result<Workflow, CommandError> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        Workflow::read(file.path(), &vary.iter().map(|v| (*v).to_owned()).collect::<Vec<_>>())
    }

    const TWO: &str = r#"{"1": {"class_type": "KSampler", "inputs": {"seed": 5, "steps": 3}},
        "2": {"class_type": "RandomNoise", "inputs": {"noise_seed": 5, "seed": ["1", 0]}}}"#;

    #[test]
    fn every_seed_of_a_workflow_changes_and_nothing_else() {
        let graph = read(TWO, &[]).unwrap().with_seed(77);
        assert_eq!(
            (&graph["1"]["inputs"]["seed"], &graph["2"]["inputs"]["noise_seed"]),
            (&json!(77), &json!(77))
        );
        assert_eq!(
            (&graph["1"]["inputs"]["steps"], &graph["2"]["inputs"]["seed"]),
            (&json!(3), &json!(["1", 0]))
        );
    }

    #[test]
    fn only_what_was_named_changes_and_it_must_be_a_number() {
        let graph = read(TWO, &["1.steps"]).unwrap().with_seed(4);
        assert_eq!((&graph["1"]["inputs"]["steps"], &graph["1"]["inputs"]["seed"]), (&json!(4), &json!(5)));
        for wrong in ["1.nothing", "9.seed", "seed", "2.seed"] {
            assert!(read(TWO, &[wrong]).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_workflow_that_would_only_be_cached_or_is_none_is_refused() {
        let message = |text| read(text, &[]).err().unwrap().lines();
        assert!(message(r#"{"1": {"class_type": "EmptyImage", "inputs": {}}}"#).contains("no seed"));
        assert!(message(r#"{"nodes": [], "links": []}"#).contains("API format"));
        assert!(message("[").contains("not JSON"));
    }
}
