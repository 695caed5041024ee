//! Copying a tensor's elements out of a file's bytes: in the order that the network wants, checked for NaN and
//! infinity on the way, in parallel, and telling the caller which bytes are done with.

use std::ops::Range;

use rayon::prelude::*;

/// Elements copied as one piece: large enough to share among threads, small enough that what is mapped and not
/// yet released stays a few megabytes.
const PIECE: usize = 1 << 20;

/// In which order the elements are wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Order {
    /// As stored.
    Stored,
    /// `[rows, columns] -> [columns, rows]`.
    Transposed {
        /// Stored rows.
        rows: usize,
        /// Stored columns.
        columns: usize,
    },
    /// `[out, inputs, taps] -> [out, taps, inputs]`: a convolution's weights, channels last.
    ChannelsLast {
        /// Input channels.
        inputs: usize,
        /// Kernel height times width.
        taps: usize,
    },
    /// `[out, inputs, frames, taps] -> [out, taps, inputs]` of the last frame alone: what a causal convolution over
    /// time makes of a single picture.
    LastFrame {
        /// Input channels.
        inputs: usize,
        /// Kernel's length in time.
        frames: usize,
        /// Kernel height times width.
        taps: usize,
    },
}

impl Order {
    /// Of how many stored elements one is wanted.
    fn stored_per_wanted(self) -> usize {
        match self {
            Self::LastFrame { frames, .. } => frames,
            _ => 1,
        }
    }
}

/// A stored floating-point element. Finite numbers are told by their exponent bits, all ones in NaN and
/// infinity, which is a test that vectorises.
pub(super) trait Element: Copy + Default + Send + Sync {
    /// Its size in the file.
    const BYTES: usize;
    /// Decodes one element; `bytes` has [`Element::BYTES`] bytes.
    fn decode(bytes: &[u8]) -> Self;
    /// Its bits, zero-extended.
    fn bits(self) -> u32;
}

impl Element for f32 {
    const BYTES: usize = 4;

    fn decode(bytes: &[u8]) -> Self {
        bytes.first_chunk().map_or(0.0, |bytes| Self::from_le_bytes(*bytes))
    }

    fn bits(self) -> u32 {
        self.to_bits()
    }
}

/// `f16` and `bf16`, told apart by the exponent mask alone.
impl Element for u16 {
    const BYTES: usize = 2;

    fn decode(bytes: &[u8]) -> Self {
        bytes.first_chunk().map_or(0, |bytes| Self::from_le_bytes(*bytes))
    }

    fn bits(self) -> u32 {
        u32::from(self)
    }
}

/// Codes of `F8E4M3`, whose only value that is no number has all bits but the sign set: that is its exponent mask.
impl Element for u8 {
    const BYTES: usize = 1;

    fn decode(bytes: &[u8]) -> Self {
        bytes.first().copied().unwrap_or(0)
    }

    fn bits(self) -> u32 {
        u32::from(self)
    }
}

/// The elements of `source` in `order`, or the index (as stored) of the first that is not finite. `exponent` has
/// the element type's exponent bits set. `done` hears of ranges of `source` that will not be read again.
pub(super) fn copy<E: Element>(
    source: &[u8],
    exponent: u32,
    order: Order,
    done: impl Fn(Range<usize>) + Sync,
) -> Result<Vec<E>, usize> {
    let each = order.stored_per_wanted();
    let count = source.len() / E::BYTES / each.max(1);
    // Zeroed memory comes lazily from the system, so this costs no pass over it.
    let mut target = vec![E::default(); count];
    // How many elements depend on one another: pieces are whole multiples.
    let unit = match order {
        Order::Stored => 1,
        Order::Transposed { rows, .. } => rows,
        Order::ChannelsLast { inputs, taps } | Order::LastFrame { inputs, taps, .. } => inputs * taps,
    };
    if count == 0 || unit == 0 {
        return Ok(target);
    }
    let piece = unit * (PIECE / unit).max(1);
    let copy_piece = |(number, target): (usize, &mut [E])| -> Option<usize> {
        let start = number * piece * each;
        let range = start * E::BYTES..(start + target.len() * each) * E::BYTES;
        let own = source.get(range.clone()).unwrap_or_default();
        let bad = match order {
            Order::Stored => stored(own, target, exponent).map(|index| start + index),
            Order::ChannelsLast { inputs, taps } => {
                channels_last(own, target, [inputs, 1, taps], exponent).map(|index| start + index)
            }
            Order::LastFrame { inputs, frames, taps } => {
                channels_last(own, target, [inputs, frames, taps], exponent).map(|index| start + index)
            }
            Order::Transposed { rows, columns } => {
                transposed(source, target, rows, columns, start / rows, exponent)
            }
        };
        if !matches!(order, Order::Transposed { .. }) {
            done(range);
        }
        bad
    };
    let bad = if count <= piece {
        copy_piece((0, &mut target))
    } else {
        target.par_chunks_mut(piece).enumerate().filter_map(copy_piece).min()
    };
    if matches!(order, Order::Transposed { .. }) {
        done(0..source.len());
    }
    bad.map_or(Ok(target), Err)
}

/// The same for elements that are decoded already (an expanded sparse table).
pub(super) fn reorder<E: Element>(source: &[E], order: Order) -> Vec<E> {
    match order {
        Order::Stored => source.to_vec(),
        Order::Transposed { columns, .. } => {
            (0..columns).flat_map(|column| source.iter().skip(column).step_by(columns)).copied().collect()
        }
        Order::ChannelsLast { inputs, taps } => reordered(source, [inputs, 1, taps]),
        Order::LastFrame { inputs, frames, taps } => reordered(source, [inputs, frames, taps]),
    }
}

/// `[out, inputs, frames, taps] -> [out, taps, inputs]` of the last frame.
fn reordered<E: Element>(source: &[E], [inputs, frames, taps]: [usize; 3]) -> Vec<E> {
    let (kernel, last) = (frames * taps, frames.saturating_sub(1) * taps);
    source
        .chunks_exact((inputs * kernel).max(1))
        .flat_map(|out| (last..kernel).flat_map(move |tap| out.iter().skip(tap).step_by(kernel)))
        .copied()
        .collect()
}

fn not_finite<E: Element>(value: E, exponent: u32) -> bool {
    value.bits() & exponent == exponent
}

/// Copies in order; gives the index of the first element that is not finite.
pub(super) fn stored<E: Element>(source: &[u8], target: &mut [E], exponent: u32) -> Option<usize> {
    let mut bad = false;
    for (value, bytes) in target.iter_mut().zip(source.chunks_exact(E::BYTES)) {
        *value = E::decode(bytes);
        bad |= not_finite(*value, exponent);
    }
    if bad { target.iter().position(|value| not_finite(*value, exponent)) } else { None }
}

/// The last of `frames`; what is not copied is not looked at.
fn channels_last<E: Element>(
    source: &[u8],
    target: &mut [E],
    [inputs, frames, taps]: [usize; 3],
    exponent: u32,
) -> Option<usize> {
    let (out, kernel) = (inputs * taps, frames * taps);
    let last = (kernel - taps) * E::BYTES;
    let mut bad = false;
    for (target, source) in target.chunks_exact_mut(out).zip(source.chunks_exact(inputs * kernel * E::BYTES))
    {
        for (input, source) in source.chunks_exact(kernel * E::BYTES).enumerate() {
            let column = target[input..].iter_mut().step_by(inputs);
            for (value, bytes) in column.zip(source[last..].chunks_exact(E::BYTES)) {
                *value = E::decode(bytes);
                bad |= not_finite(*value, exponent);
            }
        }
    }
    if !bad {
        return None;
    }
    source
        .chunks_exact(E::BYTES)
        .enumerate()
        .position(|(index, bytes)| index % kernel >= kernel - taps && not_finite(E::decode(bytes), exponent))
}

fn transposed<E: Element>(
    source: &[u8],
    target: &mut [E],
    rows: usize,
    columns: usize,
    first_column: usize,
    exponent: u32,
) -> Option<usize> {
    let mut bad = false;
    for (number, target) in target.chunks_exact_mut(rows).enumerate() {
        let column = source.chunks_exact(E::BYTES).skip(first_column + number).step_by(columns);
        for (value, bytes) in target.iter_mut().zip(column) {
            *value = E::decode(bytes);
            bad |= not_finite(*value, exponent);
        }
    }
    if bad { first_bad::<E>(source, exponent) } else { None }
}

fn first_bad<E: Element>(source: &[u8], exponent: u32) -> Option<usize> {
    source.chunks_exact(E::BYTES).position(|bytes| not_finite(E::decode(bytes), exponent))
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    const F32_EXPONENT: u32 = 0x7f80_0000;

    fn bytes(values: &[f32]) -> Vec<u8> {
        values.iter().flat_map(|value| value.to_le_bytes()).collect()
    }

    #[test]
    fn every_order_gives_what_an_index_formula_gives() {
        let (out, inputs, taps) = (5, 7, 9);
        let values: Vec<f32> = (0..out * inputs * taps).map(|i| i as f32).collect();
        let source = bytes(&values);
        let stored: Vec<f32> = copy(&source, F32_EXPONENT, Order::Stored, |_| {}).unwrap();
        assert_eq!(stored, values);
        let last: Vec<f32> =
            copy(&source, F32_EXPONENT, Order::ChannelsLast { inputs, taps }, |_| {}).unwrap();
        let (rows, columns) = (out, inputs * taps);
        let turned: Vec<f32> =
            copy(&source, F32_EXPONENT, Order::Transposed { rows, columns }, |_| {}).unwrap();
        for o in 0..out {
            for i in 0..inputs {
                for k in 0..taps {
                    let value = values[(o * inputs + i) * taps + k];
                    assert_eq!(last[(o * taps + k) * inputs + i], value);
                    assert_eq!(turned[(i * taps + k) * rows + o], value);
                }
            }
        }
    }

    #[test]
    fn the_last_frame_is_copied_alone() {
        let (out, inputs, frames, taps) = (300, 70, 3, 9);
        let order = Order::LastFrame { inputs, frames, taps };
        let mut values: Vec<f32> = (0..out * inputs * frames * taps).map(|i| i as f32).collect();
        values[0] = f32::NAN; // in the first frame, which nobody wants
        let released = AtomicUsize::new(0);
        let copied: Vec<f32> = copy(&bytes(&values), F32_EXPONENT, order, |range| {
            released.fetch_add(range.len(), Ordering::Relaxed);
        })
        .unwrap();
        assert_eq!(copied.len(), out * inputs * taps);
        assert_eq!(released.into_inner(), values.len() * 4);
        for o in 0..out {
            for i in 0..inputs {
                for k in 0..taps {
                    let value = values[((o * inputs + i) * frames + frames - 1) * taps + k];
                    assert_eq!(copied[(o * taps + k) * inputs + i], value);
                }
            }
        }
        assert_eq!(reorder(&values, order), copied);
        let bad = values.len() - 3;
        values[bad] = f32::INFINITY;
        assert_eq!(copy::<f32>(&bytes(&values), F32_EXPONENT, order, |_| {}), Err(bad));
    }

    #[test]
    fn large_tensors_are_copied_piece_by_piece_and_every_byte_is_released_once() {
        let values: Vec<f32> = (0..PIECE * 2 + 17).map(|i| i as f32).collect();
        let released = AtomicUsize::new(0);
        let copied: Vec<f32> = copy(&bytes(&values), F32_EXPONENT, Order::Stored, |range| {
            assert!(range.len() <= PIECE * 4);
            released.fetch_add(range.len(), Ordering::Relaxed);
        })
        .unwrap();
        assert_eq!(copied, values);
        assert_eq!(released.into_inner(), values.len() * 4);
    }

    #[test]
    fn the_first_value_that_is_not_finite_is_found_in_every_order() {
        let mut values = vec![f32::MAX; 3 * 4 * 9];
        values[50] = f32::NEG_INFINITY;
        values[90] = f32::NAN;
        for order in [
            Order::Stored,
            Order::ChannelsLast { inputs: 4, taps: 9 },
            Order::Transposed { rows: 3, columns: 36 },
        ] {
            assert_eq!(copy::<f32>(&bytes(&values), F32_EXPONENT, order, |_| {}), Err(50), "{order:?}");
        }
    }

    #[test]
    fn half_and_bfloat_differ_in_what_is_finite() {
        // 0x7c00 is infinity in f16 and a large finite number in bf16.
        let source = 0x7c00u16.to_le_bytes();
        assert_eq!(copy::<u16>(&source, 0x7c00, Order::Stored, |_| {}), Err(0));
        assert_eq!(copy::<u16>(&source, 0x7f80, Order::Stored, |_| {}), Ok(vec![0x7c00]));
    }
}
