//! A linear layer's product added to some rows of a batch in place: the second half of a low-rank change, which joins
//! what the layer itself computed for all rows without ever existing on its own.

use candle_core::{CpuStorage, InplaceOp3, Layout, Result, Tensor, bail};

use crate::Precision;
use crate::add_rows::add_to_rows;
use crate::cpu::gemm::{self, Dense, Problem};
use crate::cpu::isa::Isa;
use crate::cpu::tensors::{self, Elements, with_elements};
use crate::linear::linear_at;

/// `target[first .. first + n] += x · weightᵀ`, in place, with products formed at `precision`; `x: [n, .., in]`,
/// `weight: [out, in]`, `target: [m, .., out]` with `first + n <= m` and otherwise `x`'s sides. Every handle on
/// `target` sees the change.
///
/// # Errors
/// When the shapes or types do not fit, a side is zero, or `target` is not contiguous.
pub fn add_linear_to_rows(
    target: &Tensor,
    first: usize,
    x: &Tensor,
    weight: &Tensor,
    precision: Precision,
) -> Result<()> {
    let (out, inner) = weight.dims2()?;
    let fast = tensors::takes_activation(target)
        && tensors::takes_activation(x)
        && tensors::takes_weight(weight)
        && x.elem_count() > 0
        && out > 0;
    #[cfg(feature = "cuda")]
    let on_gpu =
        [target, x, weight].into_iter().all(crate::cuda::launch::takes) && x.elem_count() > 0 && out > 0;
    #[cfg(not(feature = "cuda"))]
    let on_gpu = false;
    if !fast && !on_gpu {
        return add_to_rows(target, first, &linear_at(x, weight, None, precision)?);
    }
    let fits = match (target.dims(), x.dims()) {
        ([rows, sides @ .., width], [added, own @ .., depth]) => {
            first.checked_add(*added).is_some_and(|end| end <= *rows)
                && sides == own
                && (*width, *depth) == (out, inner)
        }
        _ => false,
    };
    if !fits || !target.is_contiguous() {
        bail!(
            "add_linear_to_rows: x {:?} with weight {:?} does not fit into {:?} from row {first}",
            x.shape(),
            weight.shape(),
            target.shape()
        );
    }
    #[cfg(feature = "cuda")]
    if on_gpu {
        if !crate::cuda::matmul::add_to_rows(target, first, x, weight)? {
            let sum = linear_at(x, weight, None, precision)?.to_dtype(target.dtype())?;
            add_to_rows(target, first, &sum)?;
        }
        return Ok(());
    }
    let rows = x.elem_count() / inner;
    let start = first * (target.elem_count() / target.dims()[0]);
    let product = AddProduct { start, rows, out, inner, precision, isa: Isa::detect() };
    target.inplace_op3(&x.contiguous()?, &weight.contiguous()?, &product)
}

/// Adds at an offset of elements.
struct AddProduct {
    start: usize,
    rows: usize,
    out: usize,
    inner: usize,
    precision: Precision,
    isa: Isa,
}

impl InplaceOp3 for AddProduct {
    fn name(&self) -> &'static str {
        "add_linear_to_rows"
    }

    fn cpu_fwd(
        &self,
        target: &mut CpuStorage,
        target_layout: &Layout,
        x: &CpuStorage,
        x_layout: &Layout,
        weight: &CpuStorage,
        weight_layout: &Layout,
    ) -> Result<()> {
        let &Self { start, rows, out, inner, precision, isa } = self;
        let Elements::F32(x) = tensors::cpu_elements(x, x_layout)? else {
            bail!("add_linear_to_rows: f32 is needed");
        };
        let weight = tensors::cpu_elements(weight, weight_layout)?;
        let (CpuStorage::F32(target), Some((from, to))) = (target, target_layout.contiguous_offsets()) else {
            bail!("add_linear_to_rows: a contiguous f32 target is needed");
        };
        let part = target.get_mut(from..to).and_then(|all| all.get_mut(start..start + rows * out));
        let Some(part) = part.filter(|_| x.len() == rows * inner) else {
            bail!("add_linear_to_rows: {rows} rows of {out} do not fit behind {start}");
        };
        with_elements!(weight, w => {
            if w.len() != out * inner {
                bail!("add_linear_to_rows: a weight of {} elements is not {out} x {inner}", w.len());
            }
            let (a, w) = (Dense { elements: x, width: inner }, Dense { elements: w, width: inner });
            let problem = Problem { m: rows, n: out, depth: inner, a, w, bias: None, accumulate: true };
            // SAFETY: the kernel is one the machine has; all three matrices have just been measured, none has an
            // empty side, and the target is borrowed exclusively.
            unsafe { gemm::solve(isa, precision, &problem, part.as_mut_ptr()) };
        });
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device};

    use super::*;
    use crate::cpu::oracle::{random, worst};

    #[test]
    fn a_product_is_added_to_the_rows_that_are_named_and_to_no_others() {
        // Ranks within and beyond half a tile, depths beyond one packed slice, remainders in every direction.
        for (rank, out, dtype) in
            [(16, 70, DType::F32), (4, 33, DType::F16), (48, 16, DType::BF16), (700, 5, DType::F32)]
        {
            for precision in [Precision::Full, Precision::Bf16] {
                let target = random(&[5, 9, out]);
                let x = random(&[2, 9, rank]);
                let weight = random(&[out, rank]).to_dtype(dtype).unwrap();
                let product = linear_at(&x, &weight, None, precision).unwrap();
                let expected = target.copy().unwrap();
                add_to_rows(&expected, 2, &product).unwrap();
                add_linear_to_rows(&target, 2, &x, &weight, precision).unwrap();
                let error = worst(&target, &expected);
                assert!(error < 1e-5, "rank {rank}, {precision:?}: {error:e}");
                for row in [0, 1, 4] {
                    let (got, kept) = (target.get(row).unwrap(), expected.get(row).unwrap());
                    let same = got.eq(&kept).unwrap().min_all().unwrap().to_scalar::<u8>().unwrap();
                    assert_eq!(same, 1, "row {row} changed");
                }
            }
        }
    }

    #[test]
    fn every_instruction_set_adds_the_same() {
        let (x, weight) = (random(&[15, 330]), random(&[12, 330]));
        let expected = (Tensor::ones((15, 12), DType::F32, &Device::Cpu).unwrap()
            + linear_at(&x, &weight, None, Precision::Full).unwrap())
        .unwrap();
        for isa in Isa::available() {
            let target = Tensor::ones((15, 12), DType::F32, &Device::Cpu).unwrap();
            let product =
                AddProduct { start: 0, rows: 15, out: 12, inner: 330, precision: Precision::Full, isa };
            target.inplace_op3(&x, &weight, &product).unwrap();
            let error = worst(&target, &expected);
            assert!(error < 1e-5, "{isa:?}: {error:e}");
        }
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let (target, weight) = (random(&[3, 4, 8]), random(&[8, 2]));
        let add = |first, x: &[usize], weight: &Tensor| {
            add_linear_to_rows(&target, first, &random(x), weight, Precision::Full)
        };
        assert!(add(1, &[2, 4, 2], &weight).is_ok());
        assert!(add(2, &[2, 4, 2], &weight).is_err());
        assert!(add(usize::MAX, &[2, 4, 2], &weight).is_err());
        assert!(add(0, &[2, 5, 2], &weight).is_err());
        assert!(add(0, &[2, 4, 3], &weight).is_err());
        assert!(add(0, &[2, 4, 2], &random(&[7, 2])).is_err());
    }
}
