//! Scales pictures as ComfyUI does (`common_upscale`): cut to the target's shape first or not at all, then scaled
//! by one of five filters.
//!
//! All but Lanczos follow torch's `interpolate` and keep values as they are; Lanczos follows Pillow, which ComfyUI
//! calls on 8-bit values.

mod lanczos;
mod sampled;

use rayon::prelude::*;

use crate::Picture;

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
}

/// What happens to a picture whose shape is not the target's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Crop {
    /// It is distorted.
    Disabled,
    /// Its sides, or its top and bottom, are cut evenly.
    Center,
}

/// A control picture at the size that a ControlNet reads, `width` × `height` pixels (latent cells × 8): cut at the
/// centre to the target's shape, then scaled to the nearest pixels. What ComfyUI does to every hint.
///
/// A side of 0 is taken for 1.
pub fn hint(picture: &Picture, width: usize, height: usize) -> Picture {
    resize(picture, width, height, Filter::NearestExact, Crop::Center)
}

/// `picture` at `width` × `height` pixels, as ComfyUI's `ImageScale` makes it. A side of 0 is taken for 1; nothing
/// else is done to a picture that has the size already, except by Lanczos, which rounds to 8 bits.
pub fn resize(picture: &Picture, width: usize, height: usize, filter: Filter, crop: Crop) -> Picture {
    let (width, height) = (width.max(1), height.max(1));
    let whole = Part { left: 0, top: 0, width: picture.width(), height: picture.height() };
    let part = match crop {
        Crop::Disabled => whole,
        Crop::Center => whole.centred(width, height),
    };
    if filter == Filter::Lanczos {
        return lanczos::resize(picture, part, width, height);
    }
    let columns = sampled::taps(filter, part.left, part.width, width);
    let rows = sampled::taps(filter, part.top, part.height, height);
    let mut data = vec![0.0; width * height * 3];
    let stride = picture.width() * 3;
    data.par_chunks_mut(width * 3).zip(&rows).for_each_init(
        || vec![0f32; stride],
        |blended, (out, row)| {
            blended.fill(0.0);
            for (y, weight) in row {
                let source = &picture.data()[y * stride..][..stride];
                blended.iter_mut().zip(source).for_each(|(sum, value)| *sum += weight * value);
            }
            for (pixel, column) in out.chunks_exact_mut(3).zip(&columns) {
                for (x, weight) in column {
                    let source = &blended[x * 3..][..3];
                    pixel.iter_mut().zip(source).for_each(|(sum, value)| *sum += weight * value);
                }
            }
        },
    );
    // The buffer has the length that the size asks for.
    Picture::new(width, height, data).unwrap_or_else(|| picture.clone())
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

    fn numbered(width: usize, height: usize) -> Picture {
        let data = (0..width * height).flat_map(|i| [i as f32 / (width * height) as f32; 3]).collect();
        Picture::new(width, height, data).unwrap()
    }

    #[test]
    fn the_same_size_is_the_same_picture() {
        let picture = numbered(7, 5);
        for filter in [Filter::NearestExact, Filter::Bilinear, Filter::Area, Filter::Bicubic] {
            assert_eq!(resize(&picture, 7, 5, filter, Crop::Center), picture, "{filter:?}");
        }
        assert_eq!(hint(&picture, 7, 5), picture);
    }

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
            for filter in Filter::ALL {
                for (to_width, to_height) in [(0, 0), (1, 64), (64, 1), (33, 9)] {
                    for crop in [Crop::Disabled, Crop::Center] {
                        let out = resize(&numbered(width, height), to_width, to_height, filter, crop);
                        assert_eq!((out.width(), out.height()), (to_width.max(1), to_height.max(1)));
                    }
                }
            }
        }
    }
}
