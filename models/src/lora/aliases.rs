//! Which layer a module of a LoRA file means: every spelling of a network's layers, with dots or underscores, ldm,
//! diffusers or OpenCLIP, behind every prefix that trainers write.

use std::collections::{BTreeSet, HashMap};

use crate::checkpoint::keys;
use crate::unet::UNetConfig;
use crate::weights::Transform;

/// A layer that a module means, or the third of a packed projection that goes to it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Place {
    /// Its canonical name, as the network calls it.
    pub(super) layer: String,
    /// Which third of the module's rows: 0 is q, 1 is k, 2 is v.
    pub(super) third: Option<usize>,
}

/// The spellings of one network's layers, with underscores.
pub(super) type Spellings = HashMap<String, Vec<Place>>;

/// A network that LoRAs change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Network {
    /// A UNet or a transformer: files for both are prefixed alike.
    Denoiser,
    ClipL,
    ClipG,
}

/// The spellings of all layers of a model.
#[derive(Debug, Default)]
pub(super) struct Aliases {
    pub(super) denoiser: Spellings,
    pub(super) clip_l: Spellings,
    pub(super) clip_g: Spellings,
}

/// Prefixes that say which network a module belongs to.
const PREFIXES: &[(&str, Network)] = &[
    ("lora_unet_", Network::Denoiser),
    ("lycoris_", Network::Denoiser),
    ("unet.", Network::Denoiser),
    ("transformer.", Network::Denoiser),
    ("model.diffusion_model.", Network::Denoiser),
    ("diffusion_model.", Network::Denoiser),
    ("lora_te1_", Network::ClipL),
    ("lora_te2_", Network::ClipG),
    ("lora_te_", Network::ClipL),
    ("text_encoder_2.", Network::ClipG),
    ("text_encoder.", Network::ClipL),
    ("text_encoders.clip_l.transformer.", Network::ClipL),
    ("text_encoders.clip_g.transformer.", Network::ClipG),
    ("clip_l.transformer.", Network::ClipL),
    ("clip_g.transformer.", Network::ClipG),
];

/// What PEFT wraps names in.
const WRAPPER: &str = "base_model.model.";

/// What OpenCLIP calls its layers, which are no transformer's of the name `transformer`.
const OPEN_CLIP: &str = "transformer.resblocks.";

/// The network that a module's prefix names, and the rest of its name; `None` for names without a known prefix.
pub(super) fn scope(module: &str) -> (Option<Network>, &str) {
    let module = module.strip_prefix(WRAPPER).unwrap_or(module);
    if module.starts_with(OPEN_CLIP) {
        return (None, module);
    }
    for (prefix, network) in PREFIXES {
        if let Some(rest) = module.strip_prefix(prefix) {
            return (Some(*network), rest.strip_prefix(WRAPPER).unwrap_or(rest));
        }
    }
    (None, module)
}

impl Aliases {
    /// The layers that `module` means, and the network that they are in.
    pub(super) fn find(&self, module: &str) -> Option<(Network, &[Place])> {
        let (network, rest) = scope(module);
        let spelled = flat(rest);
        let places = |network| match network {
            Network::Denoiser => self.denoiser.get(&spelled),
            Network::ClipG => self.clip_g.get(clip_spelling(&spelled)),
            Network::ClipL => self.clip_l.get(clip_spelling(&spelled)),
        };
        let networks = match network {
            Some(network) => vec![network],
            None => vec![Network::Denoiser, Network::ClipL],
        };
        networks.into_iter().find_map(|network| Some((network, places(network)?.as_slice())))
    }
}

/// Old diffusers versions name the attention's processor between the attention and its layers.
fn flat(name: &str) -> String {
    name.replace(".processor.", ".").replace('.', "_")
}

fn clip_spelling(spelled: &str) -> &str {
    spelled.strip_prefix("text_model_").unwrap_or(spelled)
}

/// The names of layers among the names of tensors. Embedding tables are none: nothing applies changes to them.
fn layers<'a>(names: impl Iterator<Item = &'a str>) -> impl Iterator<Item = &'a str> {
    names
        .filter_map(|name| name.strip_suffix(".weight"))
        .filter(|layer| !layer.ends_with("_embedding") || !layer.contains("embeddings."))
}

/// Spellings of the layers of a transformer that everyone calls as diffusers does, given the canonical names of its
/// tensors.
pub(super) fn transformer<'a>(names: impl Iterator<Item = &'a str>) -> Spellings {
    let mut spellings = Spellings::new();
    for layer in layers(names) {
        let place = Place { layer: layer.to_owned(), third: None };
        if let Some(bare) = layer.strip_suffix(".to_out.0") {
            spellings.insert(flat(bare) + "_to_out", vec![place.clone()]);
        }
        spellings.insert(flat(layer), vec![place]);
    }
    spellings
}

/// Spellings of a UNet's layers, given the canonical names of its tensors.
pub(super) fn unet<'a>(names: impl Iterator<Item = &'a str>, config: &UNetConfig) -> Spellings {
    let ldm = ldm_prefixes(config);
    let mut spellings = Spellings::new();
    for layer in layers(names) {
        let mut add = |spelled: String| {
            let place = Place { layer: layer.to_owned(), third: None };
            spellings.entry(spelled).or_insert_with(|| vec![place]);
        };
        add(flat(layer));
        if let Some(bare) = layer.strip_suffix(".to_out.0") {
            add(flat(bare) + "_to_out");
        }
        let dotted = format!("{layer}.");
        for (end, _) in dotted.match_indices('.') {
            let (prefix, rest) = dotted.split_at(end + 1);
            for ldm in ldm.get(prefix).into_iter().flatten() {
                let spelled = format!("{ldm}{rest}");
                let spelled = spelled.trim_end_matches('.');
                add(flat(spelled));
                if let Some(bare) = spelled.strip_suffix(".to_out.0") {
                    add(flat(bare) + "_to_out");
                }
            }
        }
    }
    spellings
}

/// What ldm calls the blocks and layers of such a UNet, by canonical prefix (`down_blocks.1.attentions.0.`).
fn ldm_prefixes(config: &UNetConfig) -> HashMap<String, Vec<String>> {
    const BLOCK: &[&str] = &[
        "0.in_layers.0.",
        "0.in_layers.2.",
        "0.emb_layers.1.",
        "0.out_layers.0.",
        "0.out_layers.3.",
        "0.skip_connection.",
        "1.",
    ];
    const MIDDLE_END: &[&str] = &[
        "2.in_layers.0.",
        "2.in_layers.2.",
        "2.emb_layers.1.",
        "2.out_layers.0.",
        "2.out_layers.3.",
        "2.skip_connection.",
    ];
    const REST: &[&str] = &[
        "input_blocks.0.0.",
        "time_embed.0.",
        "time_embed.2.",
        "label_emb.0.0.",
        "label_emb.0.2.",
        "out.0.",
        "out.2.",
    ];
    let layers = config.layers_per_block;
    let blocks = config.block_out_channels.len() * (layers + 1);
    let mut names: Vec<String> = REST.iter().map(ToString::to_string).collect();
    names.extend(BLOCK.iter().chain(MIDDLE_END).map(|end| format!("middle_block.{end}")));
    for block in 0..blocks {
        names.extend(BLOCK.iter().map(|end| format!("input_blocks.{}.{end}", block + 1)));
        names.push(format!("input_blocks.{}.0.op.", block + 1));
        names.extend(BLOCK.iter().map(|end| format!("output_blocks.{block}.{end}")));
        if block % (layers + 1) == layers {
            // Behind the attention, or behind the residual layer where there is none.
            let level = block / (layers + 1);
            let attended = config.transformer_layers.iter().rev().nth(level).is_some_and(|n| *n > 0);
            names.push(format!("output_blocks.{block}.{}.conv.", if attended { 2 } else { 1 }));
        }
    }
    let mut prefixes: HashMap<String, Vec<String>> = HashMap::new();
    for name in names {
        if let Some((canonical, Transform::None)) = keys::unet(&name, layers) {
            prefixes.entry(canonical).or_default().push(name);
        }
    }
    prefixes
}

/// Spellings of a text encoder's layers, given the names of its tensors, with or without `text_model.`.
pub(super) fn clip<'a>(names: impl Iterator<Item = &'a str>) -> Spellings {
    let mut spellings = Spellings::new();
    let mut actual: HashMap<String, &str> = HashMap::new();
    let mut numbers = BTreeSet::new();
    for layer in layers(names) {
        let short = layer.strip_prefix("text_model.").unwrap_or(layer);
        if let Some(number) = short.strip_prefix("encoder.layers.").and_then(|rest| rest.split('.').next()) {
            numbers.insert(number);
        }
        let place = Place { layer: layer.to_owned(), third: None };
        spellings.insert(flat(short), vec![place]);
        actual.insert(short.to_owned(), layer);
    }
    let mut stored: Vec<(String, usize)> = vec![("ln_final.weight".into(), 1)];
    for number in numbers {
        let block = format!("transformer.resblocks.{number}.");
        stored.push((format!("{block}attn.in_proj_weight"), 3));
        for layer in ["attn.out_proj", "ln_1", "ln_2", "mlp.c_fc", "mlp.c_proj"] {
            stored.push((format!("{block}{layer}.weight"), 1));
        }
    }
    for (name, rows) in stored {
        let mut places = Vec::new();
        for (canonical, transform) in keys::clip(&name, rows) {
            let layer = canonical.trim_start_matches("text_model.").trim_end_matches(".weight");
            let third = match transform {
                Transform::Rows { start, .. } => Some(start),
                _ => None,
            };
            places.extend(actual.get(layer).map(|layer| Place { layer: (*layer).to_owned(), third }));
        }
        let spelled = name.trim_end_matches("_weight").trim_end_matches(".weight");
        if !places.is_empty() {
            spellings.entry(flat(spelled)).or_insert(places);
        }
    }
    spellings
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    /// Names of the full-size models' tensors, as diffusers and single files have them.
    fn full_size(model: &str, part: &str) -> Vec<String> {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/full_size_names.json");
        let all: Value = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
        all[model][part].as_object().unwrap().keys().cloned().collect()
    }

    fn config(model: &str) -> UNetConfig {
        let config = match model {
            "sdxl" => serde_json::json!({
                "block_out_channels": [320, 640, 1280],
                "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
                "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
                "transformer_layers_per_block": [1, 2, 10],
                "attention_head_dim": [5, 10, 20],
                "cross_attention_dim": 2048,
            }),
            _ => serde_json::json!({ "cross_attention_dim": 768 }),
        };
        serde_json::from_value(config).unwrap()
    }

    fn aliases(model: &str) -> Aliases {
        let names = |part| full_size(model, part);
        let clip = |names: Vec<String>| clip(names.iter().map(String::as_str));
        Aliases {
            denoiser: unet(names("unet").iter().map(String::as_str), &config(model)),
            clip_l: clip(names("text_encoder")),
            clip_g: if model == "sdxl" { clip(names("text_encoder_2")) } else { Spellings::new() },
        }
    }

    fn found(aliases: &Aliases, module: &str) -> (Network, String) {
        let (network, places) = aliases.find(module).unwrap_or_else(|| panic!("'{module}' fits nothing"));
        assert_eq!(places.len(), 1, "{module}");
        (network, places[0].layer.clone())
    }

    #[test]
    fn every_layer_of_the_full_size_models_is_found_by_all_its_spellings() {
        for model in ["sdxl", "sd15"] {
            let aliases = aliases(model);
            let mut count = 0;
            for name in full_size(model, "unet") {
                let Some(layer) = name.strip_suffix(".weight") else { continue };
                let flat = layer.replace('.', "_");
                let processed = layer.replace(".to_", ".processor.to_").replace(".to_out.0", ".to_out");
                for module in [
                    format!("lora_unet_{flat}"),
                    format!("lycoris_{flat}"),
                    layer.to_owned(),
                    processed.clone(),
                    format!("unet.{layer}"),
                    format!("unet.{processed}"),
                    format!("base_model.model.{layer}"),
                    format!("unet.base_model.model.{layer}"),
                ] {
                    assert_eq!(found(&aliases, &module), (Network::Denoiser, layer.to_owned()), "{module}");
                }
                count += 1;
            }
            assert!(count > 300, "{model} has only {count} layers");
        }
    }

    #[test]
    fn kohyas_names_of_single_file_layers_are_found_in_full_size_models() {
        for model in ["sdxl", "sd15"] {
            let (aliases, layers) = (aliases(model), config(model).layers_per_block);
            let mut seen = BTreeSet::new();
            for name in full_size(model, "ldm") {
                let Some(ldm) = name.strip_prefix("model.diffusion_model.") else { continue };
                let Some(ldm) = ldm.strip_suffix(".weight") else { continue };
                let (canonical, _) = keys::unet(&format!("{ldm}."), layers).unwrap();
                let layer = canonical.trim_end_matches('.').to_owned();
                for module in [
                    format!("lora_unet_{}", ldm.replace('.', "_")),
                    format!("diffusion_model.{ldm}"),
                    format!("model.diffusion_model.{ldm}"),
                ] {
                    assert_eq!(found(&aliases, &module), (Network::Denoiser, layer.clone()), "{module}");
                }
                seen.insert(layer);
            }
            let all = full_size(model, "unet").iter().filter(|name| name.ends_with(".weight")).count();
            assert_eq!(seen.len(), all, "{model}");
        }
    }

    #[test]
    fn text_encoder_layers_are_found_by_all_their_spellings() {
        for (model, part, network, prefixes) in [
            ("sd15", "text_encoder", Network::ClipL, ["lora_te_", "text_encoder."]),
            ("sdxl", "text_encoder", Network::ClipL, ["lora_te1_", "text_encoders.clip_l.transformer."]),
            ("sdxl", "text_encoder_2", Network::ClipG, ["lora_te2_", "text_encoder_2."]),
        ] {
            let aliases = aliases(model);
            for name in full_size(model, part) {
                let Some(layer) = name.strip_suffix(".weight") else { continue };
                let [flat, dotted] = prefixes;
                let modules = [format!("{flat}{}", layer.replace('.', "_")), format!("{dotted}{layer}")];
                for module in modules {
                    if layer.contains("embeddings.") {
                        assert!(aliases.find(&module).is_none(), "{module}");
                    } else {
                        assert_eq!(found(&aliases, &module), (network, layer.to_owned()), "{module}");
                    }
                }
            }
        }
    }

    #[test]
    fn a_packed_projection_means_three_layers() {
        let aliases = aliases("sdxl");
        let (part, places) = aliases.find("lora_te2_transformer_resblocks_31_attn_in_proj").unwrap();
        assert_eq!(part, Network::ClipG);
        let layers: Vec<_> = places.iter().map(|place| (place.layer.as_str(), place.third)).collect();
        let layer = |name| format!("text_model.encoder.layers.31.self_attn.{name}_proj");
        let (q, k, v) = (layer("q"), layer("k"), layer("v"));
        assert_eq!(layers, [(q.as_str(), Some(0)), (k.as_str(), Some(1)), (v.as_str(), Some(2))]);
        let (_, places) = aliases.find("lora_te2_transformer_resblocks_31_mlp_c_fc").unwrap();
        assert_eq!(places[0].layer, "text_model.encoder.layers.31.mlp.fc1");
    }

    #[test]
    fn layers_that_a_model_does_not_have_are_not_found() {
        let aliases = aliases("sd15");
        for module in [
            "lora_te2_text_model_encoder_layers_0_mlp_fc1",
            "lora_unet_double_blocks_0_img_attn_qkv",
            "lora_unet_down_blocks_0_attentions_0_transformer_blocks_1_attn1_to_q",
            "lora_unet_",
            "",
            "base_model.model.",
        ] {
            assert!(aliases.find(module).is_none(), "{module}");
        }
    }
}
