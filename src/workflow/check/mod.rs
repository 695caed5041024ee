//! Checks a prompt as ComfyUI does (`validate_prompt` and `validate_inputs` of its execution.py): the same errors, in
//! the same words, found in the same order. An output that fails does not keep the others from being run. Values are
//! converted on the way, as Python would, and the converted ones are what runs, what the history tells and what
//! pictures carry. Walks with a stack of its own: a chain of any length is checked.
//!
//! Where ComfyUI's own order is that of Python's sets, which is random, it is the declared one here.

mod constant;
mod errors;
pub(super) mod linked;

#[cfg(test)]
mod tests;

use std::collections::{HashMap, HashSet};

use indexmap::IndexMap;
use serde_json::json;

use super::folders::Folders;
use super::graph::{Graph, constant as unwrapped, link};
use super::inputs;
use super::interface::{Choices, Input, Socket};
use super::ordered::Ordered;
use super::python;
use super::registry::{Node, Registry};

pub use errors::{FaultyNode, FaultyNodes, PromptError, Refusal};

/// Most nodes whose errors are told. More are as wrong, but each error has its input's declaration with it, so that a
/// request would be answered with many times its size.
const MOST_FAULTY: usize = 2000;
/// Bytes of the names of outputs that fail with nodes, all nodes together: in a graph of nothing but faulty outputs each
/// is named by each. Half of it is for the first output of each node.
const DEPENDENT_BYTES: usize = 8 << 20;

/// A prompt that can be run.
#[derive(Debug, Clone, PartialEq)]
pub struct Checked {
    /// The prompt, values converted.
    pub graph: Graph,
    /// Ids of the output nodes to run.
    pub outputs: Vec<String>,
    /// What is wrong with the others.
    pub node_errors: FaultyNodes,
}

impl Checked {
    /// Ids of the nodes that the outputs need, themselves included. An input that its node does not know is not checked,
    /// and may name a node that is not there.
    pub fn needed(&self) -> HashSet<&str> {
        let mut needed = HashSet::new();
        let mut stack: Vec<&str> = self.outputs.iter().map(String::as_str).collect();
        while let Some(id) = stack.pop() {
            let Some(inputs) = self.graph.inputs(id) else { continue };
            if needed.insert(id) {
                let inputs = inputs.into_iter();
                stack.extend(inputs.filter_map(|(_, value)| link(value)).map(|link| link.node));
            }
        }
        needed
    }
}

/// Names behind a list of choices.
pub type ChoicesOf<'a> = dyn Fn(&Choices) -> Vec<String> + 'a;

/// Checks `graph`. `targets`: the output nodes that are asked for (`partial_execution_targets`); `None`: all.
///
/// # Errors
/// When not one output can be run.
pub fn check(
    graph: &Graph,
    registry: &Registry,
    choices: &ChoicesOf<'_>,
    folders: &Folders,
    targets: Option<&[String]>,
) -> Result<Checked, Refusal> {
    let outputs = outputs(graph, registry, targets)?;
    let mut checker = Checker {
        graph: graph.clone(),
        registry,
        choices,
        folders,
        validated: HashMap::new(),
        entered: HashSet::new(),
        faulty: Vec::new(),
        told: 0,
        cycle: Vec::new(),
    };
    let mut good = Vec::new();
    let mut details: Vec<String> = Vec::new();
    let mut faulty = FaultyNodes::default();
    for output in outputs {
        checker.walk(&output);
        let Some(verdict) = checker.validated.get(&output) else { continue };
        if verdict.valid {
            good.push(output);
            continue;
        }
        details.extend(verdict.errors.iter().map(|error| format!("{}: {}", error.message, error.details)));
        checker.collect(&output, &mut faulty);
    }
    if !good.is_empty() {
        return Ok(Checked { graph: checker.graph, outputs: good, node_errors: faulty });
    }
    let error = PromptError::new(
        "prompt_outputs_failed_validation",
        "Prompt outputs failed validation",
        details.join("\n"),
    );
    let error = if checker.cycle.is_empty() { error } else { error.with(json!({ "cycle": checker.cycle })) };
    Err(Refusal { error: Box::new(error), node_errors: faulty, missing: Vec::new() })
}

/// The output nodes that are asked for.
fn outputs(graph: &Graph, registry: &Registry, targets: Option<&[String]>) -> Result<Vec<String>, Refusal> {
    let mut outputs = Vec::new();
    for id in graph.ids() {
        let Some(class) = graph.class_value(id) else {
            return Err(Refusal::new(PromptError::new(
                "invalid_prompt",
                "Cannot execute because a node is missing the class_type property.",
                format!("Node ID '#{id}'"),
            )));
        };
        let Some(node) = class.as_str().and_then(|class| registry.get(class)) else {
            return Err(unknown_class(graph, registry, id, class));
        };
        if node.interface.is_output && targets.is_none_or(|targets| targets.iter().any(|target| target == id))
        {
            outputs.push(id.to_owned());
        }
    }
    if outputs.is_empty() {
        return Err(Refusal::new(PromptError::new("prompt_no_outputs", "Prompt has no outputs", "")));
    }
    Ok(outputs)
}

/// Says it of the first node, as ComfyUI does, and names all of them to programs.
fn unknown_class(graph: &Graph, registry: &Registry, id: &str, class: &Ordered) -> Refusal {
    let mut missing: IndexMap<String, Vec<&str>> = IndexMap::new();
    for id in graph.ids() {
        let Some(class) = graph.class_value(id) else { continue };
        if class.as_str().is_some_and(|class| registry.get(class).is_some()) {
            continue;
        }
        missing.entry(python::str(class)).or_default().push(id);
    }
    let list: Vec<_> =
        missing.iter().map(|(class, ids)| json!({ "class_type": class, "node_ids": ids })).collect();
    let error = PromptError::new(
        "invalid_prompt",
        format!("Cannot execute because node {} does not exist.", python::str(class)),
        format!("Node ID '#{id}'"),
    );
    let mut refusal = Refusal::new(error.with(json!({ "missing": list })));
    refusal.missing = missing.into_iter().map(|(class, _)| class).collect();
    refusal
}

/// What was found of a node.
struct Verdict {
    valid: bool,
    errors: Vec<PromptError>,
}

/// What Python would raise on a prompt that is not as it should be.
struct Exception {
    kind: &'static str,
    message: String,
}

/// A node whose inputs are being looked at.
struct Frame<'a> {
    id: String,
    node: &'a Node,
    /// Linked inputs that it takes though they are not declared.
    open: Vec<String>,
    /// How many of its inputs are behind: those of [`in_order`], then the open ones.
    done: usize,
    errors: Vec<PromptError>,
    valid: bool,
}

/// How it goes on after one input.
enum Step {
    Next,
    /// First the node that the input comes from.
    Into(String),
    Raise(Exception),
}

struct Checker<'a> {
    graph: Graph,
    registry: &'a Registry,
    choices: &'a ChoicesOf<'a>,
    folders: &'a Folders,
    validated: HashMap<String, Verdict>,
    /// Nodes that have been begun, whether they are done or not.
    entered: HashSet<String>,
    /// Nodes with errors, in the order in which they were done.
    faulty: Vec<String>,
    /// Bytes of the names of dependent outputs so far.
    told: usize,
    /// The first cycle that was met.
    cycle: Vec<String>,
}

/// Required inputs first, as `INPUT_TYPES` lists them.
fn in_order(node: &Node) -> impl Iterator<Item = &Input> {
    let of = |optional: bool| node.interface.inputs.iter().filter(move |input| input.optional == optional);
    of(false).chain(of(true))
}

impl<'a> Checker<'a> {
    /// Finds out about a node and everything before it.
    fn walk(&mut self, id: &str) {
        let mut stack: Vec<Frame<'a>> = Vec::new();
        if self.validated.contains_key(id) {
            return;
        }
        self.enter(id, &mut stack);
        while let Some(frame) = stack.last_mut() {
            let declared = frame.node.interface.inputs.len();
            let step = match in_order(frame.node).nth(frame.done) {
                Some(input) => self.step(frame, input),
                None => match frame.open.get(frame.done - declared) {
                    Some(name) => self.open_step(frame, name),
                    None => {
                        self.leave(&mut stack);
                        continue;
                    }
                },
            };
            match step {
                Step::Next => frame.done += 1,
                Step::Raise(exception) => self.unwind(&mut stack, &exception),
                Step::Into(source) => {
                    if let Some(verdict) = self.validated.get(&source) {
                        frame.valid &= verdict.valid;
                        frame.done += 1;
                    } else if self.entered.contains(&source) {
                        if self.cycle.is_empty() {
                            let before = stack.iter().skip_while(|frame| frame.id != source);
                            self.cycle = before.map(|frame| frame.id.clone()).collect();
                        }
                        if let Some(frame) = stack.last_mut() {
                            frame.valid = false;
                            frame.done += 1;
                        }
                    } else {
                        self.enter(&source, &mut stack);
                    }
                }
            }
        }
    }

    fn enter(&mut self, id: &str, stack: &mut Vec<Frame<'a>>) {
        // Classes of all nodes are known by now.
        let Some(node) = self.registry.get(self.graph.class(id)) else { return };
        let open = self.graph.inputs(id).into_iter().flatten();
        let open =
            open.filter(|(name, value)| inputs::is_open(&node.interface, name) && link(value).is_some());
        let open = open.map(|(name, _)| name.clone()).collect();
        self.entered.insert(id.to_owned());
        stack.push(Frame { id: id.to_owned(), node, open, done: 0, errors: Vec::new(), valid: true });
        if !self.graph.has_inputs(id) {
            self.unwind(stack, &Exception { kind: "KeyError", message: "'inputs'".into() });
        }
    }

    /// Looks at one input.
    fn step(&mut self, frame: &mut Frame<'a>, input: &Input) -> Step {
        let Some(value) = self.graph.input(&frame.id, input.name) else {
            if !input.optional {
                let error =
                    PromptError::new("required_input_missing", "Required input is missing", input.name);
                frame.errors.push(error.with(json!({ "input_name": input.name })));
            }
            return Step::Next;
        };
        if let Ordered::Array(items) = value {
            return match linked::source(items, input, &self.graph, self.registry, self.choices) {
                Ok(source) => Step::Into(source),
                Err(linked::Problem::Error(error)) => {
                    frame.errors.push(*error);
                    Step::Next
                }
                Err(linked::Problem::Raise(exception)) => Step::Raise(exception),
            };
        }
        let own_check = frame.node.check.is_some_and(|(name, _)| name == input.name);
        match constant::convert(unwrapped(value), input, own_check, self.choices) {
            Ok(Some(converted)) => {
                self.graph.set_input(&frame.id, input.name, converted);
            }
            Ok(None) => {}
            Err(error) => frame.errors.push(*error),
        }
        Step::Next
    }

    /// Looks at a link that is not declared: whatever it brings is taken.
    fn open_step(&self, frame: &Frame<'a>, name: &str) -> Step {
        let Some(link) = self.graph.input(&frame.id, name).and_then(link) else { return Step::Next };
        if !self.graph.contains(link.node) {
            let message = python::repr(&Ordered::String(link.node.to_owned()));
            return Step::Raise(Exception { kind: "KeyError", message });
        }
        Step::Into(link.node.to_owned())
    }

    /// All inputs of the topmost node are behind.
    fn leave(&mut self, stack: &mut Vec<Frame<'a>>) {
        let Some(mut frame) = stack.pop() else { return };
        if let Some((name, own_check)) = frame.node.check
            && let Some(value) = self.graph.input(&frame.id, name)
            && !matches!(value, Ordered::Array(_))
        {
            // Nodes take the names of files for granted to be texts.
            let is_choice = frame
                .node
                .interface
                .find(name)
                .is_some_and(|input| matches!(input.socket, Socket::Combo { .. }));
            if is_choice && !matches!(unwrapped(value), Ordered::String(_)) {
                let message =
                    format!("'{}' object has no attribute 'endswith'", python::type_name(unwrapped(value)));
                stack.push(frame);
                return self.unwind(stack, &Exception { kind: "AttributeError", message });
            }
            let inputs = inputs::constants(&frame.node.interface, self.graph.inputs(&frame.id));
            if let Err(message) = own_check(&inputs, self.folders) {
                let details =
                    if message.is_empty() { name.to_owned() } else { format!("{name} - {message}") };
                let error = PromptError::new(
                    "custom_validation_failed",
                    "Custom validation failed for node",
                    details,
                );
                frame.errors.push(error.with(json!({ "input_name": name })));
            }
        }
        let valid = frame.valid && frame.errors.is_empty();
        let errors = if valid { Vec::new() } else { frame.errors };
        self.found(frame.id, Verdict { valid, errors });
        if let Some(parent) = stack.last_mut() {
            parent.valid &= valid;
            parent.done += 1;
        }
    }

    /// The topmost node cannot be looked at: the one that led to it says so, or else it itself.
    fn unwind(&mut self, stack: &mut Vec<Frame<'a>>, exception: &Exception) {
        let Some(frame) = stack.pop() else { return };
        let no_lines: [&str; 0] = [];
        let error = match stack.last_mut() {
            Some(parent) => {
                let input = in_order(parent.node).nth(parent.done);
                let declared = parent.node.interface.inputs.len();
                let open = parent.done.checked_sub(declared).and_then(|index| parent.open.get(index));
                let name = input.map_or_else(|| open.map_or("", |name| name), |input| input.name);
                let linked = self.graph.input(&parent.id, name).map(Ordered::to_json);
                let error = PromptError::new(
                    "exception_during_inner_validation",
                    "Exception when validating inner node",
                    &*exception.message,
                )
                .with(json!({
                    "input_name": name,
                    "input_config": input.map(|input| constant::config(input, self.choices)),
                    "exception_message": exception.message,
                    "exception_type": exception.kind,
                    "traceback": no_lines,
                    "linked_node": linked,
                }));
                parent.valid = false;
                parent.done += 1;
                error
            }
            None => PromptError::new(
                "exception_during_validation",
                "Exception when validating node",
                &*exception.message,
            )
            .with(json!({ "exception_type": exception.kind, "traceback": no_lines })),
        };
        self.found(frame.id, Verdict { valid: false, errors: vec![error] });
    }

    fn found(&mut self, id: String, mut verdict: Verdict) {
        if self.faulty.len() == MOST_FAULTY {
            verdict.errors.clear();
        }
        if !verdict.errors.is_empty() {
            self.faulty.push(id.clone());
        }
        self.validated.insert(id, verdict);
    }

    /// Adds what is known to be wrong by now to what an output fails by. As in ComfyUI that is everything found so
    /// far, also on the way to outputs before.
    fn collect(&mut self, output: &str, all: &mut FaultyNodes) {
        let told = &mut self.told;
        let mut tell = |outputs: &mut Vec<String>, limit: usize| {
            let bytes = output.len() + size_of::<String>();
            if told.saturating_add(bytes) <= limit {
                *told += bytes;
                outputs.push(output.to_owned());
            }
        };
        // Those that were told of an output before come first in both.
        let new = &self.faulty[all.0.len()..];
        for (_, node) in &mut all.0 {
            tell(&mut node.dependent_outputs, DEPENDENT_BYTES / 2);
        }
        for id in new {
            let Some(verdict) = self.validated.get(id) else { continue };
            let mut dependent_outputs = Vec::new();
            tell(&mut dependent_outputs, DEPENDENT_BYTES);
            let class_type = self.graph.class(id).to_owned();
            all.0.push((
                id.clone(),
                FaultyNode { errors: verdict.errors.clone(), dependent_outputs, class_type },
            ));
        }
    }
}
