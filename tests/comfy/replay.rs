//! Recorded workflows, asked of Darkroom: the same files come of them.

use std::collections::BTreeMap;
use std::io::Cursor;

use image::codecs::webp::WebPDecoder;
use image::{AnimationDecoder, Frame, ImageDecoder};
use reqwest::Method;
use safetensors::SafeTensors;
use serde_json::Value;

use crate::comfy::{Comfy, difference, none_differ, recorded_bytes_of, settled};
use crate::server;

/// Values of a picture that may be more than two levels off.
const FEW: f64 = 1e-3;
/// Mean distance, in levels, of frames that two encoders have made lossy.
const LOSSY: f64 = 3.0;

/// Workflows with what ComfyUI made of them.
pub(crate) struct Recording {
    folder: &'static str,
    workflows: Value,
    /// How far latents may be off, ‖ours − theirs‖ / ‖theirs‖.
    latents: f64,
    /// Parts of latents' paths, and how far those may be off.
    looser: &'static [(&'static str, f64)],
}

impl Recording {
    /// That of a folder below `tests/data`.
    pub(crate) fn read(folder: &'static str, latents: f64, looser: &'static [(&'static str, f64)]) -> Self {
        let workflows = serde_json::from_slice(&recorded_bytes_of(folder, "workflows.json")).unwrap();
        Self { folder, workflows, latents, looser }
    }

    /// Their names.
    pub(crate) fn names(&self) -> Vec<&str> {
        self.workflows.as_object().unwrap().keys().map(String::as_str).collect()
    }

    /// A workflow as it was posted.
    pub(crate) fn body(&self, name: &str) -> &str {
        self.workflows[name]["body"].as_str().unwrap()
    }
}

/// Runs a recorded workflow and compares its history and its files.
pub(crate) async fn replay(comfy: &Comfy, recording: &Recording, name: &str) {
    let workflow = &recording.workflows[name];
    let response = comfy.send(Method::POST, "/prompt", recording.body(name)).await;
    let (status, posted) = server::answer(response).await;
    assert_eq!(status, 200, "{posted}");
    let entry = comfy.finished(posted["prompt_id"].as_str().unwrap()).await;
    let last = entry["status"]["messages"].as_array().unwrap().last().unwrap();
    assert_eq!(entry["status"]["status_str"], workflow["status"], "{last}");

    let mut found = Vec::new();
    for (what, theirs, ours) in [
        ("outputs", &workflow["outputs"], &entry["outputs"]),
        ("meta", &workflow["meta"], &entry["meta"]),
        ("node_errors", &workflow["node_errors"], &posted["node_errors"]),
    ] {
        found.extend(difference(what, &settled(theirs), &settled(ours)));
    }
    let kinds: Value =
        entry["status"]["messages"].as_array().unwrap().iter().map(|one| one[0].clone()).collect();
    found.extend(difference("messages", &workflow["messages"], &kinds));
    none_differ(&found);

    let files: Vec<_> = files(&workflow["outputs"]).into_iter().zip(files(&entry["outputs"])).collect();
    for (theirs, ours) in &files {
        let [folder, name] = ["subfolder", "filename"].map(|key| theirs[key].as_str().unwrap());
        let path = format!("{}/{folder}/{name}", theirs["type"].as_str().unwrap()).replace("//", "/");
        let query: Vec<(&str, &str)> =
            ours.as_object().unwrap().iter().map(|(key, value)| (&**key, value.as_str().unwrap())).collect();
        let query = url::form_urlencoded::Serializer::new(String::new()).extend_pairs(query).finish();
        let view = comfy.get(&format!("/view?{query}")).await;
        assert_eq!(view.status(), 200, "{path}");
        let ours = view.bytes().await.unwrap();
        let theirs = recorded_bytes_of(recording.folder, &path);
        let said = match name.rsplit('.').next() {
            Some("png") => compare_pictures(&theirs, &ours),
            Some("latent") => {
                let looser = recording.looser.iter().find(|(part, _)| path.contains(part));
                compare_latents(&theirs, &ours, looser.map_or(recording.latents, |(_, tolerance)| *tolerance))
            }
            Some("webp") => compare_animations(&theirs, &ours),
            other => panic!("{path}: no comparison for {other:?}"),
        };
        found.extend(said.into_iter().map(|said| format!("{path}: {said}")));
    }
    none_differ(&found);
}

/// The files that outputs name, in the order of node ids.
fn files(outputs: &Value) -> Vec<Value> {
    let lists = outputs.as_object().unwrap().values().flat_map(|node| node.as_object().unwrap().values());
    let entries = lists.filter_map(Value::as_array).flatten();
    entries.filter(|entry| entry.get("filename").is_some()).cloned().collect()
}

/// A PNG's shape, its text, and its values.
fn read_png(bytes: &[u8]) -> (String, BTreeMap<String, String>, Vec<u8>) {
    let mut reader = png::Decoder::new(Cursor::new(bytes)).read_info().unwrap();
    let mut values = vec![0; reader.output_buffer_size().unwrap()];
    let frame = reader.next_frame(&mut values).unwrap();
    reader.finish().unwrap();
    values.truncate(frame.buffer_size());
    let info = reader.info();
    let shape = format!("{} x {} {:?} {:?}", info.width, info.height, info.color_type, info.bit_depth);
    assert!(info.utf8_text.is_empty() && info.compressed_latin1_text.is_empty());
    let text = info.uncompressed_latin1_text.iter().map(|chunk| (chunk.keyword.clone(), chunk.text.clone()));
    (shape, text.collect(), values)
}

fn compare_pictures(theirs: &[u8], ours: &[u8]) -> Vec<String> {
    let ((shape, text, values), (our_shape, our_text, our_values)) = (read_png(theirs), read_png(ours));
    let mut found = Vec::from_iter(text_difference(&text, &our_text));
    if shape != our_shape {
        found.push(format!("theirs is {shape}, ours {our_shape}"));
        return found;
    }
    let off: Vec<u8> = values
        .iter()
        .zip(&our_values)
        .map(|(left, right)| left.abs_diff(*right))
        .filter(|off| *off > 2)
        .collect();
    let share = off.len() as f64 / values.len() as f64;
    if share > FEW {
        let most = off.iter().max().unwrap();
        found.push(format!("{:.2} % of the values are off, by up to {most}", 100.0 * share));
    }
    found
}

/// Where texts differ first, with a few words around it.
fn text_difference(theirs: &BTreeMap<String, String>, ours: &BTreeMap<String, String>) -> Option<String> {
    let [theirs, ours] = [theirs, ours].map(|texts| format!("{texts:?}"));
    let at = theirs.bytes().zip(ours.bytes()).position(|(left, right)| left != right);
    let at = at.or_else(|| (theirs.len() != ours.len()).then(|| theirs.len().min(ours.len())))?;
    let [theirs, ours] = [theirs, ours].map(|text| {
        let around = &text.as_bytes()[at.saturating_sub(60).min(text.len())..(at + 60).min(text.len())];
        String::from_utf8_lossy(around).into_owned()
    });
    Some(format!("theirs says ...{theirs}..., ours ...{ours}..."))
}

fn compare_latents(theirs: &[u8], ours: &[u8], tolerance: f64) -> Vec<String> {
    let read = |bytes: &[u8]| {
        let (_, header) = SafeTensors::read_metadata(bytes).unwrap();
        let tensors = SafeTensors::deserialize(bytes).unwrap();
        let mut names: Vec<_> = tensors
            .tensors()
            .iter()
            .map(|(name, view)| format!("{name} {:?} {:?}", view.dtype(), view.shape()))
            .collect();
        names.sort();
        let latent = tensors.tensor("latent_tensor").unwrap();
        let values: Vec<f64> = latent
            .data()
            .chunks_exact(4)
            .map(|four| f32::from_le_bytes(four.try_into().unwrap()).into())
            .collect();
        (names, BTreeMap::from_iter(header.metadata().clone().unwrap_or_default()), values)
    };
    let ((names, metadata, values), (our_names, our_metadata, our_values)) = (read(theirs), read(ours));
    let mut found = Vec::from_iter(text_difference(&metadata, &our_metadata));
    if names != our_names {
        found.push(format!("theirs has {names:?}, ours {our_names:?}"));
        return found;
    }
    let off: f64 = values.iter().zip(&our_values).map(|(left, right)| (left - right).powi(2)).sum();
    let whole: f64 = values.iter().map(|value| value.powi(2)).sum();
    let relative = if whole == 0.0 { off.sqrt() } else { (off / whole).sqrt() };
    if relative.is_nan() || relative > tolerance {
        found.push(format!("{relative:.2e} off"));
    }
    found
}

fn compare_animations(theirs: &[u8], ours: &[u8]) -> Vec<String> {
    let read = |bytes: &[u8]| {
        let mut decoder = WebPDecoder::new(Cursor::new(bytes)).unwrap();
        let exif = decoder.exif_metadata().unwrap().unwrap_or_default();
        (texts(&exif), decoder.into_frames().collect_frames().unwrap())
    };
    let ((text, frames), (our_text, our_frames)) = (read(theirs), read(ours));
    let mut found = Vec::from_iter(text_difference(&text, &our_text));
    if frames.len() != our_frames.len() {
        found.push(format!("theirs has {} frames, ours {}", frames.len(), our_frames.len()));
    }
    for (index, (left, right)) in frames.iter().zip(&our_frames).enumerate() {
        let shape = |frame: &Frame| (frame.buffer().dimensions(), frame.delay().numer_denom_ms());
        if shape(left) != shape(right) {
            found.push(format!("frame {index}: theirs is {:?}, ours {:?}", shape(left), shape(right)));
            continue;
        }
        let values = left.buffer().iter().zip(right.buffer().iter());
        let sum: f64 = values.map(|(left, right)| f64::from(left.abs_diff(*right))).sum();
        let mean = sum / left.buffer().len() as f64;
        if mean > LOSSY {
            found.push(format!("frame {index} is {mean:.1} levels off in the mean"));
        }
    }
    found
}

/// The workflow's texts in Exif data: those that begin with a word and a colon, up to their NUL.
fn texts(exif: &[u8]) -> BTreeMap<String, String> {
    let pieces = exif.split(|byte| *byte == 0).map(String::from_utf8_lossy);
    let texts = pieces.filter_map(|piece| piece.find("prompt:{").map(|at| piece[at..].to_owned()));
    texts
        .filter_map(|text| text.split_once(':').map(|(key, text)| (key.to_owned(), text.to_owned())))
        .collect()
}

/// A test for each workflow, and one that none is left out. Wants `shared()` and `recording()` beside it.
macro_rules! workflows {
    ($($name:ident)*) => {
        #[test]
        fn every_recorded_workflow_is_replayed() {
            let mut replayed = vec![$(stringify!($name)),*];
            replayed.sort_unstable();
            assert_eq!(recording().names(), replayed);
        }

        mod comfyui_s_files_come_of {
            $(#[tokio::test]
            async fn $name() {
                super::replay::replay(&super::shared(), super::recording(), stringify!($name)).await;
            })*
        }
    };
}
pub(crate) use workflows;
