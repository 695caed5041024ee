//! What the program cannot do it says in one line, with the fix and an exit status: 2 for a bad command line,
//! 1 for failed work. It never panics.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod program;

use std::path::{Path, PathBuf};

use program::{Run, darkroom, darkroom_with_input};
use tempfile::TempDir;

const TINY: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/assets/tiny-sdxl.safetensors");

/// `darkroom generate` of one small picture with `more` flags; writes below `folder`.
fn generate(folder: &Path, more: &[&str]) -> Run {
    let out = folder.join("out");
    let fixed = ["generate", "-p", "1girl", "--steps", "1", "--out", out.to_str().unwrap()];
    darkroom(fixed.iter().chain(more))
}

fn file(folder: &Path, name: &str, bytes: &[u8]) -> String {
    let path = folder.join(name);
    std::fs::write(&path, bytes).unwrap();
    path.to_str().unwrap().to_owned()
}

fn pictures(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder.join("out"));
    entries.map(|entries| entries.map(|entry| entry.unwrap().path()).collect()).unwrap_or_default()
}

#[test]
fn bad_flags_are_named_with_what_would_do() {
    let folder = TempDir::new().unwrap();
    let cases: [(&[&str], &[&str]); 9] = [
        (&["--width", "130"], &["--width", "128 and 136"]),
        (&["--height", "7"], &["--height", "16 to 8192"]),
        (&["--sampler", "dpmpp_2n"], &["dpmpp_2m", "euler_ancestral"]),
        (&["--scheduler", "carras"], &["karras", "kl_optimal"]),
        (&["--steps", "0"], &["--steps"]),
        (&["--cfg", "NaN"], &["--cfg"]),
        (&["--denoise", "2"], &["--denoise"]),
        (&["--mask", "m.png"], &["--image"]),
        (&["--frobnicate"], &["--frobnicate"]),
    ];
    for (flags, parts) in cases {
        generate(folder.path(), flags).refused(2, parts);
    }
    darkroom(["generate"]).refused(2, &["--prompt"]);
    assert!(pictures(folder.path()).is_empty());
}

#[test]
fn a_size_beyond_the_pixel_limit_is_refused_before_any_work() {
    let folder = TempDir::new().unwrap();
    generate(folder.path(), &["--width", "8192", "--height", "8192"]).refused(2, &["8192x8192"]);
}

#[test]
fn a_model_that_is_not_there_is_a_bad_flag_and_an_unreachable_hub_a_failure() {
    let folder = TempDir::new().unwrap();
    generate(folder.path(), &["--model", "/no/such.safetensors"])
        .refused(2, &["/no/such.safetensors", "fix: "]);
    generate(folder.path(), &["--model", "org/name"]).refused(1, &["org/name", "Hugging Face Hub", "fix: "]);
}

#[test]
fn damaged_weight_files_are_refused_by_what_is_wrong_with_them() {
    let folder = TempDir::new().unwrap();
    let whole = std::fs::read(TINY).unwrap();
    let header = usize::try_from(u64::from_le_bytes(whole[..8].try_into().unwrap())).unwrap();
    let mut garbage = vec![0xA5u8; 4096];
    garbage[..8].copy_from_slice(&100u64.to_le_bytes());
    let cases: [(&str, &[u8]); 6] = [
        ("empty.safetensors", b""),
        ("short.safetensors", &whole[..7]),
        ("half-header.safetensors", &whole[..8 + header / 2]),
        ("half-data.safetensors", &whole[..8 + header + (whole.len() - 8 - header) / 2]),
        ("garbage.safetensors", &garbage),
        ("huge-header.safetensors", &u64::MAX.to_le_bytes()),
    ];
    for (name, bytes) in cases {
        let path = file(folder.path(), name, bytes);
        generate(folder.path(), &["--model", &path]).refused(1, &[name, "fix: "]);
        darkroom(["inspect", &path]).refused(1, &[name]);
    }
    assert!(pictures(folder.path()).is_empty());
}

#[test]
fn a_weight_file_that_is_no_checkpoint_says_what_it_is() {
    let folder = TempDir::new().unwrap();
    let header = br#"{"body.0.weight":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}"#;
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header);
    bytes.extend(1f32.to_le_bytes());
    let path = file(folder.path(), "upscaler.safetensors", &bytes);
    generate(folder.path(), &["--model", &path]).refused(1, &["upscaler"]);
}

#[test]
fn weights_that_are_no_numbers_never_become_a_picture() {
    let folder = TempDir::new().unwrap();
    let mut bytes = std::fs::read(TINY).unwrap();
    let header = usize::try_from(u64::from_le_bytes(bytes[..8].try_into().unwrap())).unwrap();
    let tensors: serde_json::Value = serde_json::from_slice(&bytes[8..8 + header]).unwrap();
    let spoilt = &tensors["model.diffusion_model.out.2.weight"];
    assert_eq!(spoilt["dtype"], "F16");
    let offset =
        |index: usize| 8 + header + usize::try_from(spoilt["data_offsets"][index].as_u64().unwrap()).unwrap();
    for value in bytes[offset(0)..offset(1)].chunks_exact_mut(2) {
        value.copy_from_slice(&0x7e00u16.to_le_bytes()); // half-precision NaN
    }
    let path = file(folder.path(), "nan.safetensors", &bytes);
    generate(folder.path(), &["--model", &path, "--width", "64", "--height", "64"]).refused(1, &["NaN"]);
    assert!(pictures(folder.path()).is_empty());
}

#[test]
fn unreadable_pictures_are_refused_by_what_is_wrong_with_them() {
    let folder = TempDir::new().unwrap();
    let cases: [(&str, Vec<u8>, &str); 4] = [
        ("empty.png", Vec::new(), "empty"),
        ("text.png", b"not a picture".to_vec(), "not a picture"),
        ("cut.png", bomb(64, 64), "damaged"),
        ("bomb.png", bomb(100_000, 100_000), "100000x100000"),
    ];
    for (name, bytes, part) in cases {
        let path = file(folder.path(), name, &bytes);
        generate(folder.path(), &["--image", &path]).refused(1, &[name, part, "fix: "]);
    }
    generate(folder.path(), &["--image", "/no/such.png"]).refused(1, &["/no/such.png", "fix: "]);
    let opaque = folder.path().join("opaque.png");
    image::RgbImage::new(64, 64).save(&opaque).unwrap();
    let opaque = opaque.to_str().unwrap();
    generate(folder.path(), &["--image", opaque, "--inpaint-mode", "fill"]).refused(1, &["--mask"]);
}

#[test]
fn a_million_characters_are_refused_before_the_model_is_loaded() {
    let folder = TempDir::new().unwrap();
    let out = folder.path().join("out");
    let fixed = ["generate", "--prompt-file", "-", "--out", out.to_str().unwrap()];
    for text in ["x".repeat(1_000_000), "(".repeat(1_000_000), "少女, ".repeat(250_000)] {
        darkroom_with_input(fixed, text.as_bytes()).refused(2, &["characters", "fix: "]);
    }
    // Short enough to be read, too long to be encoded.
    darkroom_with_input(fixed, "cat ".repeat(16_000).as_bytes()).refused(2, &["tokens"]);
    darkroom_with_input(fixed, &[0xff, 0xfe]).refused(1, &["UTF-8"]);
}

#[test]
fn a_folder_that_cannot_be_made_is_refused_before_any_work() {
    let folder = TempDir::new().unwrap();
    let taken = file(folder.path(), "taken", b"");
    let run = darkroom(["generate", "-p", "x", "--out", &format!("{taken}/out")]);
    run.refused(1, &["taken", "--out"]);
}

#[test]
fn inspect_says_what_the_model_is_and_refuses_what_is_none() {
    let shown = darkroom(["inspect", TINY]).worked().stdout;
    assert!(shown.contains("SDXL"), "{shown}");
    let json = darkroom(["inspect", "--json", TINY]).worked().stdout;
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(json["kind"], "sdxl");
    let folder = TempDir::new().unwrap();
    darkroom(["inspect", &file(folder.path(), "a.txt", b"hello")]).refused(1, &["a.txt"]);
    darkroom(["inspect", "/no/such/file"]).refused(1, &["/no/such/file"]);
}

/// A PNG whose header promises `width` × `height` pixels and that has none.
fn bomb(width: u32, height: u32) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut writer = png::Encoder::new(&mut bytes, width, height).write_header().unwrap();
    writer.write_chunk(png::chunk::IDAT, &[]).unwrap();
    drop(writer);
    bytes
}
