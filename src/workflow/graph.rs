//! A prompt in ComfyUI's API format: `{"3": {"class_type": "KSampler", "inputs": {"model": ["4", 0], "steps": 20}}}`.
//! Nodes and inputs keep the order in which they came. Nothing is checked here beyond the outermost form: what is
//! wrong with a node is for `check` to say, in ComfyUI's words.

use serde::ser::{Serialize, Serializer};

use super::ordered::{Members, Ordered};

/// Most nodes of a prompt.
pub const MOST_NODES: usize = 100_000;

/// Why a JSON value is no graph.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum GraphError {
    /// It is not an object.
    #[error(
        "the prompt is not an object of nodes; save the workflow in API format (front end: Workflow > Export (API))"
    )]
    NotAnObject,
    /// It is what the front end saves for itself.
    #[error(
        "this is the front end's own format, with `nodes` and `links`; a prompt is the API format (front end: Workflow > Export (API))"
    )]
    FrontEndFormat,
    /// It has too many nodes.
    #[error("the prompt has {count} nodes; at most {MOST_NODES} are taken")]
    TooLarge {
        /// How many.
        count: usize,
    },
    /// It does not read as JSON.
    #[error("the prompt does not read as JSON: {0}")]
    Json(String),
}

/// A link to another node's output.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Link<'a> {
    /// The node.
    pub node: &'a str,
    /// Which output; negative ones count from the end, as in Python.
    pub slot: i64,
}

/// The nodes of a prompt, by id.
#[derive(Debug, Clone, PartialEq)]
pub struct Graph {
    nodes: Members,
}

impl Graph {
    /// Of a request's `prompt`.
    ///
    /// # Errors
    /// When it is no object, has too many members, or is another format.
    pub fn new(prompt: Ordered) -> Result<Self, GraphError> {
        let Ordered::Object(nodes) = prompt else { return Err(GraphError::NotAnObject) };
        if matches!((nodes.get("nodes"), nodes.get("links")), (Some(Ordered::Array(_)), Some(_))) {
            return Err(GraphError::FrontEndFormat);
        }
        if nodes.len() > MOST_NODES {
            return Err(GraphError::TooLarge { count: nodes.len() });
        }
        Ok(Self { nodes })
    }

    /// Of JSON text: a prompt, or a request body that has one in `prompt`.
    ///
    /// # Errors
    /// When it does not read, or is no prompt.
    pub fn parse(text: &[u8]) -> Result<Self, GraphError> {
        let json = serde_json::from_slice(text).map_err(|error| GraphError::Json(error.to_string()))?;
        match json {
            Ordered::Object(mut members)
                if members.get("prompt").is_some_and(|prompt| {
                    prompt.as_object().is_some() && prompt.get("class_type").is_none()
                }) =>
            {
                Self::new(members.swap_remove("prompt").unwrap_or(Ordered::Null))
            }
            other => Self::new(other),
        }
    }

    /// Ids of all nodes, in order.
    pub fn ids(&self) -> impl Iterator<Item = &str> {
        self.nodes.keys().map(String::as_str)
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.nodes.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.nodes.is_empty()
    }

    /// Whether there is this one.
    pub fn contains(&self, id: &str) -> bool {
        self.nodes.contains_key(id)
    }

    /// The id as it is held here.
    pub fn id(&self, id: &str) -> Option<&str> {
        self.nodes.get_key_value(id).map(|(id, _)| id.as_str())
    }

    /// Its `class_type`, whatever that is.
    pub fn class_value(&self, id: &str) -> Option<&Ordered> {
        self.nodes.get(id)?.get("class_type")
    }

    /// Its class; empty where it names none.
    pub fn class(&self, id: &str) -> &str {
        self.class_value(id).and_then(Ordered::as_str).unwrap_or_default()
    }

    /// What people call it in the front end (`_meta.title`).
    pub fn title(&self, id: &str) -> Option<&str> {
        self.nodes.get(id)?.get("_meta")?.get("title")?.as_str()
    }

    /// Its inputs; `None` where it has no such member. A list of none counts as none, as in Python.
    pub fn inputs(&self, id: &str) -> Option<&Members> {
        self.nodes.get(id)?.get("inputs")?.as_object()
    }

    /// Whether it has a member `inputs` of any sort.
    pub fn has_inputs(&self, id: &str) -> bool {
        self.nodes.get(id).is_some_and(|node| node.get("inputs").is_some())
    }

    /// One input.
    pub fn input(&self, id: &str, name: &str) -> Option<&Ordered> {
        self.inputs(id)?.get(name)
    }

    /// Puts another value in the place of an input, or adds one. Says whether there is such a node.
    pub fn set_input(&mut self, id: &str, name: &str, value: Ordered) -> bool {
        let Some(Ordered::Object(node)) = self.nodes.get_mut(id) else { return false };
        let inputs = node.entry("inputs".to_owned()).or_insert_with(|| Ordered::Object(Members::new()));
        let Ordered::Object(inputs) = inputs else { return false };
        inputs.insert(name.to_owned(), value);
        true
    }

    /// The whole as it came, with what was converted since.
    pub fn to_ordered(&self) -> Ordered {
        Ordered::Object(self.nodes.clone())
    }
}

impl Serialize for Graph {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(&self.nodes)
    }
}

/// The link that an input is, if it is one: a list of a text and a number.
pub fn link(value: &Ordered) -> Option<Link<'_>> {
    let Ordered::Array(items) = value else { return None };
    let [Ordered::String(node), slot] = &**items else { return None };
    match slot {
        Ordered::Number(number) => Some(Link { node, slot: number.as_i64()? }),
        Ordered::Bool(value) => Some(Link { node, slot: i64::from(*value) }),
        _ => None,
    }
}

/// The constant that an input is: what `{"__value__": …}` wraps, since a plain list would be a link.
pub fn constant(value: &Ordered) -> &Ordered {
    value.get("__value__").unwrap_or(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nodes_and_inputs_keep_their_order() {
        let text = br#"{"9": {"class_type": "B", "inputs": {"z": 1, "a": 2}}, "1": {"class_type": "A", "inputs": {}}}"#;
        let graph = Graph::parse(text).unwrap();
        assert_eq!(graph.ids().collect::<Vec<_>>(), ["9", "1"]);
        assert_eq!(graph.inputs("9").unwrap().keys().collect::<Vec<_>>(), ["z", "a"]);
        assert_eq!((graph.class("9"), graph.class("none")), ("B", ""));
    }

    #[test]
    fn a_request_body_is_read_as_the_prompt_in_it() {
        let graph = Graph::parse(br#"{"prompt": {"1": {"class_type": "A"}}, "client_id": "x"}"#).unwrap();
        assert_eq!(graph.ids().collect::<Vec<_>>(), ["1"]);
        let named = Graph::parse(br#"{"prompt": {"class_type": "A", "inputs": {}}}"#).unwrap();
        assert_eq!(named.class("prompt"), "A");
    }

    #[test]
    fn what_is_no_prompt_is_named() {
        assert_eq!(Graph::parse(b"[1]"), Err(GraphError::NotAnObject));
        assert_eq!(Graph::parse(br#"{"nodes": [], "links": []}"#), Err(GraphError::FrontEndFormat));
        assert!(matches!(Graph::parse(b"{\"a\": NaN}"), Err(GraphError::Json(_))));
    }

    #[test]
    fn a_link_is_a_text_and_a_number() {
        let read = |text: &str| serde_json::from_str::<Ordered>(text).unwrap();
        assert_eq!(link(&read(r#"["4", 1]"#)), Some(Link { node: "4", slot: 1 }));
        for no in [r#"["4"]"#, r#"[4, 1]"#, r#"["4", "1"]"#, r#"["4", 1, 2]"#, "5", r#"["4", 0.5]"#] {
            assert_eq!(link(&read(no)), None, "{no}");
        }
        let wrapped = read(r#"{"__value__": ["4", 1]}"#);
        assert_eq!((link(&wrapped), constant(&wrapped)), (None, &read(r#"["4", 1]"#)));
    }
}
