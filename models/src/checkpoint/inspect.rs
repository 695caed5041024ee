//! What a weight file or folder is, told to people (`Display`) and programs (`Serialize`), from headers alone.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;
use std::sync::Arc;

use serde::Serialize;

use super::single_file::{is_ignored, part_of};
use super::{CheckpointError, ControlNetKind, Layout, ModelKind, Part, Prediction, folder, kind, prediction};
use crate::lora::{LoraFile, LoraSummary};
use crate::weights::{Header, TensorInfo, WeightFile};

/// Longest metadata value shown; training scripts store megabytes of tag counts.
const SHOWN: usize = 300;

/// What [`inspect`] found.
#[derive(Debug, Clone, Serialize)]
pub struct Inspection {
    /// The file or folder.
    pub path: String,
    /// What it is.
    pub kind: ModelKind,
    /// How its tensors are named and kept.
    pub layout: Layout,
    /// For checkpoints: what the UNet predicts.
    pub prediction: Option<Prediction>,
    /// For ControlNets: the models that it is made for, and its form.
    pub controlnet: Option<ControlNetKind>,
    /// For LoRAs: what they change and were made for.
    pub lora: Option<LoraSummary>,
    /// Number of tensors.
    pub tensors: u64,
    /// Number of elements of all tensors.
    pub parameters: u64,
    /// Bytes of all tensors as stored.
    pub bytes: u64,
    /// The same by element type (`f16`).
    pub bytes_by_type: BTreeMap<String, u64>,
    /// The networks in it.
    pub components: Vec<ComponentSummary>,
    /// What a picture needs and this lacks.
    pub missing: Vec<Part>,
    /// What whoever made it wrote about it; long values are cut.
    pub metadata: BTreeMap<String, String>,
    /// What else is worth knowing.
    pub notes: Vec<String>,
}

/// One network within a file or folder.
#[derive(Debug, Clone, Default, Serialize)]
pub struct ComponentSummary {
    /// Its name.
    pub name: String,
    /// Number of tensors.
    pub tensors: u64,
    /// Number of elements.
    pub parameters: u64,
    /// Bytes as stored.
    pub bytes: u64,
}

/// Says what the file or diffusers folder at `path` is. Reads no tensors.
pub fn inspect(path: &Path) -> Result<Inspection, CheckpointError> {
    if path.is_dir() { inspect_folder(path) } else { Ok(inspect_file(&Arc::new(WeightFile::open(path)?))) }
}

fn inspect_file(file: &Arc<WeightFile>) -> Inspection {
    let header = file.header();
    let (kind, layout) = kind::classify(header);
    let checkpoint = !kind.parts().is_empty() && layout == Layout::Ldm;
    let mut found = Inspection::empty(file.name().to_owned(), kind, layout);
    let mut summaries: BTreeMap<String, ComponentSummary> = BTreeMap::new();
    let mut present = Vec::new();
    let (mut ignored, mut stray) = (0, Vec::new());
    for (name, info) in &header.tensors {
        found.count(info);
        let component = match part_of(name) {
            Some((part, _)) => {
                if !present.contains(&part) {
                    present.push(part);
                }
                part.to_string()
            }
            None if checkpoint && is_ignored(name) => {
                ignored += 1;
                continue;
            }
            None if checkpoint => {
                stray.push(name);
                continue;
            }
            None => kind.to_string(),
        };
        summaries.entry(component).or_default().count(info);
    }
    found.components =
        summaries.into_iter().map(|(name, summary)| ComponentSummary { name, ..summary }).collect();
    if checkpoint {
        found.missing = kind.parts().iter().copied().filter(|part| !present.contains(part)).collect();
        match prediction::of_file(header) {
            Ok(prediction) => found.prediction = Some(prediction),
            Err(other) => found.notes.push(format!("prediction type {other} is not supported")),
        }
    }
    found.controlnet = ControlNetKind::of(header);
    if let Some(controlnet) = found.controlnet {
        found.notes.push(format!("it is made for {}", controlnet.family));
        found.notes.extend(controlnet.form.problem().map(str::to_owned));
    }
    if kind == ModelKind::Lora {
        match LoraFile::open(file.clone()) {
            Ok(lora) => found.lora = Some(lora.summary()),
            Err(error) => found.notes.push(error.to_string()),
        }
    }
    if ignored > 0 {
        found.notes.push(format!("{ignored} tensors of training state or schedules are ignored"));
    }
    if let Some(first) = stray.first() {
        found.notes.push(format!("{} tensors belong to no known part, first '{first}'", stray.len()));
    }
    found.add_metadata(header);
    found
}

fn inspect_folder(root: &Path) -> Result<Inspection, CheckpointError> {
    let kind = folder::kind(root)?;
    let mut found = Inspection::empty(root.display().to_string(), kind, Layout::DiffusersFolder);
    for (part, dir) in folder::parts(kind) {
        let dir = root.join(dir);
        if !dir.is_dir() {
            if kind.parts().contains(part) {
                found.missing.push(*part);
            }
            continue;
        }
        let mut summary = ComponentSummary { name: part.to_string(), ..ComponentSummary::default() };
        let mut last: Option<Arc<WeightFile>> = None;
        for (name, file) in folder::weight_files(&dir)? {
            if let Some(info) = file.header().tensors.get(&name) {
                found.count(info);
                summary.count(info);
            }
            if !last.as_ref().is_some_and(|last| Arc::ptr_eq(last, &file)) {
                found.add_metadata(file.header());
                last = Some(file);
            }
        }
        found.components.push(summary);
    }
    if matches!(kind, ModelKind::Sdxl | ModelKind::Sd15) {
        match folder::scheduler(root) {
            Ok(prediction) => found.prediction = Some(prediction),
            Err(CheckpointError::Unsupported { reason, .. }) => found.notes.push(reason),
            Err(other) => return Err(other),
        }
    }
    Ok(found)
}

impl Inspection {
    fn empty(path: String, kind: ModelKind, layout: Layout) -> Self {
        Self {
            path,
            kind,
            layout,
            prediction: None,
            controlnet: None,
            lora: None,
            tensors: 0,
            parameters: 0,
            bytes: 0,
            bytes_by_type: BTreeMap::new(),
            components: Vec::new(),
            missing: Vec::new(),
            metadata: BTreeMap::new(),
            notes: Vec::new(),
        }
    }

    fn count(&mut self, info: &TensorInfo) {
        self.tensors += 1;
        self.parameters += info.elements() as u64;
        self.bytes += info.stored_bytes() as u64;
        *self.bytes_by_type.entry(info.dtype.to_string()).or_default() += info.stored_bytes() as u64;
    }

    fn add_metadata(&mut self, header: &Header) {
        for (key, value) in &header.metadata {
            let cut = match value.char_indices().nth(SHOWN) {
                None => value.clone(),
                Some((end, _)) => format!("{}… ({} bytes)", &value[..end], value.len()),
            };
            self.metadata.insert(key.clone(), cut);
        }
    }
}

impl ComponentSummary {
    fn count(&mut self, info: &TensorInfo) {
        self.tensors += 1;
        self.parameters += info.elements() as u64;
        self.bytes += info.stored_bytes() as u64;
    }
}

impl fmt::Display for Inspection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}: {} ({})", self.path, self.kind, self.layout)?;
        let types: Vec<String> = self
            .bytes_by_type
            .iter()
            .map(|(name, bytes)| format!("{name} {}", Amount(*bytes, "B")))
            .collect();
        writeln!(
            f,
            "  {} tensors, {}, {} ({})",
            self.tensors,
            Amount(self.parameters, "parameters"),
            Amount(self.bytes, "B"),
            types.join(", ")
        )?;
        for part in &self.components {
            writeln!(
                f,
                "  has {}: {} tensors, {}, {}",
                part.name,
                part.tensors,
                Amount(part.parameters, "parameters"),
                Amount(part.bytes, "B")
            )?;
        }
        for part in &self.missing {
            writeln!(f, "  missing: {part}")?;
        }
        if let Some(prediction) = &self.prediction {
            writeln!(f, "  predicts: {prediction}")?;
        }
        if let Some(lora) = &self.lora {
            write!(f, "{lora}")?;
        }
        for note in &self.notes {
            writeln!(f, "  note: {note}")?;
        }
        for (key, value) in &self.metadata {
            // Quoted: whoever wrote the file does not get to draw on the terminal.
            writeln!(f, "  {}: {value:?}", key.escape_debug())?;
        }
        Ok(())
    }
}

/// A count in thousands, millions, … of a unit.
struct Amount(u64, &'static str);

impl fmt::Display for Amount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(count, unit) = self;
        let (divisor, prefix) = match count {
            0..1_000 => return write!(f, "{count} {unit}"),
            1_000..1_000_000 => (1e3, "k"),
            1_000_000..1_000_000_000 => (1e6, "M"),
            _ => (1e9, "G"),
        };
        let space = if *unit == "B" { "" } else { " " };
        write!(f, "{:.2} {prefix}{space}{unit}", *count as f64 / divisor)
    }
}
