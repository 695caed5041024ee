//! SIGKILL at random moments.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::{Duration, Instant};

use base64::Engine;
use reqwest::{Client, StatusCode};
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::task::{JoinHandle, block_in_place};

use crate::chance::Chance;
use crate::receiver::Receiver;
use crate::server::{self, PATIENCE, Server, data, files, small};
use crate::{PAUSE, lasting, soon, under_way, unfinished};

const KILLS: usize = 20;
const TASKS: usize = 200;
/// Tasks that are sent to each server before it is killed.
const WAVE: usize = TASKS / KILLS;
/// Nothing that a kill waits for takes this long; it only keeps a broken server from hanging the test.
const LONGEST_LIFE: Duration = Duration::from_secs(20);

/// What a server is doing when it is killed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Moment {
    /// Accepting: some of the wave are acknowledged, some are not.
    Submitting,
    /// All of the wave are acknowledged, and being drawn.
    Denoising,
    /// A picture's file has just appeared.
    Writing,
    /// A webhook has just arrived, and is being answered.
    Telling,
}

/// Task number `n` as it is asked for.
fn order(n: usize, picture: &str, webhook: &str) -> Value {
    let mut body = json!({
        "prompt": format!("1girl, blonde hair, number {n}"), "width": 64, "height": 64, "seed": 10 * n,
        "sampler": "euler", "scheduler": "normal", "steps": steps(n), "count": count(n),
        "priority": (["standard", "priority", "urgent"][n % 3]), "format": (["png", "webp", "jpeg"][n / 3 % 3]),
    });
    if has_webhook(n) {
        body["webhook_url"] = webhook.into();
    }
    if n % 10 == 3 {
        body["init_image"] = picture.into();
    }
    body
}

fn steps(n: usize) -> usize {
    1 + n % 2
}

fn count(n: usize) -> usize {
    if n.is_multiple_of(4) { 2 } else { 1 }
}

fn has_webhook(n: usize) -> bool {
    n % 4 == 1
}

/// What clients know of the server: where it is now, and how much it has said.
#[derive(Clone)]
struct Clients {
    url: watch::Receiver<String>,
    http: Vec<Client>,
    acknowledged: Arc<AtomicUsize>,
    unanswered: Arc<AtomicUsize>,
}

impl Clients {
    /// Sends an order until it is acknowledged; the task's id.
    async fn send(&self, n: usize, body: &Value) -> String {
        let id = loop {
            match self.try_once(n, body).await {
                Some(answer) => break answer,
                None => tokio::time::sleep(PAUSE).await,
            }
        };
        self.acknowledged.fetch_add(1, Relaxed);
        id
    }

    async fn try_once(&self, n: usize, body: &Value) -> Option<String> {
        let url = format!("{}/v1/images", *self.url.borrow());
        let request = self.http[n % self.http.len()].post(url).json(body);
        let sent = request.header("Idempotency-Key", format!("order-{n}")).send().await;
        let lost = |_| {
            self.unanswered.fetch_add(1, Relaxed);
        };
        let response = sent.map_err(lost).ok()?;
        let status = response.status();
        let text = response.text().await.map_err(lost).ok()?;
        assert_eq!(status, StatusCode::OK, "order {n}: {text}");
        let answer: Value = serde_json::from_str(&text).unwrap();
        Some(answer["task_id"].as_str().unwrap().to_owned())
    }
}

/// Waits until `reached`, or too long.
async fn until(reached: impl Fn() -> bool) {
    let deadline = Instant::now() + LONGEST_LIFE;
    while !reached() && Instant::now() < deadline {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

/// Files of pictures that are in place; what is being staged has a `#` in its name.
fn pictures(data: &Path) -> Vec<PathBuf> {
    let staged = |path: &PathBuf| path.file_name().unwrap().to_string_lossy().contains('#');
    let mut all = files(&data.join("images"));
    all.retain(|path| !staged(path));
    all
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn every_acknowledged_task_finishes_exactly_once_through_twenty_kills() {
    let mut chance = Chance::new();
    let began = Instant::now();
    let data = data();
    let receiver = Receiver::start().await;
    let picture = base64::engine::general_purpose::STANDARD.encode(source_picture());
    let orders: Vec<Value> = (0..TASKS).map(|n| order(n, &picture, &receiver.url)).collect();

    let (tell_url, url) = watch::channel(String::new());
    let clients = Clients {
        url,
        http: (0..4).map(|_| server::client()).collect(),
        acknowledged: Arc::default(),
        unanswered: Arc::default(),
    };
    let mut sent: Vec<JoinHandle<String>> = Vec::new();
    let mut whole = HashSet::new();
    let mut left_by_moment: BTreeMap<Moment, Vec<u64>> = BTreeMap::new();
    let mut moment = None;
    for kill in 0..=KILLS {
        let told = receiver.arrivals().len();
        let server = block_in_place(|| start(data.path()));
        if let Some(moment) = moment {
            let left = unfinished(&server).await;
            left_by_moment.entry(moment).or_default().push(left);
        }
        tell_url.send_replace(server.url.clone());
        if kill == KILLS {
            finish(&server, &clients, &orders, sent, &receiver, data.path()).await;
            break;
        }
        let (acknowledged, there) = (clients.acknowledged.load(Relaxed), pictures(data.path()).len());
        for (n, body) in orders.iter().enumerate().skip(kill * WAVE).take(WAVE) {
            let (clients, body) = (clients.clone(), body.clone());
            sent.push(tokio::spawn(async move { clients.send(n, &body).await }));
        }
        let now = [Moment::Submitting, Moment::Denoising, Moment::Writing, Moment::Telling][kill % 4];
        match now {
            Moment::Submitting => {
                let enough = acknowledged + chance.below(WAVE as u64) as usize;
                until(|| clients.acknowledged.load(Relaxed) >= enough).await;
            }
            Moment::Denoising => {
                until(|| clients.acknowledged.load(Relaxed) >= (kill + 1) * WAVE).await;
                tokio::time::sleep(Duration::from_millis(chance.below(500))).await;
            }
            Moment::Writing => {
                let enough = there + 1 + chance.below(2 * WAVE as u64) as usize;
                until(|| pictures(data.path()).len() >= enough).await;
            }
            Moment::Telling => {
                let enough = told + 1 + chance.below(WAVE as u64 / 2) as usize;
                until(|| receiver.arrivals().len() >= enough).await;
            }
        }
        moment = Some(now);
        block_in_place(|| server.kill());
        for path in pictures(data.path()) {
            if whole.insert(path.clone()) {
                image::load_from_memory(&std::fs::read(&path).unwrap())
                    .unwrap_or_else(|error| panic!("a kill left {} half-written: {error}", path.display()));
            }
        }
    }
    println!("tasks left unfinished by each kill: {left_by_moment:?}");
    println!("requests without an answer: {}", clients.unanswered.load(Relaxed));
    println!("in all: {:?}", began.elapsed());
    let interrupted = left_by_moment.values().flatten().filter(|left| **left > 0).count();
    assert!(interrupted >= KILLS / 2, "only {interrupted} kills fell while there was work");
}

fn start(data: &Path) -> Server {
    Server::start(data, ["--outbound-allow-networks", "127.0.0.1/32"])
}

fn source_picture() -> Vec<u8> {
    let mut png = std::io::Cursor::new(Vec::new());
    let picture = image::RgbImage::from_fn(64, 64, |x, y| image::Rgb([4 * x as u8, 4 * y as u8, 90]));
    picture.write_to(&mut png, image::ImageFormat::Png).unwrap();
    png.into_inner()
}

/// The last server is left alone: everything ends, and is what was ordered.
async fn finish(
    server: &Server,
    clients: &Clients,
    orders: &[Value],
    sent: Vec<JoinHandle<String>>,
    receiver: &Receiver,
    data: &Path,
) {
    let mut ids = Vec::new();
    for one in sent {
        ids.push(tokio::time::timeout(PATIENCE, one).await.unwrap().unwrap());
    }
    assert_eq!(ids.iter().collect::<BTreeSet<_>>().len(), TASKS, "two orders became one task");
    for n in [0, TASKS / 2, TASKS - 1] {
        assert_eq!(clients.send(n, &orders[n]).await, ids[n], "a repeated order became another task");
    }

    let mut expected_files = BTreeSet::new();
    for (n, id) in ids.iter().enumerate() {
        let task = server.completed(id).await;
        let images = task["images"].as_array().unwrap();
        assert_eq!(images.len(), count(n), "{task}");
        assert_eq!(task["usage"]["steps"], (steps(n) * count(n)) as u64, "{task}");
        for (index, image) in images.iter().enumerate() {
            assert_eq!((&image["index"], &image["seed"]), (&json!(index), &json!(10 * n + index)), "{task}");
            let bytes = server.picture(&task, index).await;
            assert_eq!(bytes.len() as u64, image["bytes"].as_u64().unwrap());
            let decoded = image::load_from_memory(&bytes).unwrap();
            assert_eq!((decoded.width(), decoded.height()), (64, 64));
            let name = image["id"].as_str().unwrap();
            let extension = match image["format"].as_str().unwrap() {
                "jpeg" => "jpg",
                other => other,
            };
            expected_files.insert(data.join("images").join(&name[..2]).join(format!("{name}.{extension}")));
        }
    }
    let found: BTreeSet<PathBuf> = files(&data.join("images")).into_iter().collect();
    assert_eq!(found, expected_files, "the folder holds what tasks name, and nothing else");
    assert_eq!(files(&data.join("blobs")).len(), 1, "the one source picture, kept once");
    assert_eq!(all_tasks(server).await, ids.iter().cloned().collect(), "no task but the acknowledged ones");
    webhooks_came(receiver, &ids, data).await;
}

async fn all_tasks(server: &Server) -> BTreeSet<String> {
    let mut all = Vec::new();
    let mut page = server.json("/v1/tasks?limit=90").await;
    loop {
        let tasks = page["tasks"].as_array().unwrap();
        all.extend(tasks.iter().map(|task| task["task_id"].as_str().unwrap().to_owned()));
        let Some(cursor) = page["next_cursor"].as_str() else { break };
        page = server.json(&format!("/v1/tasks?limit=90&cursor={cursor}")).await;
    }
    let distinct: BTreeSet<String> = all.iter().cloned().collect();
    assert_eq!(distinct.len(), all.len(), "a task is listed twice");
    distinct
}

/// Each task that wanted a webhook has one, signed, under one delivery id however often it came.
async fn webhooks_came(receiver: &Receiver, ids: &[String], data: &Path) {
    let wanted: BTreeSet<String> =
        ids.iter().enumerate().filter(|(n, _)| has_webhook(*n)).map(|(_, id)| id.clone()).collect();
    soon("a webhook for each that wanted one, and no other", || async {
        (receiver.tasks() == wanted).then_some(())
    })
    .await;
    let secret = std::fs::read_to_string(data.join("webhook-secret")).unwrap();
    let arrivals = receiver.arrivals();
    let mut deliveries: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for arrival in &arrivals {
        assert!(arrival.is_genuine(secret.trim()), "{arrival:?}");
        assert!(!arrival.is_genuine("another secret of some length"), "{arrival:?}");
        assert_eq!(
            (arrival.event.as_str(), &arrival.body["status"]),
            ("task.completed", &json!("completed"))
        );
        assert!(!arrival.delivery.is_empty());
        deliveries.entry(arrival.task()).or_default().insert(&arrival.delivery);
    }
    assert!(deliveries.values().all(|ids| ids.len() == 1), "a task was told of under two deliveries");
    println!("webhooks: {} tasks, {} arrivals", wanted.len(), arrivals.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_picture_is_the_same_whether_or_not_its_server_was_killed_on_the_way() {
    let request = lasting(77);
    let undisturbed = data();
    let server = Server::start(undisturbed.path(), [""; 0]);
    let task = server.submit("/v1/images", &request).await;
    let expected = server.picture(&server.completed(&task).await, 0).await;

    let disturbed = data();
    let mut server = Server::start(disturbed.path(), [""; 0]);
    let task = server.submit("/v1/images", &request).await;
    for _ in 0..2 {
        under_way(&server, &task).await;
        server.kill();
        server = Server::start(disturbed.path(), [""; 0]);
    }
    let after = server.picture(&server.completed(&task).await, 0).await;
    assert!(after == expected, "{} bytes, {} expected", after.len(), expected.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_crash_left_in_the_images_folder_is_cleared_away_at_the_next_start() {
    let data = data();
    let server = Server::start(data.path(), [""; 0]);
    let task = server.submit("/v1/images", &small(1)).await;
    let state = server.completed(&task).await;
    let kept = server.picture(&state, 0).await;
    server.kill();
    let shelf = data.path().join("images/ab");
    std::fs::create_dir_all(&shelf).unwrap();
    let unnamed = shelf.join("ab0123456789abcdef0123456789abcd.png");
    let staged = shelf.join("ab0123456789abcdef0123456789abce.png#1");
    for path in [&unnamed, &staged] {
        std::fs::write(path, b"half of a pic").unwrap();
    }

    let server = Server::start(data.path(), [""; 0]);
    soon("the files go", || async { (!unnamed.exists() && !staged.exists()).then_some(()) }).await;
    assert_eq!(server.picture(&state, 0).await, kept);
    assert_eq!(files(&data.path().join("images")).len(), 1);
}
