//! Scaled dot-product attention over channels-last sequences.

use candle_core::{CpuStorage, Layout, Result, Storage, Tensor, bail};

use crate::cpu::attention::{Problem, Sequence, attend};
use crate::cpu::gemm::with_kernel;
use crate::cpu::isa::Isa;
use crate::cpu::tensors;
use crate::reference;

/// Which keys a query may see.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AttentionMask {
    /// All of them.
    None,
    /// Those at or before the query's own position (text encoders).
    Causal,
    /// The first `n` of each batch row: sequences of different lengths padded into one batch. One entry a
    /// batch row, each at least 1 and at most the number of keys.
    KeyLengths(Vec<usize>),
}

/// `softmax(q kᵀ / √d) v` per head, with `q: [batch, queries, heads·d]` and `k`, `v: [batch, keys, heads·d]`.
/// Returns `[batch, queries, heads·d]`.
///
/// # Errors
/// When the shapes do not fit each other, the heads do not divide the channels, a dimension is zero, or key
/// lengths are not one per batch row and within `1..=keys`.
pub fn attention(q: &Tensor, k: &Tensor, v: &Tensor, heads: usize, mask: &AttentionMask) -> Result<Tensor> {
    check(q, k, v, heads, mask)?;
    #[cfg(feature = "cuda")]
    if crate::cuda::launch::takes(q) {
        return crate::cuda::attention::attention(q, k, v, heads, mask);
    }
    if ![q, k, v].iter().all(|t| tensors::takes_activation(t)) {
        return reference::attention(q, k, v, heads, mask);
    }
    on_cpu(Isa::detect(), q, k, v, heads, mask)
}

/// What [`attention`] refuses.
pub(crate) fn check(q: &Tensor, k: &Tensor, v: &Tensor, heads: usize, mask: &AttentionMask) -> Result<()> {
    let (batch, queries, inner) = q.dims3()?;
    let (_, keys, _) = k.dims3()?;
    if k.dims() != [batch, keys, inner] || v.dims() != k.dims() {
        bail!("attention: q {:?}, k {:?} and v {:?} do not fit", q.shape(), k.shape(), v.shape());
    }
    if batch * queries * keys * inner == 0 {
        bail!("attention: q {:?} or k {:?} is empty", q.shape(), k.shape());
    }
    if heads == 0 || inner % heads != 0 {
        bail!("attention: {heads} heads do not divide {inner} channels");
    }
    if let AttentionMask::KeyLengths(lengths) = mask
        && (lengths.len() != batch || lengths.iter().any(|&len| len == 0 || len > keys))
    {
        bail!("attention: key lengths {lengths:?} for batch {batch} and {keys} keys");
    }
    Ok(())
}

fn on_cpu(
    isa: Isa,
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    heads: usize,
    mask: &AttentionMask,
) -> Result<Tensor> {
    let (q, k, v) = (rows_contiguous(q)?, rows_contiguous(k)?, rows_contiguous(v)?);
    let (batch, queries, inner) = q.dims3()?;
    let (q_storage, q_layout) = q.storage_and_layout();
    let (k_storage, k_layout) = k.storage_and_layout();
    let (v_storage, v_layout) = v.storage_and_layout();
    let problem = Problem {
        q: sequence(&q_storage, q_layout)?,
        k: sequence(&k_storage, k_layout)?,
        v: sequence(&v_storage, v_layout)?,
        batch,
        queries,
        keys: k.dim(1)?,
        heads,
        d: inner / heads,
        causal: *mask == AttentionMask::Causal,
        key_lengths: match mask {
            AttentionMask::KeyLengths(lengths) => Some(lengths),
            _ => None,
        },
    };
    // SAFETY: the kernel is one the machine has; sizes and lengths were checked by the caller; every element
    // of the output is written.
    unsafe {
        tensors::build((batch, queries, inner), |out| {
            with_kernel!(isa, K => attend::<K>(isa, &problem, out));
            Ok(())
        })
    }
}

/// `x` itself when its channels lie side by side, which is all that the fast path needs; else a copy.
fn rows_contiguous(x: &Tensor) -> Result<Tensor> {
    if x.stride().last() == Some(&1) { Ok(x.clone()) } else { x.contiguous() }
}

fn sequence<'a>(storage: &'a Storage, layout: &Layout) -> Result<Sequence<'a>> {
    match (storage, layout.stride()) {
        (Storage::Cpu(CpuStorage::F32(all)), &[batch_stride, token_stride, _]) => Ok(Sequence {
            elements: &all[layout.start_offset().min(all.len())..],
            batch_stride,
            token_stride,
        }),
        _ => bail!("attention: inputs are f32 of rank 3"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::oracle::{random, worst};

    #[test]
    fn every_instruction_set_gives_the_reference_attention() {
        for (queries, keys, heads, d) in [(1, 1, 1, 1), (70, 300, 2, 40), (33, 90, 1, 130)] {
            let (q, k) = (random(&[2, queries, heads * d]), random(&[2, keys, heads * d]));
            let v = random(&[2, keys, heads * d]);
            let masks =
                [AttentionMask::None, AttentionMask::Causal, AttentionMask::KeyLengths(vec![1, keys])];
            for mask in masks {
                let slow = reference::attention(&q, &k, &v, heads, &mask).unwrap();
                for isa in Isa::available() {
                    let fast = on_cpu(isa, &q, &k, &v, heads, &mask).unwrap();
                    let error = worst(&fast, &slow);
                    // As for every operation in `f32` here.
                    assert!(error < 1e-5, "{isa:?} {queries}x{keys}x{d} {mask:?}: {error:e}");
                }
            }
        }
    }

    #[test]
    fn a_score_beyond_the_range_of_exp_does_not_overflow() {
        let q = (random(&[1, 5, 8]) * 1e4).unwrap();
        let out = on_cpu(Isa::detect(), &q, &q, &q, 1, &AttentionMask::None).unwrap();
        let slow = reference::attention(&q, &q, &q, 1, &AttentionMask::None).unwrap();
        assert!(worst(&out, &slow) < 1e-5);
    }
}
