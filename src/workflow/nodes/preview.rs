//! Any value, shown as a text.

use serde_json::json;

use crate::workflow::Context;
use crate::workflow::context::{Inputs, NodeError, Outputs};
use crate::workflow::interface::{Interface, link};
use crate::workflow::ordered::Ordered;
use crate::workflow::python;
use crate::workflow::registry::Registry;
use crate::workflow::value::{Kind, Value};

/// Adds it.
pub(super) fn register(registry: &mut Registry) {
    registry.add(
        Interface::new("PreviewAny", "utils")
            .display("Preview Any")
            .input(link("source", Kind::ANY))
            .output_node()
            .module("comfy_extras.nodes_preview_any"),
        preview,
    );
}

fn preview(inputs: &Inputs, _: &Context<'_>) -> Result<Outputs, NodeError> {
    let text = inputs.get("source").map_or_else(|| "None".to_owned(), shown);
    Ok(Outputs::default().showing(json!({ "text": [text] })))
}

/// As Python writes it; pictures and other large values are named by their kind and size.
fn shown(value: &Value) -> String {
    let batch = |kind: &str, count: usize, width: usize, height: usize| {
        format!("{kind}: {count} of {width}x{height}")
    };
    match value {
        Value::None => "None".into(),
        Value::String(text) => text.to_string(),
        Value::Int(value) => value.to_string(),
        Value::Float(value) => python::float_repr(*value),
        Value::Boolean(value) => if *value { "True" } else { "False" }.into(),
        Value::Json(json) => python::dumps(&Ordered::from(json.clone())),
        Value::Image(image) => batch("IMAGE", image.count(), image.width(), image.height()),
        Value::Mask(mask) => batch("MASK", mask.count(), mask.width(), mask.height()),
        Value::Latent(latent) => format!("LATENT: {:?}", latent.samples.dims()),
        Value::Sigmas(sigmas) => {
            let numbers: Vec<String> = sigmas.iter().map(|sigma| format!("{sigma:.4}")).collect();
            format!("SIGMAS: [{}]", numbers.join(", "))
        }
        Value::Conditioning(conds) => format!("CONDITIONING: {}", conds.len()),
        Value::Model(model) => format!("MODEL: {:?}", model.origin),
        Value::Clip(clip) => format!("CLIP: {:?}", clip.origin),
        Value::Vae(vae) => format!("VAE: {:?}", vae.origin),
        Value::ControlNet(net) => format!("CONTROL_NET: {}", net.name),
        Value::UpscaleModel(name) | Value::Detector(name) => name.to_string(),
        Value::Sampler(kind) => format!("SAMPLER: {kind}"),
        Value::List(values) => {
            let texts: Vec<String> = values.iter().map(shown).collect();
            format!("[{}]", texts.join(", "))
        }
        Value::Guider(_) => "GUIDER".into(),
        Value::Noise(_) => "NOISE".into(),
        Value::LoraStack(loras) => format!("LORA_STACK: {}", loras.len()),
    }
}
