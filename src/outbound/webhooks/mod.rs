//! Tells receivers what became of tasks. Deliveries wait in an [`Outbox`] that survives restarts; the [`Deliverer`]
//! takes out what is due, a few at once, and puts failures back for later. A delivery that was received but not yet
//! noted when the server died is made again, under the same id.

mod attempt;
mod backoff;
mod outbox;
mod queue;
#[cfg(test)]
mod tests;

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use tokio::sync::Notify;
use tokio::task::{Id, JoinError, JoinSet};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use self::attempt::Courier;
use self::queue::Queue;
use super::{Client, Secret};

pub use self::outbox::{Delivery, Outbox};

/// The store is asked at least this often: for deliveries that were put off before a restart, and in case the clock
/// was set.
const LOOK_EVERY: Duration = Duration::from_secs(15);
/// While deliveries wait, the store is not asked for more sooner than this, however many are added.
const LOOK_PAUSE: Duration = Duration::from_millis(100);
/// Time for the store to note the last deliveries when the server stops.
const NOTE_TIME: Duration = Duration::from_secs(5);
/// Waits of the deliverer's own are rounded up to this, which bounds how many it remembers.
const RETRY_GRAIN: SignedDuration = SignedDuration::from_millis(100);

/// Tells the time; tests bring their own.
type Clock = Arc<dyn Fn() -> Timestamp + Send + Sync>;

/// Delivers what is in an [`Outbox`].
pub struct Deliverer<O> {
    courier: Arc<Courier<O>>,
    wake: Arc<Notify>,
}

impl<O: Outbox> Deliverer<O> {
    /// Delivers through `client`, signed with `secret`; each delivery is tried `attempts` times (at least once).
    /// `wake.notify_one()` says that something was added.
    pub fn new(client: Client, outbox: Arc<O>, secret: Secret, attempts: u32, wake: Arc<Notify>) -> Self {
        Self::with_clock(client, outbox, secret, attempts, wake, Arc::new(Timestamp::now))
    }

    fn with_clock(
        client: Client,
        outbox: Arc<O>,
        secret: Secret,
        attempts: u32,
        wake: Arc<Notify>,
        clock: Clock,
    ) -> Self {
        let attempts = attempts.max(1);
        Self { courier: Arc::new(Courier { client, outbox, secret, attempts, clock }), wake }
    }

    /// Delivers until `stop`; then finishes what is on its way, which takes as long as one request may, and a few
    /// seconds more if the store is slow.
    pub async fn run(self, stop: CancellationToken) {
        let mut queue = Queue::default();
        let mut flights = Flights::default();
        let mut retries = Retries::default();
        let mut look_at = Instant::now();
        loop {
            while let Some((delivery, host)) = queue.start() {
                let (courier, stop) = (Arc::clone(&self.courier), stop.clone());
                let id = delivery.id.clone();
                flights.start(id, host, async move { courier.deliver(delivery, &stop).await });
            }
            tokio::select! {
                () = stop.cancelled() => break,
                () = self.wake.notified() => {
                    let pause = if queue.is_empty() { Duration::ZERO } else { LOOK_PAUSE };
                    look_at = look_at.min(Instant::now() + pause);
                }
                Some(landed) = flights.land() => {
                    queue.landed(&landed.id, &landed.host);
                    if let Some(at) = landed.retry_at {
                        retries.add(at);
                        look_at = look_at.min(Instant::now() + retries.next_in(self.now()));
                    }
                }
                () = tokio::time::sleep_until(look_at), if queue.wants_more() => {
                    let again = tokio::select! {
                        () = stop.cancelled() => break,
                        again = self.look(&mut queue, &mut retries) => again,
                    };
                    look_at = Instant::now() + again;
                }
            }
        }
        let landing = async { while flights.land().await.is_some() {} };
        let limit = self.courier.client.timeout() + NOTE_TIME;
        if tokio::time::timeout(limit, landing).await.is_err() {
            tracing::error!(
                "webhooks are left unfinished, as the store does not note them; they will be sent again"
            );
        }
    }

    fn now(&self) -> Timestamp {
        (self.courier.clock)()
    }

    /// Asks the store what is due; how long until it should be asked again.
    async fn look(&self, queue: &mut Queue, retries: &mut Retries) -> Duration {
        let (now, page) = (self.now(), queue.page());
        match self.courier.outbox.due(now, page).await {
            Ok(due) => {
                let is_full = due.len() >= page;
                queue.add(due);
                if is_full { Duration::ZERO } else { retries.next_in(now) }
            }
            Err(error) => {
                tracing::error!(%error, "the store does not say which webhooks are due; it is asked again");
                LOOK_EVERY
            }
        }
    }
}

/// Deliveries on their way.
#[derive(Default)]
struct Flights {
    tasks: JoinSet<Option<Timestamp>>,
    manifest: HashMap<Id, (String, String)>,
}

/// A delivery that is no longer on its way.
struct Landed {
    id: String,
    host: String,
    retry_at: Option<Timestamp>,
}

impl Flights {
    fn start(
        &mut self,
        id: String,
        host: String,
        flight: impl Future<Output = Option<Timestamp>> + Send + 'static,
    ) {
        let task = self.tasks.spawn(flight).id();
        self.manifest.insert(task, (id, host));
    }

    /// Waits for one to end; `None` if there is none.
    async fn land(&mut self) -> Option<Landed> {
        let (task, retry_at) = match self.tasks.join_next_with_id().await? {
            Ok(ended) => ended,
            Err(error) => (log_defect(&error), None),
        };
        let (id, host) = self.manifest.remove(&task)?;
        Some(Landed { id, host, retry_at })
    }
}

/// A panic of the store's; the delivery is found again at the next look.
fn log_defect(error: &JoinError) -> Id {
    tracing::error!(%error, "a delivery of a webhook broke off; it will be tried again");
    error.id()
}

/// When deliveries that failed come back, as far as this process put them off.
#[derive(Default)]
struct Retries(BTreeSet<Timestamp>);

impl Retries {
    fn add(&mut self, at: Timestamp) {
        self.0.insert(round_up(at));
    }

    /// How long until the next comes back, at most [`LOOK_EVERY`]; forgets those that are back at `now`.
    fn next_in(&mut self, now: Timestamp) -> Duration {
        while self.0.first().is_some_and(|&at| at <= now) {
            self.0.pop_first();
        }
        let wait = self.0.first().map(|at| at.duration_since(now));
        wait.and_then(|wait| Duration::try_from(wait).ok()).map_or(LOOK_EVERY, |wait| wait.min(LOOK_EVERY))
    }
}

fn round_up(at: Timestamp) -> Timestamp {
    let over = at.as_nanosecond().rem_euclid(RETRY_GRAIN.as_nanos());
    let missing = i64::try_from((RETRY_GRAIN.as_nanos() - over) % RETRY_GRAIN.as_nanos()).unwrap_or(0);
    at.checked_add(SignedDuration::from_nanos(missing)).unwrap_or(at)
}
