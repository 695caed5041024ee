//! The face detector against `ultralytics`, on every size of picture, and with files that are damaged.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "tests fail by panicking and say what they measured"
)]

#[path = "support/safetensors_bytes.rs"]
mod safetensors_bytes;
mod support;

use std::collections::BTreeMap;
use std::sync::Arc;

use candle_core::{DType, Device, Tensor};
use darkroom_models::face_detector::{DetectOptions, Detection, DetectorError, FaceDetector};
use darkroom_models::weights::WeightFile;
use support::{BATCH_TOLERANCE, Cases, REFERENCE_TOLERANCE, assert_close, golden};

/// Pixels that an edge may be off: a few steps of `f32` at 640 pixels, magnified by the network.
const PIXELS: f32 = 1e-2;
const CONFIDENCE: f32 = 1e-4;

fn detector() -> FaceDetector {
    let file = Arc::new(WeightFile::open(&golden("yolo.safetensors")).unwrap());
    FaceDetector::from_file(file, &Device::Cpu).unwrap()
}

fn cases() -> Cases {
    Cases::open("yolo_cases.safetensors")
}

fn options(cases: &Cases) -> DetectOptions {
    let values = cases.get("options").to_vec1::<f32>().unwrap();
    DetectOptions {
        confidence: values[0],
        iou: values[1],
        max_detections: values[2] as usize,
        ..DetectOptions::default()
    }
}

fn picture(cases: &Cases, index: usize) -> Tensor {
    (cases.get(format!("picture.{index}")).to_dtype(DType::F32).unwrap() / 255.0).unwrap()
}

fn assert_same(what: &str, found: &[Detection], expected: &[Detection]) {
    assert_eq!(found.len(), expected.len(), "{what}");
    for (i, (a, b)) in found.iter().zip(expected).enumerate() {
        assert_eq!(a.class, b.class, "{what}: detection {i}");
        assert!((a.confidence - b.confidence).abs() < CONFIDENCE, "{what}: detection {i}: {a:?} for {b:?}");
        for (x, y) in a.edges().into_iter().zip(b.edges()) {
            assert!((x - y).abs() < PIXELS, "{what}: detection {i}: {a:?} for {b:?}");
        }
    }
}

#[test]
fn the_networks_rows_equal_the_references() {
    let (detector, cases) = (detector(), cases());
    let predictions = detector.forward(&cases.get("x")).unwrap();
    assert_close("distances", &predictions.distances, &cases.get("distances"), REFERENCE_TOLERANCE);
    assert_close("scores", &predictions.scores, &cases.get("scores"), REFERENCE_TOLERANCE);
}

#[test]
fn the_boxes_equal_the_references_for_pictures_of_all_sizes_in_one_call() {
    let (detector, cases) = (detector(), cases());
    let pictures: Vec<_> = (0..5).map(|index| picture(&cases, index)).collect();
    let found = detector.detect(&pictures, &options(&cases)).unwrap();
    let mut total = 0;
    for (index, found) in found.iter().enumerate() {
        let expected = cases.get(format!("found.{index}")).to_vec2::<f32>().unwrap();
        let expected: Vec<_> = expected
            .iter()
            .map(|v| Detection {
                x0: v[0],
                y0: v[1],
                x1: v[2],
                y1: v[3],
                confidence: v[4],
                class: v[5] as usize,
            })
            .collect();
        assert_same(&format!("picture {index}"), found, &expected);
        total += found.len();
    }
    println!("{total} boxes equal");
    assert!(total > 50, "only {total} boxes were compared");
}

#[test]
fn a_picture_among_others_gives_what_it_gives_alone() {
    let (detector, cases) = (detector(), cases());
    let options = options(&cases);
    // More than one pass holds, and two shapes.
    let pictures: Vec<_> = (0..11).map(|i| picture(&cases, if i % 4 == 3 { 1 } else { 2 })).collect();
    let together = detector.detect(&pictures, &options).unwrap();
    for index in [0, 3, 10] {
        let alone = detector.detect(&pictures[index..=index], &options).unwrap();
        assert_same(&format!("picture {index}"), &together[index], &alone[0]);
    }
    let x = cases.get("x");
    let both = detector.forward(&x).unwrap().scores;
    for row in 0..2 {
        let alone = detector.forward(&x.narrow(0, row, 1).unwrap()).unwrap().scores;
        assert_close("scores", &both.narrow(0, row, 1).unwrap(), &alone, BATCH_TOLERANCE);
    }
}

#[test]
fn any_size_of_picture_is_searched_and_boxes_stay_inside() {
    let detector = detector();
    let options = DetectOptions { confidence: 0.05, size: 320, ..DetectOptions::default() };
    for (width, height) in
        [(64, 64), (640, 640), (2048, 2048), (2048, 64), (100, 37), (1, 1), (1, 500), (3, 2)]
    {
        let ramp: Vec<f32> = (0..width * height * 3).map(|i| (i % 97) as f32 / 96.0).collect();
        let picture = Tensor::from_vec(ramp, (height, width, 3), &Device::Cpu).unwrap();
        let found = detector.detect(&[picture], &options).unwrap().remove(0);
        assert!(found.len() <= options.max_detections);
        for detection in found {
            let [x0, y0, x1, y1] = detection.edges();
            assert!(0.0 <= x0 && x0 <= x1 && x1 <= width as f32, "{width}×{height}: {detection:?}");
            assert!(0.0 <= y0 && y0 <= y1 && y1 <= height as f32, "{width}×{height}: {detection:?}");
        }
    }
    assert!(detector.detect(&[], &options).unwrap().is_empty());
}

#[test]
fn the_classes_are_named_by_the_file() {
    let detector = detector();
    let names: Vec<_> = (0..4).map(|class| detector.class_name(class)).collect();
    assert_eq!(names, [Some("face"), Some("hand"), Some("cat"), None]);
    assert_eq!(detector.classes(), 3);
}

#[test]
fn a_picture_that_is_none_is_named_in_the_error() {
    let detector = detector();
    let good = Tensor::zeros((8, 8, 3), DType::F32, &Device::Cpu).unwrap();
    let refused = |bad: Tensor| {
        let error = detector.detect(&[good.clone(), bad], &DetectOptions::default()).unwrap_err().to_string();
        assert!(error.starts_with("picture 1 "), "{error}");
        error
    };
    let zeros = |shape: &[usize]| Tensor::zeros(shape, DType::F32, &Device::Cpu).unwrap();
    for shape in [&[8, 8][..], &[8, 8, 4], &[1, 8, 8, 3]] {
        assert!(refused(zeros(shape)).contains("[height, width, 3]"));
    }
    for shape in [&[0, 8, 3][..], &[1, 20000, 3]] {
        assert!(refused(zeros(shape)).contains("pixels"));
    }
    let nan = Tensor::full(f32::NAN, (8, 8, 3), &Device::Cpu).unwrap();
    assert!(refused(nan).contains("NaN"));
    assert!(detector.forward(&zeros(&[1, 40, 64, 3])).unwrap_err().to_string().contains("multiple of 32"));
}

/// The golden network's tensors, to be damaged.
fn tensors() -> BTreeMap<String, Tensor> {
    candle_core::safetensors::load(golden("yolo.safetensors"), &Device::Cpu).unwrap().into_iter().collect()
}

fn load(
    tensors: &BTreeMap<String, Tensor>,
    metadata: &[(&str, &str)],
) -> Result<FaceDetector, DetectorError> {
    let entries: Vec<_> = tensors
        .iter()
        .map(|(name, tensor)| {
            let values = tensor.to_dtype(DType::F32).unwrap().flatten_all().unwrap().to_vec1().unwrap();
            (name.as_str(), "F32", tensor.dims(), safetensors_bytes::f32s(&values))
        })
        .collect();
    let file = safetensors_bytes::open(&safetensors_bytes::file_of(&entries, metadata)).unwrap();
    FaceDetector::from_file(file, &Device::Cpu)
}

/// The error of the golden network after `damage`.
fn refused(damage: impl FnOnce(&mut BTreeMap<String, Tensor>)) -> String {
    let mut tensors = tensors();
    damage(&mut tensors);
    load(&tensors, &[]).unwrap_err().to_string()
}

fn zeros(shape: &[usize]) -> Tensor {
    Tensor::zeros(shape, DType::F32, &Device::Cpu).unwrap()
}

#[test]
fn a_damaged_file_is_refused_with_its_fault() {
    let put = |name: &str, tensor: Tensor| {
        let name = name.to_owned();
        refused(|tensors| drop(tensors.insert(name, tensor)))
    };
    let gone = |name: &str| refused(|tensors| drop(tensors.remove(name).unwrap()));
    assert!(gone("model.4.m.1.cv2.bn.running_var").contains("model.4.m.1.cv2.bn.running_var' is missing"));
    // Without its normalisation a convolution needs a bias.
    assert!(gone("model.9.cv1.bn.weight").contains("model.9.cv1.conv.bias' is missing"));
    // A shorter chain leaves a convolution that is too wide.
    assert!(gone("model.4.m.1.cv1.conv.weight").contains("model.4.cv2.conv.weight' has shape"));
    assert!(gone("model.22.dfl.conv.weight").contains("model.22.dfl.conv.weight' is missing"));
    assert!(gone("model.22.cv3.2.2.bias").contains("model.22.cv3.2.2.bias' is missing"));

    assert!(put("model.0.conv.weight", zeros(&[8, 4, 3, 3])).contains("[8, 3, 3, 3] is needed"));
    assert!(put("model.0.conv.weight", zeros(&[8])).contains("has shape [8]"));
    assert!(put("model.0.conv.weight", zeros(&[0, 3, 3, 3])).contains("0 channels"));
    assert!(put("model.0.conv.weight", zeros(&[5000, 3, 3, 3])).contains("5000 channels"));
    assert!(put("model.22.dfl.conv.weight", zeros(&[1, 16, 1, 1])).contains("0, 1, 2"));
    assert!(put("model.2.m.1.cv1.conv.weight", zeros(&[4, 4, 3, 3])).contains("is missing"));
    assert!(put("model.22.cv2.0.2.weight", zeros(&[60, 8, 1, 1])).contains("has shape [64]"));
    assert!(put("model.23.conv.weight", zeros(&[1])).contains("fit nowhere"));
    let nan = Tensor::full(f32::NAN, 8, &Device::Cpu).unwrap();
    assert!(put("model.0.bn.running_mean", nan).contains("NaN"));
    let negative = Tensor::full(-1f32, 8, &Device::Cpu).unwrap();
    assert!(put("model.0.bn.running_var", negative).contains("negative"));
}

#[test]
fn another_network_is_called_what_it_is() {
    let unlike = refused(|tensors| {
        tensors.clear();
        tensors.insert("conv_in.weight".into(), zeros(&[4, 4]));
    });
    assert!(unlike.contains("convert_yolo.py"), "{unlike}");
    let later = refused(|tensors| {
        *tensors = std::mem::take(tensors)
            .into_iter()
            .map(|(name, tensor)| (name.replace("model.22.", "model.23."), tensor))
            .collect();
    });
    assert!(later.contains("YOLO11"), "{later}");
    for strides in ["4,8,16", "8,16", "", "8,16,32,64", "x"] {
        let error = load(&tensors(), &[("strides", strides)]).unwrap_err().to_string();
        assert!(error.contains("strides"), "{error}");
    }
    let error = load(&tensors(), &[("names", "[1]")]).unwrap_err().to_string();
    assert!(error.contains("names"), "{error}");
}

#[test]
fn heads_of_other_tasks_and_counters_are_left_alone() {
    let mut tensors = tensors();
    tensors.insert("model.22.cv4.0.0.conv.weight".into(), zeros(&[4, 16, 3, 3]));
    tensors.insert("model.22.proto.cv1.conv.weight".into(), zeros(&[4, 16, 3, 3]));
    tensors.insert("model.0.bn.num_batches_tracked".into(), zeros(&[]));
    let detector = load(&tensors, &[("strides", "8,16,32")]).unwrap();
    let cases = cases();
    let scores = detector.forward(&cases.get("x")).unwrap().scores;
    assert_close("scores", &scores, &cases.get("scores"), REFERENCE_TOLERANCE);
}

#[test]
fn a_file_with_normalisation_already_folded_gives_the_same() {
    let mut tensors = tensors();
    let names: Vec<_> =
        tensors.keys().filter_map(|name| name.strip_suffix(".bn.weight").map(str::to_owned)).collect();
    for name in names {
        let mut take = |part: &str| {
            let tensor = tensors.remove(&format!("{name}.{part}")).unwrap();
            tensor.to_dtype(DType::F32).unwrap()
        };
        let (weight, gain, shift) = (take("conv.weight"), take("bn.weight"), take("bn.bias"));
        let (mean, variance) = (take("bn.running_mean"), take("bn.running_var"));
        let scale = (gain / (variance + 1e-3).unwrap().sqrt().unwrap()).unwrap();
        let outputs = scale.dim(0).unwrap();
        let folded = weight.broadcast_mul(&scale.reshape((outputs, 1, 1, 1)).unwrap()).unwrap();
        tensors.insert(format!("{name}.conv.weight"), folded);
        tensors.insert(format!("{name}.conv.bias"), (shift - (mean * scale).unwrap()).unwrap());
    }
    let (detector, cases) = (load(&tensors, &[]).unwrap(), cases());
    let scores = detector.forward(&cases.get("x")).unwrap().scores;
    assert_close("scores", &scores, &cases.get("scores"), REFERENCE_TOLERANCE);
}

/// A convolution and its normalisation.
fn conv(found: &mut Vec<(String, Vec<usize>)>, name: &str, inputs: usize, outputs: usize, kernel: usize) {
    found.push((format!("{name}.conv.weight"), vec![outputs, inputs, kernel, kernel]));
    for part in ["weight", "bias", "running_mean", "running_var"] {
        found.push((format!("{name}.bn.{part}"), vec![outputs]));
    }
}

fn c2f(found: &mut Vec<(String, Vec<usize>)>, layer: usize, inputs: usize, outputs: usize, depth: usize) {
    let (name, half) = (format!("model.{layer}"), outputs / 2);
    conv(found, &format!("{name}.cv1"), inputs, outputs, 1);
    for i in 0..depth {
        conv(found, &format!("{name}.m.{i}.cv1"), half, half, 3);
        conv(found, &format!("{name}.m.{i}.cv2"), half, half, 3);
    }
    conv(found, &format!("{name}.cv2"), half * (2 + depth), outputs, 1);
}

/// Names and shapes of a published size for one class, but for `dfl`.
fn published(depth: f64, width: f64, most: usize) -> Vec<(String, Vec<usize>)> {
    let w = |channels: usize| ((channels.min(most) as f64 * width / 8.0).ceil() * 8.0) as usize;
    let n = |depths: usize| ((depths as f64 * depth).round() as usize).max(1);
    let (p1, p2, p3, p4, p5) = (w(64), w(128), w(256), w(512), w(1024));
    let mut found = Vec::new();
    conv(&mut found, "model.0", 3, p1, 3);
    for (layer, inputs, outputs, depth) in [(1, p1, p2, 3), (3, p2, p3, 6), (5, p3, p4, 6), (7, p4, p5, 3)] {
        conv(&mut found, &format!("model.{layer}"), inputs, outputs, 3);
        c2f(&mut found, layer + 1, outputs, outputs, n(depth));
    }
    conv(&mut found, "model.9.cv1", p5, p5 / 2, 1);
    conv(&mut found, "model.9.cv2", p5 * 2, p5, 1);
    c2f(&mut found, 12, p5 + p4, p4, n(3));
    c2f(&mut found, 15, p4 + p3, p3, n(3));
    conv(&mut found, "model.16", p3, p3, 3);
    c2f(&mut found, 18, p3 + p4, p4, n(3));
    conv(&mut found, "model.19", p4, p4, 3);
    c2f(&mut found, 21, p4 + p5, p5, n(3));
    for (level, inputs) in [p3, p4, p5].into_iter().enumerate() {
        for (branch, hidden, outputs) in [("cv2", 64.max(p3 / 4), 64), ("cv3", p3, 1)] {
            let name = format!("model.22.{branch}.{level}");
            conv(&mut found, &format!("{name}.0"), inputs, hidden, 3);
            conv(&mut found, &format!("{name}.1"), hidden, hidden, 3);
            found.push((format!("{name}.2.weight"), vec![outputs, hidden, 1, 1]));
            found.push((format!("{name}.2.bias"), vec![outputs]));
        }
    }
    found
}

#[test]
fn every_published_size_has_the_layout_and_every_depth_loads() {
    // Depth, width, most channels and the reference's count of parameters (with one class) of n, s, m, l and x.
    for (size, depth, width, most, parameters) in [
        ("n", 0.33, 0.25, 1024, 3_011_043),
        ("s", 0.33, 0.5, 1024, 11_135_987),
        ("m", 0.67, 0.75, 768, 25_856_899),
        ("l", 1.0, 1.0, 512, 43_630_611),
        ("x", 1.0, 1.25, 512, 68_153_571),
    ] {
        let learned =
            published(depth, width, most).into_iter().filter(|(name, _)| !name.contains(".running_"));
        let count: usize = learned.map(|(_, shape)| shape.iter().product::<usize>()).sum();
        // The reference counts the fixed 16 weights of `dfl` too.
        assert_eq!(count + 16, parameters, "{size}");
        // As deep as the real one, but narrow: quick to write and to read.
        let mut tensors: BTreeMap<_, _> =
            published(depth, 0.25, most).iter().map(|(name, shape)| (name.clone(), zeros(shape))).collect();
        let bins = Tensor::arange(0f32, 16.0, &Device::Cpu).unwrap().reshape((1, 16, 1, 1)).unwrap();
        tensors.insert("model.22.dfl.conv.weight".into(), bins);
        assert_eq!(load(&tensors, &[]).unwrap().classes(), 1, "{size}");
    }
}
