//! Latents as tokens, one a patch, and back.

use candle_core::{Result, Tensor};

/// The grid of tokens that a latent of `height × width` cells becomes.
pub(super) fn grid(height: usize, width: usize, patch: usize) -> (usize, usize) {
    (height.div_ceil(patch), width.div_ceil(patch))
}

/// `[b, c, h, w] -> [b, rows · columns, c · patch²]`. Sides that the patch does not divide go on from their other end, as
/// in ComfyUI.
pub(super) fn pack(latent: &Tensor, patch: usize) -> Result<Tensor> {
    let (batch, channels, height, width) = latent.dims4()?;
    let (rows, columns) = grid(height, width, patch);
    let latent = go_on(&go_on(latent, 2, rows * patch)?, 3, columns * patch)?;
    latent
        .contiguous()?
        .reshape(&[batch, channels, rows, patch, columns, patch][..])?
        .permute([0, 2, 4, 1, 3, 5])?
        .contiguous()?
        .reshape((batch, rows * columns, channels * patch * patch))
}

/// The first `rows · columns` tokens as `[b, c, height, width]`, what was padded cut off.
pub(super) fn unpack(tokens: &Tensor, height: usize, width: usize, patch: usize) -> Result<Tensor> {
    let (batch, _, numbers) = tokens.dims3()?;
    let (rows, columns) = grid(height, width, patch);
    tokens
        .narrow(1, 0, rows * columns)?
        .contiguous()?
        .reshape(&[batch, rows, columns, numbers / (patch * patch), patch, patch][..])?
        .permute([0, 3, 1, 4, 2, 5])?
        .contiguous()?
        .reshape((batch, numbers / (patch * patch), rows * patch, columns * patch))?
        .narrow(2, 0, height)?
        .narrow(3, 0, width)?
        .contiguous()
}

/// `x` with its dimension `axis` repeated from its start until it has `length` places.
fn go_on(x: &Tensor, axis: usize, length: usize) -> Result<Tensor> {
    let own = x.dim(axis)?;
    if own == length {
        return Ok(x.clone());
    }
    let places = (0..length).map(|place| (place % own.max(1)) as u32).collect::<Vec<_>>();
    x.contiguous()?.index_select(&Tensor::from_vec(places, length, x.device())?, axis)
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    fn counted(shape: &[usize]) -> Tensor {
        let count = shape.iter().product::<usize>();
        Tensor::arange(0f32, count as f32, &Device::Cpu).unwrap().reshape(shape).unwrap()
    }

    #[test]
    fn a_token_holds_its_patch_channel_by_channel() {
        let tokens = pack(&counted(&[1, 2, 2, 4]), 2).unwrap();
        let expected = [[0f32, 1., 4., 5., 8., 9., 12., 13.], [2., 3., 6., 7., 10., 11., 14., 15.]];
        assert_eq!(tokens.to_vec3::<f32>().unwrap(), [expected.map(Vec::from).to_vec()]);
    }

    #[test]
    fn odd_sides_go_on_from_their_other_end() {
        let tokens = pack(&counted(&[1, 1, 3, 1]), 2).unwrap();
        assert_eq!(tokens.to_vec3::<f32>().unwrap(), [[[0f32, 0., 1., 1.], [2., 2., 0., 0.]]]);
        let tokens = pack(&counted(&[1, 1, 1, 2]), 3).unwrap();
        assert_eq!(tokens.to_vec3::<f32>().unwrap(), [[[0f32, 1., 0., 0., 1., 0., 0., 1., 0.]]]);
    }

    #[test]
    fn what_is_packed_comes_back() {
        for (shape, patch) in [([2, 3, 4, 6], 2), ([1, 2, 5, 7], 2), ([1, 1, 1, 1], 2), ([1, 2, 4, 4], 3)] {
            let latent = counted(&shape);
            let back = unpack(&pack(&latent, patch).unwrap(), shape[2], shape[3], patch).unwrap();
            assert_eq!(back.dims(), shape);
            assert_eq!(
                back.flatten_all().unwrap().to_vec1::<f32>().unwrap(),
                latent.flatten_all().unwrap().to_vec1::<f32>().unwrap()
            );
        }
    }
}
