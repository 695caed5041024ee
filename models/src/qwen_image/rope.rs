//! Rotary position embedding over three axes: the picture's number, its rows and its columns. Places are ComfyUI's.
//!
//! A picture's middle is at 0 on both of its axes. Text follows on the diagonal from where the latent's longer half
//! ends. diffusers agrees where grids are even and no reference is larger than the latent. Of a grid with an odd side it
//! counts from `−⌈side/2⌉`, ComfyUI from `−⌊side/2⌋`; and its text begins after the largest of all pictures.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use candle_core::{Device, Result, Tensor};

const THETA: f64 = 10_000.0;
/// Tables kept: a few sizes of picture, with and without a prompt. Qwen-Image's at 1328 × 1328 take 4 MB each.
const MOST_TABLES: usize = 8;

/// What a table depends on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Places {
    /// Rows and columns of tokens of each picture, the latent first.
    pub(super) grids: Vec<(usize, usize)>,
    /// Of text.
    pub(super) tokens: usize,
}

impl Places {
    /// Tokens of all pictures.
    pub(super) fn pictures(&self) -> usize {
        self.grids.iter().map(|(rows, columns)| rows * columns).sum()
    }
}

/// Of every token's angles, `[tokens, head / 2]` each: pictures in their order, then text.
#[derive(Debug, Clone)]
pub(super) struct RotaryTable {
    pub(super) cos: Tensor,
    pub(super) sin: Tensor,
}

/// Makes tables, and keeps the last ones: steps repeat, and all blocks have the same.
#[derive(Debug, Clone)]
pub(super) struct RotaryTables {
    axes: [usize; 3],
    device: Device,
    /// The one that was used last is the last. Shared by clones.
    kept: Arc<Mutex<VecDeque<(Places, RotaryTable)>>>,
}

impl RotaryTables {
    pub(super) fn new(axes: [usize; 3], device: &Device) -> Self {
        Self { axes, device: device.clone(), kept: Arc::default() }
    }

    /// The table of `places`.
    pub(super) fn get(&self, places: Places) -> Result<RotaryTable> {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let found = kept.iter().position(|(known, _)| *known == places);
        if let Some(entry) = found.and_then(|index| kept.remove(index)) {
            let table = entry.1.clone();
            kept.push_back(entry);
            return Ok(table);
        }
        let table = self.table(&places)?;
        if kept.len() == MOST_TABLES {
            kept.pop_front();
        }
        kept.push_back((places, table.clone()));
        Ok(table)
    }

    fn table(&self, places: &Places) -> Result<RotaryTable> {
        let half = self.axes.iter().sum::<usize>() / 2;
        let mut angles = Angles::new(half, places.pictures() + places.tokens);
        for (number, &(rows, columns)) in places.grids.iter().enumerate() {
            let frame = self.turned(0, number as f64);
            let centred = |axis, side: usize| -> Vec<Turns> {
                (0..side).map(|i| self.turned(axis, i as f64 - (side / 2) as f64)).collect()
            };
            let (down, across) = (centred(1, rows), centred(2, columns));
            for row in &down {
                across.iter().for_each(|column| angles.push([&frame, row, column]));
            }
        }
        let start = places.grids.first().map_or(0, |(rows, columns)| (rows / 2).max(columns / 2));
        for token in 0..places.tokens {
            let [frame, row, column] = [0, 1, 2].map(|axis| self.turned(axis, (start + token) as f64));
            angles.push([&frame, &row, &column]);
        }
        angles.into_table(&self.device)
    }

    /// Cosine and sine of each of an axis' angles at `position`.
    fn turned(&self, axis: usize, position: f64) -> Turns {
        let width = self.axes[axis];
        let angle = |i: usize| position / THETA.powf((2 * i) as f64 / width as f64);
        (0..width / 2).map(|i| angle(i).sin_cos()).map(|(sin, cos)| (cos as f32, sin as f32)).collect()
    }
}

type Turns = Vec<(f32, f32)>;

/// A table while it grows.
struct Angles {
    half: usize,
    cos: Vec<f32>,
    sin: Vec<f32>,
}

impl Angles {
    fn new(half: usize, positions: usize) -> Self {
        let room = half * positions;
        Self { half, cos: Vec::with_capacity(room), sin: Vec::with_capacity(room) }
    }

    fn push(&mut self, axes: [&Turns; 3]) {
        for (cos, sin) in axes.into_iter().flatten() {
            self.cos.push(*cos);
            self.sin.push(*sin);
        }
    }

    fn into_table(self, device: &Device) -> Result<RotaryTable> {
        let rows = |angles: Vec<f32>| {
            let positions = angles.len() / self.half.max(1);
            Tensor::from_vec(angles, (positions, self.half), device)
        };
        Ok(RotaryTable { cos: rows(self.cos)?, sin: rows(self.sin)? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The place on each axis that a table's row stands for: `atan2` of the axis' first angle, which is the place itself.
    fn places(table: &RotaryTable, axes: [usize; 3]) -> Vec<[i32; 3]> {
        let (cos, sin) = (table.cos.to_vec2::<f32>().unwrap(), table.sin.to_vec2::<f32>().unwrap());
        let firsts = [0, axes[0] / 2, (axes[0] + axes[1]) / 2];
        let place = |row: usize| firsts.map(|at| sin[row][at].atan2(cos[row][at]).round() as i32);
        (0..cos.len()).map(place).collect()
    }

    #[test]
    fn pictures_are_centred_and_text_follows_the_latents_longer_half() {
        let axes = [4, 6, 6];
        let tables = RotaryTables::new(axes, &Device::Cpu);
        let table = tables.get(Places { grids: vec![(3, 2), (1, 4)], tokens: 2 }).unwrap();
        let latent = [[0, -1, -1], [0, -1, 0], [0, 0, -1], [0, 0, 0], [0, 1, -1], [0, 1, 0]];
        let reference = [[1, 0, -2], [1, 0, -1], [1, 0, 0], [1, 0, 1]];
        let text = [[1, 1, 1], [2, 2, 2]];
        assert_eq!(places(&table, axes), [&latent[..], &reference, &text].concat());
    }

    #[test]
    fn the_last_tables_are_kept_and_no_more() {
        let tables = RotaryTables::new([2, 2, 2], &Device::Cpu);
        let places = |tokens| Places { grids: vec![(1, 1)], tokens };
        let first = tables.get(places(1)).unwrap();
        for tokens in 2..=MOST_TABLES {
            tables.get(places(tokens)).unwrap();
        }
        assert_eq!(tables.get(places(1)).unwrap().cos.id(), first.cos.id());
        let second = tables.kept.lock().unwrap()[0].1.cos.id();
        tables.get(places(MOST_TABLES + 1)).unwrap();
        assert_eq!(tables.kept.lock().unwrap().len(), MOST_TABLES);
        assert_eq!(tables.get(places(1)).unwrap().cos.id(), first.cos.id());
        assert_ne!(tables.get(places(2)).unwrap().cos.id(), second);
    }
}
