//! Pictures and masks as pipelines take and give them: plain float buffers, no file formats.

use candle_core::{Device, Tensor};

use crate::PipelineError;
use crate::resample::{self, Crop, Filter, Raster};

/// An RGB picture, `[height, width, 3]`, values in `0..=1`.
#[derive(Debug, Clone, PartialEq)]
pub struct Picture {
    width: usize,
    height: usize,
    data: Vec<f32>,
}

impl Picture {
    /// A picture of `data`, three interleaved values a pixel, row by row. `None` when the length does not fit.
    pub fn new(width: usize, height: usize, data: Vec<f32>) -> Option<Self> {
        let expected = width.checked_mul(height)?.checked_mul(3)?;
        (data.len() == expected && expected > 0).then_some(Self { width, height, data })
    }

    /// A black picture.
    pub(crate) fn black(width: usize, height: usize) -> Self {
        Self { width, height, data: vec![0.0; width * height * 3] }
    }

    /// Pixels a row.
    pub fn width(&self) -> usize {
        self.width
    }

    /// Rows.
    pub fn height(&self) -> usize {
        self.height
    }

    /// The values, `[height, width, 3]`.
    pub fn data(&self) -> &[f32] {
        &self.data
    }

    /// The values, to be changed in place.
    pub(crate) fn data_mut(&mut self) -> &mut [f32] {
        &mut self.data
    }

    /// Eight-bit RGB as ComfyUI's `SaveImage` makes it: `trunc(clip(255 x, 0, 255))`.
    pub fn to_rgb8(&self) -> Vec<u8> {
        // `as` saturates and truncates, and takes NaN to 0.
        self.data.iter().map(|v| (255.0 * v) as u8).collect()
    }

    /// A picture of the same size. `data` must have as many values as this one's.
    pub(crate) fn with_data(&self, data: Vec<f32>) -> Self {
        debug_assert_eq!(data.len(), self.data.len());
        Self { width: self.width, height: self.height, data }
    }

    /// The part whose sides are multiples of `multiple`, cut evenly from both ends (ComfyUI's
    /// `vae_encode_crop_pixels`).
    pub fn cropped_to_multiple(&self, multiple: usize) -> Self {
        let (width, height) = (self.width / multiple * multiple, self.height / multiple * multiple);
        let (left, top) = ((self.width - width) / 2, (self.height - height) / 2);
        let mut data = Vec::with_capacity(width * height * 3);
        for row in self.data.chunks_exact(self.width * 3).skip(top).take(height) {
            data.extend_from_slice(&row[left * 3..(left + width) * 3]);
        }
        Self { width, height, data }
    }

    /// Replaces the pixels where `replace` is true by mid grey.
    pub fn greyed_where(mut self, replace: &[bool]) -> Self {
        for (pixel, replace) in self.data.chunks_exact_mut(3).zip(replace) {
            if *replace {
                pixel.fill(0.5);
            }
        }
        self
    }

    /// A picture of the same size whose pixel `i`, counted row by row, is `pixel(i)`.
    pub(crate) fn with_pixels(&self, pixel: impl FnMut(usize) -> [f32; 3]) -> Self {
        let data = (0..self.width * self.height).flat_map(pixel).collect();
        Self { width: self.width, height: self.height, data }
    }

    /// `[1, 3, height, width]` in `-1..=1`, as the VAE's encoder wants it.
    pub(crate) fn to_tensor(&self, device: &Device) -> Result<Tensor, PipelineError> {
        let x = Tensor::from_slice(&self.data, (1, self.height, self.width, 3), device)?;
        Ok(x.affine(2.0, -1.0)?.permute((0, 3, 1, 2))?.contiguous()?)
    }

    /// From a decoder's output `[3, height, width]` in `-1..=1`.
    pub(crate) fn from_tensor(decoded: &Tensor) -> Result<Self, PipelineError> {
        let (_, height, width) = decoded.dims3()?;
        let unit = ((decoded + 1.0)? / 2.0)?.clamp(0f32, 1f32)?;
        let data = unit.permute((1, 2, 0))?.contiguous()?.flatten_all()?.to_vec1::<f32>()?;
        Ok(Self { width, height, data })
    }
}

/// Which parts of a picture to draw anew: one value a pixel, 1 = repaint, 0 = keep, soft values between.
#[derive(Debug, Clone, PartialEq)]
pub struct Mask {
    width: usize,
    height: usize,
    data: Vec<f32>,
}

impl Mask {
    /// A mask of `data`, row by row. `None` when the length does not fit.
    pub fn new(width: usize, height: usize, data: Vec<f32>) -> Option<Self> {
        (data.len() == width.checked_mul(height)? && !data.is_empty()).then_some(Self { width, height, data })
    }

    /// Pixels a row.
    pub fn width(&self) -> usize {
        self.width
    }

    /// Rows.
    pub fn height(&self) -> usize {
        self.height
    }

    /// The values, `[height, width]`.
    pub fn data(&self) -> &[f32] {
        &self.data
    }

    /// A mask as large as `picture` whose value `i`, counted row by row, is `value(i)`.
    pub(crate) fn over(picture: &Picture, value: impl FnMut(usize) -> f32) -> Self {
        let (width, height) = (picture.width, picture.height);
        Self { width, height, data: (0..width * height).map(value).collect() }
    }

    /// A mask of `value(x, y)`. Neither side may be 0.
    pub(crate) fn of(width: usize, height: usize, value: impl Fn(usize, usize) -> f32) -> Self {
        let value = &value;
        let data = (0..height).flat_map(|y| (0..width).map(move |x| value(x, y))).collect();
        Self { width, height, data }
    }

    /// Bilinear interpolation as torch's (`align_corners=False`, no antialiasing).
    pub fn resized(&self, width: usize, height: usize) -> Self {
        if (width, height) == (self.width, self.height) {
            return self.clone();
        }
        let raster = Raster::new(&self.data, self.width, self.height, 1);
        let scale = |raster| resample::scale(raster, width, height, Filter::Bilinear, Crop::Disabled);
        // A mask is never empty.
        let data = raster.map_or_else(|| vec![0.0; width * height], scale);
        Self { width, height, data }
    }

    /// The part that matches [`Picture::cropped_to_multiple`].
    pub fn cropped_to_multiple(&self, multiple: usize) -> Self {
        let (width, height) = (self.width / multiple * multiple, self.height / multiple * multiple);
        let (left, top) = ((self.width - width) / 2, (self.height - height) / 2);
        let mut data = Vec::with_capacity(width * height);
        for row in self.data.chunks_exact(self.width).skip(top).take(height) {
            data.extend_from_slice(&row[left..left + width]);
        }
        Self { width, height, data }
    }

    /// Rounded to 0 or 1, halves to even as torch rounds.
    pub fn rounded(mut self) -> Self {
        self.data.iter_mut().for_each(|v| *v = v.round_ties_even());
        self
    }

    /// A rounded mask spread by a box of `grow` × `grow` pixels, as ComfyUI's `VAEEncodeForInpaint` does: a
    /// clamped box sum with `ceil((grow - 1) / 2)` rows of padding, cut at the far edges.
    pub fn grown(&self, grow: usize) -> Self {
        if grow == 0 {
            return self.clone();
        }
        let before = grow.saturating_sub(1).div_ceil(2);
        // A box maximum of 0/1 values is the clamped box sum; it separates into rows and columns.
        let spread = |data: &[f32], stride: usize, length: usize, start: usize| -> Vec<f32> {
            (0..length)
                .map(|i| {
                    let (from, to) = (i.saturating_sub(before), (i + grow - before).min(length));
                    (from..to).map(|j| data[start + j * stride]).fold(0.0, f32::max)
                })
                .collect()
        };
        let mut wide = Vec::with_capacity(self.data.len());
        for y in 0..self.height {
            wide.extend(spread(&self.data, 1, self.width, y * self.width));
        }
        let mut data = wide.clone();
        for x in 0..self.width {
            for (y, value) in spread(&wide, self.width, self.height, x).into_iter().enumerate() {
                data[y * self.width + x] = value;
            }
        }
        Self { width: self.width, height: self.height, data }
    }

    /// `[1, height, width]`.
    pub(crate) fn to_tensor(&self, device: &Device) -> Result<Tensor, PipelineError> {
        Ok(Tensor::from_slice(&self.data, (1, self.height, self.width), device)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn eight_bit_values_are_truncated_not_rounded() {
        let picture = Picture::new(2, 1, vec![0.999, 1.0, 0.5, -0.1, 1.2, f32::NAN]).unwrap();
        assert_eq!(picture.to_rgb8(), [254, 255, 127, 0, 255, 0]);
    }

    #[test]
    fn a_buffer_of_the_wrong_length_is_no_picture() {
        assert!(Picture::new(2, 2, vec![0.0; 11]).is_none());
        assert!(Picture::new(0, 0, vec![]).is_none());
        assert!(Picture::new(usize::MAX, 2, vec![]).is_none());
        assert!(Mask::new(3, 1, vec![0.0; 2]).is_none());
    }

    #[test]
    fn cropping_cuts_evenly_from_both_ends() {
        let data = (0..10 * 9).flat_map(|i| [i as f32; 3]).collect();
        let cropped = Picture::new(10, 9, data).unwrap().cropped_to_multiple(8);
        assert_eq!((cropped.width(), cropped.height()), (8, 8));
        // One column is cut at the left, none at the top: 9 rows leave one row, half of it rounded down.
        assert_eq!(cropped.data()[0], 1.0);
    }

    #[test]
    fn shrinking_by_eight_averages_the_two_middle_pixels_each_way() {
        let data: Vec<f32> = (0..16 * 16).map(|i| (i % 16) as f32).collect();
        let small = Mask::new(16, 16, data).unwrap().resized(2, 2);
        assert_eq!(small.data(), [3.5, 11.5, 3.5, 11.5]);
    }

    #[test]
    fn an_even_box_grows_one_pixel_further_up_than_down() {
        let mut data = vec![0.0; 11 * 11];
        data[5 * 11 + 5] = 1.0;
        let grown = Mask::new(11, 11, data).unwrap().grown(6);
        let row: Vec<usize> = (0..11).filter(|x| grown.data()[5 * 11 + x] == 1.0).collect();
        // Output i sums inputs i-3 ..= i+2, so the point at 5 reaches 3 ..= 8.
        assert_eq!(row, [3, 4, 5, 6, 7, 8]);
        assert_eq!(grown.data().iter().sum::<f32>(), 36.0);
    }
}
