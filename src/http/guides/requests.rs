//! The JSON of LoRAs, ControlNets, the detail pass and backgrounds, and what it means in a picture's spec.

use serde::Deserialize;
use utoipa::ToSchema;

use super::{Guides, control_strength, lora_strength, within};
use crate::catalog::AuxiliaryKind;
use crate::http::error::ApiError;
use crate::service::ControlType;
use crate::task::{
    Background, BlobId, ControlSpec, DetailPlaces, DetailSpec, ImageFormat, LoraSpec, Preprocess,
};

/// Most boxes of a detail pass.
const BOXES: usize = 32;
/// Share of the schedule that runs on each place.
const DETAIL_DENOISE: f64 = 0.5;
/// How much larger the part is that is drawn anew.
const CROP_FACTOR: f64 = 3.0;
/// Pixels of fading.
const FEATHER: u32 = 5;
/// Most pixels of fading.
const MOST_FEATHER: u32 = 256;
/// Least confidence in a face.
const CONFIDENCE: f64 = 0.5;

/// A LoRA and how strongly it counts.
#[derive(Debug, Clone, PartialEq, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::http) struct LoraRequest {
    /// Its id, as GET /v1/loras lists them.
    pub(in crate::http) id: String,
    /// Strength on the denoising network; negative turns its effect round.
    #[schema(minimum = -10, maximum = 10, default = 1.0)]
    pub(in crate::http) strength: Option<f64>,
    /// Strength on the text encoders; as `strength` if it is left out.
    #[schema(minimum = -10, maximum = 10)]
    pub(in crate::http) text_strength: Option<f64>,
}

/// A ControlNet and the picture that steers it.
#[derive(Debug, Clone, PartialEq, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::http) struct ControlRequest {
    /// Its id, as GET /v1/controlnets lists them. Either this or `type`.
    pub(in crate::http) id: Option<String>,
    /// Any ControlNet of this type that fits the model.
    #[serde(rename = "type")]
    pub(in crate::http) use_of: Option<ControlTypeName>,
    /// The picture: base64, a data URL or an http(s) address.
    pub(in crate::http) image: String,
    /// What is done with the picture first. Default: with type `canny` or `depth` that; else nothing, and the picture
    /// is a control picture already.
    pub(in crate::http) preprocess: Option<PreprocessName>,
    /// Edges weaker than this are dropped: 0 to 1 with `canny` (0.4), 0 to 255 with `opencv_canny` (100).
    #[schema(minimum = 0, maximum = 255)]
    pub(in crate::http) low: Option<f64>,
    /// Edges stronger than this are kept in any case: `canny` 0.8, `opencv_canny` 200.
    #[schema(minimum = 0, maximum = 255)]
    pub(in crate::http) high: Option<f64>,
    /// How strongly it counts.
    #[schema(minimum = 0, maximum = 10, default = 1.0)]
    pub(in crate::http) strength: Option<f64>,
    /// Share of the schedule at which it begins.
    #[schema(minimum = 0, maximum = 1, default = 0.0)]
    pub(in crate::http) start: Option<f64>,
    /// Share of the schedule at which it ends.
    #[schema(minimum = 0, maximum = 1, default = 1.0)]
    pub(in crate::http) end: Option<f64>,
}

/// What a ControlNet is steered by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub(in crate::http) enum ControlTypeName {
    /// Edges.
    Canny,
    /// Skeletons.
    OpenPose,
    /// Nearness.
    Depth,
}

impl From<ControlTypeName> for ControlType {
    fn from(name: ControlTypeName) -> Self {
        match name {
            ControlTypeName::Canny => Self::Canny,
            ControlTypeName::OpenPose => Self::OpenPose,
            ControlTypeName::Depth => Self::Depth,
        }
    }
}

/// What is done with a picture before a ControlNet sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub(in crate::http) enum PreprocessName {
    /// Nothing.
    None,
    /// Edges, as ComfyUI's `Canny` finds them.
    Canny,
    /// Edges, as OpenCV's `Canny` finds them.
    OpencvCanny,
    /// Nearness, by the depth network in the models folder.
    Depth,
}

/// Faces drawn once more, larger.
#[derive(Debug, Clone, PartialEq, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::http) struct DetailRequest {
    /// Id of the network that finds the places; the configured face detector if it is left out.
    pub(in crate::http) detector: Option<String>,
    /// Least confidence of the detector.
    #[schema(minimum = 0, maximum = 1, default = 0.5)]
    pub(in crate::http) confidence: Option<f64>,
    /// Places instead of a detector's: left, top, right, bottom, each as a share of the picture, 0 to 1.
    #[schema(max_items = 32)]
    pub(in crate::http) boxes: Option<Vec<[f64; 4]>>,
    /// Share of the schedule that runs on each place.
    #[schema(minimum = 0, maximum = 1, default = 0.5)]
    pub(in crate::http) denoise: Option<f64>,
    /// Longer side at which a place is drawn, pixels, a multiple of 8; the model's own side if it is left out.
    #[schema(minimum = 16, multiple_of = 8)]
    pub(in crate::http) size: Option<u32>,
    /// How much larger than the box the part is that is drawn anew.
    #[schema(minimum = 1, maximum = 10, default = 3.0)]
    pub(in crate::http) crop_factor: Option<f64>,
    /// Pixels over which the new part fades into the old.
    #[schema(maximum = 256, default = 5)]
    pub(in crate::http) feather: Option<u32>,
}

/// What becomes of the background.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub(in crate::http) enum BackgroundName {
    /// It stays.
    #[default]
    Keep,
    /// The flat colour around the subject becomes transparent.
    Key,
    /// A network in the models folder finds the subject; the rest becomes transparent.
    Remove,
}

impl Guides<'_> {
    /// LoRAs in their order, each checked.
    pub(in crate::http) fn loras(
        &self,
        field: &str,
        given: &[LoraRequest],
    ) -> Result<Vec<LoraSpec>, ApiError> {
        let most = self.config.limits.loras;
        if given.len() > most {
            return Err(ApiError::invalid(field, format!("has {} entries; {most} is the most", given.len())));
        }
        let spec = |(index, lora): (usize, &LoraRequest)| {
            let place = |name: &str| format!("{field}[{index}].{name}");
            let strength = lora_strength(&place("strength"), lora.strength.unwrap_or(1.0))?;
            let text_strength =
                lora_strength(&place("text_strength"), lora.text_strength.unwrap_or(strength))?;
            Ok(LoraSpec { lora: self.lora(&place("id"), &lora.id)?.id, strength, text_strength })
        };
        given.iter().enumerate().map(spec).collect()
    }

    /// One ControlNet, checked, with the picture that was read for it. Errors name fields within the entry.
    pub(in crate::http) fn control_spec(
        &self,
        given: &ControlRequest,
        image: BlobId,
    ) -> Result<ControlSpec, ApiError> {
        let use_of = given.use_of.map(ControlType::from);
        let control = match (&given.id, use_of) {
            (Some(_), Some(_)) => {
                return Err(ApiError::invalid("type", "cannot be given beside id").hint("give one of them"));
            }
            (Some(id), None) => self.control("id", id)?,
            (None, Some(use_of)) => {
                self.control_for(use_of).ok_or_else(|| self.no_control("type", use_of))?
            }
            (None, None) => {
                return Err(ApiError::invalid("id", "is missing")
                    .hint("name a ControlNet, as GET /v1/controlnets lists them, or give a type"));
            }
        };
        let preprocess = self.preprocess(given, use_of)?;
        let strength = control_strength("strength", given.strength.unwrap_or(1.0))?;
        let start = within("start", given.start.unwrap_or(0.0), &(0.0..=1.0))?;
        let end = within("end", given.end.unwrap_or(1.0), &(0.0..=1.0))?;
        if start >= end {
            return Err(ApiError::invalid("start", format!("is {start}, must be less than end ({end})")));
        }
        Ok(ControlSpec { control: control.id, image, preprocess, strength, start, end })
    }

    fn preprocess(
        &self,
        given: &ControlRequest,
        use_of: Option<ControlType>,
    ) -> Result<Preprocess, ApiError> {
        let name = given.preprocess.unwrap_or(match use_of {
            Some(ControlType::Canny) => PreprocessName::Canny,
            Some(ControlType::Depth) => PreprocessName::Depth,
            Some(ControlType::OpenPose) | None => PreprocessName::None,
        });
        let thresholds = |low: f64, high: f64, most: f64| {
            let low = within("low", given.low.unwrap_or(low), &(0.0..=most))?;
            let high = within("high", given.high.unwrap_or(high), &(0.0..=most))?;
            if low > high {
                return Err(ApiError::invalid(
                    "low",
                    format!("is {low}, must not be more than high ({high})"),
                ));
            }
            Ok((low, high))
        };
        if let PreprocessName::None | PreprocessName::Depth = name {
            for (field, value) in [("low", given.low), ("high", given.high)] {
                if value.is_some() {
                    return Err(ApiError::invalid(field, "means something only with canny or opencv_canny"));
                }
            }
        }
        match name {
            PreprocessName::None => Ok(Preprocess::None),
            PreprocessName::Canny => {
                let (low, high) = thresholds(0.4, 0.8, 1.0)?;
                Ok(Preprocess::Canny { low, high })
            }
            PreprocessName::OpencvCanny => {
                let (low, high) = thresholds(100.0, 200.0, 255.0)?;
                Ok(Preprocess::OpencvCanny { low, high })
            }
            PreprocessName::Depth if self.has_depth() => Ok(Preprocess::Depth),
            PreprocessName::Depth => Err(ApiError::invalid(
                "preprocess",
                "cannot be depth: there is no depth network",
            )
            .hint(
                "put Depth Anything v2 into the models folder's depthanything/, or give a depth picture with \
                     preprocess none",
            )),
        }
    }

    /// The detail pass, checked. Errors name fields within the entry.
    pub(in crate::http) fn detail(&self, given: &DetailRequest) -> Result<DetailSpec, ApiError> {
        let places = match (&given.boxes, &given.detector) {
            (Some(_), Some(_)) => {
                return Err(
                    ApiError::invalid("boxes", "cannot be given beside detector").hint("give one of them")
                );
            }
            (Some(_), None) if given.confidence.is_some() => {
                return Err(ApiError::invalid("confidence", "means something only with a detector"));
            }
            (Some(boxes), None) => DetailPlaces::Boxes { boxes: checked_boxes(boxes)? },
            (None, detector) => {
                let detector = match detector {
                    Some(id) => self.find(AuxiliaryKind::Detector, "detector", id)?.id,
                    None => self.face_detector().ok_or_else(|| {
                        ApiError::invalid("detector", "is missing: there is no face detector")
                            .hint("put one into the models folder's ultralytics/bbox/, or give boxes")
                    })?,
                };
                let confidence = given.confidence.unwrap_or(CONFIDENCE);
                DetailPlaces::Detected {
                    detector,
                    confidence: within("confidence", confidence, &(0.0..=1.0))?,
                }
            }
        };
        let denoise = within("denoise", given.denoise.unwrap_or(DETAIL_DENOISE), &(0.01..=1.0))?;
        let most = self.config.limits.max_side;
        let size = given.size.map(|size| size as usize);
        if size.is_some_and(|size| !(16..=most).contains(&size) || size % 8 != 0) {
            return Err(ApiError::invalid("size", format!("must be a multiple of 8, 16 to {most}")));
        }
        let crop_factor = within("crop_factor", given.crop_factor.unwrap_or(CROP_FACTOR), &(1.0..=10.0))?;
        let feather = given.feather.unwrap_or(FEATHER);
        if feather > MOST_FEATHER {
            return Err(ApiError::invalid("feather", format!("must be 0 to {MOST_FEATHER}")));
        }
        Ok(DetailSpec { places, denoise, size, crop_factor, feather: feather as usize })
    }

    /// The detail pass over faces with its usual settings, if there is a detector.
    pub(in crate::http) fn face_detail(&self) -> Option<DetailSpec> {
        let detector = self.face_detector()?;
        self.detail(&DetailRequest { detector: Some(detector), ..DetailRequest::default() }).ok()
    }

    /// What becomes of the background, in a file of this format.
    pub(in crate::http) fn background(
        &self,
        name: BackgroundName,
        format: ImageFormat,
    ) -> Result<Background, ApiError> {
        if name != BackgroundName::Keep && matches!(format, ImageFormat::Jpeg { .. }) {
            return Err(ApiError::invalid("background", "cannot become transparent in a JPEG")
                .hint("choose the format png or webp"));
        }
        match name {
            BackgroundName::Keep => Ok(Background::Keep),
            BackgroundName::Key => Ok(Background::Key),
            BackgroundName::Remove => match self.remover() {
                Some(remover) => Ok(Background::Remove { remover }),
                None => Err(ApiError::invalid("background", "cannot be remove: there is no network for it").hint(
                    "put one into the models folder's RMBG/, or take key, which keys out a flat background",
                )),
            },
        }
    }
}

fn checked_boxes(boxes: &[[f64; 4]]) -> Result<Vec<[f64; 4]>, ApiError> {
    if !(1..=BOXES).contains(&boxes.len()) {
        return Err(ApiError::invalid(
            "boxes",
            format!("has {} entries, must have 1 to {BOXES}", boxes.len()),
        ));
    }
    for (index, [left, top, right, bottom]) in boxes.iter().enumerate() {
        let shares = [left, top, right, bottom].into_iter().all(|share| (0.0..=1.0).contains(share));
        if !shares || left >= right || top >= bottom {
            return Err(ApiError::invalid(format!("boxes[{index}]"), "is no box within the picture").hint(
                "write [left, top, right, bottom] as shares of the picture, 0 to 1: [0.3, 0.1, 0.7, 0.5]",
            ));
        }
    }
    Ok(boxes.to_vec())
}

#[cfg(test)]
mod tests {
    use super::super::testing::*;
    use super::*;
    use crate::config::Config;
    use crate::http::extract::parse_json;

    fn all() -> TestShelf {
        let mut shelf = loras();
        shelf.push(control("xl-canny", ControlType::Canny));
        shelf.push(info(AuxiliaryKind::Detector, "face_yolov8m"));
        shelf.push(info(AuxiliaryKind::Matting, "rmbg"));
        TestShelf(shelf)
    }

    fn with<T>(
        shelf: &TestShelf,
        work: impl FnOnce(&Guides<'_>) -> Result<T, ApiError>,
    ) -> Result<T, ApiError> {
        let config = Config::default();
        work(&Guides::new(shelf, &config, fit()))
    }

    fn control_of(shelf: &TestShelf, json: &str) -> Result<ControlSpec, ApiError> {
        let given = parse_json(json.as_bytes())?;
        with(shelf, |guides| guides.control_spec(&given, BlobId::of(b"x")))
    }

    fn field<T: std::fmt::Debug>(result: Result<T, ApiError>) -> String {
        result.unwrap_err().detail().field.clone().unwrap()
    }

    #[test]
    fn loras_keep_their_order_and_text_follows_strength() {
        let given: Vec<LoraRequest> = parse_json(
            br#"[{"id": "mia", "strength": 0.5}, {"id": "mia.safetensors", "text_strength": -1}]"#,
        )
        .unwrap();
        let specs = with(&all(), |guides| guides.loras("loras", &given)).unwrap();
        assert_eq!((specs[0].strength, specs[0].text_strength), (0.5, 0.5));
        assert_eq!((specs[1].strength, specs[1].text_strength), (1.0, -1.0));
        let wrong = |given: &[LoraRequest]| field(with(&all(), |guides| guides.loras("loras", given)));
        assert_eq!(wrong(&vec![given[0].clone(); 9]), "loras");
        let zero = LoraRequest { id: "zero".into(), strength: None, text_strength: None };
        assert_eq!(wrong(&[given[0].clone(), zero]), "loras[1].id");
        let strong = LoraRequest { strength: Some(99.0), ..given[0].clone() };
        assert_eq!(wrong(&[strong]), "loras[0].strength");
    }

    #[test]
    fn a_type_finds_its_controlnet_and_its_preprocessing() {
        let spec = control_of(&all(), r#"{"type": "canny", "image": "x"}"#).unwrap();
        assert_eq!(spec.control, "xl-canny");
        assert_eq!(spec.preprocess, Preprocess::Canny { low: 0.4, high: 0.8 });
        assert_eq!((spec.strength, spec.start, spec.end), (1.0, 0.0, 1.0));
        let spec = control_of(
            &all(),
            r#"{"id": "xl-canny", "image": "x", "preprocess": "opencv_canny", "low": 50, "end": 0.5}"#,
        );
        assert_eq!(spec.unwrap().preprocess, Preprocess::OpencvCanny { low: 50.0, high: 200.0 });
        let plain = control_of(&all(), r#"{"id": "xl-canny", "image": "x"}"#).unwrap();
        assert_eq!(plain.preprocess, Preprocess::None);
    }

    #[test]
    fn a_wrong_control_names_its_field() {
        for (json, wrong) in [
            (r#"{"image": "x"}"#, "id"),
            (r#"{"image": "x", "id": "xl-canny", "type": "canny"}"#, "type"),
            (r#"{"image": "x", "id": "zzz"}"#, "id"),
            (r#"{"image": "x", "type": "openpose"}"#, "type"),
            (r#"{"image": "x", "type": "posture"}"#, "type"),
            (r#"{"image": "x", "type": "canny", "strength": -1}"#, "strength"),
            (r#"{"image": "x", "type": "canny", "start": 0.5, "end": 0.5}"#, "start"),
            (r#"{"image": "x", "type": "canny", "end": 1.5}"#, "end"),
            (r#"{"image": "x", "type": "canny", "low": 0.9}"#, "low"),
            (r#"{"image": "x", "type": "canny", "low": 100}"#, "low"),
            (r#"{"image": "x", "id": "xl-canny", "low": 0.1}"#, "low"),
            (r#"{"image": "x", "id": "xl-canny", "preprocess": "depth"}"#, "preprocess"),
        ] {
            assert_eq!(field(control_of(&all(), json)), wrong, "{json}");
        }
    }

    #[test]
    fn details_are_at_boxes_or_at_faces_that_a_detector_finds() {
        let detail = |shelf: &TestShelf, json: &str| {
            let given = parse_json(json.as_bytes())?;
            with(shelf, |guides| guides.detail(&given))
        };
        let found = detail(&all(), "{}").unwrap();
        let detector = "face_yolov8m".to_owned();
        assert_eq!(found.places, DetailPlaces::Detected { detector, confidence: 0.5 });
        let none = TestShelf::default();
        assert_eq!(field(detail(&none, "{}")), "detector");
        assert!(detail(&none, r#"{"boxes": [[0.1, 0.1, 0.5, 0.5]], "size": 512}"#).is_ok());
        for (json, wrong) in [
            (r#"{"boxes": []}"#, "boxes"),
            (r#"{"boxes": [[0, 0, 1, 1], [0.5, 0, 0.5, 1]]}"#, "boxes[1]"),
            (r#"{"boxes": [[0, 0, 1, 1]], "confidence": 0.5}"#, "confidence"),
            (r#"{"detector": "zzz"}"#, "detector"),
            (r#"{"denoise": 7}"#, "denoise"),
            (r#"{"size": 13}"#, "size"),
            (r#"{"crop_factor": 0.5}"#, "crop_factor"),
            (r#"{"feather": 1000}"#, "feather"),
        ] {
            assert_eq!(field(detail(&all(), json)), wrong, "{json}");
        }
    }

    #[test]
    fn a_transparent_background_needs_a_network_or_a_key_and_a_format_with_alpha() {
        let background =
            |shelf: &TestShelf, name, format| with(shelf, |guides| guides.background(name, format));
        let jpeg = ImageFormat::Jpeg { quality: 90 };
        assert_eq!(background(&all(), BackgroundName::Keep, jpeg), Ok(Background::Keep));
        assert_eq!(field(background(&all(), BackgroundName::Key, jpeg)), "background");
        let removed = background(&all(), BackgroundName::Remove, ImageFormat::Png);
        assert_eq!(removed, Ok(Background::Remove { remover: "rmbg".into() }));
        let none = TestShelf::default();
        assert_eq!(field(background(&none, BackgroundName::Remove, ImageFormat::Png)), "background");
    }
}
