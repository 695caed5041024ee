//! What a latent will look like, without decoding it: a linear map from each latent cell to one pixel, fitted to
//! the model's own autoencoder. Rough, but a preview costs microseconds where decoding costs as much as a step.

use candle_core::{DType, Device, Tensor};

use crate::picture::Picture;
use crate::{PIXELS_PER_CELL, PipelineError, pipeline::Pipeline};

/// The chart that the map is fitted to has this many patches a side, one for each colour of a cube with
/// `LEVELS` values of red, green and blue.
const PATCHES: usize = 8;
const LEVELS: usize = 4;
/// A patch's side in latent cells. All of them count: the outer ones, into which neighbouring colours bleed, are
/// more like a drawn picture than the inner ones are, and leaving them out made previews worse.
const PATCH_CELLS: usize = 4;

/// Added to the diagonal of the normal equations, as a share of its mean: an autoencoder that leaves a channel
/// unused still gives a map.
const RIDGE: f64 = 1e-6;

/// A linear map from latents to colours.
#[derive(Debug, Clone, PartialEq)]
pub struct LatentPreview {
    /// For each of red, green and blue: what each latent channel adds, and the constant behind them.
    weights: [Vec<f32>; 3],
}

impl LatentPreview {
    /// Fits the map by least squares: a chart of flat colours is encoded, and its latents are to give its colours.
    /// Takes one encoding of 256 × 256 pixels.
    pub fn fit(pipeline: &Pipeline) -> Result<Self, PipelineError> {
        let side = PATCHES * PATCH_CELLS;
        let latent = Cells::new(&pipeline.encode_picture(&chart()?)?)?;
        if (latent.height, latent.width) != (side, side) {
            let (height, width) = (latent.height, latent.width);
            return Err(refused(&format!(
                "the chart's latent has {height}x{width} cells, not {side}x{side}"
            )));
        }
        let inputs = latent.channels + 1;
        let (mut normal, mut targets) = (vec![vec![0f64; inputs]; inputs], vec![[0f64; 3]; inputs]);
        for index in 0..side * side {
            let (cell, colour) =
                (latent.cell(index), colour(index / side / PATCH_CELLS, index % side / PATCH_CELLS));
            for (i, a) in cell.iter().enumerate() {
                normal[i].iter_mut().zip(&cell).for_each(|(sum, b)| *sum += f64::from(a * b));
                targets[i].iter_mut().zip(colour).for_each(|(sum, value)| *sum += f64::from(a * value));
            }
        }
        let mean = (0..inputs).map(|i| normal[i][i]).sum::<f64>() / inputs as f64;
        (0..inputs).for_each(|i| normal[i][i] += RIDGE * mean);
        let solved = solve(normal, targets)
            .ok_or_else(|| refused("the autoencoder gives the same latent for every colour"))?;
        let mut weights = [const { Vec::new() }; 3];
        for row in &solved {
            for (weights, weight) in weights.iter_mut().zip(row) {
                weights.push(*weight as f32);
            }
        }
        Ok(Self { weights })
    }

    /// A picture of one pixel a cell. `latent: [channels, height, width]` in the network's scale.
    pub fn render(&self, latent: &Tensor) -> Result<Picture, PipelineError> {
        let cells = Cells::new(latent)?;
        let expected = self.weights[0].len();
        if cells.channels + 1 != expected {
            return Err(refused(&format!(
                "the latent has {} channels, not {}",
                cells.channels,
                expected - 1
            )));
        }
        let mut data = Vec::with_capacity(3 * cells.height * cells.width);
        for index in 0..cells.height * cells.width {
            let cell = cells.cell(index);
            for weights in &self.weights {
                let value: f32 = weights.iter().zip(&cell).map(|(weight, input)| weight * input).sum();
                data.push(value.clamp(0.0, 1.0));
            }
        }
        Picture::new(cells.width, cells.height, data).ok_or_else(|| refused("the latent is empty"))
    }
}

fn refused(message: &str) -> PipelineError {
    candle_core::Error::Msg(format!("latent preview: {message}")).into()
}

/// A latent's values, on the host.
struct Cells {
    channels: usize,
    height: usize,
    width: usize,
    values: Vec<f32>,
}

impl Cells {
    fn new(latent: &Tensor) -> Result<Self, PipelineError> {
        let (channels, height, width) = latent.dims3()?;
        let values = latent.to_device(&Device::Cpu)?.to_dtype(DType::F32)?.flatten_all()?.to_vec1()?;
        Ok(Self { channels, height, width, values })
    }

    /// The channels of cell number `index`, and the constant.
    fn cell(&self, index: usize) -> Vec<f32> {
        let area = self.height * self.width;
        self.values.iter().skip(index).step_by(area).copied().chain([1.0]).collect()
    }
}

/// The colour of a patch: every colour of the cube once, neighbours far apart in it.
fn colour(row: usize, column: usize) -> [f32; 3] {
    /// Odd, so that multiplying by it permutes a power of two.
    const STRIDE: usize = 29;
    let index = (row * PATCHES + column) * STRIDE % (PATCHES * PATCHES);
    [index, index / LEVELS, index / (LEVELS * LEVELS)]
        .map(|level| (level % LEVELS) as f32 / (LEVELS - 1) as f32)
}

fn chart() -> Result<Picture, PipelineError> {
    let patch = PATCH_CELLS * PIXELS_PER_CELL;
    let side = PATCHES * patch;
    let pixels = (0..side).flat_map(|y| (0..side).flat_map(move |x| colour(y / patch, x / patch)));
    Picture::new(side, side, pixels.collect()).ok_or_else(|| refused("the chart is empty"))
}

/// Gaussian elimination with partial pivoting; `None` when the equations have no single finite solution.
fn solve(mut a: Vec<Vec<f64>>, mut b: Vec<[f64; 3]>) -> Option<Vec<[f64; 3]>> {
    let count = a.len();
    for column in 0..count {
        let pivot = (column..count).max_by(|i, j| a[*i][column].abs().total_cmp(&a[*j][column].abs()))?;
        a.swap(column, pivot);
        b.swap(column, pivot);
        if !a[column][column].is_normal() {
            return None;
        }
        for row in (0..count).filter(|row| *row != column) {
            let factor = a[row][column] / a[column][column];
            let (from, target) = (a[column].clone(), b[column]);
            a[row].iter_mut().zip(from).for_each(|(value, x)| *value -= factor * x);
            b[row].iter_mut().zip(target).for_each(|(value, x)| *value -= factor * x);
        }
    }
    for row in 0..count {
        b[row] = b[row].map(|value| value / a[row][row]);
    }
    b.iter().flatten().all(|value| value.is_finite()).then_some(b)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_chart_shows_every_colour_of_the_cube_once() {
        let mut colours: Vec<[u32; 3]> = (0..PATCHES * PATCHES)
            .map(|i| colour(i / PATCHES, i % PATCHES).map(|value| (value * 3.0).round() as u32))
            .collect();
        colours.sort_unstable();
        colours.dedup();
        assert_eq!(colours.len(), LEVELS.pow(3));
    }

    #[test]
    fn a_solution_solves_its_equations() {
        let a: Vec<Vec<f64>> =
            (0..5).map(|i| (0..5).map(|j| ((i * 7 + j * 3) % 11) as f64 - 4.0).collect()).collect();
        let x: [[f64; 3]; 5] = std::array::from_fn(|i| [i as f64, 1.0 - i as f64, 0.5]);
        let b = a.iter().map(|row| std::array::from_fn(|k| (0..5).map(|j| row[j] * x[j][k]).sum())).collect();
        for (got, expected) in solve(a, b).unwrap().iter().flatten().zip(x.iter().flatten()) {
            assert!((got - expected).abs() < 1e-9, "{got} {expected}");
        }
        assert_eq!(solve(vec![vec![1.0; 5]; 5], vec![[1.0; 3]; 5]), None);
        assert_eq!(solve(vec![vec![f64::NAN; 5]; 5], vec![[1.0; 3]; 5]), None);
    }

    #[test]
    fn a_latent_of_another_shape_is_refused() {
        let preview = LatentPreview { weights: [const { Vec::new() }; 3].map(|_: Vec<f32>| vec![1.0; 5]) };
        for shape in [&[3, 8, 8][..], &[1, 4, 8, 8], &[4, 0, 8]] {
            let latent = Tensor::zeros(shape, DType::F32, &Device::Cpu).unwrap();
            assert!(preview.render(&latent).is_err(), "{shape:?}");
        }
    }
}
