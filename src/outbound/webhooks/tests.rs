//! The deliverer against real receivers on loopback, with an outbox in memory and a clock that the test sets.

use std::collections::HashSet;
use std::net::IpAddr;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use axum::Router;
use axum::extract::Request;
use axum::http::{HeaderMap, StatusCode};
use axum::response::IntoResponse;
use axum::routing::post;
use bytes::Bytes;
use tokio::sync::{Semaphore, watch};

use super::*;
use crate::config::OutboundConfig;
use crate::outbound::signature::tests::hmac_by_definition;
use crate::outbound::signature::{DELIVERY_HEADER, EVENT_HEADER, SIGNATURE_HEADER};
use crate::outbound::test_server::{Names, TestServer};
use crate::task::{TaskId, TaskKind};

const KEY: &str = "0123456789abcdef0123456789abcdef";
const START: i64 = 1_700_000_000;
/// Ends a test that would wait for ever.
const TOO_LONG: Duration = Duration::from_secs(60);

/// What the deliverer told the outbox.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Note {
    Done(String),
    Retry(String, Timestamp),
    GiveUp(String),
}

/// Deliveries in memory, each with the time it is due.
struct MemoryOutbox {
    due: Mutex<Vec<(Timestamp, Delivery)>>,
    notes: watch::Sender<Vec<Note>>,
    /// Notes that fail before one is taken.
    failures: AtomicUsize,
    has_bodies: AtomicBool,
}

impl MemoryOutbox {
    fn new() -> Arc<Self> {
        Arc::new(Self {
            due: Mutex::default(),
            notes: watch::Sender::default(),
            failures: AtomicUsize::new(0),
            has_bodies: AtomicBool::new(true),
        })
    }

    fn add(&self, id: impl Into<String>, url: String) {
        let id = id.into();
        let task_id = TaskId::new(TaskKind::Images);
        let delivery = Delivery { id, task_id, url, event: "task.completed".into(), attempts: 0 };
        self.due.lock().unwrap().push((Timestamp::from_second(START).unwrap(), delivery));
    }

    fn note(&self, note: Note, change: impl FnOnce(&mut Vec<(Timestamp, Delivery)>)) -> Result<(), String> {
        if self.failures.try_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1)).is_ok() {
            return Err("the disk is full".into());
        }
        change(&mut self.due.lock().unwrap());
        self.notes.send_modify(|notes| notes.push(note));
        Ok(())
    }

    /// Waits until `count` notes were made.
    async fn notes(&self, count: usize) -> Vec<Note> {
        let mut notes = self.notes.subscribe();
        let enough = notes.wait_for(|notes| notes.len() >= count);
        let enough = tokio::time::timeout(TOO_LONG, enough).await.expect("too few notes").unwrap();
        enough.clone()
    }
}

impl Outbox for MemoryOutbox {
    type Error = String;

    async fn due(&self, now: Timestamp, limit: usize) -> Result<Vec<Delivery>, String> {
        let due = self.due.lock().unwrap();
        Ok(due.iter().filter(|(at, _)| *at <= now).map(|(_, d)| d.clone()).take(limit).collect())
    }

    async fn body(&self, task: &TaskId) -> Result<Option<Bytes>, String> {
        let has_bodies = self.has_bodies.load(Ordering::SeqCst);
        Ok(has_bodies.then(|| Bytes::from(format!(r#"{{"task_id":"{task}"}}"#))))
    }

    async fn done(&self, id: &str) -> Result<(), String> {
        self.note(Note::Done(id.into()), |due| due.retain(|(_, d)| d.id != id))
    }

    async fn retry(&self, id: &str, next_at: Timestamp) -> Result<(), String> {
        self.note(Note::Retry(id.into(), next_at), |due| {
            let (at, delivery) = due.iter_mut().find(|(_, d)| d.id == id).unwrap();
            *at = next_at;
            delivery.attempts += 1;
        })
    }

    async fn give_up(&self, id: &str) -> Result<(), String> {
        self.note(Note::GiveUp(id.into()), |due| due.retain(|(_, d)| d.id != id))
    }
}

/// A deliverer at work.
struct Running {
    now: Arc<Mutex<Timestamp>>,
    wake: Arc<Notify>,
    stop: CancellationToken,
    ended: tokio::task::JoinHandle<()>,
}

impl Running {
    /// Delivers from `outbox`; every name is 127.0.0.1, which is allowed.
    fn start(outbox: &Arc<MemoryOutbox>) -> Self {
        let config = OutboundConfig {
            allow_networks: vec!["127.0.0.1/32".into()],
            timeout: TOO_LONG.as_secs_f64(),
            ..OutboundConfig::default()
        };
        let names = Names(|_: &str| IpAddr::from([127, 0, 0, 1]));
        let client = Client::with_lookup(&config, names).unwrap();
        let now = Arc::new(Mutex::new(Timestamp::from_second(START).unwrap()));
        let clock = Arc::clone(&now);
        let (wake, stop) = (Arc::new(Notify::new()), CancellationToken::new());
        let deliverer = Deliverer::with_clock(
            client,
            Arc::clone(outbox),
            Secret::new(KEY, "the test").unwrap(),
            config.webhook_attempts,
            Arc::clone(&wake),
            Arc::new(move || *clock.lock().unwrap()),
        );
        let ended = tokio::spawn(deliverer.run(stop.clone()));
        Self { now, wake, stop, ended }
    }

    fn set_clock(&self, now: Timestamp) {
        *self.now.lock().unwrap() = now;
        self.wake.notify_one();
    }

    async fn stop(self) {
        self.stop.cancel();
        tokio::time::timeout(TOO_LONG, self.ended).await.expect("it does not stop").unwrap();
    }
}

/// The webhooks that a receiver got.
type Received = Arc<Mutex<Vec<(HeaderMap, Bytes)>>>;

/// Answers every webhook with `status` and keeps its headers and body.
fn receiver(status: StatusCode, extra: HeaderMap) -> (Router, Received) {
    let received = Received::default();
    let kept = Arc::clone(&received);
    let answer = move |request: Request| async move {
        let (head, body) = request.into_parts();
        let body = axum::body::to_bytes(body, 1000).await.unwrap();
        kept.lock().unwrap().push((head.headers, body));
        (status, extra).into_response()
    };
    (Router::new().route("/hook", post(answer)), received)
}

/// A receiver that holds every request until it is let go, and knows how many it held at most.
#[derive(Clone)]
struct Gate {
    open: Arc<Semaphore>,
    inside: Arc<AtomicUsize>,
    most: Arc<AtomicUsize>,
    arrivals: watch::Sender<usize>,
}

impl Gate {
    fn new() -> Self {
        Self {
            open: Arc::new(Semaphore::new(0)),
            inside: Arc::default(),
            most: Arc::default(),
            arrivals: watch::Sender::new(0),
        }
    }

    fn router(&self) -> Router {
        let gate = self.clone();
        let answer = move || async move {
            let inside = gate.inside.fetch_add(1, Ordering::SeqCst) + 1;
            gate.most.fetch_max(inside, Ordering::SeqCst);
            gate.arrivals.send_modify(|arrivals| *arrivals += 1);
            gate.open.acquire().await.unwrap().forget();
            gate.inside.fetch_sub(1, Ordering::SeqCst);
        };
        Router::new().route("/hook", post(answer))
    }

    async fn arrived(&self, count: usize) {
        let mut arrivals = self.arrivals.subscribe();
        let enough = arrivals.wait_for(|&arrivals| arrivals >= count);
        tokio::time::timeout(TOO_LONG, enough).await.expect("too few arrive").unwrap();
    }
}

#[tokio::test]
async fn a_delivery_is_signed_so_that_its_receiver_can_check_it() {
    let (router, received) = receiver(StatusCode::NO_CONTENT, HeaderMap::new());
    let server = TestServer::start(router).await;
    let outbox = MemoryOutbox::new();
    outbox.add("whd_1", server.url("/hook"));
    let running = Running::start(&outbox);
    assert_eq!(outbox.notes(1).await, [Note::Done("whd_1".into())]);
    running.stop().await;
    let received = received.lock().unwrap();
    let [(headers, body)] = &received[..] else { panic!("{received:?}") };
    assert_eq!(headers[DELIVERY_HEADER], "whd_1");
    assert_eq!(headers[EVENT_HEADER], "task.completed");
    assert_eq!(headers["content-type"], "application/json");
    let message = [format!("{START}.").as_bytes(), body].concat();
    let code = hmac_by_definition(KEY.as_bytes(), &message);
    assert_eq!(headers[SIGNATURE_HEADER], format!("t={START},v1={code}"));
}

#[tokio::test]
async fn a_failing_receiver_is_asked_again_at_growing_times_with_the_same_id_and_then_given_up() {
    let (router, received) = receiver(StatusCode::INTERNAL_SERVER_ERROR, HeaderMap::new());
    let server = TestServer::start(router).await;
    let outbox = MemoryOutbox::new();
    outbox.add("whd_1", server.url("/hook"));
    let running = Running::start(&outbox);
    let mut now = Timestamp::from_second(START).unwrap();
    for (made, seconds) in (1..).zip([1, 4, 16, 64, 256, 1024, 3600]) {
        let notes = outbox.notes(made).await;
        let Note::Retry(id, next) = &notes[made - 1] else { panic!("{notes:?}") };
        assert_eq!(id, "whd_1");
        let wait = next.duration_since(now).as_secs_f64();
        let least = f64::from(seconds);
        assert!((least..=(least * 1.25).min(3600.0)).contains(&wait), "after attempt {made}: {wait}");
        now = *next;
        running.set_clock(now);
    }
    assert_eq!(outbox.notes(8).await[7], Note::GiveUp("whd_1".into()));
    running.stop().await;
    let received = received.lock().unwrap();
    assert_eq!(received.len(), 8, "webhook_attempts");
    assert!(received.iter().all(|(headers, _)| headers[DELIVERY_HEADER] == "whd_1"));
    let signatures: HashSet<_> = received.iter().map(|(headers, _)| &headers[SIGNATURE_HEADER]).collect();
    assert_eq!(signatures.len(), 8, "each attempt is signed with its own time");
}

#[tokio::test]
async fn nothing_is_sent_before_its_time() {
    let (router, received) = receiver(StatusCode::BAD_GATEWAY, HeaderMap::new());
    let server = TestServer::start(router).await;
    let outbox = MemoryOutbox::new();
    outbox.add("early", server.url("/hook"));
    let running = Running::start(&outbox);
    outbox.notes(1).await;
    // A second look, proven by the other delivery that it finds.
    outbox.add("other", server.url("/hook"));
    running.wake.notify_one();
    outbox.notes(2).await;
    running.stop().await;
    let ids: Vec<_> =
        received.lock().unwrap().iter().map(|(headers, _)| headers[DELIVERY_HEADER].clone()).collect();
    assert_eq!(ids, ["early", "other"]);
}

#[tokio::test]
async fn a_receiver_that_is_gone_is_given_up_at_once() {
    let (router, received) = receiver(StatusCode::GONE, HeaderMap::new());
    let server = TestServer::start(router).await;
    let outbox = MemoryOutbox::new();
    outbox.add("whd_1", server.url("/hook"));
    let running = Running::start(&outbox);
    assert_eq!(outbox.notes(1).await, [Note::GiveUp("whd_1".into())]);
    running.stop().await;
    assert_eq!(received.lock().unwrap().len(), 1);
}

#[tokio::test]
async fn a_busy_receiver_is_asked_again_when_it_says_but_within_an_hour() {
    for (status, retry_after, seconds) in [(429, "90", 90), (503, "1000000", 3600)] {
        let headers = HeaderMap::from_iter([("retry-after".parse().unwrap(), retry_after.parse().unwrap())]);
        let (router, _) = receiver(StatusCode::from_u16(status).unwrap(), headers);
        let server = TestServer::start(router).await;
        let outbox = MemoryOutbox::new();
        outbox.add("whd_1", server.url("/hook"));
        let running = Running::start(&outbox);
        let next_at = Timestamp::from_second(START + seconds).unwrap();
        assert_eq!(outbox.notes(1).await, [Note::Retry("whd_1".into(), next_at)]);
        running.stop().await;
    }
}

#[tokio::test]
async fn what_can_never_be_delivered_is_given_up() {
    let (router, received) = receiver(StatusCode::OK, HeaderMap::new());
    let server = TestServer::start(router).await;
    let outbox = MemoryOutbox::new();
    let running = Running::start(&outbox);
    for (made, url) in (1..).zip(["no url".to_owned(), "http://10.0.0.1/".into(), server.url("/hook")]) {
        outbox.has_bodies.store(made < 3, Ordering::SeqCst);
        outbox.add(made.to_string(), url);
        running.wake.notify_one();
        assert_eq!(outbox.notes(made).await[made - 1], Note::GiveUp(made.to_string()));
    }
    running.stop().await;
    assert_eq!(received.lock().unwrap().len(), 0);
}

#[tokio::test]
async fn a_slow_receiver_holds_up_nobody_else() {
    let slow = Gate::new();
    let slow_server = TestServer::start(slow.router()).await;
    let (router, _) = receiver(StatusCode::OK, HeaderMap::new());
    let fast_server = TestServer::start(router).await;
    let outbox = MemoryOutbox::new();
    // More than one page of the store, all before the others.
    for n in 0..2 * queue::PAGE {
        outbox.add(format!("slow_{n}"), slow_server.url_as("slow.test", "/hook"));
    }
    for n in 0..20 {
        outbox.add(format!("fast_{n}"), fast_server.url_as("fast.test", "/hook"));
    }
    let running = Running::start(&outbox);
    let notes = outbox.notes(20).await;
    assert!(notes.iter().all(|note| matches!(note, Note::Done(id) if id.starts_with("fast_"))), "{notes:?}");
    slow.open.add_permits(2 * queue::PAGE);
    let notes = outbox.notes(2 * queue::PAGE + 20).await;
    running.stop().await;
    assert_eq!(notes.len(), 2 * queue::PAGE + 20, "each once");
    assert_eq!(slow.most.load(Ordering::SeqCst), queue::AT_ONCE_PER_HOST);
}

#[tokio::test]
async fn deliveries_at_once_are_bounded_over_all_hosts() {
    let gate = Gate::new();
    let server = TestServer::start(gate.router()).await;
    let outbox = MemoryOutbox::new();
    for n in 0..40 {
        outbox.add(n.to_string(), server.url_as(&format!("host-{n}.test"), "/hook"));
    }
    let running = Running::start(&outbox);
    gate.arrived(queue::AT_ONCE).await;
    gate.open.add_permits(40);
    outbox.notes(40).await;
    running.stop().await;
    assert_eq!(gate.most.load(Ordering::SeqCst), queue::AT_ONCE);
}

#[tokio::test]
async fn stopping_finishes_what_is_on_its_way_and_starts_nothing() {
    let gate = Gate::new();
    let server = TestServer::start(gate.router()).await;
    let outbox = MemoryOutbox::new();
    for n in 0..5 {
        outbox.add(n.to_string(), server.url("/hook"));
    }
    let running = Running::start(&outbox);
    gate.arrived(queue::AT_ONCE_PER_HOST).await;
    running.stop.cancel();
    gate.open.add_permits(5);
    running.stop().await;
    assert_eq!(outbox.notes.borrow().len(), queue::AT_ONCE_PER_HOST);
    assert_eq!(*gate.arrivals.borrow(), queue::AT_ONCE_PER_HOST);
}

#[tokio::test]
async fn a_store_that_fails_to_note_a_delivery_does_not_repeat_it() {
    let (router, received) = receiver(StatusCode::OK, HeaderMap::new());
    let server = TestServer::start(router).await;
    let outbox = MemoryOutbox::new();
    outbox.failures.store(1, Ordering::SeqCst);
    outbox.add("whd_1", server.url("/hook"));
    let running = Running::start(&outbox);
    // Looks in the meantime find it again, and must not send it.
    running.wake.notify_one();
    assert_eq!(outbox.notes(1).await, [Note::Done("whd_1".into())]);
    running.stop().await;
    assert_eq!(received.lock().unwrap().len(), 1);
}

#[tokio::test]
async fn what_was_not_noted_before_a_restart_is_sent_again_under_the_same_id() {
    let (router, received) = receiver(StatusCode::OK, HeaderMap::new());
    let server = TestServer::start(router).await;
    let outbox = MemoryOutbox::new();
    outbox.failures.store(usize::MAX, Ordering::SeqCst);
    outbox.add("whd_1", server.url("/hook"));
    let running = Running::start(&outbox);
    let arrival = async {
        while received.lock().unwrap().is_empty() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(TOO_LONG, arrival).await.expect("nothing arrives");
    running.stop().await;
    assert!(outbox.notes.borrow().is_empty());
    outbox.failures.store(0, Ordering::SeqCst);
    let running = Running::start(&outbox);
    assert_eq!(outbox.notes(1).await, [Note::Done("whd_1".into())]);
    running.stop().await;
    let received = received.lock().unwrap();
    assert!(received.len() == 2 && received.iter().all(|(headers, _)| headers[DELIVERY_HEADER] == "whd_1"));
}

#[test]
fn remembered_retries_are_bounded_and_never_early() {
    let mut retries = Retries::default();
    let start = Timestamp::from_second(START).unwrap();
    for n in 0..200_000 {
        let at = start + SignedDuration::from_micros(n * 50);
        assert!(round_up(at) >= at);
        retries.add(at);
    }
    assert_eq!(retries.0.len(), 101, "ten seconds of tenths");
    assert_eq!(retries.next_in(start), Duration::from_millis(100));
    assert_eq!(retries.next_in(start + SignedDuration::from_secs(20)), LOOK_EVERY);
    assert!(retries.0.is_empty());
}
