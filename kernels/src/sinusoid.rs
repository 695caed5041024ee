//! Sinusoidal embeddings of numbers, such as timesteps (Vaswani et al. 2017).

use candle_core::{Result, Tensor, bail};

use crate::reference;

/// Cosines, then sines, of each of `numbers` times `width / 2` frequencies that fall from 1 towards 1/10000;
/// `[n] -> [n, width]`, `f32`.
///
/// # Errors
/// When there are no numbers, or the width is odd or 0.
pub fn sinusoid(numbers: &Tensor, width: usize) -> Result<Tensor> {
    if numbers.rank() != 1 || numbers.elem_count() == 0 || width == 0 || !width.is_multiple_of(2) {
        bail!("sinusoid: numbers {:?} have no embedding of width {width}", numbers.shape());
    }
    #[cfg(feature = "cuda")]
    if numbers.device().is_cuda() {
        return crate::cuda::embedding::sinusoid(numbers, width / 2);
    }
    reference::sinusoid(numbers, width / 2)
}
