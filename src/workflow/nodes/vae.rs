//! Latents to pictures and back. Tiles are ComfyUI's: sizes are given in pixels of the picture.

use std::sync::Arc;

use candle_core::Tensor;
use darkroom_models::vae::Tiling;
use darkroom_pipelines::Picture;

use crate::workflow::borrowed::{Borrowed, Turn};
use crate::workflow::context::{NodeError, Outputs};
use crate::workflow::interface::{Input, Interface, int, link};
use crate::workflow::registry::Registry;
use crate::workflow::value::{Kind, Vae, Value};
use crate::workflow::{Context, Image, Latent};

/// Pixels a side of a latent cell.
const CELL: usize = 8;

/// Adds them.
pub(super) fn register(registry: &mut Registry) {
    registry.add(
        Interface::new("VAEDecode", "latent")
            .display("VAE Decode")
            .description("Turns latents into pictures.")
            .input(link("samples", Kind::LATENT))
            .input(link("vae", Kind::VAE))
            .output(Kind::IMAGE),
        |inputs, context| {
            let image = decode(context, &inputs.vae("vae")?, &*inputs.latent("samples")?, None)?;
            Ok(Outputs::one(Value::Image(image)))
        },
    );
    registry.add(
        Interface::new("VAEEncode", "latent")
            .display("VAE Encode")
            .description("Turns pictures into latents.")
            .input(link("pixels", Kind::IMAGE))
            .input(link("vae", Kind::VAE))
            .output(Kind::LATENT),
        |inputs, context| {
            let samples = encode(context, &inputs.vae("vae")?, &inputs.image("pixels")?, None)?;
            Ok(Outputs::one(Value::Latent(Arc::new(Latent::new(samples)))))
        },
    );
    let pixels = |name, default, step: u64| -> Input {
        let least = if default == 512 { 64 } else { 0 };
        int(name, default, least, 4096).with("step", step)
    };
    // Only VAEs of videos read these.
    let temporal = [
        int("temporal_size", 64, 8, 4096).with("step", 4),
        int("temporal_overlap", 8, 4, 4096).with("step", 4),
    ];
    let [size, overlap] = temporal.clone();
    registry.add(
        Interface::new("VAEDecodeTiled", "_for_testing")
            .display("VAE Decode (Tiled)")
            .input(link("samples", Kind::LATENT))
            .input(link("vae", Kind::VAE))
            .input(pixels("tile_size", 512, 32))
            .input(pixels("overlap", 64, 32))
            .input(size)
            .input(overlap)
            .output(Kind::IMAGE),
        |inputs, context| {
            let (tile, mut overlap) = (inputs.size("tile_size")?, inputs.size("overlap")?);
            if tile < overlap.saturating_mul(4) {
                overlap = tile / 4;
            }
            let tiling = tiles(tile, overlap)?;
            let image = decode(context, &inputs.vae("vae")?, &*inputs.latent("samples")?, Some(tiling))?;
            Ok(Outputs::one(Value::Image(image)))
        },
    );
    let [size, overlap] = temporal;
    registry.add(
        Interface::new("VAEEncodeTiled", "_for_testing")
            .display("VAE Encode (Tiled)")
            .input(link("pixels", Kind::IMAGE))
            .input(link("vae", Kind::VAE))
            .input(pixels("tile_size", 512, 64))
            .input(pixels("overlap", 64, 32))
            .input(size)
            .input(overlap)
            .output(Kind::LATENT),
        |inputs, context| {
            let tiling = tiles(inputs.size("tile_size")?, inputs.size("overlap")?)?;
            let samples = encode(context, &inputs.vae("vae")?, &inputs.image("pixels")?, Some(tiling))?;
            Ok(Outputs::one(Value::Latent(Arc::new(Latent::new(samples)))))
        },
    );
}

/// Tiles of so many pixels, in latent cells.
pub(super) fn tiles(tile: usize, overlap: usize) -> Result<Tiling, NodeError> {
    let (tile, overlap) = (tile / CELL, overlap / CELL);
    if tile / 2 <= overlap {
        let message =
            format!("is too much for tiles of {} pixels: it must be less than half of them", tile * CELL);
        return Err(NodeError::input("overlap", message));
    }
    Ok(Tiling::Tiles { tile, overlap })
}

/// The pictures of a batch of latents.
pub(super) fn decode(
    context: &Context<'_>,
    vae: &Vae,
    latent: &Latent,
    tiling: Option<Tiling>,
) -> Result<Image, NodeError> {
    let model = Borrowed::model(context, &vae.origin)?;
    check_channels(vae, latent, model.pipeline.latent_channels())?;
    let count = latent.samples.dim(0)?;
    let mut pictures: Vec<Picture> = Vec::with_capacity(count);
    for index in 0..count {
        let _turn = Turn::wait(context)?;
        pictures.push(model.pipeline.decode_latent(&latent.samples.get(index)?, tiling)?);
    }
    let size = pictures.first().map(|picture| (picture.width(), picture.height()));
    let Some((width, height)) = size else {
        return Err(NodeError::input("samples", "has no latent in it"));
    };
    let mut data = Vec::with_capacity(count * width * height * 3);
    for picture in &pictures {
        data.extend_from_slice(picture.data());
    }
    if data.iter().any(|value| value.is_nan()) {
        return Err(NodeError::Failed(
            "the VAE made pictures that are not numbers: the latent is damaged, or the guidance scale or a prompt's \
             weight is far too large for this model"
                .into(),
        ));
    }
    Image::new(count, height, width, 3, data)
        .ok_or_else(|| NodeError::Failed("the VAE made pictures of several sizes".into()))
}

/// Latents of another family's model are no damage, so they are refused in words that say what to do.
fn check_channels(vae: &Vae, latent: &Latent, wanted: usize) -> Result<(), NodeError> {
    let channels = latent.samples.dim(1)?;
    if channels == wanted {
        return Ok(());
    }
    let message = format!(
        "has {channels} channels, and '{}' decodes {wanted}: load the VAE that belongs to the model which drew it",
        vae.origin
    );
    Err(NodeError::input("samples", message))
}

/// The latents of a batch of pictures, `[count, channels, h/8, w/8]`. Alpha is left out.
pub(super) fn encode(
    context: &Context<'_>,
    vae: &Vae,
    image: &Image,
    tiling: Option<Tiling>,
) -> Result<Tensor, NodeError> {
    let pictures: Option<Vec<Picture>> = (0..image.count()).map(|index| picture(image, index)).collect();
    encode_pictures(context, vae, &pictures.unwrap_or_default(), tiling)
}

/// The same of pictures.
pub(super) fn encode_pictures(
    context: &Context<'_>,
    vae: &Vae,
    pictures: &[Picture],
    tiling: Option<Tiling>,
) -> Result<Tensor, NodeError> {
    if pictures.is_empty() {
        return Err(NodeError::input("pixels", "has no picture in it"));
    }
    let model = Borrowed::model(context, &vae.origin)?;
    let mut latents = Vec::with_capacity(pictures.len());
    for picture in pictures {
        let _turn = Turn::wait(context)?;
        latents.push(model.pipeline.encode_latent(picture, tiling)?);
    }
    let latents = Tensor::stack(&latents, 0)?;
    if latents.sqr()?.sum_all()?.to_scalar::<f32>()?.is_nan() {
        let message = "encode to values that are not numbers: the pictures hold some themselves";
        return Err(NodeError::input("pixels", message));
    }
    Ok(latents)
}

/// Picture number `index` without its alpha; `None` where it has no pixels, or fewer than three channels.
pub(super) fn picture(image: &Image, index: usize) -> Option<Picture> {
    let channels = image.channels();
    if channels < 3 {
        return None;
    }
    let pixels = image.picture(index).chunks_exact(channels);
    let data = pixels.flat_map(|pixel| pixel[..3].iter().copied()).collect();
    Picture::new(image.width(), image.height(), data)
}
