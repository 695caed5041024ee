//! Which parts of a picture Ultimate SD Upscale draws anew, in which order, and how they are put back: everything of
//! the extension but the drawing.

use super::bytes::{Gray8, Rgb8, reach};
use super::segment::Region;

/// In which order tiles are drawn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Order {
    /// Row by row.
    Linear,
    /// Every second one first.
    Chess,
    /// Not at all.
    None,
}

/// How seams between tiles are drawn over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum SeamFix {
    /// Not at all.
    None,
    /// A band along each.
    Bands,
    /// Tiles moved by half of one.
    HalfTiles,
    /// The same, and once more where four meet.
    HalfTilesAndCorners,
}

/// What a node is told.
#[derive(Debug, Clone, Copy)]
pub(super) struct Plan {
    pub(super) tile: (usize, usize),
    pub(super) order: Order,
    pub(super) mask_blur: usize,
    pub(super) padding: usize,
    pub(super) seam_fix: SeamFix,
    pub(super) seam_width: usize,
    pub(super) seam_blur: usize,
    pub(super) seam_padding: usize,
    /// All tiles are drawn at one size.
    pub(super) uniform: bool,
    /// Tiles that are drawn at once.
    pub(super) batch: usize,
}

/// A part that is to be drawn: its pixels at the size at which that is done, and where it is.
pub(super) struct Part {
    pub(super) pixels: Rgb8,
    pub(super) region: Region,
}

/// What is let through where: a stencil put somewhere into a black mask.
struct Stencil {
    left: usize,
    top: usize,
    width: usize,
    height: usize,
    /// `None`: all of it.
    values: Option<Gray8>,
}

/// One step: what is drawn, with how much around it, at which size, and how soft.
struct Step {
    stencils: Vec<Stencil>,
    padding: usize,
    size: (usize, usize),
    blur: usize,
}

/// The nearest multiple of eight.
pub(super) fn to_eights(length: f64) -> usize {
    (length / 8.0).round_ties_even() as usize * 8
}

impl Plan {
    fn grid(&self, width: usize, height: usize) -> (usize, usize) {
        (height.div_ceil(self.tile.1), width.div_ceil(self.tile.0))
    }

    /// Draws all of it: `draw` gets parts of every picture and gives what comes of each, at any size.
    pub(super) fn run<E>(
        &self,
        pictures: &mut [Rgb8],
        mut draw: impl FnMut(&[Part], (usize, usize)) -> Result<Vec<Rgb8>, E>,
    ) -> Result<(), E> {
        let Some((width, height)) = pictures.first().map(|first| (first.width, first.height)) else {
            return Ok(());
        };
        for step in self.redraw(width, height) {
            self.step(&step, pictures, &mut draw)?;
        }
        for make in self.seams(width, height) {
            self.step(&make(), pictures, &mut draw)?;
        }
        Ok(())
    }

    fn redraw(&self, width: usize, height: usize) -> Vec<Step> {
        let (rows, columns) = self.grid(width, height);
        let all = (0..rows).flat_map(|y| (0..columns).map(move |x| (x, y)));
        let white = |place: &(usize, usize)| (place.0 + place.1).is_multiple_of(2);
        let runs: Vec<Vec<(usize, usize)>> = match self.order {
            Order::None => Vec::new(),
            Order::Linear => vec![all.collect()],
            Order::Chess => {
                let (first, second) = all.partition(white);
                vec![first, second]
            }
        };
        let (tile_width, tile_height) = self.tile;
        let size =
            (to_eights((tile_width + self.padding) as f64), to_eights((tile_height + self.padding) as f64));
        let groups = runs.iter().flat_map(|run| run.chunks(self.batch.max(1)));
        groups
            .map(|group| {
                // Pillow's rectangles have both their ends inside.
                let stencil = |&(x, y): &(usize, usize)| Stencil {
                    left: x * tile_width,
                    top: y * tile_height,
                    width: tile_width + 1,
                    height: tile_height + 1,
                    values: None,
                };
                let stencils = group.iter().map(stencil).collect();
                Step { stencils, padding: self.padding, size, blur: self.mask_blur }
            })
            .collect()
    }

    /// Steps over the seams; each is made when it is its turn, as stencils may be as large as the picture.
    fn seams(&self, width: usize, height: usize) -> Vec<Box<dyn Fn() -> Step + '_>> {
        let (rows, columns) = self.grid(width, height);
        let (tile_width, tile_height) = self.tile;
        let mut steps: Vec<Box<dyn Fn() -> Step + '_>> = Vec::new();
        let one = |left, top, values: Gray8, padding, size, blur| {
            let stencil =
                Stencil { left, top, width: values.width, height: values.height, values: Some(values) };
            Step { stencils: vec![stencil], padding, size, blur }
        };
        if self.seam_fix == SeamFix::Bands {
            let band = self.seam_width;
            let size = band + 2 * self.seam_padding;
            for x in 1..columns {
                steps.push(Box::new(move || {
                    let (left, ridge) = band_at(x * tile_width, band);
                    let values = across(&ridge, height);
                    one(left, 0, values, self.seam_padding, (size, height), 0)
                }));
            }
            for y in 1..rows {
                steps.push(Box::new(move || {
                    let (top, ridge) = band_at(y * tile_height, band);
                    let values = down(&ridge, width);
                    one(0, top, values, self.seam_padding, (width, size), 0)
                }));
            }
        }
        if matches!(self.seam_fix, SeamFix::HalfTiles | SeamFix::HalfTilesAndCorners) {
            for (x, y) in (0..rows - 1).flat_map(|y| (0..columns).map(move |x| (x, y))) {
                steps.push(Box::new(move || {
                    let values = down(&halves(tile_height), tile_width);
                    let top = y * tile_height + tile_height / 2;
                    one(x * tile_width, top, values, self.seam_padding, self.tile, self.seam_blur)
                }));
            }
            for (x, y) in (0..rows).flat_map(|y| (0..columns - 1).map(move |x| (x, y))) {
                steps.push(Box::new(move || {
                    let values = across(&halves(tile_width), tile_height);
                    let left = x * tile_width + tile_width / 2;
                    one(left, y * tile_height, values, self.seam_padding, self.tile, self.seam_blur)
                }));
            }
        }
        if self.seam_fix == SeamFix::HalfTilesAndCorners {
            for (x, y) in (0..rows - 1).flat_map(|y| (0..columns - 1).map(move |x| (x, y))) {
                steps.push(Box::new(move || {
                    let (left, top) = (x * tile_width + tile_width / 2, y * tile_height + tile_height / 2);
                    one(left, top, round(tile_width, tile_height), 0, self.tile, self.seam_blur)
                }));
            }
        }
        steps
    }

    fn step<E>(
        &self,
        step: &Step,
        pictures: &mut [Rgb8],
        draw: &mut impl FnMut(&[Part], (usize, usize)) -> Result<Vec<Rgb8>, E>,
    ) -> Result<(), E> {
        let Some((width, height)) = pictures.first().map(|first| (first.width, first.height)) else {
            return Ok(());
        };
        let places: Vec<(Region, (usize, usize), &Stencil)> = step
            .stencils
            .iter()
            .filter_map(|stencil| {
                let (region, size) = self.place(stencil.bounds(width, height)?, step, width, height);
                Some((region, size, stencil))
            })
            .collect();
        let Some((_, size, _)) = places.first() else { return Ok(()) };
        let mut parts = Vec::with_capacity(pictures.len() * places.len());
        for picture in &*pictures {
            for (region, size, _) in &places {
                let part = picture.part(region.x1, region.y1, region.width(), region.height());
                parts.push(Part { pixels: part.scaled(size.0, size.1), region: *region });
            }
        }
        let mut drawn = draw(&parts, *size)?.into_iter();
        drop(parts);
        for picture in pictures {
            for (region, _, stencil) in &places {
                let Some(drawn) = drawn.next() else { return Ok(()) };
                let drawn = drawn.scaled(region.width(), region.height());
                let mask = stencil.mask(*region, step.blur, width, height);
                picture.put(&drawn, &mask, region.x1, region.y1);
            }
        }
        Ok(())
    }

    /// What is cut out for a stencil that covers `bounds`, and the size at which it is drawn.
    fn place(&self, bounds: Region, step: &Step, width: usize, height: usize) -> (Region, (usize, usize)) {
        let pad = step.padding;
        let mut x2 = (bounds.x2 + pad).min(width);
        let mut y2 = (bounds.y2 + pad).min(height);
        // The pixel that rectangles have too many.
        x2 -= usize::from(x2 < width);
        y2 -= usize::from(y2 < height);
        let region = Region { x1: bounds.x1.saturating_sub(pad), y1: bounds.y1.saturating_sub(pad), x2, y2 };
        let (w, h) = (region.width(), region.height());
        let target = if self.uniform {
            let (ratio, wanted) = (w as f64 / h as f64, step.size.0 as f64 / step.size.1 as f64);
            if ratio > wanted {
                (w, (w as f64 / wanted).round_ties_even() as usize)
            } else {
                ((h as f64 * wanted).round_ties_even() as usize, h)
            }
        } else {
            (w.next_multiple_of(8), h.next_multiple_of(8))
        };
        let (x1, x2) = expanded(region.x1, region.x2, width, target.0);
        let (y1, y2) = expanded(region.y1, region.y2, height, target.1);
        (Region { x1, y1, x2, y2 }, if self.uniform { step.size } else { target })
    }
}

/// A span brought to a length: to the end by half of it, then to the start, then to the end again.
fn expanded(start: usize, end: usize, limit: usize, target: usize) -> (usize, usize) {
    let (start, end, limit, target) = (start as i64, end as i64, limit as i64, target as i64);
    let end = (end + (target - (end - start)).div_euclid(2)).min(limit);
    let start = (start - (target - (end - start))).max(0);
    let end = (end + (target - (end - start))).min(limit);
    (start as usize, end.max(start) as usize)
}

impl Stencil {
    /// The box of what it lets through inside a picture; `None` for nothing.
    fn bounds(&self, width: usize, height: usize) -> Option<Region> {
        let right = (self.left + self.width).min(width);
        let bottom = (self.top + self.height).min(height);
        if self.left >= right || self.top >= bottom {
            return None;
        }
        let mut bounds = Region { x1: self.left, y1: self.top, x2: right, y2: bottom };
        if let Some(values) = &self.values {
            let at = |x: usize, y: usize| values.data[(y - self.top) * values.width + (x - self.left)] > 0;
            let row = |y: &usize| (self.left..right).any(|x| at(x, *y));
            let column = |x: &usize| (self.top..bottom).any(|y| at(*x, y));
            bounds = Region {
                x1: (self.left..right).find(column)?,
                y1: (self.top..bottom).find(row)?,
                x2: (self.left..right).rev().find(column)? + 1,
                y2: (self.top..bottom).rev().find(row)? + 1,
            };
        }
        Some(bounds)
    }

    /// The blurred mask inside a region. Only as much around it is computed as the blur reaches.
    fn mask(&self, region: Region, blur: usize, width: usize, height: usize) -> Gray8 {
        let around = reach(blur);
        let (left, top) = (region.x1.saturating_sub(around), region.y1.saturating_sub(around));
        let (right, bottom) = ((region.x2 + around).min(width), (region.y2 + around).min(height));
        let mut data = Vec::with_capacity((right - left) * (bottom - top));
        for y in top..bottom {
            let inside = y >= self.top && y < self.top + self.height;
            data.extend((left..right).map(|x| match &self.values {
                _ if !inside || x < self.left || x >= self.left + self.width => 0,
                None => 255,
                Some(values) => values.data[(y - self.top) * values.width + (x - self.left)],
            }));
        }
        let mut mask = Gray8 { width: right - left, height: bottom - top, data };
        if blur > 0 {
            mask = mask.blurred(blur);
        }
        let (x, y) = (region.x1 - left, region.y1 - top);
        let rows = mask.data.chunks_exact(mask.width).skip(y).take(region.height());
        let data = rows.flat_map(|row| &row[x..x + region.width()]).copied().collect();
        Gray8 { width: region.width(), height: region.height(), data }
    }
}

/// Pillow's linear gradient, scaled to a length.
fn gradient(length: usize) -> Vec<u8> {
    let ramp = Gray8 { width: 256, height: 1, data: (0..=255).collect() };
    if length == 0 { Vec::new() } else { ramp.cubic(length, 1).data }
}

/// Up over the first half of a length and down over the second.
fn halves(length: usize) -> Vec<u8> {
    let up = gradient(length / 2);
    let mut values = up.clone();
    let down = Gray8 { width: 256, height: 1, data: (0..=255).rev().collect() };
    if !up.is_empty() {
        values.extend(down.cubic(length / 2, 1).data);
    }
    values.resize(length, 0);
    values
}

/// The same over 256, scaled to a length.
fn ridge_of(length: usize) -> Vec<u8> {
    let ridge = Gray8 { width: 256, height: 1, data: halves(256) };
    if length == 0 { Vec::new() } else { ridge.cubic(length, 1).data }
}

/// A ridge in the middle of which a seam lies: where it begins, and its profile as far as that is inside.
fn band_at(seam: usize, band: usize) -> (usize, Vec<u8>) {
    let outside = (band / 2).saturating_sub(seam).min(band);
    (seam.saturating_sub(band / 2), ridge_of(band).split_off(outside))
}

/// A profile along each of `height` rows.
fn across(profile: &[u8], height: usize) -> Gray8 {
    Gray8 { width: profile.len(), height, data: profile.repeat(height) }
}

/// A profile along each of `width` columns.
fn down(profile: &[u8], width: usize) -> Gray8 {
    let data = profile.iter().flat_map(|value| std::iter::repeat_n(*value, width)).collect();
    Gray8 { width, height: profile.len(), data }
}

/// Pillow's radial gradient, white in the middle, scaled to a size.
fn round(width: usize, height: usize) -> Gray8 {
    let place = |i: i32| f64::from((i - 128) * (i - 128));
    let value = |x, y| ((place(x) + place(y)) * 2.0).sqrt().min(255.0) as u8;
    let data = (0..256).flat_map(|y| (0..256).map(move |x| value(x, y))).collect();
    // Scaled before it is inverted.
    let mut mask = Gray8 { width: 256, height: 256, data }.cubic(width, height);
    mask.data.iter_mut().for_each(|value| *value = 255 - *value);
    mask
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use candle_core::{Device, Tensor};
    use serde_json::Value as Json;

    use super::*;

    /// What the golden script has in place of drawing: the sides cut to multiples of eight, the colours inverted.
    fn draw(parts: &[Part], _: (usize, usize)) -> Result<Vec<Rgb8>, std::convert::Infallible> {
        let inverted = |part: &Part| {
            let pixels = &part.pixels;
            let (width, height) = (pixels.width / 8 * 8, pixels.height / 8 * 8);
            let (left, top) = ((pixels.width - width) / 2, (pixels.height - height) / 2);
            let mut part = pixels.part(left, top, width, height);
            part.data.iter_mut().for_each(|value| *value = 255 - *value);
            part
        };
        Ok(parts.iter().map(inverted).collect())
    }

    fn values(tensor: &Tensor) -> Vec<u8> {
        tensor.flatten_all().unwrap().to_vec1().unwrap()
    }

    #[test]
    fn pictures_are_put_together_as_the_extension_does() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/third_party");
        let text = std::fs::read_to_string(folder.join("ultimate.json")).unwrap();
        let cases: Json = serde_json::from_str(&text).unwrap();
        let tensors =
            candle_core::safetensors::load(folder.join("ultimate.safetensors"), &Device::Cpu).unwrap();
        let cases = cases.as_object().unwrap();
        assert!(cases.len() >= 8);
        for (name, case) in cases {
            let number = |field: &str| case[field].as_u64().unwrap() as usize;
            let plan = Plan {
                tile: (number("tile_width"), number("tile_height")),
                order: [Order::Linear, Order::Chess, Order::None][number("mode")],
                mask_blur: number("mask_blur"),
                padding: number("padding"),
                seam_fix: [SeamFix::None, SeamFix::Bands, SeamFix::HalfTiles, SeamFix::HalfTilesAndCorners]
                    [number("seam_fix")],
                seam_width: number("seam_width"),
                seam_blur: number("seam_blur"),
                seam_padding: number("seam_padding"),
                uniform: case["uniform"].as_bool().unwrap(),
                batch: number("batch"),
            };
            let input = &tensors[&format!("{name}.input")];
            let (count, height, width, _) = input.dims4().unwrap();
            let size = width * height * 3;
            let picture = |data: &[u8]| Rgb8 { width, height, data: data.to_vec() };
            let mut pictures: Vec<Rgb8> = values(input).chunks_exact(size).map(picture).collect();
            assert_eq!(pictures.len(), count);
            let mut steps = 0;
            let done = plan.run(&mut pictures, |parts, size| {
                steps += 1;
                draw(parts, size)
            });
            done.unwrap();
            assert_eq!(steps, number("steps"), "{name}");
            let expected = values(&tensors[&format!("{name}.result")]);
            let found: Vec<u8> = pictures.into_iter().flat_map(|picture| picture.data).collect();
            assert_eq!(found.len(), expected.len(), "{name}");
            let differences = found.iter().zip(&expected).map(|(a, b)| a.abs_diff(*b));
            let (worst, off) =
                differences.fold((0, 0), |(worst, off), one| (worst.max(one), off + usize::from(one > 1)));
            // Pillow takes rows or columns first as it sees fit, which moves roundings, and tiles overlap.
            assert!(worst <= 6 && off * 1000 <= found.len(), "{name}: {worst} levels, {off} beyond one");
        }
    }
}
