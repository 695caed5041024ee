//! Lists: a node runs once for each value of the longest list that comes to it, shorter ones repeat their last value;
//! what its runs give is put together again (`_async_map_node_over_list` and `merge_result_data` in ComfyUI).

use std::any::Any;
use std::collections::{BTreeMap, HashMap};

use serde_json::{Map, Value as Json};

use crate::workflow::cache::NodeResult;
use crate::workflow::context::{Inputs, NodeError, Outputs, Slot};
use crate::workflow::interface::Interface;
use crate::workflow::value::Value;

/// What comes to each input.
pub(super) type Given = BTreeMap<String, Vec<Value>>;

/// Most times that a node runs for one list.
const MOST_RUNS: usize = 100_000;

/// Runs a node as often as its lists ask for.
pub(super) fn run(
    interface: &Interface,
    given: &Given,
    mut once: impl FnMut(&Inputs) -> Result<Outputs, NodeError>,
) -> Result<NodeResult, NodeError> {
    if interface.takes_lists {
        let whole = given.iter().map(|(name, values)| (name.clone(), Value::List(values.clone())));
        return merge(interface, vec![once(&Inputs(whole.collect()))?]);
    }
    let longest = given.values().map(Vec::len).max().unwrap_or(1);
    if longest > MOST_RUNS {
        return Err(NodeError::Failed(format!(
            "a list of {longest} values; a node runs at most {MOST_RUNS} times"
        )));
    }
    if let Some((name, _)) = given.iter().find(|(_, values)| values.is_empty()) {
        return Err(NodeError::input(name, "the list that comes to it is empty"));
    }
    let mut results = Vec::with_capacity(longest);
    for index in 0..longest {
        let of_run = given.iter().filter_map(|(name, values)| {
            let value = values.get(index).or(values.last())?;
            Some((name.clone(), value.clone()))
        });
        results.push(once(&Inputs(of_run.collect::<HashMap<_, _>>()))?);
    }
    merge(interface, results)
}

fn merge(interface: &Interface, results: Vec<Outputs>) -> Result<NodeResult, NodeError> {
    let count = results.first().map_or(0, |result| result.slots.len());
    let mut slots: Vec<Vec<Value>> = vec![Vec::new(); count];
    let mut shown = Vec::new();
    for result in results {
        if result.slots.len() != count {
            return Err(NodeError::Failed("it did not give the same outputs each time".into()));
        }
        for (index, (slot, merged)) in result.slots.into_iter().zip(&mut slots).enumerate() {
            let is_list = interface.outputs.get(index).is_some_and(|output| output.is_list);
            match (slot, is_list) {
                (Slot::List(values), true) => merged.extend(values),
                (Slot::List(values), false) => merged.push(Value::List(values)),
                (Slot::One(value), _) => merged.push(value),
            }
        }
        shown.extend(result.ui);
    }
    Ok(NodeResult { slots, ui: merge_shown(shown), node: String::new() })
}

/// `{"images": [a]}` and `{"images": [b]}` are `{"images": [a, b]}`; nothing to show is `None`.
fn merge_shown(shown: Vec<Json>) -> Option<Json> {
    let mut shown = shown.into_iter();
    let mut all = match shown.next()? {
        Json::Object(first) => first,
        other => return Some(other),
    };
    for next in shown {
        for (key, values) in &mut all {
            if let (Json::Array(values), Some(Json::Array(more))) = (values, next.get(key)) {
                values.extend(more.iter().cloned());
            }
        }
    }
    (!all.is_empty()).then_some(Json::Object(all))
}

/// The inputs of a node that failed, as `current_inputs` tells them.
pub(super) fn shown(given: &Given) -> Json {
    let inputs = given.iter().map(|(name, values)| {
        let values: Vec<Json> = values.iter().map(shown_value).collect();
        (name.clone(), Json::from(values))
    });
    Json::Object(inputs.collect::<Map<_, _>>())
}

fn shown_value(value: &Value) -> Json {
    match value {
        Value::Int(value) => i64::try_from(*value).map_or_else(|_| Json::from(*value as f64), Json::from),
        Value::Float(value) => Json::from(*value),
        Value::Boolean(value) => Json::from(*value),
        Value::String(text) => Json::from(&**text),
        Value::Json(json) => Json::from(json.to_string()),
        Value::None => Json::Null,
        other => Json::from(format!("<{}>", type_of(other))),
    }
}

/// What a person calls a value that cannot be written out.
fn type_of(value: &Value) -> &'static str {
    match value {
        Value::Model(_) => "MODEL",
        Value::Clip(_) => "CLIP",
        Value::Vae(_) => "VAE",
        Value::Conditioning(_) => "CONDITIONING",
        Value::Latent(_) => "LATENT",
        Value::Image(_) => "IMAGE",
        Value::Mask(_) => "MASK",
        Value::ControlNet(_) => "CONTROL_NET",
        Value::UpscaleModel(_) => "UPSCALE_MODEL",
        Value::Sampler(_) => "SAMPLER",
        Value::Sigmas(_) => "SIGMAS",
        Value::Guider(_) => "GUIDER",
        Value::Noise(_) => "NOISE",
        Value::LoraStack(_) => "LORA_STACK",
        Value::Detector(_) => "DETECTOR",
        Value::List(_) => "list",
        _ => "value",
    }
}

/// What a panic said.
pub(super) fn panic_text(panic: &(dyn Any + Send)) -> String {
    let said = panic
        .downcast_ref::<&str>()
        .map(|text| (*text).to_owned())
        .or_else(|| panic.downcast_ref::<String>().cloned());
    match said {
        Some(said) => format!("the node stopped at a mistake of its own: {said}"),
        None => "the node stopped at a mistake of its own".to_owned(),
    }
}
