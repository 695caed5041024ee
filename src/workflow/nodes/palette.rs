//! Pictures with few colors, as Pillow makes them: a palette by median cut (Heckbert 1982), and each pixel the nearest
//! color of it.

use std::collections::HashMap;

/// Most different colors that are told apart; with more of them, low bits are cut off.
const MOST_COLORS: usize = 65536;
/// How much a step of red, green and blue counts where a box is cut.
const WEIGHTS: [i32; 3] = [77, 150, 29];

/// Up to 256 colors.
pub(super) struct Palette {
    colors: Vec<[u8; 3]>,
    /// The nearest color of each cell of four levels a channel.
    nearest: Vec<Option<u8>>,
}

/// Pixels that fall into the same cell of colors.
#[derive(Debug, Clone, Copy, Default)]
struct Pixels {
    count: u64,
    sums: [u64; 3],
}

/// Colors that will be one.
struct Box {
    colors: Vec<([u8; 3], Pixels)>,
    count: u64,
    /// The two that it was cut into.
    halves: Option<(usize, usize)>,
}

impl Palette {
    /// At most `size` colors for these pixels; as many as there are, if these are fewer.
    pub(super) fn median_cut(pixels: &[[u8; 3]], size: usize) -> Self {
        let root = Box { colors: counted(pixels), count: pixels.len() as u64, halves: None };
        let mut boxes = vec![root];
        let mut queue = Queue::default();
        queue.add(0, &boxes);
        'cuts: for _ in 1..size {
            let next = loop {
                match queue.remove(&boxes) {
                    None => break 'cuts,
                    Some(next) if boxes[next].is_one_color() => {}
                    Some(next) => break next,
                }
            };
            let (left, right) = boxes[next].cut();
            boxes[next].halves = Some((boxes.len(), boxes.len() + 1));
            boxes.extend([left, right]);
            queue.add(boxes.len() - 2, &boxes);
            queue.add(boxes.len() - 1, &boxes);
        }
        // From left to right, without those that were cut.
        let mut colors = Vec::new();
        let mut open = vec![0];
        while let Some(at) = open.pop() {
            match boxes[at].halves {
                Some((left, right)) => open.extend([right, left]),
                None => colors.extend(boxes[at].mean()),
            }
        }
        Self { colors, nearest: vec![None; 64 * 64 * 64] }
    }

    /// How many colors there are.
    pub(super) fn len(&self) -> usize {
        self.colors.len()
    }

    /// The color nearest to a pixel. Pillow looks for it once for all pixels that differ in the two lowest bits only,
    /// by the darkest of them.
    pub(super) fn nearest(&mut self, pixel: [u8; 3]) -> [u8; 3] {
        let cell = pixel.iter().fold(0, |cell, level| cell << 6 | usize::from(level >> 2));
        let index = self.nearest[cell].unwrap_or_else(|| {
            let distance = |color: &[u8; 3]| -> i32 {
                let apart = |(a, b): (&u8, &u8)| (i32::from(*a) - i32::from(b & !3)).pow(2);
                color.iter().zip(&pixel).map(apart).sum()
            };
            let best = (0..self.colors.len()).min_by_key(|i| distance(&self.colors[*i]));
            best.unwrap_or(0) as u8
        });
        self.nearest[cell] = Some(index);
        self.colors.get(usize::from(index)).copied().unwrap_or(pixel)
    }

    /// Each pixel's nearest color, what is left of it given on to the neighbours (Floyd and Steinberg 1976), in whole
    /// numbers as Pillow does it.
    pub(super) fn dithered(&mut self, pixels: &[[u8; 3]], width: usize) -> Vec<[u8; 3]> {
        let mut out = Vec::with_capacity(pixels.len());
        // Sixteenths for the row below, one pixel further left.
        let mut below = vec![[0i32; 3]; width + 1];
        for row in pixels.chunks(width) {
            let mut ahead = [0i32; 3];
            let mut straight = [0i32; 3];
            let mut right = [0i32; 3];
            for (x, pixel) in row.iter().enumerate() {
                let mut wanted = [0u8; 3];
                for (channel, level) in wanted.iter_mut().enumerate() {
                    let error = (ahead[channel] + below[x + 1][channel]) / 16;
                    *level = (i32::from(pixel[channel]) + error).clamp(0, 255) as u8;
                }
                let color = self.nearest(wanted);
                for channel in 0..3 {
                    let error = i32::from(wanted[channel]) - i32::from(color[channel]);
                    below[x][channel] = 3 * error + straight[channel];
                    straight[channel] = 5 * error + right[channel];
                    right[channel] = error;
                    ahead[channel] = 7 * error;
                }
                out.push(color);
            }
            // Pillow writes all of blue's here.
            below[width] = [straight[2], right[2], right[2]];
        }
        out
    }
}

/// Each color once. Bits are cut off until there are few enough.
fn counted(pixels: &[[u8; 3]]) -> Vec<([u8; 3], Pixels)> {
    for bits in 0..8 {
        let mut colors: HashMap<[u8; 3], Pixels> = HashMap::new();
        for pixel in pixels {
            let entry = colors.entry(pixel.map(|level| level >> bits)).or_default();
            entry.count += 1;
            entry.sums.iter_mut().zip(pixel).for_each(|(sum, level)| *sum += u64::from(*level));
            if colors.len() > MOST_COLORS {
                break;
            }
        }
        if colors.len() <= MOST_COLORS {
            return colors.into_iter().collect();
        }
    }
    Vec::new()
}

impl Box {
    fn range(&self, channel: usize) -> i32 {
        let levels = self.colors.iter().map(|(color, _)| i32::from(color[channel]));
        levels.clone().max().unwrap_or(0) - levels.min().unwrap_or(0)
    }

    fn is_one_color(&self) -> bool {
        (0..3).all(|channel| self.range(channel) == 0)
    }

    /// Two halves along the channel that differs most, the bright one first: as few levels as have more than half of
    /// the pixels, but not all.
    fn cut(&mut self) -> (Self, Self) {
        let spread = |channel: usize| self.range(channel) * WEIGHTS[channel];
        // The first of equal ones.
        let channel = (1..3).fold(0, |best, next| if spread(best) < spread(next) { next } else { best });
        let mut levels = [0u64; 256];
        self.colors.iter().for_each(|(color, pixels)| levels[usize::from(color[channel])] += pixels.count);
        let darkest = levels.iter().position(|count| *count > 0).unwrap_or(0);
        let mut reached = 0;
        let enough = |level: &usize| {
            reached += levels[*level];
            reached * 2 > self.count
        };
        let last = (0..256).rev().find(enough).unwrap_or(0);
        let above = if last > darkest {
            last
        } else {
            // Nothing would be left: only the darkest level goes to the other half.
            (darkest + 1..256).find(|level| levels[*level] > 0).unwrap_or(last)
        };
        let (bright, dark) = std::mem::take(&mut self.colors)
            .into_iter()
            .partition(|(color, _)| usize::from(color[channel]) >= above);
        let half = |colors: Vec<([u8; 3], Pixels)>| {
            let count = colors.iter().map(|(_, pixels)| pixels.count).sum();
            Self { colors, count, halves: None }
        };
        (half(bright), half(dark))
    }

    fn mean(&self) -> Option<[u8; 3]> {
        let sum = |channel: usize| self.colors.iter().map(|(_, pixels)| pixels.sums[channel]).sum::<u64>();
        let level = |channel| (0.5 + sum(channel) as f64 / self.count as f64) as u8;
        (self.count > 0).then(|| [level(0), level(1), level(2)])
    }
}

/// Boxes by the number of their pixels, the largest first. Which of equal ones comes first is Pillow's heap's own.
#[derive(Default)]
struct Queue(Vec<usize>);

impl Queue {
    fn add(&mut self, new: usize, boxes: &[Box]) {
        let mut at = self.0.len();
        self.0.push(new);
        while at > 0 && boxes[new].count > boxes[self.0[(at - 1) / 2]].count {
            self.0[at] = self.0[(at - 1) / 2];
            at = (at - 1) / 2;
        }
        self.0[at] = new;
    }

    fn remove(&mut self, boxes: &[Box]) -> Option<usize> {
        let first = *self.0.first()?;
        let last = self.0.pop()?;
        let length = self.0.len();
        if length == 0 {
            return Some(first);
        }
        let count = |at: usize| boxes[at].count;
        let mut at = 0;
        while 2 * at + 1 < length {
            let mut child = 2 * at + 1;
            if child + 1 < length && count(self.0[child]) < count(self.0[child + 1]) {
                child += 1;
            }
            if count(last) > count(self.0[child]) {
                break;
            }
            self.0[at] = self.0[child];
            at = child;
        }
        self.0[at] = last;
        Some(first)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn few_colors_stay_as_they_are() {
        let pixels = [[0, 0, 0], [255, 0, 9], [255, 0, 9], [4, 200, 8]];
        let mut palette = Palette::median_cut(&pixels, 256);
        assert_eq!(palette.len(), 3);
        assert_eq!(pixels.map(|pixel| palette.nearest(pixel)), pixels);
        assert_eq!(Palette::median_cut(&pixels, 1).colors, [[129, 50, 7]]);
        assert_eq!(Palette::median_cut(&[], 4).len(), 0);
    }
}
