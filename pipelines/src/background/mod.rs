//! Keying: a flat background made transparent without a network, for stickers.
//!
//! [`contrasting_background`] says which background to ask the prompt for, [`key_out`] takes it out of the picture:
//! the colour is found along the border, filled from there, and the soft edge pixels are taken apart into the
//! character's colour and its share. Works on finished pictures, after decoding; knows no tensors and no files.

mod border;
mod edge;
mod oklab;
mod region;
mod tags;

#[cfg(test)]
mod tests;

pub use tags::contrasting_background;

use rayon::prelude::*;

use crate::{Mask, Picture};
use oklab::Oklab;
use region::Region;

/// The smallest part of the border that a flat background covers. Long hair and shoulders leave more of the sides
/// than this; scenes have no colour that covers as much.
pub const LEAST_BORDER_SHARE: f32 = 0.6;

/// The largest part of the border, for each that is background, that may be nearly of the background's colour. Where
/// a flat background ends, a character begins with another colour; a gradient shades off.
pub const MOST_SHADED: f32 = 0.1;

/// The smallest part of the border that a background of a given colour covers.
pub const LEAST_GIVEN_SHARE: f32 = 0.02;

/// How [`key_out`] tells background from character.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct KeyOptions {
    /// The background's colour, sRGB. `None` finds it along the border.
    pub colour: Option<[u8; 3]>,
    /// Farthest a background pixel is from the background's colour: OKLab distance, in which black and white are
    /// 1 apart and 0.02 is just visible. More than 0 and at most 0.5.
    pub tolerance: f32,
    /// How far beyond `tolerance` an edge pixel is opaque at the latest, OKLab distance, 0 to 0.5.
    pub softness: f32,
    /// Whether areas of the background's colour that the character encloses, alone or with the picture's lower
    /// edge, go as well: the gap between arm and body, or between legs. Eyes of that colour then go with them.
    pub enclosed: bool,
}

impl Default for KeyOptions {
    fn default() -> Self {
        Self { colour: None, tolerance: 0.06, softness: 0.08, enclosed: false }
    }
}

/// A picture freed from its background.
#[derive(Debug, Clone, PartialEq)]
pub struct Cutout {
    /// 1 where the character is, 0 where the background was, its share on the edge.
    pub alpha: Mask,
    /// The picture with the background's colour taken out of its edge pixels; not multiplied by `alpha`.
    pub picture: Picture,
    /// The background's colour, sRGB.
    pub colour: [u8; 3],
    /// The part of the border (without the lower edge, where characters stand) that it covered.
    pub border_share: f32,
}

impl Cutout {
    /// Four bytes a pixel, red, green, blue and alpha, not premultiplied. Colours are truncated as
    /// [`Picture::to_rgb8`] does.
    pub fn to_rgba8(&self) -> Vec<u8> {
        let colours = self.picture.data().chunks_exact(3);
        colours
            .zip(self.alpha.data())
            .flat_map(|(c, alpha)| [c[0], c[1], c[2], *alpha].map(|v| (255.0 * v) as u8))
            .collect()
    }
}

/// Why a background could not be keyed out.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum BackgroundError {
    /// No colour covers enough of the border, or it shades off.
    #[error(
        "the picture's border is not flat: {:.0} % of it is {}, the commonest colour, and {:.0} % is nearly that; at \
         least {:.0} % of one colour and little that shades off are needed: ask for a plain background in the prompt \
         (\"simple background, green background\"), raise the tolerance or give a background-removal model",
        100.0 * share, hex(*colour), 100.0 * shaded, 100.0 * LEAST_BORDER_SHARE
    )]
    NotFlat {
        /// The commonest colour.
        colour: [u8; 3],
        /// The part of the border that it covers.
        share: f32,
        /// The part of the border within twice the tolerance of it, but not within the tolerance.
        shaded: f32,
    },
    /// The colour given is hardly on the border.
    #[error(
        "the background colour {} covers {:.1} % of the picture's border; leave the colour out to have it found, or \
         raise the tolerance",
        hex(*colour), 100.0 * share
    )]
    Absent {
        /// The colour asked for.
        colour: [u8; 3],
        /// The part of the border that it covers.
        share: f32,
    },
    /// An option is outside its bounds.
    #[error("{option} {value} is not {bounds}")]
    Option {
        /// Which one.
        option: &'static str,
        /// What it was.
        value: f32,
        /// What it may be.
        bounds: &'static str,
    },
}

fn hex([r, g, b]: [u8; 3]) -> String {
    format!("#{r:02x}{g:02x}{b:02x}")
}

/// Takes the flat background out of `picture`.
///
/// # Errors
/// When no flat background is found along the border, a given colour is not there, or an option is out of bounds.
pub fn key_out(picture: &Picture, options: &KeyOptions) -> Result<Cutout, BackgroundError> {
    check(options)?;
    let lab: Vec<Oklab> = picture.data().par_chunks_exact(3).map(Oklab::from_pixel).collect();
    let (width, height) = (picture.width(), picture.height());
    let found = border::background(picture, &lab, options);
    let (colour, share, shaded) = (found.colour, found.share, found.shaded);
    match options.colour {
        Some(_) if share < LEAST_GIVEN_SHARE => return Err(BackgroundError::Absent { colour, share }),
        None if share < LEAST_BORDER_SHARE || shaded > MOST_SHADED * share => {
            return Err(BackgroundError::NotFlat { colour, share, shaded });
        }
        _ => {}
    }
    let distance: Vec<f32> = lab.par_iter().map(|pixel| pixel.distance(found.lab)).collect();
    drop(lab);
    let mut background = Region::from_border(&distance, width, height, options.tolerance);
    if options.enclosed {
        background.add_enclosed(&distance, options.tolerance);
    }
    background.add_specks(&distance, 2.0 * options.tolerance + options.softness);
    let (alpha, picture) = edge::take_apart(picture, &background, &distance, colour, options);
    Ok(Cutout { alpha, picture, colour, border_share: share })
}

fn check(options: &KeyOptions) -> Result<(), BackgroundError> {
    // Written so that NaN fails.
    if !(options.tolerance > 0.0 && options.tolerance <= 0.5) {
        let bounds = "more than 0 and at most 0.5";
        return Err(BackgroundError::Option { option: "tolerance", value: options.tolerance, bounds });
    }
    if !(0.0..=0.5).contains(&options.softness) {
        let bounds = "between 0 and 0.5";
        return Err(BackgroundError::Option { option: "softness", value: options.softness, bounds });
    }
    Ok(())
}
