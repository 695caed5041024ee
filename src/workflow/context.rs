//! What a node can reach while it runs: its inputs, the engine, the folders, and whoever listens.

use std::collections::HashMap;
use std::sync::Arc;

use serde_json::Value as Json;
use tokio_util::sync::CancellationToken;

use super::event::{Event, Listener};
use super::folders::Folders;
use super::image::{Image, Mask};
use super::latent::Latent;
use super::metadata::Metadata;
use super::value::{Clip, Cond, ControlNet, Model, Vae, Value};
use crate::catalog::Catalog;
use crate::engine::Engine;

/// Why a node did not do its work.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum NodeError {
    /// An input's value does not do; the message names it.
    #[error("{input}: {message}")]
    Input {
        /// Its name.
        input: String,
        /// What is wrong, and what would do.
        message: String,
    },
    /// The work could not be done.
    #[error("{0}")]
    Failed(String),
    /// The prompt was interrupted.
    #[error("interrupted")]
    Interrupted,
    /// The device ran out of memory.
    #[error("{0}")]
    OutOfMemory(String),
}

impl NodeError {
    /// For an input.
    pub fn input(name: &str, message: impl Into<String>) -> Self {
        Self::Input { input: name.to_owned(), message: message.into() }
    }
}

impl From<candle_core::Error> for NodeError {
    fn from(error: candle_core::Error) -> Self {
        Self::Failed(error.to_string())
    }
}

impl From<darkroom_pipelines::PipelineError> for NodeError {
    fn from(error: darkroom_pipelines::PipelineError) -> Self {
        Self::Failed(error.to_string())
    }
}

impl From<std::io::Error> for NodeError {
    fn from(error: std::io::Error) -> Self {
        Self::Failed(error.to_string())
    }
}

/// What a node runs with.
pub struct Context<'a> {
    /// Weights and samples.
    pub engine: &'a Engine,
    /// Which models there are.
    pub catalog: &'a Catalog,
    /// Where files are.
    pub folders: &'a Folders,
    /// Who hears of it.
    pub listener: &'a dyn Listener,
    /// Set when the prompt is to end.
    pub interrupt: &'a CancellationToken,
    /// The prompt's id.
    pub prompt_id: &'a str,
    /// The node's id.
    pub node: &'a str,
    /// The prompt and `extra_data.extra_pnginfo`.
    pub metadata: &'a Metadata,
}

impl Context<'_> {
    /// Tells how far this node is.
    pub fn progress(&self, value: usize, max: usize) {
        self.listener.tell(Event::Progress { node: self.node.to_owned(), value, max });
    }

    /// Ends the node where the prompt is to end.
    ///
    /// # Errors
    /// [`NodeError::Interrupted`].
    pub fn check_interrupt(&self) -> Result<(), NodeError> {
        if self.interrupt.is_cancelled() { Err(NodeError::Interrupted) } else { Ok(()) }
    }
}

/// The inputs of one run of a node, by name. The checks of the prompt and [`super::Registry`]'s defaults have been
/// applied: a declared input that is required is there.
#[derive(Debug, Clone, Default)]
pub struct Inputs(pub HashMap<String, Value>);

macro_rules! getters {
    ($($(#[$doc:meta])* $name:ident: $variant:ident => $type:ty;)*) => {$(
        $(#[$doc])*
        ///
        /// # Errors
        /// When it is not there or of another type.
        pub fn $name(&self, name: &str) -> Result<$type, NodeError> {
            match self.0.get(name) {
                Some(Value::$variant(value)) => Ok(value.clone()),
                other => Err(unexpected(name, other)),
            }
        }
    )*};
}

impl Inputs {
    getters! {
        /// A `MODEL`.
        model: Model => Model;
        /// A `CLIP`.
        clip: Clip => Clip;
        /// A `VAE`.
        vae: Vae => Vae;
        /// A `CONDITIONING`.
        conditioning: Conditioning => Arc<Vec<Cond>>;
        /// A `LATENT`.
        latent: Latent => Arc<Latent>;
        /// An `IMAGE`.
        image: Image => Image;
        /// A `MASK`.
        mask: Mask => Mask;
        /// A `CONTROL_NET`.
        control_net: ControlNet => ControlNet;
        /// A text or a choice.
        string: String => Arc<str>;
        /// Yes or no.
        boolean: Boolean => bool;
        /// A whole number.
        int: Int => i128;
        /// Everything that came on one input, for nodes that take lists whole.
        list: List => Vec<Value>;
    }

    /// The value, if it is there.
    pub fn get(&self, name: &str) -> Option<&Value> {
        self.0.get(name).filter(|value| !matches!(value, Value::None))
    }

    /// A number; whole ones do.
    ///
    /// # Errors
    /// When it is not there or of another type.
    pub fn float(&self, name: &str) -> Result<f64, NodeError> {
        match self.0.get(name) {
            Some(Value::Float(value)) => Ok(*value),
            Some(Value::Int(value)) => Ok(*value as f64),
            other => Err(unexpected(name, other)),
        }
    }

    /// A whole number that counts or measures something.
    ///
    /// # Errors
    /// When it is not there, of another type or negative.
    pub fn size(&self, name: &str) -> Result<usize, NodeError> {
        let value = self.int(name)?;
        usize::try_from(value)
            .map_err(|_| NodeError::input(name, format!("{value} is negative or too large")))
    }

    /// A seed.
    ///
    /// # Errors
    /// When it is not there, of another type or not within 64 bits.
    pub fn seed(&self, name: &str) -> Result<u64, NodeError> {
        let value = self.int(name)?;
        u64::try_from(value).map_err(|_| NodeError::input(name, format!("{value} is no seed: 0 to 2^64 - 1")))
    }
}

fn unexpected(name: &str, value: Option<&Value>) -> NodeError {
    match value {
        None | Some(Value::None) => NodeError::input(name, "is missing"),
        Some(_) => NodeError::input(name, "is of another type than the node takes"),
    }
}

/// What one run of a node gives.
#[derive(Debug, Clone, Default)]
pub struct Outputs {
    /// A value for each output; for a list output, [`Slot::List`].
    pub slots: Vec<Slot>,
    /// What front ends show: `{"images": […]}`. `executed` and the history say it.
    pub ui: Option<Json>,
}

/// What comes out of one socket.
#[derive(Debug, Clone)]
pub enum Slot {
    /// One value.
    One(Value),
    /// A list of values.
    List(Vec<Value>),
}

impl Outputs {
    /// Of one output.
    pub fn one(value: Value) -> Self {
        Self { slots: vec![Slot::One(value)], ui: None }
    }

    /// Of several.
    pub fn of(values: impl IntoIterator<Item = Value>) -> Self {
        Self { slots: values.into_iter().map(Slot::One).collect(), ui: None }
    }

    /// With something to show.
    #[must_use]
    pub fn showing(mut self, ui: Json) -> Self {
        self.ui = Some(ui);
        self
    }
}
