//! What nodes say of themselves, against what ComfyUI 0.3.64 says (its tooltips, descriptions and files are left out).

use serde_json::Value as Json;

use super::*;
use crate::workflow::interface::Choices;

/// Choices that are files: of the folders of the server that was asked.
const FILES: [&str; 4] = ["image", "latent", "clip_name", "ckpt_name"];

fn recorded() -> serde_json::Map<String, Json> {
    let text = include_str!("../../../../tests/data/comfyui-nodes.json");
    serde_json::from_str(text).unwrap()
}

/// Equal but for 1 and 1.0.
fn same(a: &Json, b: &Json) -> bool {
    match (a, b) {
        (Json::Number(x), Json::Number(y)) => x == y || x.as_f64() == y.as_f64(),
        (Json::Array(x), Json::Array(y)) => x.len() == y.len() && x.iter().zip(y).all(|(a, b)| same(a, b)),
        (Json::Object(x), Json::Object(y)) => {
            x.len() == y.len()
                && x.iter().all(|(key, a)| key == "tooltip" || y.get(key).is_some_and(|b| same(a, b)))
        }
        _ => a == b,
    }
}

fn without_tooltips(mut json: Json) -> Json {
    if let Some(options) = json.get_mut(1).and_then(Json::as_object_mut)
        && options.remove("tooltip").is_some()
        && options.is_empty()
    {
        json.as_array_mut().map(Vec::pop);
    }
    json
}

/// What differs between a node's own words and ComfyUI's.
fn differences(class: &str, expected: &Json, found: &Json) -> Vec<String> {
    let mut wrong = Vec::new();
    for key in ["output", "output_name", "output_is_list", "output_node", "category"] {
        if found[key] != expected[key] {
            wrong.push(format!("{class}.{key}: {} instead of {}", found[key], expected[key]));
        }
    }
    let shown = &expected["display_name"];
    if found["display_name"] != *shown {
        wrong.push(format!("{class}.display_name: {} instead of {shown}", found["display_name"]));
    }
    for section in ["required", "optional", "hidden"] {
        let names = |json: &Json| -> Vec<String> {
            let inputs = json["input"][section].as_object();
            inputs.map(|inputs| inputs.keys().cloned().collect()).unwrap_or_default()
        };
        if names(expected) != names(found) {
            wrong.push(format!("{class}.{section}: {:?} instead of {:?}", names(found), names(expected)));
            continue;
        }
        if section == "hidden" {
            continue;
        }
        for name in names(expected) {
            let expected = &expected["input"][section][&name];
            let found = without_tooltips(found["input"][section][&name].clone());
            let files = expected[0].as_array().is_some_and(Vec::is_empty) || FILES.contains(&&*name);
            if !files && !same(expected, &found) {
                wrong.push(format!("{class}.{name}: {found} instead of {expected}"));
            }
        }
    }
    wrong
}

#[test]
fn every_node_says_of_itself_what_comfyui_says() {
    let registry = Registry::all();
    let recorded = recorded();
    let mut wrong = Vec::new();
    let mut missing = Vec::new();
    for (class, expected) in &recorded {
        let Some(node) = registry.get(class) else {
            missing.push(class.as_str());
            continue;
        };
        let info = node.interface.object_info(&|choices: &Choices| match choices {
            Choices::Fixed(choices) => choices.clone(),
            Choices::Models { also, .. } => also.iter().map(|name| (*name).to_owned()).collect(),
            _ => Vec::new(),
        });
        wrong.extend(differences(class, expected, &info));
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(missing.is_empty(), "{}", missing.join(", "));
}

#[test]
fn the_order_of_inputs_is_comfyuis() {
    // serde_json sorts keys, so the order is read from the text.
    let text = include_str!("../../../../tests/data/comfyui-nodes.json");
    let recorded: crate::workflow::Ordered = serde_json::from_str(text).unwrap();
    let registry = Registry::all();
    for (class, expected) in recorded.as_object().unwrap() {
        let Some(node) = registry.get(class) else { continue };
        for (section, optional) in [("required", false), ("optional", true)] {
            let names = expected.get("input").and_then(|inputs| inputs.get(section)?.as_object());
            let names: Vec<&str> = names.iter().flat_map(|names| names.keys().map(|name| &**name)).collect();
            let inputs = node.interface.inputs.iter().filter(|input| input.optional == optional);
            assert_eq!(inputs.map(|input| input.name).collect::<Vec<_>>(), names, "{class}");
        }
    }
}
