//! What the server of prompts needs of whatever runs them: the workflow engine, or a toy in tests.

use std::collections::BTreeMap;

use serde_json::Value as Json;
use tokio_util::sync::CancellationToken;

use crate::workflow::Ordered;
use crate::workflow::event::Listener;

/// Checks prompts and runs them.
pub trait Runner: Send + Sync + 'static {
    /// Checks a prompt. `targets` are the output nodes that are asked for; `None`: all.
    ///
    /// # Errors
    /// When nothing of it can be run.
    fn check(
        &self,
        prompt: Ordered,
        targets: Option<&[String]>,
        extra_pnginfo: Option<&Ordered>,
    ) -> Result<Passed, Rejected>;

    /// Takes what no prompt uses from memory: outputs of nodes that were kept, and, if `models`, weights as well.
    fn free(&self, models: bool, cache: bool);

    /// Bytes of outputs of nodes that are kept for later prompts.
    fn cache_bytes(&self) -> usize;
}

/// A prompt that can be run.
pub struct Passed {
    /// The prompt as JSON, values converted.
    pub prompt: String,
    /// Ids of the output nodes that will be run.
    pub outputs: Vec<String>,
    /// What is wrong with the others, as JSON: `{}`.
    pub node_errors: String,
    /// Runs it.
    pub work: Box<dyn Work>,
}

/// Why a prompt is not run, as JSON.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rejected {
    /// `{"type", "message", "details", "extra_info"}`.
    pub error: String,
    /// What is wrong with its nodes: `{}`.
    pub node_errors: String,
}

/// A checked prompt, to be run once.
pub trait Work: Send {
    /// Runs it on this thread and tells what happens, from `Started` to `Succeeded`, `Failed` or `Interrupted`. Returns
    /// what its nodes show, by id, for the history: also what was in the cache and was not told.
    fn run(self: Box<Self>, with: &Running<'_>) -> BTreeMap<String, Json>;
}

/// What a prompt runs with.
pub struct Running<'a> {
    /// Its id.
    pub prompt_id: &'a str,
    /// `extra_data.extra_pnginfo`.
    pub extra_pnginfo: Option<&'a Ordered>,
    /// Who hears of it.
    pub listener: &'a dyn Listener,
    /// Cancelled when it is to end.
    pub interrupt: &'a CancellationToken,
}
