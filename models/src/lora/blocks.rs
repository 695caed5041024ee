//! Merging plain low-rank changes on the CPU block by block: a block of the weight is widened, changed by all LoRAs
//! and rounded while it is in the cache, and blocks are shared out among threads. The same numbers as
//! [`super::change`]'s, without its passes over whole tensors.

use candle_core::{CpuStorage, DType, Storage, Tensor, WithDType, bail};
use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};
use rayon::prelude::*;

/// Elements of a block: a quarter of a megabyte in `f32`.
const BLOCK: usize = 1 << 16;

/// A low-rank change.
pub(super) struct LowRank {
    /// `[rank, columns]`, `f32`.
    pub(super) down: Tensor,
    /// `[out, rank]`, `f32`.
    pub(super) up: Tensor,
    /// Strength times alpha over rank.
    pub(super) scale: f64,
}

/// A type that weights are stored in.
trait Stored: WithDType {
    fn widen(stored: &[Self], wide: &mut [f32]);
    fn round(wide: &[f32], stored: &mut [Self]);
}

impl Stored for f32 {
    fn widen(stored: &[Self], wide: &mut [f32]) {
        wide.copy_from_slice(stored);
    }

    fn round(wide: &[f32], stored: &mut [Self]) {
        stored.copy_from_slice(wide);
    }
}

impl Stored for f16 {
    fn widen(stored: &[Self], wide: &mut [f32]) {
        stored.convert_to_f32_slice(wide);
    }

    fn round(wide: &[f32], stored: &mut [Self]) {
        stored.convert_from_f32_slice(wide);
    }
}

impl Stored for bf16 {
    fn widen(stored: &[Self], wide: &mut [f32]) {
        stored.convert_to_f32_slice(wide);
    }

    fn round(wide: &[f32], stored: &mut [Self]) {
        stored.convert_from_f32_slice(wide);
    }
}

/// `weight` after `changes`, in type `to`: its own or `f32`. `None` where this is not the way to do it: on other
/// devices.
pub(super) fn merged(weight: &Tensor, changes: &[LowRank], to: DType) -> candle_core::Result<Option<Tensor>> {
    if !weight.device().is_cpu() || !weight.is_contiguous() {
        return Ok(None);
    }
    match (weight.dtype(), to) {
        (DType::F32, DType::F32) => merged_as::<f32, f32>(weight, changes).map(Some),
        (DType::F16, DType::F16) => merged_as::<f16, f16>(weight, changes).map(Some),
        (DType::F16, DType::F32) => merged_as::<f16, f32>(weight, changes).map(Some),
        (DType::BF16, DType::BF16) => merged_as::<bf16, bf16>(weight, changes).map(Some),
        (DType::BF16, DType::F32) => merged_as::<bf16, f32>(weight, changes).map(Some),
        _ => Ok(None),
    }
}

fn merged_as<From: Stored, To: Stored>(weight: &Tensor, changes: &[LowRank]) -> candle_core::Result<Tensor> {
    let outputs = weight.dim(0)?;
    let columns = weight.elem_count() / outputs.max(1);
    for LowRank { down, up, .. } in changes {
        if (up.dim(0)?, down.dim(1)?) != (outputs, columns) {
            bail!("factors {:?} and {:?} do not make {:?}", up.dims(), down.dims(), weight.dims());
        }
    }
    let mut changed = vec![To::zero(); weight.elem_count()];
    if !changed.is_empty() {
        let (storage, layout) = weight.storage_and_layout();
        let stored = slice::<From>(&storage)?;
        let stored = stored.get(layout.start_offset()..).unwrap_or_default();
        let rows = (BLOCK / columns).max(1);
        changed
            .par_chunks_mut(rows * columns)
            .zip(stored.par_chunks(rows * columns))
            .enumerate()
            .try_for_each(|(block, (changed, stored))| {
                // What follows the weight's own elements is another tensor's.
                let stored = stored.get(..changed.len()).unwrap_or_default();
                block_of(block * rows, stored, changes, changed, columns)
            })?;
    }
    Tensor::from_vec(changed, weight.dims(), weight.device())
}

fn slice<T: WithDType>(storage: &Storage) -> candle_core::Result<&[T]> {
    match storage {
        Storage::Cpu(cpu) => T::cpu_storage_as_slice(cpu),
        _ => bail!("not on the CPU"),
    }
}

/// The rows of the weight from `first` on.
fn block_of<From: Stored, To: Stored>(
    first: usize,
    stored: &[From],
    changes: &[LowRank],
    changed: &mut [To],
    columns: usize,
) -> candle_core::Result<()> {
    let mut wide = vec![0f32; changed.len()];
    From::widen(stored, &mut wide);
    for LowRank { down, up, scale } in changes {
        let product = up.narrow(0, first, wide.len() / columns)?.matmul(down)?;
        let (storage, layout) = product.storage_and_layout();
        let Storage::Cpu(CpuStorage::F32(product)) = &*storage else { bail!("not f32 on the CPU") };
        let product = product.get(layout.start_offset()..).unwrap_or_default();
        // Rounded twice, as two passes would: the product with the scale, then the sum.
        let scale = *scale as f32;
        for (wide, product) in wide.iter_mut().zip(product) {
            *wide += scale * product;
        }
    }
    To::round(&wide, changed);
    Ok(())
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::super::change::Change;
    use super::*;

    #[test]
    fn blocks_give_the_bits_of_whole_tensors() {
        // Several blocks and a rest; a convolution with channels last among them.
        for (shape, rank) in [(&[301, 700][..], 5), (&[70, 3, 3, 200], 3), (&[1, 9], 2), (&[3, 70_000], 1)] {
            let normal = |shape: &[usize]| Tensor::randn(0f32, 1.0, shape, &Device::Cpu).unwrap();
            let columns: usize = shape[1..].iter().product();
            let factors: Vec<_> =
                [0.8, -0.3].map(|scale| (normal(&[shape[0], rank]), normal(&[rank, columns]), scale)).into();
            let changes: Vec<_> = factors
                .iter()
                .map(|(up, down, scale)| LowRank { down: down.clone(), up: up.clone(), scale: scale * 0.5 })
                .collect();
            for dtype in [DType::F32, DType::F16, DType::BF16] {
                // One with elements before and after its own, as slices of larger tensors are.
                let weight = normal(&[&[3], shape].concat()).to_dtype(dtype).unwrap().get(1).unwrap();
                let mut whole = weight.to_dtype(DType::F32).unwrap();
                for (up, down, strength) in &factors {
                    let (up, down) = (up.clone(), down.clone());
                    let change = Change::LowRank { down, up, scale: 0.5, dora: None };
                    whole = change.apply(&whole, false, *strength).unwrap();
                }
                let bits = |x: &Tensor| -> Vec<u32> {
                    let x = x.to_dtype(DType::F32).unwrap().flatten_all().unwrap();
                    x.to_vec1::<f32>().unwrap().into_iter().map(f32::to_bits).collect()
                };
                for to in [dtype, DType::F32] {
                    let merged = merged(&weight, &changes, to).unwrap().unwrap();
                    assert_eq!((merged.dtype(), merged.dims()), (to, shape));
                    assert!(
                        bits(&merged) == bits(&whole.to_dtype(to).unwrap()),
                        "{shape:?} {dtype:?} {to:?}"
                    );
                }
            }
        }
    }

    #[test]
    fn factors_of_another_shape_are_refused() {
        let zeros = |shape: (usize, usize)| Tensor::zeros(shape, DType::F32, &Device::Cpu).unwrap();
        let change = LowRank { down: zeros((2, 4)), up: zeros((3, 2)), scale: 1.0 };
        assert!(merged(&zeros((3, 5)), &[change], DType::F32).is_err());
    }
}
