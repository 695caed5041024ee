//! From a decoded picture to a drawn one: the background is taken out where that was asked for. Runs on the decoder's
//! thread.

use std::sync::Arc;

use candle_core::{Device, Tensor};
use darkroom_models::Computed;
use darkroom_models::face_detector::FaceDetector;
use darkroom_models::matting::BackgroundRemover;
use darkroom_pipelines::Picture;
use darkroom_pipelines::background::{KeyOptions, key_out};

use crate::task::{Background, ImageSpec};

/// What a picture needs, and is told of, after it is decoded.
#[derive(Clone, Default)]
pub(super) struct Finishing {
    /// What its LoRAs have that fits nothing in the model.
    pub(super) unmatched: Vec<String>,
    /// What its network's products were formed in.
    pub(super) computed: Computed,
    /// What finds its faces.
    pub(super) detector: Option<Arc<FaceDetector>>,
    /// What takes its background out.
    pub(super) remover: Option<Arc<BackgroundRemover>>,
}

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
pub(super) fn pixels(picture: &Picture, spec: &ImageSpec, finishing: &Finishing) -> Pixels {
    let cut = match &spec.background {
        Background::Keep => return opaque(picture, Vec::new()),
        Background::Key => key_out(picture, &KeyOptions::default())
            .map(|cutout| (cutout.picture.to_rgb8(), bytes(cutout.alpha.data())))
            .map_err(|error| error.to_string()),
        Background::Remove { .. } => {
            alpha(picture, finishing).map(|alpha| (picture.to_rgb8(), bytes(&alpha)))
        }
    };
    match cut {
        Ok((rgb, alpha)) => Pixels { rgb, alpha: Some(alpha), warnings: Vec::new() },
        Err(error) => opaque(picture, vec![format!("the background stays: {error}")]),
    }
}

fn alpha(picture: &Picture, finishing: &Finishing) -> Result<Vec<f32>, String> {
    let remover = finishing.remover.as_ref().ok_or("the background remover is not there")?;
    let shape = (picture.height(), picture.width(), 3);
    let pixels = Tensor::from_slice(picture.data(), shape, &Device::Cpu).map_err(|e| e.to_string())?;
    let alpha = remover.alpha(&pixels).map_err(|e| e.to_string())?;
    alpha.flatten_all().and_then(|alpha| alpha.to_vec1()).map_err(|e| e.to_string())
}

fn bytes(alpha: &[f32]) -> Vec<u8> {
    alpha.iter().map(|value| (255.0 * value).round() as u8).collect()
}

fn opaque(picture: &Picture, warnings: Vec<String>) -> Pixels {
    Pixels { rgb: picture.to_rgb8(), alpha: None, warnings }
}
