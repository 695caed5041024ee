//! `darkroom run` end to end: the real program, real nodes, the built-in model.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on fails")]

mod program;

use std::path::{Path, PathBuf};

use darkroom::picture::read_text_chunks;
use program::{Run, darkroom, darkroom_with_input};
use serde_json::{Value, json};
use tempfile::TempDir;

/// Text to image with the built-in model, small.
fn workflow() -> Value {
    json!({
        "4": { "class_type": "CheckpointLoaderSimple", "inputs": { "ckpt_name": "tiny-sdxl.safetensors" } },
        "6": { "class_type": "CLIPTextEncode", "inputs": { "text": "1girl, blonde hair", "clip": ["4", 1] } },
        "7": { "class_type": "CLIPTextEncode", "inputs": { "text": "blurry", "clip": ["4", 1] } },
        "5": { "class_type": "EmptyLatentImage", "inputs": { "width": 64, "height": 64, "batch_size": 2 } },
        "3": {
            "class_type": "KSampler",
            "inputs": {
                "seed": 7, "steps": 2, "cfg": 5.0, "sampler_name": "euler", "scheduler": "normal", "denoise": 1.0,
                "model": ["4", 0], "positive": ["6", 0], "negative": ["7", 0], "latent_image": ["5", 0],
            },
            "_meta": { "title": "Sampler" },
        },
        "8": { "class_type": "VAEDecode", "inputs": { "samples": ["3", 0], "vae": ["4", 2] } },
        "9": { "class_type": "SaveImage", "inputs": { "filename_prefix": "run/fox", "images": ["8", 0] } },
    })
}

fn run(folder: &Path, source: &Path, more: &[&str]) -> Run {
    let output = folder.join("output");
    let flags = ["--output-dir", output.to_str().unwrap()];
    darkroom(["run", source.to_str().unwrap()].iter().chain(&flags).chain(more))
}

fn write(folder: &Path, workflow: &Value) -> PathBuf {
    let path = folder.join("workflow.json");
    std::fs::write(&path, workflow.to_string()).unwrap();
    path
}

fn paths(run: &Run) -> Vec<PathBuf> {
    run.stdout.lines().map(PathBuf::from).collect()
}

fn pixels(path: &Path) -> Vec<u8> {
    image::open(path).unwrap().to_rgb8().into_raw()
}

#[test]
fn a_workflow_makes_its_pictures_and_one_of_them_makes_the_same_again() {
    let folder = TempDir::new().unwrap();
    let source = write(folder.path(), &workflow());
    let first = run(folder.path(), &source, &[]).worked();
    let made = paths(&first);
    let names: Vec<_> = made.iter().map(|path| path.strip_prefix(folder.path()).unwrap()).collect();
    assert_eq!(names, [Path::new("output/run/fox_00001_.png"), Path::new("output/run/fox_00002_.png")]);
    assert!(first.stderr.contains("node 3 (KSampler, \"Sampler\")"), "{}", first.stderr);
    let chunks = read_text_chunks(&made[0]).unwrap();
    let prompt = chunks.iter().find(|chunk| chunk.keyword == "prompt").unwrap();
    assert_eq!(serde_json::from_str::<Value>(&prompt.text).unwrap(), workflow());

    let again = paths(&run(folder.path(), &made[1], &["--quiet"]).worked());
    assert_eq!(pixels(&again[0]), pixels(&made[0]));
    let set = ["--set", "Sampler.seed=8", "--set", "9.filename_prefix=other"];
    let other = run(folder.path(), &made[1], &set).worked();
    assert!(paths(&other)[0].ends_with("output/other_00001_.png"), "{}", other.stdout);
    assert_ne!(pixels(&paths(&other)[0]), pixels(&made[0]));
}

#[test]
fn what_is_wrong_is_said_in_comfyuis_words_with_node_and_input() {
    let folder = TempDir::new().unwrap();
    let source = write(folder.path(), &workflow());
    let bad = run(folder.path(), &source, &["--set", "3.steps=0", "--set", "3.scheduler=none"]);
    assert_eq!(bad.status, Some(1));
    for part in [
        "node 3 (KSampler, \"Sampler\"): Value 0 smaller than min of 1: steps",
        "Value not in list: scheduler: 'none' not in [",
        "error: Prompt outputs failed validation",
        "fix: ",
    ] {
        assert!(bad.stderr.contains(part), "{}", bad.stderr);
    }
    assert!(
        !folder.path().join("output").exists(),
        "nothing is made before the workflow is known to be good"
    );
    run(folder.path(), &source, &["--set", "3.step=5"])
        .refused(2, &["no input step", "takes: model, seed, steps"]);
    run(folder.path(), &source, &["--set", "3=5"]).refused(2, &["NODE.INPUT=VALUE"]);
    run(folder.path(), &folder.path().join("none.json"), &[]).refused(1, &["none.json", "check the path"]);
    let mut unknown = workflow();
    unknown["5"]["class_type"] = "NoSuchLatent".into();
    let source = write(folder.path(), &unknown);
    run(folder.path(), &source, &[]).refused(1, &["NoSuchLatent"]);
}

#[test]
fn standard_input_is_read_and_other_outputs_are_made_where_one_cannot_be() {
    let folder = TempDir::new().unwrap();
    let image = json!({ "width": 8, "height": 8, "batch_size": 1, "color": 255 });
    let workflow = json!({
        "1": { "class_type": "EmptyImage", "inputs": image },
        "2": { "class_type": "SaveImage", "inputs": { "images": ["1", 0], "filename_prefix": "good" } },
        "3": { "class_type": "SaveImage", "inputs": { "images": ["9", 0], "filename_prefix": "bad" } },
    });
    let output = folder.path().join("output");
    let flags = ["run", "-", "--output-dir", output.to_str().unwrap()];
    let run = darkroom_with_input(flags, workflow.to_string().as_bytes());
    assert_eq!(run.status, Some(1));
    assert_eq!(paths(&run), [output.join("good_00001_.png")]);
    assert!(run.stderr.contains("node 3 (SaveImage)"), "{}", run.stderr);
    darkroom_with_input(flags, b"{\"nodes\": [], \"links\": []}").refused(2, &["Export (API)"]);
}
