//! Prompts on disk: accepted ones until they have ended, finished ones as the history shows them. A SQLite file of its
//! own, written by one task that puts what arrives at the same time into one transaction.
//!
//! A commit survives the death of the program (write-ahead log); `synchronous = NORMAL` leaves it to the system when it
//! reaches the disk, so a failing machine may lose the last moments.

use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection, SqliteJournalMode, SqliteSynchronous};
use sqlx::{ConnectOptions, Connection, Row};
use tokio::sync::{mpsc, oneshot};

use crate::task::Owner;

/// The file, in the data folder.
const FILE: &str = "comfy.db";
/// Requests that may wait to be written.
const WAITING: usize = 4096;
/// Requests of one transaction.
const TOGETHER: usize = 64;
/// How long another program's lock is waited for.
const BUSY: Duration = Duration::from_secs(10);
/// The layout that this program writes.
const LAYOUT: i64 = 1;

const TABLES: &str = "\
    CREATE TABLE IF NOT EXISTS prompts (\
        number INTEGER PRIMARY KEY,\
        owner TEXT NOT NULL,\
        prompt_id TEXT NOT NULL,\
        item TEXT NOT NULL,\
        starts INTEGER NOT NULL DEFAULT 0,\
        ended INTEGER,\
        entry TEXT);\
    CREATE INDEX IF NOT EXISTS ended ON prompts (ended) WHERE ended IS NOT NULL;\
    CREATE INDEX IF NOT EXISTS waiting ON prompts (number) WHERE ended IS NULL;";

/// Why prompts cannot be kept.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum KeepError {
    /// The file.
    #[error("{}: {message}", .file.display())]
    File {
        /// Which.
        file: PathBuf,
        /// What is wrong with it.
        message: String,
    },
    /// It was written by a newer Darkroom.
    #[error(
        "{} was written by a newer version of this program; use that, or move the file away",
        .file.display()
    )]
    Newer {
        /// Which.
        file: PathBuf,
    },
    /// A write or read failed.
    #[error("prompts cannot be stored: {0}")]
    Failed(String),
    /// The writer has ended.
    #[error("prompts cannot be stored: the server is stopping")]
    Stopped,
}

/// Where a prompt's row is; later ones have larger numbers.
pub(super) type Number = i64;

/// A prompt that was accepted and has not ended.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Unfinished {
    pub(super) number: Number,
    pub(super) owner: Owner,
    /// `[number, id, prompt, extra_data, outputs]`.
    pub(super) item: String,
    /// How often it was begun.
    pub(super) starts: u32,
}

/// A prompt that has ended, without its entry.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Ended {
    pub(super) number: Number,
    /// Its place among all that have ended.
    pub(super) place: i64,
    pub(super) owner: Owner,
    pub(super) prompt_id: String,
    pub(super) bytes: usize,
}

/// What there is on disk.
#[derive(Debug, Default)]
pub(super) struct Kept {
    /// In the order in which they were accepted.
    pub(super) unfinished: Vec<Unfinished>,
    /// In the order in which they ended.
    pub(super) ended: Vec<Ended>,
    /// Larger than every number.
    pub(super) next: Number,
}

type Reply<T> = oneshot::Sender<Result<T, KeepError>>;

enum Request {
    Accept { prompt: Unfinished, prompt_id: String, reply: Reply<()> },
    Begun { number: Number, by: i32 },
    End { number: Number, ended: i64, entry: Bytes, reply: Reply<()> },
    Forget { numbers: Vec<Number>, reply: Reply<()> },
    Entry { number: Number, reply: Reply<Option<Bytes>> },
}

/// Prompts on disk; cheap to clone.
#[derive(Debug, Clone)]
pub(super) struct Keep(mpsc::Sender<Request>);

impl Keep {
    /// Opens the file in `folder`, made if need be, and starts its writer.
    pub(super) async fn open(folder: &Path) -> Result<(Self, Kept), KeepError> {
        let file = folder.join(FILE);
        let wrong = |error: sqlx::Error| KeepError::File { file: file.clone(), message: error.to_string() };
        let options = SqliteConnectOptions::new()
            .filename(&file)
            .create_if_missing(true)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Normal)
            .busy_timeout(BUSY)
            .disable_statement_logging();
        let mut connection = options.connect().await.map_err(wrong)?;
        let layout: i64 =
            sqlx::query_scalar("PRAGMA user_version").fetch_one(&mut connection).await.map_err(wrong)?;
        if layout > LAYOUT {
            return Err(KeepError::Newer { file });
        }
        sqlx::raw_sql(TABLES).execute(&mut connection).await.map_err(wrong)?;
        sqlx::raw_sql("PRAGMA user_version = 1").execute(&mut connection).await.map_err(wrong)?;
        let kept = read(&mut connection).await.map_err(wrong)?;
        let (requests, receiver) = mpsc::channel(WAITING);
        tokio::spawn(write(connection, receiver));
        Ok((Self(requests), kept))
    }

    async fn ask<T>(&self, make: impl FnOnce(Reply<T>) -> Request) -> Result<T, KeepError> {
        let (reply, answer) = oneshot::channel();
        self.0.send(make(reply)).await.map_err(|_| KeepError::Stopped)?;
        answer.await.map_err(|_| KeepError::Stopped)?
    }

    /// Keeps a prompt that is accepted; when this returns, it survives the program.
    pub(super) async fn accept(&self, prompt: Unfinished, prompt_id: &str) -> Result<(), KeepError> {
        let prompt_id = prompt_id.to_owned();
        self.ask(|reply| Request::Accept { prompt, prompt_id, reply }).await
    }

    /// A prompt was begun. Returns at once.
    pub(super) fn begun(&self, number: Number) {
        // What is lost when the queue is full is only a count.
        let _ = self.0.try_send(Request::Begun { number, by: 1 });
    }

    /// A prompt did not end because the server was told to stop: that it was begun does not count.
    pub(super) fn put_off(&self, number: Number) {
        let _ = self.0.try_send(Request::Begun { number, by: -1 });
    }

    /// A prompt has ended, as number `ended` of all. Blocks: for a thread of its own.
    pub(super) fn end(&self, number: Number, ended: i64, entry: Bytes) -> Result<(), KeepError> {
        let (reply, answer) = oneshot::channel();
        self.0.blocking_send(Request::End { number, ended, entry, reply }).map_err(|_| KeepError::Stopped)?;
        answer.blocking_recv().map_err(|_| KeepError::Stopped)?
    }

    /// Forgets prompts.
    pub(super) async fn forget(&self, numbers: Vec<Number>) -> Result<(), KeepError> {
        if numbers.is_empty() {
            return Ok(());
        }
        self.ask(|reply| Request::Forget { numbers, reply }).await
    }

    /// The same without waiting, for what only takes room. Blocks while very much waits to be written.
    pub(super) fn forget_later(&self, numbers: Vec<Number>) {
        if !numbers.is_empty() {
            let (reply, _) = oneshot::channel();
            let _ = self.0.blocking_send(Request::Forget { numbers, reply });
        }
    }

    /// A finished prompt's entry; `None` if it is gone.
    pub(super) async fn entry(&self, number: Number) -> Result<Option<Bytes>, KeepError> {
        self.ask(|reply| Request::Entry { number, reply }).await
    }
}

fn owner_text(owner: &Owner) -> &str {
    match owner {
        Owner::Anyone => "",
        Owner::Key(id) => id.as_str(),
    }
}

fn owner_of(text: &str) -> Owner {
    text.parse().map_or(Owner::Anyone, Owner::Key)
}

async fn read(connection: &mut SqliteConnection) -> Result<Kept, sqlx::Error> {
    let mut kept = Kept::default();
    let unfinished = "SELECT number, owner, item, starts FROM prompts WHERE ended IS NULL ORDER BY number";
    for row in sqlx::query(unfinished).fetch_all(&mut *connection).await? {
        let owner: String = row.try_get("owner")?;
        kept.unfinished.push(Unfinished {
            number: row.try_get("number")?,
            owner: owner_of(&owner),
            item: row.try_get("item")?,
            starts: row.try_get("starts")?,
        });
    }
    let ended = "SELECT number, ended, owner, prompt_id, length(entry) AS bytes FROM prompts \
                 WHERE ended IS NOT NULL ORDER BY ended";
    for row in sqlx::query(ended).fetch_all(&mut *connection).await? {
        let owner: String = row.try_get("owner")?;
        let bytes: i64 = row.try_get("bytes")?;
        kept.ended.push(Ended {
            number: row.try_get("number")?,
            place: row.try_get("ended")?,
            owner: owner_of(&owner),
            prompt_id: row.try_get("prompt_id")?,
            bytes: usize::try_from(bytes).unwrap_or_default(),
        });
    }
    let largest: Option<i64> =
        sqlx::query_scalar("SELECT max(number) FROM prompts").fetch_one(&mut *connection).await?;
    kept.next = largest.map_or(0, |largest| largest.saturating_add(1));
    Ok(kept)
}

/// Writes until everyone who could ask is gone.
async fn write(mut connection: SqliteConnection, mut requests: mpsc::Receiver<Request>) {
    let mut batch = Vec::with_capacity(TOGETHER);
    while requests.recv_many(&mut batch, TOGETHER).await > 0 {
        let (entries, changes): (Vec<_>, Vec<_>) =
            batch.drain(..).partition(|request| matches!(request, Request::Entry { .. }));
        if !changes.is_empty() {
            let written = apply(&mut connection, &changes).await;
            let answer = written.map_err(|error| KeepError::Failed(error.to_string()));
            if let Err(error) = &answer {
                tracing::warn!(%error, "cannot write prompts");
            }
            for change in changes {
                match change {
                    Request::Accept { reply, .. }
                    | Request::End { reply, .. }
                    | Request::Forget { reply, .. } => {
                        let _ = reply.send(answer.clone());
                    }
                    Request::Begun { .. } | Request::Entry { .. } => {}
                }
            }
        }
        for request in entries {
            if let Request::Entry { number, reply } = request {
                let entry =
                    sqlx::query_scalar::<_, Option<String>>("SELECT entry FROM prompts WHERE number = ?")
                        .bind(number)
                        .fetch_optional(&mut connection)
                        .await;
                let entry = entry.map(|entry| entry.flatten().map(Bytes::from));
                let _ = reply.send(entry.map_err(|error| KeepError::Failed(error.to_string())));
            }
        }
    }
    if let Err(error) = connection.close().await {
        tracing::warn!(%error, "the file of prompts does not close");
    }
}

async fn apply(connection: &mut SqliteConnection, changes: &[Request]) -> Result<(), sqlx::Error> {
    let mut writing = connection.begin().await?;
    for change in changes {
        match change {
            Request::Accept { prompt, prompt_id, .. } => {
                sqlx::query("INSERT INTO prompts (number, owner, prompt_id, item) VALUES (?, ?, ?, ?)")
                    .bind(prompt.number)
                    .bind(owner_text(&prompt.owner))
                    .bind(prompt_id)
                    .bind(&prompt.item)
                    .execute(&mut *writing)
                    .await?;
            }
            Request::Begun { number, by } => {
                sqlx::query("UPDATE prompts SET starts = starts + ? WHERE number = ?")
                    .bind(by)
                    .bind(number)
                    .execute(&mut *writing)
                    .await?;
            }
            Request::End { number, ended, entry, .. } => {
                let entry = std::str::from_utf8(entry).unwrap_or_default();
                sqlx::query("UPDATE prompts SET item = '', ended = ?, entry = ? WHERE number = ?")
                    .bind(ended)
                    .bind(entry)
                    .bind(number)
                    .execute(&mut *writing)
                    .await?;
            }
            Request::Forget { numbers, .. } => {
                for number in numbers {
                    sqlx::query("DELETE FROM prompts WHERE number = ?")
                        .bind(number)
                        .execute(&mut *writing)
                        .await?;
                }
            }
            Request::Entry { .. } => {}
        }
    }
    writing.commit().await
}

#[cfg(test)]
mod tests {
    use tempfile::TempDir;

    use super::*;

    fn prompt(number: Number) -> Unfinished {
        Unfinished { number, owner: Owner::Anyone, item: format!("[{number}]"), starts: 0 }
    }

    async fn end(keep: &Keep, number: Number, ended: i64, entry: &str) {
        let (keep, entry) = (keep.clone(), Bytes::from(entry.to_owned()));
        tokio::task::spawn_blocking(move || keep.end(number, ended, entry)).await.unwrap().unwrap();
    }

    /// Opens the file again, as after the program's death: the first writer may still be there.
    async fn again(folder: &TempDir) -> Kept {
        Keep::open(folder.path()).await.unwrap().1
    }

    #[tokio::test]
    async fn accepted_prompts_stay_until_they_end_and_ended_ones_in_the_order_of_their_ends() {
        let folder = TempDir::new().unwrap();
        let (keep, kept) = Keep::open(folder.path()).await.unwrap();
        assert!(kept.unfinished.is_empty() && kept.ended.is_empty() && kept.next == 0);
        let key = Owner::Key(crate::task::ApiKeyId::random());
        keep.accept(Unfinished { owner: key.clone(), ..prompt(3) }, "three").await.unwrap();
        keep.accept(prompt(4), "four").await.unwrap();
        keep.accept(prompt(5), "five").await.unwrap();
        keep.begun(5);
        keep.begun(5);
        keep.put_off(5);
        end(&keep, 4, 0, "{\"four\":4}").await;
        end(&keep, 3, 1, "{}").await;
        let kept = again(&folder).await;
        assert_eq!(kept.unfinished, [Unfinished { starts: 1, ..prompt(5) }]);
        let ended: Vec<(&str, &Owner)> =
            kept.ended.iter().map(|ended| (ended.prompt_id.as_str(), &ended.owner)).collect();
        assert_eq!(ended, [("four", &Owner::Anyone), ("three", &key)]);
        assert_eq!((kept.ended[0].bytes, kept.next), (10, 6));
        assert_eq!(keep.entry(4).await.unwrap().unwrap(), "{\"four\":4}");
        assert_eq!(keep.entry(5).await.unwrap(), None);
        keep.forget(vec![4, 5]).await.unwrap();
        let kept = again(&folder).await;
        assert_eq!((kept.unfinished.len(), kept.ended.len()), (0, 1));
    }

    #[tokio::test]
    async fn a_file_of_a_newer_program_is_left_alone() {
        let folder = TempDir::new().unwrap();
        let (keep, _) = Keep::open(folder.path()).await.unwrap();
        drop(keep);
        let options = SqliteConnectOptions::new().filename(folder.path().join(FILE));
        let mut connection = options.connect().await.unwrap();
        sqlx::raw_sql("PRAGMA user_version = 2").execute(&mut connection).await.unwrap();
        connection.close().await.unwrap();
        let error = Keep::open(folder.path()).await.unwrap_err();
        assert!(matches!(error, KeepError::Newer { .. }), "{error}");
    }

    #[tokio::test]
    async fn a_file_that_is_none_is_named() {
        let folder = TempDir::new().unwrap();
        std::fs::write(folder.path().join(FILE), "no database at all, but long enough to look at").unwrap();
        let error = Keep::open(folder.path()).await.unwrap_err().to_string();
        assert!(error.contains(FILE), "{error}");
    }
}
