//! Attention with an online softmax over blocks of keys (Dao et al. 2022): scores exist a tile at a time.
//!
//! Everything is computed transposed, `Sᵀ = K · Qᵀ` and `Oᵀ = Vᵀ · Pᵀ`, with queries along the vector lanes.
//! So the softmax needs no reduction across lanes, and the probabilities come out of it already in the
//! layout that the second product reads as its packed right-hand side.

use super::gemm::{Kernel, Tile};
use super::isa::Isa;
use super::math;
use super::parallel::{self, Shared};
use super::scratch;
use super::vector::{self, Arithmetic, Body};

/// Keys in a block, as panels of the kernel's rows.
const KEY_PANELS: usize = 10;
/// Bytes of queries and of outputs a task may hold: both and a block of keys fit the second-level cache.
const TASK_BYTES: usize = 384 << 10;
/// The most queries a task takes.
const TASK_QUERIES: usize = 512;

/// Rows of one of the three inputs: `[batch, tokens, heads · d]` with the last dimension contiguous.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Sequence<'a> {
    /// The elements, from the first on.
    pub(crate) elements: &'a [f32],
    /// Distance between batch rows.
    pub(crate) batch_stride: usize,
    /// Distance between tokens.
    pub(crate) token_stride: usize,
}

impl Sequence<'_> {
    /// Address of channel `channel` of a token.
    fn at(&self, batch: usize, token: usize, channel: usize) -> *const f32 {
        self.elements[batch * self.batch_stride + token * self.token_stride + channel..].as_ptr()
    }
}

/// One call's sizes and inputs.
pub(crate) struct Problem<'a> {
    pub(crate) q: Sequence<'a>,
    pub(crate) k: Sequence<'a>,
    pub(crate) v: Sequence<'a>,
    pub(crate) batch: usize,
    pub(crate) queries: usize,
    pub(crate) keys: usize,
    pub(crate) heads: usize,
    /// Channels of a head.
    pub(crate) d: usize,
    pub(crate) causal: bool,
    /// How many keys each batch row has; all of them when absent.
    pub(crate) key_lengths: Option<&'a [usize]>,
}

/// Fills `out: [batch, queries, heads · d]`.
///
/// # Safety
/// The kernel is `isa`'s, and the machine has it. The sequences are as large as the problem says, key lengths
/// are between 1 and `keys`, and `out` has room for all elements.
pub(crate) unsafe fn attend<K: Kernel>(isa: Isa, problem: &Problem<'_>, out: *mut f32) {
    let Problem { batch, queries, heads, d, .. } = *problem;
    let tasks_wanted = 4 * rayon::current_num_threads();
    let share = (queries * batch * heads).div_ceil(tasks_wanted);
    let most = (TASK_BYTES / (4 * d)).min(TASK_QUERIES);
    let block = share.min(most).min(queries).max(1).next_multiple_of(K::NR);
    let blocks = queries.div_ceil(block);
    let out = Shared::new(out);
    parallel::for_each(batch * heads * blocks, |task| {
        let (pair, first) = (task / blocks, task % blocks * block);
        let task = Task { row: pair / heads, head: pair % heads, first, count: block.min(queries - first) };
        // SAFETY: the caller's promises; each task writes its own queries and channels.
        unsafe { task.run::<K>(isa, problem, out.get()) };
    });
}

/// Some queries of one head.
struct Task {
    row: usize,
    head: usize,
    first: usize,
    count: usize,
}

impl Task {
    unsafe fn run<K: Kernel>(&self, isa: Isa, problem: &Problem<'_>, out: *mut f32) {
        let (d, nr) = (problem.d, K::NR);
        let channel = self.head * d;
        let panels = self.count.div_ceil(nr);
        let block = KEY_PANELS * K::MR;
        // Rows of `Vᵀ` are channels: split evenly, so that no tile is left with a few rows only.
        let v_panels = d.div_ceil(K::MR);
        let v_rows = d.div_ceil(v_panels);
        let mut keys = problem.key_lengths.map_or(problem.keys, |lengths| lengths[self.row]);
        if problem.causal {
            keys = keys.min(self.first + self.count);
        }
        let line = |len: usize| len.next_multiple_of(16);
        let sizes = [
            panels * d * nr,                // queries
            panels * d * nr,                // outputs
            panels * nr * 2,                // running maximum and sum
            block * nr,                     // scores
            line(block * d),                // keys
            line(v_panels * block * K::MR), // values
        ];
        scratch::with(sizes.iter().sum::<usize>() + nr, |buffer| {
            let (q, buffer) = buffer.split_at_mut(sizes[0]);
            let (o, buffer) = buffer.split_at_mut(sizes[1]);
            let (state, buffer) = buffer.split_at_mut(sizes[2]);
            let (scores, buffer) = buffer.split_at_mut(sizes[3]);
            let (k, buffer) = buffer.split_at_mut(sizes[4]);
            let (v, buffer) = buffer.split_at_mut(sizes[5]);
            let rescale = &mut buffer[..nr];
            // SAFETY: the packed rows lie inside the sequences.
            unsafe { self.pack_queries::<K>(problem, q) };
            for state in state.chunks_exact_mut(2 * nr) {
                state[..nr].fill(f32::NEG_INFINITY);
                state[nr..].fill(0.0);
            }
            for start in (0..keys).step_by(block) {
                let count = block.min(keys - start);
                // SAFETY: as above, and the buffers hold a block of keys and of values.
                unsafe {
                    for (panel, at) in (0..count).step_by(K::MR).enumerate() {
                        let rows = K::MR.min(count - at);
                        let mut starts = [std::ptr::null(); 32];
                        for (i, row) in starts[..rows].iter_mut().enumerate() {
                            *row = problem.k.at(self.row, start + at + i, channel);
                        }
                        K::pack(&starts[..rows], d, k[panel * K::MR * d..].as_mut_ptr(), K::MR);
                    }
                    for key in 0..count {
                        let value = problem.v.at(self.row, start + key, channel);
                        for panel in 0..v_panels {
                            let from = panel * v_rows;
                            let to = v[(panel * block + key) * K::MR..].as_mut_ptr();
                            std::ptr::copy_nonoverlapping(
                                value.add(from),
                                to,
                                v_rows.min(d.saturating_sub(from)),
                            );
                        }
                    }
                }
                for panel in 0..panels {
                    let first_query = self.first + panel * nr;
                    if problem.causal && start > first_query + nr - 1 {
                        continue;
                    }
                    let q = &q[panel * d * nr..];
                    let o = &mut o[panel * d * nr..(panel + 1) * d * nr];
                    for at in (0..count).step_by(K::MR) {
                        let tile = Tile {
                            c: scores[at * nr..].as_mut_ptr(),
                            ldc: nr,
                            accumulate: false,
                            bias: std::ptr::null(),
                        };
                        // SAFETY: the panels are packed and the scores hold a block.
                        unsafe {
                            K::tile(K::MR.min(count - at), nr, d, k[at * d..].as_ptr(), q.as_ptr(), tile);
                        }
                    }
                    let scores = &mut scores[..count * nr];
                    if problem.causal {
                        for (key, row) in scores.chunks_exact_mut(nr).enumerate() {
                            let hidden = (start + key).saturating_sub(first_query).min(nr);
                            row[..hidden].fill(f32::NEG_INFINITY);
                        }
                    }
                    let (max, sum) = state[panel * 2 * nr..(panel + 1) * 2 * nr].split_at_mut(nr);
                    let outputs = if start == 0 { None } else { Some(&mut *o) };
                    match nr {
                        32 => vector::run(isa, Softmax::<32> { scores, max, sum, rescale, outputs }),
                        _ => vector::run(isa, Softmax::<16> { scores, max, sum, rescale, outputs }),
                    }
                    for panel in 0..v_panels {
                        let from = panel * v_rows;
                        let rows = v_rows.min(d.saturating_sub(from));
                        if rows == 0 {
                            continue;
                        }
                        let tile = Tile {
                            c: o[from * nr..].as_mut_ptr(),
                            ldc: nr,
                            accumulate: start > 0,
                            bias: std::ptr::null(),
                        };
                        // SAFETY: as above.
                        unsafe {
                            K::tile(
                                rows,
                                nr,
                                count,
                                v[panel * block * K::MR..].as_ptr(),
                                scores.as_ptr(),
                                tile,
                            );
                        }
                    }
                }
            }
            for panel in 0..panels {
                let sum = &state[panel * 2 * nr + nr..(panel + 1) * 2 * nr];
                let o = &o[panel * d * nr..];
                let lanes = nr.min(self.count - panel * nr);
                for (lane, sum) in sum.iter().enumerate().take(lanes) {
                    let query = self.first + panel * nr + lane;
                    let scale = 1.0 / sum;
                    let at = (self.row * problem.queries + query) * problem.heads * d + channel;
                    for i in 0..d {
                        // SAFETY: inside `out`, and this task's own.
                        unsafe { *out.add(at + i) = o[i * nr + lane] * scale };
                    }
                }
            }
        });
    }

    /// Packs the task's queries, scaled by `1 / √d`.
    unsafe fn pack_queries<K: Kernel>(&self, problem: &Problem<'_>, packed: &mut [f32]) {
        let (d, nr) = (problem.d, K::NR);
        let scale = 1.0 / (d as f32).sqrt();
        for (panel, packed) in packed.chunks_exact_mut(d * nr).enumerate() {
            let lanes = nr.min(self.count - panel * nr);
            let mut starts = [std::ptr::null(); 32];
            for (lane, row) in starts[..lanes].iter_mut().enumerate() {
                *row = problem.q.at(self.row, self.first + panel * nr + lane, self.head * d);
            }
            // SAFETY: each start has the head's `d` channels behind it.
            unsafe { K::pack(&starts[..lanes], d, packed.as_mut_ptr(), nr) };
            packed.iter_mut().for_each(|x| *x *= scale);
        }
    }
}

/// One block's step of the online softmax, `N` queries side by side: scores become probabilities relative to
/// the new maximum, and what was summed before is rescaled to it.
struct Softmax<'a, const N: usize> {
    scores: &'a mut [f32],
    max: &'a mut [f32],
    sum: &'a mut [f32],
    rescale: &'a mut [f32],
    outputs: Option<&'a mut [f32]>,
}

impl<const N: usize> Body for Softmax<'_, N> {
    #[inline(always)]
    fn run<M: Arithmetic>(self) {
        let (scores, _) = self.scores.as_chunks_mut::<N>();
        let (Some(max), Some(sum), Some(rescale)) = (
            self.max.first_chunk_mut::<N>(),
            self.sum.first_chunk_mut::<N>(),
            self.rescale.first_chunk_mut::<N>(),
        ) else {
            return;
        };
        let mut highest = *max;
        for row in scores.iter() {
            for i in 0..N {
                highest[i] = if row[i] > highest[i] { row[i] } else { highest[i] };
            }
        }
        for i in 0..N {
            rescale[i] = math::exp::<M>(max[i] - highest[i]);
        }
        let mut total = [0f32; N];
        for row in scores.iter_mut() {
            for i in 0..N {
                let p = math::exp::<M>(row[i] - highest[i]);
                row[i] = p;
                total[i] += p;
            }
        }
        for i in 0..N {
            sum[i] = M::multiply_add(sum[i], rescale[i], total[i]);
        }
        *max = highest;
        if let Some(outputs) = self.outputs {
            let (outputs, _) = outputs.as_chunks_mut::<N>();
            for row in outputs {
                for i in 0..N {
                    row[i] *= rescale[i];
                }
            }
        }
    }
}
