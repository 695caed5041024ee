//! All nodes that Darkroom has, by class.

use std::collections::BTreeMap;

use super::context::{Context, Inputs, NodeError, Outputs};
use super::interface::Interface;

/// What a node does. Called on a thread of its own for each prompt: it may block.
pub type Run = fn(&Inputs, &Context<'_>) -> Result<Outputs, NodeError>;

/// What tells one run from another beside the inputs (ComfyUI's `IS_CHANGED`): a digest of the file that `LoadImage`
/// names, a fresh number for what must run each time.
pub type Changed = fn(&Inputs, &Context<'_>) -> Option<String>;

/// Checks that an interface cannot say (ComfyUI's `VALIDATE_INPUTS`): the message where the constant inputs do not do.
pub type Check = fn(&Inputs, &super::Folders) -> Result<(), String>;

/// A node: what it takes and gives, and what it does.
pub struct Node {
    /// What it takes and gives.
    pub interface: Interface,
    /// What it does.
    pub run: Run,
    /// What tells one run from another beside the inputs.
    pub changed: Option<Changed>,
    /// More checks, and the input that they are about.
    pub check: Option<(&'static str, Check)>,
}

/// All nodes.
#[derive(Default)]
pub struct Registry {
    nodes: BTreeMap<&'static str, Node>,
}

impl Registry {
    /// Every node there is.
    pub fn all() -> Self {
        let mut registry = Self::default();
        super::nodes::register(&mut registry);
        registry
    }

    /// Adds a node.
    pub fn add(&mut self, interface: Interface, run: Run) -> &mut Node {
        let class = interface.class;
        self.nodes.insert(class, Node { interface, run, changed: None, check: None });
        // Just put there.
        #[allow(clippy::expect_used, reason = "it was put there in the line above")]
        self.nodes.get_mut(class).expect("a node")
    }

    /// The node of this class.
    pub fn get(&self, class: &str) -> Option<&Node> {
        self.nodes.get(class)
    }

    /// All of them, by class.
    pub fn iter(&self) -> impl Iterator<Item = &Node> {
        self.nodes.values()
    }
}
