//! Masks of pictures and pictures of masks.

use darkroom_pipelines::resample::{Crop, Filter};

use super::grid::{Grid, check_size};
use crate::workflow::Context;
use crate::workflow::context::{Inputs, NodeError, Outputs};
use crate::workflow::interface::{Interface, combo, int, link};
use crate::workflow::registry::Registry;
use crate::workflow::value::{Kind, Value};

const CHANNELS: [&str; 4] = ["red", "green", "blue", "alpha"];

/// Adds them.
pub(super) fn register(registry: &mut Registry) {
    let node = |class| Interface::new(class, "mask").module("comfy_extras.nodes_mask");
    registry.add(
        node("MaskToImage")
            .display("Convert Mask to Image")
            .input(link("mask", Kind::MASK))
            .output(Kind::IMAGE),
        mask_to_image,
    );
    registry.add(
        node("ImageToMask")
            .display("Convert Image to Mask")
            .input(link("image", Kind::IMAGE))
            .input(combo("channel", CHANNELS))
            .output(Kind::MASK),
        image_to_mask,
    );
    registry.add(
        node("ImageColorToMask")
            .input(link("image", Kind::IMAGE))
            .input(int("color", 0, 0, 0xFF_FFFF).with("step", 1).with("display", "color"))
            .output(Kind::MASK),
        color_to_mask,
    );
    let node = |class| Interface::new(class, "mask/compositing").module("comfy_extras.nodes_compositing");
    registry.add(
        node("SplitImageWithAlpha")
            .newer_schema()
            .display("Split Image with Alpha")
            .input(link("image", Kind::IMAGE))
            .output(Kind::IMAGE)
            .output(Kind::MASK),
        split_alpha,
    );
    registry.add(
        node("JoinImageWithAlpha")
            .newer_schema()
            .display("Join Image with Alpha")
            .input(link("image", Kind::IMAGE))
            .input(link("alpha", Kind::MASK))
            .output(Kind::IMAGE),
        join_alpha,
    );
}

fn mask_to_image(inputs: &Inputs, _: &Context<'_>) -> Result<Outputs, NodeError> {
    let mask = inputs.mask("mask")?;
    check_size(mask.count(), mask.height(), mask.width(), 3)?;
    let data: Vec<f32> = mask.data().iter().flat_map(|value| [*value; 3]).collect();
    let image = Grid::new(mask.count(), mask.height(), mask.width(), 3, data)?;
    Ok(Outputs::one(Value::Image(image.into_image()?)))
}

fn image_to_mask(inputs: &Inputs, _: &Context<'_>) -> Result<Outputs, NodeError> {
    let image = inputs.image("image")?;
    let name = inputs.string("channel")?;
    let channel = CHANNELS.iter().position(|channel| **channel == *name);
    let channel = channel.filter(|channel| *channel < image.channels());
    let Some(channel) = channel else {
        let channels = image.channels();
        return Err(NodeError::input("channel", format!("the picture has {channels} channels, no '{name}'")));
    };
    Ok(Outputs::one(Value::Mask(Grid::of_image(&image)?.channel(channel)?.into_mask()?)))
}

fn color_to_mask(inputs: &Inputs, _: &Context<'_>) -> Result<Outputs, NodeError> {
    let image = inputs.image("image")?;
    let color = inputs.int("color")?;
    if image.channels() < 3 {
        return Err(NodeError::input("image", "has fewer than 3 channels"));
    }
    let level = |value: f32| i128::from((value.clamp(0.0, 1.0) * 255.0).round_ties_even() as u8);
    let of = |pixel: &[f32]| (level(pixel[0]) << 16) + (level(pixel[1]) << 8) + level(pixel[2]);
    let pixels = image.data().chunks_exact(image.channels());
    let data: Vec<f32> = pixels.map(|pixel| if of(pixel) == color { 1.0 } else { 0.0 }).collect();
    let mask = Grid::new(image.count(), image.height(), image.width(), 1, data)?;
    Ok(Outputs::one(Value::Mask(mask.into_mask()?)))
}

fn split_alpha(inputs: &Inputs, _: &Context<'_>) -> Result<Outputs, NodeError> {
    let image = inputs.image("image")?;
    let grid = Grid::of_image(&image)?;
    let mask = if grid.channels > 3 {
        grid.channel(3)?.map(|value| 1.0 - value)
    } else {
        Grid::filled(grid.count, grid.height, grid.width, 1, 0.0)?
    };
    Ok(Outputs::of([Value::Image(grid.first_channels(3)?.into_image()?), Value::Mask(mask.into_mask()?)]))
}

fn join_alpha(inputs: &Inputs, _: &Context<'_>) -> Result<Outputs, NodeError> {
    let (image, alpha) = (inputs.image("image")?, inputs.mask("alpha")?);
    let (image, alpha) = (Grid::of_image(&image)?, Grid::of_mask(&alpha)?);
    let alpha = alpha.scaled(image.width, image.height, Filter::Bilinear, Crop::Disabled)?;
    let count = image.count.min(alpha.count);
    let mut out = image.part(0, count)?.first_channels(3)?.with_more_channels(1, 0.0)?;
    let channels = out.channels;
    let pixels = out.data_mut().chunks_exact_mut(channels);
    for (pixel, alpha) in pixels.zip(alpha.data()) {
        pixel[channels - 1] = 1.0 - alpha;
    }
    Ok(Outputs::one(Value::Image(out.into_image()?)))
}
