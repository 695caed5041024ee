//! `darkroom pack` end to end, with the embedded model.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod program;

use std::path::Path;

use darkroom::pack_json::PackJson;
use darkroom::picture::read_text_chunks;
use program::{darkroom, largest_difference, open};
use tempfile::TempDir;

const CHARACTER: &str = "1girl, blonde hair, blue eyes";
/// A picture drawn in a batch may differ from one drawn alone by rounding: at most so many 8-bit levels.
const BATCH_LEVELS: u8 = 1;

fn pack(folder: &Path, more: &[&str]) -> program::Run {
    let folder = folder.to_str().unwrap();
    let fixed = ["pack", "--character", CHARACTER, "--steps", "2", "--out", folder];
    darkroom(fixed.iter().chain(more))
}

fn index(folder: &Path) -> PackJson {
    serde_json::from_slice(&std::fs::read(folder.join("pack.json")).unwrap()).unwrap()
}

#[test]
fn a_pack_is_at_least_twelve_pictures_a_contact_sheet_and_an_index() {
    let folder = TempDir::new().unwrap();
    let run = pack(folder.path(), &[]).worked();
    let index = index(folder.path());
    assert!(index.images.len() >= 12);
    assert_eq!(index.character, CHARACTER);
    assert_eq!(index.settings.steps, 2);
    for image in &index.images {
        let path = folder.path().join(&image.file);
        assert_eq!(open(&path).dimensions(), (image.width as u32, image.height as u32));
        assert_eq!((image.width, image.height), (128, 128));
        assert!(image.prompt.starts_with(CHARACTER) && image.prompt.len() > CHARACTER.len());
        let chunks = read_text_chunks(&path).unwrap();
        assert!(chunks.iter().any(|c| c.keyword == "parameters" && c.text.starts_with(&image.prompt)));
    }
    let sheet = open(&folder.path().join(&index.contact_sheet));
    assert!(sheet.width() > 4 * 128 && sheet.height() > 3 * 128, "{:?}", sheet.dimensions());
    // Standard output names every picture and the sheet; nothing else lies in the folder but the index.
    let mut named: Vec<_> = run.paths();
    named.push(folder.path().join("pack.json"));
    let mut there: Vec<_> = std::fs::read_dir(folder.path()).unwrap().map(|e| e.unwrap().path()).collect();
    named.sort();
    there.sort();
    assert_eq!(named, there);
}

#[test]
fn chosen_expressions_come_in_the_order_asked_for_and_differ() {
    let folder = TempDir::new().unwrap();
    pack(folder.path(), &["--expressions", "wink,happy,angry"]).worked();
    let index = index(folder.path());
    let names: Vec<&str> = index.images.iter().map(|image| image.name.as_str()).collect();
    assert_eq!(names, ["wink", "smile_gentle", "angry"]);
    assert!(index.images.windows(2).all(|pair| pair[0].seed == pair[1].seed));
    let pictures: Vec<_> = index.images.iter().map(|image| open(&folder.path().join(&image.file))).collect();
    assert!(pictures.windows(2).all(|pair| largest_difference(&pair[0], &pair[1]) > 20));
}

#[test]
fn a_picture_does_not_depend_on_how_many_are_drawn_at_once() {
    let (together, alone) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    pack(together.path(), &["--expressions", "wink,sad,angry", "--max-batch", "3"]).worked();
    pack(alone.path(), &["--expressions", "wink,sad,angry", "--max-batch", "1"]).worked();
    for image in index(together.path()).images {
        let (a, b) = (open(&together.path().join(&image.file)), open(&alone.path().join(&image.file)));
        assert!(largest_difference(&a, &b) <= BATCH_LEVELS, "{}", image.name);
    }
}

#[test]
fn an_unknown_expression_names_the_closest_and_draws_nothing() {
    let folder = TempDir::new().unwrap();
    let out = folder.path().join("pack");
    pack(&out, &["--expressions", "angyr"]).refused(2, &["angyr", "did you mean angry", "smile_gentle"]);
    assert!(!out.exists());
}
