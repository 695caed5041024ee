//! Latents at other sizes, cut, mirrored and turned. Sizes in pixels are eight times those in cells.

use darkroom_pipelines::resample::Filter;

use super::arithmetic::{round, slice};
use super::grid::{Grid, LONGEST_SIDE};
use super::image_scale::{CROPS, crop as crop_of};
use super::image_transform::{FLIPS, ROTATIONS, flipped, quarters};
use crate::workflow::Context;
use crate::workflow::context::{Inputs, NodeError, Outputs};
use crate::workflow::interface::{Interface, combo, float, int, link, tagged_combo};
use crate::workflow::latent::Latent;
use crate::workflow::registry::Registry;
use crate::workflow::value::{Kind, Value};

const METHODS: [&str; 5] = ["nearest-exact", "bilinear", "area", "bicubic", "bislerp"];
/// Pixels of a cell.
pub(super) const CELL: usize = 8;

/// Adds them.
pub(super) fn register(registry: &mut Registry) {
    let side = |name, default, min| int(name, default, min, LONGEST_SIDE as u64).with("step", 8);
    registry.add(
        Interface::new("LatentUpscale", "latent")
            .display("Upscale Latent")
            .input(link("samples", Kind::LATENT))
            .input(combo("upscale_method", METHODS))
            .input(side("width", 512, 0))
            .input(side("height", 512, 0))
            .input(combo("crop", CROPS))
            .output(Kind::LATENT),
        upscale,
    );
    registry.add(
        Interface::new("LatentUpscaleBy", "latent")
            .display("Upscale Latent By")
            .input(link("samples", Kind::LATENT))
            .input(combo("upscale_method", METHODS))
            .input(float("scale_by", 1.5, 0.01, 8.0).with("step", 0.01))
            .output(Kind::LATENT),
        upscale_by,
    );
    registry.add(
        Interface::new("LatentFlip", "latent/transform")
            .display("Flip Latent")
            .input(link("samples", Kind::LATENT))
            .input(combo("flip_method", FLIPS))
            .output(Kind::LATENT),
        flip,
    );
    registry.add(
        Interface::new("LatentRotate", "latent/transform")
            .display("Rotate Latent")
            .input(link("samples", Kind::LATENT))
            .input(combo("rotation", ROTATIONS))
            .output(Kind::LATENT),
        rotate,
    );
    registry.add(
        Interface::new("LatentCrop", "latent/transform")
            .display("Crop Latent")
            .input(link("samples", Kind::LATENT))
            .input(side("width", 512, 64))
            .input(side("height", 512, 64))
            .input(side("x", 0, 0))
            .input(side("y", 0, 0))
            .output(Kind::LATENT),
        crop,
    );
    registry.add(
        Interface::new("LatentCut", "latent/advanced")
            .input(link("samples", Kind::LATENT))
            .input(tagged_combo("dim", ["x", "y", "t"]))
            .input(int("index", 0, -(LONGEST_SIDE as i64), LONGEST_SIDE as u64).with("step", 1))
            .input(int("amount", 1, 1, LONGEST_SIDE as u64).with("step", 1))
            .output(Kind::LATENT)
            .module("comfy_extras.nodes_latent"),
        cut,
    );
}

/// The same latent with other samples.
pub(super) fn with_samples(latent: &Latent, samples: Grid<'_>) -> Result<Outputs, NodeError> {
    let samples = samples.into_samples()?;
    Ok(Outputs::one(Value::Latent(Latent { samples, ..latent.clone() }.into())))
}

fn upscale(inputs: &Inputs, _: &Context<'_>) -> Result<Outputs, NodeError> {
    const LEAST: usize = 64;
    let latent = inputs.latent("samples")?;
    let grid = Grid::of_latent(&latent)?;
    let (mut width, mut height) = (inputs.size("width")?, inputs.size("height")?);
    if (width, height) == (0, 0) {
        return Ok(Outputs::one(Value::Latent(latent)));
    }
    // A side of 0 follows from the other.
    let (cells_across, cells_down) = (grid.width as f64, grid.height as f64);
    if width == 0 {
        height = height.max(LEAST);
        width = round(cells_across * height as f64 / cells_down)?.max(LEAST);
    } else if height == 0 {
        width = width.max(LEAST);
        height = round(cells_down * width as f64 / cells_across)?.max(LEAST);
    }
    let (width, height) = (width.max(LEAST) / CELL, height.max(LEAST) / CELL);
    with_samples(&latent, scaled(&grid, inputs, width, height)?)
}

fn upscale_by(inputs: &Inputs, _: &Context<'_>) -> Result<Outputs, NodeError> {
    let latent = inputs.latent("samples")?;
    let grid = Grid::of_latent(&latent)?;
    let by = inputs.float("scale_by")?;
    let (width, height) = (round(grid.width as f64 * by)?, round(grid.height as f64 * by)?);
    with_samples(&latent, scaled(&grid, inputs, width, height)?)
}

fn scaled(grid: &Grid<'_>, inputs: &Inputs, width: usize, height: usize) -> Result<Grid<'static>, NodeError> {
    let crop = if inputs.get("crop").is_some() {
        crop_of(inputs, "crop")?
    } else {
        darkroom_pipelines::resample::Crop::Disabled
    };
    let method = inputs.string("upscale_method")?;
    if &*method == "bislerp" {
        return grid.bislerped(width, height, crop);
    }
    let filter = Filter::of_name(&method).filter(|filter| *filter != Filter::Lanczos);
    let unknown = || {
        NodeError::input("upscale_method", format!("there is no method '{method}': {}", METHODS.join(", ")))
    };
    grid.scaled(width, height, filter.ok_or_else(unknown)?, crop)
}

fn flip(inputs: &Inputs, _: &Context<'_>) -> Result<Outputs, NodeError> {
    let latent = inputs.latent("samples")?;
    with_samples(&latent, flipped(&Grid::of_latent(&latent)?, inputs)?)
}

fn rotate(inputs: &Inputs, _: &Context<'_>) -> Result<Outputs, NodeError> {
    let latent = inputs.latent("samples")?;
    with_samples(&latent, Grid::of_latent(&latent)?.turned(quarters(inputs)?)?)
}

fn crop(inputs: &Inputs, _: &Context<'_>) -> Result<Outputs, NodeError> {
    let latent = inputs.latent("samples")?;
    let grid = Grid::of_latent(&latent)?;
    let range = |at: &str, size: &str, length: usize| -> Result<_, NodeError> {
        // At least eight cells are left; of a smaller latent the place is negative and counts from the end.
        let start = (inputs.int(at)? / CELL as i128).min(length as i128 - 8);
        Ok(slice(start, inputs.int(size)? / CELL as i128 + start, length))
    };
    let (columns, rows) = (range("x", "width", grid.width)?, range("y", "height", grid.height)?);
    with_samples(&latent, grid.cut(columns, rows)?)
}

fn cut(inputs: &Inputs, _: &Context<'_>) -> Result<Outputs, NodeError> {
    let latent = inputs.latent("samples")?;
    let grid = Grid::of_latent(&latent)?;
    let (index, amount) = (inputs.int("index")?, inputs.size("amount")?);
    let range = |length: usize| {
        let start = if index >= 0 { index } else { length as i128 + index };
        let start = start.clamp(0, length as i128 - 1) as usize;
        start..start.saturating_add(amount).min(length)
    };
    let cut = match &*inputs.string("dim")? {
        "x" => grid.cut(range(grid.width), 0..grid.height)?,
        "y" => grid.cut(0..grid.width, range(grid.height))?,
        _ => {
            // Of a latent with no time ComfyUI takes the channels for it.
            let range = range(grid.channels);
            let channels = grid.data().chunks_exact(grid.channels);
            let data: Vec<f32> = channels.flat_map(|cell| cell[range.clone()].iter().copied()).collect();
            Grid::new(grid.count, grid.height, grid.width, range.len(), data)?
        }
    };
    with_samples(&latent, cut)
}
