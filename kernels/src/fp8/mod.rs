//! Linear layers in 8 bits (e4m3): both factors are rounded with scales of their own, products of the codes are summed
//! in `f32`. Twice the matrix rate and half the weights of 16-bit types on cards that have it, at about 2⁻⁴ a factor.
//!
//! Weights are rounded once, activations at every call with scales found on the way ("dynamic"). On the CPU the same
//! codes are multiplied in `f32`: no faster than without, but it shows what the rounding costs.
//!
//! [`linear_widened`] keeps the weights in 8 bits and everything else as it is.

mod widened;

use candle_core::{DType, Device, Result, Storage, Tensor, bail};

pub use self::widened::linear_widened;
use crate::{e4m3, linear};

pub use e4m3::number as number_of_e4m3;

/// How scales are shared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Fp8Scaling {
    /// One for each row: of activations a token's, of weights an output channel's. Hopper and later.
    Row,
    /// One for a whole tensor. Also Ada.
    Tensor,
}

/// A linear layer's weight in 8 bits.
#[derive(Debug, Clone)]
pub struct Fp8Weight {
    /// `[out, in]`: codes, as `u8` (candle's own casts to its 8-bit type do not work on GPUs).
    values: Tensor,
    /// `[out]` or `[1]`, `f32`: what a code's number is multiplied by.
    scales: Tensor,
}

/// Sides are multiples of this: what cuBLASLt's 8-bit products ask for.
const SIDE: usize = 16;

impl Fp8Weight {
    /// Rounds `weight: [out, in]`, of `f32`, `f16` or `bf16`, with the scaling that its device takes ([`fp8_scaling`]).
    ///
    /// # Errors
    /// When the device has no 8-bit products, the weight is no matrix or of another type, or a side is no multiple of 16.
    pub fn quantize(weight: &Tensor) -> Result<Self> {
        let Some(scaling) = fp8_scaling(weight.device())? else {
            bail!(
                "this card has no 8-bit matrix products (Ada, Hopper and later have): fp8 is not available"
            );
        };
        let (out, inner) = weight.dims2()?;
        if !Self::takes(out, inner) {
            bail!("fp8: the sides of a weight {:?} are not multiples of {SIDE}", weight.shape());
        }
        let (values, scales) = quantize(weight, scaling)?;
        Ok(Self { values, scales })
    }

    /// Codes as they are in a file, `values: [out, in]` of `u8`, each standing for its number times `scale`.
    ///
    /// # Errors
    /// When `values` is no matrix of `u8`.
    pub fn from_codes(values: Tensor, scale: f32) -> Result<Self> {
        values.dims2()?;
        if values.dtype() != DType::U8 {
            bail!("fp8: codes are u8, not {:?}", values.dtype());
        }
        let scales = Tensor::from_vec(vec![scale], 1, values.device())?;
        Ok(Self { values, scales })
    }

    /// The same with as many scales as products of 8 bits take on its device ([`fp8_scaling`]).
    ///
    /// # Errors
    /// When the device has no such products.
    pub fn spread(&self) -> Result<Self> {
        let out = self.values.dim(0)?;
        match fp8_scaling(self.values.device())? {
            Some(Fp8Scaling::Row) if self.scales.elem_count() != out => {
                let scales = self.scales.broadcast_as(out)?.contiguous()?;
                Ok(Self { values: self.values.clone(), scales })
            }
            Some(_) => Ok(self.clone()),
            None => bail!("this card has no 8-bit matrix products (Ada, Hopper and later have)"),
        }
    }

    /// Whether a weight of these sides can be held so.
    pub fn takes(out: usize, inner: usize) -> bool {
        out > 0 && inner > 0 && out.is_multiple_of(SIDE) && inner.is_multiple_of(SIDE)
    }

    /// The codes, `[out, in]` of `u8`.
    pub fn values(&self) -> &Tensor {
        &self.values
    }

    /// `[out]` or `[1]`, `f32`: what the codes' numbers are multiplied by.
    pub fn scales(&self) -> &Tensor {
        &self.scales
    }

    /// How the scales are shared.
    pub fn scaling(&self) -> Fp8Scaling {
        // A side of one is refused.
        if self.scales.elem_count() == 1 { Fp8Scaling::Tensor } else { Fp8Scaling::Row }
    }

    /// Bytes of its tensors.
    pub fn bytes(&self) -> u64 {
        (self.values.elem_count() + 4 * self.scales.elem_count()) as u64
    }

    /// The weight as it is multiplied, `[out, in]` of `f32`, on the CPU.
    ///
    /// # Errors
    /// When it cannot be read from its device.
    pub fn widened(&self) -> Result<Tensor> {
        let scales = self.scales.to_device(&Device::Cpu)?.unsqueeze(1)?;
        numbers(&self.values.to_device(&Device::Cpu)?)?.broadcast_mul(&scales)
    }
}

/// Whether `device` forms 8-bit products by units of its own. The CPU does not: it imitates them.
///
/// # Errors
/// When the device cannot be asked, which is so while a graph is being captured.
pub fn supports_fp8(device: &Device) -> Result<bool> {
    Ok(device.is_cuda() && fp8_scaling(device)?.is_some())
}

/// The scaling that `device` takes; `None` where it has no 8-bit products.
///
/// # Errors
/// As [`supports_fp8`].
pub fn fp8_scaling(device: &Device) -> Result<Option<Fp8Scaling>> {
    match device {
        Device::Cpu => Ok(Some(Fp8Scaling::Row)),
        #[cfg(feature = "cuda")]
        Device::Cuda(device) => crate::cuda::matmul::fp8::scaling(device),
        _ => Ok(None),
    }
}

/// Codes of `x: [rows, width]`, `[rows, width]` of `u8`, and scales, `[rows]` or `[1]` of `f32`. A scale is the largest
/// size divided by 448; 1 where all is zero. `width` is a multiple of 16.
///
/// # Errors
/// When `x` is empty, of another rank or type, or its width is no multiple of 16.
pub fn quantize(x: &Tensor, scaling: Fp8Scaling) -> Result<(Tensor, Tensor)> {
    let (rows, width) = x.dims2()?;
    if rows == 0 || width == 0 || width % SIDE != 0 {
        bail!("fp8: {:?} is empty or its rows are no multiple of {SIDE}", x.shape());
    }
    if !matches!(x.dtype(), DType::F32 | DType::F16 | DType::BF16) {
        bail!("fp8: {:?} is not rounded to 8 bits", x.dtype());
    }
    #[cfg(feature = "cuda")]
    if x.device().is_cuda() {
        return crate::cuda::matmul::fp8::quantize(x, scaling);
    }
    let all = x.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>()?;
    let part = match scaling {
        Fp8Scaling::Row => width,
        Fp8Scaling::Tensor => all.len(),
    };
    let (mut codes, mut scales) = (Vec::with_capacity(all.len()), Vec::with_capacity(all.len() / part));
    for part in all.chunks(part) {
        let largest = part.iter().fold(0f32, |largest, x| largest.max(x.abs()));
        // As the kernel has it, to the bit.
        let (inverse, scale) =
            if largest < 1e-30 { (1.0, 1.0) } else { (e4m3::LARGEST / largest, largest / e4m3::LARGEST) };
        codes.extend(part.iter().map(|x| e4m3::code(x * inverse)));
        scales.push(scale);
    }
    let count = scales.len();
    Ok((Tensor::from_vec(codes, (rows, width), x.device())?, Tensor::from_vec(scales, count, x.device())?))
}

/// `x · weightᵀ + bias + residual` with `x` rounded to 8 bits as `weight` is, in the type of `x`; `x: [.., in]`,
/// `bias: [out]`, `residual: [.., out]` of the type of `x`.
///
/// # Errors
/// When the shapes or types do not fit each other, `x` is empty, or its device has no 8-bit products.
pub fn linear_fp8(
    x: &Tensor,
    weight: &Fp8Weight,
    bias: Option<&Tensor>,
    residual: Option<&Tensor>,
) -> Result<Tensor> {
    let (out, inner) = weight.values.dims2()?;
    let mut dims = x.dims().to_vec();
    match dims.last_mut() {
        Some(last) if *last == inner && x.elem_count() > 0 => *last = out,
        _ => bail!("linear_fp8: x {:?} and weight {:?} do not fit", x.shape(), weight.values.shape()),
    }
    if bias.is_some_and(|bias| bias.dims() != [out])
        || residual.is_some_and(|residual| residual.dims() != dims || residual.dtype() != x.dtype())
    {
        bail!(
            "linear_fp8: bias {:?} or residual {:?} does not fit {dims:?}",
            bias.map(Tensor::shape),
            residual.map(Tensor::shape)
        );
    }
    let rows = x.reshape(((), inner))?;
    let (codes, scales) = quantize(&rows, weight.scaling())?;
    #[cfg(feature = "cuda")]
    if x.device().is_cuda() {
        let x = crate::cuda::matmul::fp8::Codes { values: &codes, scales: &scales };
        let weight = crate::cuda::matmul::fp8::Codes { values: &weight.values, scales: &weight.scales };
        return crate::cuda::matmul::fp8::linear(x, weight, bias, residual, &dims, rows.dtype());
    }
    let product = linear(&numbers(&codes)?, &numbers(&weight.values)?, None)?;
    let product = product.broadcast_mul(&scales.unsqueeze(1)?)?.broadcast_mul(&weight.scales)?;
    let mut sum = product.reshape(dims)?;
    if let Some(bias) = bias {
        sum = sum.broadcast_add(&bias.to_dtype(DType::F32)?)?;
    }
    if let Some(residual) = residual {
        sum = (sum + residual.to_dtype(DType::F32)?)?;
    }
    sum.to_dtype(x.dtype())
}

/// The numbers that codes stand for, unscaled.
fn numbers(codes: &Tensor) -> Result<Tensor> {
    let codes = codes.contiguous()?;
    let (storage, layout) = codes.storage_and_layout();
    let Storage::Cpu(storage) = &*storage else { bail!("fp8: codes are widened on the CPU") };
    let all: &[u8] = storage.as_slice()?;
    let range = layout.contiguous_offsets().map_or(0..0, |(from, to)| from..to);
    let wide = all.get(range).unwrap_or_default().iter().map(|code| e4m3::number(*code)).collect::<Vec<_>>();
    Tensor::from_vec(wide, codes.shape(), &Device::Cpu)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::oracle::random;

    /// ‖a − b‖ / ‖b‖
    fn distance(a: &Tensor, b: &Tensor) -> f32 {
        let norm = |x: &Tensor| x.sqr().unwrap().sum_all().unwrap().to_scalar::<f32>().unwrap().sqrt();
        norm(&(a - b).unwrap()) / norm(b)
    }

    #[test]
    fn the_largest_of_each_row_is_kept_and_the_rest_is_near() {
        let x = (random(&[7, 64]) * 3e-4).unwrap();
        for scaling in [Fp8Scaling::Row, Fp8Scaling::Tensor] {
            let (codes, scales) = quantize(&x, scaling).unwrap();
            let back = numbers(&codes).unwrap().broadcast_mul(&scales.unsqueeze(1).unwrap()).unwrap();
            // Half a step of three bits, evenly spread: 2⁻⁴ / √3 of each.
            assert!(distance(&back, &x) < 0.04, "{scaling:?}: {}", distance(&back, &x));
            let peak = |x: &Tensor| x.abs().unwrap().max(1).unwrap().to_vec1::<f32>().unwrap();
            if scaling == Fp8Scaling::Row {
                for (got, expected) in peak(&back).into_iter().zip(peak(&x)) {
                    assert!((got - expected).abs() <= 1e-6 * expected, "{got} for {expected}");
                }
            }
        }
    }

    #[test]
    fn zeros_stay_zeros_and_what_is_no_number_spoils_its_own_row_only() {
        let mut data = vec![0f32; 48];
        data[17] = f32::NAN;
        let x = Tensor::from_vec(data, (3, 16), &Device::Cpu).unwrap();
        let weight = Fp8Weight::quantize(&random(&[16, 16])).unwrap();
        let y = linear_fp8(&x, &weight, None, None).unwrap().to_vec2::<f32>().unwrap();
        assert!(y[0].iter().chain(&y[2]).all(|y| *y == 0.0));
        assert!(y[1].iter().all(|y| y.is_nan()));
    }

    #[test]
    fn a_product_in_8_bits_is_the_product_of_what_was_rounded() {
        let (x, weight) = (random(&[2, 9, 320]), random(&[48, 320]));
        let (bias, residual) = (random(&[48]), random(&[2, 9, 48]));
        let rounded = Fp8Weight::quantize(&weight).unwrap();
        let y = linear_fp8(&x, &rounded, Some(&bias), Some(&residual)).unwrap();
        let (codes, scales) = quantize(&x.reshape((18, 320)).unwrap(), Fp8Scaling::Row).unwrap();
        let wide = numbers(&codes).unwrap().broadcast_mul(&scales.unsqueeze(1).unwrap()).unwrap();
        let expected =
            linear(&wide.reshape((2, 9, 320)).unwrap(), &rounded.widened().unwrap(), Some(&bias)).unwrap();
        let expected = (expected + &residual).unwrap();
        assert!(distance(&y, &expected) < 1e-6, "{}", distance(&y, &expected));
        let exact = (linear(&x, &weight, Some(&bias)).unwrap() + residual).unwrap();
        // Two factors with 2.3 % of error each, independent in every product.
        assert!(distance(&y, &exact) < 0.05, "{}", distance(&y, &exact));
        assert!(distance(&y, &exact) > 1e-3, "nothing was rounded");
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        assert!(Fp8Weight::quantize(&random(&[16, 24])).is_err());
        assert!(Fp8Weight::quantize(&random(&[24, 16])).is_err());
        assert!(Fp8Weight::quantize(&random(&[16, 16, 1])).is_err());
        assert!(Fp8Weight::quantize(&random(&[16, 16]).to_dtype(DType::U32).unwrap()).is_err());
        let weight = Fp8Weight::quantize(&random(&[32, 16])).unwrap();
        assert!(linear_fp8(&random(&[3, 16]), &weight, None, None).is_ok());
        assert!(linear_fp8(&random(&[16]), &weight, None, None).is_ok());
        assert!(linear_fp8(&random(&[3, 32]), &weight, None, None).is_err());
        assert!(linear_fp8(&random(&[3, 16]), &weight, Some(&random(&[16])), None).is_err());
        assert!(linear_fp8(&random(&[3, 16]), &weight, None, Some(&random(&[3, 16]))).is_err());
    }
}
