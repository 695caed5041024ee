//! What a header tells of a file without its weights being read: for which models it was made, and which words call
//! it. Each header is read once, while its file stays the same.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use darkroom_models::controlnet::{ControlNetFamily, ControlNetForm, ControlNetKind};
use darkroom_models::lora::{Family, LoraFile};
use darkroom_models::upscaler::Architecture;
use darkroom_models::weights::{Header, WeightFile};
use serde_json::Value;

use super::{AuxiliaryEntry, AuxiliaryKind, Catalog, Entry, Location, stamp};
use crate::embedded;

/// Most trigger words of one LoRA.
const TRIGGER_WORDS: usize = 8;
/// Longest trigger word, characters.
const TRIGGER_CHARACTERS: usize = 100;
/// Words that a training's caption counts give, where nobody wrote down which ones call the LoRA.
const COUNTED_WORDS: usize = 3;

/// Columns of the text that a network's cross-attention reads: 768 in SD 1.5, 2048 in SDXL. Networks of different
/// widths never fit each other.
pub type Width = usize;

/// What a header tells of a LoRA, a ControlNet or another network.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct About {
    /// `sdxl`, `sd15`, `flux`, …, where that can be told.
    pub family: Option<&'static str>,
    /// What its cross-attention reads, where it has any.
    pub width: Option<Width>,
    /// Words that call the character or style, from the file's metadata.
    pub trigger_words: Vec<String>,
    /// Why it cannot be used, if its header says so.
    pub problem: Option<String>,
}

type Key = (u64, Option<SystemTime>);

/// What was read of each file.
#[derive(Debug, Default)]
pub(super) struct Headers {
    auxiliaries: Mutex<HashMap<(AuxiliaryKind, String), (Key, About)>>,
    models: Mutex<HashMap<String, (Key, Option<Width>)>>,
}

impl Catalog {
    /// What a file's header tells.
    pub fn about(&self, entry: &AuxiliaryEntry) -> About {
        let (name, key) = ((entry.kind, entry.id.clone()), (entry.bytes, entry.modified));
        let mut known = self.headers.auxiliaries.lock().unwrap_or_else(PoisonError::into_inner);
        match known.get(&name) {
            Some((then, about)) if *then == key => about.clone(),
            _ => {
                let read = entry.open().map_err(|error| error.to_string());
                let about = read.and_then(|file| about(entry.kind, &file)).unwrap_or_else(|error| {
                    tracing::warn!(id = entry.id, error, "a {} cannot be used", entry.kind.name());
                    About { problem: Some(entry.for_clients(&error)), ..About::default() }
                });
                // Files come and go; what is left of the gone ones is bounded.
                if known.len() > super::MOST {
                    known.clear();
                }
                known.insert(name, (key, about.clone()));
                about
            }
        }
    }

    /// What a model's cross-attention reads; `None` where its header does not tell.
    pub fn width(&self, model: &Entry) -> Option<Width> {
        let key = match &model.location {
            Location::Embedded => (model.bytes, None),
            Location::Path(path) => {
                let stamp = stamp(path);
                (stamp.bytes, stamp.modified)
            }
            Location::Part { .. } | Location::QwenImage(_) => return None,
        };
        let mut known = self.headers.models.lock().unwrap_or_else(PoisonError::into_inner);
        match known.get(&model.id) {
            Some((then, width)) if *then == key => *width,
            _ => {
                let file = match &model.location {
                    Location::Embedded => WeightFile::from_static(&model.id, embedded::weights()),
                    Location::Path(path) => WeightFile::open(&denoiser(path)),
                    Location::Part { .. } | Location::QwenImage(_) => return None,
                };
                let width = file.ok().and_then(|file| cross_attention(file.header()));
                if known.len() > super::MOST {
                    known.clear();
                }
                known.insert(model.id.clone(), (key, width));
                width
            }
        }
    }
}

/// The file with the denoising network: a checkpoint itself, or a diffusers folder's.
fn denoiser(path: &Path) -> PathBuf {
    if !path.is_dir() {
        return path.to_owned();
    }
    let names = ["diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.fp16.safetensors"];
    let files = names.map(|name| path.join("unet").join(name));
    files.iter().find(|file| file.is_file()).cloned().unwrap_or_else(|| path.join("unet").join(names[0]))
}

/// What the header of `file` tells, or why it cannot be used.
fn about(kind: AuxiliaryKind, file: &Arc<WeightFile>) -> Result<About, String> {
    match kind {
        AuxiliaryKind::Lora => lora(file),
        AuxiliaryKind::ControlNet => control_net(file.header()),
        AuxiliaryKind::Upscaler => {
            Architecture::detect(file).map_err(|error| error.to_string()).map(|_| About::default())
        }
        AuxiliaryKind::Depth | AuxiliaryKind::Detector | AuxiliaryKind::Matting => Ok(About::default()),
    }
}

/// By the same reading as when it is drawn with, so that what would be refused then is refused before.
fn lora(file: &Arc<WeightFile>) -> Result<About, String> {
    let lora = LoraFile::open(Arc::clone(file)).map_err(|error| error.to_string())?;
    let family = lora.family().and_then(|family| match family {
        Family::Sd15 => Some("sd15"),
        Family::Sd2 => Some("sd2"),
        Family::Sdxl => Some("sdxl"),
        Family::Sd3 => Some("sd3"),
        Family::Flux => Some("flux"),
        Family::QwenImage => Some("qwen_image"),
        Family::Wan => Some("wan"),
        Family::Cascade => Some("cascade"),
        _ => None,
    });
    let header = file.header();
    Ok(About {
        family: family.or_else(|| stated_family(header)),
        width: lora.context_width(),
        trigger_words: trigger_words(header),
        problem: None,
    })
}

fn control_net(header: &Header) -> Result<About, String> {
    let Some(ControlNetKind { family, form }) = ControlNetKind::of(header) else {
        return Err("it has no hint encoder, so it is no ControlNet: pick a ControlNet file".to_owned());
    };
    let problem = (form != ControlNetForm::Plain).then(|| form.problem()).flatten();
    let family = match family {
        ControlNetFamily::Sdxl => Some("sdxl"),
        ControlNetFamily::Sd15 => Some("sd15"),
        ControlNetFamily::Sd2 => Some("sd2"),
        _ => stated_family(header),
    };
    let width = cross_attention(header);
    Ok(About { family, width, trigger_words: Vec::new(), problem: problem.map(str::to_owned) })
}

/// Columns of the key projection of text.
fn cross_attention(header: &Header) -> Option<Width> {
    let keys = header.tensors.iter().find(|(name, _)| name.ends_with("attn2.to_k.weight"));
    keys.and_then(|(_, tensor)| tensor.shape.get(1).copied())
}

/// By what the file says of itself.
fn stated_family(header: &Header) -> Option<&'static str> {
    let said = |name: &str| header.metadata.get(name).map(|text| text.to_ascii_lowercase());
    let said = said("modelspec.architecture").or_else(|| said("ss_base_model_version"))?;
    if said.starts_with("stable-diffusion-xl") || said.starts_with("sdxl") {
        Some("sdxl")
    } else if said.starts_with("stable-diffusion-v1") || said.starts_with("sd_v1") || said.starts_with("sd_1")
    {
        Some("sd15")
    } else {
        None
    }
}

/// Words that call what a LoRA was trained on: as its author wrote them down, else the captions' most frequent.
fn trigger_words(header: &Header) -> Vec<String> {
    for name in ["modelspec.trigger_phrase", "trigger_words", "trigger_word", "ss_trigger_words"] {
        let Some(text) = header.metadata.get(name) else { continue };
        let words = match serde_json::from_str::<Value>(text) {
            Ok(Value::Array(list)) => list.iter().filter_map(Value::as_str).map(str::to_owned).collect(),
            _ => text.split(',').map(str::to_owned).collect(),
        };
        let words = tidy(words, TRIGGER_WORDS);
        if !words.is_empty() {
            return words;
        }
    }
    header.metadata.get("ss_tag_frequency").map(|text| counted_words(text)).unwrap_or_default()
}

/// `{"folder": {"tag": count}}`, as kohya's scripts write it: the tags that every caption has.
fn counted_words(text: &str) -> Vec<String> {
    let Ok(Value::Object(folders)) = serde_json::from_str::<Value>(text) else { return Vec::new() };
    let mut counts: HashMap<String, u64> = HashMap::new();
    for tags in folders.values().filter_map(Value::as_object) {
        for (tag, count) in tags {
            let sum = counts.entry(tag.trim().to_owned()).or_default();
            *sum = sum.saturating_add(count.as_u64().unwrap_or(0));
        }
    }
    let most = counts.values().copied().max().unwrap_or(0);
    let mut always: Vec<String> =
        counts.into_iter().filter(|(_, count)| *count == most && most > 1).map(|(tag, _)| tag).collect();
    always.sort();
    tidy(always, COUNTED_WORDS)
}

fn tidy(words: Vec<String>, most: usize) -> Vec<String> {
    let words = words.into_iter().map(|word| word.trim().to_owned());
    let fit = |word: &String| {
        !word.is_empty() && word.chars().count() <= TRIGGER_CHARACTERS && !word.chars().any(char::is_control)
    };
    words.filter(fit).take(most).collect()
}

#[cfg(test)]
mod tests {
    use std::fs;

    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    /// A safetensors file with tensors of these shapes, all zero bytes, and this metadata.
    fn file(tensors: &[(&str, &[usize])], metadata: &[(&str, &str)]) -> Vec<u8> {
        let mut header = serde_json::Map::new();
        let metadata: HashMap<&str, &str> = metadata.iter().copied().collect();
        header.insert("__metadata__".into(), json!(metadata));
        let mut end = 0;
        for (name, shape) in tensors {
            let bytes = shape.iter().product::<usize>() * 2;
            let entry = json!({"dtype": "F16", "shape": shape, "data_offsets": [end, end + bytes]});
            header.insert((*name).to_owned(), entry);
            end += bytes;
        }
        let header = Value::Object(header).to_string();
        [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), &vec![0; end]].concat()
    }

    fn catalog(files: &[(&str, Vec<u8>)]) -> (tempfile::TempDir, Catalog) {
        let folder = tempfile::TempDir::new().unwrap();
        for (path, bytes) in files {
            let path = folder.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, bytes).unwrap();
        }
        let catalog = Catalog::open(Some(folder.path()), None).unwrap();
        (folder, catalog)
    }

    fn of(catalog: &Catalog, kind: AuxiliaryKind, id: &str) -> About {
        catalog.about(&catalog.find_auxiliary(kind, id).unwrap())
    }

    const KOHYA_KEY: &str = "lora_unet_input_blocks_4_1_transformer_blocks_0_attn2_to_k.lora_down.weight";

    #[test]
    fn a_loras_family_width_and_words_come_from_its_header() {
        let (_folder, catalog) = catalog(&[
            (
                "loras/mia.safetensors",
                file(&[(KOHYA_KEY, &[4, 2048])], &[("modelspec.trigger_phrase", "mia, red hat")]),
            ),
            (
                "loras/old.safetensors",
                file(&[(KOHYA_KEY, &[4, 768])], &[("trigger_words", r#"["old", " "]"#)]),
            ),
            (
                "loras/style/kohya.safetensors",
                file(
                    &[(KOHYA_KEY, &[4, 768])],
                    &[("ss_tag_frequency", r#"{"10_a": {"kat": 9, "hat": 3}, "5_b": {"kat": 2}}"#)],
                ),
            ),
            ("loras/none.safetensors", file(&[("conv_in.weight", &[4, 4])], &[])),
            ("loras/broken.safetensors", b"no".to_vec()),
        ]);
        let lora = |id| of(&catalog, AuxiliaryKind::Lora, id);
        assert_eq!((lora("mia").family, lora("mia").width), (Some("sdxl"), Some(2048)));
        assert_eq!(lora("mia").trigger_words, ["mia", "red hat"]);
        assert_eq!((lora("old").family, lora("old").trigger_words), (Some("sd15"), vec!["old".to_owned()]));
        assert_eq!(lora("style/kohya").trigger_words, ["kat"]);
        let problem = lora("none").problem.unwrap();
        assert!(problem.starts_with("none.safetensors: ") && problem.contains("not a LoRA"), "{problem}");
        let problem = lora("broken").problem.unwrap();
        assert!(problem.starts_with("broken.safetensors: "), "{problem}");
    }

    #[test]
    fn a_controlnets_family_comes_from_its_networks_form() {
        let hint = ("controlnet_cond_embedding.conv_in.weight", &[16_usize, 3, 3, 3][..]);
        let keys = |width: &'static [usize]| {
            ("down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k.weight", width)
        };
        let (_folder, catalog) = catalog(&[
            ("controlnet/canny_sd15.safetensors", file(&[hint, keys(&[8, 768])], &[])),
            ("controlnet/canny_xl.safetensors", file(&[hint, ("add_embedding.linear_1.bias", &[8])], &[])),
            ("controlnet/lora.safetensors", file(&[(KOHYA_KEY, &[4, 768])], &[])),
        ]);
        let control = |id| of(&catalog, AuxiliaryKind::ControlNet, id);
        assert_eq!(control("canny_sd15").family, Some("sd15"));
        assert_eq!((control("canny_xl").family, control("canny_xl").problem), (Some("sdxl"), None));
        assert!(control("lora").problem.is_some());
    }

    #[test]
    fn files_for_other_models_and_of_other_forms_are_told_before_they_are_drawn_with() {
        const HADAMARD: &str =
            "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k.hada_w1_b";
        let union: [(&str, &[usize]); 3] = [
            ("controlnet_cond_embedding.conv_in.weight", &[16, 3, 3, 3]),
            ("add_embedding.linear_1.bias", &[8]),
            ("task_embedding", &[6, 320]),
        ];
        let (_folder, catalog) = catalog(&[
            (
                "loras/flux.safetensors",
                file(&[("transformer.single_transformer_blocks.3.attn.to_q.lora_A.weight", &[4, 8])], &[]),
            ),
            // Its metadata is wrong.
            (
                "loras/loha.safetensors",
                file(
                    &[(HADAMARD, &[4, 768])],
                    &[("modelspec.architecture", "stable-diffusion-xl-v1-base/lora")],
                ),
            ),
            ("loras/oft.safetensors", file(&[("lora_unet_mid_block.oft_blocks", &[4, 4])], &[])),
            ("controlnet/union.safetensors", file(&union, &[])),
        ]);
        let lora = |id| of(&catalog, AuxiliaryKind::Lora, id);
        assert_eq!(lora("flux").family, Some("flux"));
        assert_eq!((lora("loha").family, lora("loha").width), (Some("sd15"), Some(768)));
        assert!(lora("oft").problem.unwrap().contains("not supported"));
        let problem = of(&catalog, AuxiliaryKind::ControlNet, "union").problem.unwrap();
        assert!(problem.contains("union"), "{problem}");
    }

    #[test]
    fn a_file_that_changed_is_read_again() {
        let (folder, catalog) =
            catalog(&[("loras/a.safetensors", file(&[(KOHYA_KEY, &[4, 768])], &[("trigger_words", "one")]))]);
        assert_eq!(of(&catalog, AuxiliaryKind::Lora, "a").trigger_words, ["one"]);
        let changed = file(&[(KOHYA_KEY, &[4, 768])], &[("trigger_words", "another")]);
        fs::write(folder.path().join("loras/a.safetensors"), changed).unwrap();
        assert_eq!(of(&catalog, AuxiliaryKind::Lora, "a").trigger_words, ["another"]);
    }

    #[test]
    fn the_built_in_model_reads_text_of_its_own_width() {
        let catalog = Catalog::open(None, None).unwrap();
        let model = catalog.find("embedded").unwrap();
        assert_eq!(catalog.width(&model), Some(128));
        assert_eq!(catalog.width(&model), Some(128));
    }

    proptest! {
        #[test]
        fn no_metadata_makes_the_reader_panic(text in ".{0,200}", name in "[a-z_.]{0,20}") {
            let json = format!("{{\"a\": {{{text:?}: 3}}}}");
            for text in [text.as_str(), json.as_str()] {
                let bytes = file(&[], &[("ss_tag_frequency", text), ("trigger_words", text), (name.as_str(), text)]);
                if let Ok(file) = WeightFile::from_static("x", Box::leak(bytes.into_boxed_slice())) {
                    prop_assert!(trigger_words(file.header()).len() <= TRIGGER_WORDS);
                    prop_assert!(about(AuxiliaryKind::Lora, &Arc::new(file)).is_err(), "it has no tensors");
                }
            }
        }
    }
}
