//! A real ComfyUI behind Darkroom: prompts with nodes that Darkroom lacks go to it whole. Darkroom's clients see one
//! server: pictures that a prompt loads are uploaded there first, its events come back as they happen, and what it
//! saves is fetched into Darkroom's own folders. A [`Runner`] around the workflow engine's.
//!
//! - `link` speaks to the other server; `relay` turns its messages into events; `files` moves pictures.

mod files;
mod link;
mod relay;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::Value as Json;
use tokio::runtime::Handle;

use super::lock;
use super::runner::{Passed, Rejected, Runner, Running, Work};
use crate::metrics::{ByNode, Metrics};
use crate::workflow::{Folders, Ordered};
pub use link::LinkError;
use link::{Link, Socket};

/// How long the other server's list of nodes is believed.
const NODES_FRESH: Duration = Duration::from_secs(60);
/// Most classes that metrics tell apart: names come from clients.
const MOST_CLASSES: usize = 500;

/// Hands over what the workflow engine lacks nodes for.
pub struct WithUpstream {
    own: Arc<dyn Runner>,
    link: Arc<Link>,
    folders: Arc<Folders>,
    metrics: Arc<Metrics>,
    runtime: Handle,
    nodes: std::sync::Mutex<Option<(Instant, Arc<Json>)>>,
    counted: std::sync::Mutex<Vec<String>>,
}

impl WithUpstream {
    /// `own` runs what it can; the rest goes to the server at `url`. To be called within a runtime.
    ///
    /// # Errors
    /// When `url` is no address of a server.
    pub fn new(
        own: Arc<dyn Runner>,
        url: &str,
        folders: Arc<Folders>,
        metrics: Arc<Metrics>,
    ) -> Result<Self, LinkError> {
        Ok(Self {
            own,
            link: Arc::new(Link::new(url)?),
            folders,
            metrics,
            runtime: Handle::current(),
            nodes: std::sync::Mutex::default(),
            counted: std::sync::Mutex::default(),
        })
    }

    /// What the other server says of its nodes (`/object_info`); `None` when it does not answer. Blocks.
    pub fn nodes(&self) -> Option<Arc<Json>> {
        if let Some((at, nodes)) = &*lock(&self.nodes)
            && at.elapsed() < NODES_FRESH
        {
            return Some(Arc::clone(nodes));
        }
        match self.runtime.block_on(self.link.json("/object_info")) {
            Ok(nodes) => {
                let nodes = Arc::new(nodes);
                *lock(&self.nodes) = Some((Instant::now(), Arc::clone(&nodes)));
                Some(nodes)
            }
            Err(error) => {
                tracing::warn!(%error, "the ComfyUI behind this server does not say what nodes it has");
                None
            }
        }
    }

    fn count(&self, classes: &[String]) {
        self.metrics.comfy_upstream_prompts.inc();
        let mut counted = lock(&self.counted);
        for class in classes {
            if !counted.contains(class) {
                if counted.len() >= MOST_CLASSES {
                    continue;
                }
                counted.push(class.clone());
            }
            self.metrics.comfy_missing_nodes.get_or_create(&ByNode { class: class.clone() }).inc();
        }
    }

    /// Hands a prompt over. It is queued there from now on.
    async fn hand_over(
        &self,
        prompt: &Ordered,
        targets: Option<&[String]>,
        extra_pnginfo: Option<&Ordered>,
    ) -> Result<Passed, Rejected> {
        let unreachable = |error: LinkError| rejected("upstream_unreachable", &error.to_string());
        files::upload_inputs(&self.link, &self.folders, prompt).await.map_err(unreachable)?;
        let socket = Socket::open(&self.link).await.map_err(unreachable)?;
        let text = serde_json::to_string(prompt).unwrap_or_default();
        let answer =
            self.link.submit(&text, targets, extra_pnginfo, socket.id()).await.map_err(unreachable)?;
        let answer = match answer {
            Ok(answer) => answer,
            Err(refused) => return Err(refused),
        };
        let relayed = relay::Relayed {
            link: Arc::clone(&self.link),
            folders: Arc::clone(&self.folders),
            runtime: self.runtime.clone(),
            socket: Some(socket),
            prompt_id: answer.prompt_id,
            classes: classes(prompt),
            ended: false,
        };
        Ok(Passed {
            prompt: text,
            outputs: targets.map(<[String]>::to_vec).unwrap_or_default(),
            node_errors: answer.node_errors,
            work: Box::new(relayed),
        })
    }
}

impl Runner for WithUpstream {
    fn check(
        &self,
        prompt: Ordered,
        targets: Option<&[String]>,
        extra_pnginfo: Option<&Ordered>,
    ) -> Result<Passed, Rejected> {
        let refused = match self.own.check(prompt.clone(), targets, extra_pnginfo) {
            Err(refused) => refused,
            passed => return passed,
        };
        let missing = missing_classes(&refused);
        if missing.is_empty() {
            return Err(refused);
        }
        self.count(&missing);
        tracing::info!(nodes = missing.join(", "), "a prompt goes to the ComfyUI behind this server");
        self.runtime.block_on(self.hand_over(&prompt, targets, extra_pnginfo))
    }

    fn free(&self, models: bool, cache: bool) {
        self.own.free(models, cache);
        if let Err(error) = self.runtime.block_on(self.link.free(models, cache)) {
            tracing::warn!(%error, "the ComfyUI behind this server freed nothing");
        }
    }

    fn cache_bytes(&self) -> usize {
        self.own.cache_bytes()
    }
}

impl Work for relay::Relayed {
    fn run(mut self: Box<Self>, with: &Running<'_>) -> BTreeMap<String, Json> {
        let runtime = self.runtime.clone();
        runtime.block_on(self.follow(with))
    }
}

/// The classes that the workflow engine lacks, as its refusal names them.
fn missing_classes(refused: &Rejected) -> Vec<String> {
    let error: Json = serde_json::from_str(&refused.error).unwrap_or_default();
    let missing = error["extra_info"]["missing"].as_array().into_iter().flatten();
    missing.filter_map(|node| node["class_type"].as_str().map(str::to_owned)).collect()
}

fn classes(prompt: &Ordered) -> BTreeMap<String, String> {
    let nodes = prompt.as_object().into_iter().flatten();
    let class = |node: &Ordered| node.get("class_type").and_then(Ordered::as_str).map(str::to_owned);
    nodes.filter_map(|(id, node)| Some((id.clone(), class(node)?))).collect()
}

fn rejected(kind: &str, message: &str) -> Rejected {
    let error = serde_json::json!({
        "type": kind,
        "message": "the ComfyUI that is to run this prompt does not answer",
        "details": message,
        "extra_info": {},
    });
    Rejected { error: error.to_string(), node_errors: "{}".into() }
}
