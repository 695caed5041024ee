//! What a node takes and gives, declared once: `object_info`, the checks of a prompt and the documentation all come
//! from here. Names, ranges and order are ComfyUI's.

use serde_json::{Map, Value as Json, json};

use super::value::Kind;

/// Where the choices of a list come from.
#[derive(Debug, Clone, PartialEq)]
pub enum Choices {
    /// Always these.
    Fixed(Vec<String>),
    /// The files of a folder of models, by ComfyUI's name of it (`checkpoints`, `loras`, …), after the ones given.
    Models {
        /// The folder.
        folder: &'static str,
        /// What is always there, in front.
        also: &'static [&'static str],
    },
    /// The files of the input folder.
    InputFiles,
    /// Those of them that are pictures.
    InputPictures,
    /// Those of them that are latents (`.latent`).
    InputLatents,
    /// What the front end asks a route for, so that any name may come.
    Remote,
}

/// What an input takes.
#[derive(Debug, Clone, PartialEq)]
pub enum Socket {
    /// Only a link, of this type.
    Link(Kind),
    /// A whole number.
    Int {
        /// Bounds, both inside.
        range: (i128, i128),
    },
    /// A number.
    Float {
        /// Bounds, both inside.
        range: (f64, f64),
    },
    /// A text.
    String,
    /// Yes or no.
    Boolean,
    /// One of a list.
    Combo {
        /// The list.
        choices: Choices,
        /// Written `["COMBO", {"options": […]}]` in `object_info`, as ComfyUI's newer nodes are.
        tagged: bool,
    },
}

/// One input.
#[derive(Debug, Clone, PartialEq)]
pub struct Input {
    /// Its name.
    pub name: &'static str,
    /// What it takes.
    pub socket: Socket,
    /// The options of `object_info` in ComfyUI's order: `default`, `min`, `max`, `step`, `multiline`, …
    pub options: Map<String, Json>,
    /// Whether a prompt may leave it out.
    pub optional: bool,
}

impl Input {
    /// Adds an option to what `object_info` says: `.with("multiline", true)`.
    #[must_use]
    pub fn with(mut self, name: &str, value: impl Into<Json>) -> Self {
        self.options.insert(name.to_owned(), value.into());
        self
    }

    /// What counts where a prompt leaves it out.
    pub fn default(&self) -> Option<&Json> {
        self.options.get("default")
    }
}

fn input(name: &'static str, socket: Socket) -> Input {
    Input { name, socket, options: Map::new(), optional: false }
}

/// An input that is always a link.
pub fn link(name: &'static str, kind: Kind) -> Input {
    input(name, Socket::Link(kind))
}

/// A whole number, both bounds inside.
pub fn int(name: &'static str, default: i64, min: i64, max: u64) -> Input {
    input(name, Socket::Int { range: (min.into(), max.into()) })
        .with("default", default)
        .with("min", min)
        .with("max", max)
}

/// A seed: any 64 bits, which front ends change after each run.
pub fn seed(name: &'static str) -> Input {
    int(name, 0, 0, u64::MAX).with("control_after_generate", true)
}

/// A number, both bounds inside.
pub fn float(name: &'static str, default: f64, min: f64, max: f64) -> Input {
    input(name, Socket::Float { range: (min, max) })
        .with("default", default)
        .with("min", min)
        .with("max", max)
}

/// A text.
pub fn string(name: &'static str) -> Input {
    input(name, Socket::String)
}

/// Yes or no.
pub fn boolean(name: &'static str, default: bool) -> Input {
    input(name, Socket::Boolean).with("default", default)
}

/// One of a fixed list.
pub fn combo<T: Into<String>>(name: &'static str, choices: impl IntoIterator<Item = T>) -> Input {
    let choices = Choices::Fixed(choices.into_iter().map(Into::into).collect());
    input(name, Socket::Combo { choices, tagged: false })
}

/// The same as ComfyUI's newer nodes write it.
pub fn tagged_combo<T: Into<String>>(name: &'static str, choices: impl IntoIterator<Item = T>) -> Input {
    let choices = Choices::Fixed(choices.into_iter().map(Into::into).collect());
    input(name, Socket::Combo { choices, tagged: true }).with("multiselect", false)
}

/// A file of a models folder.
pub fn model_file(name: &'static str, folder: &'static str) -> Input {
    let choices = Choices::Models { folder, also: &[] };
    input(name, Socket::Combo { choices, tagged: false })
}

/// A file of the input folder.
pub fn input_file(name: &'static str) -> Input {
    input(name, Socket::Combo { choices: Choices::InputFiles, tagged: false })
}

/// A picture of the input folder.
pub fn input_picture(name: &'static str) -> Input {
    input(name, Socket::Combo { choices: Choices::InputPictures, tagged: false })
}

/// A latent of the input folder.
pub fn input_latent(name: &'static str) -> Input {
    input(name, Socket::Combo { choices: Choices::InputLatents, tagged: false })
}

/// One of a list that the front end asks a route for.
pub fn remote(name: &'static str) -> Input {
    input(name, Socket::Combo { choices: Choices::Remote, tagged: true })
}

/// One output.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeOutput {
    /// Its type.
    pub kind: Kind,
    /// What people see.
    pub name: String,
    /// Whether it is a list of values, each of which the next nodes run on.
    pub is_list: bool,
}

/// What the server fills in by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hidden {
    /// The whole prompt.
    Prompt,
    /// `extra_data.extra_pnginfo`.
    ExtraPngInfo,
    /// The node's id.
    UniqueId,
}

/// What a node takes and gives.
#[derive(Debug, Clone, PartialEq)]
pub struct Interface {
    /// ComfyUI's `class_type`.
    pub class: &'static str,
    /// What people see; `None`: the class.
    pub display: Option<&'static str>,
    /// Where it is in menus.
    pub category: &'static str,
    /// What it does, for people.
    pub description: &'static str,
    /// What it takes, in order.
    pub inputs: Vec<Input>,
    /// What the server fills in, by the names that the node knows it under.
    pub hidden: Vec<(&'static str, Hidden)>,
    /// What it gives, in order.
    pub outputs: Vec<NodeOutput>,
    /// Whether it is what a prompt is run for.
    pub is_output: bool,
    /// Whether lists come to it whole (ComfyUI's `INPUT_IS_LIST`).
    pub takes_lists: bool,
    /// Takes inputs that are not declared: those whose names start with this (rgthree's `lora_1`, `lora_2`, …).
    pub open_prefix: Option<&'static str>,
    /// Whether ComfyUI declares it by its newer schema, so that `object_info` says more of it.
    pub newer_schema: bool,
    /// Whether workflows should use another.
    pub deprecated: bool,
    /// Whether it may change.
    pub experimental: bool,
    /// The extension that it comes from, as `python_module` says it (`custom_nodes.rgthree-comfy`).
    pub module: &'static str,
}

impl Interface {
    /// Of a node with neither inputs nor outputs yet.
    pub fn new(class: &'static str, category: &'static str) -> Self {
        Self {
            class,
            display: None,
            category,
            description: "",
            inputs: Vec::new(),
            hidden: Vec::new(),
            outputs: Vec::new(),
            is_output: false,
            takes_lists: false,
            open_prefix: None,
            newer_schema: false,
            deprecated: false,
            experimental: false,
            module: "nodes",
        }
    }

    /// What people see.
    #[must_use]
    pub fn display(mut self, name: &'static str) -> Self {
        self.display = Some(name);
        self
    }

    /// What it does.
    #[must_use]
    pub fn description(mut self, text: &'static str) -> Self {
        self.description = text;
        self
    }

    /// Adds a required input.
    #[must_use]
    pub fn input(mut self, input: Input) -> Self {
        self.inputs.push(input);
        self
    }

    /// Adds an input that prompts may leave out.
    #[must_use]
    pub fn optional(mut self, input: Input) -> Self {
        self.inputs.push(Input { optional: true, ..input });
        self
    }

    /// Adds what the server fills in.
    #[must_use]
    pub fn hidden(mut self, name: &'static str, what: Hidden) -> Self {
        self.hidden.push((name, what));
        self
    }

    /// Adds an output, called as its type.
    #[must_use]
    pub fn output(self, kind: Kind) -> Self {
        self.named_output(kind.name(), kind)
    }

    /// Adds an output.
    #[must_use]
    pub fn named_output(mut self, name: impl Into<String>, kind: Kind) -> Self {
        self.outputs.push(NodeOutput { kind, name: name.into(), is_list: false });
        self
    }

    /// Adds an output that is a list.
    #[must_use]
    pub fn list_output(mut self, name: impl Into<String>, kind: Kind) -> Self {
        self.outputs.push(NodeOutput { kind, name: name.into(), is_list: true });
        self
    }

    /// Prompts are run for it.
    #[must_use]
    pub fn output_node(mut self) -> Self {
        self.is_output = true;
        self
    }

    /// Lists come to it whole.
    #[must_use]
    pub fn takes_lists(mut self) -> Self {
        self.takes_lists = true;
        self
    }

    /// Takes undeclared inputs whose names start with `prefix`.
    #[must_use]
    pub fn open_inputs(mut self, prefix: &'static str) -> Self {
        self.open_prefix = Some(prefix);
        self
    }

    /// ComfyUI declares it by its newer schema.
    #[must_use]
    pub fn newer_schema(mut self) -> Self {
        self.newer_schema = true;
        self
    }

    /// Workflows should use another.
    #[must_use]
    pub fn deprecated(mut self) -> Self {
        self.deprecated = true;
        self
    }

    /// It may change.
    #[must_use]
    pub fn experimental(mut self) -> Self {
        self.experimental = true;
        self
    }

    /// The extension that it comes from.
    #[must_use]
    pub fn module(mut self, module: &'static str) -> Self {
        self.module = module;
        self
    }

    /// The input of this name.
    pub fn find(&self, name: &str) -> Option<&Input> {
        self.inputs.iter().find(|input| input.name == name)
    }

    /// What `GET /object_info` says of it. `choices` gives the names behind a list that is not fixed.
    pub fn object_info(&self, choices: &dyn Fn(&Choices) -> Vec<String>) -> Json {
        let section = |optional: bool| -> Map<String, Json> {
            let inputs = self.inputs.iter().filter(|input| input.optional == optional);
            inputs.map(|input| (input.name.to_owned(), input_info(input, choices))).collect()
        };
        let order = |optional: bool| -> Vec<&str> {
            self.inputs.iter().filter(|input| input.optional == optional).map(|input| input.name).collect()
        };
        let mut inputs = Map::new();
        let mut input_order = Map::new();
        inputs.insert("required".into(), section(false).into());
        input_order.insert("required".into(), json!(order(false)));
        if self.inputs.iter().any(|input| input.optional) {
            inputs.insert("optional".into(), section(true).into());
            input_order.insert("optional".into(), json!(order(true)));
        }
        if !self.hidden.is_empty() {
            let hidden = self.hidden.iter().map(|(name, what)| {
                let what = match what {
                    Hidden::Prompt => "PROMPT",
                    Hidden::ExtraPngInfo => "EXTRA_PNGINFO",
                    Hidden::UniqueId => "UNIQUE_ID",
                };
                ((*name).to_owned(), json!(what))
            });
            inputs.insert("hidden".into(), hidden.collect::<Map<_, _>>().into());
            let names: Vec<&str> = self.hidden.iter().map(|(name, _)| *name).collect();
            input_order.insert("hidden".into(), json!(names));
        }
        // Of nodes of the newer schema the name is left to the front end where they do not say it.
        let display = self.display.or((!self.newer_schema).then_some(self.class));
        let mut info = json!({
            "input": inputs,
            "input_order": input_order,
            "output": self.outputs.iter().map(|output| output.kind.name()).collect::<Vec<_>>(),
            "output_is_list": self.outputs.iter().map(|output| output.is_list).collect::<Vec<_>>(),
            "output_name": self.outputs.iter().map(|output| &*output.name).collect::<Vec<_>>(),
            "name": self.class,
            "display_name": display,
            "description": self.description,
            "python_module": self.module,
            "category": self.category,
            "output_node": self.is_output,
        });
        for (name, said) in [("deprecated", self.deprecated), ("experimental", self.experimental)] {
            if said || self.newer_schema {
                info[name] = said.into();
            }
        }
        if self.newer_schema {
            info["api_node"] = false.into();
        }
        info
    }
}

pub(super) fn input_info(input: &Input, choices: &dyn Fn(&Choices) -> Vec<String>) -> Json {
    let mut options = input.options.clone();
    let kind = match &input.socket {
        Socket::Link(kind) => json!(kind.name()),
        Socket::Int { .. } => json!("INT"),
        Socket::Float { .. } => json!("FLOAT"),
        Socket::String => json!("STRING"),
        Socket::Boolean => json!("BOOLEAN"),
        Socket::Combo { choices: list, tagged: false } => json!(choices(list)),
        Socket::Combo { choices: Choices::Remote, .. } => json!("COMBO"),
        Socket::Combo { choices: list, tagged: true } => {
            options.insert("options".into(), json!(choices(list)));
            json!("COMBO")
        }
    };
    if options.is_empty() { json!([kind]) } else { json!([kind, options]) }
}
