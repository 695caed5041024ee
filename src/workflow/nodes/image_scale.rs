//! Pictures at other sizes.

use darkroom_pipelines::resample::{Crop, Filter};

use super::arithmetic::{round, whole};
use super::grid::{Grid, LONGEST_SIDE};
use crate::workflow::Context;
use crate::workflow::context::{Inputs, NodeError, Outputs};
use crate::workflow::interface::{Interface, combo, float, int, link, tagged_combo};
use crate::workflow::registry::Registry;
use crate::workflow::value::{Kind, Value};

const METHODS: [&str; 5] = ["nearest-exact", "bilinear", "area", "bicubic", "lanczos"];
pub(super) const CROPS: [&str; 2] = ["disabled", "center"];

/// Adds them.
pub(super) fn register(registry: &mut Registry) {
    registry.add(
        Interface::new("ImageScale", "image/upscaling")
            .display("Upscale Image")
            .input(link("image", Kind::IMAGE))
            .input(combo("upscale_method", METHODS))
            .input(int("width", 512, 0, LONGEST_SIDE as u64).with("step", 1))
            .input(int("height", 512, 0, LONGEST_SIDE as u64).with("step", 1))
            .input(combo("crop", CROPS))
            .output(Kind::IMAGE),
        scale,
    );
    registry.add(
        Interface::new("ImageScaleBy", "image/upscaling")
            .display("Upscale Image By")
            .input(link("image", Kind::IMAGE))
            .input(combo("upscale_method", METHODS))
            .input(float("scale_by", 1.0, 0.01, 8.0).with("step", 0.01))
            .output(Kind::IMAGE),
        scale_by,
    );
    registry.add(
        Interface::new("ImageScaleToTotalPixels", "image/upscaling")
            .newer_schema()
            .input(link("image", Kind::IMAGE))
            .input(tagged_combo("upscale_method", METHODS))
            .input(float("megapixels", 1.0, 0.01, 16.0).with("step", 0.01))
            .output(Kind::IMAGE)
            .module("comfy_extras.nodes_post_processing"),
        scale_to_total_pixels,
    );
    registry.add(
        Interface::new("ImageScaleToMaxDimension", "image/upscaling")
            .input(link("image", Kind::IMAGE))
            // The source names one of them twice.
            .input(combo(
                "upscale_method",
                ["area", "lanczos", "bilinear", "nearest-exact", "bilinear", "bicubic"],
            ))
            .input(int("largest_size", 512, 0, LONGEST_SIDE as u64).with("step", 1))
            .output(Kind::IMAGE)
            .module("comfy_extras.nodes_images"),
        scale_to_max_dimension,
    );
    registry.add(
        Interface::new("ResizeAndPadImage", "image/transform")
            .input(link("image", Kind::IMAGE))
            .input(int("target_width", 512, 1, LONGEST_SIDE as u64).with("step", 1))
            .input(int("target_height", 512, 1, LONGEST_SIDE as u64).with("step", 1))
            .input(combo("padding_color", ["white", "black"]))
            .input(combo("interpolation", ["area", "bicubic", "nearest-exact", "bilinear", "lanczos"]))
            .output(Kind::IMAGE)
            .module("comfy_extras.nodes_images"),
        resize_and_pad,
    );
}

/// The filter that an input names.
fn filter(inputs: &Inputs, name: &str) -> Result<Filter, NodeError> {
    let method = inputs.string(name)?;
    Filter::of_name(&method).ok_or_else(|| {
        NodeError::input(name, format!("there is no method '{method}': {}", METHODS.join(", ")))
    })
}

/// The crop that an input names.
pub(super) fn crop(inputs: &Inputs, name: &str) -> Result<Crop, NodeError> {
    match &*inputs.string(name)? {
        "disabled" => Ok(Crop::Disabled),
        "center" => Ok(Crop::Center),
        other => Err(NodeError::input(name, format!("there is no crop '{other}': {}", CROPS.join(", ")))),
    }
}

fn scaled(
    inputs: &Inputs,
    width: usize,
    height: usize,
    filter: Filter,
    crop: Crop,
) -> Result<Outputs, NodeError> {
    let image = inputs.image("image")?;
    let scaled = Grid::of_image(&image)?.scaled(width, height, filter, crop)?;
    Ok(Outputs::one(Value::Image(scaled.into_image()?)))
}

fn scale(inputs: &Inputs, _: &Context<'_>) -> Result<Outputs, NodeError> {
    let image = inputs.image("image")?;
    let (mut width, mut height) = (inputs.size("width")?, inputs.size("height")?);
    if (width, height) == (0, 0) {
        return Ok(Outputs::one(Value::Image(image)));
    }
    // A side of 0 follows from the other.
    let (old_width, old_height) = (image.width() as f64, image.height() as f64);
    if width == 0 {
        width = round(old_width * height as f64 / old_height)?.max(1);
    } else if height == 0 {
        height = round(old_height * width as f64 / old_width)?.max(1);
    }
    scaled(inputs, width, height, filter(inputs, "upscale_method")?, crop(inputs, "crop")?)
}

fn scale_by(inputs: &Inputs, _: &Context<'_>) -> Result<Outputs, NodeError> {
    let image = inputs.image("image")?;
    let by = inputs.float("scale_by")?;
    let (width, height) = (round(image.width() as f64 * by)?, round(image.height() as f64 * by)?);
    scaled(inputs, width, height, filter(inputs, "upscale_method")?, Crop::Disabled)
}

fn scale_to_total_pixels(inputs: &Inputs, _: &Context<'_>) -> Result<Outputs, NodeError> {
    let image = inputs.image("image")?;
    let total = (inputs.float("megapixels")? * 1024.0 * 1024.0).trunc();
    let by = (total / (image.width() * image.height()) as f64).sqrt();
    let (width, height) = (round(image.width() as f64 * by)?, round(image.height() as f64 * by)?);
    scaled(inputs, width, height, filter(inputs, "upscale_method")?, Crop::Disabled)
}

fn scale_to_max_dimension(inputs: &Inputs, _: &Context<'_>) -> Result<Outputs, NodeError> {
    let image = inputs.image("image")?;
    let largest = inputs.size("largest_size")?;
    let (old_width, old_height) = (image.width() as f64, image.height() as f64);
    let (mut width, mut height) = (largest, largest);
    if old_height > old_width {
        width = round((old_width / old_height) * largest as f64)?;
    } else if old_width > old_height {
        height = round((old_height / old_width) * largest as f64)?;
    }
    scaled(inputs, width, height, filter(inputs, "upscale_method")?, Crop::Disabled)
}

fn resize_and_pad(inputs: &Inputs, _: &Context<'_>) -> Result<Outputs, NodeError> {
    let image = inputs.image("image")?;
    let (width, height) = (inputs.size("target_width")?, inputs.size("target_height")?);
    let (old_width, old_height) = (image.width() as f64, image.height() as f64);
    let by = (width as f64 / old_width).min(height as f64 / old_height);
    let (new_width, new_height) = (whole(old_width * by)?, whole(old_height * by)?);
    let scaled = Grid::of_image(&image)?.scaled(
        new_width,
        new_height,
        filter(inputs, "interpolation")?,
        Crop::Disabled,
    )?;
    let value = if &*inputs.string("padding_color")? == "black" { 0.0 } else { 1.0 };
    let place = (width.saturating_sub(new_width) / 2, height.saturating_sub(new_height) / 2);
    Ok(Outputs::one(Value::Image(scaled.placed(width, height, place, value)?.into_image()?)))
}
