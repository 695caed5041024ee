//! Prompts run by the workflow engine.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::Value as Json;
use tokio::runtime::Handle;

use super::messages::to_json;
use super::runner::{Passed, Rejected, Runner, Running, Work};
use crate::engine::Residency;
use crate::workflow::check::{Checked, Refusal};
use crate::workflow::graph::Graph;
use crate::workflow::{Ordered, Workflows};

/// The workflow engine as a [`Runner`].
pub struct WorkflowRunner {
    workflows: Arc<Workflows>,
    /// Models that stay in memory.
    pinned: Vec<String>,
    runtime: Handle,
}

impl WorkflowRunner {
    /// Of an engine; `pinned` models are never freed. To be made on a thread of the runtime.
    pub fn new(workflows: Arc<Workflows>, pinned: Vec<String>) -> Self {
        Self { workflows, pinned, runtime: Handle::current() }
    }
}

fn rejected(refusal: &Refusal) -> Rejected {
    Rejected { error: to_json(&refusal.error), node_errors: to_json(&refusal.node_errors) }
}

impl Runner for WorkflowRunner {
    fn check(
        &self,
        prompt: Ordered,
        targets: Option<&[String]>,
        _: Option<&Ordered>,
    ) -> Result<Passed, Rejected> {
        let graph = Graph::new(prompt).map_err(|error| rejected(&error.into()))?;
        let checked = self.workflows.check(&graph, targets).map_err(|refusal| rejected(&refusal))?;
        Ok(Passed {
            prompt: to_json(&checked.graph),
            outputs: checked.outputs.clone(),
            node_errors: to_json(&checked.node_errors),
            work: Box::new(Prompt { workflows: Arc::clone(&self.workflows), checked }),
        })
    }

    fn free(&self, models: bool, cache: bool) {
        if cache {
            self.workflows.cache.clear();
        }
        if !models {
            return;
        }
        let engine = &self.workflows.engine;
        for (model, residency) in engine.residency() {
            if !matches!(residency, Residency::Resident { .. }) || self.pinned.contains(&model) {
                continue;
            }
            // One that is in use stays.
            if let Err(error) = self.runtime.block_on(engine.unload(&model)) {
                tracing::debug!(model, %error, "not freed");
            }
        }
    }

    fn cache_bytes(&self) -> usize {
        self.workflows.cache.bytes()
    }
}

struct Prompt {
    workflows: Arc<Workflows>,
    checked: Checked,
}

impl Work for Prompt {
    fn run(self: Box<Self>, with: &Running<'_>) -> BTreeMap<String, Json> {
        let Running { prompt_id, extra_pnginfo, listener, interrupt } = *with;
        let result = self.workflows.run(prompt_id, &self.checked, extra_pnginfo, listener, interrupt);
        result.outputs
    }
}
