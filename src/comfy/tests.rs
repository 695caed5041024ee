//! The server of prompts with a toy that runs them.

use std::collections::BTreeMap;
use std::sync::Condvar;

use serde_json::{Value as Json, json};
use tempfile::TempDir;

use super::*;
use crate::workflow::event::Event;

/// Runs prompts of one node, `{"1": {"class_type": …}}`: `Show` shows its `text`, `Wait` ends when it is let go or
/// interrupted, `Panic` panics. Anything else is refused.
#[derive(Default)]
struct Toy {
    let_go: Arc<(Mutex<bool>, Condvar)>,
}

struct ToyWork {
    class: String,
    text: String,
    let_go: Arc<(Mutex<bool>, Condvar)>,
}

impl Runner for Toy {
    fn check(&self, prompt: Ordered, _: Option<&[String]>, _: Option<&Ordered>) -> Result<Passed, Rejected> {
        let node = prompt.get("1");
        let text = |name| node.and_then(|node| node.get(name)).and_then(Ordered::as_str).map(str::to_owned);
        let class = text("class_type").filter(|class| ["Show", "Wait", "Panic"].contains(&class.as_str()));
        let Some(class) = class else {
            return Err(Rejected { error: r#"{"type":"invalid_prompt"}"#.into(), node_errors: "{}".into() });
        };
        Ok(Passed {
            prompt: messages::to_json(&prompt),
            outputs: vec!["1".into()],
            node_errors: "{}".into(),
            work: Box::new(ToyWork {
                class,
                text: text("text").unwrap_or_default(),
                let_go: Arc::clone(&self.let_go),
            }),
        })
    }

    fn free(&self, _: bool, _: bool) {}

    fn cache_bytes(&self) -> usize {
        0
    }
}

impl Work for ToyWork {
    fn run(self: Box<Self>, with: &Running<'_>) -> BTreeMap<String, Json> {
        let node = || "1".to_owned();
        with.listener.tell(Event::Started);
        with.listener.tell(Event::Cached { nodes: Vec::new() });
        with.listener.tell(Event::Executing { node: node() });
        assert_ne!(self.class, "Panic", "as it was told to");
        if self.class == "Wait" {
            let (let_go, changed) = &*self.let_go;
            let mut open = let_go.lock().unwrap();
            while !*open {
                if with.interrupt.is_cancelled() {
                    let (class, executed) = (self.class.clone(), Vec::new());
                    with.listener.tell(Event::Interrupted { node: node(), class, executed });
                    return BTreeMap::new();
                }
                open = changed.wait_timeout(open, Duration::from_millis(5)).unwrap().0;
            }
        }
        with.listener.tell(Event::Executed {
            node: node(),
            output: json!({"text": [self.text]}),
            ran_as: node(),
        });
        with.listener.tell(Event::Finished { node: node() });
        with.listener.tell(Event::Succeeded);
        BTreeMap::new()
    }
}

struct Bench {
    comfy: Comfy,
    let_go: Arc<(Mutex<bool>, Condvar)>,
    metrics: Arc<Metrics>,
}

async fn start(folder: &TempDir, config: ComfyConfig) -> Bench {
    let toy = Toy::default();
    let let_go = Arc::clone(&toy.let_go);
    let metrics = Arc::new(Metrics::default());
    let comfy = Comfy::start(config, folder.path(), Arc::new(toy), Arc::clone(&metrics)).await.unwrap();
    Bench { comfy, let_go, metrics }
}

impl Bench {
    async fn submit(&self, class: &str, text: &str, client: Option<&str>) -> Result<Accepted, Refused> {
        self.submit_held(class, text, client).await.map(|(accepted, _)| accepted)
    }

    async fn submit_held(
        &self,
        class: &str,
        text: &str,
        client: Option<&str>,
    ) -> Result<(Accepted, Answering), Refused> {
        let prompt = json!({"1": {"class_type": class, "text": text}}).into();
        let extra = client.map(|client| ("client_id".to_owned(), Ordered::String(client.to_owned())));
        self.comfy
            .submit(Submission {
                owner: Owner::Anyone,
                prompt,
                prompt_id: Some(format!("{class}-{text}")),
                number: None,
                front: false,
                extra_data: extra.into_iter().collect(),
                targets: None,
                bytes: 100,
            })
            .await
    }

    fn let_go(&self) {
        *self.let_go.0.lock().unwrap() = true;
        self.let_go.1.notify_all();
    }

    async fn entry(&self, id: &str) -> Json {
        for _ in 0..2000 {
            if let Some(found) = self.comfy.find(&Owner::Anyone, id) {
                let text = self.comfy.entry(&found).await.unwrap().unwrap();
                return serde_json::from_slice(&text).unwrap();
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        panic!("{id} does not end");
    }

    async fn until_queued(&self, running: usize, waiting: usize) {
        for _ in 0..2000 {
            let queue = self.comfy.queue(&Owner::Anyone);
            if (queue.0.len(), queue.1.len()) == (running, waiting) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        panic!("{running} running and {waiting} waiting do not come to be");
    }
}

/// Reads messages until one that `is_last`.
async fn hear(socket: &Socket, is_last: impl Fn(&Json) -> bool) -> Vec<Json> {
    let mut heard = Vec::new();
    loop {
        let next = tokio::time::timeout(Duration::from_secs(30), socket.outbox().next()).await;
        let Some(Frame::Text(text)) = next.expect("nothing is said") else { panic!("it was cut") };
        let message: Json = serde_json::from_slice(&text).unwrap();
        let last = is_last(&message);
        heard.push(message);
        if last {
            return heard;
        }
    }
}

fn is_end_of(id: &str) -> impl Fn(&Json) -> bool {
    move |message| {
        let data = &message["data"];
        message["type"] == "executing" && data["node"].is_null() && data["prompt_id"] == id
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_prompt_is_told_as_comfyui_tells_it_and_its_entry_is_there_before_the_last_word() {
    let folder = TempDir::new().unwrap();
    let bench = start(&folder, ComfyConfig::default()).await;
    let socket = bench.comfy.connect(Owner::Anyone, Some("me")).unwrap();
    let other = bench.comfy.connect(Owner::Anyone, Some("other")).unwrap();
    let accepted = bench.submit("Show", "hello", Some("me")).await.unwrap();
    assert_eq!(accepted.number, 0.into());
    let heard = hear(&socket, is_end_of("Show-hello")).await;
    let names: Vec<&str> = heard.iter().map(|message| message["type"].as_str().unwrap()).collect();
    assert_eq!(
        names,
        [
            "status",
            "status",
            "status",
            "execution_start",
            "execution_cached",
            "progress_state",
            "executing",
            "executed",
            "progress_state",
            "execution_success",
            "status",
            "executing"
        ]
    );
    let remaining: Vec<&Json> = heard
        .iter()
        .filter(|message| message["type"] == "status")
        .map(|message| &message["data"]["status"]["exec_info"]["queue_remaining"])
        .collect();
    assert_eq!(remaining, [0, 1, 1, 0]);
    let found = bench.comfy.find(&Owner::Anyone, "Show-hello").expect("in the history by now");
    let entry: Json = serde_json::from_slice(&bench.comfy.entry(&found).await.unwrap().unwrap()).unwrap();
    assert_eq!(entry["outputs"], json!({"1": {"text": ["hello"]}}));
    assert_eq!(entry["prompt"][3], json!({"client_id": "me"}));
    let others = hear(&other, |message| {
        message["data"]["status"]["exec_info"]["queue_remaining"] == 0 && message["data"]["sid"].is_null()
    })
    .await;
    assert!(others.iter().all(|message| message["type"] == "status"), "{others:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_hears_of_a_prompt_before_its_sender_is_answered() {
    let folder = TempDir::new().unwrap();
    let bench = start(&folder, ComfyConfig::default()).await;
    let socket = bench.comfy.connect(Owner::Anyone, Some("me")).unwrap();
    let (_, answering) = bench.submit_held("Show", "first", Some("me")).await.unwrap();
    let (running, waiting) = bench.comfy.queue(&Owner::Anyone);
    assert_eq!((running.len(), waiting.len()), (0, 1), "it is there");
    bench.submit("Show", "second", Some("me")).await.unwrap();
    let heard = hear(&socket, is_end_of("Show-second")).await;
    assert!(heard.iter().all(|message| message["data"]["prompt_id"] != "Show-first"), "{heard:?}");
    assert!(bench.comfy.find(&Owner::Anyone, "Show-first").is_none());
    drop(answering);
    hear(&socket, is_end_of("Show-first")).await;
    // One that is taken back before its sender is answered does not begin.
    let (_, answering) = bench.submit_held("Show", "third", None).await.unwrap();
    bench.comfy.clear_waiting(&Owner::Anyone).await;
    drop(answering);
    bench.submit("Show", "last", None).await.unwrap();
    bench.entry("Show-last").await;
    assert!(bench.comfy.find(&Owner::Anyone, "Show-third").is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn prompts_run_at_once_and_interrupting_one_leaves_the_others() {
    let folder = TempDir::new().unwrap();
    let bench = start(&folder, ComfyConfig { max_running: 3, ..ComfyConfig::default() }).await;
    for (text, running, waiting) in [("a", 1, 0), ("b", 2, 0), ("c", 3, 0), ("d", 3, 1)] {
        bench.submit("Wait", text, None).await.unwrap();
        bench.until_queued(running, waiting).await;
    }
    bench.comfy.interrupt(&Owner::Anyone, Some("Wait-b"));
    let entry = bench.entry("Wait-b").await;
    assert_eq!(entry["status"]["messages"][2][0], "execution_interrupted");
    assert_eq!(entry["status"]["status_str"], "error");
    bench.until_queued(3, 0).await;
    bench.let_go();
    for text in ["a", "c", "d"] {
        assert_eq!(bench.entry(&format!("Wait-{text}")).await["status"]["completed"], true);
    }
    let count = |outcome| bench.metrics.comfy_prompts.get_or_create(&ByEnd { outcome }).get();
    assert_eq!((count("succeeded"), count("interrupted")), (3, 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_panic_is_an_error_of_its_prompt_alone() {
    let folder = TempDir::new().unwrap();
    let bench = start(&folder, ComfyConfig::default()).await;
    bench.submit("Panic", "", None).await.unwrap();
    let entry = bench.entry("Panic-").await;
    assert_eq!(entry["status"]["messages"][2][0], "execution_error");
    bench.submit("Show", "next", None).await.unwrap();
    assert_eq!(bench.entry("Show-next").await["status"]["completed"], true);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_waits_is_bounded_and_what_is_refused_takes_no_place() {
    let folder = TempDir::new().unwrap();
    let config = ComfyConfig { max_running: 1, max_queued: 2, ..ComfyConfig::default() };
    let bench = start(&folder, config).await;
    for (waiting, text) in ["a", "b", "c"].into_iter().enumerate() {
        bench.submit("Wait", text, None).await.unwrap();
        bench.until_queued(1, waiting).await;
        assert!(matches!(
            bench.submit("Unknown", text, None).await,
            Err(Refused::Invalid(_) | Refused::Full { .. })
        ));
    }
    assert_eq!(bench.submit("Wait", "d", None).await, Err(Refused::Full { waiting: 2 }));
    bench.comfy.delete_waiting(&Owner::Anyone, &["Wait-b".into(), "Wait-x".into()]).await;
    assert_eq!(bench.comfy.queue(&Owner::Anyone).1.len(), 1);
    bench.comfy.clear_waiting(&Owner::Anyone).await;
    bench.submit("Wait", "e", None).await.unwrap();
    bench.let_go();
    assert_eq!(bench.entry("Wait-e").await["status"]["completed"], true);
    assert!(bench.comfy.find(&Owner::Anyone, "Wait-b").is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_history_outlives_a_restart_and_unfinished_prompts_are_run_again() {
    let folder = TempDir::new().unwrap();
    let bench = start(&folder, ComfyConfig { max_running: 1, ..ComfyConfig::default() }).await;
    bench.submit("Show", "done", None).await.unwrap();
    bench.entry("Show-done").await;
    bench.submit("Wait", "runs", None).await.unwrap();
    bench.until_queued(1, 0).await;
    bench.submit("Show", "waits", None).await.unwrap();
    bench.comfy.drain(Duration::ZERO).await;
    assert_eq!(bench.submit("Show", "late", None).await, Err(Refused::Draining));
    drop(bench);
    // A server that is killed is asked nothing; the file is as it was.
    for _ in 0..2 {
        let bench = start(&folder, ComfyConfig { max_running: 1, ..ComfyConfig::default() }).await;
        let (running, waiting) = bench.comfy.queue(&Owner::Anyone);
        assert_eq!((running.len(), waiting.len()), (1, 1));
        assert!(running[0].contains("Wait-runs") && waiting[0].contains("Show-waits"));
        assert_eq!(bench.entry("Show-done").await["outputs"]["1"]["text"], json!(["done"]));
        bench.comfy.drain(Duration::ZERO).await;
    }
    let bench = start(&folder, ComfyConfig::default()).await;
    bench.let_go();
    assert_eq!(bench.entry("Wait-runs").await["status"]["completed"], true);
    assert_eq!(bench.entry("Show-waits").await["status"]["completed"], true);
    let history: Vec<String> =
        bench.comfy.history(&Owner::Anyone, None, -1).iter().map(|found| found.id.to_string()).collect();
    assert_eq!((history.len(), history[0].as_str()), (3, "Show-done"));
    let next = bench.submit("Show", "new", None).await.unwrap();
    assert_eq!(next.number, 3.into(), "behind those that were there");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_prompt_that_the_server_dies_over_is_given_up() {
    let folder = TempDir::new().unwrap();
    {
        let (keep, _) = Keep::open(folder.path()).await.unwrap();
        let item = r#"[0,"bad",{"1":{"class_type":"Wait"}},{},["1"]]"#.to_owned();
        keep.accept(Unfinished { number: 0, owner: Owner::Anyone, item, starts: 0 }, "bad").await.unwrap();
        for _ in 0..MOST_STARTS {
            keep.begun(0);
        }
        // Waits until all of it is written.
        keep.entry(0).await.unwrap();
    }
    let bench = start(&folder, ComfyConfig::default()).await;
    let entry = bench.entry("bad").await;
    let error = entry["status"]["messages"][0][1]["exception_message"].as_str().unwrap();
    assert!(error.contains("3 times"), "{error}");
}
