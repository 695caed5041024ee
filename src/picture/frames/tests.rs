//! Held against what Pillow makes of pictures of every mode (`scripts/golden/load_image.py`).

use std::collections::BTreeMap;
use std::path::PathBuf;

use proptest::prelude::*;

use super::*;

#[derive(serde::Deserialize)]
struct Expected {
    count: usize,
    height: usize,
    width: usize,
    rgb: String,
    alpha: Option<String>,
    rgba: String,
}

/// Levels that frames of a WebP animation may be off: its decoder lays opaque pixels over others with a rounding
/// that libwebp uses for translucent ones alone.
const BLENDED_WEBP: f32 = 1.0;

fn file(name: &str) -> Vec<u8> {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/data/load_image");
    std::fs::read(folder.join(name)).unwrap()
}

fn expected() -> BTreeMap<String, Expected> {
    serde_json::from_slice(&file("expected.json")).unwrap()
}

fn bytes(values: &[f32]) -> String {
    let byte = |value: &f32| {
        let byte = (value * 255.0).round() as u8;
        assert_eq!(f32::from(byte) / 255.0, *value);
        byte
    };
    hex::encode(values.iter().map(byte).collect::<Vec<u8>>())
}

fn read(name: &str) -> Result<Frames, ReadError> {
    read_frames(&file(name), &ReadLimits::default(), name)
}

#[test]
fn every_mode_gives_pillows_colours_and_loadimages_mask() {
    let expected = expected();
    assert!(expected.len() > 20);
    for (name, expected) in expected {
        let frames = read(&name).unwrap();
        assert_eq!(
            (frames.count, frames.height, frames.width),
            (expected.count, expected.height, expected.width),
            "{name}"
        );
        let alpha = frames.alpha.as_deref().filter(|_| frames.alpha_is_channel).map(bytes);
        assert_eq!(alpha, expected.alpha, "{name}");
        let wanted = hex::decode(expected.rgb).unwrap();
        let most = if name.ends_with("moving.webp") { BLENDED_WEBP } else { 0.0 };
        for (at, (value, wanted)) in frames.rgb.iter().zip(wanted).enumerate() {
            // What is invisible has no colour to compare.
            let is_visible = frames.alpha.as_ref().is_none_or(|alpha| alpha[at / 3] > 0.0);
            let difference = (value * 255.0 - f32::from(wanted)).abs();
            assert!(!is_visible || difference <= most + 1e-3, "{name} {at}: {} {wanted}", value * 255.0);
        }
        assert_eq!(frames.rgb.len(), 3 * frames.count * frames.height * frames.width);
    }
}

#[test]
fn the_first_frame_gives_loadimagemasks_channels() {
    for (name, expected) in expected() {
        let frames = read_first_frame(&file(&name), &ReadLimits::default(), &name).unwrap();
        assert_eq!(frames.count, 1);
        let alpha = frames.alpha.unwrap_or_else(|| vec![1.0; frames.width * frames.height]);
        let wanted = hex::decode(expected.rgba).unwrap();
        for (at, pixel) in wanted.chunks_exact(4).enumerate() {
            assert_eq!(alpha[at], f32::from(pixel[3]) / 255.0, "{name} {at}");
            if pixel[3] > 0 {
                assert_eq!(frames.rgb[3 * at], f32::from(pixel[0]) / 255.0, "{name} {at}");
            }
        }
    }
}

#[test]
fn an_animation_counts_with_all_of_its_frames() {
    for name in ["moving.gif", "moving.webp", "moving.png"] {
        let limits = ReadLimits { pixels: 6 * 4 * 2, ..ReadLimits::default() };
        let error = read_frames(&file(name), &limits, name).unwrap_err();
        assert!(matches!(error, ReadError::TooManyFrames { pixels: 48, .. }), "{name}: {error}");
        assert!(read_first_frame(&file(name), &limits, name).is_ok());
    }
}

proptest! {
    #[test]
    fn no_bytes_make_the_reader_panic(
        index in 0usize..100,
        flips in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..8),
        length in any::<prop::sample::Index>(),
        cut in any::<bool>(),
    ) {
        let names: Vec<String> = expected().into_keys().collect();
        let mut bytes = file(&names[index % names.len()]);
        for (index, value) in flips {
            let at = index.index(bytes.len());
            bytes[at] = value;
        }
        if cut {
            bytes.truncate(length.index(bytes.len()));
        }
        // Small, so that flipped dimensions do not make the test slow.
        let limits = ReadLimits { pixels: 1 << 14, ..ReadLimits::default() };
        let _ = read_frames(&bytes, &limits, "upload");
        let _ = read_first_frame(&bytes, &limits, "upload");
    }
}
