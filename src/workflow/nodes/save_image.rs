//! Pictures into files, and to the client itself.

use serde_json::{Value as Json, json};

use crate::picture::{TextChunk, encode_png_fast};
use crate::workflow::context::{Context, Inputs, NodeError, Outputs};
use crate::workflow::event::Event;
use crate::workflow::folders::{FileError, FileType, Folders, Numbered};
use crate::workflow::image::Image;
use crate::workflow::interface::{Hidden, Interface, link, string};
use crate::workflow::registry::Registry;
use crate::workflow::value::Kind;

/// Letters of the names of temporary pictures, and how many a name has.
const LETTERS: &[u8] = b"abcdefghijklmnopqrstuvwxyz";
const LETTERS_OF_A_NAME: usize = 5;
/// Longest keyword of a PNG's text.
const KEYWORD: usize = 79;

/// Adds them.
pub(super) fn register(registry: &mut Registry) {
    registry.add(
        with_metadata(
            Interface::new("SaveImage", "image")
                .display("Save Image")
                .description("Saves the input images to your ComfyUI output directory.")
                .input(link("images", Kind::IMAGE).with("tooltip", "The images to save."))
                .input(string("filename_prefix").with("default", "ComfyUI").with(
                    "tooltip",
                    "The prefix for the file to save. This may include formatting information such as \
                     %date:yyyy-MM-dd% or %Empty Latent Image.width% to include values from nodes.",
                ))
                .output_node(),
        ),
        save_image,
    );
    registry.add(
        with_metadata(
            Interface::new("PreviewImage", "image")
                .display("Preview Image")
                .description("Saves the input images to your ComfyUI output directory.")
                .input(link("images", Kind::IMAGE))
                .output_node(),
        ),
        preview_image,
    );
    registry
        .add(
            Interface::new("SaveImageWebsocket", "api/image")
                .input(link("images", Kind::IMAGE))
                .output_node()
                .module("custom_nodes.websocket_image_save"),
            send_image,
        )
        .changed = Some(|_, _| Some(uuid::Uuid::new_v4().to_string()));
}

/// What nodes that write the prompt into their files are given beside their inputs.
pub(super) fn with_metadata(interface: Interface) -> Interface {
    interface.hidden("prompt", Hidden::Prompt).hidden("extra_pnginfo", Hidden::ExtraPngInfo)
}

fn save_image(inputs: &Inputs, context: &Context<'_>) -> Result<Outputs, NodeError> {
    let images = inputs.image("images")?;
    let prefix = inputs.string("filename_prefix")?;
    let numbered = numbered(context.folders, &prefix, &images)?;
    Ok(Outputs::default().showing(save(&images, numbered, context)?))
}

fn preview_image(inputs: &Inputs, context: &Context<'_>) -> Result<Outputs, NodeError> {
    Ok(Outputs::default().showing(preview(&inputs.image("images")?, context)?))
}

/// Pictures that are only shown: `{"images": [...]}`.
pub(super) fn preview(images: &Image, context: &Context<'_>) -> Result<Json, NodeError> {
    let name = format!("ComfyUI_temp_{}", random_letters());
    let numbered = context.folders.fresh(FileType::Temp, &name).map_err(|error| unsaved(&error))?;
    save(images, numbered, context)
}

/// `{"images": [...]}`.
pub(super) fn save(images: &Image, mut numbered: Numbered, context: &Context<'_>) -> Result<Json, NodeError> {
    let chunks = text_chunks(context.metadata.chunks());
    let mut saved = Vec::with_capacity(images.count());
    for index in 0..images.count() {
        context.check_interrupt()?;
        let file = numbered.save(index, "png", &png(images, index, &chunks)?);
        saved.push(file.map_err(|error| unsaved(&error))?.to_json());
    }
    Ok(json!({ "images": saved }))
}

/// Sends each picture as PNG, without metadata.
fn send_image(inputs: &Inputs, context: &Context<'_>) -> Result<Outputs, NodeError> {
    let images = inputs.image("images")?;
    for index in 0..images.count() {
        context.check_interrupt()?;
        let png = png(&images, index, &[])?;
        context.progress(index, images.count());
        context.listener.tell(Event::Picture { node: context.node.to_owned(), png });
    }
    Ok(Outputs::default())
}

/// Where pictures with this prefix go.
pub(super) fn numbered(folders: &Folders, prefix: &str, images: &Image) -> Result<Numbered, NodeError> {
    folders
        .numbered(FileType::Output, prefix, images.width(), images.height())
        .map_err(|error| NodeError::input("filename_prefix", format!("'{prefix}': {error}")))
}

/// Why a file was not written.
pub(super) fn unsaved(error: &FileError) -> NodeError {
    NodeError::Failed(format!("cannot save: {error}"))
}

/// Picture number `index` in 8 bits, cut and not rounded, as ComfyUI does.
pub(super) fn eight_bits(images: &Image, index: usize) -> Vec<u8> {
    // What is no number becomes 0.
    images.picture(index).iter().map(|value| (255.0 * value).clamp(0.0, 255.0) as u8).collect()
}

/// Whether pixels are RGBA, not RGB.
///
/// # Errors
/// Pictures with other channels, or none at all.
pub(super) fn has_alpha(images: &Image) -> Result<bool, NodeError> {
    match images.channels() {
        _ if images.count() == 0 => Err(NodeError::input("images", "there is no picture")),
        3 => Ok(false),
        4 => Ok(true),
        channels => Err(NodeError::input(
            "images",
            format!("a picture of {channels} channels cannot be saved, only RGB and RGBA"),
        )),
    }
}

/// Picture number `index` as a PNG.
pub(super) fn png(images: &Image, index: usize, chunks: &[TextChunk]) -> Result<Vec<u8>, NodeError> {
    let alpha = has_alpha(images)?;
    encode_png_fast(images.width(), images.height(), alpha, &eight_bits(images, index), chunks)
        .map_err(|error| NodeError::Failed(format!("cannot encode the PNG: {error}")))
}

/// Those of the texts that a PNG can hold.
pub(super) fn text_chunks(texts: &[(String, String)]) -> Vec<TextChunk> {
    let fits = |keyword: &str| {
        (1..=KEYWORD).contains(&keyword.chars().count())
            && keyword.chars().all(|c| u32::from(c) < 256 && !c.is_control())
    };
    let chunk = |(keyword, text): &(String, String)| {
        fits(keyword).then(|| TextChunk { keyword: keyword.clone(), text: text.clone() })
    };
    texts.iter().filter_map(chunk).collect()
}

fn random_letters() -> String {
    let bytes = uuid::Uuid::new_v4().into_bytes();
    let letter = |byte: &u8| char::from(LETTERS[usize::from(*byte) % LETTERS.len()]);
    // Neither of the two that say the version.
    bytes.iter().take(LETTERS_OF_A_NAME).map(letter).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_cut_to_8_bits_and_not_rounded() {
        let values =
            vec![0.0, 0.999, 1.0, 0.5, -3.0, 7.0, f32::NAN, f32::INFINITY, 1.0 / 255.0, 0.0, 0.1, 0.2];
        let images = Image::new(1, 2, 2, 3, values).unwrap();
        assert_eq!(eight_bits(&images, 0), [0, 254, 255, 127, 0, 255, 0, 255, 1, 0, 25, 51]);
    }

    #[test]
    fn a_picture_has_the_prompt_where_readers_look_first() {
        let images = Image::new(2, 1, 1, 3, vec![0.0, 0.5, 1.0, 0.2, 0.2, 0.2]).unwrap();
        let long = "k".repeat(80);
        let texts = [("prompt", "{\"1\": {}}"), ("workflow", "[]"), ("", "x"), (&*long, "x"), ("少", "x")];
        let texts = texts.map(|(keyword, text)| (keyword.to_owned(), text.to_owned()));
        let bytes = png(&images, 0, &text_chunks(&texts)).unwrap();
        let mut reader = png::Decoder::new(std::io::Cursor::new(&bytes)).read_info().unwrap();
        let chunks = &reader.info().uncompressed_latin1_text;
        let chunks: Vec<_> = chunks.iter().map(|chunk| (&*chunk.keyword, &*chunk.text)).collect();
        assert_eq!(chunks, [("prompt", "{\"1\": {}}"), ("workflow", "[]")]);
        let mut pixels = [0; 3];
        reader.next_frame(&mut pixels).unwrap();
        assert_eq!(pixels, [0, 127, 255]);
    }

    #[test]
    fn transparency_is_saved_and_other_channels_are_refused() {
        let images = Image::new(1, 1, 1, 4, vec![1.0, 0.0, 0.0, 0.5]).unwrap();
        let read = image::load_from_memory(&png(&images, 0, &[]).unwrap()).unwrap();
        assert_eq!(read.into_rgba8().into_raw(), [255, 0, 0, 127]);
        let grey = Image::new(1, 1, 1, 1, vec![1.0]).unwrap();
        assert!(png(&grey, 0, &[]).unwrap_err().to_string().contains("1 channels"));
        assert!(has_alpha(&Image::new(0, 1, 1, 3, vec![]).unwrap()).is_err());
    }

    #[test]
    fn temporary_names_differ() {
        let names: std::collections::HashSet<String> = (0..100).map(|_| random_letters()).collect();
        assert!(names.len() > 90);
        assert!(
            names.iter().all(|name| name.len() == 5 && name.bytes().all(|byte| byte.is_ascii_lowercase()))
        );
    }
}
