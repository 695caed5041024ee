//! LoRAs: each is added to what its model and its text encoders are drawn with.

use darkroom_models::checkpoint::ModelKind;

use crate::catalog::{AuxiliaryKind, Catalog};
use crate::task::LoraSpec;
use crate::workflow::context::{NodeError, Outputs};
use crate::workflow::interface::{Input, Interface, float, link, model_file};
use crate::workflow::registry::Registry;
use crate::workflow::value::{Clip, Kind, Model, Origin, Value};

/// Adds them.
pub(super) fn register(registry: &mut Registry) {
    let strength = |name| float(name, 1.0, -100.0, 100.0).with("step", 0.01);
    let file = || -> Input { model_file("lora_name", "loras") };
    registry.add(
        Interface::new("LoraLoader", "loaders")
            .display("Load LoRA")
            .description("Draws with a LoRA. Several add up, in their order.")
            .input(link("model", Kind::MODEL))
            .input(link("clip", Kind::CLIP))
            .input(file())
            .input(strength("strength_model"))
            .input(strength("strength_clip"))
            .output(Kind::MODEL)
            .output(Kind::CLIP),
        |inputs, context| {
            let (mut model, mut clip) = (inputs.model("model")?, inputs.clip("clip")?);
            let strengths = [inputs.float("strength_model")?, inputs.float("strength_clip")?];
            apply(context.catalog, &inputs.string("lora_name")?, strengths, &mut model, Some(&mut clip))?;
            Ok(Outputs::of([Value::Model(model), Value::Clip(clip)]))
        },
    );
    registry.add(
        Interface::new("LoraLoaderModelOnly", "loaders")
            .display("LoraLoaderModelOnly")
            .description("Draws with a LoRA, the text encoders left as they are.")
            .input(link("model", Kind::MODEL))
            .input(file())
            .input(strength("strength_model"))
            .output(Kind::MODEL),
        |inputs, context| {
            let mut model = inputs.model("model")?;
            let strengths = [inputs.float("strength_model")?, 0.0];
            apply(context.catalog, &inputs.string("lora_name")?, strengths, &mut model, None)?;
            Ok(Outputs::one(Value::Model(model)))
        },
    );
}

/// Adds the LoRA called `name`, strengths on the model and on the text encoders, to both. Strengths of 0 add nothing.
///
/// # Errors
/// When it is not there, cannot be used, or was made for another family of models.
pub(super) fn apply(
    catalog: &Catalog,
    name: &str,
    [strength, text_strength]: [f64; 2],
    model: &mut Model,
    clip: Option<&mut Clip>,
) -> Result<(), NodeError> {
    if strength == 0.0 && text_strength == 0.0 {
        return Ok(());
    }
    let lora = fitting(catalog, name, &model.origin)?;
    // One specification for both, so that the engine keeps one set of weights for both.
    let spec = LoraSpec { lora, strength, text_strength };
    if let Some(clip) = clip.filter(|_| text_strength != 0.0) {
        clip.loras.push(spec.clone());
    }
    if strength != 0.0 {
        model.loras.push(spec);
    }
    Ok(())
}

/// Its id, once it is known to go with the model, as far as headers tell.
fn fitting(catalog: &Catalog, name: &str, origin: &Origin) -> Result<String, NodeError> {
    let refuse = |message: String| Err(NodeError::input("lora_name", message));
    let Some(entry) = catalog.find_auxiliary(AuxiliaryKind::Lora, name) else {
        return refuse(format!("there is no LoRA '{name}'"));
    };
    let about = catalog.about(&entry);
    if let Some(problem) = about.problem {
        return refuse(format!("'{name}' cannot be used: {problem}"));
    }
    let Some(model) = catalog.find(origin) else { return Ok(entry.id) };
    // Of a part in a file of its own the catalog says no kind.
    let known = Some(model.kind).filter(|kind| *kind != ModelKind::Unknown);
    let family = known.and_then(|kind| serde_json::to_value(kind).ok());
    if let Some((own, theirs)) = about.family.zip(family.as_ref().and_then(serde_json::Value::as_str))
        && own != theirs
    {
        return refuse(format!("'{name}' is for {own}, the model '{}' is {theirs}", model.id));
    }
    // Only layers of a UNet tell a width of text.
    if model.kind == ModelKind::QwenImage
        && about.family.is_none()
        && let Some(width) = about.width
    {
        return refuse(format!(
            "'{name}' reads text of width {width} as LoRAs of Stable Diffusion do, the model '{}' is Qwen-Image",
            model.id
        ));
    }
    if let Some((own, theirs)) = about.width.zip(catalog.width(&model))
        && own != theirs
    {
        return refuse(format!(
            "'{name}' reads text of width {own}, the model '{}' has width {theirs}: it was made for another model",
            model.id
        ));
    }
    Ok(entry.id)
}
