//! Fitting a picture of any size into the network's input, and the way back.

use super::network::COARSEST_STRIDE;

/// The grey around a picture, as the networks were trained with.
const PADDING: f32 = 114.0 / 255.0;

/// A picture scaled so that its longer side has the network's size, then padded evenly to multiples of 32: the
/// reference's `LetterBox` with `auto`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Letterbox {
    picture: (usize, usize),
    scaled: (usize, usize),
    before: (usize, usize),
    /// Width and height of the result.
    pub(super) padded: (usize, usize),
}

impl Letterbox {
    /// For a picture of `width × height` pixels, neither of them 0.
    pub(super) fn new(width: usize, height: usize, size: usize) -> Self {
        let ratio = (size as f64 / height as f64).min(size as f64 / width as f64);
        // A very thin picture keeps one pixel.
        let scale = |side: usize| ((side as f64 * ratio).round_ties_even() as usize).clamp(1, size);
        let scaled = (scale(width), scale(height));
        let pad = |side: usize| {
            let all = (size - side) % COARSEST_STRIDE;
            // An odd pixel goes behind.
            (all / 2, side + all)
        };
        let (left, width_padded) = pad(scaled.0);
        let (top, height_padded) = pad(scaled.1);
        Self { picture: (width, height), scaled, before: (left, top), padded: (width_padded, height_padded) }
    }

    /// `data: [height, width, 3]` scaled bilinearly (OpenCV's `INTER_LINEAR`: two pixels a side, whatever the
    /// scale) and padded. In floats throughout, where the reference rounds pictures to eight bits.
    pub(super) fn apply(&self, data: &[f32]) -> Vec<f32> {
        let mut result = vec![PADDING; self.padded.0 * self.padded.1 * 3];
        let columns = taps(self.picture.0, self.scaled.0);
        let rows = taps(self.picture.1, self.scaled.1);
        let pitch = self.picture.0 * 3;
        let lines = result.chunks_exact_mut(self.padded.0 * 3).skip(self.before.1);
        for (line, y) in lines.zip(&rows) {
            let (top, bottom) = (&data[y.low * pitch..], &data[y.high * pitch..]);
            let pixels = line.chunks_exact_mut(3).skip(self.before.0);
            for (pixel, x) in pixels.zip(&columns) {
                for (channel, value) in pixel.iter_mut().enumerate() {
                    let blend = |row: &[f32]| {
                        let (low, high) = (row[x.low * 3 + channel], row[x.high * 3 + channel]);
                        low + x.weight * (high - low)
                    };
                    let (above, below) = (blend(top), blend(bottom));
                    *value = above + y.weight * (below - above);
                }
            }
        }
        result
    }

    /// A box of the padded picture (left, top, right, bottom) in pixels of the original, cut at its edges.
    pub(super) fn to_picture(self, edges: [f32; 4]) -> [f32; 4] {
        let back = |at: f32, before: usize, picture: usize, scaled: usize| {
            let gain = scaled as f32 / picture as f32;
            ((at - before as f32) / gain).clamp(0.0, picture as f32)
        };
        let x = |at| back(at, self.before.0, self.picture.0, self.scaled.0);
        let y = |at| back(at, self.before.1, self.picture.1, self.scaled.1);
        [x(edges[0]), y(edges[1]), x(edges[2]), y(edges[3])]
    }
}

/// The two source pixels of one target pixel and the weight of the second.
struct Taps {
    low: usize,
    high: usize,
    weight: f32,
}

fn taps(from: usize, to: usize) -> Vec<Taps> {
    let scale = from as f64 / to as f64;
    (0..to)
        .map(|i| {
            let source = ((i as f64 + 0.5) * scale - 0.5).clamp(0.0, (from - 1) as f64);
            let low = source as usize;
            Taps { low, high: (low + 1).min(from - 1), weight: (source - low as f64) as f32 }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_sizes_are_the_references() {
        // Width, height, padded size, offset: from `LetterBox(640, auto=True)`.
        for (picture, padded, before) in [
            ((1024, 1024), (640, 640), (0, 0)),
            ((1024, 1536), (448, 640), (10, 0)),
            ((2048, 64), (640, 32), (0, 6)),
            ((64, 2048), (32, 640), (6, 0)),
            ((80, 48), (640, 384), (0, 0)),
            ((33, 80), (288, 640), (12, 0)),
            ((90, 3), (640, 32), (0, 5)),
            ((1, 1), (640, 640), (0, 0)),
            ((2048, 1), (640, 32), (0, 15)),
        ] {
            let letterbox = Letterbox::new(picture.0, picture.1, 640);
            assert_eq!((letterbox.padded, letterbox.before), (padded, before), "{picture:?}");
        }
    }

    #[test]
    fn a_picture_that_fits_is_not_touched() {
        let data: Vec<f32> = (0..64 * 32 * 3).map(|i| (i % 7) as f32 / 7.0).collect();
        assert_eq!(Letterbox::new(64, 32, 64).apply(&data), data);
    }

    #[test]
    fn what_is_around_a_picture_is_grey() {
        let letterbox = Letterbox::new(4, 1, 64);
        let result = letterbox.apply(&[1.0; 12]);
        assert_eq!(letterbox.padded, (64, 32));
        let white = |y: usize| result[y * 64 * 3..(y + 1) * 64 * 3].iter().all(|v| *v == 1.0);
        let grey = |y: usize| result[y * 64 * 3..(y + 1) * 64 * 3].iter().all(|v| *v == PADDING);
        assert!((0..8).all(grey) && (8..24).all(white) && (24..32).all(grey));
    }

    proptest! {
        #[test]
        fn any_picture_fits_and_its_corners_come_back(
            width in 1usize..5000, height in 1usize..5000, cells in 1usize..40,
        ) {
            let size = cells * COARSEST_STRIDE;
            let letterbox = Letterbox::new(width, height, size);
            for (padded, before, scaled) in [
                (letterbox.padded.0, letterbox.before.0, letterbox.scaled.0),
                (letterbox.padded.1, letterbox.before.1, letterbox.scaled.1),
            ] {
                prop_assert!(padded % COARSEST_STRIDE == 0 && (1..=size).contains(&padded));
                prop_assert!(scaled >= 1 && before + scaled <= padded);
            }
            let (left, top) = letterbox.before;
            let (w, h) = letterbox.scaled;
            let corners = [left, top, left + w, top + h].map(|at| at as f32);
            let back = letterbox.to_picture(corners);
            for (found, expected) in back.into_iter().zip([0.0, 0.0, width as f32, height as f32]) {
                prop_assert!((found - expected).abs() <= 1e-3 * expected.max(1.0), "{back:?}");
            }
        }
    }
}
