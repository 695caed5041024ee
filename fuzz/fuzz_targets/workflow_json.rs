//! A workflow from a stranger: whatever its bytes are, it is read, checked against all nodes, and passes or is refused.
//! It never panics, hangs, or is answered with a great deal more than it was.
#![no_main]

use std::path::Path;
use std::sync::LazyLock;

use darkroom::workflow::interface::Choices;
use darkroom::workflow::{Folders, Graph, Registry, check};
use libfuzzer_sys::fuzz_target;

static REGISTRY: LazyLock<Registry> = LazyLock::new(Registry::all);

/// Every folder of files has these.
const FILES: [&str; 3] = ["sdxl_tiny.safetensors", "photo.png", "latent.latent"];
/// An error tells its input's declaration beside the value, and a node has many inputs.
const MOST_ANSWERED: usize = 1 << 10;

fn names(choices: &Choices) -> Vec<String> {
    match choices {
        Choices::Fixed(names) => names.clone(),
        _ => FILES.map(str::to_owned).into(),
    }
}

fuzz_target!(|text: &[u8]| {
    let Ok(graph) = Graph::parse(text) else { return };
    let folders = Folders::below(Path::new("nowhere"), None);
    match check(&graph, &REGISTRY, &names, &folders, None) {
        Ok(checked) => {
            assert!(!checked.outputs.is_empty());
            assert!(checked.needed().len() <= graph.len());
        }
        Err(refusal) => {
            let answer = serde_json::to_vec(&refusal).unwrap_or_default();
            assert!(answer.len() <= MOST_ANSWERED * (text.len() + 64), "{} bytes", answer.len());
        }
    }
});
