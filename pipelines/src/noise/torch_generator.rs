//! torch's CPU random generator: mt19937 and its two ways to normal values.
//!
//! `torch.randn` uses a vectorised Box-Muller transform for 16 values and more, and a scalar one in double
//! precision, which keeps its second value for the next draw, for fewer (aten `DistributionTemplates.h`).

use std::ops::Range;

use super::torch_normal::{BLOCK, transform_blocks};

/// Words of the mt19937 state.
const STATE: usize = 624;
/// Distance of the recurrence (Matsumoto and Nishimura 1998).
const SHIFT: usize = 397;

/// torch's CPU generator after `manual_seed`: the same stream of bits on every machine.
#[derive(Clone)]
pub struct TorchGenerator {
    state: [u32; STATE],
    used: usize,
    cached_normal: Option<f64>,
}

impl std::fmt::Debug for TorchGenerator {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TorchGenerator").field("used", &self.used).finish_non_exhaustive()
    }
}

impl TorchGenerator {
    /// A generator seeded as `torch.Generator().manual_seed(seed)`: only the low 32 bits of the seed count.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        let mut state = [0u32; STATE];
        let mut word = (seed & u64::from(u32::MAX)) as u32;
        state[0] = word;
        for (slot, i) in state.iter_mut().skip(1).zip(1u32..) {
            word = 1_812_433_253u32.wrapping_mul(word ^ (word >> 30)).wrapping_add(i);
            *slot = word;
        }
        Self { state, used: STATE, cached_normal: None }
    }

    /// `torch.randn(n, generator=self)` on the CPU, bit for bit, f32.
    pub fn randn(&mut self, n: usize) -> Vec<f32> {
        self.randn_range(n, 0..n)
    }

    /// The values `range` of [`randn`](Self::randn)`(total)`. Afterwards the generator stands where the whole draw
    /// would have left it; values outside the range cost one step of the generator each, and no transform.
    /// A range that reaches beyond the draw is cut to it.
    pub fn randn_range(&mut self, total: usize, range: Range<usize>) -> Vec<f32> {
        let end = range.end.min(total);
        let start = range.start.min(end);
        if total < BLOCK {
            let all: Vec<f32> = (0..total).map(|_| self.normal_f64() as f32).collect();
            return all[start..end].to_vec();
        }
        if !total.is_multiple_of(BLOCK) {
            return self.randn_ragged(total)[start..end].to_vec();
        }
        let first = start / BLOCK * BLOCK;
        let last = end.div_ceil(BLOCK) * BLOCK;
        self.skip(first);
        let mut values = vec![0f32; last - first];
        self.fill_uniform(&mut values);
        self.skip(total - last);
        transform_blocks(&mut values);
        if first == start && last == end {
            return values;
        }
        values[start - first..end - first].to_vec()
    }

    /// A draw whose length is not a multiple of the block: torch draws the last block anew, over the tail of what
    /// it has.
    fn randn_ragged(&mut self, total: usize) -> Vec<f32> {
        let mut values = vec![0f32; total];
        self.fill_uniform(&mut values);
        let whole = total / BLOCK * BLOCK;
        transform_blocks(&mut values[..whole]);
        let tail = &mut values[total - BLOCK..];
        self.fill_uniform(tail);
        transform_blocks(tail);
        values
    }

    /// Uniform in `[0, 1)`, 24 bits each.
    fn fill_uniform(&mut self, mut values: &mut [f32]) {
        const SCALE: f32 = 1.0 / (1 << 24) as f32;
        while !values.is_empty() {
            if self.used == STATE {
                self.regenerate();
            }
            // In runs without a check per value, which the compiler vectorises.
            let (run, rest) = values.split_at_mut(values.len().min(STATE - self.used));
            for (value, &word) in run.iter_mut().zip(&self.state[self.used..]) {
                *value = (temper(word) & 0x00ff_ffff) as f32 * SCALE;
            }
            self.used += run.len();
            values = rest;
        }
    }

    /// Uniform in `[0, 1)`, 53 bits.
    fn uniform_f64(&mut self) -> f64 {
        const SCALE: f64 = 1.0 / (1u64 << 53) as f64;
        let high = u64::from(self.next_u32());
        let low = u64::from(self.next_u32());
        (((high << 32) | low) & ((1 << 53) - 1)) as f64 * SCALE
    }

    fn normal_f64(&mut self) -> f64 {
        if let Some(value) = self.cached_normal.take() {
            return value;
        }
        let u1 = self.uniform_f64();
        let u2 = self.uniform_f64();
        let radius = (-2.0 * (-u2).ln_1p()).sqrt();
        let theta = 2.0 * std::f64::consts::PI * u1;
        self.cached_normal = Some(radius * theta.sin());
        radius * theta.cos()
    }

    fn next_u32(&mut self) -> u32 {
        if self.used == STATE {
            self.regenerate();
        }
        let word = temper(self.state[self.used]);
        self.used += 1;
        word
    }

    fn skip(&mut self, mut n: usize) {
        while n > 0 {
            if self.used == STATE {
                self.regenerate();
            }
            let step = n.min(STATE - self.used);
            self.used += step;
            n -= step;
        }
    }

    fn regenerate(&mut self) {
        let twist = |upper: u32, lower: u32| {
            let mixed = (upper & 0x8000_0000) | (lower & 0x7fff_ffff);
            (mixed >> 1) ^ (if lower & 1 == 1 { 0x9908_b0df } else { 0 })
        };
        let state = &mut self.state;
        for i in 0..STATE - SHIFT {
            state[i] = state[i + SHIFT] ^ twist(state[i], state[i + 1]);
        }
        for i in STATE - SHIFT..STATE - 1 {
            state[i] = state[i + SHIFT - STATE] ^ twist(state[i], state[i + 1]);
        }
        state[STATE - 1] = state[SHIFT - 1] ^ twist(state[STATE - 1], state[0]);
        self.used = 0;
    }
}

/// The output of a word of the state.
fn temper(mut word: u32) -> u32 {
    word ^= word >> 11;
    word ^= (word << 7) & 0x9d2c_5680;
    word ^= (word << 15) & 0xefc6_0000;
    word ^ (word >> 18)
}
