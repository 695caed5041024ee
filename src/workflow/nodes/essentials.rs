//! ComfyUI essentials: what a mask encloses, and sizes of pictures.

use darkroom_pipelines::resample::{Crop, Filter, Raster, scale};

use super::gaussian::{blurred, default_sigma};
use crate::workflow::Context;
use crate::workflow::context::{Inputs, NodeError, Outputs};
use crate::workflow::image::{Image, Mask};
use crate::workflow::interface::{Input, Interface, combo, int, link};
use crate::workflow::registry::Registry;
use crate::workflow::value::{Kind, Value};

const MODULE: &str = "custom_nodes.ComfyUI_essentials";
/// ComfyUI's `MAX_RESOLUTION`.
const MAX_RESOLUTION: usize = 16384;

/// Adds them.
pub(super) fn register(registry: &mut Registry) {
    let whole = |name, default, max| -> Input { int(name, default, 0, max).with("step", 1) };
    registry.add(
        Interface::new("MaskBoundingBox+", "essentials/mask")
            .display("🔧 Mask Bounding Box")
            .input(link("mask", Kind::MASK))
            .input(whole("padding", 0, 4096))
            .input(whole("blur", 0, 256))
            .optional(link("image_optional", Kind::IMAGE))
            .output(Kind::MASK)
            .output(Kind::IMAGE)
            .named_output("x", Kind::INT)
            .named_output("y", Kind::INT)
            .named_output("width", Kind::INT)
            .named_output("height", Kind::INT)
            .module(MODULE),
        mask_bounding_box,
    );
    registry.add(
        Interface::new("GetImageSize+", "essentials/image utils")
            .display("🔧 Get Image Size")
            .input(link("image", Kind::IMAGE))
            .named_output("width", Kind::INT)
            .named_output("height", Kind::INT)
            .named_output("count", Kind::INT)
            .module(MODULE),
        |inputs, _| {
            let image = inputs.image("image")?;
            Ok(Outputs::of([image.width(), image.height(), image.count()].map(number)))
        },
    );
    registry.add(
        Interface::new("ImageResize+", "essentials/image manipulation")
            .display("🔧 Image Resize")
            .input(link("image", Kind::IMAGE))
            .input(whole("width", 512, MAX_RESOLUTION as u64))
            .input(whole("height", 512, MAX_RESOLUTION as u64))
            .input(combo(
                "interpolation",
                ["nearest", "bilinear", "bicubic", "area", "nearest-exact", "lanczos"],
            ))
            .input(combo("method", ["stretch", "keep proportion", "fill / crop", "pad"]))
            .input(combo(
                "condition",
                ["always", "downscale if bigger", "upscale if smaller", "if bigger area", "if smaller area"],
            ))
            .input(whole("multiple_of", 0, 512))
            .output(Kind::IMAGE)
            .named_output("width", Kind::INT)
            .named_output("height", Kind::INT)
            .module(MODULE),
        image_resize,
    );
}

fn number(value: usize) -> Value {
    Value::Int(value as i128)
}

fn failed(message: &str) -> NodeError {
    NodeError::Failed(message.to_owned())
}

fn mask_bounding_box(inputs: &Inputs, _: &Context<'_>) -> Result<Outputs, NodeError> {
    let mut mask = inputs.mask("mask")?;
    let (padding, blur) = (inputs.size("padding")?, inputs.size("blur")?);
    let (width, height, count) = (mask.width(), mask.height(), mask.count());
    let image = match inputs.get("image_optional") {
        Some(Value::Image(image)) => sized(image, width, height)?,
        Some(_) => return Err(NodeError::input("image_optional", "is no picture")),
        None => {
            let data = mask.data().iter().flat_map(|value| [*value; 3]).collect();
            Image::new(count, height, width, 3, data).ok_or_else(|| failed("the mask makes no picture"))?
        }
    };
    let image = repeated(&image, count)?;
    if blur > 0 {
        let size = blur + usize::from(blur.is_multiple_of(2));
        mask = blurred(&mask, size, default_sigma(size)).ok_or_else(|| {
            NodeError::input("blur", format!("{blur} is too much for a mask of {width}×{height}"))
        })?;
    }
    // The box that holds what is not 0 in any of them.
    let seen = |x: usize, y: usize| (0..count).any(|index| mask.mask(index)[y * width + x] != 0.0);
    let columns: Vec<usize> = (0..width).filter(|x| (0..height).any(|y| seen(*x, y))).collect();
    let rows: Vec<usize> = (0..height).filter(|y| (0..width).any(|x| seen(x, *y))).collect();
    let bounds = |places: &[usize], side: usize| -> Option<(usize, usize)> {
        let (first, last) = (places.first()?, places.last()?);
        Some((first.saturating_sub(padding), (last + 1 + padding).min(side)))
    };
    let (Some((x1, x2)), Some((y1, y2))) = (bounds(&columns, width), bounds(&rows, height)) else {
        return Err(NodeError::input("mask", "is empty: it encloses nothing"));
    };
    let mask_part = cut(mask.data(), 1, (width, height), (x1, y1, x2, y2));
    let image_part = cut(image.data(), image.channels(), (width, height), (x1, y1, x2, y2));
    let mask = Mask::new(count, y2 - y1, x2 - x1, mask_part).ok_or_else(|| failed("the mask has no part"))?;
    let image = Image::new(count, y2 - y1, x2 - x1, image.channels(), image_part)
        .ok_or_else(|| failed("the picture has no part"))?;
    let numbers = [x1, y1, x2 - x1, y2 - y1].map(number);
    Ok(Outputs::of([Value::Mask(mask), Value::Image(image)].into_iter().chain(numbers)))
}

/// The pictures, cut to the shape of the mask and scaled to it (`common_upscale`, bicubic).
fn sized(image: &Image, width: usize, height: usize) -> Result<Image, NodeError> {
    if (image.width(), image.height()) == (width, height) {
        return Ok(image.clone());
    }
    scaled(image, width, height, Filter::Bicubic, Crop::Center)
}

fn scaled(
    image: &Image,
    width: usize,
    height: usize,
    filter: Filter,
    crop: Crop,
) -> Result<Image, NodeError> {
    let mut data = Vec::new();
    for index in 0..image.count() {
        let raster = Raster::new(image.picture(index), image.width(), image.height(), image.channels());
        let raster = raster.ok_or_else(|| failed("the picture has no pixels"))?;
        data.extend(scale(raster, width, height, filter, crop));
    }
    Image::new(image.count(), height, width, image.channels(), data)
        .ok_or_else(|| failed("the picture cannot be scaled"))
}

/// As many pictures as there are masks: the last one again, or the first ones.
fn repeated(image: &Image, count: usize) -> Result<Image, NodeError> {
    if image.count() == count {
        return Ok(image.clone());
    }
    let last = image.count().checked_sub(1).ok_or_else(|| failed("there is no picture"))?;
    let data = (0..count).flat_map(|index| image.picture(index.min(last))).copied().collect();
    Image::new(count, image.height(), image.width(), image.channels(), data)
        .ok_or_else(|| failed("there is no picture"))
}

/// A box `(x1, y1, x2, y2)` of every picture of `data`.
fn cut(
    data: &[f32],
    channels: usize,
    (width, height): (usize, usize),
    (x1, y1, x2, y2): (usize, usize, usize, usize),
) -> Vec<f32> {
    let row = width * channels;
    let pictures = data.chunks_exact((row * height).max(1));
    let rows = pictures.flat_map(|picture| picture[y1 * row..y2 * row].chunks_exact(row.max(1)));
    rows.flat_map(|row| &row[x1 * channels..x2 * channels]).copied().collect()
}

/// What `ImageResize+` is to do to a picture, worked out from its inputs.
#[derive(Debug, PartialEq, Eq)]
struct Plan {
    /// The size that it is scaled to.
    to: (usize, usize),
    /// Zeros around it: left, right, top, bottom.
    pad: [usize; 4],
    /// What is kept of it then: x1, y1, x2, y2.
    keep: Option<[usize; 4]>,
}

impl Plan {
    /// For a picture of `from` (width, height); as the extension computes it.
    fn new(from: (usize, usize), asked: (usize, usize), method: &str, multiple: usize) -> Self {
        let (ow, oh) = from;
        let (mut width, mut height) = asked;
        if multiple > 1 {
            (width, height) = (width - width % multiple, height - height % multiple);
        }
        let ratios = |width: usize, height: usize| (width as f64 / ow as f64, height as f64 / oh as f64);
        let times = |side: usize, ratio: f64| (side as f64 * ratio).round_ties_even() as usize;
        let mut plan = Self { to: (0, 0), pad: [0; 4], keep: None };
        match method {
            "keep proportion" | "pad" => {
                if width == 0 {
                    width = if oh < height { MAX_RESOLUTION } else { ow };
                }
                if height == 0 {
                    height = if ow < width { MAX_RESOLUTION } else { oh };
                }
                let (across, down) = ratios(width, height);
                let ratio = across.min(down);
                plan.to = (times(ow, ratio), times(oh, ratio));
                if method == "pad" {
                    let (x, y) = (width.saturating_sub(plan.to.0), height.saturating_sub(plan.to.1));
                    plan.pad = [x / 2, x - x / 2, y / 2, y - y / 2];
                }
            }
            "fill / crop" => {
                width = if width > 0 { width } else { ow };
                height = if height > 0 { height } else { oh };
                let (across, down) = ratios(width, height);
                let ratio = across.max(down);
                plan.to = (times(ow, ratio), times(oh, ratio));
                // Rounding may leave a side one pixel short; then all of it is kept.
                let kept = |new: usize, wanted: usize| {
                    let start = new.saturating_sub(wanted) / 2;
                    (start, (start + wanted).min(new))
                };
                let ((x1, x2), (y1, y2)) = (kept(plan.to.0, width), kept(plan.to.1, height));
                plan.keep = Some([x1, y1, x2, y2]);
            }
            _ => plan.to = (if width > 0 { width } else { ow }, if height > 0 { height } else { oh }),
        }
        plan
    }
}

fn image_resize(inputs: &Inputs, _: &Context<'_>) -> Result<Outputs, NodeError> {
    let mut image = inputs.image("image")?;
    let multiple = inputs.size("multiple_of")?;
    let asked = (inputs.size("width")?, inputs.size("height")?);
    let from = (image.width(), image.height());
    let plan = Plan::new(from, asked, &inputs.string("method")?, multiple);
    let area = |(width, height): (usize, usize)| width.saturating_mul(height);
    let wanted = match &*inputs.string("condition")? {
        "downscale if bigger" => from.1 > plan.to.1 || from.0 > plan.to.0,
        "upscale if smaller" => from.1 < plan.to.1 || from.0 < plan.to.0,
        "if bigger area" => area(from) > area(plan.to),
        "if smaller area" => area(from) < area(plan.to),
        _ => true,
    };
    if wanted {
        let (width, height) = plan.to;
        if width == 0 || height == 0 || width.max(height) > MAX_RESOLUTION {
            return Err(failed(&format!("a picture of {width}×{height} cannot be made")));
        }
        image = match &*inputs.string("interpolation")? {
            "nearest" => nearest(&image, width, height)?,
            name => {
                let filter = Filter::of_name(name)
                    .ok_or_else(|| NodeError::input("interpolation", format!("there is no '{name}'")))?;
                scaled(&image, width, height, filter, Crop::Disabled)?
            }
        };
        image = padded(&image, plan.pad)?;
        if let Some([x1, y1, x2, y2]) = plan.keep {
            image = part(&image, (x1, y1, x2, y2))?;
        }
    }
    if multiple > 1 && (!image.width().is_multiple_of(multiple) || !image.height().is_multiple_of(multiple)) {
        let kept = |side: usize| (side % multiple / 2, side - (side % multiple - side % multiple / 2));
        let ((x1, x2), (y1, y2)) = (kept(image.width()), kept(image.height()));
        image = part(&image, (x1, y1, x2, y2))?;
    }
    let image = image.map(|value| value.clamp(0.0, 1.0));
    let (width, height) = (number(image.width()), number(image.height()));
    Ok(Outputs::of([Value::Image(image), width, height]))
}

fn part(image: &Image, (x1, y1, x2, y2): (usize, usize, usize, usize)) -> Result<Image, NodeError> {
    if x1 >= x2 || y1 >= y2 {
        return Err(failed("nothing is left of the picture"));
    }
    let data = cut(image.data(), image.channels(), (image.width(), image.height()), (x1, y1, x2, y2));
    Image::new(image.count(), y2 - y1, x2 - x1, image.channels(), data)
        .ok_or_else(|| failed("nothing is left of the picture"))
}

/// torch's `nearest`: the pixel at or before the place, not the nearest one.
fn nearest(image: &Image, width: usize, height: usize) -> Result<Image, NodeError> {
    let places = |from: usize, to: usize| -> Vec<usize> {
        let ratio = from as f32 / to as f32;
        (0..to).map(|place| ((place as f32 * ratio) as usize).min(from - 1)).collect()
    };
    let (columns, rows) = (places(image.width(), width), places(image.height(), height));
    let channels = image.channels();
    let mut data = Vec::with_capacity(image.count() * width * height * channels);
    for index in 0..image.count() {
        let picture = image.picture(index);
        for y in &rows {
            for x in &columns {
                let start = (y * image.width() + x) * channels;
                data.extend_from_slice(&picture[start..start + channels]);
            }
        }
    }
    Image::new(image.count(), height, width, channels, data)
        .ok_or_else(|| failed("the picture cannot be scaled"))
}

fn padded(image: &Image, [left, right, top, bottom]: [usize; 4]) -> Result<Image, NodeError> {
    if left + right + top + bottom == 0 {
        return Ok(image.clone());
    }
    let channels = image.channels();
    let (width, height) = (image.width() + left + right, image.height() + top + bottom);
    let mut data = vec![0.0; image.count() * width * height * channels];
    for (index, target) in data.chunks_exact_mut(width * height * channels).enumerate() {
        let lines = image.picture(index).chunks_exact(image.width() * channels);
        for (line, row) in lines.zip(target.chunks_exact_mut(width * channels).skip(top)) {
            row[left * channels..left * channels + line.len()].copy_from_slice(line);
        }
    }
    Image::new(image.count(), height, width, channels, data)
        .ok_or_else(|| failed("the picture cannot be padded"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_worked_out_as_the_extension_does() {
        let plan = |asked, method, multiple| Plan::new((640, 480), asked, method, multiple);
        assert_eq!(plan((512, 512), "stretch", 0).to, (512, 512));
        assert_eq!(plan((0, 300), "stretch", 0).to, (640, 300));
        assert_eq!(plan((512, 512), "keep proportion", 0).to, (512, 384));
        assert_eq!(plan((0, 240), "keep proportion", 0).to, (320, 240));
        assert_eq!(plan((515, 519), "pad", 8), Plan { to: (512, 384), pad: [0, 0, 64, 64], keep: None });
        let fill = plan((512, 512), "fill / crop", 0);
        assert_eq!((fill.to, fill.keep), ((683, 512), Some([85, 0, 597, 512])));
    }

    #[test]
    fn nearest_takes_the_pixel_before() {
        let image = Image::new(1, 1, 5, 1, vec![0.0, 1.0, 2.0, 3.0, 4.0]).unwrap();
        assert_eq!(nearest(&image, 3, 1).unwrap().data(), [0.0, 1.0, 3.0]);
    }

    #[test]
    fn a_box_is_cut_out_of_every_picture() {
        let data: Vec<f32> = (0..24).map(|value| value as f32).collect();
        assert_eq!(cut(&data, 1, (4, 3), (1, 1, 3, 2)), [5.0, 6.0, 17.0, 18.0]);
        let image = Image::new(1, 3, 4, 2, data).unwrap();
        let back = padded(&image, [1, 2, 1, 0]).unwrap();
        assert_eq!((back.width(), back.height()), (7, 4));
        assert_eq!(part(&back, (1, 1, 5, 4)).unwrap(), image);
    }
}
