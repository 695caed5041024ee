//! A stack of LoRAs on one model, in the two forms that give the same picture: adapters for some rows of a mixed batch,
//! and merged weights for when everybody has the same stack.
//!
//! Between `darkroom_models::lora`, which knows the files, and [`crate::Pipeline`], which draws with them.

use std::fmt::Write as _;
use std::sync::Arc;

use darkroom_models::adapter::NetworkAdapter;
use darkroom_models::lora::{Lora, LoraPart};

/// A LoRA of a stack and how strongly it counts.
#[derive(Debug, Clone)]
pub struct StackedLora {
    /// What names it: equal names mean equal weights.
    pub name: Arc<str>,
    /// Bound to the model.
    pub lora: Arc<Lora>,
    /// Strength on the denoising network.
    pub strength: f64,
    /// Strength on the text encoders.
    pub text_strength: f64,
}

/// A stack of LoRAs, ready to draw with.
#[derive(Debug)]
pub struct LoraSet {
    name: Arc<str>,
    stack: Vec<StackedLora>,
    pub(crate) unet: Arc<NetworkAdapter>,
    pub(crate) clip_l: Arc<NetworkAdapter>,
    pub(crate) clip_g: Arc<NetworkAdapter>,
}

impl LoraSet {
    pub(crate) fn new(
        stack: Vec<StackedLora>,
        unet: NetworkAdapter,
        clip_l: NetworkAdapter,
        clip_g: NetworkAdapter,
    ) -> Self {
        let mut name = String::new();
        for lora in &stack {
            // Bits: strengths that print alike may differ.
            let (strength, text) = (lora.strength.to_bits(), lora.text_strength.to_bits());
            let _ = write!(name, "{}@{strength:x}/{text:x};", lora.name);
        }
        Self { name: name.into(), stack, unet: unet.into(), clip_l: clip_l.into(), clip_g: clip_g.into() }
    }

    /// What tells sets of one model apart: the LoRAs' names and strengths, in order.
    pub fn name(&self) -> &Arc<str> {
        &self.name
    }

    /// The LoRAs, first applied first.
    pub fn stack(&self) -> &[StackedLora] {
        &self.stack
    }

    /// Bytes of its adapters, beside the LoRAs' own.
    pub fn bytes(&self) -> u64 {
        self.unet.bytes() + self.clip_l.bytes() + self.clip_g.bytes()
    }

    /// Whether prompts read otherwise with it.
    pub fn changes_text(&self) -> bool {
        !self.clip_l.is_empty() || !self.clip_g.is_empty()
    }

    /// What changes in the denoising network, layer by layer.
    pub fn unet(&self) -> &NetworkAdapter {
        &self.unet
    }

    pub(crate) fn unet_stack(&self) -> Vec<(&LoraPart, f64)> {
        self.stack.iter().map(|stacked| (&stacked.lora.unet, stacked.strength)).collect()
    }
}
