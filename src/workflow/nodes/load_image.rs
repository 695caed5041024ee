//! Pictures and masks from files.

use sha2::{Digest, Sha256};

use crate::picture::{Frames, MAX_BYTES, ReadLimits, read_first_frame, read_frames};
use crate::workflow::context::{Context, Inputs, NodeError, Outputs};
use crate::workflow::folders::{FileError, Folders};
use crate::workflow::image::{Image, Mask};
use crate::workflow::interface::{Interface, combo, input_file, input_picture, remote};
use crate::workflow::registry::Registry;
use crate::workflow::value::{Kind, Value};

/// Side of the empty mask of a picture without transparency.
const EMPTY_MASK: usize = 64;

/// Adds them.
pub(super) fn register(registry: &mut Registry) {
    let node = registry.add(
        Interface::new("LoadImage", "image")
            .display("Load Image")
            .input(input_picture("image").with("image_upload", true))
            .output(Kind::IMAGE)
            .output(Kind::MASK),
        load_image,
    );
    node.changed = Some(|inputs, context| Some(digest(inputs, context, "image")));
    node.check = Some(("image", check_image));

    let node = registry.add(
        Interface::new("LoadImageMask", "mask")
            .display("Load Image (as Mask)")
            .input(input_file("image").with("image_upload", true))
            .input(combo("channel", ["alpha", "red", "green", "blue"]))
            .output(Kind::MASK),
        load_mask,
    );
    node.changed = Some(|inputs, context| Some(digest(inputs, context, "image")));
    node.check = Some(("image", check_image));

    let refresh = serde_json::json!({
        "route": "/internal/files/output",
        "refresh_button": true,
        "control_after_refresh": "first",
    });
    let node = registry.add(
        Interface::new("LoadImageOutput", "image")
            .display("Load Image (from Outputs)")
            .description(
                "Load an image from the output folder. When the refresh button is clicked, the node will update the \
                 image list and automatically select the first image, allowing for easy iteration.",
            )
            .input(
                remote("image")
                    .with("image_upload", true)
                    .with("image_folder", "output")
                    .with("remote", refresh),
            )
            .output(Kind::IMAGE)
            .output(Kind::MASK),
        load_image,
    );
    node.changed = Some(|inputs, context| Some(digest(inputs, context, "image")));
    node.check = Some(("image", check_image));
}

fn load_image(inputs: &Inputs, context: &Context<'_>) -> Result<Outputs, NodeError> {
    let name = inputs.string("image")?;
    let (image, mask) = image_and_mask(&read(context.folders, "image", &name)?, &name)?;
    Ok(Outputs::of([Value::Image(image), Value::Mask(mask)]))
}

fn load_mask(inputs: &Inputs, context: &Context<'_>) -> Result<Outputs, NodeError> {
    let name = inputs.string("image")?;
    let bytes = read(context.folders, "image", &name)?;
    Ok(Outputs::one(Value::Mask(channel_mask(&bytes, &name, &inputs.string("channel")?)?)))
}

/// The bytes of the file that an input names.
pub(super) fn read(folders: &Folders, input: &str, name: &str) -> Result<Vec<u8>, NodeError> {
    folders.read_annotated(name, MAX_BYTES).map_err(|error| refused(input, name, &error))
}

/// Why the file that an input names was not read.
pub(super) fn refused(input: &str, name: &str, error: &FileError) -> NodeError {
    NodeError::input(input, format!("'{name}': {error}"))
}

/// A file's pictures as a batch, and 1 − alpha of each; without transparency, an empty mask of 64×64.
pub(super) fn image_and_mask(bytes: &[u8], name: &str) -> Result<(Image, Mask), NodeError> {
    let frames = read_frames(bytes, &ReadLimits::default(), name)
        .map_err(|error| NodeError::Failed(error.to_string()))?;
    let Frames { count, width, height, rgb, alpha, alpha_is_channel } = frames;
    let mask = match alpha {
        Some(alpha) if alpha_is_channel => {
            Mask::new(count, height, width, alpha.into_iter().map(|alpha| 1.0 - alpha).collect())
        }
        _ => {
            let size = count.saturating_mul(EMPTY_MASK * EMPTY_MASK);
            Mask::new(count, EMPTY_MASK, EMPTY_MASK, vec![0.0; size])
        }
    };
    let image = Image::new(count, height, width, 3, rgb);
    image.zip(mask).ok_or_else(|| NodeError::Failed(format!("{name}: the picture has no pixels")))
}

/// One channel of a file's first picture; of `alpha`, 1 − alpha.
pub(super) fn channel_mask(bytes: &[u8], name: &str, channel: &str) -> Result<Mask, NodeError> {
    let frames = read_first_frame(bytes, &ReadLimits::default(), name)
        .map_err(|error| NodeError::Failed(error.to_string()))?;
    let Frames { width, height, rgb, alpha, .. } = frames;
    let pixels = rgb.len() / 3;
    let data = match ["red", "green", "blue"].iter().position(|known| *known == channel) {
        Some(channel) => rgb.chunks_exact(3).map(|pixel| pixel[channel]).collect(),
        None => alpha
            .map_or_else(|| vec![0.0; pixels], |alpha| alpha.into_iter().map(|value| 1.0 - value).collect()),
    };
    Mask::new(1, height, width, data)
        .ok_or_else(|| NodeError::Failed(format!("{name}: the picture has no pixels")))
}

fn check_image(inputs: &Inputs, folders: &Folders) -> Result<(), String> {
    check_file(inputs, folders, "image", "image")
}

/// Whether the file that a constant input names is there.
pub(super) fn check_file(inputs: &Inputs, folders: &Folders, input: &str, what: &str) -> Result<(), String> {
    // What comes over a link is known only later.
    let Ok(name) = inputs.string(input) else { return Ok(()) };
    folders.find_annotated(&name).map(drop).map_err(|_| format!("Invalid {what} file: {name}"))
}

/// A digest of the file that an input names; something new where it cannot be read, so that the node runs and says why.
pub(super) fn digest(inputs: &Inputs, context: &Context<'_>, input: &str) -> String {
    let digest = inputs.string(input).ok().and_then(|name| file_digest(context.folders, &name));
    digest.unwrap_or_else(|| uuid::Uuid::new_v4().to_string())
}

fn file_digest(folders: &Folders, name: &str) -> Option<String> {
    let mut file = std::fs::File::open(folders.find_annotated(name).ok()?).ok()?;
    let mut digest = Sha256::new();
    let mut buffer = vec![0; 1 << 16];
    loop {
        match std::io::Read::read(&mut file, &mut buffer).ok()? {
            0 => return Some(hex::encode(digest.finalize())),
            read => digest.update(&buffer[..read]),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use image::{DynamicImage, ImageFormat, Rgb, RgbImage, Rgba, RgbaImage};
    use tempfile::TempDir;

    use super::*;

    fn png(picture: impl Into<DynamicImage>) -> Vec<u8> {
        let mut bytes = Vec::new();
        picture.into().write_to(&mut Cursor::new(&mut bytes), ImageFormat::Png).unwrap();
        bytes
    }

    fn inputs(name: &str) -> Inputs {
        Inputs([("image".to_owned(), Value::String(name.into()))].into())
    }

    #[test]
    fn the_mask_is_one_minus_alpha_or_an_empty_one() {
        let clear = png(RgbaImage::from_fn(2, 1, |x, _| Rgba([255, 0, 51, x as u8 * 255])));
        let (image, mask) = image_and_mask(&clear, "a").unwrap();
        assert_eq!((image.count(), image.height(), image.width(), image.channels()), (1, 1, 2, 3));
        assert_eq!(image.data(), [1.0, 0.0, 0.2, 1.0, 0.0, 0.2]);
        assert_eq!(mask.data(), [1.0, 0.0]);
        let (_, mask) = image_and_mask(&png(RgbImage::new(3, 2)), "a").unwrap();
        assert_eq!((mask.count(), mask.height(), mask.width()), (1, 64, 64));
        assert!(mask.data().iter().all(|value| *value == 0.0));
    }

    #[test]
    fn a_mask_is_the_channel_that_is_asked_for() {
        let file = png(RgbImage::from_pixel(2, 1, Rgb([255, 0, 51])));
        let channel = |name| channel_mask(&file, "a", name).unwrap().data().to_vec();
        assert_eq!(channel("red"), [1.0, 1.0]);
        assert_eq!(channel("green"), [0.0, 0.0]);
        assert_eq!(channel("blue"), [0.2, 0.2]);
        // Of the picture's own size, unlike what LoadImage gives.
        assert_eq!(channel("alpha"), [0.0, 0.0]);
        let file = png(RgbaImage::from_pixel(1, 1, Rgba([0, 0, 0, 51])));
        assert_eq!(channel_mask(&file, "a", "alpha").unwrap().data(), [1.0 - 0.2]);
    }

    #[test]
    fn a_file_that_is_not_there_is_refused_before_the_prompt_runs() {
        let base = TempDir::new().unwrap();
        let folders = Folders::below(base.path(), None);
        folders.create().unwrap();
        std::fs::write(folders.output.join("test..png"), b"x").unwrap();
        std::fs::write(base.path().join("secret.png"), b"x").unwrap();
        assert_eq!(check_image(&inputs("test..png [output]"), &folders), Ok(()));
        for name in ["../secret.png", "b.png", "", "/etc/passwd", "a\0.png", "..\\secret.png"] {
            assert_eq!(check_image(&inputs(name), &folders), Err(format!("Invalid image file: {name}")));
        }
    }

    #[test]
    fn a_file_that_changes_changes_its_digest() {
        let base = TempDir::new().unwrap();
        let folders = Folders::below(base.path(), None);
        folders.create().unwrap();
        std::fs::write(folders.input.join("a"), b"abc").unwrap();
        let digest = file_digest(&folders, "a").unwrap();
        assert_eq!(digest, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
        std::fs::write(folders.input.join("a"), b"abd").unwrap();
        assert_ne!(file_digest(&folders, "a").unwrap(), digest);
        assert_eq!(file_digest(&folders, "b"), None);
    }
}
