//! What network a file holds: names and shapes in its header tell, by spandrel's rules. The names of the ESRGAN
//! family's three generations become one.

use std::collections::BTreeMap;
use std::sync::Arc;

use candle_core::Device;

use super::UpscalerError;
use crate::weights::{Header, Stored, Transform, WeightFile, Weights};

/// The largest scale that is loaded; published networks have 1 to 16.
const LARGEST_SCALE: usize = 16;
/// Prefixes that training frameworks leave before every name.
const PREFIXES: [&str; 2] = ["module.", "netG."];
/// Architectures that spandrel knows and Darkroom does not, by names that only they have.
const OTHERS: [(&str, &[&str]); 24] = [
    ("HAT", &["conv_first.weight", "layers.0.residual_group.overlap_attn.qkv.weight"]),
    ("ATD", &["conv_first.weight", "layers.0.residual_group.td"]),
    ("CRAFT", &["conv_first.weight", "layers.0.residual_group.hf_blocks.0.attn.temperature"]),
    ("Swin2SR", &["patch_embed.proj.weight", "layers.0.residual_group.blocks.0.attn.logit_scale"]),
    ("SwinIR", &["layers.0.residual_group.blocks.0.norm1.weight"]),
    ("DAT", &["before_RG.1.weight", "layers.0.blocks.0.ffn.sg.norm.weight"]),
    ("RGT", &["before_RG.1.weight", "layers.0.blocks.0.gamma"]),
    ("DRCT", &["conv_first.weight", "layers.0.swin1.norm1.weight"]),
    ("GRL", &["norm_start.weight", "norm_end.weight"]),
    ("OmniSR", &["residual_layer.0.residual_layer.0.layer.0.fn.0.weight", "input.weight"]),
    ("SPAN", &["block_1.c1_r.sk.weight", "conv_cat.weight"]),
    ("PLKSR", &["feats.0.weight", "feats.1.refine.weight"]),
    ("MoSR", &["gblocks.0.weight"]),
    ("SAFMN", &["to_feat.weight", "feats.0.safm.aggr.weight"]),
    ("DITN", &["sft.weight", "UFONE.0.ITLs.0.attn.temperature"]),
    ("Real-CUGAN", &["unet1.conv1.conv.0.weight"]),
    ("SCUNet", &["m_head.0.weight", "m_tail.0.weight"]),
    ("SwiftSRGAN", &["initial.cnn.depthwise.weight"]),
    ("GFPGAN", &["toRGB.0.weight", "stylegan_decoder.style_mlp.1.weight"]),
    ("RestoreFormer", &["quantize.embedding.weight", "encoder.conv_in.weight"]),
    ("RCAN", &["head.0.weight", "body.0.body.0.body.0.weight"]),
    ("MM-RealSR", &["conv_first.weight", "body.0.rdb1.conv1.weight", "am_list.0.fc.0.weight"]),
    ("NAFNet", &["intro.weight", "ending.weight"]),
    ("LaMa", &["model.model.1.bn_l.running_mean"]),
];

/// A network and its widths.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Architecture {
    /// The ESRGAN family.
    Rrdb(RrdbConfig),
    /// Real-ESRGAN's compact networks.
    Compact(CompactConfig),
}

/// An ESRGAN: residual in residual dense blocks (Wang et al. 2018).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RrdbConfig {
    /// Channels of what the first convolution sees.
    pub inputs: usize,
    /// Channels of the larger picture.
    pub outputs: usize,
    /// Channels between blocks.
    pub filters: usize,
    /// Channels that each convolution of a dense block adds.
    pub growth: usize,
    /// Blocks.
    pub blocks: usize,
    /// How many times the sides are doubled.
    pub doublings: usize,
    /// By how much pixels are gathered into channels before everything else (Real-ESRGAN x2: 2); 1: not at all.
    pub unshuffle: usize,
    /// ESRGAN+'s extra shortcuts in the dense blocks.
    pub plus: bool,
}

/// A plain chain of convolutions, PReLU between them, pixels shuffled out at the end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CompactConfig {
    /// Channels of the picture, before and after.
    pub channels: usize,
    /// Channels between convolutions.
    pub filters: usize,
    /// Convolutions between the first and the last.
    pub layers: usize,
    /// By how much sides grow.
    pub scale: usize,
}

impl Architecture {
    /// What `file` holds; reads its header only.
    ///
    /// # Errors
    /// When it is something else or its tensors make no network.
    pub fn detect(file: &WeightFile) -> Result<Self, UpscalerError> {
        Names::of(file.header()).detect(file.name())
    }

    /// By how much the sides of pictures grow.
    pub fn scale(&self) -> usize {
        match self {
            Self::Rrdb(config) => (1 << config.doublings) / config.unshuffle,
            Self::Compact(config) => config.scale,
        }
    }

    /// Channels of pictures that it takes.
    pub fn input_channels(&self) -> usize {
        match self {
            Self::Rrdb(config) => config.inputs / (config.unshuffle * config.unshuffle),
            Self::Compact(config) => config.channels,
        }
    }

    /// Channels of pictures that it gives.
    pub fn output_channels(&self) -> usize {
        match self {
            Self::Rrdb(config) => config.outputs,
            Self::Compact(config) => config.channels,
        }
    }
}

/// What a file's network is, and its tensors under canonical names.
pub(super) fn open(
    file: &Arc<WeightFile>,
    device: &Device,
) -> Result<(Architecture, Weights), UpscalerError> {
    let names = Names::of(file.header());
    let architecture = names.detect(file.name())?;
    let tensors = names
        .stored
        .into_iter()
        .map(|(canonical, name)| {
            let stored = Stored { file: Arc::clone(file), name, transform: Transform::None };
            (canonical, stored)
        })
        .collect();
    Ok((architecture, Weights::new(file.name(), tensors, device)))
}

/// A file's names: canonical to stored.
struct Names<'a> {
    header: &'a Header,
    stored: BTreeMap<String, String>,
}

impl<'a> Names<'a> {
    fn of(header: &'a Header) -> Self {
        let mut prefix = String::new();
        for known in PREFIXES {
            let longer = format!("{prefix}{known}");
            if !header.tensors.is_empty() && header.tensors.keys().all(|name| name.starts_with(&longer)) {
                prefix = longer;
            }
        }
        let plain: Vec<(&str, &String)> =
            header.tensors.keys().map(|name| (&name[prefix.len()..], name)).collect();
        // The first generation numbers its layers; the last number says how many doublings there are.
        let numbered = |name: &str| name.strip_prefix("model.")?.split('.').next()?.parse::<usize>().ok();
        let last = plain.iter().filter_map(|(name, _)| numbered(name)).max().unwrap_or(0);
        let stored = plain.into_iter().map(|(name, full)| (canonical(name, last), full.clone())).collect();
        Self { header, stored }
    }

    fn has(&self, name: &str) -> bool {
        self.stored.contains_key(name)
    }

    fn shape(&self, name: &str) -> Option<&[usize]> {
        Some(&self.header.tensors.get(self.stored.get(name)?)?.shape)
    }

    /// Output and input channels of a convolution.
    fn channels(&self, name: &str) -> Option<(usize, usize)> {
        match self.shape(name)? {
            &[outputs, inputs, _, _] if outputs > 0 && inputs > 0 => Some((outputs, inputs)),
            _ => None,
        }
    }

    /// The largest N of names `prefixN.…`, plus one.
    fn count(&self, prefix: &str) -> usize {
        let number = |name: &str| name.strip_prefix(prefix)?.split('.').next()?.parse::<usize>().ok();
        let largest = self.stored.keys().filter_map(|name| number(name)).max();
        largest.map_or(0, |largest| largest.saturating_add(1))
    }

    fn detect(&self, file: &str) -> Result<Architecture, UpscalerError> {
        if let Some((name, _)) = OTHERS.iter().find(|(_, names)| names.iter().all(|name| self.has(name))) {
            return Err(UpscalerError::Kind { file: file.to_owned(), found: format!("this is a {name}") });
        }
        let config = if self.has("body.0.weight") && self.has("body.1.weight") {
            self.compact().map(Architecture::Compact)
        } else if self.has("conv_first.weight")
            && (self.has("body.0.rdb1.conv1.weight") || self.has("body.0.rdb1.conv1x1.weight"))
        {
            self.rrdb().map(Architecture::Rrdb)
        } else {
            let found = "this is no upscaler that is known".to_owned();
            return Err(UpscalerError::Kind { file: file.to_owned(), found });
        };
        config.map_err(|reason| UpscalerError::Layout { file: file.to_owned(), reason })
    }

    fn rrdb(&self) -> Result<RrdbConfig, String> {
        let channels = |name: &str| self.channels(name).ok_or_else(|| format!("'{name}' is no convolution"));
        let (filters, inputs) = channels("conv_first.weight")?;
        let (growth, _) = channels("body.0.rdb1.conv1.weight")?;
        let (outputs, _) = channels("conv_last.weight")?;
        // Counted from 1.
        let doublings = self.count("conv_up").saturating_sub(1);
        let unshuffle = match inputs {
            _ if Some(inputs) == outputs.checked_mul(4) => 2,
            _ if Some(inputs) == outputs.checked_mul(16) => 4,
            _ => 1,
        };
        let scale = u32::try_from(doublings).ok().and_then(|doublings| 1usize.checked_shl(doublings));
        let Some(scale) = scale.filter(|scale| *scale <= LARGEST_SCALE * unshuffle) else {
            return Err(format!(
                "it doubles pictures {doublings} times; {LARGEST_SCALE} is the largest scale"
            ));
        };
        if scale < unshuffle {
            return Err(format!(
                "it makes pictures smaller: {scale} times larger after {unshuffle} times smaller"
            ));
        }
        let plus = self.has("body.0.rdb1.conv1x1.weight");
        let blocks = self.count("body.");
        Ok(RrdbConfig { inputs, outputs, filters, growth, blocks, doublings, unshuffle, plus })
    }

    fn compact(&self) -> Result<CompactConfig, String> {
        let (filters, channels) =
            self.channels("body.0.weight").ok_or("'body.0.weight' is no convolution".to_owned())?;
        let count = self.count("body.");
        // Convolution and PReLU in turn, a convolution at the end.
        if count < 3 || count.is_multiple_of(2) {
            return Err(format!("it has {count} layers; an odd number from 3 on is needed"));
        }
        let last = format!("body.{}.weight", count - 1);
        let (shuffled, _) = self.channels(&last).ok_or_else(|| format!("'{last}' is no convolution"))?;
        // The residual is added to the picture, so it has the picture's channels.
        let squared = shuffled / channels;
        let scale = squared.isqrt();
        if scale == 0 || scale > LARGEST_SCALE || Some(shuffled) != channels.checked_mul(scale * scale) {
            return Err(format!(
                "'{last}' gives {shuffled} channels, which make no larger picture of {channels}"
            ));
        }
        Ok(CompactConfig { channels, filters, layers: (count - 3) / 2, scale })
    }
}

/// The canonical name: Real-ESRGAN's. `last` is the number of the first generation's last layer.
fn canonical(name: &str, last: usize) -> String {
    first_generation(name, last).or_else(|| second_generation(name)).unwrap_or_else(|| name.to_owned())
}

/// ESRGAN's own: `model.0.weight`, `model.1.sub.3.RDB1.conv1.0.weight`, …
fn first_generation(name: &str, last: usize) -> Option<String> {
    let parts: Vec<&str> = name.strip_prefix("model.")?.split('.').collect();
    match parts[..] {
        ["0", kind] => Some(format!("conv_first.{kind}")),
        ["1", "sub", block, dense, conv, "0", kind] => {
            let dense = dense.strip_prefix("RDB")?;
            Some(format!("body.{block}.rdb{dense}.{conv}.{kind}"))
        }
        ["1", "sub", block, dense, "conv1x1", kind] => {
            let dense = dense.strip_prefix("RDB")?;
            Some(format!("body.{block}.rdb{dense}.conv1x1.{kind}"))
        }
        ["1", "sub", _, kind] => Some(format!("conv_body.{kind}")),
        [layer, kind] => {
            let layer: usize = layer.parse().ok()?;
            match (layer, last.checked_sub(layer)?) {
                (_, 0) => Some(format!("conv_last.{kind}")),
                (_, 2) => Some(format!("conv_hr.{kind}")),
                (layer, _) if layer.is_multiple_of(3) => Some(format!("conv_up{}.{kind}", layer / 3)),
                _ => None,
            }
        }
        _ => None,
    }
}

/// BSRGAN's and RealSR's: `RRDB_trunk.3.RDB1.conv1.weight`, `trunk_conv`, `upconv1`, `HRconv`.
fn second_generation(name: &str) -> Option<String> {
    if let Some(rest) = name.strip_prefix("RRDB_trunk.") {
        let (block, rest) = rest.split_once('.')?;
        return Some(format!("body.{block}.rdb{}", rest.strip_prefix("RDB")?));
    }
    if let Some(rest) = name.strip_prefix("upconv") {
        return Some(format!("conv_up{rest}"));
    }
    let (layer, kind) = name.split_once('.')?;
    match layer {
        "trunk_conv" => Some(format!("conv_body.{kind}")),
        "HRconv" => Some(format!("conv_hr.{kind}")),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::canonical;

    #[test]
    fn three_generations_have_one_set_of_names() {
        // A x4 network's last layer is number 10.
        for (old, new) in [
            ("model.0.weight", "conv_first.weight"),
            ("model.1.sub.22.RDB3.conv5.0.bias", "body.22.rdb3.conv5.bias"),
            ("model.1.sub.0.RDB1.conv1x1.weight", "body.0.rdb1.conv1x1.weight"),
            ("model.1.sub.23.weight", "conv_body.weight"),
            ("model.3.weight", "conv_up1.weight"),
            ("model.6.bias", "conv_up2.bias"),
            ("model.8.weight", "conv_hr.weight"),
            ("model.10.weight", "conv_last.weight"),
            ("RRDB_trunk.4.RDB2.conv3.weight", "body.4.rdb2.conv3.weight"),
            ("trunk_conv.bias", "conv_body.bias"),
            ("upconv1.weight", "conv_up1.weight"),
            ("HRconv.weight", "conv_hr.weight"),
            ("body.4.rdb2.conv3.weight", "body.4.rdb2.conv3.weight"),
            ("model.7.weight", "model.7.weight"),
        ] {
            assert_eq!(canonical(old, 10), new);
        }
        // One that does not enlarge ends at number 4.
        assert_eq!(canonical("model.2.weight", 4), "conv_hr.weight");
        assert_eq!(canonical("model.4.weight", 4), "conv_last.weight");
    }
}
