//! What pictures carry of the prompt that made them: text chunks as ComfyUI writes them, byte for byte.

use std::sync::{Mutex, OnceLock, PoisonError};

use serde_json::Value as Json;

use super::ordered::Ordered;
use super::python;

/// The prompt and `extra_pnginfo`, written out only where a node asks for them.
#[derive(Debug, Default)]
pub struct Metadata {
    prompt: Mutex<Option<Ordered>>,
    extra_pnginfo: Option<Ordered>,
    chunks: OnceLock<Vec<(String, String)>>,
    prompt_json: OnceLock<Json>,
    extra_json: OnceLock<Json>,
}

impl Metadata {
    /// Of a prompt and its `extra_data.extra_pnginfo`.
    pub fn new(prompt: Ordered, extra_pnginfo: Option<Ordered>) -> Self {
        Self { prompt: Mutex::new(Some(prompt)), extra_pnginfo, ..Self::default() }
    }

    /// What a node said of files or chance before the prompt ran (`IS_CHANGED`). ComfyUI leaves it in the prompt, and so
    /// it is in every picture.
    pub fn note_changed(&self, node: &str, changed: &str) {
        let mut prompt = self.prompt.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(Ordered::Object(nodes)) = &mut *prompt
            && let Some(Ordered::Object(node)) = nodes.get_mut(node)
        {
            let changed = Ordered::Array(vec![Ordered::String(changed.to_owned())]);
            node.insert("is_changed".to_owned(), changed);
        }
    }

    /// The prompt as JSON; `null` where there is none.
    pub fn prompt(&self) -> &Json {
        self.prompt_json.get_or_init(|| {
            let prompt = self.prompt.lock().unwrap_or_else(PoisonError::into_inner);
            prompt.as_ref().map_or(Json::Null, Ordered::to_json)
        })
    }

    /// `extra_pnginfo` as JSON.
    pub fn extra_pnginfo(&self) -> Option<&Json> {
        let extra = self.extra_pnginfo.as_ref()?;
        Some(self.extra_json.get_or_init(|| extra.to_json()))
    }

    /// Keywords and texts: `prompt`, then each key of `extra_pnginfo`, as Python's `json.dumps` writes them.
    pub fn chunks(&self) -> &[(String, String)] {
        self.chunks.get_or_init(|| {
            let mut chunks = Vec::new();
            if let Some(prompt) = &*self.prompt.lock().unwrap_or_else(PoisonError::into_inner) {
                chunks.push(("prompt".to_owned(), python::dumps(prompt)));
            }
            if let Some(Ordered::Object(extra)) = &self.extra_pnginfo {
                chunks.extend(extra.iter().map(|(key, value)| (key.clone(), python::dumps(value))));
            }
            chunks
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunks_are_what_python_writes_in_the_order_it_came_in() {
        let json = |text| serde_json::from_str::<Ordered>(text).unwrap();
        let prompt =
            json(r#"{"9":{"inputs":{"text":"é\n","cfg":7.0,"tiny":1e-5,"huge":1e16},"class_type":"A"}}"#);
        let metadata = Metadata::new(prompt, Some(json(r#"{"workflow":{"b":[],"a":{}},"x":1}"#)));
        let prompt = concat!(
            r#"{"9": {"inputs": {"text": "\u00e9\n", "cfg": 7.0, "tiny": 1e-05, "huge": 1e+16}, "#,
            r#""class_type": "A"}}"#
        );
        let chunks: Vec<_> = metadata.chunks().iter().map(|(key, text)| (&**key, &**text)).collect();
        assert_eq!(chunks, [("prompt", prompt), ("workflow", r#"{"b": [], "a": {}}"#), ("x", "1")]);
    }
}
