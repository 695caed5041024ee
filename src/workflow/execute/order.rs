//! In which order nodes run: ComfyUI's own (comfy_execution/graph.py, `TopologicalSort` and `ux_friendly_pick_node`),
//! so that its clients see nodes in the order they know. Of the nodes that have all they need, output nodes come
//! first, then those that an output node waits for, then those one step further away, then the rest; among equals,
//! whichever was met first on the way from the outputs.

use std::collections::{BTreeSet, HashSet};

use indexmap::IndexMap;

/// What has to run, and what is ready.
pub(super) struct Order {
    nodes: IndexMap<String, Waiting>,
    /// By rank, then by when it was met.
    ready: BTreeSet<(u8, usize)>,
    left: usize,
}

#[derive(Default)]
struct Waiting {
    /// Nodes that wait for this one, by index, each once.
    blocking: Vec<usize>,
    /// How many nodes this one waits for.
    blocked_by: usize,
    rank: u8,
}

/// What the order is found from.
pub(super) trait Wiring {
    /// The nodes that this one's inputs come from, in the order of its inputs.
    fn sources(&self, id: &str) -> Vec<String>;
    /// Whether its outputs are there already.
    fn is_cached(&self, id: &str) -> bool;
    /// Whether prompts are run for it.
    fn is_output(&self, id: &str) -> bool;
}

impl Order {
    /// Of what these output nodes need.
    pub(super) fn new(outputs: &[String], wiring: &dyn Wiring) -> Self {
        let mut order = Self { nodes: IndexMap::new(), ready: BTreeSet::new(), left: 0 };
        let mut linked: HashSet<(usize, usize)> = HashSet::new();
        for output in outputs {
            let mut stack = vec![output.clone()];
            let mut links: Vec<(String, String)> = Vec::new();
            while let Some(id) = stack.pop() {
                if order.nodes.contains_key(&id) {
                    continue;
                }
                for source in wiring.sources(&id) {
                    if !wiring.is_cached(&source) {
                        stack.push(source.clone());
                        links.push((source, id.clone()));
                    }
                }
                order.nodes.insert(id, Waiting::default());
            }
            for (from, to) in links {
                let (Some(from), Some(to)) = (order.nodes.get_index_of(&from), order.nodes.get_index_of(&to))
                else {
                    continue;
                };
                if linked.insert((from, to)) {
                    order.nodes[from].blocking.push(to);
                    order.nodes[to].blocked_by += 1;
                }
            }
        }
        order.rank(wiring);
        order
    }

    fn rank(&mut self, wiring: &dyn Wiring) {
        let is_output: Vec<bool> = self.nodes.keys().map(|id| wiring.is_output(id)).collect();
        let before_output: Vec<bool> =
            self.nodes.values().map(|node| node.blocking.iter().any(|next| is_output[*next])).collect();
        for index in 0..self.nodes.len() {
            let near = self.nodes[index].blocking.iter().any(|next| before_output[*next]);
            self.nodes[index].rank = match (is_output[index], before_output[index], near) {
                (true, ..) => 0,
                (_, true, _) => 1,
                (_, _, true) => 2,
                _ => 3,
            };
        }
        self.left = self.nodes.len();
        let ready = self.nodes.values().enumerate().filter(|(_, node)| node.blocked_by == 0);
        self.ready = ready.map(|(index, node)| (node.rank, index)).collect();
    }

    /// The node to run now; `None` when all have run, or (see [`Self::left`]) when the rest waits for itself.
    pub(super) fn next(&mut self) -> Option<String> {
        let (_, index) = self.ready.first()?;
        self.nodes.get_index(*index).map(|(id, _)| id.clone())
    }

    /// It has run.
    pub(super) fn done(&mut self, id: &str) {
        let Some(index) = self.nodes.get_index_of(id) else { return };
        if !self.ready.remove(&(self.nodes[index].rank, index)) {
            return;
        }
        self.left -= 1;
        for next in std::mem::take(&mut self.nodes[index].blocking) {
            let node = &mut self.nodes[next];
            node.blocked_by -= 1;
            if node.blocked_by == 0 {
                self.ready.insert((node.rank, next));
            }
        }
    }

    /// How many have not run.
    pub(super) fn left(&self) -> usize {
        self.left
    }

    /// A node that has not run.
    pub(super) fn waiting(&self) -> Option<&str> {
        self.nodes.iter().find(|(_, node)| node.blocked_by > 0).map(|(id, _)| id.as_str())
    }
}
