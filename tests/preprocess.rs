//! `darkroom preprocess` as people run it: control pictures on disk, and what it says when it cannot make one.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod program;

use std::path::Path;

use image::{Rgb, RgbImage};
use program::{Run, darkroom};
use tempfile::TempDir;

/// Runs `darkroom preprocess` with `args`; IN and OUT are below `folder`.
fn preprocess(folder: &Path, kind: &str, input: &str, out: &str, more: &[&str]) -> Run {
    let input = if input.starts_with("preset:") {
        input.to_owned()
    } else {
        folder.join(input).display().to_string()
    };
    let out = folder.join(out).display().to_string();
    darkroom(["preprocess", kind, &input, &out].iter().chain(more))
}

/// A white disc of radius 20 on grey, 64 × 48 pixels.
fn disc(folder: &Path) {
    let inside = |x: u32, y: u32| (f64::from(x) - 32.0).hypot(f64::from(y) - 24.0) < 20.0;
    let of = |x, y| if inside(x, y) { Rgb([255; 3]) } else { Rgb([90; 3]) };
    RgbImage::from_fn(64, 48, of).save(folder.join("disc.png")).unwrap();
}

fn lit(picture: &RgbImage) -> usize {
    picture.pixels().filter(|pixel| pixel.0 != [0; 3]).count()
}

#[test]
fn both_methods_outline_a_disc_in_white_on_black() {
    let folder = TempDir::new().unwrap();
    disc(folder.path());
    for more in [
        &[][..],
        &["--low", "0.1", "--high", "0.3"],
        &["--method", "opencv"],
        &["--method", "opencv", "--l2-gradient"],
    ] {
        let edges = preprocess(folder.path(), "canny", "disc.png", "edges.png", more).worked().picture();
        assert_eq!(edges.dimensions(), (64, 48));
        assert!(edges.pixels().all(|pixel| [[0; 3], [255; 3]].contains(&pixel.0)));
        for (x, y, pixel) in edges.enumerate_pixels() {
            let distance = (f64::from(x) - 32.0).hypot(f64::from(y) - 24.0);
            assert!(pixel.0 == [0; 3] || (17.5..=22.5).contains(&distance), "{more:?}: {x} {y}");
        }
        // The circumference is 126 pixels, of which diagonals cover several.
        assert!((80..200).contains(&lit(&edges)), "{more:?}: {}", lit(&edges));
    }
}

#[test]
fn thresholds_decide_which_edges_there_are() {
    let folder = TempDir::new().unwrap();
    disc(folder.path());
    let edges = preprocess(
        folder.path(),
        "canny",
        "disc.png",
        "none.png",
        &["--method", "opencv", "--low", "1000", "--high", "1020"],
    );
    assert_eq!(lit(&edges.worked().picture()), 0);
}

#[test]
fn skeletons_come_from_presets_and_from_files_at_the_size_asked_for() {
    let folder = TempDir::new().unwrap();
    let preset = preprocess(folder.path(), "openpose", "preset:Waving", "a.png", &["--width", "256"])
        .worked()
        .picture();
    assert_eq!(preset.dimensions(), (256, 384));
    assert!((2000..20_000).contains(&lit(&preset)), "{}", lit(&preset));
    let json = r#"{"people": [{"joints": {"neck": [100, 50], "right_shoulder": [20, 50]}}], "canvas_width": 128, "canvas_height": 96}"#;
    std::fs::write(folder.path().join("pose.json"), json).unwrap();
    let drawn = preprocess(folder.path(), "openpose", "pose.json", "b.png", &[]).worked().picture();
    assert_eq!(drawn.dimensions(), (128, 96));
    assert_eq!(drawn.get_pixel(60, 50).0, [153, 0, 0]);
    assert_eq!(drawn.get_pixel(100, 50).0, [255, 85, 0]);
    assert_eq!(drawn.get_pixel(60, 60).0, [0; 3]);
}

#[test]
fn help_lists_the_presets() {
    let help = darkroom(["preprocess", "openpose", "--help"]).worked().stdout;
    assert!(help.contains("standing_neutral") && help.contains("seen from behind"), "{help}");
}

#[test]
fn what_cannot_be_done_is_said_with_what_would_do() {
    let folder = TempDir::new().unwrap();
    disc(folder.path());
    let canny = |out: &str, more: &[&str]| preprocess(folder.path(), "canny", "disc.png", out, more);
    canny("e.png", &["--low", "100", "--high", "200"])
        .refused(2, &["low threshold is 100", "opencv", "0.4 and 0.8"]);
    canny("e.png", &["--low", "0.5", "--high", "0.2"]).refused(2, &["above the high", "fix: "]);
    canny("e.png", &["--low", "NaN"]).refused(2, &["low threshold is NaN"]);
    canny("e.png", &["--method", "opencv", "--low", "0.1", "--high", "0.3"]).refused(2, &["comfyui"]);
    canny("e.png", &["--l2-gradient"]).refused(2, &["--method opencv"]);
    canny("e.png", &["--method", "sobel"]).refused(2, &["comfyui", "opencv"]);
    canny("e.jpg", &[]).refused(2, &["PNG", "e.png"]);
    preprocess(folder.path(), "canny", "no.png", "e.png", &[]).refused(1, &["no.png", "fix: "]);
    let openpose = |pose: &str, more: &[&str]| preprocess(folder.path(), "openpose", pose, "p.png", more);
    openpose("preset:wavin", &[]).refused(2, &["'wavin'", "waving", "--help"]);
    openpose("no.json", &[]).refused(1, &["no.json", "preset:"]);
    openpose("disc.png", &[]).refused(1, &["disc.png"]);
    openpose("preset:waving", &["--width", "9000"]).refused(2, &["--width"]);
    let cases: [(&str, &[&str]); 4] = [
        (r#"{"joints": {"nose": [0.5, NaN]}}"#, &["joints.nose[1] is not a finite number"]),
        (r#"{"people": []}"#, &["empty"]),
        (r#"{"people": [{"pose_keypoints_2d": [1, 2]}]}"#, &["people[0].pose_keypoints_2d has 2 values"]),
        ("not json", &["not JSON", "line 1"]),
    ];
    for (json, parts) in cases {
        std::fs::write(folder.path().join("bad.json"), json).unwrap();
        openpose("bad.json", &[]).refused(1, parts);
    }
    assert!(!folder.path().join("e.png").exists() && !folder.path().join("p.png").exists());
}

#[test]
fn a_depth_network_that_is_none_is_refused_with_what_to_give() {
    let folder = TempDir::new().unwrap();
    disc(folder.path());
    let weights = folder.path().join("weights.safetensors");
    std::fs::write(&weights, b"no weights").unwrap();
    let weights = weights.display().to_string();
    preprocess(folder.path(), "depth", "disc.png", "depth.png", &["--weights", &weights])
        .refused(1, &["Depth Anything V2", "weights.safetensors"]);
    assert!(!folder.path().join("depth.png").exists());
}
