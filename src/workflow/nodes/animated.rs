//! Batches of pictures as animations.

use serde_json::json;

use super::save_image::{eight_bits, has_alpha, numbered, unsaved, with_metadata};
use crate::picture::{Animation, EncodeError, WebpEffort};
use crate::workflow::context::{Context, Inputs, NodeError, Outputs};
use crate::workflow::image::Image;
use crate::workflow::interface::{Interface, boolean, combo, float, int, link, string};
use crate::workflow::registry::Registry;
use crate::workflow::value::Kind;

/// EXIF tags that the prompt and then the first key of `extra_pnginfo` are in; further keys go down from there.
const PROMPT_TAG: u16 = 0x0110;
const FIRST_EXTRA_TAG: u16 = 0x010f;

/// Adds them.
pub(super) fn register(registry: &mut Registry) {
    let interface = |class| {
        Interface::new(class, "image/animation")
            .module("comfy_extras.nodes_images")
            .input(link("images", Kind::IMAGE))
            .input(string("filename_prefix").with("default", "ComfyUI"))
            .input(float("fps", 6.0, 0.01, 1000.0).with("step", 0.01))
            .output_node()
    };
    registry.add(
        with_metadata(
            interface("SaveAnimatedWEBP")
                .input(boolean("lossless", true))
                .input(int("quality", 80, 0, 100))
                .input(combo("method", ["default", "fastest", "slowest"])),
        ),
        save_webp,
    );
    registry.add(with_metadata(interface("SaveAnimatedPNG").input(int("compress_level", 4, 0, 9))), save_png);
}

fn save_webp(inputs: &Inputs, context: &Context<'_>) -> Result<Outputs, NodeError> {
    let effort = WebpEffort {
        lossless: inputs.boolean("lossless")?,
        quality: inputs.size("quality")?.min(100) as u8,
        method: match &*inputs.string("method")? {
            "fastest" => 0,
            "slowest" => 6,
            _ => 4,
        },
    };
    let texts = exif_texts(context.metadata.chunks());
    let images = inputs.image("images")?;
    let is_animated = images.count() != 1;
    let encode = |animation: &Animation<'_>| animation.webp(effort, &texts);
    save(inputs, context, &images, "webp", is_animated, &encode)
}

fn save_png(inputs: &Inputs, context: &Context<'_>) -> Result<Outputs, NodeError> {
    let level = inputs.size("compress_level")?.min(9) as u8;
    let encode = |animation: &Animation<'_>| animation.png(level, context.metadata.chunks());
    save(inputs, context, &inputs.image("images")?, "png", true, &encode)
}

fn save(
    inputs: &Inputs,
    context: &Context<'_>,
    images: &Image,
    extension: &str,
    is_animated: bool,
    encode: &dyn Fn(&Animation<'_>) -> Result<Vec<u8>, EncodeError>,
) -> Result<Outputs, NodeError> {
    let fps = inputs.float("fps")?;
    let alpha = has_alpha(images)?;
    let mut numbered = numbered(context.folders, &inputs.string("filename_prefix")?, images)?;
    let frames: Vec<Vec<u8>> = (0..images.count()).map(|index| eight_bits(images, index)).collect();
    let animation = Animation {
        width: images.width(),
        height: images.height(),
        alpha,
        frames: &frames,
        duration: (1000.0 / fps) as u32,
    };
    let bytes = encode(&animation).map_err(|error| NodeError::Failed(error.to_string()))?;
    let saved = numbered.save(0, extension, &bytes).map_err(|error| unsaved(&error))?;
    Ok(Outputs::default().showing(json!({ "images": [saved.to_json()], "animated": [is_animated] })))
}

/// The prompt and the keys of `extra_pnginfo`, `name:json` each.
fn exif_texts(texts: &[(String, String)]) -> Vec<(u16, String)> {
    let mut tags = (1..=FIRST_EXTRA_TAG).rev();
    let mut tag_of = |keyword: &str| if keyword == "prompt" { Some(PROMPT_TAG) } else { tags.next() };
    texts.iter().filter_map(|(keyword, text)| Some((tag_of(keyword)?, format!("{keyword}:{text}")))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_have_the_tags_that_the_front_end_reads() {
        let texts = [("prompt", "{}"), ("workflow", "[]"), ("x", "1")];
        let texts = texts.map(|(keyword, text)| (keyword.to_owned(), text.to_owned()));
        let tags = exif_texts(&texts);
        let expected = [(0x0110, "prompt:{}"), (0x010f, "workflow:[]"), (0x010e, "x:1")];
        assert_eq!(tags, expected.map(|(tag, text)| (tag, text.to_owned())));
    }
}
