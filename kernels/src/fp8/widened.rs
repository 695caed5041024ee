//! Linear layers whose weights alone are in 8 bits: half the memory of 16-bit ones on any device, with the activations'
//! full precision.

use candle_core::{Result, Tensor};

use super::Fp8Weight;
use crate::Precision;
use crate::cpu::element::E4m3;
use crate::cpu::isa::Isa;
use crate::cpu::tensors;
use crate::linear::{self, Weight, linear_add};

/// `x · weightᵀ + bias + residual` with `x` as it is: only the weight is in 8 bits. Shapes as
/// [`linear_fp8`](crate::linear_fp8)'s; sides may be any. On the CPU codes are widened a tile at a time, on a GPU into a matrix that lives for this call.
///
/// # Errors
/// When the shapes or types do not fit each other or `x` is empty.
pub fn linear_widened(
    x: &Tensor,
    weight: &Fp8Weight,
    bias: Option<&Tensor>,
    residual: Option<&Tensor>,
    precision: Precision,
) -> Result<Tensor> {
    linear::check("linear_widened", x, &weight.values, bias, residual)?;
    if tensors::takes_activation(x) && weight.values.device().is_cpu() {
        return on_cpu(Isa::detect(), precision, x, weight, bias, residual);
    }
    #[cfg(feature = "cuda")]
    if crate::cuda::launch::takes(x) && weight.values.device().is_cuda() {
        use crate::cuda::matmul::fp8::{Codes, widen};
        let codes = Codes { values: &weight.values, scales: &weight.scales };
        return linear_add(x, &widen(codes, x.dtype(), x.device())?, bias, residual, precision);
    }
    let wide = weight.widened()?.to_device(x.device())?.to_dtype(x.dtype())?;
    linear_add(x, &wide, bias, residual, precision)
}

fn on_cpu(
    isa: Isa,
    precision: Precision,
    x: &Tensor,
    weight: &Fp8Weight,
    bias: Option<&Tensor>,
    residual: Option<&Tensor>,
) -> Result<Tensor> {
    let values = weight.values.contiguous()?;
    let scales = tensors::widened(&weight.scales)?;
    // Those of a file that was only rounded, with no scale of its own: nothing to multiply by.
    let scales = scales.iter().any(|scale| *scale != 1.0).then_some(scales);
    let (storage, layout) = values.storage_and_layout();
    let (out, inner) = values.dims2()?;
    let elements: &[E4m3] = tensors::codes(&storage, layout)?;
    linear::product(isa, precision, x, Weight { elements, out, inner, scales }, bias, residual)
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device};

    use super::*;
    use crate::cpu::oracle::{random, worst};
    use crate::reference;

    /// Codes of all kinds but those of no number, and their scales.
    fn weight(out: usize, inner: usize, scales: &[f32]) -> Fp8Weight {
        let codes = random(&[out, inner]).affine(1e3, 0.0).unwrap().flatten_all().unwrap();
        let codes = codes.to_vec1::<f32>().unwrap().into_iter().map(|x| (x.abs() * 977.0) as u64 as u8);
        let mut codes: Vec<u8> = codes.map(|code| if code & 0x7f == 0x7f { 0x81 } else { code }).collect();
        // One alone is not to be 0: errors are shares of what comes out.
        codes[0] = 0x38;
        Fp8Weight {
            values: Tensor::from_vec(codes, (out, inner), &Device::Cpu).unwrap(),
            scales: Tensor::from_slice(scales, scales.len(), &Device::Cpu).unwrap(),
        }
    }

    #[test]
    fn every_instruction_set_multiplies_codes_as_the_numbers_they_stand_for() {
        // Depths and columns beyond one packed slice, remainders in every direction; none a multiple of 16 alone.
        for (rows, inner, out) in [(1, 1, 1), (37, 700, 45), (2050, 9, 5), (3, 33, 2570), (20, 96, 64)] {
            let of_rows: Vec<f32> = (0..out).map(|i| 0.01 * (1 + i % 7) as f32).collect();
            for scales in [&[1.0][..], &[0.037], &of_rows] {
                let (x, bias, residual) = (random(&[rows, inner]), random(&[out]), random(&[rows, out]));
                let weight = weight(out, inner, scales);
                let slow = reference::linear(&x, &weight.widened().unwrap(), Some(&bias)).unwrap();
                let sum = (&slow + &residual).unwrap();
                for isa in Isa::available() {
                    let of =
                        |bias, residual| on_cpu(isa, Precision::Full, &x, &weight, bias, residual).unwrap();
                    // Sums of at most 700 terms, rounded in another order.
                    let error = worst(&of(Some(&bias), None), &slow);
                    assert!(error < 1e-5, "{isa:?} {rows}x{inner}x{out}: {error:e}");
                    let error = worst(&of(Some(&bias), Some(&residual)), &sum);
                    assert!(error < 1e-5, "{isa:?} {rows}x{inner}x{out} and a residual: {error:e}");
                    let plain = reference::linear(&x, &weight.widened().unwrap(), None).unwrap();
                    let error = worst(&of(None, None), &plain);
                    assert!(error < 1e-5, "{isa:?} {rows}x{inner}x{out} alone: {error:e}");
                }
            }
        }
    }

    #[test]
    fn codes_in_bf16_are_multiplied_as_bf16_weights_of_the_same_numbers() {
        let (x, bias) = (random(&[40, 330]), random(&[70]));
        let weight = weight(70, 330, &[1.0]);
        // Each number of e4m3 is one of bf16.
        let same = weight.widened().unwrap().to_dtype(DType::BF16).unwrap();
        let fast = linear_widened(&x, &weight, Some(&bias), None, Precision::Bf16).unwrap();
        let wide = linear_add(&x, &same, Some(&bias), None, Precision::Bf16).unwrap();
        assert_eq!(fast.to_vec2::<f32>().unwrap(), wide.to_vec2::<f32>().unwrap());
    }

    #[test]
    fn a_code_of_no_number_spoils_its_own_column_only() {
        let mut codes = vec![0x38u8; 40 * 48];
        codes[17 * 48 + 5] = 0x7f;
        codes[30 * 48 + 47] = 0xff;
        let values = Tensor::from_vec(codes, (40, 48), &Device::Cpu).unwrap();
        let weight = Fp8Weight::from_codes(values, 1.0).unwrap();
        for isa in Isa::available() {
            let y = on_cpu(isa, Precision::Full, &random(&[1, 48]), &weight, None, None).unwrap();
            for (i, y) in y.to_vec2::<f32>().unwrap()[0].iter().enumerate() {
                assert_eq!(y.is_nan(), i == 17 || i == 30, "{isa:?} column {i}: {y}");
            }
        }
    }

    #[test]
    fn views_and_other_types_of_activations_are_taken() {
        let weight = weight(21, 35, &[0.5]);
        let x = random(&[35, 3, 2]).transpose(0, 2).unwrap();
        let expected = reference::linear(&x.contiguous().unwrap(), &weight.widened().unwrap(), None).unwrap();
        let got = linear_widened(&x, &weight, None, None, Precision::Full).unwrap();
        assert!(worst(&got, &expected) < 1e-5);
        let half =
            linear_widened(&x.to_dtype(DType::F16).unwrap(), &weight, None, None, Precision::Full).unwrap();
        assert_eq!(half.dtype(), DType::F16);
        assert!(worst(&half.to_dtype(DType::F32).unwrap(), &expected) < 5e-3);
    }

    #[test]
    fn what_does_not_fit_is_refused_by_name() {
        let weight = weight(4, 3, &[1.0]);
        let of = |x: &[usize], bias: Option<&Tensor>, residual: Option<&Tensor>| {
            linear_widened(&random(x), &weight, bias, residual, Precision::Full)
        };
        assert!(of(&[2, 3], None, None).is_ok());
        for refused in [
            of(&[2, 4], None, None),
            of(&[0, 3], None, None),
            of(&[2, 3], Some(&random(&[3])), None),
            of(&[2, 3], None, Some(&random(&[1, 4]))),
            of(&[2, 3], None, Some(&random(&[2, 4]).to_dtype(DType::F16).unwrap())),
        ] {
            assert!(refused.unwrap_err().to_string().contains("linear_widened"));
        }
    }
}
