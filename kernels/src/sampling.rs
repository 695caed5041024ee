//! Arithmetic between two calls of a network: a step batch's latents in, guidance and samplers' updates out.
//!
//! On the CPU each is the plain composition, in the order in which it is written here, so that pictures stay what they
//! are. On CUDA each is one pass over the data, and factors and addresses reach the device with the launch itself:
//! nothing waits for a copy from the host.

use candle_core::{DType, Result, Tensor, bail};

use crate::reference;

/// Classifier-free guidance, `uncond + (cond - uncond) · scale`; of one shape and type.
///
/// # Errors
/// When the shapes or types differ, or there are no elements.
pub fn guide(cond: &Tensor, uncond: &Tensor, scale: f64) -> Result<Tensor> {
    check_alike("guide", cond, uncond)?;
    #[cfg(feature = "cuda")]
    if crate::cuda::launch::takes(cond) {
        return crate::cuda::sampling::guide(cond, uncond, scale);
    }
    reference::guide(cond, uncond, scale)
}

/// `Σ factor · tensor`, added in order; of one shape and type. A factor of 1 multiplies nothing. On CUDA one pass for up
/// to four terms, one more for each three that follow.
///
/// # Errors
/// When there are no terms or no elements, or the shapes or types differ.
pub fn linear_combination(terms: &[(&Tensor, f64)]) -> Result<Tensor> {
    let Some((first, _)) = terms.first() else { bail!("linear_combination: nothing to combine") };
    for (term, _) in terms {
        check_alike("linear_combination", first, term)?;
    }
    #[cfg(feature = "cuda")]
    if crate::cuda::launch::takes(first) {
        return crate::cuda::sampling::linear_combination(terms);
    }
    reference::linear_combination(terms)
}

/// A step batch's network input: `n` latents `[c, h, w]` of `f32`, each times its own factor, as `[n, h, w, c]` of
/// `dtype`.
///
/// # Errors
/// When there are no latents, they are not of one such shape, or `dtype` is no type of activations.
pub fn scale_latents(latents: &[(&Tensor, f64)], dtype: DType) -> Result<Tensor> {
    check_latents("scale_latents", latents.iter().map(|(latent, _)| *latent))?;
    if !matches!(dtype, DType::F32 | DType::F16 | DType::BF16) {
        bail!("scale_latents: {dtype:?} is no type of activations");
    }
    #[cfg(feature = "cuda")]
    if latents.iter().all(|(latent, _)| crate::cuda::launch::takes(latent)) {
        let rows: Vec<_> = latents.iter().map(|&(latent, factor)| (latent, factor, 0.0)).collect();
        return crate::cuda::sampling::scale_latents(&rows, dtype);
    }
    reference::scale_latents(latents, dtype)
}

/// What a step batch's network output means: of each row `latent · factor + output · of_output`, `[c, h, w]` of
/// `f32`, from an `output: [n, h, w, c]` and `n` latents `[c, h, w]` of `f32` with their two factors. For epsilon
/// these are 1 and -σ. A factor of 0 leaves its side out, and 1 multiplies nothing.
///
/// # Errors
/// When there are no latents, or the shapes do not fit.
pub fn denoised_latents(output: &Tensor, latents: &[(&Tensor, f64, f64)]) -> Result<Vec<Tensor>> {
    let (c, h, w) = check_latents("denoised_latents", latents.iter().map(|(latent, ..)| *latent))?;
    if output.dims() != [latents.len(), h, w, c] {
        bail!(
            "denoised_latents: output {:?} does not fit {} latents {:?}",
            output.shape(),
            latents.len(),
            [c, h, w]
        );
    }
    #[cfg(feature = "cuda")]
    if crate::cuda::launch::takes(output) {
        return rows(&crate::cuda::sampling::denoised_latents(output, latents)?);
    }
    rows(&reference::denoised_latents(output, latents)?)
}

fn rows(batch: &Tensor) -> Result<Vec<Tensor>> {
    (0..batch.dim(0)?).map(|row| batch.get(row)).collect()
}

fn check_alike(operation: &str, a: &Tensor, b: &Tensor) -> Result<()> {
    if a.elem_count() == 0 || a.dims() != b.dims() || a.dtype() != b.dtype() {
        bail!(
            "{operation}: {:?} of {:?} and {:?} of {:?} do not fit",
            a.shape(),
            a.dtype(),
            b.shape(),
            b.dtype()
        );
    }
    Ok(())
}

/// The one shape of all of them.
fn check_latents<'t>(
    operation: &str,
    mut latents: impl Iterator<Item = &'t Tensor>,
) -> Result<(usize, usize, usize)> {
    let Some(first) = latents.next() else { bail!("{operation}: there are no latents") };
    if first.rank() != 3 || first.dtype() != DType::F32 || first.elem_count() == 0 {
        bail!("{operation}: {:?} of {:?} is no latent [c, h, w] of f32", first.shape(), first.dtype());
    }
    for latent in latents {
        check_alike(operation, first, latent)?;
    }
    first.dims3()
}
