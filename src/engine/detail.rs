//! Drawing faces once more, larger: a decoded picture's faces are found and cut out on the decoder's thread, drawn as
//! samples of their own in the device's step batches (all faces of all pictures of one working size together), and
//! pasted back when the last one is decoded. The rules are Impact Pack's `FaceDetailer`; see
//! [`darkroom_pipelines::detail`].

use std::sync::{Arc, Mutex, PoisonError};

use candle_core::Tensor;
use darkroom_models::face_detector::{DetectOptions, FaceDetector};
use darkroom_pipelines::detail::{BoundingBox, Crop, DetailOptions, crops};
use darkroom_pipelines::{InpaintMode, Picture, Source};

use super::Unwritten;
use super::finish::Finishing;
use super::job::{Content, Job};
use crate::task::{DetailPlaces, DetailSpec, ImageSpec, SourceSpec, Usage};

/// A picture whose faces are being drawn.
pub(super) struct Detailing {
    job: Job,
    spec: Arc<ImageSpec>,
    crops: Vec<Crop>,
    state: Mutex<State>,
}

struct State {
    picture: Picture,
    /// One a crop; `None` while it is drawn, or if it could not be.
    drawn: Vec<Option<Picture>>,
    left: usize,
    usage: Usage,
    warnings: Vec<String>,
    /// Counts as unwritten until the whole picture is.
    unwritten: Option<Unwritten>,
    finishing: Finishing,
}

/// One face of such a picture.
#[derive(Clone)]
pub(super) struct Part {
    of: Arc<Detailing>,
    index: usize,
}

/// A picture that is as it should be, but for its background.
pub(super) struct Detailed {
    pub(super) job: Job,
    pub(super) spec: Arc<ImageSpec>,
    pub(super) picture: Picture,
    pub(super) usage: Usage,
    pub(super) warnings: Vec<String>,
    pub(super) unwritten: Unwritten,
    pub(super) finishing: Finishing,
}

/// What became of looking for faces.
pub(super) enum Looked {
    /// They are to be drawn.
    Parts(Vec<Part>),
    /// There is nothing to draw.
    Nothing(Box<Detailed>),
}

/// Finds the places of `picture` that its spec wants drawn once more. `side` is what the model draws best.
pub(super) fn look(detail: &DetailSpec, side: usize, mut whole: Detailed) -> Looked {
    let found = places(detail, whole.finishing.detector.as_deref(), &whole.picture).and_then(|boxes| {
        let (width, height) = (whole.picture.width(), whole.picture.height());
        crops(width, height, &boxes, &options(detail, side)).map_err(|error| error.to_string())
    });
    let crops = match found {
        Ok(crops) if crops.is_empty() => {
            whole.warnings.push("no face was found that is small enough to gain from the detail pass".into());
            return Looked::Nothing(Box::new(whole));
        }
        Ok(crops) => crops,
        Err(error) => {
            whole.warnings.push(format!("the detail pass was left out: {error}"));
            return Looked::Nothing(Box::new(whole));
        }
    };
    let Detailed { job, spec, picture, usage, warnings, unwritten, finishing } = whole;
    let count = crops.len();
    let state = State {
        picture,
        drawn: vec![None; count],
        left: count,
        usage,
        warnings,
        unwritten: Some(unwritten),
        finishing,
    };
    let of = Arc::new(Detailing { job, spec, crops, state: Mutex::new(state) });
    Looked::Parts((0..count).map(|index| Part { of: Arc::clone(&of), index }).collect())
}

fn options(detail: &DetailSpec, side: usize) -> DetailOptions {
    let size = detail.size.unwrap_or(side);
    DetailOptions {
        denoise: detail.denoise,
        guide_size: size,
        max_size: size,
        bbox_crop_factor: detail.crop_factor,
        feather: detail.feather,
        // Who says where wants it drawn there.
        force_inpaint: matches!(detail.places, DetailPlaces::Boxes { .. }),
        ..DetailOptions::default()
    }
}

fn places(
    detail: &DetailSpec,
    detector: Option<&FaceDetector>,
    picture: &Picture,
) -> Result<Vec<BoundingBox>, String> {
    match &detail.places {
        DetailPlaces::Boxes { boxes } => {
            let (width, height) = (picture.width() as f64, picture.height() as f64);
            let scaled = |[x0, y0, x1, y1]: [f64; 4]| {
                BoundingBox::new(x0 * width, y0 * height, x1 * width, y1 * height).map_err(|e| e.to_string())
            };
            boxes.iter().copied().map(scaled).collect()
        }
        DetailPlaces::Detected { confidence, .. } => {
            let detector = detector.ok_or("the detector is not there")?;
            let options = DetectOptions { confidence: *confidence as f32, ..DetectOptions::default() };
            let shape = (picture.height(), picture.width(), 3);
            let pixels = Tensor::from_slice(picture.data(), shape, &candle_core::Device::Cpu);
            let pixels = pixels.map_err(|error| error.to_string())?;
            let found = detector.detect(&[pixels], &options).map_err(|error| error.to_string())?;
            let boxes = found.into_iter().flatten().map(BoundingBox::try_from);
            boxes.collect::<Result<_, _>>().map_err(|error| error.to_string())
        }
    }
}

impl Part {
    /// The face as a picture to draw: what the whole is drawn with, but for its ControlNets, whose pictures show the
    /// whole.
    pub(super) fn job(&self) -> Job {
        let whole = &self.of.spec;
        let (width, height) = self.of.crops[self.index].working();
        let denoise = whole.detail.as_ref().map_or(1.0, |detail| detail.denoise);
        let spec = ImageSpec {
            width,
            height,
            denoise,
            seed: whole.seed.wrapping_add(self.index as u64),
            source: SourceSpec::Empty,
            controls: Vec::new(),
            detail: None,
            ..ImageSpec::clone(whole)
        };
        Job { content: Content::Picture(Arc::new(spec)), ..self.of.job.clone() }
    }

    /// What it starts from: the face enlarged, redrawn within its box.
    ///
    /// # Errors
    /// When the crop cannot be cut.
    pub(super) fn source(&self) -> Result<Source, String> {
        let crop = &self.of.crops[self.index];
        let cut = crop.cut(&self.lock().picture).map_err(|error| error.to_string())?;
        let mask = Arc::new(crop.noise_mask());
        Ok(Source::Inpaint { picture: Arc::new(cut), mask, mode: InpaintMode::NoiseMask })
    }

    /// The face is drawn, or could not be; the whole picture if it was the last.
    pub(super) fn done(self, drawn: Result<Picture, String>, usage: &Usage) -> Option<Detailed> {
        let mut state = self.lock();
        state.usage.add(usage);
        match drawn {
            Ok(picture) => state.drawn[self.index] = Some(picture),
            Err(error) => state.warnings.push(format!("face {} stays as it was: {error}", self.index + 1)),
        }
        state.left -= 1;
        if state.left > 0 {
            return None;
        }
        let State { picture, drawn, usage, warnings, unwritten, finishing, .. } = &mut *state;
        for (crop, face) in self.of.crops.iter().zip(drawn.iter()) {
            if let Some(face) = face
                && let Err(error) = crop.paste(picture, face)
            {
                warnings.push(format!("a face could not be pasted: {error}"));
            }
        }
        Some(Detailed {
            job: self.of.job.clone(),
            spec: Arc::clone(&self.of.spec),
            picture: picture.clone(),
            usage: *usage,
            warnings: std::mem::take(warnings),
            unwritten: unwritten.take()?,
            finishing: finishing.clone(),
        })
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.of.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
