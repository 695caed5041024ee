//! Runs a checked prompt on the calling thread: nodes in ComfyUI's order, each with the values that its links bring,
//! outputs taken from the cache where they are there. Tells what happens as ComfyUI tells it.

mod map;
mod order;

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use serde_json::{Map, Value as Json, json};
use tokio_util::sync::CancellationToken;

use super::cache::{Cache, Claim, NodeResult};
use super::check::Checked;
use super::check::linked::output_index;
use super::context::{Context, Inputs, NodeError};
use super::event::{Event, Failure, Listener};
use super::folders::Folders;
use super::graph::{Link, link};
use super::inputs;
use super::metadata::Metadata;
use super::ordered::Ordered;
use super::registry::{Node, Registry};
use super::signature::{Signature, signature};
use super::value::Value;
use crate::catalog::Catalog;
use crate::engine::Engine;
use order::{Order, Wiring};

/// Appended to the message of a node that ran out of memory.
const OUT_OF_MEMORY: &str = "This error means you ran out of memory on your GPU.\n\nTIPS: If the workflow worked before you \
     might have accidentally set the batch_size to a large number.";

/// What prompts run with.
#[derive(Clone, Copy)]
pub struct Surroundings<'a> {
    /// All nodes.
    pub registry: &'a Registry,
    /// Results of earlier prompts.
    pub cache: &'a Cache,
    /// Weights and samples.
    pub engine: &'a Engine,
    /// Which models there are.
    pub catalog: &'a Catalog,
    /// Where files are.
    pub folders: &'a Folders,
}

/// One prompt.
#[derive(Clone, Copy)]
pub struct Run<'a> {
    /// Its id.
    pub prompt_id: &'a str,
    /// What to run.
    pub checked: &'a Checked,
    /// `extra_data.extra_pnginfo`.
    pub extra_pnginfo: Option<&'a Ordered>,
    /// Who hears of it.
    pub listener: &'a dyn Listener,
    /// Set when it is to end.
    pub interrupt: &'a CancellationToken,
    /// Nodes whose values are wanted when it is done.
    pub keep: &'a [String],
}

/// How it ended.
#[derive(Debug, Clone, PartialEq)]
pub enum Ending {
    /// All outputs are there.
    Succeeded,
    /// A node failed.
    Failed(Box<Failure>),
    /// It was interrupted.
    Interrupted {
        /// The node that ran.
        node: String,
        /// Its class.
        class: String,
    },
}

/// What became of a prompt.
#[derive(Debug)]
pub struct RunResult {
    /// How it ended.
    pub ending: Ending,
    /// What nodes show, by id: `{"9": {"images": […]}}`, also of those that were taken from the cache.
    pub outputs: BTreeMap<String, Json>,
    /// Nodes that ran, in order.
    pub executed: Vec<String>,
    /// Values of the nodes that [`Run::keep`] names, by output.
    pub values: HashMap<String, Arc<NodeResult>>,
}

impl RunResult {
    /// `outputs` and `meta` of the history.
    pub fn history(&self) -> (Json, Json) {
        let meta = self.outputs.keys().map(|id| {
            let about = json!({ "node_id": id, "display_node": id, "parent_node": null, "real_node_id": id });
            (id.clone(), about)
        });
        let meta: Map<String, Json> = meta.collect();
        (json!(self.outputs), meta.into())
    }
}

/// Runs it. Blocks until it has ended.
pub fn execute(surroundings: Surroundings<'_>, run: Run<'_>) -> RunResult {
    run.listener.tell(Event::Started);
    let graph = &run.checked.graph;
    let metadata = Metadata::new(graph.to_ordered(), run.extra_pnginfo.cloned());
    let mut runner = Runner {
        surroundings,
        run,
        metadata: &metadata,
        signatures: HashMap::new(),
        results: HashMap::new(),
        uses: HashMap::new(),
        wanted: run.checked.outputs.iter().chain(run.keep).map(String::as_str).collect(),
        outputs: BTreeMap::new(),
        executed: Vec::new(),
    };
    let ending = runner.run();
    run.listener.tell(match &ending {
        Ending::Succeeded => Event::Succeeded,
        Ending::Failed(failure) => Event::Failed(failure.clone()),
        Ending::Interrupted { node, class } => {
            Event::Interrupted { node: node.clone(), class: class.clone(), executed: runner.executed.clone() }
        }
    });
    let keep = run.keep.iter();
    let values = keep.filter_map(|id| Some((id.clone(), runner.results.remove(id)?))).collect();
    RunResult { ending, outputs: runner.outputs, executed: runner.executed, values }
}

struct Runner<'a> {
    surroundings: Surroundings<'a>,
    run: Run<'a>,
    metadata: &'a Metadata,
    /// Of the nodes that are needed.
    signatures: HashMap<&'a str, Signature>,
    /// Held here as well, so that what the cache puts out meanwhile is still there.
    results: HashMap<String, Arc<NodeResult>>,
    /// How many nodes still need a node's result.
    uses: HashMap<&'a str, usize>,
    /// Nodes whose results stay until the end.
    wanted: HashSet<&'a str>,
    outputs: BTreeMap<String, Json>,
    executed: Vec<String>,
}

/// Why a node gave nothing.
enum Stop {
    Interrupted,
    Failed(NodeError, Json),
}

impl<'a> Runner<'a> {
    fn run(&mut self) -> Ending {
        let needed = self.sign();
        let mut cached = Vec::new();
        for id in self.run.checked.graph.ids() {
            let Some(signature) = self.signatures.get(id).filter(|_| needed.contains(id)) else { continue };
            if let Some(result) = self.surroundings.cache.get(signature) {
                self.show(id, &result);
                self.results.insert(id.to_owned(), result);
                cached.push(id.to_owned());
            }
        }
        self.run.listener.tell(Event::Cached { nodes: cached });
        let mut wanted = self.run.checked.outputs.clone();
        // Values that are asked for are needed as outputs are.
        wanted.extend(self.run.keep.iter().filter(|id| self.run.checked.graph.contains(id)).cloned());
        let mut order = Order::new(&wanted, self);
        while let Some(id) = order.next() {
            let Some((id, _)) = self.find(&id) else { break };
            match self.node(id) {
                Ok(()) => {
                    order.done(id);
                    self.release(id);
                }
                Err(Stop::Interrupted) => {
                    let class = self.class(id).to_owned();
                    return Ending::Interrupted { node: id.to_owned(), class };
                }
                Err(Stop::Failed(error, inputs)) => return self.failed(id, &error, inputs),
            }
        }
        if order.left() > 0 {
            // Checked prompts have no cycles; this is for graphs that were put together by other means.
            let id = order.waiting().unwrap_or_default().to_owned();
            let error = NodeError::Failed("Dependency cycle detected".into());
            return self.failed(&id, &error, json!([]));
        }
        Ending::Succeeded
    }

    /// The id as the graph holds it.
    fn find(&self, id: &str) -> Option<(&'a str, &'a Node)> {
        let graph = &self.run.checked.graph;
        let id = graph.id(id)?;
        Some((id, self.surroundings.registry.get(graph.class(id))?))
    }

    fn class(&self, id: &str) -> &'a str {
        self.run.checked.graph.class(id)
    }

    /// Links of a node's inputs, declared or taken anyway, in order, whose nodes exist.
    fn links(&self, id: &str, node: &Node) -> Vec<(&'a str, Link<'a>)> {
        let inputs = self.run.checked.graph.inputs(id).into_iter().flatten();
        let taken = inputs.filter(|(name, _)| {
            node.interface.find(name).is_some() || inputs::is_open(&node.interface, name)
        });
        let links = taken.filter_map(|(name, value)| Some((name.as_str(), link(value)?)));
        links.filter(|(_, link)| self.run.checked.graph.contains(link.node)).collect()
    }

    /// Signs every node that is needed, sources first, without recursion. Gives their ids.
    fn sign(&mut self) -> HashSet<&'a str> {
        let mut needed = HashSet::new();
        let mut stack: Vec<(&'a str, bool)> = Vec::new();
        let run = self.run;
        for id in run.checked.outputs.iter().chain(run.keep) {
            stack.push((id, false));
            while let Some((id, sources_done)) = stack.pop() {
                let Some((id, node)) = self.find(id) else { continue };
                if sources_done {
                    let signature = self.signature(id, node);
                    self.signatures.insert(id, signature);
                    continue;
                }
                if !needed.insert(id) {
                    continue;
                }
                stack.push((id, true));
                for (_, link) in self.links(id, node) {
                    *self.uses.entry(link.node).or_default() += 1;
                    stack.push((link.node, false));
                }
            }
        }
        needed
    }

    fn signature(&self, id: &'a str, node: &Node) -> Signature {
        let graph = &self.run.checked.graph;
        let changed = node.changed.map(|changed| {
            let constants = inputs::constants(&node.interface, graph.inputs(id));
            let asked = catch_unwind(AssertUnwindSafe(|| changed(&constants, &self.context(id))));
            let told = asked.ok().flatten();
            if let Some(told) = &told {
                self.metadata.note_changed(id, told);
            }
            // A node that cannot tell is run.
            told.unwrap_or_else(|| uuid::Uuid::new_v4().to_string())
        });
        let of_source = |source: &str| self.signatures.get(source).copied();
        signature(graph, id, &node.interface, changed.as_deref(), &of_source)
    }

    fn context<'b>(&'b self, id: &'b str) -> Context<'b> {
        Context {
            engine: self.surroundings.engine,
            catalog: self.surroundings.catalog,
            folders: self.surroundings.folders,
            listener: self.run.listener,
            interrupt: self.run.interrupt,
            prompt_id: self.run.prompt_id,
            node: id,
            metadata: self.metadata,
        }
    }

    /// Keeps what a node shows for the history.
    fn show(&mut self, id: &str, result: &NodeResult) {
        if let Some(ui) = &result.ui {
            self.outputs.insert(id.to_owned(), ui.clone());
        }
    }

    /// Runs a node, or takes its result from the cache.
    fn node(&mut self, id: &'a str) -> Result<(), Stop> {
        let Some((id, node)) = self.find(id) else { return Ok(()) };
        let Some(signature) = self.signatures.get(id).copied() else { return Ok(()) };
        let known = self.results.get(id).cloned().or_else(|| self.surroundings.cache.get(&signature));
        if let Some(result) = known {
            // ComfyUI tells it of every cached node that it comes to, with what it shows or nothing.
            let output = result.ui.clone().unwrap_or(Json::Null);
            let ran_as = result.node.clone();
            self.run.listener.tell(Event::Executed { node: id.to_owned(), output, ran_as });
            self.came(id, result);
            return Ok(());
        }
        self.run.listener.tell(Event::Executing { node: id.to_owned() });
        if self.run.interrupt.is_cancelled() {
            return Err(Stop::Interrupted);
        }
        let cache = self.surroundings.cache;
        let result = match cache.claim(&signature, self.run.interrupt) {
            Claim::Interrupted => return Err(Stop::Interrupted),
            Claim::Ready(result) => result,
            Claim::Mine(flight) => {
                let mut result = self.compute(id, node)?;
                id.clone_into(&mut result.node);
                let result = Arc::new(result);
                flight.finish(&result);
                result
            }
        };
        if let Some(ui) = &result.ui {
            let (output, ran_as) = (ui.clone(), result.node.clone());
            self.run.listener.tell(Event::Executed { node: id.to_owned(), output, ran_as });
        }
        self.executed.push(id.to_owned());
        self.came(id, result);
        Ok(())
    }

    fn came(&mut self, id: &str, result: Arc<NodeResult>) {
        self.show(id, &result);
        self.results.insert(id.to_owned(), result);
        self.run.listener.tell(Event::Finished { node: id.to_owned() });
    }

    fn compute(&self, id: &'a str, node: &Node) -> Result<NodeResult, Stop> {
        let given = self.given(id, node);
        let context = self.context(id);
        let run = |inputs: &Inputs| {
            context.check_interrupt()?;
            let ran = catch_unwind(AssertUnwindSafe(|| (node.run)(inputs, &context)));
            ran.unwrap_or_else(|panic| Err(NodeError::Failed(map::panic_text(&*panic))))
        };
        match map::run(&node.interface, &given, run) {
            Ok(result) => Ok(result),
            Err(NodeError::Interrupted) => Err(Stop::Interrupted),
            Err(error) => Err(Stop::Failed(error, map::shown(&given))),
        }
    }

    /// What comes to a node's inputs: a list each.
    fn given(&self, id: &str, node: &Node) -> map::Given {
        let mut given: map::Given = BTreeMap::new();
        for (name, value) in inputs::constants(&node.interface, self.run.checked.graph.inputs(id)).0 {
            given.insert(name, vec![value]);
        }
        for (name, link) in self.links(id, node) {
            let values = self.results.get(link.node).and_then(|result| {
                let index = output_index(link.slot, result.slots.len())?;
                result.slots.get(index).cloned()
            });
            given.insert(name.to_owned(), values.unwrap_or_else(|| vec![Value::None]));
        }
        given
    }

    /// A node has run: results that only it still needed are let go.
    fn release(&mut self, id: &'a str) {
        let Some((id, node)) = self.find(id) else { return };
        for (_, link) in self.links(id, node) {
            let Some(uses) = self.uses.get_mut(link.node) else { continue };
            *uses -= 1;
            if *uses == 0 && !self.wanted.contains(link.node) {
                self.results.remove(link.node);
            }
        }
    }

    fn failed(&self, id: &str, error: &NodeError, inputs: Json) -> Ending {
        let (kind, tips) = match error {
            NodeError::OutOfMemory(_) => ("torch.OutOfMemoryError", OUT_OF_MEMORY),
            NodeError::Input { .. } => ("ValueError", ""),
            _ => ("RuntimeError", ""),
        };
        Ending::Failed(Box::new(Failure {
            node: id.to_owned(),
            class: self.class(id).to_owned(),
            executed: self.executed.clone(),
            message: format!("{error}\n{tips}"),
            kind: kind.to_owned(),
            inputs,
        }))
    }
}

impl Wiring for Runner<'_> {
    fn sources(&self, id: &str) -> Vec<String> {
        let Some((id, node)) = self.find(id) else { return Vec::new() };
        self.links(id, node).into_iter().map(|(_, link)| link.node.to_owned()).collect()
    }

    fn is_cached(&self, id: &str) -> bool {
        self.results.contains_key(id)
    }

    fn is_output(&self, id: &str) -> bool {
        self.find(id).is_some_and(|(_, node)| node.interface.is_output)
    }
}
