//! What can go wrong with the task store, by what the caller can do about it.

use sqlx::migrate::MigrateError;

/// What is wrong with a storage: its `Display` is for the log, and may name folders and addresses of the server.
pub trait StorageError: std::fmt::Display {
    /// The same for clients, who are told no such thing.
    fn for_clients(&self) -> String;
}

/// Why the task store could not do it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// The database does not answer, or its disk is full or failing. Nothing was stored; trying again may help.
    #[error("the task store is not available: {message}")]
    Unavailable {
        /// What the database or the system said.
        message: String,
    },
    /// Another server has this data folder or database file.
    #[error(
        "{path} is in use by another Darkroom server; stop it, or give this one a data folder of its own"
    )]
    InUse {
        /// The folder or file.
        path: String,
    },
    /// The database cannot be read. Trying again will not help.
    #[error(
        "the task database is damaged ({message}); restore it from a backup, or move it away to start with none"
    )]
    Damaged {
        /// What the database said.
        message: String,
    },
    /// A setting cannot be used.
    #[error("{setting}: {message}")]
    Config {
        /// Its name in the config.
        setting: &'static str,
        /// What is wrong with it.
        message: String,
    },
    /// Another request had the same idempotency key. Nothing was stored.
    #[error("the Idempotency-Key '{key}' was used for another request")]
    IdempotencyConflict {
        /// The key.
        key: String,
    },
    /// A task starts from an upload that is not kept. Nothing was stored.
    #[error("upload {blob} is not kept any more; send it again")]
    UploadGone {
        /// Its id.
        blob: String,
    },
    /// An API key cannot have this name.
    #[error("an API key cannot be called '{name}': {message}")]
    KeyName {
        /// The name.
        name: String,
        /// Why not.
        message: &'static str,
    },
    /// A defect, in Darkroom or in what the database holds.
    #[error("task store: {message}")]
    Defect {
        /// What happened, for the log.
        message: String,
    },
}

impl StoreError {
    /// Whether the database or its disk is at fault, so that the same call may succeed later.
    pub fn is_unavailable(&self) -> bool {
        matches!(self, Self::Unavailable { .. })
    }

    pub(super) fn defect(message: impl Into<String>) -> Self {
        Self::Defect { message: message.into() }
    }

    pub(super) fn unavailable(message: impl Into<String>) -> Self {
        Self::Unavailable { message: message.into() }
    }
}

impl StorageError for StoreError {
    /// Files are only named while a store is opened, before there are clients.
    fn for_clients(&self) -> String {
        self.to_string()
    }
}

impl From<sqlx::Error> for StoreError {
    fn from(error: sqlx::Error) -> Self {
        let message = error.to_string();
        match &error {
            sqlx::Error::Database(database) => match database.code().as_deref().map(class) {
                Some(Class::Unavailable) => Self::Unavailable { message },
                Some(Class::Damaged) => Self::Damaged { message },
                Some(Class::Other) | None => Self::Defect { message },
            },
            sqlx::Error::Io(_)
            | sqlx::Error::Tls(_)
            | sqlx::Error::PoolTimedOut
            | sqlx::Error::PoolClosed
            | sqlx::Error::WorkerCrashed => Self::Unavailable { message },
            sqlx::Error::Configuration(_) => Self::Config { setting: "storage.database_url", message },
            _ => Self::Defect { message },
        }
    }
}

impl From<MigrateError> for StoreError {
    fn from(error: MigrateError) -> Self {
        match error {
            MigrateError::Execute(error) | MigrateError::ExecuteMigration(error, _) => error.into(),
            MigrateError::VersionMissing(version) => Self::Config {
                setting: "storage.database_url",
                message: format!(
                    "the database was made by a newer Darkroom (it has migration {version}); use that one"
                ),
            },
            other => Self::defect(other.to_string()),
        }
    }
}

enum Class {
    Unavailable,
    Damaged,
    Other,
}

/// Sorts SQLite's result codes (decimal numbers, <https://www.sqlite.org/rescode.html>) and PostgreSQL's SQLSTATEs
/// (five characters, <https://www.postgresql.org/docs/current/errcodes-appendix.html>).
fn class(code: &str) -> Class {
    if code.len() == 5 {
        return match (&code[..2], code) {
            (_, "XX001" | "XX002") => Class::Damaged,
            (_, "25006") => Class::Unavailable, // a standby, which cannot be written
            // connection, authorisation, catalog, retry, resources, operator, system
            ("08" | "28" | "3D" | "40" | "53" | "57" | "58", _) => Class::Unavailable,
            _ => Class::Other,
        };
    }
    match code.parse::<u32>().map(|code| code & 0xff) {
        // perm, busy, locked, nomem, readonly, interrupt, ioerr, full, cantopen, protocol, nolfs, auth
        Ok(3 | 5 | 6 | 7 | 8 | 9 | 10 | 13 | 14 | 15 | 22 | 23) => Class::Unavailable,
        Ok(11 | 26) => Class::Damaged,
        _ => Class::Other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_an_operator_can_mend_is_told_from_damage_and_defects() {
        for unavailable in ["13", "10", "778", "5", "517", "14", "8", "53100", "08006", "57P01", "58030"] {
            assert!(matches!(class(unavailable), Class::Unavailable), "{unavailable}");
        }
        for damaged in ["11", "26", "267", "XX001"] {
            assert!(matches!(class(damaged), Class::Damaged), "{damaged}");
        }
        for defect in ["1", "1555", "787", "23505", "42601"] {
            assert!(matches!(class(defect), Class::Other), "{defect}");
        }
    }
}
