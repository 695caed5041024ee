//! LoRAs against ComfyUI, LyCORIS and PEFT, and the two ways to apply them against each other.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "tests fail by panicking and say what they measured"
)]

mod support;

use std::collections::BTreeMap;
use std::sync::Arc;

use candle_core::{DType, Device, Tensor};
use darkroom_models::lora::{LoraFile, LoraTarget, merge};
use darkroom_models::unet::UNetConfig;
use darkroom_models::weights::Stored;
use darkroom_models::weights::{Kept, Transform, WeightFile, Weights};
use support::{Cases, golden};

fn open(name: &str) -> LoraFile {
    let file = WeightFile::open(&golden(&format!("lora/{name}.safetensors"))).unwrap();
    LoraFile::open(Arc::new(file)).unwrap()
}

/// The shape of ComfyUI's recorded UNet, as far as names depend on it.
fn recorded_config() -> UNetConfig {
    serde_json::from_value(serde_json::json!({
        "block_out_channels": [32, 64, 128],
        "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
        "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
        "transformer_layers_per_block": [1, 1, 2],
        "attention_head_dim": [1, 1, 2],
        "cross_attention_dim": 128,
        "use_linear_projection": true,
    }))
    .unwrap()
}

/// What a network would keep that took the `.base` tensors of the recording that begin with `part`.
fn recorded_base(part: &str) -> Kept {
    let file = Arc::new(WeightFile::open(&golden("lora/comfyui.safetensors")).unwrap());
    let mut tensors = BTreeMap::new();
    for name in file.header().tensors.keys() {
        if let Some(layer) = name.strip_prefix(part).and_then(|name| name.strip_suffix(".base")) {
            let stored = Stored { file: file.clone(), name: name.clone(), transform: Transform::None };
            tensors.insert(format!("{layer}.weight"), stored);
        }
    }
    keep(&Weights::new("recorded", tensors, &Device::Cpu))
}

/// Takes everything, as a network without convolutions would.
fn keep(weights: &Weights) -> Kept {
    weights.keep();
    for name in weights.names() {
        weights.take(&name, &weights.shape(&name).unwrap()).unwrap();
    }
    weights.kept()
}

fn bits(x: &Tensor) -> Vec<u32> {
    x.flatten_all().unwrap().to_vec1::<f32>().unwrap().into_iter().map(f32::to_bits).collect()
}

#[test]
fn merged_weights_are_comfyuis_to_the_last_bit() {
    let config = recorded_config();
    let recorded = Cases::open("lora/comfyui.safetensors");
    for run in ["d1", "d3"] {
        let [unet, clip_l, clip_g] =
            &["unet.", "clip_l.", "clip_g."].map(|part| recorded_base(&format!("{run}.{part}")));
        let target = LoraTarget { unet, unet_config: &config, clip_l, clip_g: Some(clip_g) };
        let lora = open(&format!("comfyui_{run}")).bind(&target, &Device::Cpu).unwrap();
        assert!(lora.unmatched.is_empty(), "{:?}", lora.unmatched);
        let mut compared = 0;
        for (prefix, kept, part) in [
            ("unet.", unet, &lora.unet),
            ("clip_l.", clip_l, &lora.clip_l),
            ("clip_g.", clip_g, &lora.clip_g),
        ] {
            for (name, tensor) in merge(kept, &[(part, 0.8)]).unwrap() {
                let layer = format!("{run}.{prefix}{}", name.trim_end_matches(".weight"));
                let expected = recorded.get(format!("{layer}.patched"));
                let stored = kept.get(&name).unwrap().tensor.dtype();
                assert_eq!(tensor.dtype(), stored, "{name}");
                let expected = expected.to_dtype(stored).unwrap().to_dtype(DType::F32).unwrap();
                assert_eq!(bits(&tensor.to_dtype(DType::F32).unwrap()), bits(&expected), "{layer}");
                compared += 1;
            }
        }
        assert_eq!(compared, 4);
    }
}
