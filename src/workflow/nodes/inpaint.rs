//! Latents of pictures of which a part is drawn anew.

use std::sync::Arc;

use darkroom_pipelines::{Mask as PictureMask, Picture};

use super::vae::{encode, encode_pictures, picture};
use crate::workflow::context::{Inputs, NodeError, Outputs};
use crate::workflow::interface::{Interface, boolean, int, link};
use crate::workflow::registry::Registry;
use crate::workflow::value::{Kind, Value};
use crate::workflow::{Context, Image, Latent, Mask};

/// Pixels a side of a latent cell.
const CELL: usize = 8;

/// Adds them.
pub(super) fn register(registry: &mut Registry) {
    registry.add(
        Interface::new("VAEEncodeForInpaint", "latent/inpaint")
            .display("VAE Encode (for Inpainting)")
            .description("Makes the masked part grey and has it drawn from nothing.")
            .input(link("pixels", Kind::IMAGE))
            .input(link("vae", Kind::VAE))
            .input(link("mask", Kind::MASK))
            .input(int("grow_mask_by", 6, 0, 64).with("step", 1))
            .output(Kind::LATENT),
        for_inpaint,
    );
    registry.add(
        Interface::new("InpaintModelConditioning", "conditioning/inpaint")
            .display("InpaintModelConditioning")
            .input(link("positive", Kind::CONDITIONING))
            .input(link("negative", Kind::CONDITIONING))
            .input(link("vae", Kind::VAE))
            .input(link("pixels", Kind::IMAGE))
            .input(link("mask", Kind::MASK))
            .input(boolean("noise_mask", true))
            .named_output("positive", Kind::CONDITIONING)
            .named_output("negative", Kind::CONDITIONING)
            .named_output("latent", Kind::LATENT),
        model_conditioning,
    );
}

fn for_inpaint(inputs: &Inputs, context: &Context<'_>) -> Result<Outputs, NodeError> {
    let (image, masks) = (inputs.image("pixels")?, masks(&inputs.mask("mask")?, &inputs.image("pixels")?)?);
    let grow = inputs.size("grow_mask_by")?;
    if masks.len() != 1 && masks.len() != image.count() {
        let message =
            format!("is {} masks for {} pictures: one, or one for each", masks.len(), image.count());
        return Err(NodeError::input("mask", message));
    }
    let pictures: Option<Vec<Picture>> = (0..image.count())
        .map(|index| {
            let mask = &masks[index % masks.len()];
            // Where a rounded mask is more than 1 it mirrors the colour; ComfyUI's masks never are.
            let replaced: Vec<bool> =
                mask.data().iter().map(|value| value.round_ties_even() >= 1.0).collect();
            Some(picture(&image, index)?.cropped_to_multiple(CELL).greyed_where(&replaced))
        })
        .collect();
    let samples = encode_pictures(context, &inputs.vae("vae")?, &pictures.unwrap_or_default(), None)?;
    let grown: Vec<PictureMask> = masks.into_iter().map(|mask| mask.rounded().grown(grow)).collect();
    let latent = Latent { noise_mask: batch(&grown), ..Latent::new(samples) };
    Ok(Outputs::one(Value::Latent(Arc::new(latent))))
}

/// No network here takes the source beside the latent, so the prompts stay as they are: with such models ComfyUI
/// leaves it out as well.
pub(super) fn model_conditioning(inputs: &Inputs, context: &Context<'_>) -> Result<Outputs, NodeError> {
    let image = inputs.image("pixels")?;
    let noise_mask = match inputs.boolean("noise_mask")? {
        true => batch(&masks(&inputs.mask("mask")?, &image)?),
        false => None,
    };
    let samples = encode(context, &inputs.vae("vae")?, &image, None)?;
    let latent = Latent { noise_mask, ..Latent::new(samples) };
    Ok(Outputs::of([
        Value::Conditioning(inputs.conditioning("positive")?),
        Value::Conditioning(inputs.conditioning("negative")?),
        Value::Latent(Arc::new(latent)),
    ]))
}

/// The masks at the pictures' size, cut to multiples of a cell.
fn masks(mask: &Mask, image: &Image) -> Result<Vec<PictureMask>, NodeError> {
    if image.width() < CELL || image.height() < CELL {
        let message =
            format!("of {}x{} are too small: each side needs {CELL}", image.width(), image.height());
        return Err(NodeError::input("pixels", message));
    }
    let masks: Option<Vec<PictureMask>> = (0..mask.count())
        .map(|index| {
            let mask = PictureMask::new(mask.width(), mask.height(), mask.mask(index).to_vec())?;
            Some(mask.resized(image.width(), image.height()).cropped_to_multiple(CELL))
        })
        .collect();
    masks.filter(|masks| !masks.is_empty()).ok_or_else(|| NodeError::input("mask", "has no pixels"))
}

fn batch(masks: &[PictureMask]) -> Option<Mask> {
    let first = masks.first()?;
    let data = masks.iter().flat_map(|mask| mask.data().iter().copied()).collect();
    Mask::new(masks.len(), first.height(), first.width(), data)
}
