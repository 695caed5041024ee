//! Files that people pass for weights and that are something else: named, with what to do about it.

use super::WeightsError;

/// Fails with a helpful error when `bytes` are recognisably another kind of file; succeeds when they are
/// nothing known.
pub(super) fn refuse(file: &str, bytes: &[u8]) -> Result<(), WeightsError> {
    let Some((found, hint)) = recognise(bytes) else { return Ok(()) };
    Err(WeightsError::Foreign { file: file.to_owned(), found, hint })
}

fn recognise(bytes: &[u8]) -> Option<(&'static str, &'static str)> {
    const PICKLE: (&str, &str) =
        ("a pickle file (.ckpt, .pt, .bin)", "pickle files are not accepted; convert it to safetensors");
    let text_start = bytes.trim_ascii_start();
    let begins = |prefix: &[u8]| {
        text_start.get(..prefix.len()).is_some_and(|start| start.eq_ignore_ascii_case(prefix))
    };
    match bytes {
        // torch.save since 1.6 writes a zip archive around the pickle, before that a bare one.
        [b'P', b'K', 3 | 5, 4 | 6, ..] | [0x80, 2..=5, ..] => Some(PICKLE),
        [b'G', b'G', b'U', b'F', ..] => {
            Some(("a GGUF file", "GGUF files are not accepted; use the model's safetensors files"))
        }
        [0x89, b'P', b'N', b'G', ..] | [0xff, 0xd8, 0xff, ..] => {
            Some(("a picture", "pass the model's safetensors file"))
        }
        _ if begins(b"version https://git-lfs") => {
            Some(("a Git LFS pointer, not the weights", "run `git lfs pull` where it was cloned"))
        }
        _ if begins(b"<!doctype") || begins(b"<html") || begins(b"<?xml") || begins(b"<head") => Some((
            "a web page",
            "the download gave a page instead of the file; log in or accept the licence there, then download it \
             again",
        )),
        _ if begins(b"{") || begins(b"[") => {
            Some(("JSON text", "pass the .safetensors file, or the folder that holds model_index.json"))
        }
        _ => None,
    }
}
