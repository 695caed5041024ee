//! rgthree: several LoRAs in one node, and seeds.

use serde_json::Value as Json;

use super::lora::apply;
use crate::catalog::AuxiliaryKind;
use crate::workflow::Context;
use crate::workflow::context::{Inputs, NodeError, Outputs};
use crate::workflow::interface::{Choices, Hidden, Input, Interface, Socket, float, int, link, model_file};
use crate::workflow::registry::Registry;
use crate::workflow::value::{Clip, Kind, Model, Value};

const MODULE: &str = "custom_nodes.rgthree-comfy";
/// How far seeds go on either side of 0; -1, -2 and -3 ask for any.
const SEEDS: i64 = 1_125_899_906_842_624;
/// Most LoRAs of one node.
const MOST: usize = 256;

/// Adds them.
pub(super) fn register(registry: &mut Registry) {
    registry.add(
        Interface::new("Power Lora Loader (rgthree)", "rgthree")
            .optional(link("model", Kind::MODEL))
            .optional(link("clip", Kind::CLIP))
            .open_inputs("lora_")
            .output(Kind::MODEL)
            .output(Kind::CLIP)
            .module(MODULE),
        power_lora_loader,
    );
    let mut stack = Interface::new("Lora Loader Stack (rgthree)", "rgthree")
        .input(link("model", Kind::MODEL))
        .input(link("clip", Kind::CLIP));
    for (lora, strength) in STACK {
        stack = stack.input(lora_or_none(lora)).input(float(strength, 1.0, -10.0, 10.0).with("step", 0.01));
    }
    registry.add(stack.output(Kind::MODEL).output(Kind::CLIP).module(MODULE), lora_loader_stack);
    let seed = registry.add(
        Interface::new("Seed (rgthree)", "rgthree")
            .input(int("seed", 0, -SEEDS, SEEDS.unsigned_abs()))
            .hidden("prompt", Hidden::Prompt)
            .hidden("extra_pnginfo", Hidden::ExtraPngInfo)
            .hidden("unique_id", Hidden::UniqueId)
            .named_output("SEED", Kind::INT)
            .module(MODULE),
        |inputs, _| {
            let seed = inputs.int("seed")?;
            Ok(Outputs::one(Value::Int(if is_any(seed) { drawn() } else { seed })))
        },
    );
    seed.changed =
        Some(|inputs, _| inputs.int("seed").is_ok_and(is_any).then(|| uuid::Uuid::new_v4().to_string()));
}

const STACK: [(&str, &str); 4] = [
    ("lora_01", "strength_01"),
    ("lora_02", "strength_02"),
    ("lora_03", "strength_03"),
    ("lora_04", "strength_04"),
];

/// A file of `loras`, or `None` before all of them.
pub(super) fn lora_or_none(name: &'static str) -> Input {
    let choices = Choices::Models { folder: "loras", also: &["None"] };
    Input { socket: Socket::Combo { choices, tagged: false }, ..model_file(name, "loras") }
}

fn is_any(seed: i128) -> bool {
    (-3..=-1).contains(&seed)
}

/// A seed of chance, 1 to the largest.
fn drawn() -> i128 {
    let any = uuid::Uuid::new_v4().as_u128() % u128::from(SEEDS.unsigned_abs());
    i128::try_from(any).unwrap_or(0) + 1
}

fn lora_loader_stack(inputs: &Inputs, context: &Context<'_>) -> Result<Outputs, NodeError> {
    let (mut model, mut clip) = (inputs.model("model")?, inputs.clip("clip")?);
    for (lora, strength) in STACK {
        let (name, strength) = (inputs.string(lora)?, inputs.float(strength)?);
        if &*name != "None" {
            apply(context.catalog, &name, [strength; 2], &mut model, Some(&mut clip))?;
        }
    }
    Ok(Outputs::of([Value::Model(model), Value::Clip(clip)]))
}

/// One row of the power loader.
#[derive(Debug, PartialEq)]
struct Row {
    lora: String,
    strength: f64,
    /// For the text encoders, where it is another.
    text_strength: Option<f64>,
}

impl Row {
    /// `None` for what is no row, or is switched off.
    fn of(value: &Json) -> Option<Self> {
        let on = match value.get("on")? {
            Json::Bool(on) => *on,
            Json::Number(number) => number.as_f64() != Some(0.0),
            Json::Null => false,
            other => other.as_str() != Some(""),
        };
        let lora = value.get("lora")?.as_str()?.to_owned();
        let strength = value.get("strength")?.as_f64()?;
        let text_strength = value.get("strengthTwo").and_then(Json::as_f64);
        on.then_some(Self { lora, strength, text_strength })
    }
}

/// The rows in their order: by their numbers, as the front end gives them.
fn rows(inputs: &Inputs) -> Vec<Row> {
    let number = |name: &str| name.get(5..).and_then(|number| number.parse::<u64>().ok());
    let mut rows: Vec<(Option<u64>, &str, Row)> = inputs
        .0
        .iter()
        .filter(|(name, _)| name.get(..5).is_some_and(|start| start.eq_ignore_ascii_case("lora_")))
        .filter_map(|(name, value)| match value {
            Value::Json(json) => Row::of(json).map(|row| (number(name), name.as_str(), row)),
            _ => None,
        })
        .collect();
    rows.sort_by(|(a, a_name, _), (b, b_name, _)| {
        a.unwrap_or(u64::MAX).cmp(&b.unwrap_or(u64::MAX)).then(a_name.cmp(b_name))
    });
    rows.into_iter().map(|(_, _, row)| row).collect()
}

fn power_lora_loader(inputs: &Inputs, context: &Context<'_>) -> Result<Outputs, NodeError> {
    let mut model: Option<Model> =
        inputs.get("model").is_some().then(|| inputs.model("model")).transpose()?;
    let mut clip: Option<Clip> = inputs.get("clip").is_some().then(|| inputs.clip("clip")).transpose()?;
    let rows = rows(inputs);
    if rows.len() > MOST {
        return Err(NodeError::Failed(format!("{} LoRAs are too many; {MOST} is the limit", rows.len())));
    }
    if let Some(model) = &mut model
        && !rows.is_empty()
    {
        let entries = context.catalog.auxiliaries(AuxiliaryKind::Lora);
        let files: Vec<String> = entries.iter().map(crate::catalog::AuxiliaryEntry::file_name).collect();
        for row in rows {
            // What is not there is left out: rows that nobody filled in are called "None".
            let Some(file) = matching(&files, &row.lora) else {
                tracing::debug!(lora = row.lora, "a LoRA of a power loader is not there");
                continue;
            };
            let text_strength = if clip.is_some() { row.text_strength.unwrap_or(row.strength) } else { 0.0 };
            apply(context.catalog, file, [row.strength, text_strength], model, clip.as_mut())?;
        }
    }
    let model = model.map_or(Value::None, Value::Model);
    Ok(Outputs::of([model, clip.map_or(Value::None, Value::Clip)]))
}

/// The file that `name` means: exactly, without its ending, without its folder, and at last any that has it in its
/// path.
fn matching<'a>(files: &'a [String], name: &str) -> Option<&'a str> {
    fn stem(path: &str) -> &str {
        match path.rfind('.') {
            Some(dot) if dot > path.rfind('/').map_or(0, |slash| slash + 1) => &path[..dot],
            _ => path,
        }
    }
    fn base(path: &str) -> &str {
        path.rsplit('/').next().unwrap_or(path)
    }
    let first = |is: &dyn Fn(&str) -> bool| files.iter().map(String::as_str).find(|file| is(file));
    first(&|file| file == name)
        .or_else(|| first(&|file| stem(file) == name))
        .or_else(|| first(&|file| stem(file) == stem(name)))
        .or_else(|| first(&|file| base(file) == name))
        .or_else(|| first(&|file| base(file) == base(name)))
        .or_else(|| first(&|file| stem(base(file)) == name))
        .or_else(|| first(&|file| stem(base(file)) == stem(base(name))))
        .or_else(|| first(&|file| file.contains(name)))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn rows_come_in_the_order_of_their_numbers_and_those_that_are_off_do_not() {
        let row = |on: bool, lora: &str| {
            Value::Json(json!({"on": on, "lora": lora, "strength": 0.5, "strengthTwo": null}))
        };
        let inputs = Inputs(
            [
                ("lora_10".to_owned(), row(true, "c")),
                ("lora_2".to_owned(), row(true, "b")),
                ("LORA_1".to_owned(), row(true, "a")),
                ("lora_3".to_owned(), row(false, "off")),
                ("lora_4".to_owned(), Value::Json(json!({"on": true, "lora": "x"}))),
                ("lora_5".to_owned(), Value::Json(json!({"type": "PowerLoraLoaderHeaderWidget"}))),
                ("➕ Add Lora".to_owned(), Value::String("".into())),
            ]
            .into(),
        );
        let names: Vec<String> = rows(&inputs).into_iter().map(|row| row.lora).collect();
        assert_eq!(names, ["a", "b", "c"]);
        let two = json!({"on": true, "lora": "x", "strength": 1, "strengthTwo": 0.25});
        assert_eq!(Row::of(&two).unwrap().text_strength, Some(0.25));
    }

    #[test]
    fn names_are_matched_ever_more_loosely() {
        let files = ["style/ink.v2.safetensors", "mia.safetensors"].map(str::to_owned);
        for (name, found) in [
            ("mia.safetensors", Some("mia.safetensors")),
            ("mia", Some("mia.safetensors")),
            ("mia.pt", Some("mia.safetensors")),
            ("ink.v2.safetensors", Some("style/ink.v2.safetensors")),
            ("old/ink.v2.ckpt", Some("style/ink.v2.safetensors")),
            ("tyle/in", Some("style/ink.v2.safetensors")),
            ("None", None),
        ] {
            assert_eq!(matching(&files, name), found, "{name}");
        }
    }

    #[test]
    fn a_drawn_seed_is_one_of_those_that_may_be_asked_for() {
        for _ in 0..100 {
            assert!((1..=i128::from(SEEDS)).contains(&drawn()));
        }
    }
}
