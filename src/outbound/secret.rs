//! Secrets that sign: webhooks for their receivers, addresses of pictures for whoever holds them. Given in the
//! configuration, or drawn once and kept in the data folder. No `Debug` or error ever shows one.

use std::fmt;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use hmac::{Hmac, KeyInit};
use rustls::crypto::ring;
use sha2::Sha256;

/// Fewest bytes of a secret.
const MIN_BYTES: usize = 16;
/// Most bytes that are read of a secret's file.
const MAX_BYTES: u64 = 4096;
/// Random bytes of a drawn secret.
const DRAWN_BYTES: usize = 32;

/// Why there is no secret.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SecretError {
    /// Too easily guessed.
    #[error("the secret in {place} has {bytes} bytes; it needs at least {MIN_BYTES}")]
    TooShort {
        /// Where it is written.
        place: String,
        /// How long it is.
        bytes: usize,
    },
    /// Its file cannot be read or written.
    #[error("the secret in '{}' cannot be kept: {reason}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What failed.
        reason: io::Error,
    },
    /// The operating system gave no random bytes.
    #[error("no random bytes for a new secret")]
    NoRandomness,
}

/// A key for HMAC-SHA256 (RFC 2104). The bytes of the text as written are the key, also where they look like
/// hexadecimal digits.
#[derive(Clone)]
pub struct Secret {
    keyed: Hmac<Sha256>,
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

impl Secret {
    /// The secret `text`, of at least 16 bytes; `place` says in errors where it came from.
    pub fn new(text: &str, place: &str) -> Result<Self, SecretError> {
        let too_short = || SecretError::TooShort { place: place.to_owned(), bytes: text.len() };
        if text.len() < MIN_BYTES {
            return Err(too_short());
        }
        // HMAC takes keys of any length; its signature leaves room for algorithms that do not.
        let keyed = Hmac::<Sha256>::new_from_slice(text.as_bytes()).map_err(|_| too_short())?;
        Ok(Self { keyed })
    }

    /// The state from which a message's code is computed.
    pub(super) fn keyed(&self) -> Hmac<Sha256> {
        self.keyed.clone()
    }
}

/// The secret that webhooks are signed with: `configured`, or the one in `<data_dir>/webhook-secret`, which is drawn
/// if it is not there. Receivers know it.
pub fn load_or_create_secret(data_dir: &Path, configured: Option<&str>) -> Result<Secret, SecretError> {
    match configured {
        Some(text) => Secret::new(text, "outbound.webhook_secret"),
        None => in_file(data_dir, "webhook-secret"),
    }
}

/// The secret that addresses of pictures are signed with, in `<data_dir>/link-secret`. Another than the webhooks',
/// whose receivers could otherwise make addresses of pictures that are not theirs.
pub fn load_or_create_link_secret(data_dir: &Path) -> Result<Secret, SecretError> {
    in_file(data_dir, "link-secret")
}

fn in_file(folder: &Path, name: &str) -> Result<Secret, SecretError> {
    let path = folder.join(name);
    let text = read_or_draw(folder, &path)?;
    Secret::new(&text, &format!("'{}'", path.display()))
}

fn read_or_draw(folder: &Path, path: &Path) -> Result<String, SecretError> {
    let failed = |reason| SecretError::File { path: path.to_owned(), reason };
    match read(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        other => return other.map_err(failed),
    }
    let mut bytes = [0; DRAWN_BYTES];
    ring::default_provider().secure_random.fill(&mut bytes).map_err(|_| SecretError::NoRandomness)?;
    let text = hex::encode(bytes);
    std::fs::create_dir_all(folder).map_err(failed)?;
    // A temporary file is readable by its owner alone, and keeps that when it is renamed.
    let mut file = tempfile::NamedTempFile::new_in(folder).map_err(failed)?;
    file.write_all(text.as_bytes()).and_then(|()| file.as_file().sync_all()).map_err(failed)?;
    match file.persist_noclobber(path) {
        Ok(_) => Ok(text),
        // Another process drew one at the same moment: both use the one that is kept.
        Err(error) if error.error.kind() == io::ErrorKind::AlreadyExists => read(path).map_err(failed),
        Err(error) => Err(failed(error.error)),
    }
}

fn read(path: &Path) -> io::Result<String> {
    let file = std::fs::File::open(path)?;
    warn_if_others_may_read(&file, path)?;
    let mut text = String::new();
    file.take(MAX_BYTES).read_to_string(&mut text)?;
    text.truncate(text.trim_end().len());
    Ok(text)
}

#[cfg(unix)]
fn warn_if_others_may_read(file: &std::fs::File, path: &Path) -> io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    let mode = file.metadata()?.permissions().mode() & 0o777;
    if mode & 0o077 != 0 {
        tracing::warn!(path = %path.display(), mode = %format!("{mode:o}"), "others may read this secret: chmod 600");
    }
    Ok(())
}

#[cfg(not(unix))]
fn warn_if_others_may_read(_: &std::fs::File, _: &Path) -> io::Result<()> {
    Ok(())
}

#[cfg(test)]
mod tests {
    use hmac::Mac;

    use super::*;

    fn tag(secret: &Secret) -> String {
        hex::encode(secret.keyed().chain_update(b"x").finalize().into_bytes())
    }

    #[test]
    fn a_secret_is_drawn_once_and_kept_for_its_owner_alone() {
        let folder = tempfile::tempdir().unwrap();
        let data_dir = folder.path().join("data");
        let first = load_or_create_secret(&data_dir, None).unwrap();
        let again = load_or_create_secret(&data_dir, None).unwrap();
        assert_eq!(tag(&first), tag(&again));
        let path = data_dir.join("webhook-secret");
        let text = std::fs::read_to_string(&path).unwrap();
        assert_eq!(hex::decode(&text).unwrap().len(), DRAWN_BYTES);
        assert_eq!(tag(&first), tag(&Secret::new(&text, "here").unwrap()));
        assert_ne!(tag(&first), tag(&load_or_create_link_secret(&data_dir).unwrap()));
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt;
            assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        }
        // Nothing half-written stays beside the two.
        assert_eq!(std::fs::read_dir(&data_dir).unwrap().count(), 2);
    }

    #[test]
    fn threads_that_draw_at_once_agree() {
        let folder = tempfile::tempdir().unwrap();
        let tags: Vec<_> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..8)
                .map(|_| scope.spawn(|| tag(&load_or_create_secret(folder.path(), None).unwrap())))
                .collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        assert!(tags.iter().all(|other| *other == tags[0]));
    }

    #[test]
    fn a_configured_secret_wins_and_writes_no_file() {
        let folder = tempfile::tempdir().unwrap();
        let secret = load_or_create_secret(folder.path(), Some("sixteen bytes or")).unwrap();
        assert_eq!(tag(&secret), tag(&Secret::new("sixteen bytes or", "").unwrap()));
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_short_secret_is_refused_where_it_is_written() {
        let folder = tempfile::tempdir().unwrap();
        let message = load_or_create_secret(folder.path(), Some("hush")).unwrap_err().to_string();
        assert!(message.contains("outbound.webhook_secret") && !message.contains("hush"), "{message}");
        std::fs::write(folder.path().join("webhook-secret"), "\n").unwrap();
        let message = load_or_create_secret(folder.path(), None).unwrap_err().to_string();
        assert!(message.contains("webhook-secret") && message.contains("0 bytes"), "{message}");
    }

    #[test]
    fn debug_output_does_not_tell_a_secret() {
        assert_eq!(format!("{:?}", Secret::new("0123456789abcdef", "").unwrap()), "Secret(…)");
    }
}
