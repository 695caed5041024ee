//! pysssss' Custom Scripts: texts that are shown, joined and replaced, arithmetic, and pictures kept within sizes.

use darkroom_pipelines::resample::{Crop, Filter, Raster, scale};
use serde_json::{Value as Json, json};

use super::expression::{self, Names, Number};
use super::substitute::substitute;
use crate::workflow::Context;
use crate::workflow::context::{Inputs, NodeError, Outputs, Slot};
use crate::workflow::image::Image;
use crate::workflow::interface::{Hidden, Interface, combo, link, string};
use crate::workflow::registry::Registry;
use crate::workflow::value::{Kind, Value};

const MODULE: &str = "custom_nodes.ComfyUI-Custom-Scripts";
/// The longest side of a picture.
const LARGEST_SIDE: usize = 16384;
/// The functions of expressions, and what the front end says of their arguments.
const FUNCTIONS: [(&str, &str); 10] = [
    ("round", "number, dp? = 0"),
    ("ceil", "number"),
    ("floor", "number"),
    ("min", "...numbers"),
    ("max", "...numbers"),
    ("randomint", "min, max"),
    ("randomchoice", "...numbers"),
    ("sqrt", "number"),
    ("int", "number"),
    ("iif", "value, truepart, falsepart"),
];

/// Adds them.
pub(super) fn register(registry: &mut Registry) {
    registry.add(
        Interface::new("ShowText|pysssss", "utils")
            .display("Show Text 🐍")
            .input(string("text").with("forceInput", true))
            .hidden("unique_id", Hidden::UniqueId)
            .hidden("extra_pnginfo", Hidden::ExtraPngInfo)
            .list_output("STRING", Kind::STRING)
            .output_node()
            .takes_lists()
            .module(MODULE),
        show,
    );
    let text = |name| string(name).with("multiline", true).with("dynamicPrompts", false);
    let plain = |name, choices: [&str; 2]| {
        let mut input = combo(name, choices);
        input.options.clear();
        input
    };
    registry.add(
        Interface::new("StringFunction|pysssss", "utils")
            .display("String Function 🐍")
            .input(plain("action", ["append", "replace"]))
            .input(plain("tidy_tags", ["yes", "no"]))
            .optional(text("text_a"))
            .optional(text("text_b"))
            .optional(text("text_c"))
            .output(Kind::STRING)
            .output_node()
            .module(MODULE),
        join,
    );
    let words: Vec<Json> = FUNCTIONS
        .iter()
        .map(|(name, hint)| {
            json!({
                "text": name, "value": format!("{name}()"), "showValue": false, "hint": hint, "caretOffset": -1
            })
        })
        .collect();
    let expression =
        text("expression").with("pysssss.autocomplete", json!({"words": words, "separator": ""}));
    let math = registry.add(
        Interface::new("MathExpression|pysssss", "utils")
            .display("Math Expression 🐍")
            .input(expression)
            .optional(link("a", Kind::ANY))
            .optional(link("b", Kind::ANY))
            .optional(link("c", Kind::ANY))
            .hidden("extra_pnginfo", Hidden::ExtraPngInfo)
            .hidden("prompt", Hidden::Prompt)
            .output(Kind::INT)
            .output(Kind::FLOAT)
            .output_node()
            .module(MODULE),
        calculate,
    );
    math.changed = Some(|inputs, _| {
        let random = inputs.string("expression").is_ok_and(|expression| expression.contains("random"));
        random.then(|| uuid::Uuid::new_v4().to_string())
    });
    let side = |name, default: i64| {
        let mut input = crate::workflow::interface::int(name, default, 0, LARGEST_SIDE as u64);
        // Only a lower bound is told; the upper one is Darkroom's.
        input.options.remove("max");
        input
    };
    registry.add(
        Interface::new("ConstrainImage|pysssss", "image")
            .display("Constrain Image 🐍")
            .input(link("images", Kind::IMAGE))
            .input(side("max_width", 1024))
            .input(side("max_height", 1024))
            .input(side("min_width", 0))
            .input(side("min_height", 0))
            .input(combo("crop_if_required", ["yes", "no"]).with("default", "no"))
            .list_output("IMAGE", Kind::IMAGE)
            .module(MODULE),
        constrain,
    );
}

fn show(inputs: &Inputs, _: &Context<'_>) -> Result<Outputs, NodeError> {
    let values = match inputs.get("text") {
        Some(Value::List(values)) => values.clone(),
        Some(value) => vec![value.clone()],
        None => Vec::new(),
    };
    let texts: Vec<Json> = values
        .iter()
        .map(|value| match value {
            Value::String(text) => json!(&**text),
            Value::Int(value) => json!(*value as f64 as i64),
            Value::Float(value) => json!(value),
            Value::Boolean(value) => json!(value),
            Value::Json(value) => value.clone(),
            _ => Json::Null,
        })
        .collect();
    let outputs = Outputs { slots: vec![Slot::List(values)], ui: None };
    Ok(outputs.showing(json!({ "text": texts })))
}

fn join(inputs: &Inputs, _: &Context<'_>) -> Result<Outputs, NodeError> {
    let text = |name: &str| match inputs.get(name) {
        Some(Value::String(text)) => text.to_string(),
        _ => String::new(),
    };
    let (a, b, c) = (text("text_a"), text("text_b"), text("text_c"));
    let tidy = &*inputs.string("tidy_tags")? == "yes";
    let wrong = |message: String| NodeError::input("text_b", message);
    let pattern = b.strip_prefix('/').and_then(|rest| rest.strip_suffix('/'));
    let mut result = match (&*inputs.string("action")?, pattern) {
        ("append", _) => {
            let parts: Vec<String> = [a, b, c].into_iter().filter(|part| !part.is_empty()).collect();
            parts.join(if tidy { ", " } else { "" })
        }
        (_, Some(pattern)) => substitute(pattern, &c, &a).map_err(wrong)?.0,
        // A lone slash is a pattern too: of nothing.
        _ if b == "/" => substitute("", &c, &a).map_err(wrong)?.0,
        _ => replaced(&a, &b, &c).map_err(wrong)?,
    };
    if tidy {
        result = substitute(r"\s{2,}", " ", &result).map_err(wrong)?.0;
        result = result.replace(" ,", ",");
        result = substitute(",{2,}", ",", &result).map_err(wrong)?.0;
        result = result.trim().to_owned();
    }
    let ui = json!({ "text": [result] });
    Ok(Outputs::one(Value::String(result.into())).showing(ui))
}

/// As Python's `str.replace`, which puts something between all characters where it is to replace nothing.
fn replaced(text: &str, what: &str, by: &str) -> Result<String, String> {
    const MOST: usize = 16 << 20;
    let count = text.matches(what).count();
    if count.saturating_mul(by.len()).saturating_add(text.len()) > MOST {
        return Err(format!("more than {MOST} bytes come out"));
    }
    Ok(text.replace(what, by))
}

/// What names mean in an expression: the inputs, and widgets of other nodes.
struct Scope<'a> {
    inputs: &'a Inputs,
    context: &'a Context<'a>,
}

impl Names for Scope<'_> {
    fn value(&self, name: &str) -> Result<Number, String> {
        if !["a", "b", "c"].contains(&name) {
            return Err(format!("there is no '{name}'"));
        }
        match self.inputs.get(name) {
            Some(Value::Int(value)) => Ok(Number::Int(*value)),
            Some(Value::Float(value)) => Ok(Number::Float(*value)),
            Some(Value::Boolean(value)) => Ok(Number::Int(i128::from(*value))),
            Some(_) => {
                Err(format!("'{name}' is no number; of pictures and latents take {name}.width or .height"))
            }
            None => Err(format!("'{name}' is not connected")),
        }
    }

    fn attribute(&self, name: &str, attribute: &str) -> Result<Number, String> {
        let is_width = attribute == "width";
        if ["a", "b", "c"].contains(&name) && (is_width || attribute == "height") {
            let (width, height) = match self.inputs.get(name) {
                Some(Value::Image(image)) => (image.width(), image.height()),
                Some(Value::Mask(mask)) => (mask.width(), mask.height()),
                Some(Value::Latent(latent)) => {
                    let (_, _, height, width) = latent.samples.dims4().map_err(|error| error.to_string())?;
                    (8 * width, 8 * height)
                }
                _ => return Err(format!("'{name}' has no {attribute}")),
            };
            return Ok(Number::Int(if is_width { width } else { height } as i128));
        }
        self.widget(name, attribute)
    }

    fn random(&self, low: i128, high: i128) -> Result<i128, String> {
        let span =
            high.checked_sub(low).and_then(|span| u128::try_from(span).ok()).ok_or("too wide a range")?;
        let drawn = uuid::Uuid::new_v4().as_u128() % (span + 1);
        i128::try_from(drawn).ok().and_then(|drawn| low.checked_add(drawn)).ok_or_else(|| "too wide".into())
    }
}

impl Scope<'_> {
    /// What is typed into `widget` of the first node that is called `name` in the workflow.
    fn widget(&self, name: &str, widget: &str) -> Result<Number, String> {
        let missing = || format!("there is no node '{name}' with an input '{widget}'");
        let workflow = self.context.metadata.extra_pnginfo().and_then(|info| info.get("workflow"));
        let nodes = workflow.and_then(|workflow| workflow["nodes"].as_array()).ok_or_else(missing)?;
        let is_called = |node: &&Json| {
            let kind = node["properties"].get("Node name for S&R").unwrap_or(&node["type"]);
            kind.as_str() == Some(name) || node["title"].as_str() == Some(name)
        };
        let id = nodes.iter().find(is_called).map(|node| &node["id"]).ok_or_else(missing)?;
        let id = id.as_str().map_or_else(|| id.to_string(), str::to_owned);
        let value = self
            .context
            .metadata
            .prompt()
            .get(id)
            .and_then(|node| node["inputs"].get(widget))
            .ok_or_else(missing)?;
        match value {
            Json::Number(value) => match (value.as_i64(), value.as_u64(), value.as_f64()) {
                (Some(value), ..) => Ok(Number::Int(value.into())),
                (_, Some(value), _) => Ok(Number::Int(value.into())),
                (_, _, Some(value)) => Ok(Number::Float(value)),
                _ => Err(missing()),
            },
            Json::Bool(value) => Ok(Number::Int(i128::from(*value))),
            Json::Array(_) => Err(format!("'{name}.{widget}' is connected: connect it here as well")),
            _ => Err(format!("'{name}.{widget}' is no number")),
        }
    }
}

fn calculate(inputs: &Inputs, context: &Context<'_>) -> Result<Outputs, NodeError> {
    let text = inputs.string("expression")?.replace('\n', " ").replace('\r', "");
    let wrong = |message| NodeError::input("expression", message);
    let result = expression::evaluate(&text, &Scope { inputs, context }).map_err(wrong)?;
    let shown = match result {
        // JSON has whole numbers of 64 bits.
        Number::Int(value) => i64::try_from(value).map_or_else(|_| json!(value as f64), |value| json!(value)),
        Number::Float(value) => json!(value),
    };
    let values = [Value::Int(result.whole().map_err(wrong)?), Value::Float(result.float())];
    Ok(Outputs::of(values).showing(json!({ "value": [shown] })))
}

fn constrain(inputs: &Inputs, _: &Context<'_>) -> Result<Outputs, NodeError> {
    let images = inputs.image("images")?;
    let bounds = Bounds {
        most: (inputs.size("max_width")?, inputs.size("max_height")?),
        least: (inputs.size("min_width")?, inputs.size("min_height")?),
        crop: &*inputs.string("crop_if_required")? == "yes",
    };
    let (width, height) = bounds.fit(images.width(), images.height());
    if width == 0 || height == 0 || width.max(height) > LARGEST_SIDE {
        return Err(NodeError::Failed(format!(
            "a picture of {}×{} would become {width}×{height}; sides have 1 to {LARGEST_SIDE} pixels",
            images.width(),
            images.height()
        )));
    }
    let mut results = Vec::with_capacity(images.count());
    for index in 0..images.count() {
        let pixels = images.picture(index).chunks_exact(images.channels().max(1));
        // Alpha is dropped.
        let rgb: Vec<f32> = pixels.flat_map(|pixel| pixel.iter().cycle().take(3)).copied().collect();
        let raster = Raster::new(&rgb, images.width(), images.height(), 3);
        let scaled = raster.map(|raster| scale(raster, width, height, Filter::Lanczos, Crop::Disabled));
        let (data, width, height) = match scaled {
            Some(data) => bounds.cut(data, width, height),
            None => (Vec::new(), 0, 0),
        };
        let image = Image::new(1, height, width, 3, data);
        results.push(Value::Image(image.ok_or_else(|| NodeError::Failed("no picture comes out".into()))?));
    }
    Ok(Outputs { slots: vec![Slot::List(results)], ui: None })
}

/// Sizes between which pictures are to be.
struct Bounds {
    most: (usize, usize),
    least: (usize, usize),
    crop: bool,
}

impl Bounds {
    /// The size at which a picture is within them, its shape kept where that is possible.
    fn fit(&self, width: usize, height: usize) -> (usize, usize) {
        let aspect = width as f64 / height as f64;
        // The lower bound first: the upper one has the last word.
        let mut to = (width.max(self.least.0).min(self.most.0), height.max(self.least.1).min(self.most.1));
        let cut = |side: usize, factor: f64| (side as f64 / factor) as usize;
        if to.0 as f64 / to.1 as f64 > aspect {
            to.0 = ((to.1 as f64 * aspect) as usize).max(self.least.0);
            if self.crop {
                to.1 = cut(height, width as f64 / to.0 as f64);
            }
        } else {
            to.1 = ((to.0 as f64 / aspect) as usize).max(self.least.1);
            if self.crop {
                to.0 = cut(width, height as f64 / to.1 as f64);
            }
        }
        to
    }

    /// What is over on both sides is cut off, where that is asked for.
    fn cut(&self, data: Vec<f32>, width: usize, height: usize) -> (Vec<f32>, usize, usize) {
        let to = (width.min(self.most.0), height.min(self.most.1));
        if !self.crop || to == (width, height) {
            return (data, width, height);
        }
        let (left, top) = ((width - to.0) / 2, (height - to.1) / 2);
        let rows = data.chunks_exact(width * 3).skip(top).take(to.1);
        (rows.flat_map(|row| &row[left * 3..(left + to.0) * 3]).copied().collect(), to.0, to.1)
    }
}
