//! A LoRA file: which tensors it has for which modules. Knows no model; [`super::bind`] does.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;

use serde::Serialize;
use serde_json::Value;

use super::aliases::{Network, scope};
use super::family::joint_block;
use super::parts::{self, Name, Role};
use super::{Family, LoraError};
use crate::checkpoint::Part;
use crate::weights::{TensorInfo, WeightFile};

/// Most trigger words told.
const WORDS: usize = 20;
/// Longest trigger word told, in bytes.
const WORD_BYTES: usize = 100;

/// The tensors of one module, by what they are; the values are stored names.
pub(super) type Module = BTreeMap<Role, String>;

/// A LoRA file whose names are understood; no tensor is read yet.
#[derive(Debug, Clone)]
pub struct LoraFile {
    pub(super) file: Arc<WeightFile>,
    pub(super) modules: BTreeMap<String, Module>,
    /// Stored names that are no part of a LoRA.
    pub(super) strays: Vec<String>,
}

/// What a LoRA file is, for people.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct LoraSummary {
    /// What its changes are (`LoRA`, `DoRA`, `LoHa`, `LoKr`, `differences`), each once.
    pub kinds: Vec<String>,
    /// What it was made for, if that can be told.
    pub family: Option<Family>,
    /// The smallest and the largest rank.
    pub ranks: Option<(usize, usize)>,
    /// How many modules it has for each network (`UNet`).
    pub targets: BTreeMap<String, usize>,
    /// Words that bring out what it was trained on.
    pub trigger_words: Vec<String>,
}

impl fmt::Display for LoraSummary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "  holds: {}", self.kinds.join(", "))?;
        match self.ranks {
            Some((low, high)) if low == high => write!(f, ", rank {low}")?,
            Some((low, high)) => write!(f, ", ranks {low} to {high}")?,
            None => {}
        }
        match &self.family {
            Some(family) => writeln!(f, ", made for {family}")?,
            None => writeln!(f)?,
        }
        for (network, modules) in &self.targets {
            writeln!(f, "  changes {network}: {modules} modules")?;
        }
        if !self.trigger_words.is_empty() {
            // Quoted: whoever wrote the file does not get to draw on the terminal.
            writeln!(f, "  trigger words: {:?}", self.trigger_words)?;
        }
        Ok(())
    }
}

impl LoraFile {
    /// Reads the names in `file`.
    ///
    /// # Errors
    /// When it is no LoRA, or one of a kind that is not supported.
    pub fn open(file: Arc<WeightFile>) -> Result<Self, LoraError> {
        let mut modules: BTreeMap<String, Module> = BTreeMap::new();
        let mut strays = Vec::new();
        for stored in file.header().tensors.keys() {
            match parts::name(stored) {
                Name::Part(module, role) => {
                    let parts = modules.entry(module.to_owned()).or_default();
                    if let Some(first) = parts.insert(role, stored.clone()) {
                        let file = file.name().to_owned();
                        return Err(LoraError::Twice { file, first, second: stored.clone() });
                    }
                }
                Name::Unsupported(kind) => {
                    let file = file.name().to_owned();
                    return Err(LoraError::Unsupported { file, tensor: stored.clone(), kind });
                }
                Name::Unknown => strays.push(stored.clone()),
            }
        }
        if !modules.values().any(|parts| parts.keys().any(|role| role.changes())) {
            return Err(LoraError::NotALora {
                file: file.name().to_owned(),
                tensors: file.header().tensors.len(),
                first: file.header().tensors.keys().next().cloned().unwrap_or_default(),
            });
        }
        Ok(Self { file, modules, strays })
    }

    /// The path or name that errors speak of.
    pub fn name(&self) -> &str {
        self.file.name()
    }

    /// What whoever made it wrote about it.
    pub fn metadata(&self) -> &BTreeMap<String, String> {
        &self.file.header().metadata
    }

    /// Bytes of its tensors as stored, which is what it takes on a device.
    pub fn bytes(&self) -> u64 {
        self.file.header().tensors.values().map(|info| info.stored_bytes() as u64).sum()
    }

    pub(super) fn info(&self, stored: &str) -> Option<&TensorInfo> {
        self.file.header().tensors.get(stored)
    }

    /// What it was made for, if that can be told.
    pub fn family(&self) -> Option<Family> {
        if let Some(family) = self.modules.keys().find_map(|module| Family::of_name(module)) {
            return Some(family);
        }
        if let Some(width) = self.context_width() {
            return Some(Family::of_context(width));
        }
        let second = |module: &String| scope(module).0 == Some(Network::ClipG);
        self.modules.keys().any(second).then_some(Family::Sdxl)
    }

    /// Width of the context that its cross-attention reads, if it changes any.
    pub fn context_width(&self) -> Option<usize> {
        self.modules.iter().filter(|(name, _)| Family::reads_context(name)).find_map(|(_, parts)| {
            [Role::Down, Role::Hada1B, Role::Diff].iter().find_map(|role| {
                let info = self.info(parts.get(role)?)?;
                info.shape.get(1).copied()
            })
        })
    }

    /// What it is, for people.
    pub fn summary(&self) -> LoraSummary {
        let mut kinds = BTreeSet::new();
        let mut ranks: Option<(usize, usize)> = None;
        let mut targets = BTreeMap::new();
        let family = self.family();
        let denoiser = match family {
            Some(Family::QwenImage) => Part::Transformer,
            None if self.modules.keys().any(|name| joint_block(name).is_some()) => Part::Transformer,
            _ => Part::UNet,
        };
        for (name, parts) in &self.modules {
            let decomposed = parts.contains_key(&Role::DoraScale) || parts.contains_key(&Role::Magnitude);
            for (role, kind) in [
                (Role::Up, if decomposed { "DoRA" } else { "LoRA" }),
                (Role::Hada1A, "LoHa"),
                (Role::Kron1, "LoKr"),
                (Role::Kron1A, "LoKr"),
                (Role::Diff, "differences"),
                (Role::DiffBias, "differences"),
                (Role::Norm, "differences"),
                (Role::Set, "replaced weights"),
            ] {
                if parts.contains_key(&role) {
                    kinds.insert(kind.to_owned());
                }
            }
            for role in [Role::Down, Role::Hada1B, Role::Kron1B, Role::Kron2B] {
                let info = parts.get(&role).and_then(|stored| self.info(stored));
                if let Some(rank) = info.and_then(|info| info.shape.first().copied()) {
                    ranks = Some(ranks.map_or((rank, rank), |(low, high)| (low.min(rank), high.max(rank))));
                }
            }
            let part = match scope(name).0 {
                Some(Network::ClipL) => Part::ClipL.to_string(),
                Some(Network::ClipG) => Part::ClipG.to_string(),
                Some(Network::Denoiser) => denoiser.to_string(),
                None if name.contains("encoder.layers") => Part::ClipL.to_string(),
                None if denoiser == Part::UNet && Family::of_name(name).is_some() => {
                    "another network".to_owned()
                }
                None => denoiser.to_string(),
            };
            *targets.entry(part).or_default() += 1;
        }
        LoraSummary {
            kinds: kinds.into_iter().collect(),
            family,
            ranks,
            targets,
            trigger_words: self.trigger_words(),
        }
    }

    /// Words that bring out what it was trained on: what its maker wrote down, else the commonest tags of its
    /// training pictures, commonest first.
    pub fn trigger_words(&self) -> Vec<String> {
        let metadata = self.metadata();
        for key in ["modelspec.trigger_phrase", "trigger_words", "trigger_word"] {
            if let Some(phrase) = metadata.get(key) {
                let words = phrase.split(',').map(str::trim).filter(|word| !word.is_empty());
                return words
                    .filter(|word| word.len() <= WORD_BYTES)
                    .take(WORDS)
                    .map(str::to_owned)
                    .collect();
            }
        }
        let tags = metadata.get("ss_tag_frequency").map(|tags| serde_json::from_str::<Value>(tags));
        let Some(Ok(Value::Object(folders))) = tags else { return Vec::new() };
        let mut counts: BTreeMap<&str, u64> = BTreeMap::new();
        for tags in folders.values().filter_map(Value::as_object) {
            for (tag, count) in tags {
                let count = count.as_u64().unwrap_or(0);
                let total = counts.entry(tag.trim()).or_default();
                *total = total.saturating_add(count);
            }
        }
        let mut counts: Vec<(&str, u64)> = counts
            .into_iter()
            .filter(|(tag, count)| *count > 0 && !tag.is_empty() && tag.len() <= WORD_BYTES)
            .collect();
        counts.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
        counts.into_iter().take(WORDS).map(|(tag, _)| tag.to_owned()).collect()
    }
}
