//! Pictures with other values at the same places: inverted, softer, sharper, their edges.

use darkroom_pipelines::Picture;
use darkroom_pipelines::preprocess::canny::{Canny, CannyMethod};
use rayon::prelude::*;

use super::grid::{Grid, check_size};
use crate::workflow::Context;
use crate::workflow::context::{Inputs, NodeError, Outputs};
use crate::workflow::interface::{Interface, float, int, link};
use crate::workflow::registry::Registry;
use crate::workflow::value::{Kind, Value};

/// Adds them.
pub(super) fn register(registry: &mut Registry) {
    registry.add(
        Interface::new("ImageInvert", "image")
            .display("Invert Image")
            .input(link("image", Kind::IMAGE))
            .output(Kind::IMAGE),
        invert,
    );
    registry.add(
        Interface::new("ImageBlur", "image/postprocessing")
            .newer_schema()
            .input(link("image", Kind::IMAGE))
            .input(int("blur_radius", 1, 1, 31).with("step", 1))
            .input(float("sigma", 1.0, 0.1, 10.0).with("step", 0.1))
            .output(Kind::IMAGE)
            .module("comfy_extras.nodes_post_processing"),
        blur,
    );
    registry.add(
        Interface::new("ImageSharpen", "image/postprocessing")
            .newer_schema()
            .input(link("image", Kind::IMAGE))
            .input(int("sharpen_radius", 1, 1, 31).with("step", 1))
            .input(float("sigma", 1.0, 0.1, 10.0).with("step", 0.01))
            .input(float("alpha", 1.0, 0.0, 5.0).with("step", 0.01))
            .output(Kind::IMAGE)
            .module("comfy_extras.nodes_post_processing"),
        sharpen,
    );
    registry.add(
        Interface::new("Canny", "image/preprocessors")
            .newer_schema()
            .input(link("image", Kind::IMAGE))
            .input(float("low_threshold", 0.4, 0.01, 0.99).with("step", 0.01))
            .input(float("high_threshold", 0.8, 0.01, 0.99).with("step", 0.01))
            .output(Kind::IMAGE)
            .module("comfy_extras.nodes_canny"),
        canny,
    );
}

fn invert(inputs: &Inputs, _: &Context<'_>) -> Result<Outputs, NodeError> {
    Ok(Outputs::one(Value::Image(inputs.image("image")?.map(|value| 1.0 - value))))
}

fn blur(inputs: &Inputs, context: &Context<'_>) -> Result<Outputs, NodeError> {
    let image = inputs.image("image")?;
    let radius = inputs.size("blur_radius")?;
    if radius == 0 {
        return Ok(Outputs::one(Value::Image(image)));
    }
    let grid = Grid::of_image(&image)?;
    let blurred = gaussian(&grid, radius, "blur_radius", inputs.float("sigma")?, context)?;
    let data: Vec<f32> = blurred.into_iter().map(|value| value as f32).collect();
    let out = Grid::new(grid.count, grid.height, grid.width, grid.channels, data)?;
    Ok(Outputs::one(Value::Image(out.into_image()?)))
}

fn sharpen(inputs: &Inputs, context: &Context<'_>) -> Result<Outputs, NodeError> {
    let image = inputs.image("image")?;
    let radius = inputs.size("sharpen_radius")?;
    if radius == 0 {
        return Ok(Outputs::one(Value::Image(image)));
    }
    let grid = Grid::of_image(&image)?;
    // The kernel is the Gaussian times -10 alpha with its centre raised until all sum up to 1.
    let amount = inputs.float("alpha")? * 10.0;
    let blurred = gaussian(&grid, radius, "sharpen_radius", inputs.float("sigma")?, context)?;
    let sharp = |(soft, value): (&f64, &f32)| {
        let value = f64::from(*value);
        ((1.0 + amount) * value - amount * soft).clamp(0.0, 1.0) as f32
    };
    let data: Vec<f32> = blurred.par_iter().zip(grid.data()).map(sharp).collect();
    let out = Grid::new(grid.count, grid.height, grid.width, grid.channels, data)?;
    Ok(Outputs::one(Value::Image(out.into_image()?)))
}

/// The weights along one side: the kernel's width is 2 whatever its radius, and `sigma` is measured on that scale.
fn kernel(radius: usize, sigma: f64) -> Vec<f64> {
    let radius = radius as f64;
    let at = |i: usize| (i as f64 - radius) / radius;
    let weights: Vec<f64> =
        (0..=2 * radius as usize).map(|i| (-at(i) * at(i) / (2.0 * sigma * sigma)).exp()).collect();
    let sum: f64 = weights.iter().sum();
    weights.into_iter().map(|weight| weight / sum).collect()
}

/// Rows first, then columns; the borders mirror without repeating their own pixel. In double precision, since
/// sharpening takes up to fifty times the difference.
fn gaussian(
    grid: &Grid<'_>,
    radius: usize,
    name: &str,
    sigma: f64,
    context: &Context<'_>,
) -> Result<Vec<f64>, NodeError> {
    if radius >= grid.width || radius >= grid.height {
        return Err(NodeError::input(
            name,
            format!(
                "{radius} is too large for {}x{} pixels; it must be smaller than both sides",
                grid.width, grid.height
            ),
        ));
    }
    // One of the batch and two buffers of doubles are in memory at a time beside the result.
    check_size(grid.count.saturating_mul(2), grid.height, grid.width, grid.channels)?;
    let kernel = kernel(radius, sigma);
    let (width, height, channels) = grid.shape();
    let mirrored = |at: usize, length: usize| {
        let at = at.abs_diff(radius);
        if at < length { at } else { 2 * (length - 1) - at }
    };
    let stride = width * channels;
    let mut out = vec![0f64; grid.data().len()];
    for (i, out) in out.chunks_exact_mut(stride * height).enumerate() {
        context.check_interrupt()?;
        let mut wide = vec![0f64; stride * height];
        wide.par_chunks_mut(stride).enumerate().for_each(|(y, wide)| {
            let row = grid.row(i, y);
            for (x, pixel) in wide.chunks_exact_mut(channels).enumerate() {
                for (tap, weight) in kernel.iter().enumerate() {
                    let from = &row[mirrored(x + tap, width) * channels..][..channels];
                    pixel.iter_mut().zip(from).for_each(|(sum, value)| *sum += weight * f64::from(*value));
                }
            }
        });
        out.par_chunks_mut(stride).enumerate().for_each(|(y, out)| {
            for (tap, weight) in kernel.iter().enumerate() {
                let line = &wide[mirrored(y + tap, height) * stride..][..stride];
                out.iter_mut().zip(line).for_each(|(sum, value)| *sum += weight * value);
            }
        });
    }
    Ok(out)
}

fn canny(inputs: &Inputs, context: &Context<'_>) -> Result<Outputs, NodeError> {
    let image = inputs.image("image")?;
    let grid = Grid::of_image(&image)?;
    if grid.channels != 3 {
        return Err(NodeError::input("image", format!("has {} channels, not 3", grid.channels)));
    }
    let (low, high) = (inputs.float("low_threshold")?, inputs.float("high_threshold")?);
    let detector = Canny { low, high, method: CannyMethod::ComfyUi };
    detector.check().map_err(|error| NodeError::input("low_threshold", error.to_string()))?;
    let mut data = Vec::with_capacity(grid.data().len());
    for i in 0..grid.count {
        context.check_interrupt()?;
        let picture = Picture::new(grid.width, grid.height, grid.one(i).to_vec())
            .ok_or_else(|| NodeError::input("image", "is empty"))?;
        data.extend_from_slice(detector.detect(&picture).data());
    }
    let out = Grid::new(grid.count, grid.height, grid.width, 3, data)?;
    Ok(Outputs::one(Value::Image(out.into_image()?)))
}
