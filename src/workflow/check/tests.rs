//! Refusals in ComfyUI's words; the expected ones were answered by ComfyUI 0.3.64.

use std::path::Path;

use proptest::prelude::*;
use serde_json::{Value as Json, json};

use super::*;
use crate::workflow::context::{Context, Inputs, NodeError, Outputs};
use crate::workflow::interface::{
    Interface, boolean, combo, float, int, link, model_file, string, tagged_combo,
};
use crate::workflow::value::Kind;

fn nothing(_: &Inputs, _: &Context<'_>) -> Result<Outputs, NodeError> {
    Ok(Outputs::default())
}

fn absent(inputs: &Inputs, _: &Folders) -> Result<(), String> {
    let name = inputs.string("image").map_err(|error| error.to_string())?;
    if &*name == "there.png" { Ok(()) } else { Err(format!("Invalid image file: {name}")) }
}

fn registry() -> Registry {
    let mut registry = Registry::default();
    let mut add = |interface: Interface| {
        registry.add(interface, nothing);
    };
    add(Interface::new("Empty", "t")
        .input(int("width", 512, 1, 16384).with("step", 1))
        .input(int("height", 512, 1, 16384).with("step", 1))
        .output(Kind::IMAGE));
    add(Interface::new("Invert", "t").input(link("image", Kind::IMAGE)).output(Kind::IMAGE));
    add(Interface::new("Scale", "t")
        .input(link("image", Kind::IMAGE))
        .input(combo("method", ["nearest-exact", "area"]))
        .input(float("by", 1.0, 0.01, 8.0).with("step", 0.01))
        .output(Kind::IMAGE));
    add(Interface::new("Save", "t")
        .input(link("images", Kind::IMAGE).with("tooltip", "The images to save."))
        .input(string("prefix").with("default", "ComfyUI"))
        .output_node());
    add(Interface::new("Show", "t").input(link("source", Kind::ANY)).output_node());
    add(Interface::new("Loader", "t").input(model_file("name", "loras")).output(Kind::MODEL));
    add(Interface::new("Text", "t")
        .input(string("text"))
        .optional(boolean("flag", true))
        .optional(tagged_combo("mode", ["a", "b"]))
        .output(Kind::STRING));
    add(Interface::new("Seed", "t").input(crate::workflow::interface::seed("seed")).output(Kind::INT));
    add(Interface::new("Open", "t").open_inputs("lora_").output_node());
    let image = Interface::new("Load", "t").input(combo("image", ["a"; 0])).output(Kind::IMAGE);
    registry.add(image, nothing).check = Some(("image", absent));
    registry
}

fn names(choices: &Choices) -> Vec<String> {
    match choices {
        Choices::Fixed(names) => names.clone(),
        _ => (0..21).map(|index| format!("{index}.safetensors")).collect(),
    }
}

fn checked(prompt: &Json) -> Result<Checked, Refusal> {
    checked_for(prompt, None)
}

fn checked_for(prompt: &Json, targets: Option<&[String]>) -> Result<Checked, Refusal> {
    let graph = Graph::parse(prompt.to_string().as_bytes()).unwrap();
    let folders = Folders::below(Path::new("nowhere"), None);
    check(&graph, &registry(), &names, &folders, targets)
}

fn refused(prompt: &Json) -> Json {
    serde_json::to_value(checked(prompt).unwrap_err()).unwrap()
}

fn node(class: &str, inputs: &Json) -> Json {
    json!({ "class_type": class, "inputs": inputs })
}

fn empty() -> Json {
    node("Empty", &json!({ "width": 64, "height": 64 }))
}

fn save(from: &Json) -> Json {
    node("Save", &json!({ "images": from, "prefix": "x" }))
}

/// The one error of node 1.
fn error_of(inner: &Json) -> Json {
    let body = refused(&json!({ "1": inner, "8": empty(), "9": save(&json!(["1", 0])) }));
    assert_eq!(body["error"]["type"], "prompt_outputs_failed_validation", "{body}");
    assert_eq!(body["error"]["details"], "", "an error further up is not the output's own: {body}");
    let node = &body["node_errors"]["1"];
    assert_eq!(node["dependent_outputs"], json!(["9"]), "{body}");
    assert_eq!(node["errors"].as_array().map(Vec::len), Some(1), "{body}");
    node["errors"][0].clone()
}

#[test]
fn prompts_without_a_known_output_are_refused_whole() {
    let error = |prompt| refused(&prompt)["error"].clone();
    let none = json!({ "type": "prompt_no_outputs", "message": "Prompt has no outputs", "details": "", "extra_info": {} });
    assert_eq!(error(json!({})), none);
    assert_eq!(error(json!({ "1": empty() })), none);
    let no_class = json!({
        "type": "invalid_prompt",
        "message": "Cannot execute because a node is missing the class_type property.",
        "details": "Node ID '#1'",
        "extra_info": {},
    });
    for node in [json!({ "inputs": {} }), json!("hello"), json!(null), json!([])] {
        assert_eq!(error(json!({ "1": node })), no_class, "{node}");
    }
}

#[test]
fn the_first_unknown_class_is_told_and_all_are_named() {
    let prompt = json!({ "1": empty(), "2": node("Foo", &json!({})), "3": node("Bar", &json!({})), "4": node("Foo", &json!({})) });
    let refusal = checked(&prompt).unwrap_err();
    assert_eq!(refusal.missing, ["Foo", "Bar"]);
    assert_eq!(refusal.error.message, "Cannot execute because node Foo does not exist.");
    assert_eq!(refusal.error.details, "Node ID '#2'");
    let missing =
        json!([{ "class_type": "Foo", "node_ids": ["2", "4"] }, { "class_type": "Bar", "node_ids": ["3"] }]);
    assert_eq!(refusal.error.extra_info["missing"], missing);
    let number = refused(&json!({ "1": { "class_type": 5 } }));
    assert_eq!(number["error"]["message"], "Cannot execute because node 5 does not exist.");
}

#[test]
fn an_outputs_own_errors_are_told_for_the_whole_prompt() {
    let body = refused(&json!({ "1": node("Save", &json!({})) }));
    let missing = |name| {
        json!({
            "type": "required_input_missing",
            "message": "Required input is missing",
            "details": name,
            "extra_info": { "input_name": name },
        })
    };
    let expected = json!({
        "error": {
            "type": "prompt_outputs_failed_validation",
            "message": "Prompt outputs failed validation",
            "details": "Required input is missing: images\nRequired input is missing: prefix",
            "extra_info": {},
        },
        "node_errors": { "1": {
            "errors": [missing("images"), missing("prefix")],
            "dependent_outputs": ["1"],
            "class_type": "Save",
        } },
    });
    assert_eq!(body, expected);
}

#[test]
fn numbers_are_bounded_in_comfyuis_words() {
    let config = json!(["INT", { "default": 512, "min": 1, "max": 16384, "step": 1 }]);
    let expect = |kind: &str, message: &str, value: Json| {
        json!({
            "type": kind, "message": message, "details": "width",
            "extra_info": { "input_name": "width", "input_config": config, "received_value": value },
        })
    };
    let width = |value: Json| error_of(&node("Empty", &json!({ "width": value, "height": 64 })));
    let smaller = "value_smaller_than_min";
    assert_eq!(width(json!(0)), expect(smaller, "Value 0 smaller than min of 1", json!(0)));
    assert_eq!(width(json!(-3.7)), expect(smaller, "Value -3 smaller than min of 1", json!(-3)));
    let huge = width(json!(1e30));
    assert_eq!(huge["type"], "value_bigger_than_max");
    assert_eq!(huge["message"], "Value 1000000000000000000000000000000 bigger than max of 16384");
    let by = |value: Json| {
        error_of(&node("Scale", &json!({ "image": ["8", 0], "method": "area", "by": value })))["message"]
            .clone()
    };
    assert_eq!(by(json!(1e-9)), "Value 1e-09 smaller than min of 0.01");
    assert_eq!(by(json!(1e22)), "Value 1e+22 bigger than max of 8.0");
    assert_eq!(by(json!("9")), "Value 9.0 bigger than max of 8.0");
}

#[test]
fn seeds_reach_to_the_end_of_64_bits() {
    let with = |seed: Json| json!({ "1": node("Seed", &json!({ "seed": seed })), "9": node("Show", &json!({ "source": ["1", 0] })) });
    let run = checked(&with(json!(u64::MAX))).unwrap();
    assert_eq!(run.graph.input("1", "seed").unwrap().to_json(), json!(u64::MAX));
    let error = checked(&with(json!(18_446_744_073_709_551_616.0))).unwrap_err();
    let message = &error.node_errors.get("1").unwrap().errors[0].message;
    assert_eq!(message, "Value 18446744073709551616 bigger than max of 18446744073709551615");
}

#[test]
fn what_does_not_convert_is_refused_in_pythons_words() {
    let width = |value: Json| error_of(&node("Empty", &json!({ "width": value, "height": 64 })));
    let config = json!(["INT", { "default": 512, "min": 1, "max": 16384, "step": 1 }]);
    let message = "invalid literal for int() with base 10: 'abc'";
    let expected = json!({
        "type": "invalid_input_type",
        "message": "Failed to convert an input value to a INT value",
        "details": format!("width, abc, {message}"),
        "extra_info": {
            "input_name": "width", "input_config": config, "received_value": "abc", "exception_message": message,
        },
    });
    assert_eq!(width(json!("abc")), expected);
    let list = width(json!({ "__value__": [1, 2, 3] }));
    assert_eq!(
        list["details"],
        "width, [1, 2, 3], int() argument must be a string, a bytes-like object or a real number, not 'list'"
    );
    let scale = json!({ "image": ["8", 0], "method": "area", "by": "x1" });
    assert_eq!(
        error_of(&node("Scale", &scale))["details"],
        "by, x1, could not convert string to float: 'x1'"
    );
    let nan = json!({ "image": ["8", 0], "method": "area", "by": "nan" });
    assert_eq!(error_of(&node("Scale", &nan))["type"], "invalid_input_type");
}

#[test]
fn values_are_converted_and_what_runs_and_is_told_has_the_converted_ones() {
    let prompt = json!({
        "1": node("Empty", &json!({ "width": " 1_6 ", "height": 3.9, "other": "stays" })),
        "2": node("Scale", &json!({ "image": ["1", 0], "method": "area", "by": 2 })),
        "3": save(&json!(["2", 0])),
        "4": node("Text", &json!({ "text": { "a": 1.0, "b": [true, null] }, "flag": "false", "mode": "b" })),
        "5": node("Show", &json!({ "source": ["4", 0] })),
    });
    let graph = checked(&prompt).unwrap().graph;
    let value = |id, name| graph.input(id, name).unwrap().to_json();
    assert_eq!((value("1", "width"), value("1", "height")), (json!(16), json!(3)));
    assert_eq!(value("1", "other"), json!("stays"));
    assert_eq!(python::repr(graph.input("2", "by").unwrap()), "2.0");
    assert_eq!(value("4", "text"), json!("{'a': 1.0, 'b': [True, None]}"));
    assert_eq!(value("4", "flag"), json!(true));
}

#[test]
fn choices_are_held_to_their_lists() {
    let scale =
        |method: Json| error_of(&node("Scale", &json!({ "image": ["8", 0], "method": method, "by": 1 })));
    let expected = json!({
        "type": "value_not_in_list", "message": "Value not in list",
        "details": "method: 'it's' not in ['nearest-exact', 'area']",
        "extra_info": {
            "input_name": "method", "input_config": [["nearest-exact", "area"], {}], "received_value": "it's",
        },
    });
    assert_eq!(scale(json!("it's")), expected);
    assert_eq!(scale(json!(5.0))["details"], "method: '5.0' not in ['nearest-exact', 'area']");
    let long = json!({
        "1": node("Loader", &json!({ "name": "q" })), "9": node("Show", &json!({ "source": ["1", 0] })),
    });
    let error = &refused(&long)["node_errors"]["1"]["errors"][0];
    assert_eq!(error["details"], "name: 'q' not in (list of length 21)");
    assert_eq!(
        error["extra_info"],
        json!({ "input_name": "name", "input_config": null, "received_value": "q" })
    );
    // Newer nodes look at their choices themselves.
    let tagged = json!({
        "1": node("Text", &json!({ "text": "", "mode": "c" })), "9": node("Show", &json!({ "source": ["1", 0] })),
    });
    assert!(checked(&tagged).is_ok());
}

#[test]
fn links_of_other_types_are_refused() {
    let body = refused(&json!({
        "1": node("Text", &json!({ "text": "x" })),
        "2": save(&json!(["1", 0])),
    }));
    let details = "images, received_type(STRING) mismatch input_type(IMAGE)";
    assert_eq!(body["error"]["details"], format!("Return type mismatch between linked nodes: {details}"));
    let expected = json!({
        "type": "return_type_mismatch", "message": "Return type mismatch between linked nodes", "details": details,
        "extra_info": {
            "input_name": "images",
            "input_config": ["IMAGE", { "tooltip": "The images to save." }],
            "received_type": "STRING",
            "linked_node": ["1", 0],
        },
    });
    assert_eq!(body["node_errors"]["2"]["errors"][0], expected);
    let list = json!({ "image": ["8", 0], "method": ["7", 0], "by": 1 });
    let body = refused(&json!({
        "7": node("Text", &json!({ "text": "area" })),
        "8": empty(),
        "1": node("Scale", &list),
        "9": save(&json!(["1", 0])),
    }));
    assert_eq!(
        body["node_errors"]["1"]["errors"][0]["details"],
        "method, received_type(STRING) mismatch input_type(['nearest-exact', 'area'])"
    );
}

#[test]
fn links_that_lead_nowhere_are_told_as_python_stumbles_over_them() {
    let of_output = [
        (json!(["9", 0]), "KeyError", "'9'"),
        (json!(["1", 5]), "IndexError", "tuple index out of range"),
        (json!(["1", -2]), "IndexError", "tuple index out of range"),
        (json!(["1", "0"]), "TypeError", "tuple indices must be integers or slices, not str"),
        (json!(["1", 0.0]), "TypeError", "tuple indices must be integers or slices, not float"),
        (json!(["1", null]), "TypeError", "tuple indices must be integers or slices, not NoneType"),
        (json!([1, 0]), "KeyError", "1"),
        (json!([[1], 0]), "TypeError", "unhashable type: 'list'"),
    ];
    for (link, kind, message) in of_output {
        let body = refused(&json!({ "1": empty(), "2": save(&link) }));
        assert_eq!(body["error"]["details"], format!("Exception when validating node: {message}"), "{link}");
        let expected = json!({
            "type": "exception_during_validation", "message": "Exception when validating node", "details": message,
            "extra_info": { "exception_type": kind, "traceback": [] },
        });
        assert_eq!(body["node_errors"]["2"]["errors"], json!([expected]), "{link}");
    }
    // Negative ones count from the end, as in Python.
    assert!(checked(&json!({ "1": empty(), "2": save(&json!(["1", -1])) })).is_ok());
    let error = error_of(&node("Invert", &json!({ "image": ["7", 0] })));
    let expected = json!({
        "type": "exception_during_inner_validation", "message": "Exception when validating inner node",
        "details": "'7'",
        "extra_info": {
            "input_name": "images",
            "input_config": ["IMAGE", { "tooltip": "The images to save." }],
            "exception_message": "'7'", "exception_type": "KeyError", "traceback": [],
            "linked_node": ["1", 0],
        },
    });
    assert_eq!(error, expected);
    let no_inputs = refused(&json!({ "1": { "class_type": "Save" } }));
    assert_eq!(no_inputs["error"]["details"], "Exception when validating node: 'inputs'");
    for link in [json!([]), json!(["1"]), json!(["1", 0, 0])] {
        let body = refused(&json!({ "1": empty(), "2": save(&link) }));
        let error = &body["node_errors"]["2"]["errors"][0];
        assert_eq!(error["type"], "bad_linked_input");
        assert_eq!(error["message"], "Bad linked input, must be a length-2 list of [node_id, slot_index]");
        assert_eq!(error["extra_info"]["received_value"], link);
    }
}

#[test]
fn a_node_that_looks_at_a_file_itself_says_so() {
    let error = error_of(&node("Load", &json!({ "image": "none.png" })));
    let expected = json!({
        "type": "custom_validation_failed", "message": "Custom validation failed for node",
        "details": "image - Invalid image file: none.png", "extra_info": { "input_name": "image" },
    });
    assert_eq!(error, expected);
    let null = error_of(&node("Load", &json!({ "image": null })));
    assert_eq!(null["type"], "exception_during_inner_validation");
    assert_eq!(null["details"], "'NoneType' object has no attribute 'endswith'");
    let there = json!({ "1": node("Load", &json!({ "image": "there.png" })), "9": save(&json!(["1", 0])) });
    assert!(checked(&there).is_ok());
}

#[test]
fn an_output_that_fails_does_not_stop_the_others() {
    let bad = node("Empty", &json!({ "width": 0, "height": 64 }));
    let prompt = json!({
        "1": empty(), "2": save(&json!(["1", 0])),
        "3": bad, "4": save(&json!(["3", 0])), "5": save(&json!(["3", 0])),
    });
    let run = checked(&prompt).unwrap();
    assert_eq!(run.outputs, ["2"]);
    let told = serde_json::to_value(&run.node_errors).unwrap();
    assert_eq!(told["3"]["dependent_outputs"], json!(["4", "5"]));
    assert_eq!(told["3"]["errors"][0]["type"], "value_smaller_than_min");
    assert_eq!(told.as_object().unwrap().len(), 1);
}

#[test]
fn an_error_counts_for_every_output_that_fails_after_it() {
    let bad = |name: &str| {
        let mut inputs = json!({ "width": 64, "height": 64 });
        inputs[name] = json!(0);
        node("Empty", &inputs)
    };
    let body = refused(&json!({
        "1": bad("height"), "2": save(&json!(["1", 0])), "3": bad("width"), "4": save(&json!(["3", 0])),
    }));
    assert_eq!(body["node_errors"]["1"]["dependent_outputs"], json!(["2", "4"]));
    assert_eq!(body["node_errors"]["3"]["dependent_outputs"], json!(["4"]));
}

#[test]
fn only_the_outputs_that_are_asked_for_are_checked() {
    let prompt = json!({ "1": empty(), "2": save(&json!(["1", 0])), "3": node("Save", &json!({})) });
    let run = checked_for(&prompt, Some(&["2".into()])).unwrap();
    assert_eq!((run.outputs, run.node_errors.0.len()), (vec!["2".to_owned()], 0));
    for targets in [&[][..], &["1".to_owned()]] {
        let refusal = checked_for(&prompt, Some(targets)).unwrap_err();
        assert_eq!(refusal.error.kind, "prompt_no_outputs");
    }
}

#[test]
fn cycles_are_refused_as_comfyui_refuses_them_and_named() {
    let invert = |from: &str| node("Invert", &json!({ "image": [from, 0] }));
    let body = refused(&json!({ "1": invert("2"), "2": invert("1"), "3": save(&json!(["2", 0])) }));
    assert_eq!(body["error"]["type"], "prompt_outputs_failed_validation");
    assert_eq!((&body["error"]["details"], &body["node_errors"]), (&json!(""), &json!({})));
    assert_eq!(body["error"]["extra_info"]["cycle"], json!(["2", "1"]));
    let body = refused(&json!({ "1": invert("1"), "3": save(&json!(["1", 0])) }));
    assert_eq!(body["error"]["extra_info"]["cycle"], json!(["1"]));
}

#[test]
fn a_chain_of_ten_thousand_nodes_is_checked() {
    let mut prompt = serde_json::Map::new();
    prompt.insert("0".into(), empty());
    for index in 1..10_000 {
        let from = json!([(index - 1).to_string(), 0]);
        prompt.insert(index.to_string(), node("Invert", &json!({ "image": from })));
    }
    prompt.insert("s".into(), save(&json!(["9999", 0])));
    assert_eq!(checked(&prompt.into()).unwrap().outputs, ["s"]);
}

#[test]
fn open_inputs_lead_to_the_nodes_they_come_from() {
    let open = |from: &str| json!({ "1": empty(), "9": node("Open", &json!({ "lora_1": [from, 0], "lora_2": { "on": true } })) });
    assert!(checked(&open("1")).is_ok());
    let body = refused(&open("7"));
    assert_eq!(body["node_errors"]["9"]["errors"][0]["details"], "'7'");
}

#[test]
fn errors_do_not_multiply_with_outputs_that_fail() {
    let save = node("Save", &json!({}));
    let many = |count: usize, id: &dyn Fn(usize) -> String| {
        let prompt: serde_json::Map<_, _> = (0..count).map(|index| (id(index), save.clone())).collect();
        checked(&prompt.into()).unwrap_err().node_errors
    };
    let short = many(3 * MOST_FAULTY, &|index| index.to_string());
    assert_eq!(short.0.len(), MOST_FAULTY);
    assert!(short.0.iter().all(|(_, node)| !node.dependent_outputs.is_empty()));
    let long = many(200, &|index| format!("{index}{}", "x".repeat(1 << 15)));
    for errors in [short, long] {
        let outputs = errors.0.iter().flat_map(|(_, node)| &node.dependent_outputs);
        assert!(outputs.map(String::len).sum::<usize>() <= DEPENDENT_BYTES);
    }
}

fn any_json() -> impl Strategy<Value = Json> {
    let leaf = prop_oneof![
        Just(Json::Null),
        any::<bool>().prop_map(Json::from),
        any::<i64>().prop_map(Json::from),
        any::<f64>().prop_map(Json::from),
        prop_oneof![Just("1"), Just("2"), Just("nan"), Just("_"), Just("area")].prop_map(Json::from),
        any::<String>().prop_map(Json::from),
    ];
    leaf.prop_recursive(3, 12, 3, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..3).prop_map(Json::from),
            prop::collection::hash_map("__value__|[a-z]{0,2}", inner, 0..3)
                .prop_map(|map| map.into_iter().collect::<serde_json::Map<_, _>>().into()),
        ]
    })
}

fn any_prompt() -> impl Strategy<Value = Json> {
    const CLASSES: &[&str] =
        &["Empty", "Invert", "Scale", "Save", "Show", "Loader", "Text", "Seed", "Open", "Load", "None"];
    const NAMES: &[&str] = &[
        "width", "height", "image", "images", "method", "by", "prefix", "source", "text", "flag", "mode",
        "lora_1", "seed", "name",
    ];
    let link = (0..5i64, -2..3i64).prop_map(|(node, slot)| json!([node.to_string(), slot]));
    let input = prop_oneof![3 => link, 2 => any_json()];
    let inputs = prop::collection::hash_map(prop::sample::select(NAMES), input, 0..8);
    let node = (prop::sample::select(CLASSES), inputs).prop_map(|(class, inputs)| {
        let inputs: serde_json::Map<_, _> =
            inputs.into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
        node(class, &inputs.into())
    });
    let node = prop_oneof![8 => node, 1 => any_json()];
    prop::collection::vec(node, 0..6).prop_map(|nodes| {
        let nodes = nodes.into_iter().enumerate().map(|(index, node)| (index.to_string(), node));
        nodes.collect::<serde_json::Map<_, _>>().into()
    })
}

proptest! {
    #[test]
    fn no_json_makes_the_checks_panic(prompt in prop_oneof![any_prompt(), any_json()]) {
        let folders = Folders::below(Path::new("nowhere"), None);
        if let Ok(graph) = Graph::parse(prompt.to_string().as_bytes()) {
            match check(&graph, &registry(), &names, &folders, None) {
                Ok(run) => prop_assert!(!run.outputs.is_empty()),
                Err(refusal) => prop_assert!(serde_json::to_value(&refusal).is_ok()),
            }
        }
    }
}

/// A place in a JSON value, as steps that are taken modulo what is there.
fn at<'a>(value: &'a mut Json, path: &[usize]) -> &'a mut Json {
    let Some((step, rest)) = path.split_first() else { return value };
    let count = match &*value {
        Json::Array(items) => items.len(),
        Json::Object(members) => members.len(),
        _ => 0,
    };
    if count == 0 {
        return value;
    }
    let inner = match value {
        Json::Array(items) => items.get_mut(step % count),
        Json::Object(members) => members.values_mut().nth(step % count),
        _ => None,
    };
    at(inner.unwrap(), rest)
}

/// What happens to one place of a workflow.
#[derive(Debug, Clone)]
enum Change {
    Drop(usize),
    Replace(Json),
    /// One member gets what another one has.
    Copy(usize, usize),
    /// A member gets a name more.
    Rename(usize, String),
}

impl Change {
    fn apply(&self, value: &mut Json) {
        let count = value.as_object().map_or(1, serde_json::Map::len).max(1);
        let name = |value: &Json, index: usize| {
            value.as_object().and_then(|members| members.keys().nth(index % count).cloned())
        };
        match self {
            Self::Replace(new) => *value = new.clone(),
            Self::Drop(index) => {
                if let Some(name) = name(value, *index) {
                    value.as_object_mut().unwrap().remove(&name);
                } else if let Json::Array(items) = value {
                    items.pop();
                }
            }
            Self::Copy(from, to) => {
                if let (Some(from), Some(to)) = (name(value, *from), name(value, *to)) {
                    value[&to] = value[&from].clone();
                }
            }
            Self::Rename(index, new) => {
                if let Some(old) = name(value, *index) {
                    value[new] = value[&old].clone();
                }
            }
        }
    }
}

fn any_change() -> impl Strategy<Value = (Vec<usize>, Change)> {
    let link = (0..12u8, -3..4i64).prop_map(|(node, slot)| json!([node.to_string(), slot]));
    let number = prop::sample::select(vec!["1e308", "-1", "18446744073709551616", "4294967296", "0.5"])
        .prop_map(|text| serde_json::from_str(text).unwrap());
    let value = prop_oneof![any_json(), link, number];
    let change = prop_oneof![
        any::<usize>().prop_map(Change::Drop),
        value.prop_map(Change::Replace),
        any::<(usize, usize)>().prop_map(|(from, to)| Change::Copy(from, to)),
        (any::<usize>(), "[a-z_0-9]{1,4}").prop_map(|(index, name)| Change::Rename(index, name)),
    ];
    (prop::collection::vec(any::<usize>(), 0..5), change)
}

/// Prompts that were sent to ComfyUI for tests: good ones and bad ones.
fn recorded() -> Vec<Json> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/comfyui");
    let read =
        |name: &str| -> Json { serde_json::from_slice(&std::fs::read(folder.join(name)).unwrap()).unwrap() };
    let (workflows, errors) = (read("workflows.json"), read("errors.json"));
    let cases =
        workflows.as_object().unwrap().values().chain(errors["refused"].as_object().unwrap().values());
    let bodies = cases.filter_map(|case| serde_json::from_str::<Json>(case["body"].as_str()?).ok());
    bodies.filter_map(|mut body| Some(body.get_mut("prompt")?.take())).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn recorded_workflows_that_were_tampered_with_pass_or_are_refused(
        which in any::<prop::sample::Index>(),
        changes in prop::collection::vec(any_change(), 1..6),
    ) {
        thread_local! {
            static KNOWN: (Registry, Vec<Json>) = (Registry::all(), recorded());
        }
        KNOWN.with(|(registry, recorded)| {
            let mut prompt = which.get(recorded).clone();
            for (path, change) in &changes {
                change.apply(at(&mut prompt, path));
            }
            let folders = Folders::below(Path::new("nowhere"), None);
            if let Ok(graph) = Graph::parse(prompt.to_string().as_bytes()) {
                match check(&graph, registry, &names, &folders, None) {
                    Ok(run) => prop_assert!(run.needed().len() <= run.graph.len()),
                    Err(refusal) => prop_assert!(!refusal.error.message.is_empty()),
                }
            }
            Ok(())
        })?;
    }
}
