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
    /// `key` and shapes, and have no other effect. What cannot be recorded is run each time.
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
                known.make_room();
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
            Some((state @ State::Seen, used)) => {
                *used = now;
                match crate::cuda::graph::record(device, inputs, run) {
                    Ok((recording, first)) => {
                        *state = State::Recorded(Box::new(recording));
                        Ok(first)
                    }
                    // Memory may be there later; anything else stays as it is.
                    Err(error) if crate::device::is_out_of_memory(&error) => Err(error),
                    Err(error) => {
                        tracing::warn!(%error, "a computation cannot be recorded as a graph: each launch costs its own time");
                        *state = State::Refused;
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
    /// Forgets what was not used for the longest time, if there is as much as there may be.
    fn make_room(&mut self) {
        while self.states.len() >= self.most.max(1) {
            let oldest = self.states.iter().min_by_key(|(_, (_, used))| *used).map(|(key, _)| key.clone());
            let Some(oldest) = oldest else { return };
            self.states.remove(&oldest);
        }
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
