//! Prompts to conditioning.

use std::borrow::Cow;
use std::sync::Arc;

use candle_core::Device;
use darkroom_models::checkpoint::ModelKind;
use darkroom_pipelines::{Conditioning, WantedPrompt};

use crate::workflow::Context;
use crate::workflow::borrowed::Borrowed;
use crate::workflow::context::{Inputs, NodeError, Outputs};
use crate::workflow::interface::{Input, Interface, Socket, int, link, string};
use crate::workflow::registry::Registry;
use crate::workflow::value::{Clip, Cond, Kind, Value};

/// Adds them.
pub(super) fn register(registry: &mut Registry) {
    let text = |name| -> Input { string(name).with("multiline", true).with("dynamicPrompts", true) };
    let mut last = int("stop_at_clip_layer", -1, -24, 0).with("max", -1).with("step", 1);
    last.socket = Socket::Int { range: (-24, -1) };
    registry.add(
        Interface::new("CLIPSetLastLayer", "conditioning")
            .display("CLIP Set Last Layer")
            .input(link("clip", Kind::CLIP))
            .input(last)
            .output(Kind::CLIP),
        last_layer,
    );
    registry.add(
        Interface::new("CLIPTextEncode", "conditioning")
            .display("CLIP Text Encode (Prompt)")
            .description("Encodes a prompt for a model to draw from.")
            .input(text("text"))
            .input(link("clip", Kind::CLIP))
            .output(Kind::CONDITIONING),
        encode,
    );
    let side = |name, default| -> Input { int(name, default, 0, 16384) };
    registry.add(
        Interface::new("CLIPTextEncodeSDXL", "advanced/conditioning")
            .newer_schema()
            .input(link("clip", Kind::CLIP))
            .input(side("width", 1024))
            .input(side("height", 1024))
            .input(side("crop_w", 0))
            .input(side("crop_h", 0))
            .input(side("target_width", 1024))
            .input(side("target_height", 1024))
            .input(text("text_g"))
            .input(text("text_l"))
            .output(Kind::CONDITIONING)
            .module("comfy_extras.nodes_clip_sdxl"),
        encode_sdxl,
    );
}

fn last_layer(inputs: &Inputs, _: &Context<'_>) -> Result<Outputs, NodeError> {
    let mut clip = inputs.clip("clip")?;
    let layer = inputs.int("stop_at_clip_layer")?;
    let layer = i32::try_from(layer).ok().filter(|layer| (-24..=-1).contains(layer));
    clip.last_layer =
        Some(layer.ok_or_else(|| {
            NodeError::input("stop_at_clip_layer", "counts from the last layer: -1 to -24")
        })?);
    Ok(Outputs::one(Value::Clip(clip)))
}

fn encode(inputs: &Inputs, context: &Context<'_>) -> Result<Outputs, NodeError> {
    let (clip, text) = (inputs.clip("clip")?, inputs.string("text")?);
    let cond = encode_prompt(context, &clip, &text)?;
    Ok(Outputs::one(Value::Conditioning(Arc::new(vec![cond]))))
}

/// One prompt, encoded.
pub(super) fn encode_prompt(context: &Context<'_>, clip: &Clip, text: &str) -> Result<Cond, NodeError> {
    let model = Borrowed::model(context, &clip.origin)?;
    let loras = model.loras(context, &clip.loras)?;
    let text = match model.pipeline.kind() {
        ModelKind::QwenImage => without_escapes(text),
        _ => text.into(),
    };
    let prompt = model.pipeline.prompt_text(&text, clip_skip(clip), loras.as_deref());
    let wanted = WantedPrompt { field: "text", prompt: &prompt, loras: loras.as_ref() };
    let encoded = model.pipeline.encode_prompts(&[wanted])?.pop();
    let encoded = encoded.ok_or_else(|| NodeError::Failed("the text encoders gave nothing".into()))?;
    Ok(Cond::new(on_cpu(&encoded)?))
}

/// Parentheses are no weights for a language model. ComfyUI takes the backslash away all the same that prompts for other
/// models have before them.
fn without_escapes(text: &str) -> Cow<'_, str> {
    match text.contains("\\(") || text.contains("\\)") {
        true => text.replace("\\(", "(").replace("\\)", ")").into(),
        false => text.into(),
    }
}

fn encode_sdxl(inputs: &Inputs, context: &Context<'_>) -> Result<Outputs, NodeError> {
    let clip = inputs.clip("clip")?;
    let model = Borrowed::model(context, &clip.origin)?;
    let loras = model.loras(context, &clip.loras)?;
    let (text_l, text_g) = (inputs.string("text_l")?, inputs.string("text_g")?);
    let encoded = model.pipeline.encode_pair(&text_l, &text_g, clip_skip(&clip), loras.as_ref())?;
    let mut ids = [0.0; 6];
    let names = ["height", "width", "crop_h", "crop_w", "target_height", "target_width"];
    for (id, name) in ids.iter_mut().zip(names) {
        *id = inputs.size(name)? as f32;
    }
    let cond = Cond { size_ids: Some(ids), ..Cond::new(on_cpu(&encoded)?) };
    Ok(Outputs::one(Value::Conditioning(Arc::new(vec![cond]))))
}

/// Layers to leave out, as pipelines count them.
fn clip_skip(clip: &Clip) -> Option<usize> {
    clip.last_layer.map(|layer| layer.unsigned_abs() as usize)
}

fn on_cpu(encoded: &Conditioning) -> candle_core::Result<Conditioning> {
    let move_over = |tensor: &candle_core::Tensor| tensor.to_device(&Device::Cpu);
    Ok(Conditioning {
        context: move_over(&encoded.context)?,
        pooled: encoded.pooled.as_ref().map(move_over).transpose()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_backslash_goes_where_a_parenthesis_follows_and_nowhere_else() {
        assert_eq!(without_escapes(r"a \(b\) (c) \d \"), r"a (b) (c) \d \");
        assert!(matches!(without_escapes("plain (text)"), Cow::Borrowed(_)));
    }
}
