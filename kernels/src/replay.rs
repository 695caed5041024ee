//! Computations that are run often with inputs of the same shapes: on a GPU they are recorded the second time and
//! replayed from then on, so that the host does one launch instead of hundreds.

#[cfg(feature = "cuda")]
use std::collections::HashMap;
use std::hash::Hash;
#[cfg(feature = "cuda")]
use std::sync::{Mutex, PoisonError};

#[cfg(feature = "cuda")]
use candle_core::DType;
use candle_core::{Result, Tensor};

/// Most computations that are known of and not recorded.
#[cfg(feature = "cuda")]
const MOST_UNRECORDED: usize = 512;
/// Most bytes of inputs and outputs that recordings keep: a ControlNet's hints are 10 MB a picture with SDXL at 1024².
#[cfg(feature = "cuda")]
const MOST_BYTES: usize = 512 << 20;

/// What is kept of one computation for each `K`, beside the shapes of its inputs: whatever it bakes into its kernels.
pub struct Replays<K> {
    #[cfg(feature = "cuda")]
    known: Mutex<Known<K>>,
    #[cfg(not(feature = "cuda"))]
    known: std::marker::PhantomData<K>,
}

impl<K> std::fmt::Debug for Replays<K> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Replays").finish_non_exhaustive()
    }
}

/// The shape and type of each input.
#[cfg(feature = "cuda")]
type Shapes = Vec<(Vec<usize>, DType)>;

#[cfg(feature = "cuda")]
struct Known<K> {
    most: usize,
    /// Counts calls, to know which was used last.
    clock: u64,
    states: HashMap<(K, Shapes), (State, u64)>,
}

#[cfg(feature = "cuda")]
enum State {
    /// It was run once.
    Seen,
    /// It cannot be recorded.
    Refused,
    Recorded(Box<crate::cuda::graph::Recording>),
}

impl<K: Eq + Hash + Clone> Replays<K> {
    /// Keeps at most `most` recordings, the ones that were used last.
    pub fn new(most: usize) -> Self {
        #[cfg(not(feature = "cuda"))]
        {
            let _ = most;
            Self { known: std::marker::PhantomData }
        }
        #[cfg(feature = "cuda")]
        Self { known: Mutex::new(Known { most, clock: 0, states: HashMap::new() }) }
    }

    /// `run(inputs)`. `run` must compute from the tensors that it is given and from weights alone, do the same for equal
    /// `key` and shapes, and have no other effect. What cannot be recorded is run each time. The threads that call this
    /// must live as long as this value: small tables that a recording reads again are theirs.
    ///
    /// # Errors
    /// As `run`.
    pub fn call(
        &self,
        key: &K,
        inputs: &[&Tensor],
        run: &dyn Fn(&[Tensor]) -> Result<Tensor>,
    ) -> Result<Tensor> {
        #[cfg(feature = "cuda")]
        if let Some(candle_core::Device::Cuda(device)) = inputs.first().map(|input| input.device()) {
            return self.on_gpu(device, key, inputs, run);
        }
        let _ = key;
        run(&inputs.iter().copied().cloned().collect::<Vec<_>>())
    }

    /// How many recordings there are.
    pub fn recorded(&self) -> usize {
        #[cfg(feature = "cuda")]
        {
            let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
            known.states.values().filter(|(state, _)| matches!(state, State::Recorded(_))).count()
        }
        #[cfg(not(feature = "cuda"))]
        0
    }

    #[cfg(feature = "cuda")]
    fn on_gpu(
        &self,
        device: &candle_core::CudaDevice,
        key: &K,
        inputs: &[&Tensor],
        run: &dyn Fn(&[Tensor]) -> Result<Tensor>,
    ) -> Result<Tensor> {
        let shapes = inputs.iter().map(|input| (input.dims().to_vec(), input.dtype())).collect();
        let key = (key.clone(), shapes);
        // Held throughout: a recording's memory is its own, and one computation at a time uses it.
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.clock += 1;
        let now = known.clock;
        let eager = || run(&inputs.iter().copied().cloned().collect::<Vec<_>>());
        match known.states.get_mut(&key) {
            None => {
                known.make_room(|state| !matches!(state, State::Recorded(_)), MOST_UNRECORDED);
                known.states.insert(key, (State::Seen, now));
                drop(known);
                eager()
            }
            Some((State::Refused, _)) => {
                drop(known);
                eager()
            }
            Some((State::Recorded(recording), used)) => {
                *used = now;
                recording.replay(inputs, device)
            }
            Some((State::Seen, used)) => {
                *used = now;
                match crate::cuda::graph::record(device, inputs, run) {
                    Ok((recording, first)) => {
                        known.states.remove(&key);
                        let most = known.most.saturating_sub(1);
                        known.make_room(|state| matches!(state, State::Recorded(_)), most);
                        known.states.insert(key, (State::Recorded(Box::new(recording)), now));
                        Ok(first)
                    }
                    // Without a recording it may well fit, and without the others all the more.
                    Err(error) if crate::device::is_out_of_memory(&error) => {
                        known.states.clear();
                        drop(known);
                        crate::cuda::device::trim(device);
                        eager()
                    }
                    Err(error) => {
                        tracing::warn!(%error, "a computation cannot be recorded as a graph: each launch costs its own time");
                        known.states.insert(key, (State::Refused, now));
                        drop(known);
                        eager()
                    }
                }
            }
        }
    }
}

#[cfg(feature = "cuda")]
impl<K: Eq + Hash + Clone> Known<K> {
    /// Forgets, of the states that `kind` holds for, those that were not used for the longest time, until there are at most
    /// `most` and what recordings keep is within bounds.
    fn make_room(&mut self, kind: impl Fn(&State) -> bool, most: usize) {
        loop {
            let alike = || self.states.iter().filter(|(_, (state, _))| kind(state));
            let bytes: usize = alike().map(|(_, (state, _))| state.bytes()).sum();
            if alike().count() <= most && bytes <= MOST_BYTES {
                return;
            }
            let oldest = alike().min_by_key(|(_, (_, used))| *used).map(|(key, _)| key.clone());
            let Some(oldest) = oldest else { return };
            self.states.remove(&oldest);
        }
    }
}

#[cfg(feature = "cuda")]
impl State {
    /// What it keeps beside the graph.
    fn bytes(&self) -> usize {
        if let Self::Recorded(recording) = self { recording.bytes() } else { 0 }
    }
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    #[test]
    fn on_a_cpu_a_computation_is_simply_run() {
        let replays = Replays::new(2);
        for value in [1f32, 2.0, 3.0] {
            let x = Tensor::new(&[value], &Device::Cpu).unwrap();
            let doubled = replays.call(&(), &[&x], &|x| &x[0] * 2.0).unwrap();
            assert_eq!(doubled.to_vec1::<f32>().unwrap(), [2.0 * value]);
        }
        assert_eq!(replays.recorded(), 0);
    }
}
