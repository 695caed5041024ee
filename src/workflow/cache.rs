//! Outputs of nodes by their [`Signature`], shared by all prompts, within a bound of bytes: the least recently used go
//! first. What several prompts want at once is computed once: the others wait for it, and compute it themselves if
//! it did not come about.

use std::collections::HashMap;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use lru::LruCache;
use serde_json::Value as Json;
use tokio_util::sync::CancellationToken;

use super::signature::Signature;
use super::value::Value;

/// How often one who waits looks whether it was interrupted. What it waits for wakes it at once.
const LOOK: Duration = Duration::from_millis(20);
/// What an entry costs beside its values, bytes.
const ENTRY: usize = 256;

/// What a node gave.
#[derive(Debug, Default)]
pub struct NodeResult {
    /// The values of each output: one for each time that the node ran, all of a list output's.
    pub slots: Vec<Vec<Value>>,
    /// What front ends show.
    pub ui: Option<Json>,
    /// The id of the node that ran.
    pub node: String,
}

impl NodeResult {
    /// Bytes of memory that it holds.
    pub fn bytes(&self) -> usize {
        let values: usize = self.slots.iter().flatten().map(Value::bytes).sum();
        values + self.ui.as_ref().map_or(0, |ui| ui.to_string().len()) + ENTRY
    }
}

/// The cache.
pub struct Cache {
    state: Mutex<State>,
    budget: usize,
}

struct State {
    kept: LruCache<Signature, (Arc<NodeResult>, usize)>,
    bytes: usize,
    flights: HashMap<Signature, Arc<Shared>>,
}

/// What one computes and others may wait for.
#[derive(Default)]
struct Shared {
    progress: Mutex<Progress>,
    ended: Condvar,
}

#[derive(Default)]
enum Progress {
    #[default]
    Running,
    Done(Arc<NodeResult>),
    Abandoned,
}

/// What someone who wants a result gets.
pub enum Claim<'a> {
    /// It is there.
    Ready(Arc<NodeResult>),
    /// It is to be computed.
    Mine(Flight<'a>),
    /// The wait was interrupted.
    Interrupted,
}

/// The duty to compute a result. Dropped without [`Self::finish`], it falls to the next who wants it.
pub struct Flight<'a> {
    cache: &'a Cache,
    signature: Signature,
    shared: Arc<Shared>,
}

impl Cache {
    /// Keeps up to `budget` bytes.
    pub fn new(budget: usize) -> Self {
        let state = State { kept: LruCache::unbounded(), bytes: 0, flights: HashMap::new() };
        Self { state: Mutex::new(state), budget }
    }

    /// The result, if it is there.
    pub fn get(&self, signature: &Signature) -> Option<Arc<NodeResult>> {
        self.lock().kept.get(signature).map(|(result, _)| Arc::clone(result))
    }

    /// The result, or the duty to compute it. Where another prompt is at it, waits until it is done.
    pub fn claim(&self, signature: &Signature, interrupt: &CancellationToken) -> Claim<'_> {
        loop {
            let shared = {
                let mut state = self.lock();
                if let Some((result, _)) = state.kept.get(signature) {
                    return Claim::Ready(Arc::clone(result));
                }
                match state.flights.get(signature) {
                    Some(shared) => Arc::clone(shared),
                    None => {
                        let shared = Arc::<Shared>::default();
                        state.flights.insert(*signature, Arc::clone(&shared));
                        return Claim::Mine(Flight { cache: self, signature: *signature, shared });
                    }
                }
            };
            let mut progress = shared.progress.lock().unwrap_or_else(PoisonError::into_inner);
            loop {
                match &*progress {
                    Progress::Done(result) => return Claim::Ready(Arc::clone(result)),
                    Progress::Abandoned => break,
                    Progress::Running if interrupt.is_cancelled() => return Claim::Interrupted,
                    Progress::Running => {
                        let waited = shared.ended.wait_timeout(progress, LOOK);
                        progress = waited.unwrap_or_else(PoisonError::into_inner).0;
                    }
                }
            }
        }
    }

    /// Forgets everything.
    pub fn clear(&self) {
        let mut state = self.lock();
        state.kept.clear();
        state.bytes = 0;
    }

    /// Bytes of what is kept.
    pub fn bytes(&self) -> usize {
        self.lock().bytes
    }

    /// How many results are kept.
    pub fn len(&self) -> usize {
        self.lock().kept.len()
    }

    /// Whether nothing is kept.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn keep(&self, signature: Signature, result: &Arc<NodeResult>) {
        let bytes = result.bytes();
        let mut state = self.lock();
        state.flights.remove(&signature);
        // What is larger than the whole cache would only put everything else out.
        if bytes > self.budget {
            return;
        }
        state.bytes += bytes;
        if let Some((_, (_, before))) = state.kept.push(signature, (Arc::clone(result), bytes)) {
            state.bytes -= before;
        }
        let mut out = Vec::new();
        while state.bytes > self.budget {
            let Some((_, (result, bytes))) = state.kept.pop_lru() else { break };
            state.bytes -= bytes;
            out.push(result);
        }
        // Large values are freed with the lock open.
        drop(state);
        drop(out);
    }

    /// A panic elsewhere leaves plain bookkeeping behind: going on is better than stopping.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Flight<'_> {
    /// Here it is.
    pub fn finish(self, result: &Arc<NodeResult>) {
        self.cache.keep(self.signature, result);
        self.end(Progress::Done(Arc::clone(result)));
    }

    fn end(&self, progress: Progress) {
        let mut shared = self.shared.progress.lock().unwrap_or_else(PoisonError::into_inner);
        if matches!(*shared, Progress::Running) {
            *shared = progress;
            self.shared.ended.notify_all();
        }
    }
}

impl Drop for Flight<'_> {
    fn drop(&mut self) {
        let mut state = self.cache.lock();
        // After `finish` someone else may be at it already.
        if state.flights.get(&self.signature).is_some_and(|shared| Arc::ptr_eq(shared, &self.shared)) {
            state.flights.remove(&self.signature);
        }
        drop(state);
        self.end(Progress::Abandoned);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    fn result(text_bytes: usize) -> Arc<NodeResult> {
        let value = Value::String("x".repeat(text_bytes).into());
        Arc::new(NodeResult { slots: vec![vec![value]], ui: None, node: "1".into() })
    }

    fn put(cache: &Cache, key: u8, bytes: usize) {
        match cache.claim(&[key; 32], &CancellationToken::new()) {
            Claim::Mine(flight) => flight.finish(&result(bytes)),
            Claim::Ready(_) | Claim::Interrupted => panic!("{key} is there already"),
        }
    }

    #[test]
    fn the_least_recently_used_goes_first() {
        let cache = Cache::new(3 * 1400);
        for key in [1, 2, 3] {
            put(&cache, key, 1000);
        }
        assert!(cache.get(&[1; 32]).is_some());
        put(&cache, 4, 1000);
        let there: Vec<u8> = (1..=4).filter(|key| cache.get(&[*key; 32]).is_some()).collect();
        assert_eq!(there, [1, 3, 4]);
        assert!(cache.bytes() <= 3 * 1400 && cache.bytes() > 3000);
        cache.clear();
        assert_eq!((cache.bytes(), cache.len()), (0, 0));
    }

    #[test]
    fn what_does_not_fit_puts_nothing_out() {
        let cache = Cache::new(4000);
        put(&cache, 1, 1000);
        put(&cache, 2, 100_000);
        assert!(cache.get(&[1; 32]).is_some() && cache.get(&[2; 32]).is_none());
    }

    #[test]
    fn many_who_want_the_same_at_once_compute_it_once() {
        let cache = Cache::new(1 << 20);
        let computed = AtomicUsize::new(0);
        let together = std::sync::Barrier::new(8);
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    together.wait();
                    match cache.claim(&[7; 32], &CancellationToken::new()) {
                        Claim::Mine(flight) => {
                            computed.fetch_add(1, Ordering::Relaxed);
                            // The cache and this one hold it; a third is one who waits.
                            while Arc::strong_count(&flight.shared) < 3 {
                                std::thread::yield_now();
                            }
                            flight.finish(&result(10));
                        }
                        Claim::Ready(result) => assert_eq!(result.slots.len(), 1),
                        Claim::Interrupted => panic!("no one interrupts"),
                    }
                });
            }
        });
        assert_eq!(computed.load(Ordering::Relaxed), 1);
    }

    #[test]
    fn what_one_gives_up_the_next_computes() {
        let cache = Cache::new(1 << 20);
        let token = CancellationToken::new();
        let Claim::Mine(first) = cache.claim(&[7; 32], &token) else { panic!("nothing is there yet") };
        std::thread::scope(|scope| {
            let second = scope.spawn(|| matches!(cache.claim(&[7; 32], &token), Claim::Mine(_)));
            drop(first);
            assert!(second.join().unwrap());
        });
    }

    #[test]
    fn a_wait_can_be_interrupted() {
        let cache = Cache::new(1 << 20);
        let Claim::Mine(_flight) = cache.claim(&[7; 32], &CancellationToken::new()) else {
            panic!("nothing is there yet")
        };
        let interrupted = CancellationToken::new();
        interrupted.cancel();
        assert!(matches!(cache.claim(&[7; 32], &interrupted), Claim::Interrupted));
    }

    #[test]
    fn those_who_wait_get_what_is_too_large_to_be_kept() {
        let cache = Cache::new(10);
        let token = CancellationToken::new();
        let Claim::Mine(first) = cache.claim(&[7; 32], &token) else { panic!("nothing is there yet") };
        std::thread::scope(|scope| {
            let second = scope.spawn(|| match cache.claim(&[7; 32], &token) {
                Claim::Ready(_) => true,
                // It came after the first had finished.
                Claim::Mine(_) => false,
                Claim::Interrupted => panic!("no one interrupts"),
            });
            while Arc::strong_count(&first.shared) < 3 {
                std::thread::yield_now();
            }
            first.finish(&result(1000));
            assert!(second.join().unwrap());
        });
        assert!(cache.is_empty());
    }
}
