//! Adding to some rows of a batch in place: how what concerns a few pictures joins what was computed for all.

use candle_core::{CpuStorage, InplaceOp2, Layout, Result, Tensor, bail};
use rayon::prelude::*;

/// Elements that one thread adds at a time.
const PIECE: usize = 1 << 15;

/// `target[first .. first + n] += source`, in place; `source: [n, ..]`, `target: [m, ..]` with `first + n <= m` and
/// otherwise equal sides. Every handle on `target` sees the change.
///
/// # Errors
/// When the shapes or types do not fit or `target` is not contiguous.
pub fn add_to_rows(target: &Tensor, first: usize, source: &Tensor) -> Result<()> {
    let (Some((rows, width)), Some((added, source_width))) =
        (target.dims().split_first(), source.dims().split_first())
    else {
        bail!("add_to_rows: a number has no rows");
    };
    let fits = first.checked_add(*added).is_some_and(|end| end <= *rows);
    if !fits || width != source_width || target.dtype() != source.dtype() || !target.is_contiguous() {
        bail!(
            "add_to_rows: {:?} of {:?} does not fit into {:?} of {:?} from row {first}",
            source.shape(),
            source.dtype(),
            target.shape(),
            target.dtype()
        );
    }
    if source.elem_count() == 0 {
        return Ok(());
    }
    #[cfg(feature = "cuda")]
    if crate::cuda::launch::takes(target) {
        let start = first * width.iter().product::<usize>();
        return crate::cuda::pointwise::add_in_place(target, start, source);
    }
    let source = source.contiguous()?;
    if crate::cpu::tensors::takes_activation(target) {
        return target.inplace_op2(&source, &AddRows { start: first * width.iter().product::<usize>() });
    }
    let sum = (target.narrow(0, first, *added)? + &source)?;
    target.slice_set(&sum, 0, first)
}

/// Adds at an offset of elements.
struct AddRows {
    start: usize,
}

impl InplaceOp2 for AddRows {
    fn name(&self) -> &'static str {
        "add_to_rows"
    }

    fn cpu_fwd(
        &self,
        target: &mut CpuStorage,
        target_layout: &Layout,
        source: &CpuStorage,
        source_layout: &Layout,
    ) -> Result<()> {
        let (CpuStorage::F32(target), CpuStorage::F32(source)) = (target, source) else {
            bail!("add_to_rows: f32 is needed");
        };
        let (Some((from, to)), Some((source_from, source_to))) =
            (target_layout.contiguous_offsets(), source_layout.contiguous_offsets())
        else {
            bail!("add_to_rows: the tensors must be contiguous");
        };
        let source = source.get(source_from..source_to).unwrap_or_default();
        let start = from + self.start;
        let Some(target) = target.get_mut(start..start + source.len()).filter(|_| start + source.len() <= to)
        else {
            bail!("add_to_rows: {} elements do not fit behind {start}", source.len());
        };
        let add = |(target, source): (&mut [f32], &[f32])| {
            for (target, source) in target.iter_mut().zip(source) {
                *target += source;
            }
        };
        if source.len() <= PIECE {
            add((target, source));
        } else {
            target.par_chunks_mut(PIECE).zip(source.par_chunks(PIECE)).for_each(add);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device};

    use super::*;

    #[test]
    fn only_the_rows_that_are_named_change() {
        for width in [1, 3, PIECE + 5] {
            let target = Tensor::ones((4, width), DType::F32, &Device::Cpu).unwrap();
            let source = Tensor::full(2f32, (2, width), &Device::Cpu).unwrap();
            add_to_rows(&target, 1, &source).unwrap();
            let rows = target.mean(1).unwrap().to_vec1::<f32>().unwrap();
            assert_eq!(rows, [1.0, 3.0, 3.0, 1.0], "{width}");
        }
    }

    #[test]
    fn a_part_of_another_tensor_is_added_as_what_it_is() {
        let target = Tensor::zeros((3, 2, 2), DType::F32, &Device::Cpu).unwrap();
        let all = Tensor::arange(0f32, 12.0, &Device::Cpu).unwrap().reshape((3, 2, 2)).unwrap();
        add_to_rows(&target, 0, &all.narrow(0, 1, 1).unwrap()).unwrap();
        add_to_rows(&target, 1, &all.narrow(0, 0, 1).unwrap().transpose(1, 2).unwrap()).unwrap();
        assert_eq!(
            target.flatten_all().unwrap().to_vec1::<f32>().unwrap(),
            [4., 5., 6., 7., 0., 2., 1., 3., 0., 0., 0., 0.]
        );
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let target = Tensor::zeros((3, 2), DType::F32, &Device::Cpu).unwrap();
        let two = Tensor::zeros((2, 2), DType::F32, &Device::Cpu).unwrap();
        assert!(add_to_rows(&target, 2, &two).is_err());
        assert!(add_to_rows(&target, usize::MAX, &two).is_err());
        assert!(add_to_rows(&target, 0, &two.to_dtype(DType::F16).unwrap()).is_err());
        assert!(add_to_rows(&target, 0, &Tensor::zeros((2, 3), DType::F32, &Device::Cpu).unwrap()).is_err());
    }
}
