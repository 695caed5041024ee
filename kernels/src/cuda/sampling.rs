//! Arithmetic of denoising. Addresses and factors go as arguments of the launch, so that no copy from the host is
//! waited for.

use candle_core::{DType, Error, Result, Tensor, bail};
use cudarc::driver::DeviceRepr;

use super::compile::{Source, function};
use super::launch::{self, Dense, launch};

const SOURCE: Source = Source { name: "sampling", text: include_str!("../../cuda/sampling.cu") };
const THREADS: u32 = 256;
/// Tensors of one launch (the kernels' `MOST_TERMS` and `MOST_ROWS`).
const MOST_TERMS: usize = 4;
const MOST_ROWS: usize = 64;

/// The kernels' `Terms`.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
struct Terms {
    at: [u64; MOST_TERMS],
    factor: [f32; MOST_TERMS],
}

// SAFETY: plain numbers, laid out as the kernels' structure of the same name.
unsafe impl DeviceRepr for Terms {}

/// The kernels' `Latents`.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
struct Latents {
    at: [u64; MOST_ROWS],
    factor: [f32; MOST_ROWS],
    of_output: [f32; MOST_ROWS],
}

// SAFETY: plain numbers, laid out as the kernels' structure of the same name.
unsafe impl DeviceRepr for Latents {}

fn number(n: usize) -> Result<u32> {
    u32::try_from(n).map_err(Error::wrap)
}

/// `uncond + (cond - uncond) · scale`, of one shape and type.
pub(crate) fn guide(cond: &Tensor, uncond: &Tensor, scale: f64) -> Result<Tensor> {
    let (device, dtype, length) = (launch::device(cond)?, cond.dtype(), cond.elem_count());
    let (cond, uncond) = (Dense::of(cond)?, Dense::of(uncond)?);
    let y = Dense::unset(cond.tensor().shape(), dtype, cond.tensor().device())?;
    let function = function(&device, SOURCE, &[launch::element(dtype)?], "guide")?;
    let config = launch::blocks(length.div_ceil(16 / dtype.size_in_bytes()), THREADS)?;
    launch!(
        device,
        function,
        config,
        cond.address(),
        uncond.address(),
        y.address(),
        length as u64,
        scale as f32,
    )?;
    Ok(y.into_tensor())
}

/// `Σ factor · tensor`, of one shape and type; at least one.
pub(crate) fn linear_combination(terms: &[(&Tensor, f64)]) -> Result<Tensor> {
    let (now, later) = terms.split_at(terms.len().min(MOST_TERMS));
    let Some((first, _)) = now.first() else { bail!("linear_combination: nothing to combine") };
    let (device, dtype, length) = (launch::device(first)?, first.dtype(), first.elem_count());
    let tensors = now.iter().map(|(tensor, _)| Dense::of(tensor)).collect::<Result<Vec<_>>>()?;
    let mut of_launch = Terms { at: [0; MOST_TERMS], factor: [0.0; MOST_TERMS] };
    for (i, (tensor, (_, factor))) in tensors.iter().zip(now).enumerate() {
        of_launch.at[i] = tensor.address();
        of_launch.factor[i] = *factor as f32;
    }
    let y = Dense::unset(first.shape(), dtype, first.device())?;
    let function = function(&device, SOURCE, &[launch::element(dtype)?], "linear_combination")?;
    let config = launch::blocks(length.div_ceil(16 / dtype.size_in_bytes()), THREADS)?;
    launch!(device, function, config, of_launch, now.len() as i32, y.address(), length as u64)?;
    let sum = y.into_tensor();
    if later.is_empty() {
        return Ok(sum);
    }
    let rest: Vec<_> = std::iter::once((&sum, 1.0)).chain(later.iter().copied()).collect();
    linear_combination(&rest)
}

/// Latents of one shape `[c, h, w]` as arguments, at most [`MOST_ROWS`], and what keeps them where they are.
fn latents(rows: &[(&Tensor, f64, f64)]) -> Result<(Latents, Vec<Dense>)> {
    let mut latents = Latents { at: [0; MOST_ROWS], factor: [0.0; MOST_ROWS], of_output: [0.0; MOST_ROWS] };
    let tensors = rows.iter().map(|(latent, ..)| Dense::of(latent)).collect::<Result<Vec<_>>>()?;
    for (i, (tensor, (_, factor, of_output))) in tensors.iter().zip(rows).enumerate() {
        latents.at[i] = tensor.address();
        latents.factor[i] = *factor as f32;
        latents.of_output[i] = *of_output as f32;
    }
    Ok((latents, tensors))
}

/// `n` latents `[c, h, w]` of `f32`, each times its factor, as `[n, h, w, c]` of `dtype`; the second factors are not
/// looked at.
pub(crate) fn scale_latents(rows: &[(&Tensor, f64, f64)], dtype: DType) -> Result<Tensor> {
    let Some((first, ..)) = rows.first() else { bail!("scale_latents: there are no latents") };
    let device = launch::device(first)?;
    let (channels, height, width) = first.dims3()?;
    let pixels = height * width;
    let y = Dense::unset((rows.len(), height, width, channels), dtype, first.device())?;
    let function = function(&device, SOURCE, &[launch::element(dtype)?], "scale_latents")?;
    for (i, part) in rows.chunks(MOST_ROWS).enumerate() {
        let (latents, _kept) = latents(part)?;
        let start = y.address() + (i * MOST_ROWS * pixels * channels * dtype.size_in_bytes()) as u64;
        let config = launch::blocks(part.len() * pixels, THREADS)?;
        let function = function.clone();
        launch!(
            device,
            function,
            config,
            latents,
            start,
            number(part.len())?,
            number(pixels)?,
            number(channels)?,
        )?;
    }
    Ok(y.into_tensor())
}

/// `latent · factor + output · of_output` of each row, `[n, c, h, w]` of `f32`, from an `output: [n, h, w, c]`.
pub(crate) fn denoised_latents(output: &Tensor, rows: &[(&Tensor, f64, f64)]) -> Result<Tensor> {
    let device = launch::device(output)?;
    let (n, height, width, channels) = output.dims4()?;
    let (pixels, dtype) = (height * width, output.dtype());
    let output = Dense::of(output)?;
    let y = Dense::unset((n, channels, height, width), DType::F32, output.tensor().device())?;
    let function = function(&device, SOURCE, &[launch::element(dtype)?], "denoised_latents")?;
    for (i, part) in rows.chunks(MOST_ROWS).enumerate() {
        let (latents, _kept) = latents(part)?;
        let skipped = i * MOST_ROWS * pixels * channels;
        let from = output.address() + (skipped * dtype.size_in_bytes()) as u64;
        let to = y.address() + (skipped * DType::F32.size_in_bytes()) as u64;
        let config = launch::blocks(part.len() * pixels, THREADS)?;
        let function = function.clone();
        launch!(
            device,
            function,
            config,
            latents,
            from,
            to,
            number(part.len())?,
            number(pixels)?,
            number(channels)?,
        )?;
    }
    Ok(y.into_tensor())
}
