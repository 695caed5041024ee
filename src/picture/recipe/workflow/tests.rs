use super::super::tests::{control, lora, recipe};
use super::*;
use crate::task::{DetailPlaces, DetailSpec};

/// What ComfyUI 0.3.64 says of these nodes (`GET /object_info`): inputs with their types and bounds, and outputs.
const NODES: &str = include_str!("comfyui-nodes.json");

/// Checks every node as ComfyUI does before it runs a workflow: known inputs only and all that are required, links
/// between outputs and inputs of one type, numbers within bounds, words out of their lists. The classes, sorted.
fn classes(graph: &Value) -> Vec<&str> {
    let known: Value = serde_json::from_str(NODES).unwrap();
    let nodes = graph.as_object().unwrap();
    let mut classes: Vec<&str> = Vec::new();
    for node in nodes.values() {
        let class = node["class_type"].as_str().unwrap();
        classes.push(class);
        let known = &known[class];
        assert!(known.is_object(), "ComfyUI has no {class}");
        let inputs = node["inputs"].as_object().unwrap();
        for name in known["input"]["required"].as_object().unwrap().keys() {
            assert!(inputs.contains_key(name), "{class} lacks {name}");
        }
        for (name, value) in inputs {
            let [required, optional] = ["required", "optional"].map(|kind| &known["input"][kind][name]);
            let input = if required.is_null() { optional } else { required };
            assert!(input.is_array(), "{class} has no {name}");
            check(graph, &format!("{class}.{name}"), value, input);
        }
    }
    classes.sort_unstable();
    classes
}

/// Fails unless `value` is one that `input` (type and bounds) takes.
fn check(graph: &Value, place: &str, value: &Value, input: &Value) {
    let [low, high] = ["min", "max"].map(|bound| input[1][bound].as_f64());
    let within = |number: f64| low.is_none_or(|low| number >= low) && high.is_none_or(|high| number <= high);
    let holds = match &input[0] {
        Value::Array(words) => value.is_string() && (words.is_empty() || words.contains(value)),
        Value::String(kind) => match kind.as_str() {
            "INT" => (value.is_u64() || value.is_i64()) && value.as_f64().is_some_and(within),
            "FLOAT" => value.as_f64().is_some_and(within),
            "STRING" => value.is_string(),
            kind => {
                let from = &graph[value[0].as_str().unwrap()];
                assert!(from.is_object(), "{place}: {value} leads nowhere");
                let known: Value = serde_json::from_str(NODES).unwrap();
                let output = value[1].as_u64().unwrap() as usize;
                known[from["class_type"].as_str().unwrap()]["output"][output] == *kind
            }
        },
        other => panic!("{other}"),
    };
    assert!(holds, "{place} does not take {value}: {input}");
}

/// The node of a class, and the one that a link leads to.
fn node<'a>(graph: &'a Value, class: &str) -> &'a Value {
    let mut nodes = graph.as_object().unwrap().values();
    nodes.find(|node| node["class_type"] == class).unwrap()
}

fn behind<'a>(graph: &'a Value, node: &Value, input: &str) -> &'a Value {
    &graph[node["inputs"][input][0].as_str().unwrap()]
}

#[test]
fn text_to_image_is_comfyuis_default_workflow() {
    let graph = recipe(Origin::Empty).comfyui_prompt();
    let expected = [
        "CLIPTextEncode",
        "CLIPTextEncode",
        "CheckpointLoaderSimple",
        "EmptyLatentImage",
        "KSampler",
        "SaveImage",
        "VAEDecode",
    ];
    assert_eq!(classes(&graph), expected);
    let sampler = graph.as_object().unwrap().values().find(|n| n["class_type"] == "KSampler").unwrap();
    assert_eq!(sampler["inputs"]["seed"], json!(u64::MAX));
    let positive = sampler["inputs"]["positive"][0].as_str().unwrap();
    assert_eq!(graph[positive]["inputs"]["text"], "1girl, (smile:1.2)");
}

#[test]
fn every_origin_gives_a_graph_whose_links_hold() {
    for scaled in [false, true] {
        for fill_grow in [None, Some(6)] {
            for mask in [None, Some("m.png".to_owned())] {
                let origin = Origin::Inpaint { image: "a.png".into(), mask, scaled, fill_grow };
                let mut recipe = recipe(origin);
                recipe.clip_skip = Some(1);
                let graph = recipe.comfyui_prompt();
                let classes = classes(&graph);
                assert_eq!(classes.contains(&"ImageScale"), scaled);
                assert_eq!(classes.contains(&"VAEEncodeForInpaint"), fill_grow.is_some());
                assert_eq!(classes.contains(&"SetLatentNoiseMask"), fill_grow.is_none());
                assert!(classes.contains(&"CLIPSetLastLayer"));
            }
        }
    }
}

#[test]
fn loras_stand_in_a_row_before_the_sampler_and_both_prompts() {
    let mut recipe = recipe(Origin::Empty);
    recipe.clip_skip = Some(2);
    recipe.loras = vec![lora("chars/rin.safetensors", 0.8, 0.5), lora("ink.safetensors", -1.0, 0.0)];
    let graph = recipe.comfyui_prompt();
    assert_eq!(classes(&graph).iter().filter(|class| **class == "LoraLoader").count(), 2);
    let sampler = node(&graph, "KSampler");
    let second = behind(&graph, sampler, "model");
    assert_eq!(second["inputs"]["lora_name"], "ink.safetensors");
    assert_eq!(
        (&second["inputs"]["strength_model"], &second["inputs"]["strength_clip"]),
        (&json!(-1.0), &json!(0.0))
    );
    let first = behind(&graph, second, "model");
    assert_eq!(first["inputs"]["lora_name"], "chars/rin.safetensors");
    assert_eq!(
        (&first["inputs"]["strength_model"], &first["inputs"]["strength_clip"]),
        (&json!(0.8), &json!(0.5))
    );
    assert_eq!(behind(&graph, second, "clip"), first);
    assert_eq!(behind(&graph, first, "model")["class_type"], "CheckpointLoaderSimple");
    for prompt in ["positive", "negative"] {
        let text = behind(&graph, sampler, prompt);
        assert!(!text["inputs"]["text"].as_str().unwrap().contains("lora"));
        let last_layer = behind(&graph, text, "clip");
        assert_eq!(behind(&graph, last_layer, "clip"), second);
    }
}

#[test]
fn controls_stand_in_a_row_on_both_prompts() {
    let mut recipe = recipe(Origin::Image { image: "a.png".into(), scaled: true });
    recipe.controls = vec![
        control("pose.safetensors", Preprocess::None),
        control("edges", Preprocess::Canny { low: 0.4, high: 0.8 }),
    ];
    recipe.controls[1].strength = 0.4;
    recipe.controls[1].start = 0.1;
    let graph = recipe.comfyui_prompt();
    assert_eq!(classes(&graph).iter().filter(|class| **class == "ControlNetApplyAdvanced").count(), 2);
    let sampler = node(&graph, "KSampler");
    let edges = behind(&graph, sampler, "positive");
    assert_eq!(edges, behind(&graph, sampler, "negative"));
    assert_eq!(
        (&sampler["inputs"]["positive"][1], &sampler["inputs"]["negative"][1]),
        (&json!(0), &json!(1))
    );
    for (name, value) in [("strength", 0.4), ("start_percent", 0.1), ("end_percent", 0.75)] {
        assert_eq!(edges["inputs"][name], json!(value), "{name}");
    }
    assert_eq!(behind(&graph, edges, "control_net")["inputs"]["control_net_name"], "edges");
    // Edges are found at the size of the result.
    let canny = behind(&graph, edges, "image");
    assert_eq!(
        (&canny["inputs"]["low_threshold"], &canny["inputs"]["high_threshold"]),
        (&json!(0.4), &json!(0.8))
    );
    let scaled = behind(&graph, canny, "image");
    assert_eq!((&scaled["inputs"]["crop"], &scaled["inputs"]["height"]), (&json!("center"), &json!(768)));
    assert_eq!(behind(&graph, scaled, "image")["inputs"]["image"], "pose.png");
    // A control picture is scaled by the node that applies it.
    let pose = behind(&graph, edges, "positive");
    assert_eq!(pose, behind(&graph, edges, "negative"));
    assert_eq!(behind(&graph, pose, "image")["class_type"], "LoadImage");
    assert_eq!(behind(&graph, pose, "positive")["inputs"]["text"], "1girl, (smile:1.2)");
    assert_eq!(behind(&graph, pose, "negative")["inputs"]["text"], "blurry");
}

#[test]
fn what_core_nodes_cannot_do_is_said_in_a_title() {
    let plain = recipe(Origin::Empty);
    let titles = |recipe: &Recipe| {
        let graph = recipe.comfyui_prompt();
        classes(&graph);
        let nodes = graph.as_object().unwrap().values();
        nodes.filter_map(|node| Some(node["_meta"]["title"].as_str()?.to_owned())).collect::<Vec<_>>()
    };
    let with = |preprocess| Recipe { controls: vec![control("c", preprocess)], ..plain.clone() };
    assert!(titles(&plain).is_empty());
    assert!(titles(&with(Preprocess::Canny { low: 0.4, high: 0.8 })).is_empty());
    let opencv = with(Preprocess::OpencvCanny { low: 51.0, high: 204.0 });
    assert_eq!(titles(&opencv), ["Canny (in place of OpenCV's with thresholds 51 and 204)"]);
    let graph = opencv.comfyui_prompt();
    let canny = &node(&graph, "Canny")["inputs"];
    assert_eq!((&canny["low_threshold"], &canny["high_threshold"]), (&json!(0.2), &json!(0.8)));
    assert!(titles(&with(Preprocess::Depth))[0].contains("depth"));
    // Values beyond those that ComfyUI takes.
    let edges = with(Preprocess::Canny { low: 0.0, high: 1.0 });
    assert_eq!(titles(&edges), ["Canny (threshold 0.01 in place of 0, threshold 0.99 in place of 1)"]);
    let mut strong = with(Preprocess::None);
    strong.controls[0].strength = -2.0;
    assert_eq!(titles(&strong), ["Apply ControlNet (strength 0 in place of -2)"]);
    let far = Recipe { loras: vec![lora("l", 101.0, 1.0)], ..plain.clone() };
    assert_eq!(titles(&far), ["Load LoRA (strength 100 in place of 101)"]);
    // What is done after decoding.
    let places = DetailPlaces::Boxes { boxes: vec![[0.0, 0.0, 0.5, 0.5]] };
    let detail = DetailSpec { places, denoise: 0.4, size: None, crop_factor: 2.0, feather: 8 };
    let detailed = Recipe { detail: Some(detail), background: Background::Key, ..plain };
    assert_eq!(titles(&detailed), ["Save Image (without the detail pass and with its background)"]);
}

#[test]
fn the_workflow_of_qwen_image_loads_its_three_files_and_moves_noise_levels_up() {
    let flow = |shift| RecipeFlow {
        shift,
        text_encoder: "qwen_vl.safetensors".into(),
        vae: "qwen_vae.safetensors".into(),
    };
    let recipe = |shift| Recipe {
        model: "qwen_image.safetensors".into(),
        flow: Some(flow(shift)),
        loras: vec![lora("lightning.safetensors", 1.0, 0.0)],
        cfg: 1.0,
        ..recipe(Origin::Empty)
    };
    let few_steps = recipe(FlowShift::Fixed(3.0));
    let mut expected = [
        "UNETLoader",
        "CLIPLoader",
        "VAELoader",
        "LoraLoaderModelOnly",
        "ModelSamplingAuraFlow",
        "CLIPTextEncode",
        "CLIPTextEncode",
        "EmptySD3LatentImage",
        "KSampler",
        "VAEDecode",
        "SaveImage",
    ];
    expected.sort_unstable();
    assert_eq!(classes(&few_steps.comfyui_prompt()), expected);
    assert!(few_steps.parameters().contains(", Shift: 3,"), "{}", few_steps.parameters());
    let guided = Recipe { cfg: 4.0, ..recipe(FlowShift::Dynamic) };
    let graph = guided.comfyui_prompt();
    assert!(classes(&graph).contains(&"CFGNorm"));
    let shift =
        graph.as_object().unwrap().values().find(|node| node["class_type"] == "ModelSamplingAuraFlow");
    // exp(0.5 + 0.4 · (1536 - 256) / 7936), of 32 by 48 tokens.
    assert_eq!(shift.unwrap()["inputs"]["shift"], 1.76);
    assert!(guided.parameters().contains(", Shift: dynamic,"), "{}", guided.parameters());
}
