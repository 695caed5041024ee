//! Conditions and guidance against ComfyUI's own functions (`scripts/golden/conditions.py`), with the same stand-in for
//! the network on both sides.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use candle_core::Device;
use darkroom_models::Precision;
use darkroom_models::checkpoint::Checkpoint;
use darkroom_models::controlnet::ControlNet;
use darkroom_models::weights::WeightFile;
use serde::Deserialize;

use super::*;
use crate::condition::{Area, Condition, ConditionMask, Frame, Sides};
use crate::schedule::Prediction;
use crate::{Conditioning, Control, Mask};

/// Largest difference of a value, relative to the largest value: both round every operation to `f32`.
const TOLERANCE: f32 = 2e-6;

#[derive(Deserialize)]
struct Case {
    sigma: f32,
    cfg: f64,
    positive: Vec<Entry>,
    negative: Option<Vec<Entry>>,
    /// Number of the prompt, rows, columns, width and height of the size ids, number of the ControlNet.
    rows: Vec<[f64; 6]>,
    rescale: Option<f64>,
    #[serde(default)]
    norms: Vec<f64>,
}

#[derive(Deserialize)]
struct Entry {
    k: f32,
    area: Option<Vec<serde_json::Value>>,
    mask: Option<String>,
    mask_strength: Option<f64>,
    bounds: Option<bool>,
    start: Option<f64>,
    end: Option<f64>,
    size: Option<[f32; 2]>,
    strength: Option<f64>,
    control: Option<u8>,
    shared: Option<bool>,
}

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name)
}

/// Some ControlNet: what it says is not asked.
fn control_net() -> Arc<ControlNet> {
    static NETWORK: OnceLock<Arc<ControlNet>> = OnceLock::new();
    let load = || {
        let asset = |name: &str| Path::new(env!("CARGO_MANIFEST_DIR")).join("../assets").join(name);
        let checkpoint = Checkpoint::open(&asset("tiny-sdxl.safetensors"), &Device::Cpu).unwrap();
        let file = Arc::new(WeightFile::open(&asset("tiny-canny.safetensors")).unwrap());
        let config = &checkpoint.unet.config;
        Arc::new(ControlNet::from_file(file, config, &Device::Cpu, Precision::Full).unwrap())
    };
    NETWORK.get_or_init(load).clone()
}

impl Entry {
    fn condition(
        &self,
        (height, width): (usize, usize),
        sampling: &ModelSampling,
        tensors: &HashMap<String, Tensor>,
    ) -> Condition {
        let context = Tensor::full(self.k, (2, 1), &Device::Cpu).unwrap();
        let pooled = Some(Tensor::zeros(1, DType::F32, &Device::Cpu).unwrap());
        let mut condition = Condition::new(Conditioning { context, pooled });
        condition.size_ids = self.size.map(|[width, height]| [height, width, 0.0, 0.0, height, width]);
        condition.area = self.area.as_ref().map(|area| {
            let cells = |i: usize| area[i].as_u64().unwrap() as usize;
            let share = |i: usize| area[i].as_f64().unwrap();
            if area[0] == "percentage" {
                Area::Shares { height: share(1), width: share(2), y: share(3), x: share(4) }
            } else {
                Area::Cells { height: cells(0), width: cells(1), y: cells(2), x: cells(3) }
            }
        });
        condition.strength = self.strength.unwrap_or(1.0);
        condition.mask = self.mask.as_ref().map(|name| {
            let tensor = &tensors[&format!("mask.{name}")];
            let (height, width) = tensor.dims2().unwrap();
            let data = tensor.flatten_all().unwrap().to_vec1().unwrap();
            ConditionMask {
                mask: Arc::new(Mask::new(width, height, data).unwrap()),
                strength: self.mask_strength.unwrap_or(1.0),
                bounds: self.bounds.unwrap_or(false),
            }
        });
        condition.sigmas = self
            .start
            .map(|start| sampling.percent_to_sigma(self.end.unwrap())..=sampling.percent_to_sigma(start));
        condition.controls = self
            .control
            .map(|number| {
                let (rows, columns) = condition.size(height, width).unwrap();
                let hint = Tensor::zeros((rows, columns, 8), DType::F32, &Device::Cpu).unwrap();
                Control { network: control_net(), hint, strength: f64::from(number), start: 0.0, end: 1.0 }
            })
            .into_iter()
            .collect();
        condition.shares_controls = self.shared.unwrap_or(false);
        condition
    }
}

/// What the network was asked for, as the golden file counts it.
fn row(placed: &Placed, x: &Tensor) -> [f64; 6] {
    let (_, rows, columns) = x.dims3().unwrap();
    let [height, width, ..] = placed.size_ids.unwrap();
    let control = placed.controls.first().map_or(0.0, |active| active.control.strength);
    let k = f64::from(number(placed));
    [(k * 1e6).round() / 1e6, rows as f64, columns as f64, width.into(), height.into(), control]
}

fn number(placed: &Placed) -> f32 {
    placed.text.context.flatten_all().unwrap().to_vec1::<f32>().unwrap()[0]
}

/// The network's stand-in.
fn stand_in(placed: &Placed, x: &Tensor) -> Tensor {
    let [_, _, _, width, height, control] = row(placed, x);
    let shift = 1e-3 * width - 2e-3 * height + 0.1 * control;
    ((x * f64::from(number(placed))).unwrap().tanh().unwrap() + shift).unwrap()
}

fn part(placed: &Placed, x: &Tensor) -> Tensor {
    match placed.part {
        None => x.clone(),
        Some(Cells { height, width, y, x: left }) => {
            x.narrow(1, y, height).unwrap().narrow(2, left, width).unwrap()
        }
    }
}

fn largest(tensor: &Tensor) -> f32 {
    tensor.abs().unwrap().flatten_all().unwrap().max(0).unwrap().to_scalar().unwrap()
}

#[test]
fn conditions_are_placed_weighed_and_guided_as_comfyui_does_it() {
    let file = std::fs::read_to_string(golden("conditions.json")).unwrap();
    let cases: BTreeMap<String, Case> = serde_json::from_str(&file).unwrap();
    let tensors = candle_core::safetensors::load(golden("conditions.safetensors"), &Device::Cpu).unwrap();
    let sampling = ModelSampling::scaled_linear(Prediction::Epsilon);
    assert_eq!(cases.len(), 24);
    for (name, case) in &cases {
        let x = &tensors[&format!("{name}.x")];
        let (_, height, width) = x.dims3().unwrap();
        let frame = Frame { height, width, device: &Device::Cpu, sampling: &sampling, sized: true };
        let conditions = |entries: &[Entry]| -> Vec<Condition> {
            entries.iter().map(|entry| entry.condition((height, width), &sampling, &tensors)).collect()
        };
        let (positive, negative) = (conditions(&case.positive), case.negative.as_deref().map(conditions));
        let Sides { positive, negative } = frame.place(&positive, negative.as_deref()).unwrap();
        let mut guidance = Guidance {
            positive,
            negative: negative.filter(|_| case.cfg != 1.0),
            scale: case.cfg,
            interval: None,
            rescale: None,
            velocity_norm: false,
            loras: None,
            sampling: None,
            cfg_norms: Vec::new(),
            free_u: Vec::new(),
        };
        let mut rows: Vec<[f64; 6]> =
            guidance.rows(case.sigma).map(|(_, placed)| row(placed, &part(placed, x))).collect();
        rows.sort_by(|a, b| a.partial_cmp(b).unwrap());
        assert_eq!(rows, case.rows, "{name}");
        let predictions: Vec<Tensor> =
            guidance.rows(case.sigma).map(|(_, placed)| stand_in(placed, &part(placed, x))).collect();
        let check = |guidance: &Guidance, what: &str| {
            let ours = guidance.combine(x, case.sigma, &predictions).unwrap().guided;
            let theirs = &tensors[&format!("{name}.{what}")];
            let error = largest(&(ours - theirs).unwrap()) / largest(theirs).max(1.0);
            println!("{name} {what}: {error:e}");
            assert!(error <= TOLERANCE, "{name} {what}: {error:e}");
        };
        check(&guidance, "guided");
        if let Some(multiplier) = case.rescale {
            guidance.rescale = Some(multiplier);
            check(&guidance, "rescaled");
        }
        if !case.norms.is_empty() {
            guidance.cfg_norms.clone_from(&case.norms);
            check(&guidance, "normed");
        }
    }
}

fn plain(k: f32) -> Placed {
    let context = Tensor::full(k, (2, 1), &Device::Cpu).unwrap();
    Placed::everywhere(Conditioning { context, pooled: None }, None, Vec::new())
}

#[test]
fn one_condition_alone_passes_as_it_is() {
    let guidance = Guidance {
        positive: vec![plain(1.0)],
        negative: None,
        scale: 1.0,
        interval: None,
        rescale: Some(0.7),
        velocity_norm: false,
        loras: None,
        sampling: None,
        cfg_norms: Vec::new(),
        free_u: Vec::new(),
    };
    let x = Tensor::zeros((4, 3, 2), DType::F32, &Device::Cpu).unwrap();
    let prediction = (&x + 0.1).unwrap();
    let guided = guidance.combine(&x, 1.0, std::slice::from_ref(&prediction)).unwrap().guided;
    assert_eq!(guided.id(), prediction.id());
}

#[test]
fn outside_its_interval_guidance_is_the_prompts_prediction_alone() {
    let guidance = Guidance {
        positive: vec![plain(1.0)],
        negative: Some(vec![plain(2.0), plain(3.0)]),
        scale: 7.0,
        interval: Some(1.0..=5.0),
        rescale: None,
        velocity_norm: false,
        loras: None,
        sampling: None,
        cfg_norms: Vec::new(),
        free_u: Vec::new(),
    };
    let x = Tensor::zeros((4, 3, 2), DType::F32, &Device::Cpu).unwrap();
    let predictions = |sigma: f32| -> Vec<Tensor> {
        guidance.rows(sigma).map(|(index, _)| (&x + (index as f64 + 0.5)).unwrap()).collect()
    };
    for (sigma, rows) in [(0.5, 1), (1.0, 3), (3.0, 3), (5.0, 3), (5.1, 1)] {
        let predictions = predictions(sigma);
        assert_eq!(predictions.len(), rows, "{sigma}");
        let Guided { guided, uncond } = guidance.combine(&x, sigma, &predictions).unwrap();
        assert_eq!((uncond.is_some(), guided.id() == predictions[0].id()), (rows > 1, rows == 1), "{sigma}");
    }
}

#[test]
fn an_area_outside_the_latent_and_too_many_conditions_are_refused() {
    let sampling = ModelSampling::scaled_linear(Prediction::Epsilon);
    let frame = Frame { height: 8, width: 8, device: &Device::Cpu, sampling: &sampling, sized: false };
    let condition = |area| {
        let mut condition = Condition::new(plain(1.0).text);
        condition.area = area;
        condition
    };
    for area in [
        Area::Cells { height: 4, width: 4, y: 8, x: 0 },
        Area::Cells { height: 4, width: 4, y: 0, x: usize::MAX },
        Area::Cells { height: 0, width: 4, y: 0, x: 0 },
        Area::Shares { height: 0.5, width: 0.5, y: 1.0, x: 0.0 },
        Area::Shares { height: 0.5, width: f64::NAN, y: 0.0, x: 0.0 },
        Area::Shares { height: 1e9, width: 0.5, y: 0.0, x: 0.0 },
    ] {
        assert!(frame.place(&[condition(Some(area))], None).is_err(), "{area:?}");
    }
    let vast = Area::Cells { height: usize::MAX, width: usize::MAX, y: 1, x: 1 };
    assert!(frame.place(&[condition(Some(vast))], None).is_ok());
    assert!(frame.place(&vec![condition(None); 65], None).is_err());
    let mut strong = condition(None);
    strong.strength = f64::INFINITY;
    assert!(frame.place(&[condition(None)], Some(&[strong])).is_err());
}
