//! The names of Qwen-Image's autoencoder: Wan's, which ComfyUI's files have (`encoder.downsamples.N.residual.0`,
//! `decoder.upsamples.N`, `head`), to diffusers' (`encoder.down_blocks.N.norm1`, `decoder.up_blocks.N.resnets.M`).
//! Encoder blocks are numbered through in both, decoder blocks by level in diffusers' alone.

use super::{Mapped, indexed, joined};

/// Whether `names` are such an autoencoder's, Wan's or diffusers'. Wan 2.2's, another network, is none.
pub(crate) fn is_vae_qwen<'a>(names: impl Iterator<Item = &'a str>) -> bool {
    let mut known = false;
    for name in names {
        if name.starts_with("decoder.upsamples.0.upsamples.") {
            return false;
        }
        known |=
            matches!(name, "decoder.middle.0.residual.0.gamma" | "decoder.mid_block.resnets.0.norm1.gamma");
    }
    known
}

/// Residual blocks of an encoder level, counted off Wan's names: what comes before the first halving.
pub(crate) fn vae_qwen_res_blocks<'a>(names: impl Iterator<Item = &'a str>) -> usize {
    let blocks = names.filter_map(|name| indexed(name.strip_prefix("encoder.downsamples.")?));
    let (mut halving, mut count) = (usize::MAX, 0);
    for (number, rest) in blocks {
        count = count.max(number + 1);
        if rest.starts_with("resample.") {
            halving = halving.min(number);
        }
    }
    halving.min(count)
}

/// The canonical name of Wan's `name` in an autoencoder with `res_blocks` residual blocks an encoder level.
pub(crate) fn vae_qwen(name: &str, res_blocks: usize) -> Option<Mapped> {
    let (side, rest) = name.split_once('.')?;
    match side {
        "conv1" => return Some(joined("quant_conv.".into(), rest)),
        "conv2" => return Some(joined("post_quant_conv.".into(), rest)),
        "encoder" | "decoder" => {}
        _ => return None,
    }
    if let Some(rest) = rest.strip_prefix("conv1.") {
        return Some(joined(format!("{side}.conv_in."), rest));
    }
    if let Some(rest) = rest.strip_prefix("head.") {
        let layer = match rest.split_once('.')? {
            ("0", rest) => format!("norm_out.{rest}"),
            ("2", rest) => format!("conv_out.{rest}"),
            _ => return None,
        };
        return Some(joined(format!("{side}."), &layer));
    }
    if let Some(rest) = rest.strip_prefix("middle.") {
        let block = format!("{side}.mid_block.");
        return match rest.split_once('.')? {
            ("0", rest) => residual(&format!("{block}resnets.0."), rest),
            ("1", rest) => Some(joined(format!("{block}attentions.0."), rest)),
            ("2", rest) => residual(&format!("{block}resnets.1."), rest),
            _ => None,
        };
    }
    let (prefix, rest) = if side == "encoder" {
        let (number, rest) = indexed(rest.strip_prefix("downsamples.")?)?;
        (format!("encoder.down_blocks.{number}."), rest)
    } else {
        let (number, rest) = indexed(rest.strip_prefix("upsamples.")?)?;
        // A decoder level has one block more than the encoder's, and what doubles the resolution.
        let (level, block) = (number / (res_blocks + 2), number % (res_blocks + 2));
        let layer = if block > res_blocks { "upsamplers.0".into() } else { format!("resnets.{block}") };
        (format!("decoder.up_blocks.{level}.{layer}."), rest)
    };
    if rest.starts_with("resample.") || rest.starts_with("time_conv.") {
        return Some(joined(prefix, rest));
    }
    residual(&prefix, rest)
}

fn residual(prefix: &str, rest: &str) -> Option<Mapped> {
    if let Some(rest) = rest.strip_prefix("shortcut.") {
        return Some(joined(format!("{prefix}conv_shortcut."), rest));
    }
    let layer = match rest.strip_prefix("residual.")?.split_once('.')? {
        ("0", rest) => format!("norm1.{rest}"),
        ("2", rest) => format!("conv1.{rest}"),
        ("3", rest) => format!("norm2.{rest}"),
        ("6", rest) => format!("conv2.{rest}"),
        _ => return None,
    };
    Some(joined(prefix.into(), &layer))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::path::Path;
    use std::sync::Arc;

    use candle_core::{Device, Tensor};

    use super::*;
    use crate::vae_qwen::{AutoencoderKlQwenImage, QwenVaeConfig};
    use crate::weights::{Stored, WeightFile, Weights};

    #[test]
    fn a_file_under_wans_names_is_the_same_network() {
        let golden = |name: &str| Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name);
        let file = Arc::new(WeightFile::open(&golden("vae_qwen_wan.safetensors")).unwrap());
        let names = || file.header().tensors.keys().map(String::as_str);
        assert!(is_vae_qwen(names()));
        let res_blocks = vae_qwen_res_blocks(names());
        assert_eq!(res_blocks, 2);
        let tensors: BTreeMap<String, Stored> = names()
            .map(|name| {
                let (canonical, transform) = vae_qwen(name, res_blocks).unwrap();
                (canonical, Stored { file: file.clone(), name: name.to_owned(), transform })
            })
            .collect();
        assert_eq!(tensors.len(), names().count());
        let config = QwenVaeConfig::from_shapes(|name| tensors.get(name)?.shape()).unwrap();
        assert_eq!(config, QwenVaeConfig { base_dim: 4, ..QwenVaeConfig::default() });

        let from = |weights: &Weights| {
            let vae = AutoencoderKlQwenImage::load(&config, weights).unwrap();
            weights.finish().unwrap();
            vae
        };
        let wan = from(&Weights::new(file.name(), tensors, &Device::Cpu));
        let folder = golden("qwen_image/vae_published").join("diffusion_pytorch_model.safetensors");
        let diffusers = Arc::new(WeightFile::open(&folder).unwrap());
        assert!(is_vae_qwen(diffusers.header().tensors.keys().map(String::as_str)));
        let canonical = from(&Weights::from_file(diffusers, &Device::Cpu));
        let picture = Tensor::randn(0f32, 1., (1, 3, 16, 24), &Device::Cpu).unwrap();
        let through = |vae: &AutoencoderKlQwenImage| {
            let latent = vae.encode(&picture).unwrap();
            let again = vae.decode(&latent).unwrap();
            [latent, again].map(|x| x.flatten_all().unwrap().to_vec1::<f32>().unwrap())
        };
        assert_eq!(through(&wan), through(&canonical));
    }

    #[test]
    fn names_that_are_not_wans_have_no_other() {
        for name in [
            "conv3.weight",
            "encoder.conv_in.weight",
            "encoder.downsamples.0.residual.1.weight",
            "encoder.downsamples.00.residual.0.gamma",
            "encoder.downsamples.0",
            "encoder.upsamples.0.residual.0.gamma",
            "encoder.middle.3.residual.0.gamma",
            "encoder.head.1.weight",
            "decoder.upsamples.0.upsamples.0.residual.2.weight",
        ] {
            assert_eq!(vae_qwen(name, 2), None, "{name}");
        }
        let last = vae_qwen("decoder.upsamples.999.residual.0.gamma", 0).unwrap().0;
        assert_eq!(last, "decoder.up_blocks.499.upsamplers.0.norm1.gamma", "no number overflows");
        assert_eq!(vae_qwen_res_blocks(["encoder.downsamples.0.shortcut.bias"].into_iter()), 1);
    }

    #[test]
    fn wan_2_2s_autoencoder_is_another() {
        let own = "decoder.middle.0.residual.0.gamma";
        assert!(is_vae_qwen([own].into_iter()));
        assert!(!is_vae_qwen([own, "decoder.upsamples.0.upsamples.0.residual.2.weight"].into_iter()));
        assert!(!is_vae_qwen(["decoder.mid_block.resnets.0.norm1.weight"].into_iter()));
    }
}
