//! Opening the database: SQLite in a file or PostgreSQL by URL, with the connections each wants, and its schema
//! brought up to date. What is above sees only `sqlx`'s `Any`.

use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use sqlx::any::{AnyConnectOptions, AnyPoolOptions};
use sqlx::migrate::Migrator;
use sqlx::{Any, AnyPool, ConnectOptions, Connection, Executor};

use super::StoreError;
use super::lock::Lock;
use crate::config::StorageConfig;

// Read when this file is compiled: touch it after adding a migration. One that was released never changes.
static MIGRATIONS: Migrator = sqlx::migrate!("./migrations");

const SETTING: &str = "storage.database_url";
/// Readers of SQLite; each is a thread.
const SQLITE_READERS: u32 = 4;
const POSTGRES_CONNECTIONS: u32 = 10;
/// How long a call waits for a connection before the store counts as unavailable. Longer than SQLite waits for a
/// lock, so that the lock is what the error speaks of.
const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(15);
/// Each connection's settings. A commit is on disk when it returns (FULL); another program's lock (a backup, `darkroom
/// keys`) is waited for.
const SQLITE_WRITER: &str = "PRAGMA busy_timeout = 10000; PRAGMA journal_mode = WAL; \
     PRAGMA synchronous = FULL; PRAGMA foreign_keys = ON;";
const SQLITE_READER: &str = "PRAGMA busy_timeout = 10000; PRAGMA query_only = ON;";

/// An open database.
pub(super) struct Database {
    /// For the writer alone.
    pub(super) writes: AnyPool,
    /// For everyone else.
    pub(super) reads: AnyPool,
    /// How a transaction that writes is begun.
    pub(super) begin: &'static str,
    /// Held as long as the database is open.
    pub(super) locks: Vec<Lock>,
}

/// Who opens it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Access {
    /// The server: refused if there is one already.
    Exclusive,
    /// A command beside a server that may be running.
    Beside,
}

pub(super) async fn open(config: &StorageConfig, access: Access) -> Result<Database, StoreError> {
    sqlx::any::install_default_drivers();
    let folder = &config.data_dir;
    make_folder(folder)?;
    let location = Location::of(config)?;
    let mut lock_files = vec![(folder.join("darkroom.lock"), folder.clone())];
    if let Location::Sqlite(file) = &location {
        let parent = file.parent().unwrap_or(Path::new("/"));
        make_folder(parent)?;
        if !same_folder(parent, folder) {
            let mut beside = file.clone().into_os_string();
            beside.push(".lock");
            lock_files.push((beside.into(), file.clone()));
        }
    }
    let locks: Result<Vec<Lock>, StoreError> =
        lock_files.iter().map(|(file, guarded)| Lock::take(file, guarded)).collect();
    let migrate = match (access, &locks) {
        (Access::Exclusive, Err(error)) => return Err(error.clone()),
        // A server that runs has migrated SQLite; PostgreSQL's migrations lock each other out.
        (Access::Beside, Err(_)) => matches!(location, Location::Postgres(_)),
        (_, Ok(_)) => true,
    };
    let mut database = match location {
        Location::Sqlite(file) => open_sqlite(&file, migrate).await.map_err(|e| name_file(e, &file))?,
        Location::Postgres(options) => open_postgres(options, migrate).await?,
    };
    if access == Access::Exclusive {
        database.locks = locks?;
    }
    Ok(database)
}

/// Where the database is.
enum Location {
    /// An absolute path.
    Sqlite(PathBuf),
    Postgres(AnyConnectOptions),
}

impl Location {
    fn of(config: &StorageConfig) -> Result<Self, StoreError> {
        let refused = |message: String| StoreError::Config { setting: SETTING, message };
        let Some(url) = &config.database_url else {
            return absolute(&config.data_dir.join("darkroom.db")).map(Self::Sqlite);
        };
        if let Some(rest) = url.strip_prefix("sqlite:") {
            let path = rest.strip_prefix("//").unwrap_or(rest);
            if path.is_empty() || path.contains('?') || path.contains(":memory:") {
                return Err(refused("sqlite: takes the path of a file and nothing else".into()));
            }
            return absolute(Path::new(path)).map(Self::Sqlite);
        }
        if url.starts_with("postgres://") || url.starts_with("postgresql://") {
            // The error says nothing of the URL, which may hold a password.
            let options = AnyConnectOptions::from_str(url)
                .map_err(|e| refused(format!("this is not a PostgreSQL URL: {e}")))?;
            return Ok(Self::Postgres(options));
        }
        Err(refused("it must begin with 'sqlite:' or 'postgres://'".into()))
    }
}

fn absolute(path: &Path) -> Result<PathBuf, StoreError> {
    std::path::absolute(path).map_err(|e| StoreError::unavailable(format!("{}: {e}", path.display())))
}

fn make_folder(folder: &Path) -> Result<(), StoreError> {
    std::fs::create_dir_all(folder)
        .map_err(|e| StoreError::unavailable(format!("cannot make the folder {}: {e}", folder.display())))
}

fn same_folder(one: &Path, other: &Path) -> bool {
    matches!((one.canonicalize(), other.canonicalize()), (Ok(one), Ok(other)) if one == other)
}

/// Says which file an error is about.
fn name_file(error: StoreError, file: &Path) -> StoreError {
    let named = |message: String| format!("{}: {message}", file.display());
    match error {
        StoreError::Damaged { message } => StoreError::Damaged { message: named(message) },
        StoreError::Unavailable { message } => StoreError::Unavailable { message: named(message) },
        other => other,
    }
}

async fn open_sqlite(file: &Path, migrate: bool) -> Result<Database, StoreError> {
    let options = AnyConnectOptions::from_str(&sqlite_url(file)?)?;
    // Connections live as long as the server: opening one reads the schema anew.
    let pool = |settings: &'static str, connections| {
        AnyPoolOptions::new()
            .max_connections(connections)
            .acquire_timeout(ACQUIRE_TIMEOUT)
            .idle_timeout(None)
            .max_lifetime(None)
            .test_before_acquire(false)
            .after_connect(move |connection, _| {
                Box::pin(async move {
                    connection.execute(settings).await?;
                    Ok(())
                })
            })
    };
    prepare(options.clone(), SQLITE_WRITER, migrate).await?;
    let writes = pool(SQLITE_WRITER, 1).connect_with(options.clone()).await?;
    let reads = pool(SQLITE_READER, SQLITE_READERS).connect_with(options).await?;
    Ok(Database { writes, reads, begin: "BEGIN IMMEDIATE", locks: Vec::new() })
}

/// Brings the schema up to date on a connection of its own, which says what is wrong where a pool only ever says that
/// it timed out.
async fn prepare(
    options: AnyConnectOptions,
    settings: &'static str,
    migrate: bool,
) -> Result<(), StoreError> {
    let mut connection = options.connect().await?;
    connection.execute(settings).await?;
    if migrate {
        MIGRATIONS.run(&mut connection).await?;
    }
    connection.close().await?;
    Ok(())
}

/// sqlx takes SQLite's options as a URL, so the path is escaped byte by byte.
fn sqlite_url(file: &Path) -> Result<String, StoreError> {
    let path = file.to_str().ok_or_else(|| StoreError::Config {
        setting: SETTING,
        message: format!("{} is not valid UTF-8", file.display()),
    })?;
    let mut url = String::from("sqlite://");
    for byte in path.bytes() {
        if byte.is_ascii_alphanumeric() || b"/-_.:".contains(&byte) {
            url.push(char::from(byte));
        } else {
            url.push_str(&format!("%{byte:02X}"));
        }
    }
    url.push_str("?mode=rwc");
    Ok(url)
}

async fn open_postgres(options: AnyConnectOptions, migrate: bool) -> Result<Database, StoreError> {
    tokio::time::timeout(ACQUIRE_TIMEOUT, prepare(options.clone(), "SELECT 1", migrate))
        .await
        .map_err(|_| StoreError::unavailable("PostgreSQL does not answer"))??;
    let pool: sqlx::Pool<Any> = AnyPoolOptions::new()
        .max_connections(POSTGRES_CONNECTIONS)
        .acquire_timeout(ACQUIRE_TIMEOUT)
        .connect_with(options)
        .await?;
    Ok(Database { writes: pool.clone(), reads: pool, begin: "BEGIN", locks: Vec::new() })
}
