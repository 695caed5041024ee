//! Where Qwen-Image's networks go: on the device for good, or block by block from their files. Told by headers alone,
//! before anything is read.

use std::fmt;

use candle_core::Device;
use darkroom_models::ComputeType;
use darkroom_models::arithmetic::Range;
use darkroom_models::checkpoint::QwenImageParts;
use darkroom_models::weights::Weights;
use serde::Serialize;

use super::LoadOptions;

/// Sides of the picture that a plan leaves room for, in cells: 1328 pixels.
const PLANNED_SIDE: usize = 166;
/// Tokens of each prompt that a plan leaves room for, its template's among them.
const PLANNED_TOKENS: usize = 512;
/// Latents of a step, and prompts: with guidance.
const PLANNED_ROWS: usize = 2;
/// Bytes that the decoder is given; it goes by tiles where it would take more.
const DECODER: u64 = 2 << 30;
/// Side in cells of the smallest tiles that it goes by.
const LEAST_TILE: usize = 32;

/// Whether a network's blocks stay in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Placement {
    /// On the device, for good.
    Resident,
    /// In the file; each block is brought to the device when its turn comes.
    Streamed,
}

impl fmt::Display for Placement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Resident => "resident",
            Self::Streamed => "streamed",
        })
    }
}

/// One network of a plan.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct PlannedPart {
    /// Bytes of all of its weights as they would be held.
    pub bytes: u64,
    /// Bytes of its blocks among them, and of its table of tokens.
    pub blocks: u64,
    /// Bytes of its largest block.
    pub largest_block: u64,
    /// Where its blocks are.
    pub placement: Placement,
}

impl PlannedPart {
    /// Of a network that is not there.
    const NONE: Self = Self { bytes: 0, blocks: 0, largest_block: 0, placement: Placement::Resident };

    /// All of it stays.
    fn of(weights: &Weights, blocks: &str) -> Self {
        let scope = weights.scope(blocks);
        let each = (0..).map(|i| scope.scope(i).bytes()).take_while(|bytes| *bytes > 0);
        let largest_block = each.max().unwrap_or(0);
        // Of a streamed table of tokens single rows are read.
        let table = weights.scope("model.embed_tokens").bytes();
        let (bytes, blocks) = (weights.bytes(), scope.bytes() + table);
        Self { bytes, blocks, largest_block, placement: Placement::Resident }
    }

    /// Bytes that are on the device whatever runs.
    pub fn resident_bytes(&self) -> u64 {
        match self.placement {
            Placement::Resident => self.bytes,
            Placement::Streamed => self.bytes.saturating_sub(self.blocks),
        }
    }

    /// Bytes that come to it while this network runs.
    pub fn passing_bytes(&self) -> u64 {
        match self.placement {
            Placement::Resident => 0,
            Placement::Streamed => self.largest_block,
        }
    }
}

/// Where everything goes, and what that takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct MemoryPlan {
    /// The language model that reads prompts.
    pub text_encoder: PlannedPart,
    /// The denoising network.
    pub transformer: PlannedPart,
    /// The autoencoder.
    pub vae: PlannedPart,
    /// Bytes that reading a prompt and its negative takes beside the weights.
    pub encode_bytes: u64,
    /// Bytes that a step takes beside the weights, for one picture of 1328 x 1328 with guidance.
    pub step_bytes: u64,
    /// Bytes that decoding takes beside the weights, by tiles if need be.
    pub decode_bytes: u64,
    /// Bytes that there are; `None`: enough.
    pub budget: Option<u64>,
}

impl MemoryPlan {
    /// The plan for `parts` on `device`: everything stays where there is room for it and for a step; else the text
    /// encoder is streamed, which works once a prompt; else the transformer too.
    pub fn of(parts: &QwenImageParts, device: &Device, options: &LoadOptions) -> Self {
        Self::with(parts, |weights| weights.on(device), options)
    }

    /// The same for a GPU that multiplies `bf16`, which need not be there.
    pub fn for_card(parts: &QwenImageParts, options: &LoadOptions) -> Self {
        Self::with(parts, Weights::as_on_card, options)
    }

    fn with(parts: &QwenImageParts, placed: impl Fn(&Weights) -> Weights, options: &LoadOptions) -> Self {
        let compute_type = options.compute_type;
        let text = parts.text_encoder.as_ref().map(|part| (placed(&part.weights), &part.config));
        let transformer = parts.transformer.as_ref();
        let transformer =
            transformer.map(|part| (transformer_weights(&placed(&part.weights), compute_type), &part.config));
        let vae = parts.vae.as_ref();
        let vae = vae.map(|part| (placed(&part.weights).computing(compute_type, Range::Wide), &part.config));
        let encode = text.as_ref().map_or(0, |(weights, config)| {
            config.encode_bytes(weights.activations(), PLANNED_ROWS, PLANNED_TOKENS) as u64
        });
        let step = transformer.as_ref().map_or(0, |(weights, config)| {
            let sides = (PLANNED_SIDE, PLANNED_SIDE);
            config.forward_bytes(weights.activations(), PLANNED_ROWS, sides, PLANNED_TOKENS) as u64
        });
        let decode = |side: usize| {
            let vae = vae.as_ref();
            vae.map_or(0, |(weights, config)| config.decode_bytes(weights.activations(), side, side) as u64)
        };
        let part = |weights: Option<&Weights>, blocks| {
            weights.map_or(PlannedPart::NONE, |weights| PlannedPart::of(weights, blocks))
        };
        let mut plan = Self {
            text_encoder: part(text.as_ref().map(|(weights, _)| weights), "model.layers"),
            transformer: part(transformer.as_ref().map(|(weights, _)| weights), "transformer_blocks"),
            vae: PlannedPart {
                bytes: vae.as_ref().map_or(0, |(weights, _)| weights.bytes()),
                ..PlannedPart::NONE
            },
            encode_bytes: encode,
            step_bytes: step,
            decode_bytes: decode(LEAST_TILE),
            budget: options.budget,
        };
        let full = |plan: &Self| plan.budget.is_some_and(|budget| plan.peak_bytes() > budget);
        if full(&plan) {
            plan.text_encoder.placement = Placement::Streamed;
        }
        if full(&plan) {
            plan.transformer.placement = Placement::Streamed;
        }
        // Smaller tiles cost less than networks that are read anew, so the decoder gets what is left.
        let room = plan.budget.map_or(u64::MAX, |budget| budget.saturating_sub(plan.resident_bytes()));
        plan.decode_bytes = decode(PLANNED_SIDE).min(DECODER).min(room).max(plan.decode_bytes);
        plan
    }

    /// Bytes of weights that are always on the device.
    pub fn resident_bytes(&self) -> u64 {
        [self.text_encoder, self.transformer, self.vae].iter().map(PlannedPart::resident_bytes).sum()
    }

    /// Most bytes that are on the device at any time.
    pub fn peak_bytes(&self) -> u64 {
        let working = [
            self.text_encoder.passing_bytes().saturating_add(self.encode_bytes),
            self.transformer.passing_bytes().saturating_add(self.step_bytes),
            self.decode_bytes,
        ];
        self.resident_bytes().saturating_add(working.into_iter().max().unwrap_or(0))
    }
}

/// The transformer's weights as the network takes them. Its activations reach beyond `f16`.
pub(super) fn transformer_weights(weights: &Weights, compute_type: ComputeType) -> Weights {
    weights.computing(compute_type, Range::WideTransformer)
}

/// Gibibytes.
struct Gib(u64);

impl fmt::Display for Gib {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.2} GiB", self.0 as f64 / f64::from(1u32 << 30))
    }
}

impl fmt::Display for MemoryPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(budget) = self.budget {
            writeln!(f, "  budget          {:>10}", Gib(budget).to_string())?;
        }
        let parts =
            [("text encoder", self.text_encoder), ("transformer", self.transformer), ("VAE", self.vae)];
        for (name, part) in parts {
            write!(f, "  {name:<15} {:>10}  {}", Gib(part.bytes).to_string(), part.placement)?;
            if part.placement == Placement::Streamed {
                let (resident, passing) = (part.resident_bytes(), part.passing_bytes());
                write!(f, ": {} stay, {} at a time come from the file", Gib(resident), Gib(passing))?;
            }
            writeln!(f)?;
        }
        writeln!(
            f,
            "  two prompts     {:>10}  of {PLANNED_TOKENS} tokens",
            Gib(self.encode_bytes).to_string()
        )?;
        writeln!(
            f,
            "  a step          {:>10}  one picture of 1328x1328 with guidance",
            Gib(self.step_bytes).to_string()
        )?;
        writeln!(
            f,
            "  decoding        {:>10}  by tiles where it would take more",
            Gib(self.decode_bytes).to_string()
        )?;
        write!(f, "  at most         {:>10}", Gib(self.peak_bytes()).to_string())?;
        match self.budget {
            Some(budget) if self.peak_bytes() > budget => write!(f, "  more than there is"),
            Some(budget) => {
                write!(f, "  {} are left for more pictures a step", Gib(budget - self.peak_bytes()))
            }
            None => Ok(()),
        }
    }
}
