//! Pictures, masks and latents as one thing: values `[count, height, width, channels]` that can be cut, turned, scaled
//! and put on each other. Nodes take a [`Grid`] of what they are given and make what they give of another one. Nothing
//! larger than the bounds is ever allocated.

use std::borrow::Cow;

use candle_core::{Device, Tensor};
use darkroom_pipelines::resample::{self, Crop, Filter, Raster};
use rayon::prelude::*;

use crate::workflow::NodeError;
use crate::workflow::image::{Image, Mask};
use crate::workflow::latent::Latent;

/// The longest side of a picture or a mask, pixels (ComfyUI's `MAX_RESOLUTION`).
pub(in crate::workflow) const LONGEST_SIDE: usize = 16384;
/// The most memory that one value may take, bytes.
pub(in crate::workflow) const MOST_BYTES: usize = 2 << 30;

/// How many values a batch of this shape has.
///
/// # Errors
/// When a side is 0 or longer than [`LONGEST_SIDE`], or all would take more than [`MOST_BYTES`].
pub(in crate::workflow) fn check_size(
    count: usize,
    height: usize,
    width: usize,
    channels: usize,
) -> Result<usize, NodeError> {
    if height == 0 || width == 0 || count == 0 || channels == 0 {
        return Err(NodeError::Failed(format!("the result would be empty: {count} of {width}x{height}")));
    }
    if height > LONGEST_SIDE || width > LONGEST_SIDE {
        return Err(NodeError::Failed(format!(
            "the result would be {width}x{height}; no side may be longer than {LONGEST_SIDE}"
        )));
    }
    let values = [height, width, channels].into_iter().try_fold(count, usize::checked_mul);
    values.filter(|values| *values <= MOST_BYTES / size_of::<f32>()).ok_or_else(|| {
        NodeError::Failed(format!(
            "{count} of {width}x{height} with {channels} channels are more than the {} MiB that one value may take; \
             make the batch or the size smaller",
            MOST_BYTES >> 20
        ))
    })
}

/// Values `[count, height, width, channels]`; there is at least one. Of a latent the channels are its own, of a mask
/// there is one.
#[derive(Debug, Clone)]
pub(super) struct Grid<'a> {
    pub(super) count: usize,
    pub(super) height: usize,
    pub(super) width: usize,
    pub(super) channels: usize,
    data: Cow<'a, [f32]>,
}

impl<'a> Grid<'a> {
    /// Values of this shape, which [`check_size`] has let through.
    pub(super) fn new(
        count: usize,
        height: usize,
        width: usize,
        channels: usize,
        data: impl Into<Cow<'a, [f32]>>,
    ) -> Result<Self, NodeError> {
        let data = data.into();
        if data.len() != check_size(count, height, width, channels)? {
            return Err(NodeError::Failed(format!(
                "{} values do not fill {count} of {width}x{height} with {channels} channels",
                data.len()
            )));
        }
        Ok(Self { count, height, width, channels, data })
    }

    /// The same value everywhere.
    pub(super) fn filled(
        count: usize,
        height: usize,
        width: usize,
        channels: usize,
        value: f32,
    ) -> Result<Self, NodeError> {
        let values = check_size(count, height, width, channels)?;
        Self::new(count, height, width, channels, vec![value; values])
    }

    pub(super) fn of_image(image: &'a Image) -> Result<Self, NodeError> {
        Self::new(image.count(), image.height(), image.width(), image.channels(), image.data())
    }

    pub(super) fn of_mask(mask: &'a Mask) -> Result<Self, NodeError> {
        Self::new(mask.count(), mask.height(), mask.width(), 1, mask.data())
    }

    /// The samples, their channels last.
    pub(super) fn of_latent(latent: &Latent) -> Result<Self, NodeError> {
        let (count, channels, height, width) = latent.samples.dims4().map_err(|_| {
            let shape = latent.samples.dims();
            NodeError::Failed(format!(
                "a latent of shape {shape:?}; [batch, channels, height, width] is taken"
            ))
        })?;
        check_size(count, height, width, channels)?;
        let data: Vec<f32> = latent.samples.permute((0, 2, 3, 1))?.flatten_all()?.to_vec1()?;
        Self::new(count, height, width, channels, data)
    }

    pub(super) fn into_image(self) -> Result<Image, NodeError> {
        Image::new(self.count, self.height, self.width, self.channels, self.data.into_owned())
            .ok_or_else(|| NodeError::Failed("the picture's size does not fit its values".into()))
    }

    pub(super) fn into_mask(self) -> Result<Mask, NodeError> {
        Mask::new(self.count * self.channels, self.height, self.width, self.data.into_owned())
            .ok_or_else(|| NodeError::Failed("the mask's size does not fit its values".into()))
    }

    /// `[count, channels, height, width]`.
    pub(super) fn into_samples(self) -> Result<Tensor, NodeError> {
        let shape = (self.count, self.height, self.width, self.channels);
        let tensor = Tensor::from_vec(self.data.into_owned(), shape, &Device::Cpu)?;
        Ok(tensor.permute((0, 3, 1, 2))?.contiguous()?)
    }

    pub(super) fn data(&self) -> &[f32] {
        &self.data
    }

    /// The values, to be changed in place.
    pub(super) fn data_mut(&mut self) -> &mut Vec<f32> {
        self.data.to_mut()
    }

    /// Those of number `index` of the batch.
    pub(super) fn one(&self, index: usize) -> &[f32] {
        let size = self.height * self.width * self.channels;
        &self.data[index * size..(index + 1) * size]
    }

    /// Those of row `y` of number `index`.
    pub(super) fn row(&self, index: usize, y: usize) -> &[f32] {
        let size = self.width * self.channels;
        &self.one(index)[y * size..(y + 1) * size]
    }

    /// Width, height and channels.
    pub(super) fn shape(&self) -> (usize, usize, usize) {
        (self.width, self.height, self.channels)
    }

    /// Every value changed by itself.
    pub(super) fn map(&self, change: impl Fn(f32) -> f32 + Sync) -> Grid<'static> {
        let data: Vec<f32> = self.data.par_iter().map(|value| change(*value)).collect();
        Grid { data: Cow::Owned(data), ..self.owned_shape() }
    }

    /// Each value made of those at the same place here and in `other`, which has the same shape or is one for the
    /// whole batch.
    pub(super) fn zip(
        &self,
        other: &Grid<'_>,
        mix: impl Fn(f32, f32) -> f32 + Sync,
    ) -> Result<Grid<'static>, NodeError> {
        if self.shape() != other.shape() {
            return Err(mismatch(self, other));
        }
        let count = match (self.count, other.count) {
            (a, b) if a == b => a,
            (a, 1) => a,
            (1, b) => b,
            _ => return Err(mismatch(self, other)),
        };
        let values = check_size(count, self.height, self.width, self.channels)?;
        let size = values / count;
        let mut data = vec![0.0; values];
        data.par_chunks_mut(size).enumerate().for_each(|(i, out)| {
            let pairs = self.one(i % self.count).iter().zip(other.one(i % other.count));
            out.iter_mut().zip(pairs).for_each(|(out, (a, b))| *out = mix(*a, *b));
        });
        Grid::new(count, self.height, self.width, self.channels, data)
    }

    /// At another size (ComfyUI's `common_upscale`).
    pub(super) fn scaled(
        &self,
        width: usize,
        height: usize,
        filter: Filter,
        crop: Crop,
    ) -> Result<Grid<'static>, NodeError> {
        self.resampled(width, height, |raster| resample::scale(raster, width, height, filter, crop))
    }

    /// The same by `bislerp`.
    pub(super) fn bislerped(
        &self,
        width: usize,
        height: usize,
        crop: Crop,
    ) -> Result<Grid<'static>, NodeError> {
        self.resampled(width, height, |raster| resample::bislerp(raster, width, height, crop))
    }

    fn resampled(
        &self,
        width: usize,
        height: usize,
        change: impl Fn(Raster<'_>) -> Vec<f32>,
    ) -> Result<Grid<'static>, NodeError> {
        let values = check_size(self.count, height, width, self.channels)?;
        // A sliver that is scaled along one side first is in between much larger than either end.
        check_size(1, self.height, width, self.channels)?;
        let mut data = Vec::with_capacity(values);
        for i in 0..self.count {
            let raster = Raster::new(self.one(i), self.width, self.height, self.channels);
            data.extend(raster.map(&change).unwrap_or_default());
        }
        Grid::new(self.count, height, width, self.channels, data)
    }

    /// The part of these columns and rows that lies inside.
    pub(super) fn cut(
        &self,
        columns: std::ops::Range<usize>,
        rows: std::ops::Range<usize>,
    ) -> Result<Grid<'static>, NodeError> {
        let columns = columns.start.min(self.width)..columns.end.min(self.width);
        let rows = rows.start.min(self.height)..rows.end.min(self.height);
        let values = check_size(self.count, rows.len(), columns.len(), self.channels)?;
        let mut data = Vec::with_capacity(values);
        for i in 0..self.count {
            for y in rows.clone() {
                let row = self.row(i, y);
                data.extend_from_slice(&row[columns.start * self.channels..columns.end * self.channels]);
            }
        }
        Grid::new(self.count, rows.len(), columns.len(), self.channels, data)
    }

    /// Each pixel of a batch of `height` × `width` from another place of the same number: `(x, y)` by `(x, y)`.
    fn rearranged(
        &self,
        width: usize,
        height: usize,
        place: impl Fn(usize, usize) -> (usize, usize) + Sync,
    ) -> Result<Grid<'static>, NodeError> {
        let mut data = vec![0.0; check_size(self.count, height, width, self.channels)?];
        data.par_chunks_mut(width * self.channels).enumerate().for_each(|(line, out)| {
            let one = self.one(line / height);
            for (x, pixel) in out.chunks_exact_mut(self.channels).enumerate() {
                let (from_x, from_y) = place(x, line % height);
                pixel
                    .copy_from_slice(&one[(from_y * self.width + from_x) * self.channels..][..self.channels]);
            }
        });
        Grid::new(self.count, height, width, self.channels, data)
    }

    /// Upside down.
    pub(super) fn flipped_vertically(&self) -> Result<Grid<'static>, NodeError> {
        self.rearranged(self.width, self.height, |x, y| (x, self.height - 1 - y))
    }

    /// As in a mirror.
    pub(super) fn flipped_horizontally(&self) -> Result<Grid<'static>, NodeError> {
        self.rearranged(self.width, self.height, |x, y| (self.width - 1 - x, y))
    }

    /// Turned clockwise by so many quarters.
    pub(super) fn turned(&self, quarters: usize) -> Result<Grid<'static>, NodeError> {
        let (right, bottom) = (self.width - 1, self.height - 1);
        match quarters % 4 {
            1 => self.rearranged(self.height, self.width, |x, y| (y, bottom - x)),
            2 => self.rearranged(self.width, self.height, |x, y| (right - x, bottom - y)),
            3 => self.rearranged(self.height, self.width, |x, y| (right - y, x)),
            _ => self.rearranged(self.width, self.height, |x, y| (x, y)),
        }
    }

    /// Numbers `start` to `start + length` of the batch.
    pub(super) fn part(&self, start: usize, length: usize) -> Result<Grid<'static>, NodeError> {
        let size = self.height * self.width * self.channels;
        let range = start.min(self.count)..start.saturating_add(length).min(self.count);
        let data = self.data[range.start * size..range.end * size].to_vec();
        Grid::new(range.len(), self.height, self.width, self.channels, data)
    }

    /// The whole batch so many times.
    pub(super) fn repeated(&self, times: usize) -> Result<Grid<'static>, NodeError> {
        self.with_count(self.count.saturating_mul(times))
    }

    /// So many of the batch, from its beginning again where it has fewer (ComfyUI's `repeat_to_batch_size`).
    pub(super) fn with_count(&self, count: usize) -> Result<Grid<'static>, NodeError> {
        let mut data = Vec::with_capacity(check_size(count, self.height, self.width, self.channels)?);
        for i in 0..count {
            data.extend_from_slice(self.one(i % self.count));
        }
        Grid::new(count, self.height, self.width, self.channels, data)
    }

    /// All of them in one batch.
    pub(super) fn batched(grids: &[Grid<'_>]) -> Result<Grid<'static>, NodeError> {
        let first = grids.first().ok_or_else(|| NodeError::Failed("nothing to put in a batch".into()))?;
        if let Some(other) = grids.iter().find(|grid| grid.shape() != first.shape()) {
            return Err(mismatch(first, other));
        }
        let count = grids.iter().map(|grid| grid.count).sum();
        let mut data = Vec::with_capacity(check_size(count, first.height, first.width, first.channels)?);
        grids.iter().for_each(|grid| data.extend_from_slice(&grid.data));
        Grid::new(count, first.height, first.width, first.channels, data)
    }

    /// With `more` channels after the last, of one value.
    pub(super) fn with_more_channels(&self, more: usize, value: f32) -> Result<Grid<'static>, NodeError> {
        let channels = self.channels + more;
        let mut data = Vec::with_capacity(check_size(self.count, self.height, self.width, channels)?);
        for pixel in self.data.chunks_exact(self.channels) {
            data.extend_from_slice(pixel);
            data.extend(std::iter::repeat_n(value, more));
        }
        Grid::new(self.count, self.height, self.width, channels, data)
    }

    /// The first `channels` of them.
    pub(super) fn first_channels(&self, channels: usize) -> Result<Grid<'static>, NodeError> {
        let channels = channels.min(self.channels);
        check_size(self.count, self.height, self.width, channels)?;
        let pixels = self.data.chunks_exact(self.channels);
        let data: Vec<f32> = pixels.flat_map(|pixel| pixel[..channels].iter().copied()).collect();
        Grid::new(self.count, self.height, self.width, channels, data)
    }

    /// One of them alone.
    pub(super) fn channel(&self, channel: usize) -> Result<Grid<'static>, NodeError> {
        if channel >= self.channels {
            let channels = self.channels;
            return Err(NodeError::Failed(format!("the picture has {channels} channels and no more")));
        }
        let data: Vec<f32> = self.data.iter().skip(channel).step_by(self.channels).copied().collect();
        Grid::new(self.count, self.height, self.width, 1, data)
    }

    /// On a larger grid of one value, at `x`, `y`.
    pub(super) fn placed(
        &self,
        width: usize,
        height: usize,
        (x, y): (usize, usize),
        value: f32,
    ) -> Result<Grid<'static>, NodeError> {
        let mut out = Grid::filled(self.count, height, width, self.channels, value)?;
        let channels = self.channels;
        let visible = self.width.min(width.saturating_sub(x)) * channels;
        out.data.to_mut().par_chunks_mut(width * channels).enumerate().for_each(|(line, out)| {
            let (i, line) = (line / height, line % height);
            if visible > 0 && (y..y + self.height).contains(&line) {
                out[x * channels..][..visible].copy_from_slice(&self.row(i, line - y)[..visible]);
            }
        });
        Ok(out)
    }

    fn owned_shape(&self) -> Grid<'static> {
        Grid {
            count: self.count,
            height: self.height,
            width: self.width,
            channels: self.channels,
            data: Cow::Borrowed(&[]),
        }
    }
}

fn mismatch(a: &Grid<'_>, b: &Grid<'_>) -> NodeError {
    let shape = |grid: &Grid<'_>| {
        format!("{} of {}x{} with {} channels", grid.count, grid.width, grid.height, grid.channels)
    };
    NodeError::Failed(format!("{} and {} do not fit together", shape(a), shape(b)))
}

/// Both with as many channels: `source` loses its alpha or gets one that covers (ComfyUI's `image_alpha_fix`; 0.3.64
/// widens the wrong one of the two and fails, newer ones do this).
pub(super) fn with_channels_of<'a>(destination: &Grid<'_>, source: Grid<'a>) -> Result<Grid<'a>, NodeError> {
    match (destination.channels, source.channels) {
        (wanted, found) if wanted < found => source.first_channels(wanted),
        (wanted, found) if wanted > found => source.with_more_channels(wanted - found, 1.0),
        _ => Ok(source),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbered(count: usize, height: usize, width: usize, channels: usize) -> Grid<'static> {
        let data: Vec<f32> = (0..count * height * width * channels).map(|i| i as f32).collect();
        Grid::new(count, height, width, channels, data).unwrap()
    }

    #[test]
    fn what_is_too_large_or_empty_is_refused_before_it_is_made() {
        assert!(check_size(1, LONGEST_SIDE, 1, 3).is_ok());
        for (count, height, width) in
            [(1, LONGEST_SIDE + 1, 1), (1, 0, 5), (0, 1, 1), (4096, 16384, 16384), (usize::MAX, 2, 2)]
        {
            assert!(check_size(count, height, width, 3).is_err(), "{count} {height} {width}");
        }
        assert!(numbered(1, 2, 2, 1).repeated(usize::MAX).is_err());
    }

    #[test]
    fn four_quarter_turns_are_none() {
        let grid = numbered(2, 2, 3, 2);
        let once = grid.turned(1).unwrap();
        assert_eq!((once.width, once.height), (2, 3));
        // The lower left corner goes to the upper left.
        assert_eq!(once.data()[..2], grid.row(0, 1)[..2]);
        assert_eq!(once.turned(3).unwrap().data(), grid.data());
        assert_eq!(once.turned(1).unwrap().data(), grid.turned(2).unwrap().data());
    }

    #[test]
    fn a_latent_keeps_its_values_through_a_grid() {
        let samples = Tensor::arange(0f32, 2.0 * 4.0 * 3.0 * 5.0, &Device::Cpu).unwrap();
        let samples = samples.reshape((2, 4, 3, 5)).unwrap();
        let back = Grid::of_latent(&Latent::new(samples.clone())).unwrap().into_samples().unwrap();
        let values = |tensor: &Tensor| tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        assert_eq!(values(&back), values(&samples));
        assert!(Grid::of_latent(&Latent::new(samples.flatten_all().unwrap())).is_err());
    }
}
