//! How much room is left where the data folder is.

use std::path::Path;

/// Bytes that this process may still write to the disk that `folder` is on; `None` where the system does not say.
#[cfg(unix)]
pub fn free_bytes(folder: &Path) -> std::io::Result<Option<u64>> {
    let disk = rustix::fs::statvfs(folder)?;
    Ok(Some(disk.f_bavail.saturating_mul(disk.f_frsize)))
}

/// Bytes that this process may still write to the disk that `folder` is on; `None` where the system does not say.
#[cfg(not(unix))]
pub fn free_bytes(_folder: &Path) -> std::io::Result<Option<u64>> {
    Ok(None)
}

#[cfg(all(test, unix))]
mod tests {
    use super::*;

    #[test]
    fn a_folder_has_some_room_and_a_missing_one_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        assert!(free_bytes(folder.path()).unwrap().unwrap() > 0);
        assert!(free_bytes(&folder.path().join("missing")).is_err());
    }
}
