//! What is wrong with a prompt, as ComfyUI's clients read it: an error for the whole, and errors by node and input.

use serde::Serialize;
use serde::ser::Serializer;
use serde_json::{Value as Json, json};

use crate::workflow::graph::GraphError;

/// One thing that is wrong.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct PromptError {
    /// What sort, for programs: `value_smaller_than_min`.
    #[serde(rename = "type")]
    pub kind: &'static str,
    /// What sort, for people.
    pub message: String,
    /// Where, and with which value.
    pub details: String,
    /// The same for programs.
    pub extra_info: Json,
}

impl PromptError {
    pub(super) fn new(kind: &'static str, message: impl Into<String>, details: impl Into<String>) -> Self {
        Self { kind, message: message.into(), details: details.into(), extra_info: json!({}) }
    }

    pub(super) fn with(self, extra_info: Json) -> Self {
        Self { extra_info, ..self }
    }
}

/// What is wrong with one node.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct FaultyNode {
    /// Its errors.
    pub errors: Vec<PromptError>,
    /// Outputs that fail with it.
    pub dependent_outputs: Vec<String>,
    /// Its class.
    pub class_type: String,
}

/// What is wrong with nodes, by id, in the order in which they were looked at. Serialises as a JSON object.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct FaultyNodes(pub Vec<(String, FaultyNode)>);

impl FaultyNodes {
    /// The one of this id.
    pub fn get(&self, id: &str) -> Option<&FaultyNode> {
        self.0.iter().find(|(node, _)| node == id).map(|(_, errors)| errors)
    }
}

impl Serialize for FaultyNodes {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().map(|(id, errors)| (id, errors)))
    }
}

/// Why a prompt is not run at all. Serialises as the body that ComfyUI answers with status 400.
#[derive(Debug, Clone, PartialEq, Serialize, thiserror::Error)]
#[error("{}{}{}", .error.message, if .error.details.is_empty() { "" } else { ": " }, .error.details)]
pub struct Refusal {
    /// What is wrong with the whole.
    pub error: Box<PromptError>,
    /// What is wrong with nodes.
    pub node_errors: FaultyNodes,
    /// Classes of nodes that there are none of, each once, in the prompt's order.
    #[serde(skip)]
    pub missing: Vec<String>,
}

impl Refusal {
    pub(super) fn new(error: PromptError) -> Self {
        Self { error: Box::new(error), node_errors: FaultyNodes::default(), missing: Vec::new() }
    }
}

impl From<GraphError> for Refusal {
    fn from(error: GraphError) -> Self {
        Self::new(PromptError::new(
            "invalid_prompt",
            "Cannot execute because the prompt is not one.",
            error.to_string(),
        ))
    }
}
