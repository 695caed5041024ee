//! What a node's outputs depend on, as one digest: its class, its values, what the node itself says of files and
//! chance ([`Changed`](super::registry::Changed)), and the digests of the nodes it is linked to. Ids do not count,
//! unless the node asks for its own. Two nodes with the same digest give the same (ComfyUI's
//! `CacheKeySetInputSignature`).

use sha2::{Digest, Sha256};

use super::graph::{Graph, link};
use super::interface::{Hidden, Interface};
use super::ordered::Ordered;

/// SHA-256.
pub type Signature = [u8; 32];

/// Of one node. `of_source` gives the signature of a node that it is linked to.
pub(super) fn signature(
    graph: &Graph,
    id: &str,
    interface: &Interface,
    changed: Option<&str>,
    of_source: &dyn Fn(&str) -> Option<Signature>,
) -> Signature {
    let mut hash = Sha256::new();
    text(&mut hash, interface.class);
    match changed {
        Some(changed) => {
            hash.update([1]);
            text(&mut hash, changed);
        }
        None => hash.update([0]),
    }
    if interface.hidden.iter().any(|(_, what)| *what == Hidden::UniqueId) {
        text(&mut hash, id);
    }
    let mut inputs: Vec<(&String, &Ordered)> = graph.inputs(id).into_iter().flatten().collect();
    inputs.sort_by_key(|(name, _)| *name);
    for (name, input) in inputs {
        text(&mut hash, name);
        match link(input).and_then(|link| Some((of_source(link.node)?, link.slot))) {
            Some((source, slot)) => {
                hash.update(b"L");
                hash.update(source);
                hash.update(slot.to_le_bytes());
            }
            None => value(&mut hash, input),
        }
    }
    hash.finalize().into()
}

/// With its length, so that neighbours cannot be taken for each other.
fn text(hash: &mut Sha256, text: &str) {
    hash.update((text.len() as u64).to_le_bytes());
    hash.update(text);
}

fn value(hash: &mut Sha256, json: &Ordered) {
    match json {
        Ordered::Null => hash.update(b"N"),
        Ordered::Bool(flag) => hash.update([b'B', u8::from(*flag)]),
        Ordered::Number(number) => {
            hash.update(b"F");
            text(hash, &number.to_string());
        }
        Ordered::String(content) => {
            hash.update(b"S");
            text(hash, content);
        }
        Ordered::Array(items) => {
            hash.update(b"A");
            hash.update((items.len() as u64).to_le_bytes());
            for item in items {
                value(hash, item);
            }
        }
        Ordered::Object(members) => {
            hash.update(b"O");
            hash.update((members.len() as u64).to_le_bytes());
            let mut members: Vec<(&String, &Ordered)> = members.iter().collect();
            members.sort_by_key(|(name, _)| *name);
            for (name, item) in members {
                text(hash, name);
                value(hash, item);
            }
        }
    }
}
