//! Upscale models: loading one, and enlarging pictures with it in ComfyUI's tiles.

use candle_core::{Device, Tensor};
use darkroom_models::upscaler::Upscaler;

use crate::catalog::AuxiliaryKind;
use crate::engine::BorrowError;
use crate::workflow::context::{Inputs, NodeError, Outputs};
use crate::workflow::image::Image;
use crate::workflow::interface::{Choices, Interface, link, tagged_combo};
use crate::workflow::registry::Registry;
use crate::workflow::value::{Kind, Value};
use crate::workflow::{Context, interface};

const MODULE: &str = "comfy_extras.nodes_upscale_model";
/// Pixels of a tile's side, and pixels that neighbours share.
const TILE: usize = 512;
const OVERLAP: usize = 32;
/// A tile that is too large for the device is halved; below this, that is given up.
const SMALLEST_TILE: usize = 128;
/// The largest side of a result, and the most values of a batch of them.
const LARGEST_SIDE: usize = 16384;
const MOST_VALUES: usize = 1 << 30;
/// How files of weights end that others write; a file of the same name as `.safetensors` beside it is taken.
const EXTENSIONS: [&str; 6] = [".safetensors", ".sft", ".pth", ".pt", ".ckpt", ".bin"];

/// Adds them.
pub(super) fn register(registry: &mut Registry) {
    let mut name = tagged_combo("model_name", Vec::<String>::new());
    name.socket = interface::Socket::Combo {
        choices: Choices::Models { folder: "upscale_models", also: &[] },
        tagged: true,
    };
    registry.add(
        Interface::new("UpscaleModelLoader", "loaders")
            .newer_schema()
            .display("Load Upscale Model")
            .input(name)
            .output(Kind::UPSCALE_MODEL)
            .module(MODULE),
        load,
    );
    registry.add(
        Interface::new("ImageUpscaleWithModel", "image/upscaling")
            .newer_schema()
            .display("Upscale Image (using Model)")
            .input(link("upscale_model", Kind::UPSCALE_MODEL))
            .input(link("image", Kind::IMAGE))
            .output(Kind::IMAGE)
            .module(MODULE),
        upscale,
    );
}

fn load(inputs: &Inputs, context: &Context<'_>) -> Result<Outputs, NodeError> {
    let name = inputs.string("model_name")?;
    let id = without_extension(&name);
    if context.catalog.find_auxiliary(AuxiliaryKind::Upscaler, id).is_none() {
        let message = if name.ends_with(".safetensors") {
            format!("'{name}' is not in upscale_models of the models folder")
        } else {
            format!("'{name}' cannot be read: put '{id}.safetensors' beside it, which only has weights")
        };
        return Err(NodeError::input("model_name", message));
    }
    // Here, so that a file that cannot be used is told of where it is named.
    borrow(id, context)?;
    Ok(Outputs::one(Value::UpscaleModel(id.into())))
}

fn upscale(inputs: &Inputs, context: &Context<'_>) -> Result<Outputs, NodeError> {
    let image = inputs.image("image")?;
    let result = with_model(&image, &upscale_model(inputs, "upscale_model")?, context)?;
    Ok(Outputs::one(Value::Image(result)))
}

/// The name of a file without the ending that says how it is written.
pub(super) fn without_extension(name: &str) -> &str {
    EXTENSIONS.iter().find_map(|extension| name.strip_suffix(extension)).unwrap_or(name)
}

/// An `UPSCALE_MODEL`, by its id in the catalog.
///
/// # Errors
/// When it is not there or of another type.
pub(super) fn upscale_model(inputs: &Inputs, name: &str) -> Result<std::sync::Arc<str>, NodeError> {
    match inputs.get(name) {
        Some(Value::UpscaleModel(id)) => Ok(std::sync::Arc::clone(id)),
        Some(_) => Err(NodeError::input(name, "is no upscale model")),
        None => Err(NodeError::input(name, "is missing")),
    }
}

fn borrow(id: &str, context: &Context<'_>) -> Result<std::sync::Arc<Upscaler>, NodeError> {
    context.engine.borrow_upscaler(id, context.interrupt).map_err(|error| match error {
        BorrowError::Interrupted => NodeError::Interrupted,
        other => NodeError::Failed(other.to_string()),
    })
}

/// Every picture of `image`, enlarged by the upscale model `id`: what `ImageUpscaleWithModel` does.
///
/// # Errors
/// When the model cannot be had or does not take such pictures, the result is too large, or the prompt is interrupted.
pub(super) fn with_model(image: &Image, id: &str, context: &Context<'_>) -> Result<Image, NodeError> {
    let upscaler = borrow(id, context)?;
    let (inputs, outputs) =
        (upscaler.architecture().input_channels(), upscaler.architecture().output_channels());
    if inputs != image.channels() {
        let message =
            format!("the upscale model takes {inputs} channels; the pictures have {}", image.channels());
        return Err(NodeError::Failed(message));
    }
    if ![1, 3].contains(&outputs) {
        return Err(NodeError::Failed(format!("the upscale model gives {outputs} channels; 3 are needed")));
    }
    let scale = upscaler.scale();
    let (width, height) = (image.width().saturating_mul(scale), image.height().saturating_mul(scale));
    let values = width.saturating_mul(height).saturating_mul(3).saturating_mul(image.count());
    if width.max(height) > LARGEST_SIDE || values > MOST_VALUES {
        let message = format!(
            "{} pictures of {width}×{height} would come out, which is too large; {LARGEST_SIDE} is the longest side",
            image.count()
        );
        return Err(NodeError::Failed(message));
    }
    let mut tile = TILE;
    loop {
        match tiled(image, &upscaler, tile, context) {
            Err(NodeError::OutOfMemory(_)) if tile / 2 >= SMALLEST_TILE => tile /= 2,
            other => return other,
        }
    }
}

fn tiled(image: &Image, upscaler: &Upscaler, tile: usize, context: &Context<'_>) -> Result<Image, NodeError> {
    let grid = Grid::new(image.width(), image.height(), tile, OVERLAP);
    let (steps, mut done) = (image.count() * grid.count(), 0);
    let scale = upscaler.scale();
    let mut data = Vec::with_capacity(image.count() * image.height() * image.width() * scale * scale * 3);
    for index in 0..image.count() {
        let enlarged =
            grid.blend(image.picture(index), image.channels(), scale, |pixels, height, width| {
                context.check_interrupt()?;
                let pixels = Tensor::from_vec(pixels, (1, height, width, image.channels()), &Device::Cpu)?;
                let result = upscaler.forward(&pixels).map_err(|error| failure(&error.to_string()))?;
                let result = result.broadcast_as((1, height * scale, width * scale, 3))?.flatten_all()?;
                let result = result.to_vec1()?;
                done += 1;
                context.progress(done, steps);
                Ok(result)
            })?;
        data.extend(enlarged);
    }
    let (width, height) = (image.width() * scale, image.height() * scale);
    Image::new(image.count(), height, width, 3, data)
        .ok_or_else(|| NodeError::Failed("the tiles make no picture".into()))
}

/// An error of the device, told apart by its words: there is no other sign.
fn failure(message: &str) -> NodeError {
    if message.to_lowercase().contains("out of memory") {
        NodeError::OutOfMemory(message.to_owned())
    } else {
        NodeError::Failed(message.to_owned())
    }
}

/// Overlapping tiles that cover a picture, as `comfy.utils.tiled_scale` places and blends them.
struct Grid {
    width: usize,
    height: usize,
    rows: Vec<(usize, usize)>,
    columns: Vec<(usize, usize)>,
    overlap: usize,
}

impl Grid {
    fn new(width: usize, height: usize, tile: usize, overlap: usize) -> Self {
        let spans = |side: usize| -> Vec<(usize, usize)> {
            if side <= tile {
                return vec![(0, side)];
            }
            let starts = (0..side - overlap).step_by(tile - overlap);
            starts.map(|start| (start, tile.min(side - start))).collect()
        };
        Self { width, height, rows: spans(height), columns: spans(width), overlap }
    }

    fn count(&self) -> usize {
        self.rows.len() * self.columns.len()
    }

    /// `picture: [height, width, channels]`, tile by tile through `network` (values, height and width to three
    /// channels `scale` times as large), put together. Clamped to 0 to 1.
    fn blend(
        &self,
        picture: &[f32],
        channels: usize,
        scale: usize,
        mut network: impl FnMut(Vec<f32>, usize, usize) -> Result<Vec<f32>, NodeError>,
    ) -> Result<Vec<f32>, NodeError> {
        let width = self.width * scale;
        if self.count() == 1 {
            let mut result = network(picture.to_vec(), self.height, self.width)?;
            result.iter_mut().for_each(|value| *value = value.clamp(0.0, 1.0));
            return Ok(result);
        }
        let mut sum = vec![0f32; width * self.height * scale * 3];
        for &(top, rows) in &self.rows {
            for &(left, columns) in &self.columns {
                let lines = (top..top + rows).flat_map(|y| {
                    let start = (y * self.width + left) * channels;
                    &picture[start..start + columns * channels]
                });
                let tile = network(lines.copied().collect(), rows, columns)?;
                let (down, across) = (self.ramp(rows, scale), self.ramp(columns, scale));
                let lines = tile.chunks_exact(columns * scale * 3).zip(&down).enumerate();
                for (y, (line, &weight)) in lines {
                    let start = ((top * scale + y) * width + left * scale) * 3;
                    let target = sum[start..start + line.len()].chunks_exact_mut(3);
                    for ((target, pixel), &share) in target.zip(line.chunks_exact(3)).zip(&across) {
                        let weight = weight * share;
                        target.iter_mut().zip(pixel).for_each(|(sum, value)| *sum += value * weight);
                    }
                }
            }
        }
        // Tiles form a grid, so a pixel's weights add up to the product of its row's and its column's.
        let total = |spans: &[(usize, usize)], side: usize| -> Vec<f32> {
            let mut total = vec![0f32; side * scale];
            for &(start, length) in spans {
                let ramp = self.ramp(length, scale);
                total[start * scale..].iter_mut().zip(&ramp).for_each(|(sum, weight)| *sum += weight);
            }
            total
        };
        let (down, across) = (total(&self.rows, self.height), total(&self.columns, self.width));
        for (line, down) in sum.chunks_exact_mut(width * 3).zip(&down) {
            for (pixel, across) in line.chunks_exact_mut(3).zip(&across) {
                pixel.iter_mut().for_each(|value| *value = (*value / (down * across)).clamp(0.0, 1.0));
            }
        }
        Ok(sum)
    }

    /// Weights along a tile's side: rising to 1 over the overlap at both ends, flat where it is shorter than that.
    fn ramp(&self, length: usize, scale: usize) -> Vec<f32> {
        let (length, feather) = (length * scale, self.overlap * scale);
        let mut weights = vec![1f32; length];
        if feather < length {
            for i in 0..feather {
                let weight = ((i + 1) as f64 / feather as f64) as f32;
                weights[i] *= weight;
                weights[length - 1 - i] *= weight;
            }
        }
        weights
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::sync::Arc;

    use darkroom_models::weights::WeightFile;

    use super::*;

    #[test]
    fn tiles_are_placed_and_blended_as_comfyui_does() {
        /// Single precision on both sides; the network alone has 1e-6.
        const TOLERANCE: f32 = 2e-6;
        let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/tests/golden/upscaler");
        let cases = candle_core::safetensors::load(golden.join("cases.safetensors"), &Device::Cpu).unwrap();
        let values = |name: &str| -> Vec<f32> {
            let last = cases[name].permute((0, 2, 3, 1)).unwrap();
            last.flatten_all().unwrap().to_vec1().unwrap()
        };
        let file = Arc::new(WeightFile::open(&golden.join("esrgan_x4.safetensors")).unwrap());
        let upscaler = Upscaler::from_file(&file, &Device::Cpu).unwrap();
        let (_, _, height, width) = cases["tiled.pixels"].dims4().unwrap();
        let grid = Grid::new(width, height, 16, 4);
        assert_eq!(grid.rows, [(0, 16), (12, 16), (24, 16), (36, 5)]);
        let result = grid.blend(&values("tiled.pixels"), 3, 4, |pixels, height, width| {
            let pixels = Tensor::from_vec(pixels, (1, height, width, 3), &Device::Cpu)?;
            Ok(upscaler.forward(&pixels).unwrap().flatten_all()?.to_vec1()?)
        });
        let result = result.unwrap();
        let worst = result.iter().zip(values("tiled.result")).map(|(a, b)| (a - b).abs());
        let worst = worst.fold(0f32, f32::max);
        assert!(worst < TOLERANCE, "{worst:e}");
    }

    #[test]
    fn a_picture_that_fits_a_tile_is_one() {
        assert_eq!(Grid::new(512, 512, 512, 32).count(), 1);
        assert_eq!(Grid::new(513, 512, 512, 32).columns, [(0, 512), (480, 33)]);
    }

    #[test]
    fn what_writes_a_file_does_not_matter() {
        assert_eq!(without_extension("a/4x-UltraSharp.pth"), "a/4x-UltraSharp");
        assert_eq!(without_extension("4x.v2.safetensors"), "4x.v2");
        assert_eq!(without_extension("plain"), "plain");
    }
}
