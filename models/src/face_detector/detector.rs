//! The detector as callers see it: pictures in, boxes out.

use std::collections::BTreeMap;
use std::sync::Arc;

use candle_core::{DType, Device, Tensor};

use super::DetectorError;
use super::decode::{Detection, Rows};
use super::letterbox::Letterbox;
use super::network::{Network, Predictions, STRIDES};
use super::options::{DetectOptions, MAX_PICTURE_SIDE};
use super::suppression::suppressed;
use crate::weights::{Stored, Transform, WeightFile, Weights};

/// Most pictures in one pass, which bounds the memory of activations: the first layer of YOLOv8m alone gives 20 MB
/// for each.
const PICTURES_A_PASS: usize = 8;

/// Tensors that finding boxes does not need: masks, key points, and a counter of training.
fn is_needed(name: &str) -> bool {
    let other_tasks = ["model.22.cv4.", "model.22.proto."];
    !name.ends_with(".num_batches_tracked") && !other_tasks.iter().any(|prefix| name.starts_with(prefix))
}

/// A YOLOv8 network that finds faces, hands or whatever else it was trained for.
///
/// Of a network that also gives masks (`-seg`) or key points (`-pose`), only the boxes are computed.
#[derive(Debug, Clone)]
pub struct FaceDetector {
    network: Network,
    names: BTreeMap<usize, String>,
    device: Device,
}

impl FaceDetector {
    /// Loads what `scripts/convert_yolo.py` wrote. The weights take four bytes each, whatever the file has.
    ///
    /// # Errors
    /// When the file holds another network, or its tensors are missing, damaged or of other shapes.
    #[expect(clippy::needless_pass_by_value, reason = "callers have no further use for their handle")]
    pub fn from_file(file: Arc<WeightFile>, device: &Device) -> Result<Self, DetectorError> {
        let names = metadata(&file)?;
        let stored = |name: &String| {
            let stored = Stored { file: file.clone(), name: name.clone(), transform: Transform::None };
            (name.clone(), stored)
        };
        let tensors = file.header().tensors.keys().filter(|name| is_needed(name)).map(stored).collect();
        let weights = Weights::new(file.name(), tensors, device);
        let network = Network::load(&weights)?;
        weights.finish()?;
        Ok(Self { network, names, device: device.clone() })
    }

    /// How many classes it tells apart.
    pub fn classes(&self) -> usize {
        self.network.classes
    }

    /// The name of a class, if the file says it.
    pub fn class_name(&self, class: usize) -> Option<&str> {
        self.names.get(&class).map(String::as_str)
    }

    /// The network alone: `x: [b, h, w, 3]` in `0..=1`, sides multiples of 32.
    ///
    /// # Errors
    /// When `x` has another shape.
    pub fn forward(&self, x: &Tensor) -> candle_core::Result<Predictions> {
        self.network.forward(x)
    }

    /// What is in each of `pictures`: `[h, w, 3]`, red, green and blue in `0..=1`, of any sizes. The most
    /// confident detections come first, cut at the picture's edges.
    ///
    /// Pictures of the same letterboxed size pass the network together. A detection does not depend on what else
    /// is in `pictures`, but for the last bits of sums in another order.
    ///
    /// # Errors
    /// When an option is out of range, a picture has another shape or values that are no numbers, or the network
    /// gives such.
    pub fn detect(
        &self,
        pictures: &[Tensor],
        options: &DetectOptions,
    ) -> Result<Vec<Vec<Detection>>, DetectorError> {
        options.validate()?;
        let mut groups: BTreeMap<(usize, usize), Vec<(usize, Letterbox)>> = BTreeMap::new();
        for (index, picture) in pictures.iter().enumerate() {
            let (width, height) = size(index, picture)?;
            let letterbox = Letterbox::new(width, height, options.size);
            groups.entry(letterbox.padded).or_default().push((index, letterbox));
        }
        let mut found = vec![Vec::new(); pictures.len()];
        for (padded, group) in &groups {
            for pass in group.chunks(PICTURES_A_PASS) {
                let detections = self.pass(pictures, pass, *padded, options)?;
                for ((index, _), detections) in pass.iter().zip(detections) {
                    if let Some(place) = found.get_mut(*index) {
                        *place = detections;
                    }
                }
            }
        }
        Ok(found)
    }

    /// One pass of the network, over pictures that are all letterboxed to `width × height`.
    fn pass(
        &self,
        pictures: &[Tensor],
        pass: &[(usize, Letterbox)],
        (width, height): (usize, usize),
        options: &DetectOptions,
    ) -> Result<Vec<Vec<Detection>>, DetectorError> {
        let mut data = Vec::with_capacity(pass.len() * width * height * 3);
        for (index, letterbox) in pass {
            data.extend(letterbox.apply(&values(*index, &pictures[*index])?));
        }
        let x = Tensor::from_vec(data, (pass.len(), height, width, 3), &self.device)?;
        let predictions = self.network.forward(&x)?;
        let rows = |x: &Tensor| x.flatten_from(1)?.to_vec2::<f32>();
        let (distances, scores) = (rows(&predictions.distances)?, rows(&predictions.scores)?);
        let mut found = Vec::with_capacity(pass.len());
        for ((distances, scores), (index, letterbox)) in distances.iter().zip(&scores).zip(pass) {
            let rows = Rows { distances, scores, bins: self.network.bins, classes: self.network.classes };
            let candidates = rows
                .detections(width, height, options.confidence)
                .ok_or(DetectorError::NotANumber { index: *index })?;
            let mut kept = suppressed(candidates, options.iou, options.max_detections);
            for detection in &mut kept {
                let [x0, y0, x1, y1] = letterbox.to_picture(detection.edges());
                *detection = Detection { x0, y0, x1, y1, ..*detection };
            }
            found.push(kept);
        }
        Ok(found)
    }
}

/// Width and height of a picture that can be searched.
fn size(index: usize, picture: &Tensor) -> Result<(usize, usize), DetectorError> {
    let refuse = |message| Err(DetectorError::Picture { index, message });
    let &[height, width, 3] = picture.dims() else {
        return refuse(format!("has shape {:?}, must be [height, width, 3]", picture.dims()));
    };
    if [height, width].iter().any(|side| !(1..=MAX_PICTURE_SIDE).contains(side)) {
        return refuse(format!("is {width}×{height}; a side must have 1 to {MAX_PICTURE_SIDE} pixels"));
    }
    Ok((width, height))
}

fn values(index: usize, picture: &Tensor) -> Result<Vec<f32>, DetectorError> {
    let data = picture.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>()?;
    if data.iter().any(|value| !value.is_finite()) {
        let message = "holds NaN or infinite values".into();
        return Err(DetectorError::Picture { index, message });
    }
    Ok(data)
}

/// The classes' names, and a check that the grids are the ones that boxes are computed for.
fn metadata(file: &WeightFile) -> Result<BTreeMap<usize, String>, DetectorError> {
    let refuse = |reason| DetectorError::Layout { file: file.name().to_owned(), reason };
    let metadata = &file.header().metadata;
    if let Some(strides) = metadata.get("strides") {
        let found: Vec<_> = strides.split(',').map(|stride| stride.trim().parse::<usize>().ok()).collect();
        if found != STRIDES.map(Some) {
            return Err(refuse(format!("its strides are {strides:?}, must be {STRIDES:?}")));
        }
    }
    match metadata.get("names") {
        Some(names) => serde_json::from_str(names)
            .map_err(|error| refuse(format!("its metadata 'names' are not a JSON object of names: {error}"))),
        None => Ok(BTreeMap::new()),
    }
}
