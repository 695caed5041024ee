//! One server a data folder: a lock that the system gives back when its holder dies.

use std::fs::{File, TryLockError};
use std::path::Path;

use super::StoreError;

/// A locked file; unlocked when dropped, or when the process ends however it ends.
#[derive(Debug)]
pub(super) struct Lock(#[allow(dead_code, reason = "held, not read")] File);

impl Lock {
    /// Locks `file`, made if need be. `guarded` is what people know it by.
    pub(super) fn take(file: &Path, guarded: &Path) -> Result<Self, StoreError> {
        let io = |error: std::io::Error| StoreError::unavailable(format!("{}: {error}", file.display()));
        let opened =
            File::options().create(true).truncate(false).read(true).write(true).open(file).map_err(io)?;
        match opened.try_lock() {
            Ok(()) => Ok(Self(opened)),
            Err(TryLockError::WouldBlock) => Err(StoreError::InUse { path: guarded.display().to_string() }),
            Err(TryLockError::Error(error)) => Err(io(error)),
        }
    }
}
