//! The same pictures as one pack, one request after the other, and by diffusers, in turns.

use std::time::{Duration, Instant};

use serde_json::{Map, Value, json};

use crate::Plan;
use crate::diffusers::Diffusers;
use crate::probe::{Counters, STAGES};
use crate::server::Server;
use crate::spread::{Spread, rounded};
use crate::subject::Subject;
use crate::watch::{Seen, Watch};

/// Most 8-bit levels that a picture may be from diffusers', or the comparison is of unequal work. Both compute in `f32`;
/// ours rounds down as ComfyUI does, theirs to the nearest.
const TOLERANCE: u64 = 2;

/// How often a pack is looked at.
const GLANCE: Duration = Duration::from_millis(20);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    Pack,
    Separate,
    DiffusersOne,
    DiffusersBatch,
}

impl Way {
    const ALL: [Self; 4] = [Self::Pack, Self::Separate, Self::DiffusersOne, Self::DiffusersBatch];

    fn name(self, plan: &Plan) -> String {
        match self {
            Self::Pack => "a pack".into(),
            Self::Separate => "separate requests".into(),
            Self::DiffusersOne => "diffusers, one at a time".into(),
            Self::DiffusersBatch => format!("diffusers, {} at a time", plan.diffusers_batch),
        }
    }
}

/// One way through all pictures.
struct Run {
    seen: Seen,
    more: Value,
}

/// All numbers.
pub(crate) async fn measure(plan: &Plan, subject: &Subject) -> Value {
    let folder = tempfile::TempDir::new().unwrap();
    let server = subject.serve(plan, folder.path(), &[]);
    let lora = subject.loras[0].as_str();
    let requests: Vec<Value> =
        (0..plan.pictures).map(|index| subject.request(plan, index, Some(lora))).collect();

    // A server that has just started: the model, the ControlNet and the LoRA are loaded, the LoRA is merged.
    let first = pack(&server, &requests).await;
    let pictures = first.1;
    let first = first.0;
    let alone = separate(&server, &requests[..1]).await;
    let own = apart(&pictures[..1], &alone.1);

    let mut diffusers = plan.python.as_ref().map(|python| Diffusers::start(plan, subject, python));
    let all: Vec<Value> = (0..plan.pictures).map(|index| subject.for_diffusers(index)).collect();
    let mut report = Map::new();
    if let Some(diffusers) = &mut diffusers {
        let part = &all[..plan.pictures.min(2)];
        // Makes its buffers; then what it takes with the LoRA as it is loaded, beside the weights.
        let mut seconds = Map::new();
        for (name, way) in
            [("warm_up", "none"), ("without_lora", "none"), ("adapters", "adapters"), ("fused", "fused")]
        {
            let run = diffusers.draw(way, 1, part);
            seconds.insert(name.into(), json!(rounded(run.seen.seconds / part.len() as f64)));
            if way != "none" {
                let apart = apart(&pictures[..part.len()], &run.pictures);
                assert!(
                    apart["most"].as_u64().unwrap() <= TOLERANCE,
                    "diffusers, {way}: other pictures: {apart}"
                );
            }
        }
        println!("\ndiffusers, seconds a picture: {}", Value::Object(seconds.clone()));
        report.insert("diffusers_seconds_a_picture".into(), seconds.into());
        report.insert("diffusers_versions".into(), diffusers.versions.clone());
        report.insert("diffusers_load_seconds".into(), json!(rounded(diffusers.load_seconds)));
    }

    let ways: Vec<Way> = Way::ALL.into_iter().take(if diffusers.is_some() { 4 } else { 2 }).collect();
    let mut runs: Vec<Vec<Run>> = ways.iter().map(|_| Vec::new()).collect();
    let mut theirs = None;
    for round in 0..plan.rounds {
        for turn in 0..ways.len() {
            // No way always has the warmer machine.
            let index = (turn + round) % ways.len();
            let run = match (ways[index], &mut diffusers) {
                (Way::Pack, _) => pack(&server, &requests).await.0,
                (Way::Separate, _) => separate(&server, &requests).await.0,
                (way, Some(diffusers)) => {
                    let batch = if way == Way::DiffusersOne { 1 } else { plan.diffusers_batch };
                    let run = diffusers.draw("fused", batch, &all);
                    theirs.get_or_insert_with(|| run.pictures.clone());
                    let more = json!({"seconds": rounded(run.seen.seconds), "others_took": run.seen.others, "step_seconds": Spread::of(run.step_seconds).json()});
                    Run { seen: run.seen, more }
                }
                (_, None) => continue,
            };
            println!(
                "round {}, {}: {:.2}s, {}",
                round + 1,
                ways[index].name(plan),
                run.seen.seconds,
                run.more
            );
            runs[index].push(run);
        }
    }

    println!(
        "\n{} pictures of {} pixels, {} steps, LoRA and Canny; {} rounds",
        plan.pictures, subject.side, plan.steps, plan.rounds
    );
    println!(
        "{:>28} {:>9} {:>9} {:>9} {:>12} {:>10} {:>10}",
        "", "least", "median", "most", "a picture", "times pack", "peak MiB"
    );
    println!(
        "{:>28} {:>9.2} {:>42} {:>10}",
        "first pack of a new server", first.seen.seconds, "", first.seen.peak_mib
    );
    for (way, runs_of) in ways.iter().zip(&runs) {
        let spread = Spread::of(runs_of.iter().map(|run| run.seen.seconds));
        let ratio =
            Spread::of(runs_of.iter().zip(&runs[0]).map(|(run, pack)| run.seen.seconds / pack.seen.seconds));
        let peak = runs_of.iter().map(|run| run.seen.peak_mib).max().unwrap_or_default();
        println!(
            "{:>28} {:>9.2} {:>9.2} {:>9.2} {:>11.2}s {:>10.2} {peak:>10}",
            way.name(plan),
            spread.at(0.0),
            spread.median(),
            spread.at(1.0),
            spread.median() / plan.pictures as f64,
            ratio.median(),
        );
        let more: Vec<&Value> = runs_of.iter().map(|run| &run.more).collect();
        report.insert(
            way.name(plan).replace(", ", "_").replace(' ', "_"),
            json!({
                "seconds": spread.json(), "times_a_pack": ratio.json(), "peak_mib": peak, "runs": more,
                "seconds_a_picture": rounded(spread.median() / plan.pictures as f64),
            }),
        );
    }
    let without_lora = separate(&server, &[subject.request(plan, 0, None)]).await.1;
    let mut bare = requests[0].clone();
    bare.as_object_mut().unwrap().remove("controls");
    let without_control = separate(&server, &[bare]).await.1;
    let mut differences = json!({
        "the_same_alone": own,
        "without_its_lora": apart(&pictures[..1], &without_lora),
        "without_its_control": apart(&pictures[..1], &without_control),
        "tolerance_for_diffusers": TOLERANCE,
    });
    if let Some(theirs) = &theirs {
        differences["by_diffusers"] = apart(&pictures, theirs);
        differences["by_diffusers_first"] = apart(&pictures[..1], &theirs[..1]);
    }
    println!("how far from the pack's pictures, 8-bit levels: {differences:#}");
    report.insert("pictures".into(), json!(plan.pictures));
    report.insert(
        "first_pack_of_a_new_server".into(),
        json!({"seconds": rounded(first.seen.seconds), "peak_mib": first.seen.peak_mib, "run": first.more}),
    );
    report.insert("levels_from_the_packs_pictures".into(), differences);
    report.into()
}

/// Seconds until a request was answered with its pictures.
pub(crate) async fn drawn(server: &Server, request: &Value) -> f64 {
    answered(server, request).await.0
}

async fn answered(server: &Server, request: &Value) -> (f64, Value) {
    let started = Instant::now();
    let task: Value = server.post("/v1/images?wait=true", request).await.json().await.unwrap();
    let seconds = started.elapsed().as_secs_f64();
    assert_eq!(task["status"], "completed", "{task}");
    (seconds, task)
}

/// All at once.
async fn pack(server: &Server, requests: &[Value]) -> (Run, Vec<Rgb>) {
    let watch = Watched::begin(server).await;
    let submitted: Value =
        server.post("/v1/images/batch", &json!({"requests": requests})).await.json().await.unwrap();
    let tasks = submitted["tasks"].as_array().unwrap_or_else(|| panic!("{submitted}"));
    let mut done = Vec::with_capacity(tasks.len());
    for task in tasks {
        let path = format!("/v1/tasks/{}", task["task_id"].as_str().unwrap());
        loop {
            let state = server.json(&path).await;
            if state["status"] == "completed" {
                done.push(state);
                break;
            }
            assert!(["queued", "processing"].contains(&state["status"].as_str().unwrap()), "{state}");
            tokio::time::sleep(GLANCE).await;
        }
    }
    watch.end(server, done).await
}

/// One after the other.
async fn separate(server: &Server, requests: &[Value]) -> (Run, Vec<Rgb>) {
    let watch = Watched::begin(server).await;
    let mut done = Vec::with_capacity(requests.len());
    for request in requests {
        done.push(answered(server, request).await.1);
    }
    watch.end(server, done).await
}

/// A run of the server that is being watched.
struct Watched {
    before: Counters,
    watch: Watch,
}

impl Watched {
    async fn begin(server: &Server) -> Self {
        Self { before: Counters::of(server).await, watch: Watch::begin(server.pid()) }
    }

    async fn end(self, server: &Server, done: Vec<Value>) -> (Run, Vec<Rgb>) {
        let seen = self.watch.end();
        let after = Counters::of(server).await;
        let steps = after.steps_since(&self.before);
        let more = json!({
            "seconds": rounded(seen.seconds),
            "others_took": seen.others,
            "mean_step_batch": rounded(steps.1 / steps.0),
            "seconds_a_step_and_picture": rounded(after.stage_since(&self.before, STAGES[2]) / steps.1),
            "stage_seconds": after.stages_since(&self.before),
            "steps_by_adapters": after.lora_steps_since(&self.before, "adapters"),
            "steps_by_merged_weights": after.lora_steps_since(&self.before, "merged"),
        });
        let mut pictures = Vec::with_capacity(done.len());
        for task in &done {
            pictures.push(rgb(&server.picture(task, 0).await));
        }
        (Run { seen, more }, pictures)
    }
}

/// 8-bit RGB.
pub(crate) type Rgb = Vec<u8>;

pub(crate) fn rgb(file: &[u8]) -> Rgb {
    image::load_from_memory(file).unwrap().into_rgb8().into_raw()
}

/// How far pictures are from each other.
fn apart(ours: &[Rgb], theirs: &[Rgb]) -> Value {
    let (mut most, mut sum, mut beyond_one, mut values) = (0u8, 0u64, 0u64, 0u64);
    for (a, b) in ours.iter().flatten().zip(theirs.iter().flatten()) {
        let difference = a.abs_diff(*b);
        most = most.max(difference);
        sum += u64::from(difference);
        beyond_one += u64::from(difference > 1);
        values += 1;
    }
    let share = |count: u64| rounded(count as f64 / values.max(1) as f64);
    json!({"most": most, "mean": share(sum), "share_beyond_one": share(beyond_one), "pictures": ours.len().min(theirs.len())})
}
