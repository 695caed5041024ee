//! What is told of a prompt while it runs: to the client at once, and to the history at the end.

use std::collections::HashSet;
use std::sync::{Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use jiff::Timestamp;
use serde_json::{Value as Json, json};
use tokio_util::sync::CancellationToken;

use super::clients::Hearers;
use super::messages::{News, What, to_json};
use crate::workflow::event::{Event, Failure, Listener};

/// Bytes of what nodes show that the history keeps of one prompt.
const SHOWN: usize = 32 << 20;

/// Hears one prompt.
pub(super) struct Recorder<'a> {
    pub(super) prompt_id: &'a str,
    /// Ids of its nodes.
    pub(super) nodes: &'a [String],
    /// Who hears of it now.
    pub(super) hearers: Option<&'a Hearers>,
    pub(super) interrupt: &'a CancellationToken,
    /// Whether the prompt is to show pictures while they are sampled.
    pub(super) previews: bool,
    pub(super) record: Mutex<Record>,
}

/// How a prompt ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Outcome {
    Succeeded,
    Failed,
    Interrupted,
}

impl Outcome {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Succeeded => "succeeded",
            Self::Failed => "failed",
            Self::Interrupted => "interrupted",
        }
    }
}

/// What a node showed.
#[derive(Debug)]
struct Shown {
    node: String,
    /// The node that ran: another one's id where that took the same inputs.
    ran_as: String,
    /// As JSON.
    output: String,
}

/// What the history will say.
#[derive(Debug, Default)]
pub(super) struct Record {
    /// Names and data.
    messages: Vec<(&'static str, String)>,
    /// What each node showed.
    outputs: Vec<Shown>,
    /// Nodes that showed something: a prompt may have very many.
    shown: HashSet<String>,
    bytes: usize,
    /// Nodes whose outputs were taken from the cache.
    pub(super) cached: usize,
    /// Nodes that ran.
    pub(super) executed: usize,
    pub(super) outcome: Option<Outcome>,
}

fn now() -> i64 {
    Timestamp::now().as_millisecond()
}

impl Recorder<'_> {
    fn record(&self) -> MutexGuard<'_, Record> {
        self.record.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells that it failed, unless its end was told.
    pub(super) fn fail_if_open(&self, message: &str) {
        if self.record().outcome.is_none() {
            self.tell(Event::Failed(Box::new(Failure {
                node: String::new(),
                class: String::new(),
                executed: Vec::new(),
                message: message.to_owned(),
                kind: "RuntimeError".into(),
                inputs: json!({}),
            })));
        }
    }
}

impl Listener for Recorder<'_> {
    fn tell(&self, event: Event) {
        if matches!(event, Event::Preview { .. }) && !self.wants_previews() {
            return;
        }
        let Some(mut news) = News::new(event, now()) else { return };
        {
            let mut record = self.record();
            if record.outcome.is_some() {
                return;
            }
            record.note(&mut news, self.prompt_id, self.nodes);
        }
        if let Some(hearers) = self.hearers {
            hearers.tell(news, self.interrupt);
        }
    }

    fn wants_previews(&self) -> bool {
        self.previews && self.hearers.is_some_and(Hearers::is_heard)
    }
}

impl Record {
    fn note(&mut self, news: &mut News, prompt_id: &str, all: &[String]) {
        match &mut news.what {
            What::Cached { nodes } => self.cached = nodes.len(),
            What::Executing { .. } => self.executed += 1,
            What::Executed { node, output, ran_as } => self.show(node, ran_as, output, prompt_id),
            What::Succeeded => self.outcome = Some(Outcome::Succeeded),
            What::Interrupted { .. } => self.outcome = Some(Outcome::Interrupted),
            What::Failed { failure, nodes } => {
                // ComfyUI writes the message and a tip below it, which is mostly empty.
                if !failure.message.contains('\n') {
                    failure.message.push('\n');
                }
                nodes.extend_from_slice(all);
                self.outcome = Some(Outcome::Failed);
            }
            _ => {}
        }
        self.messages.extend(news.kept(prompt_id));
    }

    /// A node shows something.
    pub(super) fn show(&mut self, node: &str, ran_as: &str, output: &Json, prompt_id: &str) {
        if output.is_null() || self.shown.contains(node) {
            return;
        }
        let output = to_json(output);
        self.bytes += output.len();
        if self.bytes > SHOWN {
            tracing::warn!(prompt_id, node, "shows more than the history keeps");
        } else {
            self.shown.insert(node.to_owned());
            self.outputs.push(Shown { node: node.to_owned(), ran_as: ran_as.to_owned(), output });
        }
    }

    /// The history's entry of the prompt with this `item`.
    pub(super) fn entry(&self, item: &str) -> Bytes {
        let mut text = format!(r#"{{"prompt":{item},"outputs":{{"#);
        list(&mut text, &self.outputs, |text, shown| {
            text.push_str(&to_json(&shown.node));
            text.push(':');
            text.push_str(&shown.output);
        });
        let succeeded = self.outcome == Some(Outcome::Succeeded);
        let status = if succeeded { "success" } else { "error" };
        text.push_str(&format!(
            r#"}},"status":{{"status_str":"{status}","completed":{succeeded},"messages":["#
        ));
        list(&mut text, &self.messages, |text, (name, data)| {
            text.push_str(&format!(r#"["{name}",{data}]"#));
        });
        text.push_str(r#"]},"meta":{"#);
        list(&mut text, &self.outputs, |text, shown| {
            let (key, node) = (to_json(&shown.node), to_json(&shown.ran_as));
            text.push_str(&format!(
                r#"{key}:{{"node_id":{node},"display_node":{node},"parent_node":null,"real_node_id":{node}}}"#
            ));
        });
        text.push_str("}}");
        text.into()
    }
}

fn list<T>(text: &mut String, items: &[T], write: impl Fn(&mut String, &T)) {
    for (index, item) in items.iter().enumerate() {
        if index > 0 {
            text.push(',');
        }
        write(text, item);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(events: Vec<Event>) -> Json {
        let interrupt = CancellationToken::new();
        let recorder = Recorder {
            prompt_id: "p",
            nodes: &["3".to_owned(), "4".to_owned()],
            hearers: None,
            interrupt: &interrupt,
            previews: true,
            record: Mutex::default(),
        };
        for event in events {
            recorder.tell(event);
        }
        recorder.fail_if_open("it ended without a word");
        serde_json::from_slice(&recorder.record().entry(r#"[0,"p",{},{},["9"]]"#)).unwrap()
    }

    #[test]
    fn an_entry_is_comfyuis() {
        let output = json!({"text": ["a"]});
        let entry = entry(vec![
            Event::Started,
            Event::Cached { nodes: vec!["4".into()] },
            Event::Executing { node: "9".into() },
            Event::Executed { node: "9".into(), output: output.clone(), ran_as: "8".into() },
            Event::Finished { node: "9".into() },
            Event::Executed { node: "10".into(), output: Json::Null, ran_as: "10".into() },
            Event::Succeeded,
            Event::Started,
        ]);
        assert_eq!(entry["prompt"], json!([0, "p", {}, {}, ["9"]]));
        assert_eq!(entry["outputs"], json!({"9": output}));
        assert_eq!(
            entry["meta"],
            json!({"9": {"node_id": "8", "display_node": "8", "parent_node": null, "real_node_id": "8"}})
        );
        let status = &entry["status"];
        assert_eq!((&status["status_str"], &status["completed"]), (&json!("success"), &json!(true)));
        let messages = status["messages"].as_array().unwrap();
        let names: Vec<&str> = messages.iter().map(|message| message[0].as_str().unwrap()).collect();
        assert_eq!(names, ["execution_start", "execution_cached", "execution_success"]);
        assert_eq!(messages[1][1]["nodes"], json!(["4"]));
        assert!(
            messages.iter().all(|message| message[1]["prompt_id"] == "p" && message[1]["timestamp"].is_i64())
        );
    }

    #[test]
    fn a_failure_is_told_with_all_nodes_and_a_silent_end_is_one() {
        let failure = Failure {
            node: "3".into(),
            class: "KSampler".into(),
            executed: vec!["5".into()],
            message: "no".into(),
            kind: "ValueError".into(),
            inputs: json!({"seed": [1]}),
        };
        let failed = entry(vec![Event::Cached { nodes: vec!["4".into()] }, Event::Failed(Box::new(failure))]);
        assert_eq!(failed["status"]["status_str"], "error");
        let error = &failed["status"]["messages"][1][1];
        assert_eq!((&error["node_type"], &error["exception_message"]), (&json!("KSampler"), &json!("no\n")));
        assert_eq!((&error["current_outputs"], &error["traceback"]), (&json!(["3", "4"]), &json!([])));
        let silent = entry(vec![Event::Started]);
        assert_eq!(silent["status"]["messages"][1][0], "execution_error");
        assert_eq!(silent["status"]["completed"], false);
    }
}
