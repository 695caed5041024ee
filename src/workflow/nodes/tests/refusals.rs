//! What nodes refuse, and that nothing large is made before they do.

use super::*;
use crate::workflow::image::{Image, Mask};

fn given(inputs: &[(&str, Value)]) -> Vec<(String, Value)> {
    inputs.iter().map(|(name, value)| ((*name).to_owned(), value.clone())).collect()
}

fn picture(count: usize, height: usize, width: usize, channels: usize) -> Value {
    Value::Image(
        Image::new(count, height, width, channels, vec![0.5; count * height * width * channels]).unwrap(),
    )
}

fn text(value: &str) -> Value {
    Value::String(value.into())
}

#[test]
fn results_that_no_memory_holds_are_refused_by_their_size() {
    let place = Place::new();
    let refused = |class, inputs: &[(&str, Value)]| {
        let error = place.run(class, given(inputs)).unwrap_err().to_string();
        assert!(error.contains("would be") || error.contains("more than"), "{class}: {error}");
    };
    let sizes = |width, height, count| {
        [("width", Value::Int(width)), ("height", Value::Int(height)), ("batch_size", Value::Int(count))]
    };
    let mut empty = sizes(16384, 16384, 4096).to_vec();
    empty.push(("color", Value::Int(0)));
    refused("EmptyImage", &empty);
    refused("EmptyLatentImage", &sizes(16384, 16384, 4096));
    refused("EmptyLatentImage", &sizes(0, 64, 1));
    let wide = picture(1, 1, 16384, 3);
    refused(
        "ImageScale",
        &[
            ("image", wide.clone()),
            ("upscale_method", text("lanczos")),
            ("width", Value::Int(16384)),
            ("height", Value::Int(16384)),
            ("crop", text("disabled")),
        ],
    );
    refused(
        "ImageScaleBy",
        &[("image", wide.clone()), ("upscale_method", text("area")), ("scale_by", Value::Float(8.0))],
    );
    refused("RepeatImageBatch", &[("image", picture(64, 128, 128, 3)), ("amount", Value::Int(4096))]);
    let side = |name| (name, Value::Int(16384));
    let mut padded = vec![("image", wide), ("feathering", Value::Int(0))];
    padded.extend(["left", "top", "right", "bottom"].map(side));
    refused("ImagePadForOutpaint", &padded);
}

#[test]
fn wrong_inputs_are_named() {
    let place = Place::new();
    let error = |class, inputs: &[(&str, Value)]| place.run(class, given(inputs)).unwrap_err().to_string();
    let message = error("ImageToMask", &[("image", picture(1, 2, 2, 3)), ("channel", text("alpha"))]);
    assert!(message.starts_with("channel:") && message.contains("3 channels"), "{message}");
    let message = error(
        "ImageBlur",
        &[("image", picture(1, 4, 9, 3)), ("blur_radius", Value::Int(4)), ("sigma", Value::Float(1.0))],
    );
    assert!(message.starts_with("blur_radius:") && message.contains("9x4"), "{message}");
    let message = error(
        "Canny",
        &[
            ("image", picture(1, 4, 4, 3)),
            ("low_threshold", Value::Float(0.8)),
            ("high_threshold", Value::Float(0.2)),
        ],
    );
    assert!(message.contains("above"), "{message}");
    let mask = Mask::new(1, 2, 3, vec![0.0; 6]).unwrap();
    let crop = [("x", 3), ("y", 0), ("width", 1), ("height", 1)].map(|(name, at)| (name, Value::Int(at)));
    let mut inputs = vec![("mask", Value::Mask(mask))];
    inputs.extend(crop);
    let message = error("CropMask", &inputs);
    assert!(message.starts_with("x:"), "{message}");
}

#[test]
fn a_text_does_not_grow_without_end() {
    let place = Place::new();
    let long = text(&"a".repeat(1 << 20));
    let inputs = [("string", long.clone()), ("find", text("")), ("replace", long.clone())];
    assert!(place.run("StringReplace", given(&inputs)).is_err());
    let inputs = [("string", long), ("regex_pattern", text("")), ("replace", text(&"b".repeat(4096)))];
    assert!(place.run("RegexReplace", given(&inputs)).is_err());
}

#[test]
fn a_pattern_that_backtracks_without_end_is_given_up() {
    let place = Place::new();
    let subject = text(&("a".repeat(64) + "b"));
    for pattern in [r"(a|aa)+(?!.)(?<=b)c\1", r"^(?=(a+)+$)\1c", &"(".repeat(20_000)] {
        let inputs = [
            ("string", subject.clone()),
            ("regex_pattern", text(pattern)),
            ("case_insensitive", Value::Boolean(true)),
            ("multiline", Value::Boolean(false)),
            ("dotall", Value::Boolean(false)),
        ];
        // Either an answer or an error, but one of them.
        if let Ok(outputs) = place.run("RegexMatch", given(&inputs)) {
            assert_eq!(outputs.slots.len(), 1);
        }
    }
}

#[test]
fn an_interrupt_ends_a_long_node() {
    let place = Place::new();
    place.interrupt.cancel();
    let mask = Mask::new(1, 64, 64, vec![0.0; 64 * 64]).unwrap();
    let inputs = [
        ("mask", Value::Mask(mask)),
        ("expand", Value::Int(16384)),
        ("tapered_corners", Value::Boolean(true)),
    ];
    assert!(matches!(place.run("GrowMask", given(&inputs)), Err(NodeError::Interrupted)));
}
