//! What is told while a prompt runs, in ComfyUI's order. Who listens turns it into messages.

use serde_json::Value as Json;

/// One thing that happened to a prompt.
#[derive(Debug, Clone)]
pub enum Event {
    /// It runs.
    Started,
    /// What is taken from the cache.
    Cached {
        /// Ids of nodes.
        nodes: Vec<String>,
    },
    /// A node runs.
    Executing {
        /// Its id.
        node: String,
    },
    /// A node is so far.
    Progress {
        /// Its id.
        node: String,
        /// Steps done.
        value: usize,
        /// Steps in all.
        max: usize,
    },
    /// What a node's pictures look like so far.
    Preview {
        /// Its id.
        node: String,
        /// Pixels in a row.
        width: usize,
        /// Rows.
        height: usize,
        /// 8-bit RGB.
        rgb: Vec<u8>,
    },
    /// A picture that a node sends to the client itself (`SaveImageWebsocket`): PNG.
    Picture {
        /// Its id.
        node: String,
        /// The file.
        png: Vec<u8>,
    },
    /// A text that a node shows.
    Text {
        /// Its id.
        node: String,
        /// The text.
        text: String,
    },
    /// A node with something to show has run, or was taken from the cache.
    Executed {
        /// Its id.
        node: String,
        /// `{"images": […]}`.
        output: Json,
        /// The node that it was when it ran: another one's id where that took the same inputs.
        ran_as: String,
    },
    /// A node has run.
    Finished {
        /// Its id.
        node: String,
    },
    /// All is done.
    Succeeded,
    /// A node failed, and with it the prompt.
    Failed(Box<Failure>),
    /// It was interrupted.
    Interrupted {
        /// The node that ran.
        node: String,
        /// Its class.
        class: String,
        /// Nodes that had run.
        executed: Vec<String>,
    },
}

/// Why a prompt failed, as `execution_error` says it.
#[derive(Debug, Clone, PartialEq)]
pub struct Failure {
    /// The node.
    pub node: String,
    /// Its class.
    pub class: String,
    /// Nodes that had run.
    pub executed: Vec<String>,
    /// What went wrong, and what to do.
    pub message: String,
    /// The error's kind, as a Python class would be called.
    pub kind: String,
    /// The node's inputs that can be shown.
    pub inputs: Json,
}

/// Hears what happens to one prompt. Called from the thread that runs it; must not block for long.
pub trait Listener: Send + Sync {
    /// Something happened.
    fn tell(&self, event: Event);
    /// Whether anyone wants previews.
    fn wants_previews(&self) -> bool {
        false
    }
}
