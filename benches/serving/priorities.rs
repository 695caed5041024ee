//! Who waits how long: a mixed load by priority, and an urgent request among 60 others.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use futures_util::{SinkExt, StreamExt};
use jiff::Timestamp;
use serde_json::{Value, json};
use tokio_tungstenite::tungstenite::Message;

use crate::Plan;
use crate::batching::drawn;
use crate::probe::Counters;
use crate::server::Server;
use crate::spread::{Spread, rounded};
use crate::workload::{mixed, ordinary};

/// `rate`: pictures a second that the server draws.
pub(crate) async fn measure(plan: &Plan, server: &Server, rate: f64) -> Value {
    let load = mixed_load(plan, server, rate).await;
    let urgent = urgent_among_others(plan, server).await;
    json!({"mixed_load": load, "urgent_among_others": urgent})
}

/// A day's mixture arriving twice as fast as it can be drawn, so that requests wait for each other.
async fn mixed_load(plan: &Plan, server: &Server, rate: f64) -> Value {
    let counts =
        [("standard", plan.count(60, 4)), ("priority", plan.count(10, 2)), ("urgent", plan.count(5, 1))];
    let all: usize = counts.iter().map(|(_, count)| count).sum();
    let during = all as f64 / rate / 2.0;
    let mut arrivals = Vec::new();
    for (priority, count) in counts {
        for i in 0..count {
            let mut request = mixed(arrivals.len());
            request["priority"] = priority.into();
            // Multiples of the golden ratio: evenly spread, in no order.
            let at = during * ((i as f64 + 0.5) * 0.618_034).fract();
            arrivals.push((priority, at, request));
        }
    }
    let before = Counters::of(server).await;
    let started = Instant::now();
    let clients = arrivals.iter().map(|(priority, at, request)| async move {
        tokio::time::sleep(Duration::from_secs_f64(*at)).await;
        let (latency, task) = drawn(server, request).await;
        (*priority, latency, waited(&task))
    });
    let answers = join_all(clients).await;
    let seconds = started.elapsed().as_secs_f64();
    let (batches, samples) = Counters::of(server).await.steps_since(&before);

    println!(
        "\n{all} mixed requests arriving over {during:.1} s, done after {seconds:.1} s; {:.2} in a step batch",
        samples / batches
    );
    println!(
        "{:>10} {:>9} {:>13} {:>13} {:>13} {:>13}",
        "", "requests", "latency p50", "latency p95", "wait p50", "wait p95"
    );
    let mut by_priority = serde_json::Map::new();
    for (priority, count) in counts {
        let of = |pick: fn(&(&str, f64, f64)) -> f64| {
            Spread::of(answers.iter().filter(|answer| answer.0 == priority).map(pick))
        };
        let (latency, wait) = (of(|answer| answer.1), of(|answer| answer.2));
        let ms = |value: f64| format!("{:.0}ms", value * 1e3);
        println!(
            "{priority:>10} {count:>9} {:>13} {:>13} {:>13} {:>13}",
            ms(latency.median()),
            ms(latency.at(0.95)),
            ms(wait.median()),
            ms(wait.at(0.95))
        );
        by_priority
            .insert(priority.into(), json!({"latency_seconds": latency.json(), "wait_seconds": wait.json()}));
    }
    json!({
        "requests": all,
        "arriving_over_seconds": rounded(during),
        "done_after_seconds": rounded(seconds),
        "mean_step_batch": rounded(samples / batches),
        "by_priority": by_priority,
    })
}

/// Seconds from submission to the first step.
fn waited(task: &Value) -> f64 {
    (seconds(time(task, "started_at")) - seconds(time(task, "created_at"))).max(0.0)
}

fn time(task: &Value, field: &str) -> Timestamp {
    task[field].as_str().unwrap_or_else(|| panic!("no {field}: {task}")).parse().unwrap()
}

fn seconds(at: Timestamp) -> f64 {
    at.as_nanosecond() as f64 / 1e9
}

/// What the server tells, slack for the way to this process. Far less than a step of a full batch takes.
const HEARING: f64 = 0.003;

/// How many steps the others make between an urgent request's submission and its start.
async fn urgent_among_others(plan: &Plan, server: &Server) -> Value {
    let others: Vec<Value> = (0..plan.count(60, 4)).map(|index| ordinary(index, "standard")).collect();
    let submitted: Value =
        server.post("/v1/images/batch", &json!({"requests": others})).await.json().await.unwrap();
    let ids: Vec<&str> =
        submitted["tasks"].as_array().unwrap().iter().filter_map(|task| task["task_id"].as_str()).collect();
    assert_eq!(ids.len(), others.len(), "{submitted}");
    let address = format!("{}/v1/tasks/ws", server.url.replacen("http", "ws", 1));
    let (mut socket, _) = tokio_tungstenite::connect_async(address).await.unwrap();
    for id in &ids {
        let subscribe = json!({"action": "subscribe", "task_id": id}).to_string();
        socket.send(Message::text(subscribe)).await.unwrap();
    }
    let before = Counters::of(server).await;

    // Steps of the others as they are told, until all are done.
    let listening = async {
        let mut steps: Vec<(f64, String)> = Vec::new();
        let mut progress: HashMap<String, f64> = HashMap::new();
        let mut left = ids.len();
        while left > 0 {
            let message = socket.next().await.unwrap().unwrap();
            let Ok(text) = message.to_text() else { continue };
            let Ok(told) = serde_json::from_str::<Value>(text) else { continue };
            let (Some(task), Some(done)) = (told["task_id"].as_str(), told["progress"].as_f64()) else {
                continue;
            };
            if told["status"] == "completed" {
                left -= 1;
            }
            let known = progress.entry(task.to_owned()).or_default();
            if done > *known && told["status"] == "processing" {
                *known = done;
                steps.push((seconds(Timestamp::now()), task.to_owned()));
            }
        }
        steps
    };
    let asking = async {
        let mut urgent = Vec::new();
        for trial in 0..plan.count(8, 1) {
            // Apart by no whole number of steps, so that requests come at any moment of one.
            tokio::time::sleep(Duration::from_millis(170 + 37 * trial as u64 % 100)).await;
            // In turn of the others' size, so that it joins their batch, and of another, so that it goes alone.
            let mut request = ordinary(trial, "urgent");
            if trial % 2 == 1 {
                (request["width"], request["height"]) = (json!(96), json!(96));
            }
            urgent.push((request["width"].clone(), drawn(server, &request).await.1));
        }
        urgent
    };
    let (steps, urgent) = tokio::join!(listening, asking);
    let (batches, samples) = Counters::of(server).await.steps_since(&before);

    println!(
        "\nUrgent requests among {} standard ones ({:.1} in a step batch)",
        ids.len(),
        samples / batches
    );
    println!("{:>8} {:>12} {:>34}", "pixels", "wait", "steps that others made meanwhile");
    let mut rows = Vec::new();
    for (pixels, task) in &urgent {
        let (from, to) = (seconds(time(task, "created_at")), seconds(time(task, "started_at")));
        let mut made: HashMap<&str, usize> = HashMap::new();
        for (_, task) in steps.iter().filter(|(at, _)| (from..=to + HEARING).contains(at)) {
            *made.entry(task).or_default() += 1;
        }
        let made = made.values().max().copied().unwrap_or(0);
        let still = steps.iter().any(|(at, _)| *at > to);
        println!(
            "{:>8} {:>10.1}ms {made:>34}{}",
            pixels,
            waited(task) * 1e3,
            if still { "" } else { " (the others were done)" }
        );
        rows.push(json!({
            "pixels": pixels, "wait_ms": rounded(waited(task) * 1e3), "steps_of_others": made, "others_still_running": still,
        }));
    }
    json!({"others": ids.len(), "mean_step_batch": rounded(samples / batches), "urgent": rows})
}
