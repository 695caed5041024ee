//! Ultimate SD Upscale: a picture made larger and drawn anew tile by tile.

use std::sync::Arc;

use darkroom_pipelines::Area;
use darkroom_pipelines::resample::{Crop, Filter, Raster, scale};
use darkroom_pipelines::sampler::SamplerKind;
use darkroom_pipelines::schedule::{self, Scheduler};

use super::bytes::Rgb8;
use super::sampling::{self, Job, SAMPLERS, model_sampling, sampler, scheduler};
use super::segment::Region;
use super::tile_plan::{Order, Part, Plan, SeamFix, to_eights};
use super::{upscale, vae};
use crate::workflow::Context;
use crate::workflow::context::{Inputs, NodeError, Outputs};
use crate::workflow::image::Image;
use crate::workflow::interface::{Input, Interface, boolean, combo, float, int, link};
use crate::workflow::latent::Latent;
use crate::workflow::registry::Registry;
use crate::workflow::value::{Cond, Kind, Model, Noise, Vae, Value};

const MODULE: &str = "custom_nodes.ComfyUI_UltimateSDUpscale";
/// The extension's own largest size of a tile.
const MAX_TILE: u64 = 8192;
/// The longest side of a result.
const LARGEST_SIDE: usize = 16384;
/// Most pixels of a picture on its way.
const MOST_PIXELS: usize = 1 << 28;

/// Adds them.
pub(super) fn register(registry: &mut Registry) {
    registry.add(
        declared("UltimateSDUpscale", Variant::Upscale)
            .display("Ultimate SD Upscale")
            .description("Upscales an image and runs image-to-image on tiles from the input image."),
        |inputs, context| run(inputs, context, Variant::Upscale),
    );
    registry.add(
        declared("UltimateSDUpscaleNoUpscale", Variant::NoUpscale)
            .display("Ultimate SD Upscale (No Upscale)")
            .description("Runs image-to-image on tiles from the input image."),
        |inputs, context| run(inputs, context, Variant::NoUpscale),
    );
    registry.add(
        declared("UltimateSDUpscaleCustomSample", Variant::CustomSample)
            .display("Ultimate SD Upscale (Custom Sample)")
            .description("Runs image-to-image on tiles from the input image."),
        |inputs, context| run(inputs, context, Variant::CustomSample),
    );
}

/// Which of the three nodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Variant {
    Upscale,
    NoUpscale,
    CustomSample,
}

fn declared(class: &'static str, variant: Variant) -> Interface {
    let tip = |input: Input, text: &str| input.with("tooltip", text);
    let side = |name, default| int(name, default, 0, MAX_TILE).with("step", 8);
    let tile = |name| int(name, 512, 64, MAX_TILE).with("step", 8);
    let blur = |name| int(name, 8, 0, 64).with("step", 1);
    let mut node = Interface::new(class, "image/upscaling").module(MODULE).output(Kind::IMAGE);
    let image = if variant == Variant::NoUpscale { "upscaled_image" } else { "image" };
    node = node
        .input(tip(link(image, Kind::IMAGE), "The image to upscale."))
        .input(tip(link("model", Kind::MODEL), "The model to use for image-to-image."))
        .input(tip(link("positive", Kind::CONDITIONING), "The positive conditioning for each tile."))
        .input(tip(link("negative", Kind::CONDITIONING), "The negative conditioning for each tile."))
        .input(tip(link("vae", Kind::VAE), "The VAE model to use for tiles."));
    if variant != Variant::NoUpscale {
        let by = float("upscale_by", 2.0, 0.05, 4.0).with("step", 0.05);
        node = node.input(tip(by, "The factor to upscale the image by."));
    }
    let share = |name, default| float(name, default, 0.0, 1.0).with("step", 0.01);
    node = node
        .input(tip(int("seed", 0, 0, u64::MAX), "The seed to use for image-to-image."))
        .input(tip(int("steps", 20, 1, 10_000).with("step", 1), "The number of steps to use for each tile."))
        .input(tip(float("cfg", 8.0, 0.0, 100.0), "The CFG scale to use for each tile."))
        .input(tip(combo("sampler_name", SAMPLERS), "The sampler to use for each tile."))
        .input(tip(
            combo("scheduler", Scheduler::ALL.iter().map(|scheduler| scheduler.name())),
            "The scheduler to use for each tile.",
        ))
        .input(tip(share("denoise", 0.2), "The denoising strength to use for each tile."));
    let upscale_model = link("upscale_model", Kind::UPSCALE_MODEL);
    if variant == Variant::Upscale {
        node = node.input(tip(upscale_model.clone(), "The upscaler model for upscaling the image."));
    }
    node = node
        .input(tip(
            combo("mode_type", ["Linear", "Chess", "None"]),
            "The tiling order to use for the redraw step.",
        ))
        .input(tip(tile("tile_width"), "The width of each tile."))
        .input(tip(tile("tile_height"), "The height of each tile."))
        .input(tip(blur("mask_blur"), "The blur radius for the mask."))
        .input(tip(side("tile_padding", 32), "The padding to apply between tiles."))
        .input(tip(
            combo("seam_fix_mode", ["None", "Band Pass", "Half Tile", "Half Tile + Intersections"]),
            "The seam fix mode to use.",
        ))
        .input(tip(share("seam_fix_denoise", 1.0), "The denoising strength to use for the seam fix."))
        .input(tip(
            side("seam_fix_width", 64),
            "The width of the bands used for the Band Pass seam fix mode.",
        ))
        .input(tip(blur("seam_fix_mask_blur"), "The blur radius for the seam fix mask."))
        .input(tip(side("seam_fix_padding", 16), "The padding to apply for the seam fix tiles."))
        .input(tip(
            boolean("force_uniform_tiles", true),
            "Force all tiles to be the same as the set tile size, even when tiles could be smaller. This can help \
             prevent the model from working with irregular tile sizes.",
        ))
        .input(tip(boolean("tiled_decode", false), "Whether to use tiled decoding when decoding tiles."))
        .input(tip(
            int("batch_size", 1, 1, 4096).with("step", 1),
            "The number of tiles to process in a batch. Higher values can reduce processing time but use more VRAM. \
             Yields different results than individual tiles. Only affects the main redraw step, not the seam fix step.",
        ));
    if variant == Variant::CustomSample {
        node = node
            .optional(tip(
                upscale_model,
                "The model to use for upscaling the image. If not provided, a simple Lanczos scaling will be used \
                 instead.",
            ))
            .optional(tip(
                link("custom_sampler", Kind::SAMPLER),
                "A custom sampler to use instead of the built-in ComfyUI sampler specified by sampler_name. Only used \
                 if both custom_sampler and custom_sigmas are provided.",
            ))
            .optional(tip(
                link("custom_sigmas", Kind::SIGMAS),
                "A custom noise schedule to use during sampling. Only used if both custom_sampler and custom_sigmas \
                 are provided.",
            ));
    }
    node
}

/// What every tile is drawn with.
struct Tiler<'a> {
    context: &'a Context<'a>,
    model: Model,
    positive: Arc<Vec<Cond>>,
    negative: Arc<Vec<Cond>>,
    vae: Vae,
    seed: u64,
    cfg: f64,
    sampler: SamplerKind,
    sigmas: Vec<f32>,
    tiled_decode: bool,
    /// Width and height of the picture before, and after it was made larger.
    from: (usize, usize),
    canvas: (usize, usize),
}

fn run(inputs: &Inputs, context: &Context<'_>, variant: Variant) -> Result<Outputs, NodeError> {
    let name = if variant == Variant::NoUpscale { "upscaled_image" } else { "image" };
    let image = inputs.image(name)?;
    if image.channels() < 3 || image.count() == 0 {
        return Err(NodeError::input(name, "pictures of three channels are needed"));
    }
    let by = if variant == Variant::NoUpscale { 1.0 } else { inputs.float("upscale_by")? };
    let plan = plan(inputs)?;
    let upscaler =
        inputs.get("upscale_model").is_some().then(|| upscale::upscale_model(inputs, "upscale_model"));
    let mut pictures = enlarged(&image, by, upscaler.transpose()?.as_deref(), context)?;
    let canvas = (pictures[0].width, pictures[0].height);
    let model = inputs.model("model")?;
    let (sampler, sigmas) = match (inputs.get("custom_sampler"), inputs.get("custom_sigmas")) {
        (Some(Value::Sampler(sampler)), Some(Value::Sigmas(sigmas))) => (*sampler, sigmas.to_vec()),
        _ => {
            let sampler = sampler(inputs, "sampler_name")?;
            let sampling = model_sampling(context, &model)?;
            let scheduler = scheduler(inputs, "scheduler")?;
            let (steps, denoise) = (inputs.size("steps")?, inputs.float("denoise")?);
            let sigmas = schedule::sigmas(scheduler, &sampling, steps, denoise, sampler);
            (sampler, sigmas.map_err(|error| NodeError::Failed(error.to_string()))?)
        }
    };
    let tiler = Tiler {
        context,
        model,
        positive: inputs.conditioning("positive")?,
        negative: inputs.conditioning("negative")?,
        vae: inputs.vae("vae")?,
        seed: inputs.seed("seed")?,
        cfg: inputs.float("cfg")?,
        sampler,
        sigmas,
        tiled_decode: inputs.boolean("tiled_decode")?,
        from: (image.width(), image.height()),
        canvas,
    };
    plan.run(&mut pictures, |parts, size| tiler.draw(parts, size))?;
    let data = pictures.iter().flat_map(Rgb8::floats).collect();
    let image = Image::new(pictures.len(), canvas.1, canvas.0, 3, data);
    Ok(Outputs::one(Value::Image(image.ok_or_else(|| NodeError::Failed("no picture comes out".into()))?)))
}

fn plan(inputs: &Inputs) -> Result<Plan, NodeError> {
    let order = match &*inputs.string("mode_type")? {
        "Linear" => Order::Linear,
        "Chess" => Order::Chess,
        _ => Order::None,
    };
    let seam_fix = match &*inputs.string("seam_fix_mode")? {
        "Band Pass" => SeamFix::Bands,
        "Half Tile" => SeamFix::HalfTiles,
        "Half Tile + Intersections" => SeamFix::HalfTilesAndCorners,
        _ => SeamFix::None,
    };
    let batch = if inputs.get("batch_size").is_some() { inputs.size("batch_size")?.max(1) } else { 1 };
    let uniform = inputs.boolean("force_uniform_tiles")?;
    if batch > 1 && !uniform {
        let message = "tiles of a batch must have one size: set force_uniform_tiles, or take batches of one";
        return Err(NodeError::input("batch_size", message));
    }
    let tile = (inputs.size("tile_width")?, inputs.size("tile_height")?);
    if tile.0 < 64 || tile.1 < 64 {
        return Err(NodeError::input("tile_width", "tiles need 64 pixels a side"));
    }
    Ok(Plan {
        tile,
        order,
        mask_blur: inputs.size("mask_blur")?,
        padding: inputs.size("tile_padding")?,
        seam_fix,
        seam_width: inputs.size("seam_fix_width")?,
        seam_blur: inputs.size("seam_fix_mask_blur")?,
        seam_padding: inputs.size("seam_fix_padding")?,
        uniform,
        batch,
    })
}

/// By how much the extension has its upscaler enlarge, one time after another, for so many times in all.
fn factors(times: usize) -> Vec<usize> {
    let factor = |number: usize| match number {
        1 => 2,
        number if number.is_multiple_of(4) => 4,
        number if number.is_multiple_of(3) => 3,
        number if number.is_multiple_of(2) => 2,
        _ => 0,
    };
    let mut times = times;
    while factor(times) == 0 {
        times += 1;
    }
    let (mut factors, mut reached) = (Vec::new(), 1);
    while reached < times {
        let next = factor(times / reached);
        if next == 0 {
            break;
        }
        factors.push(next);
        reached *= next;
    }
    factors
}

/// The pictures at the size at which tiles are drawn.
fn enlarged(
    image: &Image,
    by: f64,
    upscaler: Option<&str>,
    context: &Context<'_>,
) -> Result<Vec<Rgb8>, NodeError> {
    let (width, height) = (to_eights(image.width() as f64 * by), to_eights(image.height() as f64 * by));
    let pixels = width.saturating_mul(height).saturating_mul(image.count());
    if width == 0 || height == 0 || width.max(height) > LARGEST_SIDE || pixels > MOST_PIXELS {
        return Err(NodeError::Failed(format!("pictures of {width}×{height} cannot be made")));
    }
    let bytes = |image: &Image| -> Vec<Rgb8> {
        let picture = |index| Rgb8::of(image.width(), image.height(), image.channels(), image.picture(index));
        (0..image.count()).map(picture).collect()
    };
    let mut pictures = bytes(image);
    let longer = image.width().max(image.height());
    let factors = factors(width.max(height).div_ceil(longer));
    match upscaler {
        // It always starts from the picture itself, so once does.
        Some(id) if !factors.is_empty() => pictures = bytes(&upscale::with_model(image, id, context)?),
        Some(_) => {}
        None => {
            for factor in factors {
                let (to_width, to_height) = (pictures[0].width * factor, pictures[0].height * factor);
                if to_width.max(to_height) > LARGEST_SIDE * 2
                    || to_width.saturating_mul(to_height) > MOST_PIXELS
                {
                    break;
                }
                // Only the first of a batch goes this way.
                pictures[0] = pictures[0].scaled(to_width, to_height);
            }
        }
    }
    Ok(pictures.iter().map(|picture| picture.scaled(width, height)).collect())
}

impl Tiler<'_> {
    /// Parts of pictures, drawn anew.
    fn draw(&self, parts: &[Part], size: (usize, usize)) -> Result<Vec<Rgb8>, NodeError> {
        self.context.check_interrupt()?;
        let (width, height) = size;
        let data: Vec<f32> = parts.iter().flat_map(|part| part.pixels.floats()).collect();
        let image = Image::new(parts.len(), height, width, 3, data)
            .ok_or_else(|| NodeError::Failed("the tiles are of several sizes".into()))?;
        let latent = Latent::new(vae::encode(self.context, &self.vae, &image, None)?);
        let regions: Vec<Region> = parts.iter().map(|part| part.region).collect();
        let conds = |conds: &[Cond]| -> Result<Vec<Cond>, NodeError> {
            conds.iter().map(|cond| self.cropped(cond, &regions, size)).collect()
        };
        let (positive, negative) = (conds(&self.positive)?, conds(&self.negative)?);
        let job = Job {
            model: &self.model,
            positive: &positive,
            negative: Some(&negative),
            cfg: self.cfg,
            sampler: self.sampler,
            sigmas: &self.sigmas,
            noise_sigmas: None,
            noise: Noise::Seed(self.seed),
            step_seed: self.seed,
            latent: &latent,
        };
        let drawn = sampling::denoise(self.context, &job)?.latent;
        let tiling = if self.tiled_decode { Some(vae::tiles(512, 64)?) } else { None };
        let decoded = vae::decode(self.context, &self.vae, &drawn, tiling)?;
        let picture = |index| Rgb8::of(decoded.width(), decoded.height(), 3, decoded.picture(index));
        Ok((0..decoded.count()).map(picture).collect())
    }

    /// A condition as it counts in some parts: pictures of ControlNets and areas are cut as the picture is.
    fn cropped(&self, cond: &Cond, regions: &[Region], size: (usize, usize)) -> Result<Cond, NodeError> {
        let mut cond = cond.clone();
        if cond.mask.is_some() {
            return Err(NodeError::Failed(
                "masks of conditions cannot be cut into tiles: take them off before upscaling".into(),
            ));
        }
        for control in &mut cond.controls {
            control.image = cropped_hint(&control.image, regions, self.canvas, size)?;
        }
        cond.area = match (cond.area, regions.first()) {
            (Some(Area::Shares { .. }), _) => {
                return Err(NodeError::Failed(
                    "areas in shares of the picture cannot be cut into tiles: give them in pixels".into(),
                ));
            }
            (Some(Area::Cells { height, width, y, x }), Some(region)) => {
                let area = Region { x1: 8 * x, y1: 8 * y, x2: 8 * (x + width), y2: 8 * (y + height) };
                let area = inside(resized(area, self.from, self.canvas), *region);
                // One that lies elsewhere counts everywhere and fully: the extension forgets both.
                if area.is_none() {
                    cond.strength = 1.0;
                }
                area.map(|area| Area::Cells {
                    height: area.height() / 8,
                    width: area.width() / 8,
                    y: (area.y1 - region.y1) / 8,
                    x: (area.x1 - region.x1) / 8,
                })
            }
            (area, _) => area,
        };
        Ok(cond)
    }
}

/// A region of a picture in one of another size.
fn resized(region: Region, from: (usize, usize), to: (usize, usize)) -> Region {
    let low = |place: usize, from: usize, to: usize| place * to / from;
    let high = |place: usize, from: usize, to: usize| (place * to).div_ceil(from);
    Region {
        x1: low(region.x1, from.0, to.0),
        y1: low(region.y1, from.1, to.1),
        x2: high(region.x2, from.0, to.0),
        y2: high(region.y2, from.1, to.1),
    }
}

fn inside(a: Region, b: Region) -> Option<Region> {
    let both = Region { x1: a.x1.max(b.x1), y1: a.y1.max(b.y1), x2: a.x2.min(b.x2), y2: a.y2.min(b.y2) };
    (both.x1 < both.x2 && both.y1 < both.y2).then_some(both)
}

/// The parts of a ControlNet's pictures that belong to regions of the canvas, at the size of tiles.
fn cropped_hint(
    hint: &Image,
    regions: &[Region],
    canvas: (usize, usize),
    (width, height): (usize, usize),
) -> Result<Image, NodeError> {
    let none = || NodeError::Failed("a ControlNet's picture has no part for a tile".into());
    let channels = hint.channels();
    let mut data = Vec::new();
    for region in regions {
        let part = resized(*region, canvas, (hint.width(), hint.height()));
        let (x2, y2) = (part.x2.min(hint.width()), part.y2.min(hint.height()));
        for index in 0..hint.count() {
            let rows = hint.picture(index).chunks_exact(hint.width() * channels);
            let rows = rows.skip(part.y1).take(y2.saturating_sub(part.y1));
            let columns = part.x1 * channels..x2.max(part.x1) * channels;
            let values: Vec<f32> = rows.flat_map(|row| &row[columns.clone()]).copied().collect();
            let (part_width, part_height) = (x2.saturating_sub(part.x1), y2.saturating_sub(part.y1));
            let raster = Raster::new(&values, part_width, part_height, channels).ok_or_else(none)?;
            data.extend(scale(raster, width, height, Filter::NearestExact, Crop::Disabled));
        }
    }
    Image::new(regions.len() * hint.count(), height, width, channels, data).ok_or_else(none)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn factors_multiply_to_at_least_what_is_wanted() {
        for (times, expected) in
            [(1, vec![]), (2, vec![2]), (3, vec![3]), (4, vec![4]), (5, vec![3, 2]), (8, vec![4, 2])]
        {
            assert_eq!(factors(times), expected, "{times}");
        }
    }

    #[test]
    fn a_hint_is_cut_where_its_tile_lies() {
        let hint = Image::new(1, 2, 4, 1, vec![0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0]).unwrap();
        let region = Region { x1: 64, y1: 0, x2: 128, y2: 64 };
        let part = cropped_hint(&hint, &[region], (128, 64), (4, 2)).unwrap();
        assert_eq!(part.data(), [2.0, 2.0, 3.0, 3.0, 6.0, 6.0, 7.0, 7.0]);
    }
}
