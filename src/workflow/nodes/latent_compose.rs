//! Latents made of nothing and of other latents: empty ones, one on another, sums and blends, masks to repaint by.

use candle_core::{DType, Device, Tensor};
use darkroom_pipelines::resample::{Crop, Filter};

use super::composite::composite;
use super::grid::{Grid, LONGEST_SIDE, check_size};
use super::latent_transform::{CELL, with_samples};
use crate::workflow::Context;
use crate::workflow::context::{Inputs, NodeError, Outputs};
use crate::workflow::interface::{Interface, boolean, float, int, link, tagged_combo};
use crate::workflow::latent::Latent;
use crate::workflow::registry::Registry;
use crate::workflow::value::{Kind, Value};

/// Adds them.
pub(super) fn register(registry: &mut Registry) {
    let side = |name, default, min| int(name, default, min, LONGEST_SIDE as u64);
    registry.add(
        Interface::new("EmptyLatentImage", "latent")
            .display("Empty Latent Image")
            .description("Latents with nothing in them, for a sampler to fill.")
            .input(side("width", 512, 16).with("step", 8))
            .input(side("height", 512, 16).with("step", 8))
            .input(int("batch_size", 1, 1, 4096))
            .output(Kind::LATENT),
        |inputs, _| empty(inputs, 4),
    );
    registry.add(
        Interface::new("EmptySD3LatentImage", "latent/sd3")
            .newer_schema()
            .input(side("width", 1024, 16).with("step", 16))
            .input(side("height", 1024, 16).with("step", 16))
            .input(int("batch_size", 1, 1, 4096))
            .output(Kind::LATENT)
            .module("comfy_extras.nodes_sd3"),
        |inputs, _| empty(inputs, 16),
    );
    registry.add(
        Interface::new("LatentComposite", "latent")
            .display("Latent Composite")
            .input(link("samples_to", Kind::LATENT))
            .input(link("samples_from", Kind::LATENT))
            .input(side("x", 0, 0).with("step", 8))
            .input(side("y", 0, 0).with("step", 8))
            .input(side("feather", 0, 0).with("step", 8))
            .output(Kind::LATENT),
        put_on,
    );
    registry.add(
        Interface::new("LatentCompositeMasked", "latent")
            .input(link("destination", Kind::LATENT))
            .input(link("source", Kind::LATENT))
            .input(side("x", 0, 0).with("step", 8))
            .input(side("y", 0, 0).with("step", 8))
            .input(boolean("resize_source", false))
            .optional(link("mask", Kind::MASK))
            .output(Kind::LATENT)
            .module("comfy_extras.nodes_mask"),
        composite_masked,
    );
    let mut factor = float("blend_factor", 0.5, 0.0, 1.0).with("step", 0.01);
    factor = factor.with("min", 0).with("max", 1);
    registry.add(
        Interface::new("LatentBlend", "_for_testing")
            .display("Latent Blend")
            .input(link("samples1", Kind::LATENT))
            .input(link("samples2", Kind::LATENT))
            .input(factor)
            .output(Kind::LATENT),
        blend,
    );
    let advanced = |class| {
        Interface::new(class, "latent/advanced").module("comfy_extras.nodes_latent").output(Kind::LATENT)
    };
    let two =
        |class| advanced(class).input(link("samples1", Kind::LATENT)).input(link("samples2", Kind::LATENT));
    registry.add(two("LatentAdd"), |inputs, _| zipped(inputs, |a, b| a + b));
    registry.add(two("LatentSubtract"), |inputs, _| zipped(inputs, |a, b| a - b));
    registry.add(
        advanced("LatentMultiply")
            .input(link("samples", Kind::LATENT))
            .input(float("multiplier", 1.0, -10.0, 10.0).with("step", 0.01)),
        multiply,
    );
    registry
        .add(two("LatentInterpolate").input(float("ratio", 1.0, 0.0, 1.0).with("step", 0.01)), interpolate);
    registry.add(two("LatentConcat").input(tagged_combo("dim", ["x", "-x", "y", "-y", "t", "-t"])), concat);
    registry.add(
        Interface::new("SetLatentNoiseMask", "latent/inpaint")
            .display("Set Latent Noise Mask")
            .input(link("samples", Kind::LATENT))
            .input(link("mask", Kind::MASK))
            .output(Kind::LATENT),
        set_noise_mask,
    );
}

fn empty(inputs: &Inputs, channels: usize) -> Result<Outputs, NodeError> {
    let (width, height) = (inputs.size("width")? / CELL, inputs.size("height")? / CELL);
    let count = inputs.size("batch_size")?;
    check_size(count, height, width, channels)?;
    let samples = Tensor::zeros((count, channels, height, width), DType::F32, &Device::Cpu)?;
    Ok(Outputs::one(Value::Latent(Latent::new(samples).into())))
}

/// The two inputs, the second in the shape of the first (ComfyUI's `reshape_latent_to`).
fn pair(inputs: &Inputs, filter: Filter) -> Result<(Grid<'static>, Grid<'static>), NodeError> {
    let first = Grid::of_latent(&*inputs.latent("samples1")?)?;
    let second = Grid::of_latent(&*inputs.latent("samples2")?)?;
    let second = fitted(second, &first, filter)?;
    Ok((first, second))
}

/// `latent` at the size of `target`.
pub(super) fn fitted(
    latent: Grid<'static>,
    target: &Grid<'_>,
    filter: Filter,
) -> Result<Grid<'static>, NodeError> {
    if latent.shape() == target.shape() {
        return Ok(latent);
    }
    latent.scaled(target.width, target.height, filter, Crop::Center)
}

fn zipped(inputs: &Inputs, mix: fn(f32, f32) -> f32) -> Result<Outputs, NodeError> {
    let (first, second) = pair(inputs, Filter::Bilinear)?;
    let second = second.with_count(first.count)?;
    with_samples(&*inputs.latent("samples1")?, first.zip(&second, mix)?)
}

fn multiply(inputs: &Inputs, _: &Context<'_>) -> Result<Outputs, NodeError> {
    let latent = inputs.latent("samples")?;
    let by = inputs.float("multiplier")? as f32;
    with_samples(&latent, Grid::of_latent(&latent)?.map(|value| value * by))
}

fn blend(inputs: &Inputs, _: &Context<'_>) -> Result<Outputs, NodeError> {
    let factor = inputs.float("blend_factor")?;
    let (first, second) = pair(inputs, Filter::Bicubic)?;
    let (kept, share) = (factor as f32, (1.0 - factor) as f32);
    with_samples(&*inputs.latent("samples1")?, first.zip(&second, |a, b| a * kept + b * share)?)
}

/// Directions and lengths of the channels' vectors are mixed apart from each other.
fn interpolate(inputs: &Inputs, _: &Context<'_>) -> Result<Outputs, NodeError> {
    let ratio = inputs.float("ratio")?;
    let (ratio, rest) = (ratio as f32, (1.0 - ratio) as f32);
    let (mut first, second) = pair(inputs, Filter::Bilinear)?;
    let second = second.with_count(first.count)?;
    if first.shape() != second.shape() {
        return Err(NodeError::input("samples2", "has another number of channels than samples1"));
    }
    let (count, (width, height, channels)) = (first.count, first.shape());
    let norms = |grid: &Grid<'_>| -> Vec<f32> {
        let cells = grid.data().chunks_exact(channels);
        cells.map(|cell| cell.iter().map(|value| value * value).sum::<f32>().sqrt()).collect()
    };
    let cells = width * height;
    // ComfyUI divides channels by lengths that it lines up with them by the place in the batch; that is the sample's
    // own length where there is one sample. With as many samples as channels it is that of another sample.
    let crossed = count == channels;
    let length_of = |norms: &[f32], cell: usize, channel: usize| {
        norms[if crossed { channel * cells + cell % cells } else { cell }]
    };
    let (first_norms, second_norms) = (norms(&first), norms(&second));
    let parts = second.data().to_vec();
    let finite = |value: f32| if value.is_nan() { 0.0 } else { value.clamp(f32::MIN, f32::MAX) };
    for (at, value) in first.data_mut().iter_mut().enumerate() {
        let (cell, channel) = (at / channels, at % channels);
        let unit = finite(*value / length_of(&first_norms, cell, channel));
        let other = finite(parts[at] / length_of(&second_norms, cell, channel));
        *value = unit * ratio + other * rest;
    }
    let mixed_norms = norms(&first);
    for (at, value) in first.data_mut().iter_mut().enumerate() {
        let (cell, channel) = (at / channels, at % channels);
        let length =
            length_of(&first_norms, cell, channel) * ratio + length_of(&second_norms, cell, channel) * rest;
        *value = finite(*value / length_of(&mixed_norms, cell, channel)) * length;
    }
    with_samples(&*inputs.latent("samples1")?, first)
}

fn concat(inputs: &Inputs, _: &Context<'_>) -> Result<Outputs, NodeError> {
    let (first, second) = (inputs.latent("samples1")?, inputs.latent("samples2")?);
    let dim = inputs.string("dim")?;
    let (mut a, mut b) = (Grid::of_latent(&first)?, Grid::of_latent(&second)?);
    b = b.with_count(a.count)?;
    if dim.starts_with('-') {
        std::mem::swap(&mut a, &mut b);
    }
    let fits = match dim.trim_start_matches('-') {
        "x" => (a.height, a.channels) == (b.height, b.channels),
        "y" => (a.width, a.channels) == (b.width, b.channels),
        _ => (a.width, a.height) == (b.width, b.height),
    };
    if !fits {
        return Err(NodeError::input("samples2", "does not fit beside samples1"));
    }
    let (count, width, height, channels) = (a.count, a.width, a.height, a.channels);
    let mut data = Vec::new();
    let out = match dim.trim_start_matches('-') {
        "x" => {
            let width = width + b.width;
            data.reserve_exact(check_size(count, height, width, channels)?);
            for line in 0..count * height {
                data.extend_from_slice(a.row(line / height, line % height));
                data.extend_from_slice(b.row(line / height, line % height));
            }
            Grid::new(count, height, width, channels, data)?
        }
        "y" => {
            let height = height + b.height;
            data.reserve_exact(check_size(count, height, width, channels)?);
            for i in 0..count {
                data.extend_from_slice(a.one(i));
                data.extend_from_slice(b.one(i));
            }
            Grid::new(count, height, width, channels, data)?
        }
        // Of latents with no time ComfyUI takes the channels for it.
        _ => {
            let all = channels + b.channels;
            data.reserve_exact(check_size(count, height, width, all)?);
            let cells = a.data().chunks_exact(channels).zip(b.data().chunks_exact(b.channels));
            for (a, b) in cells {
                data.extend_from_slice(a);
                data.extend_from_slice(b);
            }
            Grid::new(count, height, width, all, data)?
        }
    };
    with_samples(&first, out)
}

fn put_on(inputs: &Inputs, _: &Context<'_>) -> Result<Outputs, NodeError> {
    let (to, from) = (inputs.latent("samples_to")?, inputs.latent("samples_from")?);
    let (destination, source) = (Grid::of_latent(&to)?, Grid::of_latent(&from)?);
    if source.count != 1 && source.count != destination.count {
        return Err(NodeError::input(
            "samples_from",
            format!("has {} samples; samples_to has {}", source.count, destination.count),
        ));
    }
    let (x, y) = (inputs.size("x")? / CELL, inputs.size("y")? / CELL);
    let feather = inputs.size("feather")? / CELL;
    let width = source.width.min(destination.width.saturating_sub(x));
    let height = source.height.min(destination.height.saturating_sub(y));
    if feather == 0 || width == 0 || height == 0 {
        return with_samples(&to, composite(&destination, &source, (x, y), None, false)?);
    }
    let columns = soft_ends(width, feather, x != 0, x + width < destination.width);
    let rows = soft_ends(height, feather, y != 0, y + height < destination.height);
    let shares = rows.iter().flat_map(|row| {
        columns.iter().map(|column| row.iter().chain(column).fold(1.0, |share, rate| share * rate))
    });
    let mask = Grid::new(1, height, width, 1, shares.collect::<Vec<f32>>())?;
    let source = source.cut(0..width, 0..height)?;
    with_samples(&to, composite(&destination, &source, (x, y), Some(&mask), false)?)
}

/// What each place along a side is multiplied by where its ends are soft, in ComfyUI's order. A feather longer than
/// the side goes on from its far end, as Python's negative places do.
fn soft_ends(length: usize, feather: usize, near: bool, far: bool) -> Vec<Vec<f32>> {
    let mut rates = vec![Vec::new(); length];
    for at in 0..feather.min(2 * length) {
        let rate = (1.0 / feather as f64 * (at as f64 + 1.0)) as f32;
        if near && at < length {
            rates[at].push(rate);
        }
        if far && at != length {
            let place = if at < length { length - 1 - at } else { 2 * length - 1 - at };
            rates[place].push(rate);
        }
    }
    rates
}

fn composite_masked(inputs: &Inputs, _: &Context<'_>) -> Result<Outputs, NodeError> {
    let (to, from) = (inputs.latent("destination")?, inputs.latent("source")?);
    let mask = if inputs.get("mask").is_some() { Some(inputs.mask("mask")?) } else { None };
    let mask = mask.as_ref().map(Grid::of_mask).transpose()?;
    let place = (inputs.size("x")? / CELL, inputs.size("y")? / CELL);
    let (destination, source) = (Grid::of_latent(&to)?, Grid::of_latent(&from)?);
    let resize = inputs.boolean("resize_source")?;
    with_samples(&to, composite(&destination, &source, place, mask.as_ref(), resize)?)
}

fn set_noise_mask(inputs: &Inputs, _: &Context<'_>) -> Result<Outputs, NodeError> {
    let latent = inputs.latent("samples")?;
    let noise_mask = Some(inputs.mask("mask")?);
    Ok(Outputs::one(Value::Latent(Latent { noise_mask, ..(*latent).clone() }.into())))
}
