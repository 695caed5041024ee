//! Edges that a GPU finds are those that the CPU finds, to the pixel.
//!
//! Where no device answers this says so and checks nothing; with `DARKROOM_TEST_CUDA` set it fails.
#![cfg(feature = "cuda")]
#![allow(clippy::unwrap_used, clippy::print_stderr, reason = "a test that cannot go on fails")]

use std::sync::OnceLock;

use candle_core::Device;
use darkroom_pipelines::Picture;
use darkroom_pipelines::preprocess::canny::{Canny, CannyMethod};
use proptest::prelude::*;

/// The device, made once: each would have its own stream.
fn device() -> Option<Device> {
    static DEVICE: OnceLock<Option<Device>> = OnceLock::new();
    let made = || {
        // A library that is missing makes the bindings panic, not fail.
        let why = match std::panic::catch_unwind(|| Device::new_cuda(0)) {
            Ok(Ok(device)) => return Some(device),
            Ok(Err(error)) => error.to_string(),
            Err(_) => "the bindings gave up".to_owned(),
        };
        assert!(std::env::var_os("DARKROOM_TEST_CUDA").is_none(), "DARKROOM_TEST_CUDA is set, but: {why}");
        eprintln!("no CUDA device, nothing is checked: {why}");
        None
    };
    DEVICE.get_or_init(made).clone()
}

fn assert_same_edges(canny: Canny, picture: &Picture, device: &Device) -> usize {
    let (there, here) = (canny.detect_on(picture, device).unwrap(), canny.detect(picture));
    let differing = there.data().iter().zip(here.data()).filter(|(a, b)| a != b).count() / 3;
    assert_eq!(differing, 0, "pixels of {canny:?} differ at {}x{}", picture.width(), picture.height());
    here.data().iter().filter(|value| **value == 1.0).count() / 3
}

/// A line that winds inwards, faint but for its inner end.
fn spiral(side: usize, faint: f32, strong: f32) -> Picture {
    let mut data = vec![0.5f32; side * side * 3];
    let (mut x, mut y, mut dx, mut dy) = (4isize, 4isize, 1isize, 0isize);
    let mut run = side as isize - 9;
    let mut turns = 0;
    while run > 3 {
        for _ in 0..run {
            let value = if run > 12 { 0.5 + faint } else { 0.5 + strong };
            let at = (y as usize * side + x as usize) * 3;
            data[at..at + 3].fill(value);
            (x, y) = (x + dx, y + dy);
        }
        (dx, dy) = (-dy, dx);
        turns += 1;
        if turns > 1 && turns % 2 == 1 {
            run -= 8;
        }
    }
    Picture::new(side, side, data).unwrap()
}

#[test]
fn a_faint_line_is_followed_from_its_one_strong_end() {
    let Some(device) = device() else { return };
    for (method, faint, low, high) in [
        (CannyMethod::ComfyUi, 0.2, 0.02, 0.3),
        (CannyMethod::OpenCv { l2_gradient: false }, 0.1, 20.0, 200.0),
        (CannyMethod::OpenCv { l2_gradient: true }, 0.1, 20.0, 200.0),
    ] {
        let picture = spiral(120, faint, 0.5);
        let followed = assert_same_edges(Canny { low, high, method }, &picture, &device);
        let strong = assert_same_edges(Canny { low: high, high, method }, &picture, &device);
        assert!(followed > 10 * strong && strong > 0, "{followed} and {strong} pixels");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(24) })]

    #[test]
    fn edges_are_the_cpus(
        seed: u64, width in 1usize..70, height in 1usize..70, grain in 1usize..9, bytes: bool,
        low in 0.01f64..0.4, more in 0f64..0.4, method in 0usize..3,
    ) {
        let Some(device) = device() else { return Ok(()) };
        let mut state = seed | 1;
        let mut random = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 40) as f32 / (1u64 << 24) as f32
        };
        // Patches of one colour, with a little noise: borders, ties and flat places.
        let patches: Vec<f32> = (0..70 * 70 * 3).map(|_| random()).collect();
        let value = |(i, noise): (usize, f32)| {
            let (x, y, c) = (i / 3 % width, i / 3 / width, i % 3);
            let value = patches[(y / grain * 70 + x / grain) * 3 + c] * 0.9 + noise * 0.1;
            if bytes { (value * 255.0).round() / 255.0 } else { value }
        };
        let data = (0..width * height * 3).map(|i| value((i, random()))).collect();
        let picture = Picture::new(width, height, data).unwrap();
        let canny = match method {
            0 => Canny { low, high: low + more, method: CannyMethod::ComfyUi },
            _ => Canny {
                low: low * 500.0,
                high: (low + more) * 500.0,
                method: CannyMethod::OpenCv { l2_gradient: method == 1 },
            },
        };
        assert_same_edges(canny, &picture, &device);
    }
}
