//! `darkroom generate` end to end, with the embedded model.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod program;

use darkroom::picture::read_text_chunks;
use image::{GrayImage, Luma, RgbImage, Rgba, RgbaImage};
use program::{darkroom, darkroom_with_input, difference, draw, largest_difference, open, source_picture};
use safetensors::SafeTensors;
use tempfile::TempDir;

/// The same request drawn in another batch may differ by rounding: at most so many 8-bit levels.
const BATCH_LEVELS: u8 = 1;

#[test]
fn the_same_flags_draw_the_same_picture_and_every_flag_changes_it() {
    let folder = TempDir::new().unwrap();
    let base = draw(folder.path(), &[]).picture();
    assert_eq!(draw(folder.path(), &[]).picture(), base);
    for flags in [
        ["--prompt", "1girl, black hair, angry"],
        ["--negative", "1girl, blonde hair"],
        ["--steps", "3"],
        ["--cfg", "2"],
        ["--sampler", "dpmpp_sde"],
        ["--scheduler", "sgm_uniform"],
        ["--seed", "2"],
        ["--clip-skip", "1"],
        ["--denoise", "0.6"],
    ] {
        let other = draw(folder.path(), &flags).picture();
        assert!(difference(&base, &other, |_, _| true) > 0.2, "{flags:?} changed nothing");
    }
    assert_eq!(draw(folder.path(), &["--width", "96"]).picture().dimensions(), (96, 64));
    assert_eq!(draw(folder.path(), &["--height", "80"]).picture().dimensions(), (64, 80));
}

#[test]
fn count_draws_one_seed_after_another_each_as_it_comes_alone() {
    let folder = TempDir::new().unwrap();
    let saved = folder.path().join("l.safetensors");
    let flags = ["--count", "3", "--seed", "41", "--save-latent", saved.to_str().unwrap()];
    let run = draw(folder.path(), &flags);
    let paths = run.paths();
    let names: Vec<_> = paths.iter().map(|path| path.file_name().unwrap().to_str().unwrap()).collect();
    assert_eq!(names, ["darkroom_00001_.png", "darkroom_00002_.png", "darkroom_00003_.png"]);
    let alone = draw(folder.path(), &["--seed", "42"]).picture();
    assert!(largest_difference(&open(&paths[1]), &alone) <= BATCH_LEVELS);
    let text = &read_text_chunks(&paths[2]).unwrap()[0].text;
    assert!(text.contains("Seed: 43,"), "{text}");

    let bytes = std::fs::read(&saved).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let latents = tensors.tensor("latent_tensor").unwrap();
    assert_eq!(latents.shape(), [3, 4, 8, 8]);
    assert!(tensors.tensor("latent_format_version_0").is_ok());
}

#[test]
fn a_picture_says_how_it_was_made_to_both_kinds_of_readers() {
    let folder = TempDir::new().unwrap();
    let run = draw(
        folder.path(),
        &[
            "--prompt",
            "1girl, (smile:1.2), 少女",
            "--negative",
            "hat",
            "--sampler",
            "euler_ancestral",
            "--scheduler",
            "normal",
            "--cfg",
            "4.5",
        ],
    );
    let path = &run.paths()[0];
    let shown = darkroom(["inspect".as_ref(), path.as_os_str()]).worked().stdout;
    for part in [
        "1girl, (smile:1.2), 少女\nNegative prompt: hat\n",
        "Steps: 2, Sampler: Euler a, Schedule type: Normal, CFG scale: 4.5, Seed: 1, Size: 64x64",
        "\"CheckpointLoaderSimple\"",
    ] {
        assert!(shown.contains(part), "'{part}' is not in {shown}");
    }
    let json = darkroom(["inspect".as_ref(), "--json".as_ref(), path.as_os_str()]).worked().stdout;
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    let graph: serde_json::Value = serde_json::from_str(json["text"]["prompt"].as_str().unwrap()).unwrap();
    let sampler = graph.as_object().unwrap().values().find(|node| node["class_type"] == "KSampler").unwrap();
    assert_eq!(sampler["inputs"]["sampler_name"], "euler_ancestral");
    assert_eq!(sampler["inputs"]["seed"], 1);
}

#[test]
fn less_denoise_stays_closer_to_the_picture() {
    let folder = TempDir::new().unwrap();
    let source = open(source_picture());
    let path = source_picture().to_str().unwrap();
    let changed = |denoise: &str| {
        let flags = ["--image", path, "--denoise", denoise, "--steps", "4", "--prompt", "1girl, black hair"];
        let picture = draw(folder.path(), &flags).picture();
        difference(&source, &picture, |_, _| true)
    };
    let (none, some, all) = (changed("0"), changed("0.4"), changed("1"));
    assert!(none < some && some < all, "{none} {some} {all}");
    // Through the autoencoder and back is nearly the same picture.
    assert!(none < 12.0, "{none}");
}

#[test]
fn a_picture_of_any_size_is_scaled_to_the_size_asked_for() {
    let folder = TempDir::new().unwrap();
    let photo = folder.path().join("photo.png");
    RgbImage::from_fn(301, 97, |x, y| image::Rgb([x as u8, y as u8, 90])).save(&photo).unwrap();
    let photo = photo.to_str().unwrap();
    let flags = ["--image", photo, "--width", "64", "--height", "64"];
    assert_eq!(draw(folder.path(), &flags).picture().dimensions(), (64, 64));
    // Without a size it keeps its own, cut to multiples of 8.
    assert_eq!(draw(folder.path(), &["--image", photo]).picture().dimensions(), (296, 96));
}

#[test]
fn inpainting_repaints_the_white_part_and_keeps_the_black_part() {
    let folder = TempDir::new().unwrap();
    let source = open(source_picture());
    let mask = folder.path().join("mask.png");
    GrayImage::from_fn(128, 128, |x, _| Luma([if x < 64 { 255 } else { 0 }])).save(&mask).unwrap();
    let (image, mask) = (source_picture().to_str().unwrap(), mask.to_str().unwrap());
    for mode in [&["--inpaint-mode", "noise-mask"][..], &["--inpaint-mode", "fill", "--grow-mask", "0"], &[]]
    {
        let mut flags =
            vec!["--image", image, "--mask", mask, "--steps", "4", "--prompt", "black background"];
        flags.extend(mode);
        let picture = draw(folder.path(), &flags).picture();
        // Away from the seam: the autoencoder sees some pixels beyond it.
        let repainted = difference(&source, &picture, |x, _| x < 48);
        let kept = difference(&source, &picture, |x, _| x >= 80);
        assert!(repainted > 2.0 * kept && kept < 15.0, "{mode:?}: {repainted} {kept}");
    }
}

#[test]
fn without_a_mask_the_transparent_part_is_repainted() {
    let folder = TempDir::new().unwrap();
    let source = open(source_picture());
    let path = folder.path().join("holed.png");
    RgbaImage::from_fn(128, 128, |x, y| {
        let [r, g, b] = source.get_pixel(x, y).0;
        Rgba([r, g, b, if y < 64 { 0 } else { 255 }])
    })
    .save(&path)
    .unwrap();
    let mut flags = vec!["--image", path.to_str().unwrap(), "--inpaint-mode", "noise-mask"];
    flags.extend(["--prompt", "1girl, black hair", "--steps", "6"]);
    let picture = draw(folder.path(), &flags).picture();
    let repainted = difference(&source, &picture, |_, y| y < 48);
    let kept = difference(&source, &picture, |_, y| y >= 80);
    assert!(repainted > 2.0 * kept, "{repainted} {kept}");
}

#[test]
fn timings_count_every_network_call() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("t/timings.json");
    draw(folder.path(), &["--steps", "3", "--sampler", "euler", "--timings", path.to_str().unwrap()]);
    let timings: serde_json::Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    assert_eq!(timings["step_seconds"].as_array().unwrap().len(), 3);
    for name in ["load_seconds", "encode_seconds", "decode_seconds"] {
        assert!(timings[name].as_f64().unwrap() >= 0.0, "{name}");
    }
}

#[test]
fn a_prompt_comes_from_a_file_or_from_standard_input() {
    let folder = TempDir::new().unwrap();
    let expected = draw(folder.path(), &["--prompt", "1boy, sad"]).picture();
    let out = folder.path().to_str().unwrap();
    let fixed =
        ["generate", "-q", "--out", out, "--width", "64", "--height", "64", "--steps", "2", "--seed", "1"];
    let piped = darkroom_with_input(fixed.iter().chain(&["--prompt-file", "-"]), b"1boy, sad\n").worked();
    assert_eq!(piped.picture(), expected);
    let file = folder.path().join("p.txt");
    std::fs::write(&file, "1boy, sad\r\n").unwrap();
    let read = darkroom(fixed.iter().chain(&["--prompt-file", file.to_str().unwrap()])).worked();
    assert_eq!(read.picture(), expected);
}

#[test]
fn quiet_says_nothing_and_a_poor_size_gets_a_hint() {
    let folder = TempDir::new().unwrap();
    assert_eq!(draw(folder.path(), &[]).stderr, "");
    let out = folder.path().to_str().unwrap();
    let run = darkroom([
        "generate", "-p", "1girl", "--steps", "1", "--width", "64", "--height", "64", "--out", out,
    ]);
    assert!(run.worked().stderr.contains("hint: "));
}
