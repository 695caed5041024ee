//! Pictures cut, mirrored and turned.

use super::grid::{Grid, LONGEST_SIDE};
use crate::workflow::Context;
use crate::workflow::context::{Inputs, NodeError, Outputs};
use crate::workflow::interface::{Interface, combo, int, link};
use crate::workflow::registry::Registry;
use crate::workflow::value::{Kind, Value};

pub(super) const ROTATIONS: [&str; 4] = ["none", "90 degrees", "180 degrees", "270 degrees"];
pub(super) const FLIPS: [&str; 2] = ["x-axis: vertically", "y-axis: horizontally"];

/// Adds them.
pub(super) fn register(registry: &mut Registry) {
    registry.add(
        Interface::new("ImageCrop", "image/transform")
            .display("Image Crop")
            .input(link("image", Kind::IMAGE))
            .input(int("width", 512, 1, LONGEST_SIDE as u64).with("step", 1))
            .input(int("height", 512, 1, LONGEST_SIDE as u64).with("step", 1))
            .input(int("x", 0, 0, LONGEST_SIDE as u64).with("step", 1))
            .input(int("y", 0, 0, LONGEST_SIDE as u64).with("step", 1))
            .output(Kind::IMAGE)
            .module("comfy_extras.nodes_images"),
        crop,
    );
    registry.add(
        Interface::new("ImageFlip", "image/transform")
            .input(link("image", Kind::IMAGE))
            .input(combo("flip_method", FLIPS))
            .output(Kind::IMAGE)
            .module("comfy_extras.nodes_images"),
        flip,
    );
    registry.add(
        Interface::new("ImageRotate", "image/transform")
            .input(link("image", Kind::IMAGE))
            .input(combo("rotation", ROTATIONS))
            .output(Kind::IMAGE)
            .module("comfy_extras.nodes_images"),
        rotate,
    );
}

fn crop(inputs: &Inputs, _: &Context<'_>) -> Result<Outputs, NodeError> {
    let image = inputs.image("image")?;
    let grid = Grid::of_image(&image)?;
    let (x, y) = (inputs.size("x")?.min(grid.width - 1), inputs.size("y")?.min(grid.height - 1));
    let (right, bottom) = (x.saturating_add(inputs.size("width")?), y.saturating_add(inputs.size("height")?));
    Ok(Outputs::one(Value::Image(grid.cut(x..right, y..bottom)?.into_image()?)))
}

fn flip(inputs: &Inputs, _: &Context<'_>) -> Result<Outputs, NodeError> {
    let image = inputs.image("image")?;
    let flipped = flipped(&Grid::of_image(&image)?, inputs)?;
    Ok(Outputs::one(Value::Image(flipped.into_image()?)))
}

fn rotate(inputs: &Inputs, _: &Context<'_>) -> Result<Outputs, NodeError> {
    let image = inputs.image("image")?;
    let turned = Grid::of_image(&image)?.turned(quarters(inputs)?)?;
    Ok(Outputs::one(Value::Image(turned.into_image()?)))
}

/// What `flip_method` asks for.
pub(super) fn flipped(grid: &Grid<'_>, inputs: &Inputs) -> Result<Grid<'static>, NodeError> {
    if inputs.string("flip_method")?.starts_with('x') {
        grid.flipped_vertically()
    } else {
        grid.flipped_horizontally()
    }
}

/// What `rotation` asks for.
pub(super) fn quarters(inputs: &Inputs) -> Result<usize, NodeError> {
    let rotation = inputs.string("rotation")?;
    Ok(["90", "180", "270"].iter().position(|angle| rotation.starts_with(angle)).map_or(0, |i| i + 1))
}
