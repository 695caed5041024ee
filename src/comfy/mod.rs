//! ComfyUI's server without HTTP: prompts that wait, run and have ended, and clients that listen. Sits between
//! `http::comfy` (routes, sockets) and `workflow` (what a prompt does), which it knows as a [`Runner`].
//!
//! - `queue` has the order and bounds of what waits and runs; `record` hears a prompt and writes its history;
//! - `keep` has prompts on disk, so that accepted ones are run after a crash and the history outlives a restart;
//! - `clients` tells each client its own prompts' news in order; `messages` and `progress` are ComfyUI's words;
//! - [`upstream`] hands over what Darkroom lacks nodes for;
//! - [`logs`] keeps the last lines of the log.

mod clients;
mod history;
mod keep;
pub mod logs;
mod messages;
mod outbox;
mod progress;
mod queue;
mod record;
pub mod runner;
pub mod upstream;
pub mod workflows;

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, HashMap};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::runtime::Handle;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

pub use clients::Socket;
pub use history::Found;
pub use keep::KeepError;
pub use messages::{ExecInfo, Features, Frame};
pub use outbox::Outbox;
pub use runner::{Passed, Rejected, Runner, Running, Work};

use clients::{Clients, Hearers};
use history::History;
use keep::{Keep, Number, Unfinished};
use queue::{Next, Prompt, Queue};
use record::{Outcome, Record, Recorder};

use crate::config::{ComfyConfig, PreviewMethod};
use crate::metrics::{ByCache, ByEnd, Metrics};
use crate::task::Owner;
use crate::workflow::Ordered;
use crate::workflow::ordered::Members;

/// Longest id of a prompt, bytes.
const PROMPT_ID: usize = 256;
/// Prompts that are checked at once.
const CHECKS: usize = 4;
/// Prompts that may run at once, whatever the configuration says: each has a thread.
const MOST_RUNNING: usize = 256;
/// A prompt that the server died over so often is not begun again.
const MOST_STARTS: u32 = 3;
/// Time for prompts to end after they were interrupted.
const LAST_STEPS: Duration = Duration::from_secs(5);
/// Between two looks at what still runs.
const LOOK: Duration = Duration::from_millis(20);
/// What `extra_data` may hold that is nobody's business but ComfyUI's own services.
const SECRETS: [&str; 2] = ["auth_token_comfy_org", "api_key_comfy_org"];

/// ComfyUI's server; cheap to clone.
#[derive(Clone)]
pub struct Comfy(Arc<Inner>);

struct Inner {
    config: ComfyConfig,
    runner: Arc<dyn Runner>,
    metrics: Arc<Metrics>,
    keep: Keep,
    queue: Mutex<Queue>,
    history: Mutex<History>,
    clients: Arc<Clients>,
    /// Held while clients are told how much there is to do, so that the last they hear is the last there was.
    status: Mutex<()>,
    checks: Semaphore,
    log_listeners: Mutex<HashMap<(Owner, String), CancellationToken>>,
    next: AtomicI64,
    draining: AtomicBool,
    stopping: AtomicBool,
    runtime: Handle,
}

/// A prompt as a client sends it.
#[derive(Debug, Clone)]
pub struct Submission {
    /// Whose it is.
    pub owner: Owner,
    /// The graph.
    pub prompt: Ordered,
    /// Its id; `None`: a new one.
    pub prompt_id: Option<String>,
    /// Its place; `None`: behind all others.
    pub number: Option<f64>,
    /// Before all others.
    pub front: bool,
    /// `extra_data`, with `client_id`.
    pub extra_data: Members,
    /// The output nodes that are asked for; `None`: all.
    pub targets: Option<Vec<String>>,
    /// Bytes of the request, which bound what waits.
    pub bytes: usize,
}

/// A prompt that will be run.
#[derive(Debug, Clone, PartialEq)]
pub struct Accepted {
    /// Its id.
    pub prompt_id: Arc<str>,
    /// Its place.
    pub number: serde_json::Number,
    /// What is wrong with outputs that will not be run, as JSON.
    pub node_errors: String,
}

/// An accepted prompt while its sender is told its id; dropped, it may begin. Clients know their prompts by that id, and
/// lose messages, or stumble over them, about one that they do not know yet.
pub struct Answering {
    inner: Arc<Inner>,
    prompt: Arc<Prompt>,
}

impl Drop for Answering {
    fn drop(&mut self) {
        let (inner, prompt) = (Arc::clone(&self.inner), Arc::clone(&self.prompt));
        // In a task of its own: an answer's body is dropped just before its last bytes are written, and a task that the
        // connection's own spawns runs after it.
        self.inner.runtime.spawn(async move {
            lock(&inner.queue).answered(&prompt);
            inner.tell_status();
            inner.pump();
        });
    }
}

/// Why a prompt is not accepted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Refused {
    /// It cannot be run; what the client is told.
    #[error("{}", .0.error)]
    Invalid(Rejected),
    /// Its id is too long.
    #[error("a prompt's id has at most {PROMPT_ID} bytes")]
    LongId,
    /// As many wait as may.
    #[error("{waiting} prompts wait already")]
    Full {
        /// How many.
        waiting: usize,
    },
    /// The server is stopping.
    #[error("the server is stopping")]
    Draining,
    /// It cannot be written down.
    #[error("{0}")]
    Storage(String),
    /// The check of the prompt ended in a panic.
    #[error("the prompt could not be checked")]
    Defect,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Comfy {
    /// Opens what an earlier server kept in `data_dir`, and goes on with its prompts.
    ///
    /// # Errors
    /// When the file of prompts cannot be opened.
    pub async fn start(
        config: ComfyConfig,
        data_dir: &Path,
        runner: Arc<dyn Runner>,
        metrics: Arc<Metrics>,
    ) -> Result<Self, KeepError> {
        let (keep, kept) = Keep::open(data_dir).await?;
        let (history, forgotten) = History::new(config.history_size, kept.ended);
        keep.forget(forgotten).await?;
        let clients = Clients::new(config.max_sockets, metrics.comfy_sockets.clone());
        let comfy = Self(Arc::new(Inner {
            config,
            runner,
            metrics,
            keep,
            queue: Mutex::default(),
            history: Mutex::new(history),
            clients: Arc::new(clients),
            status: Mutex::new(()),
            checks: Semaphore::new(CHECKS),
            log_listeners: Mutex::default(),
            next: AtomicI64::new(kept.next),
            draining: AtomicBool::new(false),
            stopping: AtomicBool::new(false),
            runtime: Handle::current(),
        }));
        if !kept.unfinished.is_empty() {
            tracing::info!(prompts = kept.unfinished.len(), "going on with unfinished prompts");
            let again = comfy.clone();
            let unfinished = kept.unfinished;
            let work = move || unfinished.into_iter().for_each(|prompt| again.0.take_up(prompt));
            if tokio::task::spawn_blocking(work).await.is_err() {
                tracing::error!("taking up unfinished prompts ended in a panic");
            }
            comfy.0.tell_status();
            comfy.0.pump();
        }
        Ok(comfy)
    }

    /// Checks a prompt, writes it down and queues it. Goes on when the caller does not wait for it. The prompt begins,
    /// and clients hear of it, when what comes with the answer is dropped.
    ///
    /// # Errors
    /// See [`Refused`].
    pub async fn submit(&self, submission: Submission) -> Result<(Accepted, Answering), Refused> {
        let inner = Arc::clone(&self.0);
        tokio::spawn(async move { inner.submit(submission).await }).await.unwrap_or(Err(Refused::Defect))
    }

    /// How much there is to do.
    pub fn exec_info(&self) -> ExecInfo {
        ExecInfo::new(self.0.remaining())
    }

    /// Items (JSON) of an owner's prompts that run, and of those that wait.
    pub fn queue(&self, owner: &Owner) -> (Vec<Arc<str>>, Vec<Arc<str>>) {
        lock(&self.0.queue).list(owner)
    }

    /// Takes prompts back that wait.
    pub async fn delete_waiting(&self, owner: &Owner, ids: &[String]) {
        let taken = {
            let mut queue = lock(&self.0.queue);
            ids.iter().filter_map(|id| queue.delete(owner, id)).collect()
        };
        self.took_back(taken).await;
    }

    /// Takes back all that wait.
    pub async fn clear_waiting(&self, owner: &Owner) {
        let taken = lock(&self.0.queue).clear(owner);
        self.took_back(taken).await;
    }

    async fn took_back(&self, numbers: Vec<Number>) {
        if !numbers.is_empty() {
            let outcome = "deleted";
            let count = numbers.len() as u64;
            self.0.metrics.comfy_prompts.get_or_create(&ByEnd { outcome }).inc_by(count);
            self.forget(numbers).await;
            self.0.tell_status();
        }
    }

    async fn forget(&self, numbers: Vec<Number>) {
        if let Err(error) = self.0.keep.forget(numbers).await {
            tracing::warn!(%error, "deleted prompts may come back at the next start");
        }
    }

    /// Ends a prompt that runs; without an id, the one that began first.
    pub fn interrupt(&self, owner: &Owner, id: Option<&str>) {
        lock(&self.0.queue).interrupt(owner, id);
    }

    /// Prompts that have ended, as `GET /history` asks for them.
    pub fn history(&self, owner: &Owner, max_items: Option<i64>, offset: i64) -> Vec<Found> {
        lock(&self.0.history).list(owner, max_items, offset)
    }

    /// One of them.
    pub fn find(&self, owner: &Owner, id: &str) -> Option<Found> {
        lock(&self.0.history).find(owner, id)
    }

    /// What the history says of it; `None` if it was deleted meanwhile.
    ///
    /// # Errors
    /// When it cannot be read.
    pub async fn entry(&self, found: &Found) -> Result<Option<Bytes>, KeepError> {
        match &found.text {
            Some(text) => Ok(Some(text.clone())),
            None => self.0.keep.entry(found.number).await,
        }
    }

    /// Forgets prompts that have ended.
    pub async fn delete_ended(&self, owner: &Owner, ids: &[String]) {
        let taken = {
            let mut history = lock(&self.0.history);
            ids.iter().filter_map(|id| history.delete(owner, id)).collect()
        };
        self.forget(taken).await;
    }

    /// Forgets all of them.
    pub async fn clear_ended(&self, owner: &Owner) {
        let taken = lock(&self.0.history).clear(owner);
        self.forget(taken).await;
    }

    /// Takes what no prompt uses from memory.
    pub async fn free(&self, models: bool, cache: bool) {
        let inner = Arc::clone(&self.0);
        let work = move || {
            inner.runner.free(models, cache);
            inner.count_cache();
        };
        if tokio::task::spawn_blocking(work).await.is_err() {
            tracing::error!("freeing memory ended in a panic");
        }
    }

    /// A socket of the client `sid`, or of a new one; `None` when there are as many as may be.
    pub fn connect(&self, owner: Owner, sid: Option<&str>) -> Option<Socket> {
        self.0.clients.connect(owner, sid)
    }

    /// Begins or ends telling a client the log. `Some` if it begins now: cancelled when it is to end.
    pub fn subscribe_to_logs(&self, owner: &Owner, sid: &str, enabled: bool) -> Option<CancellationToken> {
        let mut listeners = lock(&self.0.log_listeners);
        let key = (owner.clone(), sid.to_owned());
        if !enabled {
            if let Some(ended) = listeners.remove(&key) {
                ended.cancel();
            }
            return None;
        }
        if listeners.len() >= self.0.config.max_sockets || listeners.contains_key(&key) {
            return None;
        }
        let subscription = CancellationToken::new();
        listeners.insert(key, subscription.clone());
        Some(subscription)
    }

    /// Sends lines of the log to a client; whether it is there.
    pub fn send_logs(&self, owner: &Owner, sid: &str, logs: &impl serde::Serialize) -> bool {
        self.0.clients.send(owner, sid, messages::json_message("logs", logs))
    }

    /// Accepts and begins nothing more; returns when nothing runs, at the latest after `patience`. What is unfinished
    /// then is run again at the next start.
    pub async fn drain(&self, patience: Duration) {
        self.0.draining.store(true, Ordering::SeqCst);
        self.wait_for_running(patience).await;
        self.0.stopping.store(true, Ordering::SeqCst);
        lock(&self.0.queue).interrupt_all();
        self.wait_for_running(LAST_STEPS).await;
    }

    async fn wait_for_running(&self, patience: Duration) {
        let deadline = Instant::now() + patience;
        while lock(&self.0.queue).running() > 0 && Instant::now() < deadline {
            tokio::time::sleep(LOOK).await;
        }
    }
}

impl Inner {
    fn remaining(&self) -> usize {
        let queue = lock(&self.queue);
        queue.waiting() + queue.running()
    }

    fn tell_status(&self) {
        let _one_at_a_time = lock(&self.status);
        let (waiting, running) = {
            let queue = lock(&self.queue);
            (queue.waiting(), queue.running())
        };
        self.metrics.comfy_waiting.set(i64::try_from(waiting).unwrap_or(i64::MAX));
        self.metrics.comfy_running.set(i64::try_from(running).unwrap_or(i64::MAX));
        self.clients.tell_status(waiting + running);
    }

    fn count_cache(&self) {
        let bytes = i64::try_from(self.runner.cache_bytes()).unwrap_or(i64::MAX);
        self.metrics.comfy_cache_bytes.set(bytes);
    }

    fn check(
        &self,
        prompt: Ordered,
        targets: Option<&[String]>,
        extra_data: &Ordered,
    ) -> Result<Passed, Refused> {
        let extra = extra_data.get("extra_pnginfo");
        let checked = catch_unwind(AssertUnwindSafe(|| self.runner.check(prompt, targets, extra)));
        checked.unwrap_or(Err(Rejected { error: String::new(), node_errors: String::new() })).map_err(
            |rejected| {
                if rejected.error.is_empty() { Refused::Defect } else { Refused::Invalid(rejected) }
            },
        )
    }

    async fn submit(self: Arc<Self>, submission: Submission) -> Result<(Accepted, Answering), Refused> {
        let Submission { owner, prompt, prompt_id, number, front, mut extra_data, targets, bytes } =
            submission;
        let id: Arc<str> = prompt_id.unwrap_or_else(|| uuid::Uuid::new_v4().to_string()).into();
        if id.len() > PROMPT_ID {
            return Err(Refused::LongId);
        }
        if self.draining.load(Ordering::SeqCst) {
            return Err(Refused::Draining);
        }
        let (numbered, place) = {
            let mut queue = lock(&self.queue);
            let numbered = queue.number(number, front);
            if !queue.reserve(self.config.max_queued, bytes) {
                return Err(Refused::Full { waiting: queue.waiting() });
            }
            (numbered, Reserved(&self))
        };
        SECRETS.iter().for_each(|secret| {
            extra_data.shift_remove(*secret);
        });
        let extra_data = Arc::new(Ordered::Object(extra_data));
        let nodes = ids(&prompt);
        let passed = {
            let _turn = self.checks.acquire().await.map_err(|_| Refused::Draining)?;
            let (inner, extra_data) = (Arc::clone(&self), Arc::clone(&extra_data));
            let check = move || inner.check(prompt, targets.as_deref(), &extra_data);
            tokio::task::spawn_blocking(check).await.unwrap_or(Err(Refused::Defect))
        };
        let passed = passed.inspect_err(|_| {
            self.metrics.comfy_prompts.get_or_create(&ByEnd { outcome: "refused" }).inc();
        })?;
        let item = item(&numbered.shown, &id, &passed.prompt, &extra_data, &passed.outputs);
        let row = self.next.fetch_add(1, Ordering::SeqCst);
        let kept = Unfinished { number: row, owner: owner.clone(), item: item.clone(), starts: 0 };
        self.keep.accept(kept, &id).await.map_err(|error| Refused::Storage(error.to_string()))?;
        let accepted =
            Accepted { prompt_id: Arc::clone(&id), number: numbered.shown, node_errors: passed.node_errors };
        std::mem::forget(place);
        let prompt = self.prompt(row, owner, id, numbered.rank, item, nodes, &extra_data);
        let prompt = Arc::new(prompt);
        lock(&self.queue).add(Arc::clone(&prompt), passed.work);
        Ok((accepted, Answering { inner: Arc::clone(&self), prompt }))
    }

    fn prompt(
        &self,
        number: Number,
        owner: Owner,
        id: Arc<str>,
        rank: f64,
        item: String,
        nodes: Vec<String>,
        extra_data: &Ordered,
    ) -> Prompt {
        let text = |name| extra_data.get(name).and_then(Ordered::as_str);
        let previews = match text("preview_method") {
            Some("none") => false,
            Some("auto" | "latent2rgb" | "taesd") => true,
            _ => self.config.preview_method != PreviewMethod::None,
        };
        Prompt {
            number,
            owner,
            id,
            client: text("client_id").map(str::to_owned),
            rank,
            item: item.into(),
            nodes,
            extra_pnginfo: extra_data.get("extra_pnginfo").cloned(),
            previews,
        }
    }

    /// Queues a prompt that an earlier server accepted; one that cannot be run any more ends here.
    fn take_up(self: &Arc<Self>, unfinished: Unfinished) {
        let Unfinished { number: row, owner, item, starts } = unfinished;
        let Some((rank, id, prompt, extra_data, outputs)) = read_item(&item) else {
            tracing::error!(row, "a prompt that was kept does not read");
            self.keep.forget_later(vec![row]);
            return;
        };
        let nodes = ids(&prompt);
        let checked = if starts >= MOST_STARTS {
            Err(format!("the server ended {starts} times while this prompt ran; it is not tried again"))
        } else {
            // What went to another ComfyUI had no outputs of Darkroom's choosing.
            let outputs = Some(&*outputs).filter(|outputs| !outputs.is_empty());
            self.check(prompt, outputs, &extra_data).map_err(|refused| refused.to_string())
        };
        let prompt = Arc::new(self.prompt(row, owner, id.into(), rank, item, nodes, &extra_data));
        match checked {
            Ok(passed) => {
                let mut queue = lock(&self.queue);
                queue.count_from(rank);
                queue.restore(&prompt, passed.work);
            }
            Err(message) => {
                tracing::warn!(prompt_id = %prompt.id, message, "an accepted prompt cannot be run");
                let interrupt = CancellationToken::new();
                let recorder = Recorder {
                    prompt_id: &prompt.id,
                    nodes: &prompt.nodes,
                    hearers: None,
                    interrupt: &interrupt,
                    previews: false,
                    record: Mutex::default(),
                };
                recorder.fail_if_open(&message);
                let record = recorder.record.into_inner().unwrap_or_else(PoisonError::into_inner);
                self.write_down(&prompt, &record);
            }
        }
    }

    /// Begins what may begin.
    fn pump(self: &Arc<Self>) {
        while !self.draining.load(Ordering::SeqCst) {
            let (next, hearers) = {
                let mut queue = lock(&self.queue);
                let Some(next) = queue.next(self.config.max_running.min(MOST_RUNNING)) else { return };
                // Under the lock, so that clients hear of prompts in the order in which they leave the queue.
                let Prompt { owner, id, client, .. } = &*next.prompt;
                let hearers = match client {
                    Some(sid) => Hearers::Client(self.clients.begin(owner, sid, id)),
                    None => Hearers::Everyone(self.clients.begin_for_all(owner, id)),
                };
                (next, hearers)
            };
            let inner = Arc::clone(self);
            self.runtime.spawn_blocking(move || inner.run(next, hearers));
        }
    }

    /// Runs a prompt on this thread.
    fn run(self: &Arc<Self>, next: Next, hearers: Hearers) {
        let Next { prompt, work, interrupt } = next;
        self.keep.begun(prompt.number);
        self.tell_status();
        let recorder = Recorder {
            prompt_id: &prompt.id,
            nodes: &prompt.nodes,
            hearers: Some(&hearers),
            interrupt: &interrupt,
            previews: prompt.previews,
            record: Mutex::default(),
        };
        let with = Running {
            prompt_id: &prompt.id,
            extra_pnginfo: prompt.extra_pnginfo.as_ref(),
            listener: &recorder,
            interrupt: &interrupt,
        };
        let shown = catch_unwind(AssertUnwindSafe(|| work.run(&with))).unwrap_or_else(|_| {
            tracing::error!(prompt_id = %prompt.id, "a prompt ended in a panic");
            BTreeMap::new()
        });
        recorder.fail_if_open("something went wrong inside the server; its log has more");
        let mut record = recorder.record.into_inner().unwrap_or_else(PoisonError::into_inner);
        for (node, output) in &shown {
            record.show(node, node, output, &prompt.id);
        }
        if self.stopping.load(Ordering::SeqCst) && record.outcome != Some(Outcome::Succeeded) {
            tracing::info!(prompt_id = %prompt.id, "this prompt is run again at the next start");
            self.keep.put_off(prompt.number);
            lock(&self.queue).end(prompt.number);
            return;
        }
        self.write_down(&prompt, &record);
        lock(&self.queue).end(prompt.number);
        self.tell_status();
        hearers.end();
        self.pump();
    }

    /// Puts a prompt that has ended into the history.
    fn write_down(&self, prompt: &Prompt, record: &Record) {
        let outcome = record.outcome.map_or("failed", Outcome::name);
        self.metrics.comfy_prompts.get_or_create(&ByEnd { outcome }).inc();
        let cache = ByCache { cache: "workflow" };
        self.metrics.cache_hits.get_or_create(&cache).inc_by(record.cached as u64);
        self.metrics.cache_misses.get_or_create(&cache).inc_by(record.executed as u64);
        self.count_cache();
        let entry = record.entry(&prompt.item);
        let place = lock(&self.history).next_place();
        if let Err(error) = self.keep.end(prompt.number, place, entry.clone()) {
            tracing::error!(%error, prompt_id = %prompt.id, "the prompt will be run again after a restart");
        }
        let (owner, id) = (prompt.owner.clone(), Arc::clone(&prompt.id));
        let forgotten = lock(&self.history).add(place, prompt.number, owner, id, entry);
        self.keep.forget_later(forgotten);
    }
}

/// Room in the queue for a prompt that is being checked.
struct Reserved<'a>(&'a Inner);

impl Drop for Reserved<'_> {
    fn drop(&mut self) {
        lock(&self.0.queue).release();
    }
}

/// The ids of a prompt's nodes.
fn ids(prompt: &Ordered) -> Vec<String> {
    prompt.as_object().into_iter().flat_map(Members::keys).cloned().collect()
}

/// `[number, id, prompt, extra_data, outputs]`.
fn item(
    number: &serde_json::Number,
    id: &str,
    prompt: &str,
    extra_data: &Ordered,
    outputs: &[String],
) -> String {
    let (id, outputs) = (messages::to_json(&id), messages::to_json(&outputs));
    format!("[{number},{id},{prompt},{},{outputs}]", messages::to_json(extra_data))
}

/// The other way: rank, id, prompt, extra_data, outputs.
fn read_item(text: &str) -> Option<(f64, String, Ordered, Ordered, Vec<String>)> {
    let Ordered::Array(parts) = serde_json::from_str(text).ok()? else { return None };
    let [Ordered::Number(rank), Ordered::String(id), prompt, extra_data, Ordered::Array(outputs)] =
        <[Ordered; 5]>::try_from(parts).ok()?
    else {
        return None;
    };
    let outputs = outputs.iter().map(|output| output.as_str().map(str::to_owned)).collect::<Option<_>>()?;
    Some((rank.as_f64()?, id, prompt, extra_data, outputs))
}
