//! Batches of pictures: put together, taken apart, and their sizes.

use darkroom_pipelines::resample::{Crop, Filter};

use super::grid::Grid;
use crate::workflow::context::{Inputs, NodeError, Outputs, Slot};
use crate::workflow::interface::{Hidden, Interface, int, link};
use crate::workflow::registry::Registry;
use crate::workflow::value::{Kind, Value};
use crate::workflow::{Context, Event};

/// Adds them.
pub(super) fn register(registry: &mut Registry) {
    registry.add(
        Interface::new("ImageBatch", "image")
            .display("Batch Images")
            .input(link("image1", Kind::IMAGE))
            .input(link("image2", Kind::IMAGE))
            .output(Kind::IMAGE),
        batch,
    );
    registry.add(
        Interface::new("ImageFromBatch", "image/batch")
            .input(link("image", Kind::IMAGE))
            .input(int("batch_index", 0, 0, 4095))
            .input(int("length", 1, 1, 4096))
            .output(Kind::IMAGE)
            .module("comfy_extras.nodes_images"),
        from_batch,
    );
    registry.add(
        Interface::new("RepeatImageBatch", "image/batch")
            .input(link("image", Kind::IMAGE))
            .input(int("amount", 1, 1, 4096))
            .output(Kind::IMAGE)
            .module("comfy_extras.nodes_images"),
        repeat,
    );
    registry.add(
        Interface::new("RebatchImages", "image/batch")
            .newer_schema()
            .display("Rebatch Images")
            .input(link("images", Kind::IMAGE))
            .input(int("batch_size", 1, 1, 4096))
            .list_output("IMAGE", Kind::IMAGE)
            .takes_lists()
            .module("comfy_extras.nodes_rebatch"),
        rebatch,
    );
    registry.add(
        Interface::new("GetImageSize", "image")
            .display("Get Image Size")
            .description("The width and height of pictures, and how many there are.")
            .input(link("image", Kind::IMAGE))
            .hidden("unique_id", Hidden::UniqueId)
            .named_output("width", Kind::INT)
            .named_output("height", Kind::INT)
            .named_output("batch_size", Kind::INT)
            .module("comfy_extras.nodes_images"),
        size,
    );
}

fn batch(inputs: &Inputs, _: &Context<'_>) -> Result<Outputs, NodeError> {
    let (first, second) = (inputs.image("image1")?, inputs.image("image2")?);
    let (first, mut second) = (Grid::of_image(&first)?, Grid::of_image(&second)?);
    if first.shape() != second.shape() {
        second = second.scaled(first.width, first.height, Filter::Bilinear, Crop::Center)?;
    }
    // Newer versions give the one that has none an alpha that covers; 0.3.64 fails.
    let channels = first.channels.max(second.channels);
    let widened = |grid: Grid<'_>| grid.with_more_channels(channels - grid.channels, 1.0);
    let all = if first.channels == second.channels {
        Grid::batched(&[first, second])?
    } else {
        Grid::batched(&[widened(first)?, widened(second)?])?
    };
    Ok(Outputs::one(Value::Image(all.into_image()?)))
}

fn from_batch(inputs: &Inputs, _: &Context<'_>) -> Result<Outputs, NodeError> {
    let image = inputs.image("image")?;
    let grid = Grid::of_image(&image)?;
    let start = inputs.size("batch_index")?.min(grid.count - 1);
    Ok(Outputs::one(Value::Image(grid.part(start, inputs.size("length")?)?.into_image()?)))
}

fn repeat(inputs: &Inputs, _: &Context<'_>) -> Result<Outputs, NodeError> {
    let image = inputs.image("image")?;
    let repeated = Grid::of_image(&image)?.repeated(inputs.size("amount")?)?;
    Ok(Outputs::one(Value::Image(repeated.into_image()?)))
}

/// The size of batches that a list's first value asks for.
pub(super) fn batch_size(inputs: &Inputs) -> Result<usize, NodeError> {
    let sizes = inputs.list("batch_size")?;
    match sizes.first() {
        Some(Value::Int(size)) if *size > 0 => Ok(usize::try_from(*size).unwrap_or(usize::MAX)),
        _ => Err(NodeError::input("batch_size", "is no number from 1 on")),
    }
}

fn rebatch(inputs: &Inputs, _: &Context<'_>) -> Result<Outputs, NodeError> {
    let size = batch_size(inputs)?;
    let lists = inputs.list("images")?;
    let mut singles = Vec::new();
    for value in &lists {
        let Value::Image(image) = value else {
            return Err(NodeError::input("images", "has something else than pictures in it"));
        };
        for i in 0..image.count() {
            let (height, width, channels) = (image.height(), image.width(), image.channels());
            singles.push(Grid::new(1, height, width, channels, image.picture(i))?);
        }
    }
    let batches = singles.chunks(size).map(|part| Ok(Value::Image(Grid::batched(part)?.into_image()?)));
    Ok(Outputs { slots: vec![Slot::List(batches.collect::<Result<_, NodeError>>()?)], ui: None })
}

fn size(inputs: &Inputs, context: &Context<'_>) -> Result<Outputs, NodeError> {
    let image = inputs.image("image")?;
    let (width, height, count) = (image.width(), image.height(), image.count());
    let text = format!("width: {width}, height: {height}\n batch size: {count}");
    context.listener.tell(Event::Text { node: context.node.to_owned(), text });
    Ok(Outputs::of([width, height, count].map(|size| Value::Int(size as i128))))
}
