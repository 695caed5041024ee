//! Keys: who may ask, and how much of the queue each has.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use sha2::{Digest, Sha256};

use super::{Service, ServiceError};
use crate::store::ApiKey;
use crate::task::{ApiKeyId, Owner};

/// How long an answer of the store is taken for true: a revoked key ends after this.
const FRESH: Duration = Duration::from_secs(2);
/// Most secrets remembered; guesses must not fill the memory.
const REMEMBERED: usize = 4096;

/// Unfinished tasks.
#[derive(Debug, Default)]
pub(super) struct Unfinished {
    pub(super) total: usize,
    pub(super) by_owner: BTreeMap<Owner, usize>,
}

impl Unfinished {
    /// Counts tasks in.
    pub(super) fn add(&mut self, owner: &Owner, count: usize) {
        if count > 0 {
            self.total += count;
            *self.by_owner.entry(owner.clone()).or_default() += count;
        }
    }
}

/// What the store said of a secret, and when.
type Looked = (Instant, Option<ApiKey>);

/// What is remembered of keys.
#[derive(Debug, Default)]
pub(super) struct Keys {
    /// By the secret's SHA-256.
    known: Mutex<HashMap<[u8; 32], Looked>>,
    exist: Mutex<Option<(Instant, bool)>>,
    limits: Mutex<HashMap<ApiKeyId, Option<u32>>>,
    unfinished: Mutex<Unfinished>,
}

impl Keys {
    pub(super) fn unfinished(&self) -> MutexGuard<'_, Unfinished> {
        lock(&self.unfinished)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Service {
    /// Whether any key exists; without one, everyone may ask.
    pub async fn keys_exist(&self) -> Result<bool, ServiceError> {
        let keys = &self.0.keys;
        if let Some((at, exist)) = *lock(&keys.exist)
            && at.elapsed() < FRESH
        {
            return Ok(exist);
        }
        let exist = self.0.store.has_keys().await.map_err(|e| self.store_error(e))?;
        *lock(&keys.exist) = Some((Instant::now(), exist));
        Ok(exist)
    }

    /// The key with this secret, if there is one.
    pub async fn authenticate(&self, secret: &str) -> Result<Option<ApiKey>, ServiceError> {
        let keys = &self.0.keys;
        let digest: [u8; 32] = Sha256::digest(secret.as_bytes()).into();
        if let Some((at, key)) = lock(&keys.known).get(&digest)
            && at.elapsed() < FRESH
        {
            return Ok(key.clone());
        }
        let key =
            self.0.store.key_by_secret(secret, Timestamp::now()).await.map_err(|e| self.store_error(e))?;
        if let Some(key) = &key {
            lock(&keys.limits).insert(key.id.clone(), key.max_tasks);
        }
        let mut known = lock(&keys.known);
        if known.len() >= REMEMBERED {
            known.clear();
        }
        known.insert(digest, (Instant::now(), key.clone()));
        Ok(key)
    }

    /// Unfinished tasks that an owner may have.
    pub(super) fn task_limit(&self, owner: &Owner) -> Option<usize> {
        let general = self.0.config.queue.max_tasks_per_key;
        let general = (general > 0).then_some(general);
        match owner {
            Owner::Anyone => None,
            Owner::Key(id) => {
                let own = lock(&self.0.keys.limits).get(id).copied().flatten();
                own.map(|limit| limit as usize).or(general)
            }
        }
    }
}
