//! The linear layer: every projection and feed-forward matrix of the networks.

use candle_core::{Result, Tensor, bail};

use crate::Precision;
use crate::cpu::element::Element;
use crate::cpu::gemm::{self, Dense, Problem};
use crate::cpu::isa::Isa;
use crate::cpu::pointwise;
use crate::cpu::tensors::{self, with_elements};
use crate::reference;

/// `x · weightᵀ + bias`; `x: [.., in]`, `weight: [out, in]`, `bias: [out]`. Returns `[.., out]`.
///
/// # Errors
/// When the shapes do not fit each other or a dimension is zero.
pub fn linear(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
    linear_at(x, weight, bias, Precision::Full)
}

/// [`linear`], with products formed at `precision`.
///
/// # Errors
/// As [`linear`].
pub fn linear_at(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>, precision: Precision) -> Result<Tensor> {
    linear_add(x, weight, bias, None, precision)
}

/// [`linear_at`] plus `residual`, `[.., out]` and of the type of `x`, in the same pass where there is a fast path.
///
/// # Errors
/// As [`linear`], and when `residual` has not the result's shape or not the type of `x`.
pub fn linear_add(
    x: &Tensor,
    weight: &Tensor,
    bias: Option<&Tensor>,
    residual: Option<&Tensor>,
    precision: Precision,
) -> Result<Tensor> {
    check("linear", x, weight, bias, residual)?;
    if tensors::takes_activation(x) && tensors::takes_weight(weight) {
        return on_cpu(Isa::detect(), precision, x, weight, bias, residual);
    }
    #[cfg(feature = "cuda")]
    if crate::cuda::launch::takes(x) && crate::cuda::launch::takes(weight) {
        return match crate::cuda::matmul::linear(x, weight, bias, residual)? {
            Some(y) => Ok(y),
            None => crate::cuda::conv2d::product(x, weight, bias, residual, crate::Activation::Identity),
        };
    }
    let y = reference::linear(x, weight, bias)?;
    match residual {
        Some(residual) => y + residual,
        None => Ok(y),
    }
}

/// What `operation`, a product of `x` and `weight`, refuses; else the shape of its result.
pub(crate) fn check(
    operation: &str,
    x: &Tensor,
    weight: &Tensor,
    bias: Option<&Tensor>,
    residual: Option<&Tensor>,
) -> Result<Vec<usize>> {
    let (out, inner) = weight.dims2()?;
    if x.dims().last() != Some(&inner) || bias.is_some_and(|b| b.dims() != [out]) {
        let bias = bias.map(Tensor::shape);
        bail!("{operation}: x {:?}, weight {:?} and bias {bias:?} do not fit", x.shape(), weight.shape());
    }
    if x.elem_count() == 0 || out == 0 {
        bail!("{operation}: x {:?} or weight {:?} is empty", x.shape(), weight.shape());
    }
    let mut dims = x.dims().to_vec();
    if let Some(last) = dims.last_mut() {
        *last = out;
    }
    if let Some(residual) = residual
        && (residual.dims() != dims || residual.dtype() != x.dtype())
    {
        bail!(
            "{operation}: a residual {:?} of {:?} does not fit to {dims:?} of {:?}",
            residual.shape(),
            residual.dtype(),
            x.dtype()
        );
    }
    Ok(dims)
}

fn on_cpu(
    isa: Isa,
    precision: Precision,
    x: &Tensor,
    weight: &Tensor,
    bias: Option<&Tensor>,
    residual: Option<&Tensor>,
) -> Result<Tensor> {
    let weight = weight.contiguous()?;
    let (storage, layout) = weight.storage_and_layout();
    let (out, inner) = weight.dims2()?;
    let elements = tensors::elements(&storage, layout)?;
    with_elements!(elements, elements => {
        let weight = Weight { elements, out, inner, scales: None };
        product(isa, precision, x, weight, bias, residual)
    })
}

/// A weight's elements, and what they are worth.
pub(crate) struct Weight<'a, E> {
    /// `[out, inner]`
    pub(crate) elements: &'a [E],
    pub(crate) out: usize,
    pub(crate) inner: usize,
    /// One for all or one for each of `out`; `None`: 1.
    pub(crate) scales: Option<Vec<f32>>,
}

/// `x · weightᵀ · scales + bias + residual` on the CPU; shapes have been [checked](check).
pub(crate) fn product<E: Element>(
    isa: Isa,
    precision: Precision,
    x: &Tensor,
    weight: Weight<'_, E>,
    bias: Option<&Tensor>,
    residual: Option<&Tensor>,
) -> Result<Tensor> {
    let x = x.contiguous()?;
    let Weight { elements: w, out: n, inner: depth, scales } = weight;
    if w.len() != n * depth {
        bail!("linear: a weight of {} elements is not {n} x {depth}", w.len());
    }
    let m = x.elem_count() / depth;
    let mut dims = x.dims().to_vec();
    if let Some(last) = dims.last_mut() {
        *last = n;
    }
    let bias = bias.map(tensors::widened).transpose()?;
    let residual = residual.map(Tensor::contiguous).transpose()?;
    let residual = residual.as_ref().map(Tensor::storage_and_layout);
    let residual = residual.as_ref().map(|(storage, layout)| tensors::floats(storage, layout)).transpose()?;
    let (x_storage, x_layout) = x.storage_and_layout();
    let a = Dense { elements: tensors::floats(&x_storage, x_layout)?, width: depth };
    let w = Dense { elements: w, width: depth };
    // SAFETY: the kernel is one the machine has; sizes were checked by the caller; every element of `C` is
    // written, before it is added to where there is a residual, which is as large as `C`.
    unsafe {
        tensors::build(dims, |c| {
            let Some(scales) = scales else {
                if let Some(residual) = residual {
                    c.copy_from_nonoverlapping(residual.as_ptr(), residual.len());
                }
                let accumulate = residual.is_some();
                let problem = Problem { m, n, depth, a, w, bias: bias.as_deref(), accumulate };
                gemm::solve(isa, precision, &problem, c);
                return Ok(());
            };
            gemm::solve(isa, precision, &Problem { m, n, depth, a, w, bias: None, accumulate: false }, c);
            let scales =
                if scales.len() == n { scales } else { vec![scales.first().copied().unwrap_or(1.0); n] };
            let bias = bias.unwrap_or_else(|| vec![0.0; n]);
            pointwise::scale_columns(isa, c, m, &scales, &bias, residual);
            Ok(())
        })
    }
}

#[cfg(test)]
mod tests {
    use candle_core::DType;

    use super::*;
    use crate::cpu::oracle::{random, worst};

    #[test]
    fn every_instruction_set_gives_the_reference_product() {
        // Depths and columns beyond one packed slice, and remainders in every direction.
        for (rows, inner, out) in [(1, 1, 1), (37, 700, 45), (2050, 9, 5), (3, 33, 2570)] {
            for dtype in [DType::F32, DType::F16, DType::BF16] {
                let (x, bias) = (random(&[rows, inner]), random(&[out]));
                let weight = random(&[out, inner]).to_dtype(dtype).unwrap();
                let slow = reference::linear(&x, &weight, Some(&bias)).unwrap();
                for isa in Isa::available() {
                    let fast = on_cpu(isa, Precision::Full, &x, &weight, Some(&bias), None).unwrap();
                    let error = worst(&fast, &slow);
                    // Sums of at most 700 terms, rounded in another order.
                    assert!(error < 1e-5, "{isa:?} {rows}x{inner}x{out} {dtype:?}: {error:e}");
                }
            }
        }
    }

    #[test]
    fn a_residual_joins_the_product_and_its_bias() {
        for (rows, inner, out) in [(1, 1, 1), (37, 700, 45), (3, 33, 70)] {
            for (dtype, precision) in [(DType::F32, Precision::Full), (DType::BF16, Precision::Bf16)] {
                let (x, bias, residual) =
                    (random(&[2, rows, inner]), random(&[out]), random(&[2, rows, out]));
                let weight = random(&[out, inner]).to_dtype(dtype).unwrap();
                for bias in [None, Some(&bias)] {
                    let apart = (linear_at(&x, &weight, bias, precision).unwrap() + &residual).unwrap();
                    let turned =
                        residual.transpose(0, 1).unwrap().contiguous().unwrap().transpose(0, 1).unwrap();
                    let joined = linear_add(&x, &weight, bias, Some(&turned), precision).unwrap();
                    let error = worst(&joined, &apart);
                    // Summed in another order.
                    assert!(error < 1e-5, "{rows}x{inner}x{out} {precision:?}: {error:e}");
                }
            }
        }
    }

    #[test]
    fn a_residual_of_another_shape_or_type_is_refused() {
        let (x, weight) = (random(&[2, 3]), random(&[4, 3]));
        let add = |residual: &Tensor| linear_add(&x, &weight, None, Some(residual), Precision::Full);
        assert!(add(&random(&[2, 4])).is_ok());
        assert!(add(&random(&[1, 4])).is_err());
        assert!(add(&random(&[2, 3])).is_err());
        assert!(add(&random(&[2, 4]).to_dtype(DType::F16).unwrap()).is_err());
    }
}
