//! Pictures and masks of eight bits, and what Pillow does to them: cubic scaling, Gaussian blur as three box blurs, and
//! putting one over another through a mask.

use darkroom_pipelines::resample::{Crop, Filter, Raster, scale};

/// `[height, width, 3]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Rgb8 {
    pub(super) width: usize,
    pub(super) height: usize,
    pub(super) data: Vec<u8>,
}

/// `[height, width]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Gray8 {
    pub(super) width: usize,
    pub(super) height: usize,
    pub(super) data: Vec<u8>,
}

impl Rgb8 {
    /// Of values 0 to 1 with three channels or more, cut as numpy cuts them.
    pub(super) fn of(width: usize, height: usize, channels: usize, values: &[f32]) -> Self {
        let pixels = values.chunks_exact(channels.max(3));
        // What is no number becomes 0.
        let data = pixels.flat_map(|pixel| &pixel[..3]).map(|value| (255.0 * value).clamp(0.0, 255.0) as u8);
        Self { width, height, data: data.collect() }
    }

    /// Values of 0 to 1.
    pub(super) fn floats(&self) -> Vec<f32> {
        self.data.iter().map(|byte| f32::from(*byte) / 255.0).collect()
    }

    /// At another size, by Lanczos.
    pub(super) fn scaled(&self, width: usize, height: usize) -> Self {
        if (self.width, self.height) == (width, height) {
            return self.clone();
        }
        let floats = self.floats();
        let Some(raster) = Raster::new(&floats, self.width, self.height, 3) else { return self.clone() };
        let data = scale(raster, width, height, Filter::Lanczos, Crop::Disabled);
        // Back from 255ths exactly.
        let data = data.iter().map(|value| (255.0 * value).round() as u8).collect();
        Self { width, height, data }
    }

    /// A part of it, all inside.
    pub(super) fn part(&self, left: usize, top: usize, width: usize, height: usize) -> Self {
        let rows = self.data.chunks_exact(self.width * 3).skip(top).take(height);
        let data = rows.flat_map(|row| &row[left * 3..(left + width) * 3]).copied().collect();
        Self { width, height, data }
    }

    /// Puts `over` at a place of it as far as `mask`, of the same size, lets through (`alpha_composite`).
    pub(super) fn put(&mut self, over: &Self, mask: &Gray8, left: usize, top: usize) {
        let lines = over.data.chunks_exact(over.width * 3).zip(mask.data.chunks_exact(mask.width));
        for (y, (line, shares)) in lines.enumerate() {
            let start = ((top + y) * self.width + left) * 3;
            let target = self.data[start..start + line.len()].chunks_exact_mut(3);
            for ((target, pixel), share) in target.zip(line.chunks_exact(3)).zip(shares) {
                let share = u32::from(*share);
                for (old, new) in target.iter_mut().zip(pixel) {
                    let sum = (u32::from(*new) * share + u32::from(*old) * (255 - share) + 128) << 7;
                    *old = ((((sum >> 8) + sum) >> 8) >> 7) as u8;
                }
            }
        }
    }
}

impl Gray8 {
    /// At another size, by Pillow's cubic filter (a = −0.5).
    pub(super) fn cubic(&self, width: usize, height: usize) -> Self {
        let columns = taps(self.width, width);
        let mut wide = Vec::with_capacity(width * self.height);
        for line in self.data.chunks_exact(self.width) {
            wide.extend(columns.iter().map(|taps| taps.apply(line.iter().skip(taps.first))));
        }
        let rows = taps(self.height, height);
        let mut data = Vec::with_capacity(width * height);
        for taps in &rows {
            data.extend((0..width).map(|x| taps.apply(wide[taps.first * width + x..].iter().step_by(width))));
        }
        Self { width, height, data }
    }

    /// Blurred by a bell of that radius, made of three box blurs each way.
    pub(super) fn blurred(&self, radius: usize) -> Self {
        let radius = box_radius(radius as f32);
        let across = blur_lines(&self.data, self.width, radius);
        let turned = turned(&across, self.width, self.height);
        let down = blur_lines(&turned, self.height, radius);
        Self { width: self.width, height: self.height, data: self::turned(&down, self.height, self.width) }
    }
}

/// How far a blur of that radius reaches.
pub(super) fn reach(radius: usize) -> usize {
    if radius == 0 { 0 } else { BOXES * (box_radius(radius as f32) as usize + 1) }
}

/// Box blurs that make a bell.
const BOXES: usize = 3;

/// Radius of each of them, with a fraction, as Pillow finds it.
fn box_radius(radius: f32) -> f32 {
    let sigma2 = radius * radius / BOXES as f32;
    let length = (12.0 * f64::from(sigma2) + 1.0).sqrt() as f32;
    let whole = ((f64::from(length) - 1.0) / 2.0).floor() as f32;
    let mut rest = (2.0 * whole + 1.0) * (whole * (whole + 1.0) - 3.0 * sigma2);
    rest /= 6.0 * (sigma2 - (whole + 1.0) * (whole + 1.0));
    whole + rest
}

fn blur_lines(data: &[u8], width: usize, radius: f32) -> Vec<u8> {
    let whole = radius as i64;
    let weight = ((1u32 << 24) as f32 / (radius * 2.0 + 1.0)) as u32;
    let far = ((1u32 << 24) - (whole as u32 * 2 + 1) * weight) / 2;
    let last = width as i64 - 1;
    let mut result = data.to_vec();
    let mut line = vec![0u8; width];
    for row in result.chunks_exact_mut(width) {
        for _ in 0..BOXES {
            line.copy_from_slice(row);
            let at = |x: i64| u32::from(line[x.clamp(0, last) as usize]);
            let mut sum: u32 = (-whole..=whole).map(at).sum();
            for x in 0..=last {
                let total = sum * weight + (at(x - whole - 1) + at(x + whole + 1)) * far;
                row[x as usize] = ((total + (1 << 23)) >> 24) as u8;
                sum += at(x + whole + 1);
                sum -= at(x - whole);
            }
        }
    }
    result
}

fn turned(data: &[u8], width: usize, height: usize) -> Vec<u8> {
    let mut result = Vec::with_capacity(data.len());
    for x in 0..width {
        result.extend((0..height).map(|y| data[y * width + x]));
    }
    result
}

/// Fraction bits of Pillow's weights.
const BITS: u32 = 32 - 8 - 2;

/// The weights of one target pixel, for source pixels from `first` on.
struct Taps {
    first: usize,
    weights: Vec<i32>,
}

impl Taps {
    fn apply<'a>(&self, values: impl Iterator<Item = &'a u8>) -> u8 {
        let sum = self.weights.iter().zip(values).fold(1i32 << (BITS - 1), |sum, (weight, value)| {
            sum.wrapping_add(weight.wrapping_mul(i32::from(*value)))
        });
        (sum >> BITS).clamp(0, 255) as u8
    }
}

fn taps(from: usize, to: usize) -> Vec<Taps> {
    const LOBES: f64 = 2.0;
    let scale = from as f64 / to as f64;
    let spread = scale.max(1.0);
    let support = LOBES * spread;
    let of = |i: usize| {
        if from == to {
            return Taps { first: i, weights: vec![1 << BITS] };
        }
        let centre = (i as f64 + 0.5) * scale;
        let first = (centre - support + 0.5).max(0.0) as usize;
        let end = ((centre + support + 0.5) as usize).min(from);
        let weights: Vec<f64> = (first..end).map(|j| cubic((j as f64 - centre + 0.5) / spread)).collect();
        let sum: f64 = weights.iter().sum();
        let whole = |weight: &f64| {
            let share = weight / sum * f64::from(1 << BITS);
            (if share < 0.0 { share - 0.5 } else { share + 0.5 }) as i32
        };
        Taps { first, weights: weights.iter().map(whole).collect() }
    };
    (0..to).map(of).collect()
}

fn cubic(x: f64) -> f64 {
    const A: f64 = -0.5;
    let x = x.abs();
    if x < 1.0 {
        ((A + 2.0) * x - (A + 3.0)) * x * x + 1.0
    } else if x < 2.0 {
        (((x - 5.0) * x + 8.0) * x - 4.0) * A
    } else {
        0.0
    }
}
