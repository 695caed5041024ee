//! From the flags about pictures (`--image`, `--mask`, …) to what a pipeline starts from and what the recipe
//! says about it.

use std::path::Path;
use std::sync::Arc;

use darkroom_pipelines::{InpaintMode, Picture, Source};

use super::args::{InpaintKind, SourceArgs};
use super::error::CommandError;
use crate::picture::{Origin, ReadError, cover, cover_mask, read_mask, read_picture};

/// ComfyUI's default of `grow_mask_by`.
const GROW_MASK: usize = 6;
/// Default denoise of image to image, as AUTOMATIC1111's.
const IMAGE_DENOISE: f64 = 0.75;
/// Smallest side that a scaled picture gets, pixels.
const LEAST_SIDE: usize = 16;
/// Sides of pictures are multiples of this.
const CELL: usize = darkroom_pipelines::PIXELS_PER_CELL;

/// What to start from.
#[derive(Debug)]
pub(super) struct Start {
    pub(super) source: Source,
    pub(super) origin: Origin,
    pub(super) denoise: f64,
}

/// Reads what the flags name. `size` is what `--width` and `--height` say, `default_size` the model's own.
pub(super) fn read(
    args: &SourceArgs,
    size: (Option<usize>, Option<usize>),
    default_size: (usize, usize),
) -> Result<Start, CommandError> {
    let Some(image_path) = &args.image else {
        let source = Source::Empty {
            width: size.0.unwrap_or(default_size.0),
            height: size.1.unwrap_or(default_size.1),
        };
        return Ok(Start { source, origin: Origin::Empty, denoise: args.denoise.unwrap_or(1.0) });
    };
    let (picture, alpha) = read_picture(image_path).map_err(unreadable)?;
    let target = target_size(&picture, size);
    let scaled = target.is_some();
    let image = file_name(image_path);
    let mask = match (&args.mask, args.inpaint_mode) {
        (Some(path), _) => Some(read_mask(path).map_err(unreadable)?),
        (None, Some(_)) => {
            let file = image_path.display().to_string();
            Some(alpha.ok_or_else(|| unreadable(ReadError::NoAlpha { file }))?)
        }
        (None, None) => None,
    };
    let (picture, mask) = match target {
        None => (picture, mask),
        Some((width, height)) => {
            let impossible = || CommandError::plain(format!("cannot scale {image} to {width}x{height}"));
            let mask = match mask {
                Some(mask) => Some(cover_mask(&mask, width, height).ok_or_else(impossible)?),
                None => None,
            };
            (cover(&picture, width, height).ok_or_else(impossible)?, mask)
        }
    };
    let picture = Arc::new(picture);
    let Some(mask) = mask else {
        return Ok(Start {
            source: Source::Image(picture),
            origin: Origin::Image { image, scaled },
            denoise: args.denoise.unwrap_or(IMAGE_DENOISE),
        });
    };
    let grow = args.grow_mask.map_or(GROW_MASK, |grow| grow as usize);
    let (mode, fill_grow) = match args.inpaint_mode {
        Some(InpaintKind::Fill) => (InpaintMode::Fill { grow }, Some(grow)),
        Some(InpaintKind::NoiseMask) | None => (InpaintMode::NoiseMask, None),
    };
    let mask_name = args.mask.as_deref().map(file_name);
    Ok(Start {
        source: Source::Inpaint { picture, mask: Arc::new(mask), mode },
        origin: Origin::Inpaint { image, mask: mask_name, scaled, fill_grow },
        denoise: args.denoise.unwrap_or(1.0),
    })
}

/// The size to scale to; one side alone keeps the picture's proportions. `None`: the picture's own size.
fn target_size(picture: &Picture, size: (Option<usize>, Option<usize>)) -> Option<(usize, usize)> {
    let other = |side: usize, ours: usize, theirs: usize| {
        let exact = side as f64 * theirs as f64 / ours as f64;
        (((exact / CELL as f64).round() as usize) * CELL).max(LEAST_SIDE)
    };
    let (width, height) = match size {
        (Some(width), Some(height)) => (width, height),
        (Some(width), None) => (width, other(width, picture.width(), picture.height())),
        (None, Some(height)) => (other(height, picture.height(), picture.width()), height),
        (None, None) => return None,
    };
    ((width, height) != (picture.width(), picture.height())).then_some((width, height))
}

fn file_name(path: &Path) -> String {
    path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned()
}

/// What to do about a picture that cannot be read.
pub(super) fn unreadable(error: ReadError) -> CommandError {
    let fix = match &error {
        ReadError::Io { .. } => "check the path and that the file may be read",
        ReadError::NotAFile { .. } => "name a picture file",
        ReadError::Empty { .. } | ReadError::Damaged { .. } => "make or download the file again",
        ReadError::FileTooLarge { .. } | ReadError::TooManyPixels { .. } => "scale the picture down first",
        ReadError::NoAlpha { .. } => "give the area to repaint with --mask FILE (white is repainted)",
        _ => "convert it to PNG",
    };
    CommandError::failure(error, fix)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn picture(width: usize, height: usize) -> Picture {
        Picture::new(width, height, vec![0.5; width * height * 3]).unwrap()
    }

    #[test]
    fn one_side_alone_keeps_the_proportions_to_a_multiple_of_8() {
        assert_eq!(target_size(&picture(400, 300), (Some(128), None)), Some((128, 96)));
        assert_eq!(target_size(&picture(400, 300), (None, Some(128))), Some((168, 128)));
        assert_eq!(target_size(&picture(4000, 10), (Some(128), None)), Some((128, 16)));
    }

    #[test]
    fn no_size_or_the_same_size_is_not_scaled() {
        assert_eq!(target_size(&picture(400, 300), (None, None)), None);
        assert_eq!(target_size(&picture(64, 32), (Some(64), Some(32))), None);
    }
}
