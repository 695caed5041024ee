//! From a decoded picture to a drawn one: the background is taken out where that was asked for. Runs on the decoder's
//! thread.

use darkroom_pipelines::Picture;
use darkroom_pipelines::background::{KeyOptions, key_out};

use crate::task::{Background, ImageSpec};

/// A picture's values as a file takes them.
pub(super) struct Pixels {
    /// 8-bit RGB, `[height, width, 3]`.
    pub(super) rgb: Vec<u8>,
    /// How opaque each pixel is, `[height, width]`; `None`: all are.
    pub(super) alpha: Option<Vec<u8>>,
    /// What is not as asked for.
    pub(super) warnings: Vec<String>,
}

/// Does what `spec` wants done with its background. A background that cannot be taken out stays, with a warning: the
/// picture itself is drawn, and drawing it again would not change it.
pub(super) fn pixels(picture: &Picture, spec: &ImageSpec) -> Pixels {
    match &spec.background {
        Background::Keep => opaque(picture, Vec::new()),
        Background::Key => match key_out(picture, &KeyOptions::default()) {
            Ok(cutout) => {
                let alpha = cutout.alpha.data().iter().map(|value| (255.0 * value).round() as u8).collect();
                Pixels { rgb: cutout.picture.to_rgb8(), alpha: Some(alpha), warnings: Vec::new() }
            }
            Err(error) => opaque(picture, vec![format!("the background stays: {error}")]),
        },
        Background::Remove { remover } => {
            opaque(picture, vec![format!("the background stays: '{remover}' cannot be used yet")])
        }
    }
}

fn opaque(picture: &Picture, warnings: Vec<String>) -> Pixels {
    Pixels { rgb: picture.to_rgb8(), alpha: None, warnings }
}
