//! ComfyUI workflows: graphs of nodes in its API format, checked as it checks them and executed in its order. Sits
//! above `engine` (samples, resident weights) and below `http` and `cli`, which hand it graphs and hear its events.
//! Knows no HTTP.
//!
//! - [`interface`] says what a node takes and gives, once; `object_info`, checks and documentation come from it;
//! - [`value`] is what travels along links; [`image`] and [`latent`] are the larger ones;
//! - [`registry`] knows all nodes; `nodes/` has them, a section of a file each;
//! - [`context`] is what a node can reach while it runs;
//! - [`folders`] keeps names of files inside the folders they belong to;
//! - [`event`] is what is told while a prompt runs;
//! - [`graph`] is a prompt, [`check`] says what is wrong with it, [`execute`] runs it, [`cache`] keeps what nodes gave;
//! - [`ordered`] is JSON that keeps its order, [`metadata`] what pictures carry of it.

mod borrowed;
pub mod cache;
pub mod check;
pub mod context;
pub mod event;
pub mod execute;
pub mod folders;
pub mod graph;
pub mod image;
mod inputs;
pub mod interface;
pub mod latent;
pub mod metadata;
pub mod nodes;
pub mod ordered;
pub mod python;
pub mod registry;
pub mod signature;
pub mod value;
pub mod workflows;

pub use cache::{Cache, NodeResult};
pub use check::{Checked, Refusal, check};
pub use context::{Context, Inputs, NodeError, Outputs};
pub use event::{Event, Listener};
pub use execute::{Ending, Run, RunResult, Surroundings, execute};
pub use folders::{FileType, Folders};
pub use graph::Graph;
pub use image::{Image, Mask};
pub use interface::{Interface, NodeOutput};
pub use latent::Latent;
pub use metadata::Metadata;
pub use ordered::Ordered;
pub use registry::{Node, Registry};
pub use value::{Kind, Value};
pub use workflows::Workflows;
