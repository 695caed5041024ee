//! Pixels into channels and back (torch's `pixel_unshuffle` and `pixel_shuffle`), and the rows and columns that are
//! added where a network wants sides of another size. Channels-last throughout.

use candle_core::{Result, Tensor};

/// `[b, h·r, w·r, c] -> [b, h, w, c·r·r]`.
pub(super) fn unshuffle(x: &Tensor, r: usize) -> Result<Tensor> {
    let (b, h, w, c) = x.dims4()?;
    let (h, w) = (h / r, w / r);
    x.reshape((b, h, r, w, r, c))?.permute((0, 1, 3, 5, 2, 4))?.contiguous()?.reshape((b, h, w, c * r * r))
}

/// `[b, h, w, c·r·r] -> [b, h·r, w·r, c]`.
pub(super) fn shuffle(x: &Tensor, r: usize) -> Result<Tensor> {
    let (b, h, w, c) = x.dims4()?;
    let c = c / (r * r);
    x.reshape((b, h, w, c, r, r))?.permute((0, 1, 4, 2, 5, 3))?.contiguous()?.reshape((b, h * r, w * r, c))
}

/// Every pixel `r × r` times.
pub(super) fn repeat(x: &Tensor, r: usize) -> Result<Tensor> {
    let (b, h, w, c) = x.dims4()?;
    let x = x.reshape((b, h, 1, w, 1, c))?.broadcast_as((b, h, r, w, r, c))?;
    x.contiguous()?.reshape((b, h * r, w * r, c))
}

/// Sides brought to at least `least` and a multiple of `multiple` by mirrored rows below and columns to the right;
/// where a picture is too small for that, its last ones are repeated.
pub(super) fn padded(x: &Tensor, least: usize, multiple: usize) -> Result<Tensor> {
    let (_, h, w, _) = x.dims4()?;
    let goal = |side: usize| side.max(least).next_multiple_of(multiple);
    let mut x = x.clone();
    for (axis, side) in [(1, h), (2, w)] {
        if goal(side) > side {
            let places: Vec<u32> = (0..goal(side)).map(|place| mirrored(place, side) as u32).collect();
            let places = Tensor::new(places, x.device())?;
            x = x.contiguous()?.index_select(&places, axis)?;
        }
    }
    Ok(x)
}

fn mirrored(place: usize, side: usize) -> usize {
    if place < side { place } else { (2 * side - 2).saturating_sub(place) }
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    #[test]
    fn shuffling_undoes_unshuffling() {
        let x = Tensor::rand(0f32, 1.0, (2, 8, 12, 3), &Device::Cpu).unwrap();
        for r in [1, 2, 4] {
            let there = unshuffle(&x, r).unwrap();
            assert_eq!(there.dims(), [2, 8 / r, 12 / r, 3 * r * r]);
            let back = shuffle(&there, r).unwrap();
            let (x, back) = (x.flatten_all().unwrap(), back.flatten_all().unwrap());
            assert_eq!(x.to_vec1::<f32>().unwrap(), back.to_vec1::<f32>().unwrap());
        }
    }

    #[test]
    fn rows_are_mirrored_and_then_repeated() {
        let of =
            |side: usize, count: usize| -> Vec<usize> { (0..count).map(|i| mirrored(i, side)).collect() };
        assert_eq!(of(3, 4), [0, 1, 2, 1]);
        assert_eq!(of(2, 4), [0, 1, 0, 0]);
        assert_eq!(of(1, 4), [0, 0, 0, 0]);
    }
}
