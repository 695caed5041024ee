//! Models as clients see them: what is on disk, what is on a device, what suits each.

use std::sync::Arc;

use super::{Service, ServiceError};
pub use crate::catalog::Defaults as ModelDefaults;
use crate::catalog::{AuxiliaryKind, Catalog, Entry};
use crate::engine::{self, Engine, ModelError, OpenDevice};

/// A model as clients see it.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelInfo {
    /// Its id.
    pub id: String,
    /// `sdxl`, `sd15`, …
    pub family: String,
    /// Bytes of its files.
    pub bytes: u64,
    /// Side it was made for, pixels.
    pub native_side: usize,
    /// Whether requests without a model get it.
    pub is_default: bool,
    /// Where its weights are.
    pub residency: Residency,
    /// Never evicted.
    pub pinned: bool,
    /// What suits it.
    pub defaults: ModelDefaults,
}

/// Where a model's weights are.
#[derive(Debug, Clone, PartialEq)]
pub enum Residency {
    /// On disk only.
    OnDisk,
    /// On its way to a device.
    Loading,
    /// On a device.
    Resident {
        /// Bytes there.
        bytes: u64,
    },
    /// It could not be loaded.
    Failed {
        /// Why.
        message: String,
    },
}

impl Service {
    /// The engine, for what draws without being a task.
    pub fn engine(&self) -> &Arc<Engine> {
        &self.0.engine
    }

    /// Which models there are.
    pub fn catalog(&self) -> &Arc<Catalog> {
        &self.0.catalog
    }

    /// What pictures are drawn on.
    pub fn devices(&self) -> &[OpenDevice] {
        self.0.engine.devices()
    }

    /// Every model: on disk and built in. Looks at the disk.
    pub fn models(&self) -> Vec<ModelInfo> {
        let residency = self.0.engine.residency();
        self.0.catalog.list().into_iter().map(|entry| self.model_info(entry, &residency)).collect()
    }

    /// Settings that suit `model` (`None`: the default model).
    ///
    /// # Errors
    /// `NotFound` when there is none such; `Invalid` when there is one that cannot be drawn with.
    pub fn defaults(&self, model: Option<&str>) -> Result<ModelDefaults, ServiceError> {
        let catalog = &self.0.catalog;
        let entry = self.model_entry(model.unwrap_or_else(|| catalog.default_id()))?;
        match &entry.problem {
            None => Ok(entry.defaults),
            Some(problem) => Err(ServiceError::Invalid {
                field: "model".into(),
                message: format!("'{}' cannot be drawn with: {problem}", entry.id),
            }),
        }
    }

    /// The id of the Qwen-Image that can be drawn with, if there is one.
    pub fn qwen_image(&self) -> Option<String> {
        self.0.catalog.qwen_image().map(|entry| entry.id)
    }

    /// The id of a LoRA that lets Qwen-Image draw in so few steps without guidance.
    pub fn lightning(&self, steps: usize) -> Option<String> {
        self.0.catalog.lightning(steps)
    }

    /// Names near to one that is not there.
    pub fn near_models(&self, id: &str) -> Vec<String> {
        self.0.catalog.near(id)
    }

    /// The file name of a model, as metadata names it.
    pub(super) fn model_file(&self, id: &str) -> String {
        self.0.catalog.find(id).map_or_else(|| id.to_owned(), |entry| entry.file_name())
    }

    /// The same of what works beside a model.
    pub(super) fn auxiliary_file(&self, kind: AuxiliaryKind, id: &str) -> String {
        self.0.catalog.find_auxiliary(kind, id).map_or_else(|| id.to_owned(), |entry| entry.file_name())
    }

    /// Brings a model onto the device, and returns when it is there.
    pub async fn load_model(&self, id: &str) -> Result<ModelInfo, ServiceError> {
        let entry = self.model_entry(id)?;
        self.0.engine.load(&entry.id).await.map_err(from_engine)?;
        Ok(self.model_info(entry, &self.0.engine.residency()))
    }

    /// Takes a model off the device; `Conflict` while pictures use it.
    pub async fn unload_model(&self, id: &str) -> Result<ModelInfo, ServiceError> {
        let entry = self.model_entry(id)?;
        self.0.engine.unload(&entry.id).await.map_err(from_engine)?;
        Ok(self.model_info(entry, &self.0.engine.residency()))
    }

    fn model_entry(&self, id: &str) -> Result<Entry, ServiceError> {
        let missing = || ServiceError::NotFound { what: "model", id: id.to_owned() };
        self.0.catalog.find(id).ok_or_else(missing)
    }

    fn model_info(
        &self,
        entry: Entry,
        residency: &std::collections::HashMap<String, engine::Residency>,
    ) -> ModelInfo {
        let catalog = &self.0.catalog;
        let pinned =
            |name: &String| name == &entry.id || catalog.find(name).is_some_and(|e| e.id == entry.id);
        ModelInfo {
            family: family(&entry),
            bytes: entry.bytes,
            native_side: entry.defaults.width.max(entry.defaults.height),
            is_default: entry.id == catalog.default_id(),
            residency: match (residency.get(&entry.id), &entry.problem) {
                (Some(engine::Residency::Loading), _) => Residency::Loading,
                (Some(engine::Residency::Resident { bytes }), _) => Residency::Resident { bytes: *bytes },
                (Some(engine::Residency::Failed { message }), _) | (None, Some(message)) => {
                    Residency::Failed { message: message.clone() }
                }
                (None, None) => Residency::OnDisk,
            },
            pinned: self.0.config.engine.pin.iter().any(pinned),
            defaults: entry.defaults.clone(),
            id: entry.id,
        }
    }
}

/// The kind's name as JSON has it: `sdxl`.
pub(super) fn family(entry: &Entry) -> String {
    serde_json::to_value(entry.kind).ok().and_then(|v| v.as_str().map(str::to_owned)).unwrap_or_default()
}

fn from_engine(error: ModelError) -> ServiceError {
    match error {
        ModelError::Stopped => ServiceError::Draining,
        other => ServiceError::Conflict { message: other.to_string() },
    }
}
