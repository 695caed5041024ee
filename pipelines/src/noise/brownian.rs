//! Noise of one Brownian path, so that the noise of a step depends on where in sigma the step lies and not on how
//! many steps came before: k-diffusion's `BrownianTreeNoiseSampler`, which draws from torchsde's `BrownianTree`.
//!
//! The path is fixed by the seed: its increment over the whole interval comes from one draw, and each dyadic half
//! from a draw of its own (a Brownian bridge; Kidger et al. 2021, "Efficient and Accurate Gradients for Neural
//! SDEs"). torchsde keeps a tree and a cache of increments. Increments of a node are a function of its place
//! alone, so here a query walks from the top and keeps nothing: about 50 draws a step, and no memory between.

use candle_core::{Device, Tensor};

use super::seed_sequence::first_word;
use super::{BatchPosition, NoiseError, Slice, StepNoise, TorchGenerator};

/// Brownian noise of one sample over the sigmas of its run.
#[derive(Debug)]
pub struct BrownianNoise {
    seed: u64,
    slice: Slice,
    device: Device,
    /// The whole interval, smallest positive sigma to largest sigma.
    start: f64,
    end: f64,
}

impl BrownianNoise {
    /// Noise for a sample of `shape` at `position`, over `[smallest positive sigma, largest sigma]` of the run.
    ///
    /// # Errors
    /// The position lies outside the batch, the draw is empty or too large, a sigma is not finite, or none is
    /// positive.
    pub fn new(
        seed: u64,
        position: BatchPosition,
        shape: &[usize],
        sigmas: &[f32],
        device: &Device,
    ) -> Result<Self, NoiseError> {
        let slice = Slice::new(position, shape)?;
        let start = sigmas.iter().copied().filter(|&sigma| sigma > 0.0).fold(f32::INFINITY, f32::min);
        let end = sigmas.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        if !start.is_finite() || !sigmas.iter().all(|sigma| sigma.is_finite()) {
            return Err(NoiseError::Interval(sigmas.to_vec()));
        }
        Ok(Self { seed, slice, device: device.clone(), start: f64::from(start), end: f64::from(end) })
    }

    /// Increment of the path from `from` to `to`, `from < to`, both inside the interval.
    fn increment(&self, from: f64, to: f64) -> Vec<f32> {
        let (start, end) = (round(self.start), round(self.end));
        let query = Query { from: round(from.clamp(start, end)), to: round(to.clamp(start, end)) };
        let mut sum = Sum::Empty(self.slice.range.len());
        if query.from < query.to {
            let scale = (self.end - self.start).sqrt() as f32;
            let mut whole = self.draw(&[]);
            whole.iter_mut().for_each(|value| *value *= scale);
            self.visit(&Node { start, end, key: 0, depth: 0 }, whole, &query, &mut sum);
        }
        sum.into_values()
    }

    /// Adds the parts of the query that lie in `node` to `sum`, from left to right. `increment` is the node's own.
    fn visit(&self, node: &Node, increment: Vec<f32>, query: &Query, sum: &mut Sum) {
        if query.from <= node.start && query.to >= node.end {
            sum.add(increment);
            return;
        }
        let midway = round(0.5 * (node.end + node.start));
        if midway <= node.start || midway >= node.end {
            // Narrower than the path's resolution: only a query that rounding put inside ends here.
            return;
        }
        let reciprocal = 1.0 / (node.end - node.start);
        let (before, after) = (midway - node.start, node.end - midway);
        let deviation = (before * after * reciprocal).sqrt() as f32;
        let (before, reciprocal) = (before as f32, reciprocal as f32);

        let mut left = self.draw(&[node.key, node.depth]);
        for (left, &whole) in left.iter_mut().zip(&increment) {
            *left = before * whole * reciprocal + deviation * *left;
        }
        let right = (query.to > midway)
            .then(|| increment.iter().zip(&left).map(|(&whole, &left)| whole - left).collect::<Vec<f32>>());
        drop(increment);
        let depth = node.depth + 1;
        if query.from < midway {
            let child = Node { start: node.start, end: midway, key: 2 * node.key, depth };
            self.visit(&child, left, query, sum);
        }
        if let Some(right) = right {
            let child = Node { start: midway, end: node.end, key: 2 * node.key + 1, depth };
            self.visit(&child, right, query, sum);
        }
    }

    fn draw(&self, spawn_key: &[u64]) -> Vec<f32> {
        let seed = first_word(self.seed, spawn_key);
        self.slice.draw(&mut TorchGenerator::new(u64::from(seed)))
    }
}

impl StepNoise for BrownianNoise {
    fn next(&mut self, sigma: f32, sigma_next: f32) -> Result<Tensor, NoiseError> {
        if !(sigma.is_finite() && sigma_next.is_finite()) || sigma == sigma_next {
            return Err(NoiseError::Step { sigma, sigma_next });
        }
        let (low, high) = (sigma.min(sigma_next), sigma.max(sigma_next));
        let mut values = self.increment(f64::from(low), f64::from(high));
        // The path runs upwards in sigma, and sampling downwards: the sign is torchsde's.
        let sign = if sigma < sigma_next { 1.0 } else { -1.0 };
        let scale = (sigma_next - sigma).abs().sqrt();
        values.iter_mut().for_each(|value| *value = *value * sign / scale);
        self.slice.tensor(values, &self.device)
    }
}

struct Query {
    from: f64,
    to: f64,
}

/// A dyadic piece of the interval: `key` is its index among the pieces of its `depth`.
struct Node {
    start: f64,
    end: f64,
    key: u64,
    depth: u64,
}

/// A running sum that takes over its first part, because adding it to zeros would cost a pass.
enum Sum {
    Empty(usize),
    Values(Vec<f32>),
}

impl Sum {
    fn add(&mut self, part: Vec<f32>) {
        match self {
            Self::Empty(_) => *self = Self::Values(part),
            Self::Values(values) => values.iter_mut().zip(part).for_each(|(sum, part)| *sum += part),
        }
    }

    fn into_values(self) -> Vec<f32> {
        match self {
            Self::Empty(len) => vec![0.0; len],
            Self::Values(values) => values,
        }
    }
}

/// Rounds to six decimals as Python's `round(x, 6)`: to the nearest of the exact decimal value, ties to even.
/// torchsde resolves times to its tolerance of 1e-6 in this way.
fn round(x: f64) -> f64 {
    // Formatting is correctly rounded, which scaling by 1e6 is not.
    format!("{x:.6}").parse().unwrap_or(x)
}
