//! Masks made, changed and combined.

use rayon::prelude::*;

use super::grid::{Grid, LONGEST_SIDE};
use crate::workflow::Context;
use crate::workflow::context::{Inputs, NodeError, Outputs};
use crate::workflow::interface::{Input, Interface, boolean, combo, float, int, link};
use crate::workflow::registry::Registry;
use crate::workflow::value::{Kind, Value};

/// Adds them.
pub(super) fn register(registry: &mut Registry) {
    let node = |class| Interface::new(class, "mask").module("comfy_extras.nodes_mask");
    registry.add(
        node("SolidMask")
            .input(float("value", 1.0, 0.0, 1.0).with("step", 0.01))
            .input(side("width", 512, 1))
            .input(side("height", 512, 1))
            .output(Kind::MASK),
        solid,
    );
    registry.add(node("InvertMask").input(link("mask", Kind::MASK)).output(Kind::MASK), invert);
    registry.add(
        node("CropMask")
            .input(link("mask", Kind::MASK))
            .input(side("x", 0, 0))
            .input(side("y", 0, 0))
            .input(side("width", 512, 1))
            .input(side("height", 512, 1))
            .output(Kind::MASK),
        crop,
    );
    registry.add(
        node("MaskComposite")
            .input(link("destination", Kind::MASK))
            .input(link("source", Kind::MASK))
            .input(side("x", 0, 0))
            .input(side("y", 0, 0))
            .input(combo("operation", ["multiply", "add", "subtract", "and", "or", "xor"]))
            .output(Kind::MASK),
        combine,
    );
    registry.add(
        node("FeatherMask")
            .input(link("mask", Kind::MASK))
            .input(side("left", 0, 0))
            .input(side("top", 0, 0))
            .input(side("right", 0, 0))
            .input(side("bottom", 0, 0))
            .output(Kind::MASK),
        feather,
    );
    registry.add(
        node("GrowMask")
            .input(link("mask", Kind::MASK))
            .input(int("expand", 0, -(LONGEST_SIDE as i64), LONGEST_SIDE as u64).with("step", 1))
            .input(boolean("tapered_corners", true))
            .output(Kind::MASK),
        grow,
    );
    registry.add(
        node("ThresholdMask")
            .input(link("mask", Kind::MASK))
            .input(float("value", 0.5, 0.0, 1.0).with("step", 0.01))
            .output(Kind::MASK),
        threshold,
    );
}

fn side(name: &'static str, default: i64, min: i64) -> Input {
    int(name, default, min, LONGEST_SIDE as u64).with("step", 1)
}

fn give(mask: Grid<'_>) -> Result<Outputs, NodeError> {
    Ok(Outputs::one(Value::Mask(mask.into_mask()?)))
}

fn solid(inputs: &Inputs, _: &Context<'_>) -> Result<Outputs, NodeError> {
    let value = inputs.float("value")? as f32;
    give(Grid::filled(1, inputs.size("height")?, inputs.size("width")?, 1, value)?)
}

fn invert(inputs: &Inputs, _: &Context<'_>) -> Result<Outputs, NodeError> {
    Ok(Outputs::one(Value::Mask(inputs.mask("mask")?.map(|value| 1.0 - value))))
}

fn crop(inputs: &Inputs, _: &Context<'_>) -> Result<Outputs, NodeError> {
    let mask = inputs.mask("mask")?;
    let grid = Grid::of_mask(&mask)?;
    let (x, y) = (inputs.size("x")?, inputs.size("y")?);
    if x >= grid.width || y >= grid.height {
        let (name, length) = if x >= grid.width { ("x", grid.width) } else { ("y", grid.height) };
        return Err(NodeError::input(name, format!("begins beyond the mask's {length} pixels")));
    }
    let (right, bottom) = (x.saturating_add(inputs.size("width")?), y.saturating_add(inputs.size("height")?));
    give(grid.cut(x..right, y..bottom)?)
}

fn combine(inputs: &Inputs, _: &Context<'_>) -> Result<Outputs, NodeError> {
    let (destination, source) = (inputs.mask("destination")?, inputs.mask("source")?);
    let (mut grid, source) = (Grid::of_mask(&destination)?, Grid::of_mask(&source)?);
    if source.count != grid.count && source.count != 1 {
        return Err(NodeError::input(
            "source",
            format!("has {} masks; the destination has {}", source.count, grid.count),
        ));
    }
    let on = |value: f32| value.round_ties_even() != 0.0;
    let flag = |value: bool| if value { 1.0 } else { 0.0 };
    let operation = inputs.string("operation")?;
    let mix = |a: f32, b: f32| match &*operation {
        "multiply" => a * b,
        "add" => a + b,
        "subtract" => a - b,
        "and" => flag(on(a) && on(b)),
        "or" => flag(on(a) || on(b)),
        _ => flag(on(a) != on(b)),
    };
    let (x, y) = (inputs.size("x")?, inputs.size("y")?);
    let (width, height) = (grid.width, grid.height);
    let visible = source.width.min(width.saturating_sub(x));
    for (line, row) in grid.data_mut().chunks_exact_mut(width).enumerate() {
        let (i, line) = (line / height, line % height);
        if visible > 0 && (y..y.saturating_add(source.height)).contains(&line) {
            let from = source.row(i % source.count, line - y);
            row[x..][..visible].iter_mut().zip(from).for_each(|(value, other)| *value = mix(*value, *other));
        }
        row.iter_mut().for_each(|value| *value = value.clamp(0.0, 1.0));
    }
    give(grid)
}

fn feather(inputs: &Inputs, _: &Context<'_>) -> Result<Outputs, NodeError> {
    let mask = inputs.mask("mask")?;
    let mut grid = Grid::of_mask(&mask)?;
    let (width, height) = (grid.width, grid.height);
    let columns = ramp(inputs.size("left")?, inputs.size("right")?, width);
    let rows = ramp(inputs.size("top")?, inputs.size("bottom")?, height);
    for (line, row) in grid.data_mut().chunks_exact_mut(width).enumerate() {
        for (value, column) in row.iter_mut().zip(&columns) {
            let row = &rows[line % height];
            column.iter().chain(row).for_each(|rate| *value *= rate);
        }
    }
    give(grid)
}

/// What each place along a side is multiplied by, in ComfyUI's order. From the far end it counts as Python counts
/// from the end of a list, where "-0" is the first: the first place gets the far end's first rate.
fn ramp(near: usize, far: usize, length: usize) -> Vec<Vec<f32>> {
    let (near, far) = (near.min(length), far.min(length));
    let mut rates = vec![Vec::new(); length];
    let rate = |at: usize, of: usize| ((at as f64 + 1.0) / of as f64) as f32;
    (0..near).for_each(|at| rates[at].push(rate(at, near)));
    (0..far).for_each(|at| rates[(length - at) % length].push(rate(at, far)));
    rates
}

fn grow(inputs: &Inputs, context: &Context<'_>) -> Result<Outputs, NodeError> {
    let mask = inputs.mask("mask")?;
    let grid = Grid::of_mask(&mask)?;
    let expand = inputs.int("expand")?;
    let pick = if expand < 0 { f32::min } else { f32::max };
    let tapered = inputs.boolean("tapered_corners")?;
    let (width, height) = (grid.width, grid.height);
    let mut data = grid.data().to_vec();
    let mut next = data.clone();
    for one in 0..grid.count {
        let range = one * width * height..(one + 1) * width * height;
        let (mut current, mut other) = (&mut data[range.clone()], &mut next[range]);
        for _ in 0..expand.unsigned_abs() {
            context.check_interrupt()?;
            other.par_chunks_mut(width).enumerate().for_each(|(y, out)| {
                let lines = y.saturating_sub(1)..=(y + 1).min(height - 1);
                for (x, out) in out.iter_mut().enumerate() {
                    let (left, right) = (x.saturating_sub(1), (x + 1).min(width - 1));
                    *out = current[y * width + x];
                    for line in lines.clone() {
                        // Beyond the border lies the border's own value, which changes nothing.
                        let wide = line == y || !tapered;
                        let places = if wide { left..=right } else { x..=x };
                        places.for_each(|x| *out = pick(*out, current[line * width + x]));
                    }
                }
            });
            let settled = current == other;
            std::mem::swap(&mut current, &mut other);
            if settled {
                break;
            }
        }
        // The last round may have been written to either of the two.
        other.copy_from_slice(current);
    }
    give(Grid::new(grid.count, height, width, 1, data)?)
}

fn threshold(inputs: &Inputs, _: &Context<'_>) -> Result<Outputs, NodeError> {
    let value = inputs.float("value")? as f32;
    let mask = inputs.mask("mask")?.map(|mask| if mask > value { 1.0 } else { 0.0 });
    Ok(Outputs::one(Value::Mask(mask)))
}
