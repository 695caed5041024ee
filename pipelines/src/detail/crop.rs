//! One crop: cutting it out, and pasting what was drawn.

use std::ops::Range;

use super::DetailError;
use super::feather::profile;
use crate::resample::{self, Raster, lanczos_floats};
use crate::{Mask, Picture};

/// `[height, width, 3]` at another size; nothing where there is nothing.
fn scaled(data: &[f32], from: (usize, usize), to: (usize, usize)) -> Vec<f32> {
    let raster = Raster::new(data, from.0, from.1, 3);
    raster.map_or_else(Vec::new, |raster| lanczos_floats(raster, to.0, to.1, resample::Crop::Disabled))
}

/// A part of a picture that is drawn again larger. Made by [`crops`](super::crops).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Crop {
    pub(super) source: usize,
    /// Width and height of the whole picture.
    pub(super) picture: (usize, usize),
    pub(super) columns: Range<usize>,
    pub(super) rows: Range<usize>,
    pub(super) working: (usize, usize),
    /// The part that is drawn again, in the crop's own columns and rows.
    pub(super) hole: (Range<usize>, Range<usize>),
    pub(super) feather: usize,
}

impl Crop {
    /// Which of the boxes it is for.
    pub fn source(&self) -> usize {
        self.source
    }

    /// Columns of the picture that it covers.
    pub fn columns(&self) -> Range<usize> {
        self.columns.clone()
    }

    /// Rows of the picture that it covers.
    pub fn rows(&self) -> Range<usize> {
        self.rows.clone()
    }

    /// Width and height at which it is drawn, multiples of 8.
    pub fn working(&self) -> (usize, usize) {
        self.working
    }

    /// Width and height in the picture's own pixels.
    fn size(&self) -> (usize, usize) {
        (self.columns.len(), self.rows.len())
    }

    /// The crop at its working size.
    ///
    /// # Errors
    /// When `picture` has another size than the one the crop was made for.
    pub fn cut(&self, picture: &Picture) -> Result<Picture, DetailError> {
        self.check("the picture", picture, self.picture)?;
        let mut data = Vec::with_capacity(self.columns.len() * self.rows.len() * 3);
        let rows = picture.data().chunks_exact(self.picture.0 * 3);
        for row in rows.skip(self.rows.start).take(self.rows.len()) {
            data.extend(row.iter().skip(self.columns.start * 3).take(self.columns.len() * 3));
        }
        let data = scaled(&data, self.size(), self.working);
        let (width, height) = self.working;
        Picture::new(width, height, data).ok_or(DetailError::Size {
            what: "the crop",
            found: self.size(),
            expected: self.working,
        })
    }

    /// How much of the new part each pixel of the crop gets, in the picture's own pixels: the box with a soft edge.
    pub fn mask(&self) -> Mask {
        let (across, down) = self.profiles();
        Mask::of(across.len(), down.len(), |x, y| across[x] * down[y])
    }

    /// The part to draw again at the working size, with hard edges: what the denoiser is given as its mask.
    pub fn noise_mask(&self) -> Mask {
        let scaled = |length: usize, working: usize, hole: &Range<usize>| -> Vec<bool> {
            let inside = |at: usize| {
                let middle = (2 * at + 1) * length / (2 * working);
                hole.contains(&middle)
            };
            (0..working).map(inside).collect()
        };
        let across = scaled(self.columns.len(), self.working.0, &self.hole.0);
        let down = scaled(self.rows.len(), self.working.1, &self.hole.1);
        Mask::of(self.working.0, self.working.1, |x, y| if across[x] && down[y] { 1.0 } else { 0.0 })
    }

    /// Blends `detailed`, the crop as it was drawn at its working size, into the picture. Where the mask is 0 not a
    /// bit changes. An unchanged crop that was not enlarged changes nothing at all.
    ///
    /// # Errors
    /// When either picture has another size than the crop's, in which case nothing is changed.
    pub fn paste(&self, into: &mut Picture, detailed: &Picture) -> Result<(), DetailError> {
        self.check("the picture", into, self.picture)?;
        self.check("the detailed crop", detailed, self.working)?;
        let new = scaled(detailed.data(), self.working, self.size());
        let (across, down) = self.profiles();
        let pitch = self.picture.0 * 3;
        let old = into.data_mut().chunks_exact_mut(pitch).skip(self.rows.start);
        for ((old, new), row) in old.zip(new.chunks_exact(self.columns.len() * 3)).zip(&down) {
            let old = old.chunks_exact_mut(3).skip(self.columns.start);
            for ((old, new), column) in old.zip(new.chunks_exact(3)).zip(&across) {
                let share = row * column;
                if share <= 0.0 {
                    continue;
                }
                for (old, new) in old.iter_mut().zip(new) {
                    // Taken as it is where nothing of the old part is left: sums round.
                    *old = if share >= 1.0 { *new } else { *old + share * (new - *old) };
                }
            }
        }
        Ok(())
    }

    fn profiles(&self) -> (Vec<f32>, Vec<f32>) {
        let (width, height) = self.size();
        let shorter = width.min(height);
        let along = |length, hole| profile(length, hole, self.feather, shorter);
        (along(width, &self.hole.0), along(height, &self.hole.1))
    }

    fn check(
        &self,
        what: &'static str,
        picture: &Picture,
        expected: (usize, usize),
    ) -> Result<(), DetailError> {
        let found = (picture.width(), picture.height());
        if found == expected { Ok(()) } else { Err(DetailError::Size { what, found, expected }) }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::layout::tests::{any_box, any_options};
    use super::super::{BoundingBox, DetailOptions, crops};
    use super::*;

    fn noise(width: usize, height: usize, seed: u32) -> Picture {
        let value = |i: usize| {
            let mixed = (i as u32).wrapping_mul(2_654_435_761).wrapping_add(seed).wrapping_mul(0x9e37_79b9);
            (mixed >> 8) as f32 / (1 << 24) as f32
        };
        Picture::new(width, height, (0..width * height * 3).map(value).collect()).unwrap()
    }

    fn white(size: (usize, usize)) -> Picture {
        Picture::new(size.0, size.1, vec![1.0; size.0 * size.1 * 3]).unwrap()
    }

    fn region(x0: f64, y0: f64, x1: f64, y1: f64) -> BoundingBox {
        BoundingBox::new(x0, y0, x1, y1).unwrap()
    }

    #[test]
    fn a_crop_that_is_not_enlarged_is_the_pictures_own_pixels() {
        let picture = noise(256, 192, 1);
        let options = DetailOptions { force_inpaint: true, max_size: 128, ..DetailOptions::default() };
        let crop = crops(256, 192, &[region(100.0, 60.0, 160.0, 130.0)], &options).unwrap().pop().unwrap();
        assert_eq!((crop.working(), crop.size()), ((128, 128), (128, 128)));
        let cut = crop.cut(&picture).unwrap();
        let first = (crop.rows.start * 256 + crop.columns.start) * 3;
        assert_eq!(cut.data()[..128 * 3], picture.data()[first..first + 128 * 3]);
    }

    #[test]
    fn pasting_an_enlarged_crop_back_unchanged_hardly_changes_a_smooth_picture() {
        let data = (0..256 * 256).flat_map(|i| {
            let (x, y) = ((i % 256) as f32, (i / 256) as f32);
            [x / 255.0, y / 255.0, ((x + y) / 40.0).sin() * 0.4 + 0.5]
        });
        let mut picture = Picture::new(256, 256, data.collect()).unwrap();
        let before = picture.clone();
        let crop = crops(256, 256, &[region(90.0, 100.0, 130.0, 150.0)], &DetailOptions::default()).unwrap();
        let detailed = crop[0].cut(&picture).unwrap();
        assert_eq!((detailed.width(), detailed.height()), (1024, 1024));
        crop[0].paste(&mut picture, &detailed).unwrap();
        let worst = picture.data().iter().zip(before.data()).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(worst > 0.0 && worst < 2e-3, "{worst}");
    }

    #[test]
    fn the_box_is_new_the_rest_is_old_and_the_edge_is_between() {
        let mut picture = noise(512, 512, 2);
        let before = picture.clone();
        let crop = crops(512, 512, &[region(200.0, 200.0, 260.0, 260.0)], &DetailOptions::default()).unwrap();
        crop[0].paste(&mut picture, &white(crop[0].working())).unwrap();
        let at = |picture: &Picture, x: usize, y: usize| picture.data()[(y * 512 + x) * 3];
        assert_eq!(at(&picture, 230, 230), 1.0);
        assert_eq!(at(&picture, 190, 230).to_bits(), at(&before, 190, 230).to_bits());
        let edge = (at(&before, 196, 230), at(&picture, 196, 230));
        assert!(edge.0 < edge.1 && edge.1 < 1.0, "{edge:?}");
    }

    #[test]
    fn of_two_faces_that_overlap_the_larger_is_on_top() {
        let boxes = [region(100.0, 100.0, 220.0, 220.0), region(180.0, 180.0, 240.0, 240.0)];
        let paste = |boxes: &[BoundingBox]| {
            let mut picture = noise(512, 512, 3);
            for crop in crops(512, 512, boxes, &DetailOptions::default()).unwrap() {
                let (width, height) = crop.working();
                let shade = if crop.hole.0.len() > 100 { 1.0 } else { 0.0 };
                let flat = Picture::new(width, height, vec![shade; width * height * 3]).unwrap();
                crop.paste(&mut picture, &flat).unwrap();
            }
            picture
        };
        let picture = paste(&boxes);
        assert_eq!(picture.data()[(200 * 512 + 200) * 3], 1.0);
        assert_eq!(picture, paste(&[boxes[1], boxes[0]]));
    }

    #[test]
    fn masks_have_the_crops_and_the_working_size() {
        let crop =
            crops(1024, 1024, &[region(400.0, 300.0, 480.0, 380.0)], &DetailOptions::default()).unwrap();
        let (mask, noise) = (crop[0].mask(), crop[0].noise_mask());
        assert_eq!((mask.width(), mask.height()), (240, 240));
        assert_eq!(mask.data()[120 * 240 + 120], 1.0);
        assert_eq!(mask.data()[0], 0.0);
        assert_eq!((noise.width(), noise.height()), (1024, 1024));
        // The hole is 89 of 240 pixels each way.
        let share = noise.data().iter().sum::<f32>() / (1024.0 * 1024.0);
        assert!((share - (89.0f32 / 240.0).powi(2)).abs() < 1e-3, "{share}");
    }

    #[test]
    fn pictures_of_another_size_are_refused_and_left_alone() {
        let crop = crops(512, 512, &[region(100.0, 100.0, 150.0, 150.0)], &DetailOptions::default()).unwrap();
        assert!(crop[0].cut(&noise(512, 511, 0)).unwrap_err().to_string().contains("512×511"));
        let mut other = noise(511, 512, 0);
        assert!(crop[0].paste(&mut other, &white((1024, 1024))).is_err());
        let mut picture = noise(512, 512, 0);
        let error = crop[0].paste(&mut picture, &white((1024, 1016))).unwrap_err();
        assert!(error.to_string().starts_with("the detailed crop is 1024×1016"));
        assert_eq!(picture, noise(512, 512, 0));
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]
        #[test]
        fn outside_the_feather_not_one_bit_changes(
            width in 1usize..300, height in 1usize..300,
            region in any_box(), options in any_options(), seed in any::<u32>(),
        ) {
            let options = DetailOptions { max_size: options.max_size.min(256), ..options };
            let before = noise(width, height, seed);
            for crop in crops(width, height, &[region], &options).unwrap() {
                prop_assert_eq!(crop.cut(&before).unwrap().width(), crop.working().0);
                let mut after = before.clone();
                crop.paste(&mut after, &white(crop.working())).unwrap();
                let near = |range: &Range<usize>, start: usize| {
                    (start + range.start).saturating_sub(options.feather)..start + range.end + options.feather
                };
                let columns = near(&crop.hole.0, crop.columns.start);
                let rows = near(&crop.hole.1, crop.rows.start);
                let pixels = before.data().chunks_exact(3).zip(after.data().chunks_exact(3)).enumerate();
                for (i, (old, new)) in pixels {
                    let inside = columns.contains(&(i % width)) && rows.contains(&(i / width));
                    let same = old.iter().zip(new).all(|(a, b)| a.to_bits() == b.to_bits());
                    prop_assert!(inside || same, "pixel {}, {} of {crop:?}", i % width, i / width);
                }
            }
        }

        #[test]
        fn an_unchanged_crop_at_its_own_size_gives_the_picture_back_exactly(
            cells in (8usize..40, 8usize..40), at in (0f64..1.0, 0f64..1.0), side in 22f64..40.0,
            feather in 0usize..10, seed in any::<u32>(),
        ) {
            let (width, height) = (cells.0 * 8, cells.1 * 8);
            let own_size = DetailOptions {
                force_inpaint: true, max_size: 64, bbox_dilation: 0, feather, ..DetailOptions::default()
            };
            let (x, y) = (at.0 * (width as f64 - side), at.1 * (height as f64 - side));
            let picture = noise(width, height, seed);
            let crops = crops(width, height, &[region(x, y, x + side, y + side)], &own_size).unwrap();
            prop_assert_eq!((crops[0].working(), crops[0].size()), ((64, 64), (64, 64)));
            let mut after = picture.clone();
            crops[0].paste(&mut after, &crops[0].cut(&picture).unwrap()).unwrap();
            prop_assert_eq!(after, picture);
        }
    }
}
