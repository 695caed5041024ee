//! The same mixed requests one at a time, all together, and by the command line with a process each, in turns.

use std::path::Path;
use std::time::Instant;

use futures_util::future::join_all;
use serde_json::{Value, json};

use crate::Plan;
use crate::probe::{Counters, STAGES};
use crate::server::{Server, program};
use crate::spread::{Spread, rounded};
use crate::workload::mixed;

/// One way through all requests.
struct Run {
    seconds: f64,
    latencies: Spread,
    /// Step batches, and samples in them.
    steps: (f64, f64),
    stages: Value,
    pictures: Vec<Rgb>,
}

/// 8-bit RGB.
type Rgb = Vec<u8>;

/// All numbers, and how many pictures a second the server draws when it is asked for all of them at once.
pub(crate) async fn measure(plan: &Plan, server: &Server) -> (Value, f64) {
    let requests: Vec<Value> = (0..plan.count(64, 6)).map(mixed).collect();
    // Loads the model, fills the prompt cache and gives the kernels their buffers, for all ways alike.
    run(server, &requests, true).await;

    let mut alone = Vec::new();
    let mut together = Vec::new();
    for round in 0..plan.rounds {
        // Neither way always has the warmer machine.
        for way in [round % 2 == 0, round % 2 != 0] {
            let run = run(server, &requests, way).await;
            if way { together.push(run) } else { alone.push(run) }
        }
    }
    let folder = plan.folder();
    let cli = command_line(&requests[..plan.count(requests.len(), 2)], folder.path());

    let reference = &alone[0].pictures;
    let difference = |pictures: &[Rgb]| {
        let pairs = reference.iter().zip(pictures).flat_map(|(a, b)| a.iter().zip(b));
        pairs.fold((0, 0usize), |(most, count), (a, b)| {
            (a.abs_diff(*b).max(most), count + usize::from(a != b))
        })
    };
    let most_apart =
        |runs: &[Run]| runs.iter().map(|run| difference(&run.pictures)).max().unwrap_or_default();
    let values: usize = reference.iter().map(Vec::len).sum();
    let apart = |(most, count): (u8, usize)| json!({"levels": most, "values": count, "of": values});

    let ratios =
        Spread::of(alone.iter().zip(&together).map(|(alone, together)| alone.seconds / together.seconds));
    let rate = |runs: &[Run]| Spread::of(runs.iter().map(|run| requests.len() as f64 / run.seconds));
    let cli_each = cli.seconds / cli.pictures.len() as f64;
    let together_each = 1.0 / rate(&together).median();

    println!(
        "\n{} mixed requests (4 to 20 steps; 64, 96 and 128 pixels), {} rounds",
        requests.len(),
        plan.rounds
    );
    println!("{:>24} {:>14} {:>16} {:>12}", "", "pictures a s", "in a step batch", "p50 latency");
    for (name, runs) in [("one at a time", &alone), ("together", &together)] {
        let batch = Spread::of(runs.iter().map(|run| run.steps.1 / run.steps.0)).median();
        let latency = Spread::of(runs.iter().map(|run| run.latencies.median())).median();
        println!("{name:>24} {:>14.2} {batch:>16.2} {:>10.0}ms", rate(runs).median(), latency * 1e3);
    }
    println!("{:>24} {:>14.2}", "a process each", 1.0 / cli_each);
    println!(
        "together over one at a time: {:.2} ({:.2} to {:.2}); over a process each: {:.2}",
        ratios.median(),
        ratios.at(0.0),
        ratios.at(1.0),
        cli_each / together_each
    );
    for (name, runs) in [("one at a time", &alone), ("together", &together)] {
        let stage =
            |stage: &&str| format!("{stage} {:.2}s", runs[0].stages[*stage].as_f64().unwrap_or_default());
        println!("{name:>24}: {}", STAGES.iter().map(stage).collect::<Vec<_>>().join(", "));
    }
    let (again, batched, by_cli) = (most_apart(&alone), most_apart(&together), difference(&cli.pictures));
    println!(
        "levels apart from the pictures made alone: again {again:?}, together {batched:?}, by the command line {by_cli:?} of {values} values"
    );

    let numbers = |runs: &[Run]| -> Vec<Value> { runs.iter().map(Run::json).collect() };
    let report = json!({
        "requests": requests.len(),
        "throughput_ratio": ratios.json(),
        "pictures_a_second": {
            "one_at_a_time": rate(&alone).json(),
            "together": rate(&together).json(),
            "a_process_each": rounded(1.0 / cli_each),
        },
        "together_over_a_process_each": rounded(cli_each / together_each),
        "difference_from_alone": {
            "alone_again": apart(again), "together": apart(batched), "command_line": apart(by_cli),
        },
        "runs": {
            "one_at_a_time": numbers(&alone),
            "together": numbers(&together),
            "a_process_each": {"pictures": cli.pictures.len(), "seconds": rounded(cli.seconds), "each": cli.each.json()},
        },
    });
    (report, rate(&together).median())
}

impl Run {
    fn json(&self) -> Value {
        json!({
            "seconds": rounded(self.seconds),
            "latency_seconds": self.latencies.json(),
            "step_batches": self.steps.0,
            "mean_step_batch": rounded(self.steps.1 / self.steps.0),
            "stage_seconds": self.stages,
        })
    }
}

async fn run(server: &Server, requests: &[Value], together: bool) -> Run {
    let before = Counters::of(server).await;
    let started = Instant::now();
    let mut answers = Vec::with_capacity(requests.len());
    if together {
        answers = join_all(requests.iter().map(|request| drawn(server, request))).await;
    } else {
        for request in requests {
            answers.push(drawn(server, request).await);
        }
    }
    let seconds = started.elapsed().as_secs_f64();
    let after = Counters::of(server).await;
    let mut pictures = Vec::with_capacity(answers.len());
    for (_, task) in &answers {
        pictures.push(rgb(&server.picture(task, 0).await));
    }
    Run {
        seconds,
        latencies: Spread::of(answers.iter().map(|(seconds, _)| *seconds)),
        steps: after.steps_since(&before),
        stages: after.stages_since(&before),
        pictures,
    }
}

/// Seconds until a request was answered with its pictures, and the answer.
pub(crate) async fn drawn(server: &Server, request: &Value) -> (f64, Value) {
    let started = Instant::now();
    let task: Value = server.post("/v1/images?wait=true", request).await.json().await.unwrap();
    let seconds = started.elapsed().as_secs_f64();
    assert_eq!(task["status"], "completed", "{request}: {task}");
    (seconds, task)
}

fn rgb(file: &[u8]) -> Rgb {
    image::load_from_memory(file).unwrap().into_rgb8().into_raw()
}

struct CommandLine {
    seconds: f64,
    each: Spread,
    pictures: Vec<Rgb>,
}

/// What the same pictures take without a server.
fn command_line(requests: &[Value], folder: &Path) -> CommandLine {
    let mut each = Vec::new();
    let mut pictures = Vec::new();
    for (index, request) in requests.iter().enumerate() {
        let out = folder.join(index.to_string());
        let mut command = program();
        command.args(["generate", "--quiet", "--out"]).arg(&out);
        for (field, value) in request.as_object().unwrap() {
            let flag = if field == "negative_prompt" { "negative" } else { field };
            let value = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
            command.arg(format!("--{flag}={value}"));
        }
        let started = Instant::now();
        let output = command.output().unwrap();
        each.push(started.elapsed().as_secs_f64());
        assert!(output.status.success(), "{request}: {}", String::from_utf8_lossy(&output.stderr));
        let file = std::fs::read_dir(&out).unwrap().next().unwrap().unwrap().path();
        pictures.push(rgb(&std::fs::read(file).unwrap()));
    }
    CommandLine { seconds: each.iter().sum(), each: Spread::of(each), pictures }
}
