//! A recipe as EXIF, the one kind of metadata that JPEG and WebP share: AUTOMATIC1111's text where its web UI
//! writes it (`UserComment` in UTF-16), ComfyUI's workflow where its WebP nodes write it (`Model`, after the word
//! `prompt:`).
//!
//! The structure is TIFF's: a header, then directories of 12-byte entries, each with its longer values behind it.

use super::Recipe;

/// Camera model.
const MODEL: u16 = 0x0110;
/// Where the EXIF directory is.
const EXIF_DIRECTORY: u16 = 0x8769;
/// A comment with its character code.
const USER_COMMENT: u16 = 0x9286;

/// TIFF's types.
const ASCII: u16 = 2;
const LONG: u16 = 4;
const UNDEFINED: u16 = 7;

/// Big-endian, so that readers that take `UserComment`'s byte order from here agree with those that always take
/// it to be big-endian, as AUTOMATIC1111 does.
const HEADER: &[u8] = b"MM\0*\0\0\0\x08";

/// EXIF data of at most `most` bytes that says how `recipe` was made: both texts, or AUTOMATIC1111's alone where
/// both are too long. `None` where not even that fits.
pub(super) fn of_recipe(recipe: &Recipe, most: usize) -> Option<Vec<u8>> {
    let (parameters, prompt) = (recipe.parameters(), recipe.comfyui_text());
    let both = tiff(&parameters, Some(&prompt));
    if both.len() <= most {
        return Some(both);
    }
    let one = tiff(&parameters, None);
    let fits = one.len() <= most;
    tracing::debug!(
        bytes = both.len(),
        most,
        kept = if fits { "parameters" } else { "nothing" },
        "the recipe is too long for this format's metadata"
    );
    fits.then_some(one)
}

/// EXIF data with texts, by their tags; `None` without any.
pub(super) fn of_texts(texts: &[(u16, String)]) -> Option<Vec<u8>> {
    let entry = |(tag, text): &(u16, String)| {
        let mut data = text.clone().into_bytes();
        data.push(0);
        Entry { tag: *tag, kind: ASCII, data }
    };
    let mut entries: Vec<Entry> = texts.iter().map(entry).collect();
    entries.sort_by_key(|entry| entry.tag);
    (!entries.is_empty()).then(|| [HEADER, &directory(HEADER.len(), &entries)].concat())
}

fn tiff(parameters: &str, prompt: Option<&str>) -> Vec<u8> {
    let comment: Vec<u8> =
        b"UNICODE\0".iter().copied().chain(parameters.encode_utf16().flat_map(u16::to_be_bytes)).collect();
    let model = prompt.map(|prompt| Entry {
        tag: MODEL,
        kind: ASCII,
        data: format!("prompt:{prompt}\0").into_bytes(),
    });
    let main = |exif_at: usize| {
        let pointer = Entry { tag: EXIF_DIRECTORY, kind: LONG, data: offset(exif_at).to_vec() };
        let entries: Vec<Entry> = model.iter().cloned().chain([pointer]).collect();
        directory(HEADER.len(), &entries)
    };
    // The first directory has the same length wherever the second one is.
    let exif_at = HEADER.len() + main(0).len();
    let exif = directory(exif_at, &[Entry { tag: USER_COMMENT, kind: UNDEFINED, data: comment }]);
    [HEADER, &main(exif_at), &exif].concat()
}

/// A value of a directory.
#[derive(Clone)]
struct Entry {
    tag: u16,
    kind: u16,
    data: Vec<u8>,
}

/// A directory that stands `at` bytes into the data; `entries` in the order of their tags.
fn directory(at: usize, entries: &[Entry]) -> Vec<u8> {
    let mut table = (entries.len() as u16).to_be_bytes().to_vec();
    let values_at = at + 2 + 12 * entries.len() + 4;
    let mut values = Vec::new();
    for Entry { tag, kind, data } in entries {
        table.extend(tag.to_be_bytes());
        table.extend(kind.to_be_bytes());
        let count = if *kind == LONG { data.len() / 4 } else { data.len() };
        table.extend(offset(count));
        if let Ok(short) = <[u8; 4]>::try_from(data.as_slice()) {
            table.extend(short);
        } else {
            table.extend(offset(values_at + values.len()));
            values.extend(data);
            values.resize(values.len().next_multiple_of(2), 0);
        }
    }
    table.extend(offset(0)); // no further directory
    table.extend(values);
    table
}

/// Four bytes; what is longer than they can say fits no format and is left out for its length.
fn offset(number: usize) -> [u8; 4] {
    u32::try_from(number).unwrap_or(u32::MAX).to_be_bytes()
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::picture::Origin;

    fn number(bytes: &[u8]) -> usize {
        bytes.iter().fold(0, |number, &byte| number << 8 | usize::from(byte))
    }

    /// The value of `tag` in the directory at `at`, following offsets as any reader does.
    fn value(exif: &[u8], at: usize, tag: u16) -> Option<&[u8]> {
        let count = number(&exif[at..at + 2]);
        let entries = exif[at + 2..].chunks_exact(12).take(count);
        let entry = { entries }.find(|entry| entry[..2] == tag.to_be_bytes())?;
        let length = number(&entry[4..8]) * if number(&entry[2..4]) == 4 { 4 } else { 1 };
        if length <= 4 {
            return Some(&entry[8..8 + length]);
        }
        let start = number(&entry[8..12]);
        Some(&exif[start..start + length])
    }

    /// AUTOMATIC1111's text and ComfyUI's workflow from EXIF data.
    pub(crate) fn texts(exif: &[u8]) -> (Option<String>, Option<String>) {
        assert_eq!(&exif[..4], b"MM\0*");
        let main = number(&exif[4..8]);
        let model = value(exif, main, MODEL).map(|text| {
            let text = std::str::from_utf8(text).unwrap();
            text.strip_prefix("prompt:").unwrap().strip_suffix('\0').unwrap().to_owned()
        });
        let second = number(value(exif, main, EXIF_DIRECTORY).unwrap());
        let comment = value(exif, second, USER_COMMENT).map(|comment| {
            let units: Vec<u16> = comment
                .strip_prefix(b"UNICODE\0")
                .unwrap()
                .chunks_exact(2)
                .map(|unit| u16::from_be_bytes([unit[0], unit[1]]))
                .collect();
            String::from_utf16(&units).unwrap()
        });
        (comment, model)
    }

    pub(crate) fn recipe(prompt: &str) -> Recipe {
        Recipe {
            prompt: prompt.into(),
            width: 64,
            height: 32,
            model: "tiny.safetensors".into(),
            ..crate::picture::recipe::tests::recipe(Origin::Empty)
        }
    }

    #[test]
    fn both_texts_read_back_whatever_letters_they_have() {
        for prompt in ["1girl", "café, 少女 \u{1f600}", "odd", ""] {
            let recipe = recipe(prompt);
            let exif = of_recipe(&recipe, usize::MAX).unwrap();
            assert_eq!(texts(&exif), (Some(recipe.parameters()), Some(recipe.comfyui_text())));
        }
    }

    #[test]
    fn what_is_too_long_goes_and_the_shorter_text_stays() {
        let recipe = recipe("cat");
        let both = of_recipe(&recipe, usize::MAX).unwrap();
        assert_eq!(of_recipe(&recipe, both.len()), Some(both.clone()));
        let one = of_recipe(&recipe, both.len() - 1).unwrap();
        assert_eq!(texts(&one), (Some(recipe.parameters()), None));
        assert_eq!(of_recipe(&recipe, one.len() - 1), None);
    }
}
