//! `--set NODE.INPUT=VALUE`.

use super::CommandError;
use crate::workflow::interface::{Interface, Socket};
use crate::workflow::{Graph, Kind, Ordered, Registry};

/// Names that are offered where one is not there.
const MOST_OFFERED: usize = 12;

/// One value for one input.
#[derive(Debug, Clone)]
pub(super) struct Setting {
    node: String,
    input: String,
    value: String,
}

impl Setting {
    /// Reads the flag.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let form = "write NODE.INPUT=VALUE, like 3.seed=7";
        let (place, value) = text.split_once('=').ok_or(form)?;
        let (node, input) = place.rsplit_once('.').ok_or(form)?;
        if node.is_empty() || input.is_empty() {
            return Err(form.into());
        }
        Ok(Self { node: node.to_owned(), input: input.to_owned(), value: value.to_owned() })
    }

    /// Puts the value into the graph.
    pub(super) fn apply(&self, graph: &mut Graph, registry: &Registry) -> Result<(), CommandError> {
        let id = self.find(graph)?;
        let interface = registry.get(graph.class(&id)).map(|node| &node.interface);
        if let Some(interface) = interface {
            self.check_name(&id, interface)?;
        }
        let value = self.value(interface);
        if graph.set_input(&id, &self.input, value) {
            return Ok(());
        }
        Err(self.wrong(&format!("node {id} has no inputs that could be set"), "check the workflow's file"))
    }

    /// The node by its id, or by a title or class that only it has.
    fn find(&self, graph: &Graph) -> Result<String, CommandError> {
        if graph.contains(&self.node) {
            return Ok(self.node.clone());
        }
        let titled: Vec<&str> = graph.ids().filter(|id| graph.title(id) == Some(&*self.node)).collect();
        let of_class: Vec<&str> = graph.ids().filter(|id| graph.class(id) == self.node).collect();
        let found = if titled.is_empty() { of_class } else { titled };
        match &*found {
            [id] => Ok((*id).to_owned()),
            [] => {
                let known = graph.ids().map(|id| format!("{id} ({})", graph.class(id)));
                let known: Vec<String> = known.take(MOST_OFFERED).collect();
                let more = if graph.len() > MOST_OFFERED { ", …" } else { "" };
                let fix = format!("there are: {}{more}", known.join(", "));
                Err(self.wrong(&format!("the workflow has no node {}", self.node), fix))
            }
            several => {
                let fix = format!("name it by its id: {}", several.join(", "));
                Err(self.wrong(&format!("{} nodes are called {}", several.len(), self.node), fix))
            }
        }
    }

    fn check_name(&self, id: &str, interface: &Interface) -> Result<(), CommandError> {
        let open = interface.open_prefix.is_some_and(|prefix| self.input.starts_with(prefix));
        if open || interface.find(&self.input).is_some() {
            return Ok(());
        }
        let known: Vec<&str> = interface.inputs.iter().map(|input| input.name).collect();
        let fix = format!("{} takes: {}", interface.class, known.join(", "));
        Err(self.wrong(&format!("node {id} ({}) has no input {}", interface.class, self.input), fix))
    }

    /// JSON where it reads as such; a text where the input takes texts, unless it is quoted or a link.
    fn value(&self, interface: Option<&Interface>) -> Ordered {
        let text = || Ordered::String(self.value.clone());
        let json: Option<Ordered> = serde_json::from_str(&self.value).ok();
        let takes_text = interface.and_then(|interface| interface.find(&self.input)).is_some_and(|input| {
            matches!(input.socket, Socket::String | Socket::Combo { .. } | Socket::Link(Kind::STRING))
        });
        match json {
            Some(json @ (Ordered::String(_) | Ordered::Array(_))) => json,
            Some(json) if !takes_text => json,
            _ => text(),
        }
    }

    fn wrong(&self, message: &str, fix: impl Into<String>) -> CommandError {
        CommandError::usage(format!("--set {}.{}: {message}", self.node, self.input), fix)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn graph() -> Graph {
        let text = br#"{
            "3": {"class_type": "PrimitiveString", "inputs": {"value": "x"}, "_meta": {"title": "My text"}},
            "4": {"class_type": "PrimitiveBoolean", "inputs": {"value": true}},
            "5": {"class_type": "PrimitiveBoolean", "inputs": {"value": true}},
            "6": {"class_type": "Unknown", "inputs": {}}
        }"#;
        Graph::parse(text).unwrap()
    }

    fn set(flag: &str) -> Result<Graph, String> {
        let mut graph = graph();
        let setting = Setting::parse(flag)?;
        setting.apply(&mut graph, &Registry::all()).map_err(|error| error.lines())?;
        Ok(graph)
    }

    fn value(flag: &str, id: &str, input: &str) -> String {
        serde_json::to_string(set(flag).unwrap().input(id, input).unwrap()).unwrap()
    }

    #[test]
    fn values_are_json_but_where_a_text_is_taken() {
        assert_eq!(value("4.value=false", "4", "value"), "false");
        assert_eq!(value("3.value=false", "3", "value"), "\"false\"");
        assert_eq!(value("3.value=a=b. c", "3", "value"), "\"a=b. c\"");
        assert_eq!(value("3.value=\"quoted\"", "3", "value"), "\"quoted\"");
        assert_eq!(value("3.value=[\"4\", 0]", "3", "value"), "[\"4\",0]");
        assert_eq!(value("6.any={\"a\": 1}", "6", "any"), "{\"a\":1}");
        assert_eq!(value("6.any=plain", "6", "any"), "\"plain\"");
    }

    #[test]
    fn nodes_are_found_by_id_title_or_class() {
        assert_eq!(value("My text.value=y", "3", "value"), "\"y\"");
        assert_eq!(value("PrimitiveString.value=y", "3", "value"), "\"y\"");
        let several = set("PrimitiveBoolean.value=1").unwrap_err();
        assert!(several.contains("name it by its id: 4, 5"), "{several}");
    }

    #[test]
    fn what_is_not_there_is_named_with_what_is() {
        let node = set("7.value=1").unwrap_err();
        assert!(node.contains("no node 7") && node.contains("3 (PrimitiveString)"), "{node}");
        let input = set("4.valeu=1").unwrap_err();
        assert!(input.contains("no input valeu") && input.contains("takes: value"), "{input}");
        for flag in ["4.value", "=1", "value=1", ".value=1", "4.=1"] {
            assert!(set(flag).unwrap_err().contains("NODE.INPUT=VALUE"), "{flag}");
        }
    }
}
