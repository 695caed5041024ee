//! Pictures with few colors.

use super::grid::Grid;
use super::palette::Palette;
use crate::workflow::Context;
use crate::workflow::context::{Inputs, NodeError, Outputs};
use crate::workflow::interface::{Interface, int, link, tagged_combo};
use crate::workflow::registry::Registry;
use crate::workflow::value::{Kind, Value};

/// Adds it.
pub(super) fn register(registry: &mut Registry) {
    registry.add(
        Interface::new("ImageQuantize", "image/postprocessing")
            .newer_schema()
            .input(link("image", Kind::IMAGE))
            .input(int("colors", 256, 1, 256).with("step", 1))
            .input(tagged_combo(
                "dither",
                ["none", "floyd-steinberg", "bayer-2", "bayer-4", "bayer-8", "bayer-16"],
            ))
            .output(Kind::IMAGE)
            .module("comfy_extras.nodes_post_processing"),
        quantize,
    );
}

fn quantize(inputs: &Inputs, context: &Context<'_>) -> Result<Outputs, NodeError> {
    let image = inputs.image("image")?;
    let grid = Grid::of_image(&image)?;
    if grid.channels != 3 {
        return Err(NodeError::input("image", format!("has {} channels, not 3", grid.channels)));
    }
    let colors = inputs.size("colors")?.clamp(1, 256);
    let dither = inputs.string("dither")?;
    let order = dither.strip_prefix("bayer-").and_then(|order| order.parse::<usize>().ok());
    let mut data = Vec::with_capacity(grid.data().len());
    for i in 0..grid.count {
        context.check_interrupt()?;
        let pixels: Vec<[u8; 3]> =
            grid.one(i).chunks_exact(3).map(|p| [p[0], p[1], p[2]].map(|v| (v * 255.0) as u8)).collect();
        let mut palette = Palette::median_cut(&pixels, colors);
        let out: Vec<[u8; 3]> = match order {
            Some(order) => {
                let shifts = bayer(order.clamp(2, 16), palette.len());
                let shifted = |(at, pixel): (usize, &[u8; 3])| {
                    let shift = shifts[at / grid.width % shifts.len()][at % grid.width % shifts.len()];
                    palette.nearest(pixel.map(|level| (f32::from(level) + shift).clamp(0.0, 255.0) as u8))
                };
                pixels.iter().enumerate().map(shifted).collect()
            }
            None if &*dither == "floyd-steinberg" => palette.dithered(&pixels, grid.width),
            None => pixels.iter().map(|pixel| palette.nearest(*pixel)).collect(),
        };
        data.extend(out.iter().flatten().map(|level| f32::from(*level) / 255.0));
    }
    let out = Grid::new(grid.count, grid.height, grid.width, 3, data)?;
    Ok(Outputs::one(Value::Image(out.into_image()?)))
}

/// By how much the pixels of a square of `order` are shifted before they look for their color.
fn bayer(order: usize, colors: usize) -> Vec<Vec<f32>> {
    let mut matrix = vec![vec![0f32]];
    let mut cells = 1f32;
    while matrix.len() < order {
        cells *= 4.0;
        let quarter = |shift: f32| {
            let matrix = &matrix;
            move |y: usize, x: usize| (cells * matrix[y][x] + shift) / cells
        };
        let (side, quarters) = (matrix.len(), [quarter(-1.5), quarter(0.5), quarter(1.5), quarter(-0.5)]);
        let cell = |y: usize, x: usize| quarters[2 * (y / side) + x / side](y % side, x % side);
        matrix = (0..2 * side).map(|y| (0..2 * side).map(|x| cell(y, x)).collect()).collect();
    }
    let spread = (2.0 * 256.0 / colors.max(1) as f64) as f32;
    matrix.into_iter().map(|row| row.into_iter().map(|value| spread * value + 0.5).collect()).collect()
}
