//! Other sizes of pictures, masks and latents, by ComfyUI's rules (`common_upscale`): cut to the target's shape first
//! or not at all, then scaled by one of its filters. Everything in Darkroom that changes a size on the CPU comes here.
//!
//! All filters but two follow torch's `interpolate` (no antialiasing, pixel centres at halves) and keep values as they
//! are. Lanczos is Pillow's, which ComfyUI calls on 8-bit values; [`lanczos_floats`] is the same filter without the
//! rounding. [`bislerp`] turns and stretches vectors of channels, for latents.

mod bislerp;
mod lanczos;
mod taps;

use rayon::prelude::*;

pub use bislerp::bislerp;
pub use lanczos::lanczos_floats;

/// How values between pixels are made up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Filter {
    /// The nearest pixel by the distance of centres; makes no new values.
    NearestExact,
    /// Between two pixels each way, without averaging when it shrinks.
    Bilinear,
    /// The mean of all pixels that a target pixel touches.
    Area,
    /// Between four pixels each way (a = −0.75), without averaging when it shrinks. Overshoots at edges, so values
    /// may leave `0..=1`, as ComfyUI's do.
    Bicubic,
    /// Pillow's windowed sinc of three lobes on 8-bit values.
    Lanczos,
}

impl Filter {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::NearestExact, Self::Bilinear, Self::Area, Self::Bicubic, Self::Lanczos];

    /// ComfyUI's `upscale_method`.
    pub fn name(self) -> &'static str {
        match self {
            Self::NearestExact => "nearest-exact",
            Self::Bilinear => "bilinear",
            Self::Area => "area",
            Self::Bicubic => "bicubic",
            Self::Lanczos => "lanczos",
        }
    }

    /// The filter of this name.
    pub fn of_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|filter| filter.name() == name)
    }
}

/// What happens to a picture whose shape is not the target's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Crop {
    /// It is distorted.
    Disabled,
    /// Its sides, or its top and bottom, are cut evenly.
    Center,
}

/// Values of a picture, `[height, width, channels]`; none of the three is 0.
#[derive(Debug, Clone, Copy)]
pub struct Raster<'a> {
    data: &'a [f32],
    width: usize,
    height: usize,
    channels: usize,
}

impl<'a> Raster<'a> {
    /// `None` where the values are not as many as the sizes say, or there are none.
    pub fn new(data: &'a [f32], width: usize, height: usize, channels: usize) -> Option<Self> {
        let expected = width.checked_mul(height)?.checked_mul(channels)?;
        (expected > 0 && data.len() == expected).then_some(Self { data, width, height, channels })
    }

    /// The part that is scaled for a target of `width` × `height`.
    fn part(&self, width: usize, height: usize, crop: Crop) -> Part {
        let whole = Part { left: 0, top: 0, width: self.width, height: self.height };
        match crop {
            Crop::Disabled => whole,
            Crop::Center => whole.centred(width, height),
        }
    }

    /// The values of a row of `part`.
    fn row(&self, part: Part, y: usize) -> &'a [f32] {
        let start = ((part.top + y) * self.width + part.left) * self.channels;
        &self.data[start..start + part.width * self.channels]
    }
}

/// `source` at `width` × `height`, `[height, width, channels]`. A side of 0 is taken for 1; nothing is done to values
/// that have the size already, except by Lanczos, which rounds to 8 bits.
///
/// Lanczos takes four channels for a picture with alpha, and weighs its colours by it as Pillow does.
pub fn scale(source: Raster<'_>, width: usize, height: usize, filter: Filter, crop: Crop) -> Vec<f32> {
    let (width, height) = (width.max(1), height.max(1));
    let part = source.part(width, height, crop);
    if filter == Filter::Lanczos {
        return lanczos::eight_bit(source, part, width, height);
    }
    let channels = source.channels;
    let columns = taps::taps(filter, part.width, width);
    let rows = taps::taps(filter, part.height, height);
    let mut data = vec![0.0; width * height * channels];
    data.par_chunks_mut(width * channels).zip(&rows).for_each_init(
        || vec![0f32; part.width * channels],
        |blended, (out, row)| {
            blended.fill(0.0);
            for (y, weight) in row {
                let values = source.row(part, *y);
                blended.iter_mut().zip(values).for_each(|(sum, value)| *sum += weight * value);
            }
            for (pixel, column) in out.chunks_exact_mut(channels).zip(&columns) {
                for (x, weight) in column {
                    let values = &blended[x * channels..][..channels];
                    pixel.iter_mut().zip(values).for_each(|(sum, value)| *sum += weight * value);
                }
            }
        },
    );
    data
}

/// A part of a picture, pixels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Part {
    left: usize,
    top: usize,
    width: usize,
    height: usize,
}

impl Part {
    /// The largest part in its middle that has the shape of `width` × `height`, cut by whole pixels.
    fn centred(self, width: usize, height: usize) -> Self {
        let (old_width, old_height) = (self.width as f64, self.height as f64);
        let (old, new) = (old_width / old_height, width as f64 / height as f64);
        // Python's `round` takes halves to the even side. Something must be left.
        let cut = |length: usize, rest: f64| (rest.round_ties_even() as usize).min((length - 1) / 2);
        if old > new {
            let left = cut(self.width, (old_width - old_width * (new / old)) / 2.0);
            Self { left: self.left + left, width: self.width - 2 * left, ..self }
        } else if old < new {
            let top = cut(self.height, (old_height - old_height * (old / new)) / 2.0);
            Self { top: self.top + top, height: self.height - 2 * top, ..self }
        } else {
            self
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wide_picture_loses_its_sides_and_a_tall_one_its_ends() {
        let part = Part { left: 0, top: 0, width: 100, height: 40 };
        assert_eq!(part.centred(64, 64), Part { left: 30, top: 0, width: 40, height: 40 });
        assert_eq!(part.centred(100, 10), Part { left: 0, top: 15, width: 100, height: 10 });
        // 2.5 is rounded to 2, and 3.5 to 4.
        assert_eq!(Part { width: 45, ..part }.centred(8, 8).left, 2);
        assert_eq!(Part { width: 47, ..part }.centred(8, 8).left, 4);
    }

    #[test]
    fn slivers_and_empty_targets_leave_something() {
        for (width, height) in [(1, 1), (2, 900), (900, 2), (1, 300), (300, 1)] {
            for channels in [1, 3, 4] {
                let data = vec![0.5; width * height * channels];
                let raster = Raster::new(&data, width, height, channels).unwrap();
                for filter in Filter::ALL {
                    for (to_width, to_height) in [(0, 0), (1, 64), (64, 1), (33, 9)] {
                        for crop in [Crop::Disabled, Crop::Center] {
                            let out = scale(raster, to_width, to_height, filter, crop);
                            assert_eq!(out.len(), to_width.max(1) * to_height.max(1) * channels);
                            assert!(out.iter().all(|value| (value - 0.5).abs() < 0.01), "{filter:?}");
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn values_that_do_not_fill_the_size_are_no_raster() {
        assert!(Raster::new(&[0.0; 5], 2, 1, 3).is_none());
        assert!(Raster::new(&[], 0, 4, 3).is_none());
        assert!(Raster::new(&[], usize::MAX, 2, 3).is_none());
    }

    #[test]
    fn each_filter_is_found_by_its_name() {
        for filter in Filter::ALL {
            assert_eq!(Filter::of_name(filter.name()), Some(filter));
        }
        assert_eq!(Filter::of_name("bislerp"), None);
    }
}
