//! Prompts that ComfyUI refuses are refused alike: the same status, the same errors of the same nodes and inputs. And
//! those that fail while they run leave the same history. Asked of the real program, compared with recordings.
//!
//! Where ComfyUI stumbles (its status is 500, without JSON) any refusal will do, and of a Python exception only that it
//! is told counts, not its words.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on fails")]

mod comfy;
mod server;

use std::collections::BTreeSet;

use comfy::{Comfy, difference, none_differ, recorded, settled};
use reqwest::Method;
use serde_json::{Value, json};

/// The picture that cannot be read, as it was recorded.
const BROKEN: &[u8] = b"\x89PNG\r\n\x1a\n but then nothing";

/// Takes the words of exceptions out of an error, and what they were made into.
fn without_words(error: &mut Value) {
    let kind = error["type"].as_str().unwrap_or_default().to_owned();
    if kind.starts_with("exception_") {
        error["details"] = "of Python".into();
    }
    if kind == "invalid_input_type" {
        // "steps, three, invalid literal for int() ...": the input, the value, the exception.
        let exception = error["extra_info"]["exception_message"].as_str().unwrap_or_default().to_owned();
        let details = error["details"].as_str().unwrap_or_default();
        let kept =
            details.strip_suffix(&exception).unwrap_or("the exception is not in the details").to_owned();
        error["details"] = kept.into();
    }
    for word in ["exception_message", "exception_type"] {
        if let Some(text) = error["extra_info"].get_mut(word)
            && text.is_string()
        {
            *text = "of Python".into();
        }
    }
}

/// An answer in the form in which two servers' answers can be compared.
fn comparable(answer: &Value) -> Value {
    let mut answer = settled(answer);
    for id in ["prompt_id", "number"] {
        if let Some(value) = answer.get_mut(id) {
            *value = comfy::kind(value).into();
        }
    }
    // What Darkroom says beyond ComfyUI: all missing classes, the nodes of a cycle.
    if let Some(more) = answer["error"].get_mut("extra_info").and_then(Value::as_object_mut) {
        more.retain(|name, _| name != "missing" && name != "cycle");
    }
    let mut worded = false;
    if let Some(nodes) = answer["node_errors"].as_object_mut() {
        let outputs: BTreeSet<_> = nodes
            .values()
            .filter_map(|node| node["dependent_outputs"].as_array())
            .flatten()
            .map(Value::to_string)
            .collect();
        for node in nodes.values_mut().filter(|_| outputs.len() > 1) {
            // Of several ComfyUI counts those that it came to after the node, in the order of a set.
            node["dependent_outputs"] = "some of several".into();
        }
        for errors in nodes.values_mut().map(|node| node["errors"].as_array_mut().unwrap()) {
            for error in errors.iter_mut() {
                let before = error.clone();
                without_words(error);
                worded |= before != *error;
            }
            errors.sort_by_key(Value::to_string); // inputs are a set too
        }
    }
    // A line for each error of an output node, in the order of a set.
    if let Some(details) = answer["error"].get_mut("details").filter(|details| details.is_string()) {
        let mut lines: Vec<_> = details.as_str().unwrap().lines().map(str::to_owned).collect();
        if worded {
            lines.iter_mut().for_each(|line| line.truncate(line.find(':').unwrap_or(line.len())));
        }
        lines.sort();
        *details = json!(lines);
    }
    answer
}

#[tokio::test]
async fn refused_prompts_get_comfyui_s_answers() {
    let comfy = Comfy::start(true);
    comfy.upload("broken.png", BROKEN).await; // it is in lists that errors show
    let mut found = Vec::new();
    let recorded = recorded("errors.json");
    for (name, case) in recorded["refused"].as_object().unwrap() {
        let response = comfy.send(Method::POST, "/prompt", case["body"].as_str().unwrap()).await;
        let status = response.status().as_u16();
        let text = response.text().await.unwrap();
        let theirs = case["status"].as_u64().unwrap();
        if theirs == 500 {
            if !(400..=500).contains(&status) {
                found.push(format!("{name}: theirs 500, ours {status} {text}"));
            }
            continue;
        }
        let ours: Value = serde_json::from_str(&text).unwrap_or_default();
        if u64::from(status) != theirs {
            found.push(format!("{name}: theirs {theirs}, ours {status} {text}"));
        } else if let Some(said) = difference("", &comparable(&case["answer"]), &comparable(&ours)) {
            found.push(format!("{name}{said}"));
        }
        if status == 200 {
            comfy.finished(ours["prompt_id"].as_str().unwrap()).await;
        }
    }
    none_differ(&found);
}

#[tokio::test]
async fn prompts_that_fail_leave_comfyui_s_history() {
    let comfy = Comfy::start(true);
    comfy.upload("broken.png", BROKEN).await;
    let mut found = Vec::new();
    let recorded = recorded("errors.json");
    for (name, case) in recorded["failed"].as_object().unwrap() {
        let response = comfy.send(Method::POST, "/prompt", case["body"].as_str().unwrap()).await;
        assert_eq!(response.status(), 200, "{name}");
        let ours = told(&comfy.finished(name).await);
        found.extend(difference(name, &told(&case["history"]), &ours));
    }
    none_differ(&found);
}

/// A history entry of a failed prompt without the exception's words and the prompt's number.
fn told(entry: &Value) -> Value {
    let mut entry = settled(entry);
    entry["prompt"][0] = "number".into();
    for message in entry["status"]["messages"].as_array_mut().unwrap() {
        let event = message[1].as_object_mut().unwrap();
        if let Some(inputs) = event.get_mut("current_inputs").and_then(Value::as_object_mut) {
            for item in inputs.values_mut().flat_map(|list| list.as_array_mut().unwrap()) {
                // What is no number or text is told as Python prints it.
                if item.as_str().is_some_and(|text| text.starts_with(['<', '{'])) {
                    *item = "printed".into();
                }
            }
        }
        for word in ["exception_message", "exception_type"] {
            if let Some(text) = event.get_mut(word) {
                assert!(text.as_str().is_some_and(|text| !text.is_empty()), "{word}: {text}");
                *text = "of Python".into();
            }
        }
    }
    entry
}

#[tokio::test]
async fn nodes_are_described_as_comfyui_describes_them() {
    let comfy = Comfy::start(false);
    let ours = comfy.json("/object_info").await;
    let recorded = recorded("object_info.json");
    let files =
        ["checkpoints", "diffusion_models", "text_encoders", "vae", "loras", "controlnet", "upscale_models"];
    let mut names = Vec::new();
    for folder in files {
        let listed = comfy.json(&format!("/models/{folder}")).await;
        names.extend(listed.as_array().unwrap().iter().cloned());
    }
    let mut found = Vec::new();
    for (class, theirs) in recorded.as_object().unwrap() {
        match ours.get(class) {
            None => found.push(format!("{class} is not there")),
            Some(ours) => found.extend(difference(class, &settled(theirs), &settled(&without(&names, ours)))),
        }
        let alone = comfy.json(&format!("/object_info/{class}")).await;
        found.extend(difference(class, &json!({class: ours[class]}), &alone));
    }
    none_differ(&found);
}

/// The same without the names of the models that are there, which recordings leave out.
fn without(names: &[Value], value: &Value) -> Value {
    match value {
        Value::Object(members) => {
            members.iter().map(|(key, inner)| (key.clone(), without(names, inner))).collect()
        }
        Value::Array(items) => {
            items.iter().filter(|item| !names.contains(item)).map(|item| without(names, item)).collect()
        }
        other => other.clone(),
    }
}
