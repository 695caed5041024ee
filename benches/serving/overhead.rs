//! What a request takes beside the network: reading it, promising it, drawing lots, encoding, storing, answering.

use std::path::{Path, PathBuf};
use std::time::Instant;

use serde_json::{Map, Value, json};

use crate::batching::drawn;
use crate::probe::{Counters, STAGES, sync_ms};
use crate::server::Server;
use crate::spread::{Spread, rounded};
use crate::workload::tiny;
use crate::{NO_FLAGS, Plan};

/// A folder that lies in memory, where there is one: without a disk's waiting, what is left is the server's own.
const MEMORY: &str = "/dev/shm";

pub(crate) fn measure(plan: &Plan, runtime: &tokio::runtime::Runtime) -> Value {
    let mut report = Map::new();
    let places = [("disk", plan.data.clone()), ("memory", PathBuf::from(MEMORY))];
    for (name, place) in places {
        if place.is_dir() {
            report.insert(name.into(), runtime.block_on(at(plan, name, &place)));
        }
    }
    report.into()
}

async fn at(plan: &Plan, name: &str, place: &Path) -> Value {
    let folder = tempfile::TempDir::new_in(place).unwrap();
    let sync = sync_ms(folder.path());
    let server = Server::start(folder.path(), NO_FLAGS);
    let requests = plan.count(300, 5);
    for index in 0..plan.count(20, 1) {
        drawn(&server, &tiny(index)).await;
    }

    let mut own = Vec::new();
    let mut stages: Vec<Vec<f64>> = vec![Vec::new(); STAGES.len()];
    let mut before = Counters::of(&server).await;
    for index in 0..requests {
        let (seconds, _) = drawn(&server, &tiny(1000 + index)).await;
        let after = Counters::of(&server).await;
        let took = STAGES.map(|stage| after.stage_since(&before, stage));
        // Preparing a sample is bookkeeping and noise: it counts as the server's own.
        let network: f64 = STAGES
            .iter()
            .zip(took)
            .filter(|(stage, _)| ["encode", "step", "decode"].contains(stage))
            .map(|(_, s)| s)
            .sum();
        own.push((seconds - network) * 1e3);
        for (all, took) in stages.iter_mut().zip(took) {
            all.push(took * 1e3);
        }
        before = after;
    }
    let hits = bank_hits(&server, requests).await;
    let healthy = answers(&server, requests).await;

    let own = Spread::of(own);
    let stages: Vec<(&str, Spread)> = STAGES.into_iter().zip(stages.into_iter().map(Spread::of)).collect();
    println!(
        "\nBeside the network, data folder in {name} (keeping 4 KiB there takes {sync:.2} ms), milliseconds"
    );
    println!("{:>34} {:>8} {:>8}", "", "p50", "p95");
    let line = |what: &str, spread: &Spread| {
        println!("{what:>34} {:>8.2} {:>8.2}", spread.median(), spread.at(0.95));
    };
    line("a picture, network left out", &own);
    for (stage, spread) in &stages {
        line(stage, spread);
    }
    line("a hit in the expression bank", &hits);
    line("GET /health", &healthy);
    json!({
        "requests": requests,
        "sync_ms": rounded(sync),
        "own_ms": own.json(),
        "stage_ms": stages.iter().map(|(stage, spread)| ((*stage).to_owned(), spread.json())).collect::<Map<_, _>>(),
        "bank_hit_ms": hits.json(),
        "health_ms": healthy.json(),
    })
}

/// Milliseconds until a pack that the expression bank has is answered.
async fn bank_hits(server: &Server, count: usize) -> Spread {
    let pack = json!({
        "character_id": "mia", "character_prompt": "1girl, blonde hair", "expression_tags": ["smile_gentle"],
        "resolution": "64x64",
    });
    let first = server.submit(PACKS, &pack).await;
    server.completed(&first).await;
    let mut times = Vec::new();
    for _ in 0..count {
        let started = Instant::now();
        let answer: Value = server.post(PACKS, &pack).await.json().await.unwrap();
        times.push(started.elapsed().as_secs_f64() * 1e3);
        assert_eq!(answer["status"], "completed", "{answer}");
    }
    Spread::of(times)
}

const PACKS: &str = "/v1/character-packs/expressions";

/// Milliseconds of a request that does nothing: the way there and back.
async fn answers(server: &Server, count: usize) -> Spread {
    let mut times = Vec::new();
    for _ in 0..count {
        let started = Instant::now();
        server.get("/health").await.bytes().await.unwrap();
        times.push(started.elapsed().as_secs_f64() * 1e3);
    }
    Spread::of(times)
}
