//! What nodes give, against what ComfyUI's own gave for the same inputs (`scripts/golden/comfyui_nodes.py`).

use std::collections::{BTreeMap, HashMap};

use candle_core::{DType, Device, Tensor};
use serde_json::Value as Json;

use super::*;
use crate::workflow::context::Slot;
use crate::workflow::image::{Image, Mask};
use crate::workflow::latent::Latent;

/// Largest difference of floats; sums are rounded in another order here.
const TOLERANCE: f32 = 1e-5;

type Tensors = HashMap<String, Tensor>;

fn folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/data/comfyui-nodes")
}

fn tensors() -> Tensors {
    let mut tensors =
        candle_core::safetensors::load(folder().join("tensors.safetensors"), &Device::Cpu).unwrap();
    // The picture that the script draws by the same rule.
    let level = |x: usize, y: usize| [x * 255 / 299, y * 255 / 279, (x * 7 + y * 13) % 256];
    let ramps: Vec<f32> = (0..280)
        .flat_map(|y| (0..300).flat_map(move |x| level(x, y)))
        .map(|level| level as f32 / 255.0)
        .collect();
    tensors.insert("ramps".into(), Tensor::from_vec(ramps, (1, 280, 300, 3), &Device::Cpu).unwrap());
    tensors
}

/// Eight bits are kept as eight bits.
fn floats(tensor: &Tensor) -> Vec<f32> {
    let values = tensor.to_dtype(DType::F32).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
    if tensor.dtype() == DType::U8 { values.into_iter().map(|value| value / 255.0).collect() } else { values }
}

fn image(tensor: &Tensor) -> Image {
    let (count, height, width, channels) = tensor.dims4().unwrap();
    Image::new(count, height, width, channels, floats(tensor)).unwrap()
}

/// `[count, height, width]`, or with one channel between them, as noise masks are.
fn mask(tensor: &Tensor) -> Mask {
    let dims = tensor.dims();
    let (height, width) = (dims[dims.len() - 2], dims[dims.len() - 1]);
    Mask::new(dims[0], height, width, floats(tensor)).unwrap()
}

fn latent(json: &Json, tensors: &Tensors) -> Latent {
    let samples = &tensors[json["samples"].as_str().unwrap()];
    let places = json["batch_index"].as_array();
    Latent {
        samples: Tensor::from_vec(floats(samples), samples.dims(), &Device::Cpu).unwrap(),
        noise_mask: json["noise_mask"].as_str().map(|name| mask(&tensors[name])),
        batch_index: places.map(|places| places.iter().map(|p| p.as_u64().unwrap() as usize).collect()),
    }
}

fn value(json: &Json, tensors: &Tensors) -> Value {
    match json {
        Json::Bool(value) => Value::Boolean(*value),
        Json::Number(number) if number.is_f64() => Value::Float(number.as_f64().unwrap()),
        Json::Number(number) => Value::Int(number.as_i64().unwrap().into()),
        Json::String(text) => Value::String(text.as_str().into()),
        Json::Object(object) => {
            let (kind, content) = object.iter().next().unwrap();
            match kind.as_str() {
                "image" => Value::Image(image(&tensors[content.as_str().unwrap()])),
                "mask" => Value::Mask(mask(&tensors[content.as_str().unwrap()])),
                "latent" => Value::Latent(latent(content, tensors).into()),
                _ => Value::List(
                    content.as_array().unwrap().iter().map(|value_of| value(value_of, tensors)).collect(),
                ),
            }
        }
        _ => panic!("{json}"),
    }
}

fn near(found: &[f32], expected: &[f32], tolerance: f32) -> Result<(), String> {
    if found.len() != expected.len() {
        return Err(format!("{} values instead of {}", found.len(), expected.len()));
    }
    let apart = |(found, expected): (&f32, &f32)| {
        if found == expected || (found.is_nan() && expected.is_nan()) {
            0.0
        } else {
            (found - expected).abs()
        }
    };
    let worst =
        found.iter().zip(expected).map(apart).fold(0f32, |a, b| if b > a || b.is_nan() { b } else { a });
    if worst <= tolerance { Ok(()) } else { Err(format!("differs by {worst}")) }
}

fn image_like(found: &Image, expected: &Image, every: usize, tolerance: f32) -> Result<(), String> {
    let shape = |i: &Image, every: usize| (i.count(), i.height().div_ceil(every), i.width(), i.channels());
    if shape(found, every) != shape(expected, 1) {
        return Err(format!("{:?} instead of {:?}", shape(found, every), shape(expected, 1)));
    }
    let row = found.width() * found.channels();
    let kept = |(at, row): (usize, &[f32])| (at % found.height()).is_multiple_of(every).then(|| row.to_vec());
    let rows: Vec<f32> = found.data().chunks(row).enumerate().filter_map(kept).flatten().collect();
    near(&rows, expected.data(), tolerance)
}

fn mask_like(found: &Mask, expected: &Mask, tolerance: f32) -> Result<(), String> {
    let shape = |m: &Mask| (m.count(), m.height(), m.width());
    if shape(found) != shape(expected) {
        return Err(format!("{:?} instead of {:?}", shape(found), shape(expected)));
    }
    near(found.data(), expected.data(), tolerance)
}

fn like(found: &Value, expected: &Value, every: usize, tolerance: f32) -> Result<(), String> {
    match (found, expected) {
        (Value::Image(found), Value::Image(expected)) => image_like(found, expected, every, tolerance),
        (Value::Mask(found), Value::Mask(expected)) => mask_like(found, expected, tolerance),
        (Value::Latent(found), Value::Latent(expected)) => {
            if found.samples.dims() != expected.samples.dims() {
                return Err(format!("{:?} instead of {:?}", found.samples.dims(), expected.samples.dims()));
            }
            if found.batch_index != expected.batch_index {
                return Err(format!("{:?} instead of {:?}", found.batch_index, expected.batch_index));
            }
            match (&found.noise_mask, &expected.noise_mask) {
                (Some(found), Some(expected)) => mask_like(found, expected, tolerance)?,
                (None, None) => {}
                (found, _) => return Err(format!("noise mask: {}", found.is_some())),
            }
            near(&floats(&found.samples), &floats(&expected.samples), tolerance)
        }
        (Value::List(found), Value::List(expected)) => {
            if found.len() != expected.len() {
                return Err(format!("{} values instead of {}", found.len(), expected.len()));
            }
            found.iter().zip(expected).try_for_each(|(a, b)| like(a, b, every, tolerance))
        }
        (Value::String(found), Value::String(expected)) if found == expected => Ok(()),
        (Value::Int(found), Value::Int(expected)) if found == expected => Ok(()),
        (Value::Float(found), Value::Float(expected)) if found == expected => Ok(()),
        (Value::Boolean(found), Value::Boolean(expected)) if found == expected => Ok(()),
        _ => Err(format!("{found:?} instead of {expected:?}")),
    }
}

fn check(place: &Place, case: &Json, tensors: &Tensors) -> Result<(), String> {
    let inputs = case["inputs"].as_object().unwrap();
    let inputs = inputs.iter().map(|(name, given)| (name.clone(), value(given, tensors))).collect();
    let class = case["node"].as_str().unwrap();
    let outputs = place.run(class, inputs).map_err(|error| format!("failed: {error}"))?;
    let tolerance = if case["exact"] == true { 0.0 } else { TOLERANCE };
    let every = case["every"].as_u64().unwrap_or(1) as usize;
    if outputs.ui.as_ref() != case.get("ui") {
        return Err(format!("shows {:?}", outputs.ui));
    }
    let expected = case["outputs"].as_array().unwrap();
    if outputs.slots.len() != expected.len() {
        return Err(format!("{} outputs instead of {}", outputs.slots.len(), expected.len()));
    }
    outputs.slots.into_iter().zip(expected).try_for_each(|(slot, expected)| {
        let found = match slot {
            Slot::One(value) => value,
            Slot::List(values) => Value::List(values),
        };
        like(&found, &value(expected, tensors), every, tolerance)
    })
}

#[test]
fn every_node_gives_what_comfyuis_gives() {
    let text = std::fs::read_to_string(folder().join("cases.json")).unwrap();
    let cases: Vec<Json> = serde_json::from_str(&text).unwrap();
    assert!(cases.len() > 1000);
    let tensors = tensors();
    let place = Place::new();
    let mut wrong: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    for case in &cases {
        if let Err(message) = check(&place, case, &tensors) {
            wrong
                .entry(case["node"].as_str().unwrap())
                .or_default()
                .push(format!("{message}: {}", case["inputs"]));
        }
    }
    let shown = |(node, wrong): (&&str, &Vec<String>)| {
        format!("{node}, {} cases:\n  {}", wrong.len(), wrong[..wrong.len().min(6)].join("\n  "))
    };
    let shown: Vec<String> = wrong.iter().map(shown).collect();
    assert!(wrong.is_empty(), "{}", shown.join("\n"));
}

#[test]
fn a_pictures_size_is_told_while_it_passes() {
    let place = Place::new();
    let image = Image::new(2, 3, 5, 3, vec![0.0; 90]).unwrap();
    place.run("GetImageSize", vec![("image".into(), Value::Image(image))]).unwrap();
    let heard = place.heard.0.lock().unwrap();
    assert!(
        matches!(&heard[..], [Event::Text { node, text }]
            if node == "7" && text == "width: 5, height: 3\n batch size: 2"),
        "{heard:?}"
    );
}
