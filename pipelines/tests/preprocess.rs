//! Control pictures against the programs that people compare with: kornia (which ComfyUI's Canny node calls), OpenCV,
//! torch, Pillow and controlnet_aux. `scripts/golden/preprocess.py` makes the references and has the same formulas for
//! the pictures.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::path::PathBuf;

use darkroom_pipelines::Picture;
use darkroom_pipelines::preprocess::canny::{Canny, CannyMethod};
use darkroom_pipelines::preprocess::openpose::{Pose, PosePresets, draw_scaled};
use darkroom_pipelines::preprocess::resize::{Crop, Filter, resize};
use safetensors::SafeTensors;

/// Largest difference of an interpolated value: both round sums of at most 16 products to f32, and the reference is
/// stored in 16 bits of 0..3.
const INTERPOLATION_TOLERANCE: f32 = 3e-5;

/// Name, kind, width, height and seed.
const PICTURES: [(&str, &str, i64, i64, i64); 26] = [
    ("noise", "noise", 64, 48, 1),
    ("noise_8", "noise", 8, 8, 2),
    ("noise_odd", "noise", 37, 53, 3),
    ("noise_large", "noise", 160, 144, 4),
    ("ramp_x", "ramp_x", 96, 32, 0),
    ("ramp_y", "ramp_y", 31, 90, 0),
    ("ramp_colours", "ramp_colours", 77, 61, 0),
    ("flat", "flat", 40, 40, 5),
    ("flat_black", "flat", 16, 16, 0),
    ("shapes", "shapes", 128, 128, 6),
    ("shapes_odd", "shapes", 101, 75, 7),
    ("shapes_8", "shapes", 8, 8, 8),
    ("shapes_wide", "shapes", 400, 24, 9),
    ("shapes_tall", "shapes", 19, 260, 10),
    ("soft", "soft", 128, 128, 11),
    ("soft_odd", "soft", 99, 131, 12),
    ("soft_large", "soft", 256, 192, 13),
    ("photo", "photo", 128, 160, 14),
    ("photo_odd", "photo", 143, 89, 15),
    ("photo_large", "photo", 224, 256, 16),
    ("photo_wide", "photo", 512, 40, 17),
    ("stripes", "stripes", 60, 60, 3),
    ("stripes_thin", "stripes", 45, 47, 1),
    ("checks", "checks", 64, 64, 8),
    ("checks_small", "checks", 50, 41, 3),
    ("narrow", "noise", 3, 40, 18),
];

fn noise(x: i64, y: i64, c: i64, seed: i64) -> i64 {
    let of = |value: i64, factor: u32| (value as u32).wrapping_mul(factor);
    let mut h = of(x, 374_761_393)
        .wrapping_add(of(y, 668_265_263))
        .wrapping_add(of(c, 974_634_541))
        .wrapping_add(of(seed, 1_442_695_041));
    h = (h ^ (h >> 13)).wrapping_mul(1_274_126_177);
    h = (h ^ (h >> 16)).wrapping_mul(2_246_822_519);
    i64::from((h >> 15) & 255)
}

fn smooth_noise(x: i64, y: i64, c: i64, seed: i64, cell: i64) -> i64 {
    let (i, j, u, v) = (x / cell, y / cell, x % cell, y % cell);
    let row = |j| noise(i, j, c, seed) * (cell - u) + noise(i + 1, j, c, seed) * u;
    (row(j) * (cell - v) + row(j + 1) * v) / (cell * cell)
}

/// In coordinates 16 times finer than pixels.
fn shapes(x: i64, y: i64, c: i64, seed: i64, w: i64, h: i64) -> i64 {
    let mut value = 200 + 10 * c;
    if (x + 2 * y) % (16 * 50) < 16 * 9 {
        value = 150 - 40 * c;
    }
    if x > w * 16 / 8 && x < w * 16 / 3 && y > h * 16 / 5 && y < h * 16 * 4 / 5 {
        value = 60 + 50 * c;
    }
    for disc in 0..4 {
        let cx = noise(disc, 0, 0, seed) * w * 16 / 256;
        let cy = noise(disc, 1, 0, seed) * h * 16 / 256;
        let r = 16 * w.min(h) / 8 + noise(disc, 2, 0, seed) * w.min(h) * 16 / 1024;
        if (x - cx).pow(2) + (y - cy).pow(2) < r * r {
            value = noise(disc, 3, c, seed);
        }
    }
    value
}

fn value(kind: &str, (x, y, c): (i64, i64, i64), (w, h): (i64, i64), seed: i64) -> i64 {
    match kind {
        "noise" => noise(x, y, c, seed),
        "ramp_x" => x * 255 / (w - 1),
        "ramp_y" => y * 255 / (h - 1),
        "ramp_colours" => (x * 3 * (c + 1) + y * 2 * (3 - c)) % 256,
        "flat" => seed * 37 % 256,
        "shapes" => shapes(x * 16 + 8, y * 16 + 8, c, seed, w, h),
        "soft" => {
            let offsets = || [2, 6, 10, 14].into_iter();
            let row = |j| offsets().map(|i| shapes(x * 16 + i, y * 16 + j, c, seed, w, h)).sum::<i64>();
            offsets().map(row).sum::<i64>() / 16
        }
        "photo" => {
            let sum = smooth_noise(x, y, c, seed, 32) * 4
                + smooth_noise(x, y, c, seed + 1, 12) * 3
                + smooth_noise(x, y, c, seed + 2, 5) * 2
                + noise(x, y, c, seed + 3) / 4;
            if (x * 3 + y * 5) % 301 < 60 { 255 - sum / 10 } else { sum / 10 }
        }
        "stripes" => (x / seed) % 2 * 255,
        _ => (x / seed + y / seed) % 2 * (200 - 30 * c),
    }
}

fn picture(name: &str) -> Picture {
    let (_, kind, w, h, seed) = *PICTURES.iter().find(|(other, ..)| *other == name).unwrap();
    let pixels = (0..h).flat_map(|y| (0..w).map(move |x| (x, y)));
    let bytes = pixels.flat_map(|(x, y)| [0, 1, 2].map(|c| value(kind, (x, y, c), (w, h), seed) as u8));
    of_bytes(w as usize, h as usize, bytes)
}

fn of_bytes(width: usize, height: usize, bytes: impl Iterator<Item = u8>) -> Picture {
    Picture::new(width, height, bytes.map(|v| f32::from(v) / 255.0).collect()).unwrap()
}

fn golden(file: &str) -> Vec<u8> {
    std::fs::read(PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(file)).unwrap()
}

/// Pixels in which `canny` and the reference of one bit a pixel differ, and edges of the reference.
fn differing(canny: Canny, picture: &Picture, bits: &[u8]) -> (usize, usize) {
    let edges = canny.detect(picture);
    let reference = |i: usize| bits[i / 8] >> (7 - i % 8) & 1 == 1;
    let pixels = picture.width() * picture.height();
    assert_eq!(bits.len(), pixels.div_ceil(8));
    let found = edges.data().chunks_exact(3).enumerate();
    let wrong = found.filter(|(i, rgb)| **rgb != [if reference(*i) { 1.0 } else { 0.0 }; 3]).count();
    (wrong, (0..pixels).filter(|i| reference(*i)).count())
}

/// Holds all pictures against the reference `suffix` and says how many edges they have together.
#[track_caller]
fn all_equal(canny: Canny, suffix: &str) -> usize {
    let file = golden("canny.safetensors");
    let file = SafeTensors::deserialize(&file).unwrap();
    let compare = |(name, ..): &(&str, &str, i64, i64, i64)| {
        let (wrong, edges) =
            differing(canny, &picture(name), file.tensor(&format!("{name}.{suffix}")).unwrap().data());
        assert_eq!(wrong, 0, "{name}.{suffix}: {wrong} pixels differ, of {edges} edges");
        edges
    };
    PICTURES.iter().map(compare).sum()
}

#[test]
fn the_edges_of_a_recorded_comfyui_run_are_equal_to_the_pixel() {
    let file = golden("canny.safetensors");
    let file = SafeTensors::deserialize(&file).unwrap();
    let bytes = file.tensor("comfyui.image").unwrap();
    let picture = of_bytes(bytes.shape()[1], bytes.shape()[0], bytes.data().iter().copied());
    let canny = Canny { low: 0.2, high: 0.5, method: CannyMethod::ComfyUi };
    let (wrong, edges) = differing(canny, &picture, file.tensor("comfyui.edges").unwrap().data());
    assert_eq!((wrong, edges), (0, 866));
}

#[test]
fn the_edges_of_26_pictures_are_kornias_to_the_pixel() {
    let canny = Canny { low: 0.2, high: 0.5, method: CannyMethod::ComfyUi };
    assert!(all_equal(canny, "kornia") > 20_000);
}

#[test]
fn the_edges_of_26_pictures_are_opencvs_to_the_pixel_with_both_gradients() {
    let canny = |l2_gradient| Canny { low: 100.0, high: 200.0, method: CannyMethod::OpenCv { l2_gradient } };
    assert!(all_equal(canny(false), "cv2") > 20_000);
    assert!(all_equal(canny(true), "cv2_l2") > 20_000);
}

#[test]
fn sizes_are_made_as_comfyui_makes_them() {
    let file = golden("resize.safetensors");
    let file = SafeTensors::deserialize(&file).unwrap();
    let mut compared = 0;
    for (key, reference) in file.tensors() {
        let [name, size, method, crop] = key.split('.').collect::<Vec<_>>()[..] else { panic!("{key}") };
        let (width, height) = size.split_once('x').unwrap();
        let (width, height) = (width.parse().unwrap(), height.parse().unwrap());
        let filter = Filter::ALL.into_iter().find(|filter| filter.name() == method).unwrap();
        let crop = if crop == "center" { Crop::Center } else { Crop::Disabled };
        let ours = resize(&picture(name), width, height, filter, crop);
        let bytes = reference.data();
        match filter {
            Filter::NearestExact | Filter::Lanczos => {
                let theirs: Vec<f32> = bytes.iter().map(|v| f32::from(*v) / 255.0).collect();
                assert_eq!(ours.data(), theirs, "{key}");
            }
            Filter::Bilinear | Filter::Area | Filter::Bicubic => {
                let theirs = bytes.chunks_exact(2).map(|b| f32::from(u16::from_le_bytes([b[0], b[1]])));
                let theirs: Vec<f32> = theirs.map(|v| v / 65535.0 * 3.0 - 1.0).collect();
                assert_eq!(ours.data().len(), theirs.len(), "{key}");
                let pairs = ours.data().iter().zip(&theirs);
                let worst = pairs.map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
                assert!(worst <= INTERPOLATION_TOLERANCE, "{key}: {worst}");
            }
        }
        compared += 1;
    }
    assert_eq!(compared, 5 * 5 * 2);
}

/// Holds a drawn skeleton against the reference `name`: the share of lit pixels that both have, and the mean
/// difference of all values in steps of 1/255.
fn agreement(drawn: &Picture, name: &str) -> (f64, f64) {
    let file = golden("openpose.safetensors");
    let file = SafeTensors::deserialize(&file).unwrap();
    let (indices, palette) = (file.tensor(name).unwrap(), file.tensor(&format!("{name}.palette")).unwrap());
    assert_eq!(indices.shape(), [drawn.height(), drawn.width()]);
    let ours =
        drawn.data().chunks_exact(3).map(|rgb| [rgb[0], rgb[1], rgb[2]].map(|v| (v * 255.0).round() as i32));
    let theirs = indices.data().iter().map(|i| {
        let colour = &palette.data()[usize::from(*i) * 3..][..3];
        [colour[0], colour[1], colour[2]].map(i32::from)
    });
    let (mut both, mut either, mut difference) = (0, 0, 0);
    for (a, b) in ours.zip(theirs) {
        both += usize::from(a != [0; 3] && b != [0; 3]);
        either += usize::from(a != [0; 3] || b != [0; 3]);
        difference += a.iter().zip(b).map(|(a, b)| (a - b).abs()).sum::<i32>();
    }
    (f64::from(both as u32) / f64::from(either as u32), f64::from(difference) / drawn.data().len() as f64)
}

/// Least share of lit pixels that ours and `controlnet_aux`'s skeletons have in common. They are the same here; another
/// sine may round a corner of an ellipse to the next pixel.
const LEAST_COMMON: f64 = 0.999;
/// Largest mean difference of all values, of 255.
const LARGEST_DIFFERENCE: f64 = 0.02;

#[track_caller]
fn alike(drawn: &Picture, name: &str) {
    let (common, difference) = agreement(drawn, name);
    assert!(common >= LEAST_COMMON && difference <= LARGEST_DIFFERENCE, "{name}: {common} {difference}");
}

#[test]
fn a_preset_is_drawn_as_controlnet_aux_draws_it() {
    let presets = PosePresets::embedded().unwrap();
    alike(&draw_scaled(&presets.get("waving").unwrap().pose, 256, 384, 1.0), "waving");
    // The measure tells poses apart.
    let (common, _) = agreement(&draw_scaled(&presets.get("jumping").unwrap().pose, 256, 384, 1.0), "waving");
    assert!(common < 0.5, "{common}");
}

#[test]
fn people_with_hands_and_faces_are_drawn_as_controlnet_aux_draws_them() {
    let pose = Pose::from_json(std::str::from_utf8(&golden("openpose_people.json")).unwrap()).unwrap();
    assert_eq!((pose.people.len(), pose.canvas), (2, Some((384, 256))));
    alike(&draw_scaled(&pose, 384, 256, 1.0), "people");
}
