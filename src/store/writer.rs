//! Group commit: all writes go through one task, which puts those that wait into one transaction. A commit waits for
//! the disk; sharing it is what lets many clients submit at once. One writer also means that SQLite is never locked
//! against itself.

use std::sync::{Mutex, PoisonError};

use futures_util::future::BoxFuture;
use sqlx::{AnyConnection, AnyPool, Connection};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;

use super::StoreError;

/// Writes that wait; more wait to be waiting.
const QUEUE: usize = 1024;
/// Writes that share a transaction. Bounds how much one failing commit takes back.
const MOST_TOGETHER: usize = 128;

/// What a write does inside the transaction.
pub(super) type Work<'c, T> = BoxFuture<'c, Result<T, StoreError>>;

/// Where writes are handed in.
pub(super) struct Writer {
    queue: mpsc::Sender<Message>,
    task: Mutex<Option<JoinHandle<()>>>,
}

enum Message {
    Write(Box<dyn Write>),
    Stop,
}

impl Writer {
    /// Starts the writing task on `pool`; `begin` opens a transaction that may write.
    pub(super) fn start(pool: AnyPool, begin: &'static str) -> Self {
        let (queue, waiting) = mpsc::channel(QUEUE);
        let task = tokio::spawn(serve(pool, begin, waiting));
        Self { queue, task: Mutex::new(Some(task)) }
    }

    /// Does `work` in a transaction, and returns once it is on disk. If it fails, nothing of it is stored. Whoever
    /// drops the future still has the work done.
    pub(super) async fn write<T, F>(&self, work: F) -> Result<T, StoreError>
    where
        T: Send + 'static,
        F: for<'c> FnOnce(&'c mut AnyConnection) -> Work<'c, T> + Send + 'static,
    {
        let (reply, answer) = oneshot::channel();
        let request = Request { work: Some(work), value: None, reply };
        self.queue.send(Message::Write(Box::new(request))).await.map_err(|_| closed())?;
        answer.await.map_err(|_| closed())?
    }

    /// The same without waiting; does nothing when too much else is to be written.
    pub(super) fn write_if_idle<F>(&self, work: F)
    where
        F: for<'c> FnOnce(&'c mut AnyConnection) -> Work<'c, ()> + Send + 'static,
    {
        let (reply, _) = oneshot::channel();
        let request = Request { work: Some(work), value: None, reply };
        // A full queue is the reason not to.
        let _ = self.queue.try_send(Message::Write(Box::new(request)));
    }

    /// Does what was handed in before, then stops.
    pub(super) async fn stop(&self) {
        let _ = self.queue.send(Message::Stop).await;
        let task = self.task.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(task) = task {
            let _ = task.await;
        }
    }
}

fn closed() -> StoreError {
    StoreError::unavailable("it was closed")
}

trait Write: Send {
    fn run<'c>(&'c mut self, database: &'c mut AnyConnection) -> Work<'c, ()>;
    fn answer(self: Box<Self>, outcome: Result<(), StoreError>);
}

struct Request<T, F> {
    work: Option<F>,
    value: Option<T>,
    reply: oneshot::Sender<Result<T, StoreError>>,
}

impl<T, F> Write for Request<T, F>
where
    T: Send,
    F: for<'c> FnOnce(&'c mut AnyConnection) -> Work<'c, T> + Send,
{
    fn run<'c>(&'c mut self, database: &'c mut AnyConnection) -> Work<'c, ()> {
        Box::pin(async move {
            let work = self.work.take().ok_or_else(|| StoreError::defect("a write ran twice"))?;
            self.value = Some(work(database).await?);
            Ok(())
        })
    }

    fn answer(self: Box<Self>, outcome: Result<(), StoreError>) {
        let Self { value, reply, .. } = *self;
        let value = outcome.and_then(|()| value.ok_or_else(|| StoreError::defect("a write never ran")));
        // If nobody waits any more, what was stored stays stored.
        let _ = reply.send(value);
    }
}

async fn serve(pool: AnyPool, begin: &'static str, mut waiting: mpsc::Receiver<Message>) {
    let mut stopping = false;
    while !stopping {
        let mut together = Vec::new();
        match waiting.recv().await {
            Some(Message::Write(write)) => together.push(write),
            Some(Message::Stop) | None => break,
        }
        while together.len() < MOST_TOGETHER {
            match waiting.try_recv() {
                Ok(Message::Write(write)) => together.push(write),
                Ok(Message::Stop) => {
                    stopping = true;
                    break;
                }
                Err(_) => break,
            }
        }
        commit(&pool, begin, together).await;
    }
}

async fn commit(pool: &AnyPool, begin: &'static str, mut together: Vec<Box<dyn Write>>) {
    match in_one_transaction(pool, begin, &mut together).await {
        Ok(outcomes) => {
            for (write, outcome) in together.into_iter().zip(outcomes) {
                write.answer(outcome);
            }
        }
        Err(error) => {
            tracing::warn!(%error, writes = together.len(), "a transaction of the task store failed");
            for write in together {
                write.answer(Err(error.clone()));
            }
        }
    }
}

async fn in_one_transaction(
    pool: &AnyPool,
    begin: &'static str,
    together: &mut [Box<dyn Write>],
) -> Result<Vec<Result<(), StoreError>>, StoreError> {
    let mut connection = pool.acquire().await?;
    let outcomes = transact(&mut connection, begin, together).await;
    if outcomes.is_err() {
        // Whether it is still in a transaction is not known: never used again.
        connection.close_on_drop();
    }
    outcomes
}

async fn transact(
    connection: &mut AnyConnection,
    begin: &'static str,
    together: &mut [Box<dyn Write>],
) -> Result<Vec<Result<(), StoreError>>, StoreError> {
    let mut transaction = connection.begin_with(begin).await?;
    let mut outcomes = Vec::with_capacity(together.len());
    if let [only] = together {
        let outcome = only.run(&mut transaction).await;
        match &outcome {
            Ok(()) => transaction.commit().await?,
            // SQLite may have taken it back already; then the write's own error is the one to tell.
            Err(error) => transaction.rollback().await.map_err(|_| error.clone())?,
        }
        return Ok(vec![outcome]);
    }
    for write in together {
        let mut own = transaction.begin().await?;
        let outcome = write.run(&mut own).await;
        match &outcome {
            Ok(()) => own.commit().await?,
            // On a full disk SQLite takes back the whole transaction, not only this write's part.
            Err(error) if error.is_unavailable() => return Err(error.clone()),
            Err(_) => own.rollback().await?,
        }
        outcomes.push(outcome);
    }
    transaction.commit().await?;
    Ok(outcomes)
}
