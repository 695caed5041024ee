//! One prompt that another ComfyUI runs, followed: its messages become events, its end is this prompt's.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::Value as Json;
use tokio::runtime::Handle;

use super::files;
use super::link::{Link, Socket, Told};
use crate::comfy::runner::Running;
use crate::workflow::Folders;
use crate::workflow::event::{Event, Failure};

/// Such a prompt. Dropped before it has ended, it is taken back there.
pub(super) struct Relayed {
    pub(super) link: Arc<Link>,
    pub(super) folders: Arc<Folders>,
    pub(super) runtime: Handle,
    pub(super) socket: Option<Socket>,
    /// Its id there.
    pub(super) prompt_id: String,
    /// Each node's class.
    pub(super) classes: BTreeMap<String, String>,
    pub(super) ended: bool,
}

/// What was told so far.
#[derive(Default)]
struct Seen {
    node: Option<String>,
    executed: Vec<String>,
    shown: BTreeMap<String, Json>,
}

impl Drop for Relayed {
    fn drop(&mut self) {
        if !self.ended {
            let (link, prompt) = (Arc::clone(&self.link), std::mem::take(&mut self.prompt_id));
            self.runtime.spawn(async move {
                if let Err(error) = link.take_back(&prompt).await {
                    tracing::warn!(%error, "a prompt may go on in the ComfyUI behind this server");
                }
            });
        }
    }
}

impl Relayed {
    /// Tells what happens until it has ended; what its nodes show.
    pub(super) async fn follow(&mut self, with: &Running<'_>) -> BTreeMap<String, Json> {
        let mut seen = Seen::default();
        let Some(mut socket) = self.socket.take() else { return seen.shown };
        loop {
            let told = tokio::select! {
                told = socket.next() => told,
                () = with.interrupt.cancelled() => {
                    with.listener.tell(self.interrupted(&seen));
                    return seen.shown;
                }
            };
            match told {
                Some(Told::Message(message)) => {
                    if self.message(&message, &mut seen, with).await {
                        self.ended = true;
                        return seen.shown;
                    }
                }
                Some(Told::Frame(frame)) => {
                    frame_event(&frame, &seen).into_iter().for_each(|e| with.listener.tell(e));
                }
                None => {
                    let message = "the ComfyUI that ran this prompt has closed its connection".to_owned();
                    with.listener.tell(self.failed(&seen, message, "ConnectionError".into(), Json::Null));
                    return seen.shown;
                }
            }
        }
    }

    /// Takes a message in; whether it is the prompt's last.
    async fn message(&self, message: &Json, seen: &mut Seen, with: &Running<'_>) -> bool {
        let data = &message["data"];
        if data["prompt_id"] != self.prompt_id.as_str() {
            return false;
        }
        let node = || data["node"].as_str().map(str::to_owned);
        let tell = |event| with.listener.tell(event);
        match message["type"].as_str().unwrap_or_default() {
            "execution_start" => tell(Event::Started),
            "execution_cached" => {
                let nodes = data["nodes"].as_array().into_iter().flatten();
                tell(Event::Cached { nodes: nodes.filter_map(|n| n.as_str().map(str::to_owned)).collect() });
            }
            "executing" => {
                if let Some(before) = seen.node.take() {
                    seen.executed.push(before.clone());
                    tell(Event::Finished { node: before });
                }
                match node() {
                    Some(node) => {
                        seen.node = Some(node.clone());
                        tell(Event::Executing { node });
                    }
                    None => {
                        tell(Event::Succeeded);
                        return true;
                    }
                }
            }
            "progress" => {
                let number = |name: &str| data[name].as_f64().unwrap_or_default() as usize;
                if let Some(node) = node() {
                    tell(Event::Progress { node, value: number("value"), max: number("max") });
                }
            }
            "executed" => {
                if let Some(node) = node() {
                    let mut output = data["output"].clone();
                    files::fetch_outputs(&self.link, &self.folders, &mut output).await;
                    seen.shown.insert(node.clone(), output.clone());
                    tell(Event::Executed { ran_as: node.clone(), node, output });
                }
            }
            "execution_error" => {
                let text = |name: &str| data[name].as_str().unwrap_or_default().to_owned();
                if let Some(node) = data["node_id"].as_str() {
                    seen.node = Some(node.to_owned());
                }
                let inputs = data["current_inputs"].clone();
                tell(self.failed(seen, text("exception_message"), text("exception_type"), inputs));
                return true;
            }
            "execution_interrupted" => {
                tell(self.interrupted(seen));
                return true;
            }
            _ => {}
        }
        false
    }

    fn class(&self, node: &str) -> String {
        self.classes.get(node).cloned().unwrap_or_default()
    }

    fn interrupted(&self, seen: &Seen) -> Event {
        let node = seen.node.clone().unwrap_or_default();
        Event::Interrupted { class: self.class(&node), node, executed: seen.executed.clone() }
    }

    fn failed(&self, seen: &Seen, message: String, kind: String, inputs: Json) -> Event {
        let node = seen.node.clone().unwrap_or_default();
        Event::Failed(Box::new(Failure {
            class: self.class(&node),
            node,
            executed: seen.executed.clone(),
            message,
            kind,
            inputs,
        }))
    }
}

/// A preview, a picture that a node sends to its client, or a text.
fn frame_event(frame: &[u8], seen: &Seen) -> Option<Event> {
    const PREVIEW: u32 = 1;
    const TEXT: u32 = 3;
    const PNG: u32 = 2;
    let number = |at: usize| frame.get(at..at + 4)?.try_into().ok().map(u32::from_be_bytes);
    match number(0)? {
        PREVIEW => {
            let node = seen.node.clone()?;
            let picture = frame.get(8..)?;
            if number(4)? == PNG {
                return Some(Event::Picture { node, png: picture.to_vec() });
            }
            let rgb = image::load_from_memory(picture).ok()?.into_rgb8();
            let (width, height) = (rgb.width() as usize, rgb.height() as usize);
            Some(Event::Preview { node, width, height, rgb: rgb.into_raw() })
        }
        TEXT => {
            let length = number(4)? as usize;
            let node = String::from_utf8_lossy(frame.get(8..8 + length)?).into_owned();
            let text = String::from_utf8_lossy(frame.get(8 + length..)?).into_owned();
            Some(Event::Text { node, text })
        }
        _ => None,
    }
}
