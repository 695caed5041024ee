//! What `progress_state` says of a prompt's nodes: which have begun, how far each is. Kept as ComfyUI keeps it
//! (`comfy_execution/progress.py`).

use std::collections::HashMap;

use serde::ser::SerializeMap;
use serde::{Serialize, Serializer};

/// A number as ComfyUI's clients see it: it begins as `0.0` of `1.0` and goes on in whole steps.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[serde(untagged)]
enum Amount {
    Share(f64),
    Whole(usize),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum State {
    Running,
    Finished,
}

#[derive(Debug, Clone, Copy)]
struct Node {
    value: Amount,
    max: Amount,
    state: State,
}

/// The nodes of one prompt that have begun.
#[derive(Debug)]
pub(super) struct Progress {
    prompt_id: String,
    /// In the order in which they began.
    nodes: Vec<(String, Node)>,
    places: HashMap<String, usize>,
}

impl Progress {
    /// Of a prompt of which nothing has begun.
    pub(super) fn new(prompt_id: &str) -> Self {
        Self { prompt_id: prompt_id.to_owned(), nodes: Vec::new(), places: HashMap::new() }
    }

    /// Nodes that have begun.
    pub(super) fn len(&self) -> usize {
        self.nodes.len()
    }

    /// A node begins.
    pub(super) fn start(&mut self, id: &str) {
        *self.node(id) = Node { value: Amount::Share(0.0), max: Amount::Share(1.0), state: State::Running };
    }

    /// A node is so far.
    pub(super) fn update(&mut self, id: &str, value: usize, max: usize) {
        *self.node(id) = Node { value: Amount::Whole(value), max: Amount::Whole(max), state: State::Running };
    }

    /// A node has ended; one that never began was in the cache.
    pub(super) fn finish(&mut self, id: &str) {
        let node = self.node(id);
        node.state = State::Finished;
        node.value = node.max;
    }

    fn node(&mut self, id: &str) -> &mut Node {
        let next = self.nodes.len();
        let place = *self.places.entry(id.to_owned()).or_insert(next);
        if place == next {
            let new = Node { value: Amount::Whole(0), max: Amount::Whole(1), state: State::Running };
            self.nodes.push((id.to_owned(), new));
        }
        &mut self.nodes[place].1
    }
}

/// What a node of a prompt is called. Workflows have no nodes inside of nodes here, so all names are its id.
#[derive(Serialize)]
pub(super) struct Names<'a> {
    pub(super) node_id: &'a str,
    pub(super) prompt_id: &'a str,
    pub(super) display_node_id: &'a str,
    pub(super) parent_node_id: Option<&'a str>,
    pub(super) real_node_id: &'a str,
}

impl<'a> Names<'a> {
    pub(super) fn new(prompt_id: &'a str, node_id: &'a str) -> Self {
        Self { node_id, prompt_id, display_node_id: node_id, parent_node_id: None, real_node_id: node_id }
    }
}

#[derive(Serialize)]
struct Shown<'a> {
    value: Amount,
    max: Amount,
    state: State,
    #[serde(flatten)]
    names: Names<'a>,
}

/// `{"prompt_id": …, "nodes": {…}}`, nodes in the order in which they began.
impl Serialize for Progress {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        struct Nodes<'a>(&'a Progress);
        impl Serialize for Nodes<'_> {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_map(self.0.nodes.iter().map(|(id, node)| {
                    let names = Names::new(&self.0.prompt_id, id);
                    (id, Shown { value: node.value, max: node.max, state: node.state, names })
                }))
            }
        }
        let mut map = serializer.serialize_map(Some(2))?;
        map.serialize_entry("prompt_id", &self.prompt_id)?;
        map.serialize_entry("nodes", &Nodes(self))?;
        map.end()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(progress: &Progress) -> String {
        serde_json::to_string(progress).unwrap()
    }

    #[test]
    fn a_node_begins_as_zero_of_one_and_ends_at_its_last_maximum() {
        let mut progress = Progress::new("p");
        progress.start("14");
        let names = r#""node_id":"14","prompt_id":"p","display_node_id":"14","parent_node_id":null,"real_node_id":"14""#;
        let said = |values: &str| format!(r#"{{"prompt_id":"p","nodes":{{"14":{{{values},{names}}}}}}}"#);
        assert_eq!(text(&progress), said(r#""value":0.0,"max":1.0,"state":"running""#));
        progress.update("14", 3, 6);
        assert_eq!(text(&progress), said(r#""value":3,"max":6,"state":"running""#));
        progress.finish("14");
        assert_eq!(text(&progress), said(r#""value":6,"max":6,"state":"finished""#));
    }

    #[test]
    fn a_cached_node_is_one_of_one_and_nodes_stay_in_the_order_in_which_they_began() {
        let mut progress = Progress::new("p");
        progress.start("9");
        progress.finish("9");
        progress.finish("10");
        let text = text(&progress);
        assert!(text.find("\"9\":").unwrap() < text.find("\"10\":").unwrap(), "{text}");
        assert!(text.contains(r#""10":{"value":1,"max":1,"state":"finished""#), "{text}");
        assert!(text.contains(r#""9":{"value":1.0,"max":1.0,"state":"finished""#), "{text}");
    }
}
