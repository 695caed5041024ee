//! Large pictures in overlapping tiles, by ComfyUI's rule: the mean of three passes with tall, wide and square
//! tiles, each pass blended by linear ramps over the overlaps.

use std::ops::Range;

use candle_core::{Result, Tensor, bail};

use super::{AutoencoderKl, Tiling, check_picture};

impl AutoencoderKl {
    /// [`Self::decode`] in tiles of `tile × tile` latent cells (and `tile/2 × 2·tile`, `2·tile × tile/2`) that
    /// share `overlap` cells; `overlap` must be below `tile / 2`. One tile of one row is computed at a time.
    pub fn decode_tiled(&self, latent: &Tensor, tile: usize, overlap: usize) -> Result<Tensor> {
        check_picture("latent", latent, self.config().latent_channels, 1)?;
        let scale = Scale { up: self.config().downscale(), down: 1 };
        let passes = passes(tile, overlap)?;
        // ComfyUI's order: the sum rounds the same way.
        let order = [passes.tall, passes.wide, passes.square];
        mean_of_passes(latent, &order, overlap, scale, self.config().out_channels, |x| self.decode(x))
    }

    /// [`Self::encode`] in tiles; `tile` and `overlap` are in latent cells here too, and the picture's sides
    /// must be multiples of a cell's.
    pub fn encode_tiled(&self, image: &Tensor, tile: usize, overlap: usize) -> Result<Tensor> {
        let cell = self.config().downscale();
        check_picture("image", image, self.config().in_channels, cell)?;
        check_sides(image, cell)?;
        let scale = Scale { up: 1, down: cell };
        let passes = passes(tile, overlap)?;
        let order = [passes.square, passes.wide, passes.tall].map(|[h, w]| [h * cell, w * cell]);
        let (overlap, channels) = (overlap * cell, self.config().latent_channels);
        mean_of_passes(image, &order, overlap, scale, channels, |x| self.encode(x))
    }

    /// [`Self::decode`] or [`Self::decode_tiled`], as `tiling` says.
    pub fn decode_with(&self, latent: &Tensor, tiling: Tiling) -> Result<Tensor> {
        match tiling {
            Tiling::Whole => self.decode(latent),
            Tiling::Tiles { tile, overlap } => self.decode_tiled(latent, tile, overlap),
        }
    }

    /// [`Self::encode`] or [`Self::encode_tiled`], as `tiling` says.
    pub fn encode_with(&self, image: &Tensor, tiling: Tiling) -> Result<Tensor> {
        match tiling {
            Tiling::Whole => self.encode(image),
            Tiling::Tiles { tile, overlap } => self.encode_tiled(image, tile, overlap),
        }
    }
}

/// No picture is larger; it keeps all sizes far from overflow.
pub(crate) const LARGEST_TILE: usize = 1 << 20;

/// Fails unless the picture `image`, `[b, c, h, w]`, is whole cells of `cell × cell` pixels: tiles of others do not meet.
pub(crate) fn check_sides(image: &Tensor, cell: usize) -> Result<()> {
    let (_, _, height, width) = image.dims4()?;
    if !height.is_multiple_of(cell) || !width.is_multiple_of(cell) {
        bail!("VAE: an image of {width}×{height} cannot be encoded in tiles: {cell} must divide its sides");
    }
    Ok(())
}

/// From lengths in the input to lengths in the output.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Scale {
    pub(crate) up: usize,
    pub(crate) down: usize,
}

impl Scale {
    fn of(self, length: usize) -> usize {
        length * self.up / self.down
    }
}

/// Tile sizes as `[height, width]`.
struct Passes {
    tall: [usize; 2],
    wide: [usize; 2],
    square: [usize; 2],
}

fn passes(tile: usize, overlap: usize) -> Result<Passes> {
    if tile > LARGEST_TILE || tile / 2 <= overlap {
        bail!(
            "VAE: tiles of {tile} latent cells cannot overlap by {overlap}: less than half a tile is needed"
        );
    }
    Ok(Passes { tall: [tile * 2, tile / 2], wide: [tile / 2, tile * 2], square: [tile, tile] })
}

/// The mean over `passes` (tiles of `[height, width]`, more than `overlap` each) of `input: [b, c, h, w]` put through
/// `network` tile by tile; `[b, channels, h', w']`.
pub(crate) fn mean_of_passes(
    input: &Tensor,
    passes: &[[usize; 2]],
    overlap: usize,
    scale: Scale,
    channels: usize,
    network: impl Fn(&Tensor) -> Result<Tensor>,
) -> Result<Tensor> {
    let (batch, _, height, width) = input.dims4()?;
    let size = [scale.of(height), scale.of(width)];
    let mut rows = Vec::with_capacity(batch);
    for row in 0..batch {
        let input = input.narrow(0, row, 1)?;
        let mut sum = vec![0f32; channels * size[0] * size[1]];
        for &tile in passes {
            let pass = Pass { tile, overlap, scale, channels, size };
            let picture = pass.run(&input, &network)?;
            sum.iter_mut().zip(picture).for_each(|(sum, value)| *sum += value);
        }
        sum.iter_mut().for_each(|sum| *sum /= passes.len() as f32);
        rows.push(Tensor::from_vec(sum, (1, channels, size[0], size[1]), input.device())?);
    }
    Tensor::cat(&rows, 0)
}

/// One pass over one row.
struct Pass {
    tile: [usize; 2],
    overlap: usize,
    scale: Scale,
    channels: usize,
    size: [usize; 2],
}

impl Pass {
    fn run(&self, input: &Tensor, network: &impl Fn(&Tensor) -> Result<Tensor>) -> Result<Vec<f32>> {
        let (_, _, height, width) = input.dims4()?;
        if height <= self.tile[0] && width <= self.tile[1] {
            return network(input)?.flatten_all()?.to_vec1();
        }
        let area = self.size[0] * self.size[1];
        let mut sum = vec![0f32; self.channels * area];
        let mut weights = vec![0f32; area];
        for y in spans(height, self.tile[0], self.overlap) {
            for x in spans(width, self.tile[1], self.overlap) {
                let part = input.narrow(2, y.start, y.len())?.narrow(3, x.start, x.len())?;
                let part = network(&part)?.flatten_all()?.to_vec1()?;
                self.add(&part, [&y, &x], &mut sum, &mut weights);
            }
        }
        for channel in sum.chunks_exact_mut(area) {
            channel.iter_mut().zip(&weights).for_each(|(sum, weight)| *sum /= weight);
        }
        Ok(sum)
    }

    /// Adds a tile's output, weighted, at its place.
    fn add(&self, part: &[f32], place: [&Range<usize>; 2], sum: &mut [f32], weights: &mut [f32]) {
        let [top, left] = place.map(|span| self.scale.of(span.start));
        let [height, width] = place.map(|span| self.scale.of(span.len()));
        let feather = self.scale.of(self.overlap);
        let (down, across) = (ramp(height, feather), ramp(width, feather));
        let (area, stride) = (self.size[0] * self.size[1], self.size[1]);
        for y in 0..height {
            let line = (top + y) * stride + left..(top + y) * stride + left + width;
            for (weight, &a) in weights[line.clone()].iter_mut().zip(&across) {
                *weight += down[y] * a;
            }
            for channel in 0..self.channels {
                let values = &part[(channel * height + y) * width..][..width];
                let target = &mut sum[channel * area..][line.clone()];
                for ((target, value), &a) in target.iter_mut().zip(values).zip(&across) {
                    *target += value * (down[y] * a);
                }
            }
        }
    }
}

/// Where tiles of `tile` lie along a side of `size`.
fn spans(size: usize, tile: usize, overlap: usize) -> Vec<Range<usize>> {
    if size <= tile {
        return std::iter::once(0..size).collect();
    }
    (0..size - overlap).step_by(tile - overlap).map(|start| start..(start + tile).min(size)).collect()
}

/// Blending weights along a tile's side: rising to 1 over `feather` at both ends, also at the picture's border
/// (where dividing by the sum of weights undoes it); flat if the tile is no longer than that.
fn ramp(length: usize, feather: usize) -> Vec<f32> {
    let mut weights = vec![1f32; length];
    if feather < length {
        for i in 0..feather {
            let weight = (i + 1) as f32 / feather as f32;
            weights[i] *= weight;
            weights[length - 1 - i] *= weight;
        }
    }
    weights
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tiles_cover_a_side_and_share_the_overlap() {
        assert_eq!(spans(40, 16, 4), [0..16, 12..28, 24..40]);
        assert_eq!(spans(41, 16, 4), [0..16, 12..28, 24..40, 36..41]);
        assert_eq!(spans(16, 16, 4), vec![0..16; 1]);
    }

    #[test]
    fn ramps_rise_and_fall_and_short_tiles_have_none() {
        assert_eq!(ramp(5, 2), [0.5, 1.0, 1.0, 1.0, 0.5]);
        assert_eq!(ramp(3, 2), [0.5, 1.0, 0.5]);
        assert_eq!(ramp(2, 2), [1.0, 1.0]);
    }

    #[test]
    fn blending_tiles_of_an_identity_gives_the_picture_back() {
        /// Weighted sums divided by their weights, three times: a few roundings of values up to 1.
        const TOLERANCE: f32 = 1e-6;
        let device = candle_core::Device::Cpu;
        let picture = Tensor::rand(-1f32, 1., (2, 3, 37, 50), &device).unwrap();
        let scale = Scale { up: 1, down: 1 };
        let Passes { tall, wide, square } = passes(16, 4).unwrap();
        let blended =
            mean_of_passes(&picture, &[tall, wide, square], 4, scale, 3, Tensor::contiguous).unwrap();
        let difference = (blended - picture).unwrap().abs().unwrap().flatten_all().unwrap();
        assert!(difference.max(0).unwrap().to_scalar::<f32>().unwrap() < TOLERANCE);
    }

    #[test]
    fn tiles_that_overlap_by_half_or_more_are_refused() {
        assert!(passes(16, 8).is_err());
        assert!(passes(0, 0).is_err());
        assert!(passes(usize::MAX, 1).is_err());
    }
}
