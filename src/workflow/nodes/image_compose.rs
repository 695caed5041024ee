//! Pictures made of nothing and of other pictures: empty ones, blends, one on another, borders, one beside another.

use darkroom_pipelines::resample::{Crop, Filter};

use super::arithmetic::whole;
use super::composite::composite;
use super::grid::{Grid, LONGEST_SIDE, check_size, with_channels_of};
use crate::workflow::Context;
use crate::workflow::context::{Inputs, NodeError, Outputs};
use crate::workflow::interface::{Interface, boolean, combo, float, int, link, tagged_combo};
use crate::workflow::registry::Registry;
use crate::workflow::value::{Kind, Value};

/// Adds them.
pub(super) fn register(registry: &mut Registry) {
    let side = |name, default, min| int(name, default, min, LONGEST_SIDE as u64);
    registry.add(
        Interface::new("EmptyImage", "image")
            .input(side("width", 512, 1).with("step", 1))
            .input(side("height", 512, 1).with("step", 1))
            .input(int("batch_size", 1, 1, 4096))
            .input(int("color", 0, 0, 0xFF_FFFF).with("step", 1).with("display", "color"))
            .output(Kind::IMAGE),
        empty,
    );
    registry.add(
        Interface::new("ImageBlend", "image/postprocessing")
            .newer_schema()
            .input(link("image1", Kind::IMAGE))
            .input(link("image2", Kind::IMAGE))
            .input(float("blend_factor", 0.5, 0.0, 1.0).with("step", 0.01))
            .input(tagged_combo(
                "blend_mode",
                ["normal", "multiply", "screen", "overlay", "soft_light", "difference"],
            ))
            .output(Kind::IMAGE)
            .module("comfy_extras.nodes_post_processing"),
        blend,
    );
    registry.add(
        Interface::new("ImageCompositeMasked", "image")
            .input(link("destination", Kind::IMAGE))
            .input(link("source", Kind::IMAGE))
            .input(side("x", 0, 0).with("step", 1))
            .input(side("y", 0, 0).with("step", 1))
            .input(boolean("resize_source", false))
            .optional(link("mask", Kind::MASK))
            .output(Kind::IMAGE)
            .module("comfy_extras.nodes_mask"),
        composite_masked,
    );
    registry.add(
        Interface::new("ImagePadForOutpaint", "image")
            .display("Pad Image for Outpainting")
            .input(link("image", Kind::IMAGE))
            .input(side("left", 0, 0).with("step", 8))
            .input(side("top", 0, 0).with("step", 8))
            .input(side("right", 0, 0).with("step", 8))
            .input(side("bottom", 0, 0).with("step", 8))
            .input(side("feathering", 40, 0).with("step", 1))
            .output(Kind::IMAGE)
            .output(Kind::MASK),
        pad_for_outpaint,
    );
    registry.add(
        Interface::new("ImageStitch", "image/transform")
            .display("Image Stitch")
            .description("Two pictures beside each other, with a gap of one colour if one is wanted.")
            .input(link("image1", Kind::IMAGE))
            .input(combo("direction", ["right", "down", "left", "up"]).with("default", "right"))
            .input(boolean("match_image_size", true))
            .input(int("spacing_width", 0, 0, 1024).with("step", 2))
            .input(
                combo("spacing_color", ["white", "black", "red", "green", "blue"]).with("default", "white"),
            )
            .optional(link("image2", Kind::IMAGE))
            .output(Kind::IMAGE)
            .module("comfy_extras.nodes_images"),
        stitch,
    );
}

fn empty(inputs: &Inputs, _: &Context<'_>) -> Result<Outputs, NodeError> {
    let (width, height, count) = (inputs.size("width")?, inputs.size("height")?, inputs.size("batch_size")?);
    let color = inputs.int("color")?;
    let part = |shift: u32| (((color >> shift) & 0xFF) as f64 / 255.0) as f32;
    let pixel = [part(16), part(8), part(0)];
    let values = check_size(count, height, width, 3)?;
    let data: Vec<f32> = pixel.into_iter().cycle().take(values).collect();
    Ok(Outputs::one(Value::Image(Grid::new(count, height, width, 3, data)?.into_image()?)))
}

fn blend(inputs: &Inputs, _: &Context<'_>) -> Result<Outputs, NodeError> {
    let (first, second) = (inputs.image("image1")?, inputs.image("image2")?);
    let factor = inputs.float("blend_factor")?;
    let first = Grid::of_image(&first)?;
    let mut second = with_channels_of(&first, Grid::of_image(&second)?)?;
    if first.shape() != second.shape() {
        second = second.scaled(first.width, first.height, Filter::Bicubic, Crop::Center)?;
    }
    let mode = inputs.string("blend_mode")?;
    let mix: fn(f32, f32) -> f32 = match &*mode {
        "normal" => |_, b| b,
        "multiply" => |a, b| a * b,
        "screen" => |a, b| 1.0 - (1.0 - a) * (1.0 - b),
        "overlay" => |a, b| if a <= 0.5 { 2.0 * a * b } else { 1.0 - 2.0 * (1.0 - a) * (1.0 - b) },
        "soft_light" => soft_light,
        "difference" => |a, b| a - b,
        other => return Err(NodeError::input("blend_mode", format!("there is no mode '{other}'"))),
    };
    let (kept, share) = ((1.0 - factor) as f32, factor as f32);
    let blended = first.zip(&second, |a, b| (a * kept + mix(a, b) * share).clamp(0.0, 1.0))?;
    Ok(Outputs::one(Value::Image(blended.into_image()?)))
}

/// W3C's formula.
fn soft_light(a: f32, b: f32) -> f32 {
    let raised = |x: f32| if x <= 0.25 { ((16.0 * x - 12.0) * x + 4.0) * x } else { x.sqrt() };
    if b <= 0.5 { a - (1.0 - 2.0 * b) * a * (1.0 - a) } else { a + (2.0 * b - 1.0) * (raised(a) - a) }
}

fn composite_masked(inputs: &Inputs, _: &Context<'_>) -> Result<Outputs, NodeError> {
    let (destination, source) = (inputs.image("destination")?, inputs.image("source")?);
    let destination = Grid::of_image(&destination)?;
    let source = with_channels_of(&destination, Grid::of_image(&source)?)?;
    let mask = if inputs.get("mask").is_some() { Some(inputs.mask("mask")?) } else { None };
    let mask = mask.as_ref().map(Grid::of_mask).transpose()?;
    let place = (inputs.size("x")?, inputs.size("y")?);
    let out = composite(&destination, &source, place, mask.as_ref(), inputs.boolean("resize_source")?)?;
    Ok(Outputs::one(Value::Image(out.into_image()?)))
}

fn pad_for_outpaint(inputs: &Inputs, _: &Context<'_>) -> Result<Outputs, NodeError> {
    let image = inputs.image("image")?;
    let grid = Grid::of_image(&image)?;
    let [left, top, right, bottom] = ["left", "top", "right", "bottom"].map(|name| inputs.size(name));
    let (left, top, right, bottom) = (left?, top?, right?, bottom?);
    let feathering = inputs.size("feathering")?;
    let sum = |a: usize, b: usize, c: usize| a.saturating_add(b).saturating_add(c);
    let (width, height) = (sum(left, grid.width, right), sum(top, grid.height, bottom));
    let padded = grid.placed(width, height, (left, top), 0.5)?;
    let mut mask = Grid::filled(1, height, width, 1, 1.0)?;
    let feathers = feathering > 0 && feathering * 2 < grid.height && feathering * 2 < grid.width;
    // How far a line is from the nearest edge that has something beyond it; the whole length where none has.
    let distance = |at: usize, length: usize, before: usize, after: usize| {
        let from_start = if before != 0 { at } else { length };
        from_start.min(if after != 0 { length - at } else { length })
    };
    let (picture_width, picture_height) = (grid.width, grid.height);
    for (y, row) in mask.data_mut().chunks_exact_mut(width).skip(top).take(picture_height).enumerate() {
        let down = distance(y, picture_height, top, bottom);
        for (x, value) in row[left..][..picture_width].iter_mut().enumerate() {
            let near = down.min(distance(x, picture_width, left, right));
            let share = (feathering as f64 - near as f64) / feathering as f64;
            *value = if feathers && near < feathering { (share * share) as f32 } else { 0.0 };
        }
    }
    Ok(Outputs::of([Value::Image(padded.into_image()?), Value::Mask(mask.into_mask()?)]))
}

fn stitch(inputs: &Inputs, _: &Context<'_>) -> Result<Outputs, NodeError> {
    let first = inputs.image("image1")?;
    if inputs.get("image2").is_none() {
        return Ok(Outputs::one(Value::Image(first)));
    }
    let second = inputs.image("image2")?;
    let (mut first, mut second) = (Grid::of_image(&first)?, Grid::of_image(&second)?);
    let direction = inputs.string("direction")?;
    let across = matches!(&*direction, "left" | "right");
    let count = first.count.max(second.count);
    // The last of the shorter batch goes on.
    let lengthened = |grid: Grid<'_>| {
        let last = grid.part(grid.count - 1, 1)?;
        let more = count - grid.count;
        if more == 0 { grid.part(0, count) } else { Grid::batched(&[grid, last.repeated(more)?]) }
    };
    (first, second) = (lengthened(first)?, lengthened(second)?);
    let color = inputs.string("spacing_color")?;
    let (red, green, blue) = match &*color {
        "white" => (1.0, 1.0, 1.0),
        "red" => (1.0, 0.0, 0.0),
        "green" => (0.0, 1.0, 0.0),
        "blue" => (0.0, 0.0, 1.0),
        _ => (0.0, 0.0, 0.0),
    };
    if inputs.boolean("match_image_size")? {
        let aspect = second.width as f64 / second.height as f64;
        let (width, height) = if across {
            (whole(first.height as f64 * aspect)?, first.height)
        } else {
            (first.width, whole(first.width as f64 / aspect)?)
        };
        second = second.scaled(width, height, Filter::Lanczos, Crop::Disabled)?;
    } else {
        // Only white is put around as well as between.
        let value = if &*color == "white" { 1.0 } else { 0.0 };
        let centred = |grid: Grid<'_>, other: (usize, usize)| {
            let (width, height) = if across {
                (grid.width, grid.height.max(other.1))
            } else {
                (grid.width.max(other.0), grid.height)
            };
            let place = ((width - grid.width) / 2, (height - grid.height) / 2);
            grid.placed(width, height, place, value)
        };
        let sizes = ((first.width, first.height), (second.width, second.height));
        (first, second) = (centred(first, sizes.1)?, centred(second, sizes.0)?);
    }
    let channels = first.channels.max(second.channels);
    first = first.with_more_channels(channels - first.channels, 1.0)?;
    second = second.with_more_channels(channels - second.channels, 1.0)?;
    let spacing = inputs.size("spacing_width")?.next_multiple_of(2);
    let mut parts =
        if matches!(&*direction, "left" | "up") { vec![second, first] } else { vec![first, second] };
    if spacing > 0 {
        let (width, height) = if across { (spacing, parts[0].height) } else { (parts[0].width, spacing) };
        let pixel: Vec<f32> = [red, green, blue, 1.0].into_iter().take(channels).collect();
        let values = check_size(count, height, width, channels)?;
        let data: Vec<f32> = pixel.into_iter().cycle().take(values).collect();
        parts.insert(1, Grid::new(count, height, width, channels, data)?);
    }
    Ok(Outputs::one(Value::Image(joined(&parts, across)?.into_image()?)))
}

/// Grids of one count and as many channels side by side, or below each other.
fn joined(parts: &[Grid<'_>], across: bool) -> Result<Grid<'static>, NodeError> {
    let fits = |pair: &[Grid<'_>]| {
        if across { pair[0].height == pair[1].height } else { pair[0].width == pair[1].width }
    };
    if !parts.windows(2).all(fits) {
        return Err(NodeError::Failed("the pictures do not fit beside each other".into()));
    }
    let (widths, heights) = (parts.iter().map(|p| p.width).sum(), parts.iter().map(|p| p.height).sum());
    let (width, height) = if across { (widths, parts[0].height) } else { (parts[0].width, heights) };
    let (count, channels) = (parts[0].count, parts[0].channels);
    let mut data = Vec::with_capacity(check_size(count, height, width, channels)?);
    for i in 0..count {
        if across {
            for y in 0..height {
                parts.iter().for_each(|part| data.extend_from_slice(part.row(i, y)));
            }
        } else {
            parts.iter().for_each(|part| data.extend_from_slice(part.one(i)));
        }
    }
    Grid::new(count, height, width, channels, data)
}
