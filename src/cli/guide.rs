//! From the flags of `darkroom pack` about LoRAs, ControlNets, templates and a base picture to what its pictures are
//! guided by. Files are looked up as the server does: built-in ones, and those of `--models-dir`.

use std::path::Path;
use std::sync::Arc;

use darkroom_models::controlnet::ControlNet;
use darkroom_models::lora::LoraFile;
use darkroom_models::weights::WeightFile;
use darkroom_pipelines::preprocess::canny::{Canny, CannyMethod};
use darkroom_pipelines::{Control, ImageRequest, LoraSet, PIXELS_PER_CELL, Picture, Pipeline, StackedLora};

use super::args::GuideArgs;
use super::error::CommandError;
use super::guide_args::{ControlArg, ControlKind, LoraArg, TemplatesArg};
use crate::catalog::{AuxiliaryKind, Catalog};
use crate::picture::{
    ReadLimits, Recipe, RecipeControl, RecipeLora, cover, read_picture, read_picture_bytes,
};
use crate::task::Preprocess;
use crate::templates::{TemplateSet, Templates};

/// How strongly a template counts.
const TEMPLATE_STRENGTH: f64 = 0.8;
/// The gateways' thresholds, on 8-bit grey.
const EDGES: (f64, f64) = (100.0, 200.0);
/// Most bytes of a template.
const TEMPLATE_BYTES: usize = 64 << 20;
/// The set that is followed where only a folder is named.
const SET: &str = "default";

/// What the pictures of a pack are guided by.
pub(super) struct Guide {
    /// LoRAs, bound to the model.
    pub(super) loras: Option<Arc<LoraSet>>,
    recipe_loras: Vec<RecipeLora>,
    controls: Vec<Prepared>,
    templates: Option<Following>,
}

/// A control that every picture has.
#[derive(Clone)]
struct Prepared {
    control: Control,
    recipe: RecipeControl,
}

/// Templates to follow, one an expression.
struct Following {
    templates: Templates,
    set: TemplateSet,
    network: Arc<ControlNet>,
    file: String,
}

impl Guide {
    /// Reads and binds everything that the flags name, for pictures like this one.
    pub(super) fn new(
        args: &GuideArgs,
        pipeline: &Pipeline,
        picture: &ImageRequest,
    ) -> Result<Self, CommandError> {
        let size = whole_cells(picture);
        let catalog = Catalog::open(args.models_dir.as_deref(), None).map_err(CommandError::plain)?;
        let (loras, recipe_loras) = bind_loras(&args.lora, &catalog, pipeline)?;
        let mut controls = Vec::new();
        for control in &args.control {
            controls.push(prepare(control, &catalog, pipeline, size)?);
        }
        let set = match (&args.templates, &args.template_dir) {
            (Some(TemplatesArg::None), _) | (None, None) => None,
            (Some(TemplatesArg::Set(set)), _) => Some(set.as_str()),
            (None, Some(_)) => Some(SET),
        };
        let templates = match set {
            None => None,
            Some(set) => {
                let named =
                    |e| CommandError::usage(e, "name a set of --template-dir or a built-in one, or none");
                let templates = Templates::open(args.template_dir.as_deref()).map_err(named)?;
                let set = templates.set(set).map_err(named)?;
                let (file, network) = control_net(ControlKind::Canny, &catalog, pipeline)?;
                Some(Following { templates, set, network, file })
            }
        };
        Ok(Self { loras, recipe_loras, controls, templates })
    }

    /// Puts the guidance into an expression's request; what the picture's recipe says of its controls.
    pub(super) fn apply(
        &self,
        request: &mut ImageRequest,
        expression: &str,
        pipeline: &Pipeline,
    ) -> Result<Vec<RecipeControl>, CommandError> {
        request.loras.clone_from(&self.loras);
        let mut all = self.controls.clone();
        if let Some(following) = &self.templates {
            all.push(following.control(expression, pipeline, whole_cells(request))?);
        }
        request.controls = all.iter().map(|prepared| prepared.control.clone()).collect();
        Ok(all.into_iter().map(|prepared| prepared.recipe).collect())
    }

    /// A picture's recipe with its guidance in it.
    pub(super) fn note(&self, recipe: Recipe, controls: &[RecipeControl]) -> Recipe {
        Recipe { loras: self.recipe_loras.clone(), controls: controls.to_vec(), ..recipe }
    }
}

fn bind_loras(
    args: &[LoraArg],
    catalog: &Catalog,
    pipeline: &Pipeline,
) -> Result<(Option<Arc<LoraSet>>, Vec<RecipeLora>), CommandError> {
    if args.is_empty() {
        return Ok((None, Vec::new()));
    }
    let mut stack = Vec::with_capacity(args.len());
    let mut recipe = Vec::with_capacity(args.len());
    for LoraArg { lora: name, strength, text_strength } in args {
        let unusable = |error: &dyn std::fmt::Display| {
            CommandError::failure(
                format!("--lora {name}: {error}"),
                "`darkroom inspect FILE` says what the file is; choose a LoRA that was made for this model",
            )
        };
        let file = open_lora(name, catalog)?;
        let file_name = file.name().to_owned();
        let file = LoraFile::open(file).map_err(|e| unusable(&e))?;
        let lora = pipeline.bind_lora(&file).map_err(|e| unusable(&e))?;
        if let Some(first) = lora.unmatched.first() {
            tracing::warn!(
                "--lora {name}: {} keys fit nothing in the model, {first} first",
                lora.unmatched.len()
            );
        }
        let (strength, text_strength) = (*strength, *text_strength);
        stack.push(StackedLora { name: name.as_str().into(), lora: Arc::new(lora), strength, text_strength });
        recipe.push(RecipeLora { file: file_name, strength, text_strength });
    }
    let set = pipeline.lora_set(stack).map_err(CommandError::plain)?;
    Ok((Some(Arc::new(set)), recipe))
}

/// The size of what is drawn: a base picture of another size loses its last pixels.
fn whole_cells(request: &ImageRequest) -> (usize, usize) {
    let (width, height) = request.source.size();
    let cut = |side: usize| side / PIXELS_PER_CELL * PIXELS_PER_CELL;
    (cut(width), cut(height))
}

/// A file by its path, else one by its name.
fn open_lora(name: &str, catalog: &Catalog) -> Result<Arc<WeightFile>, CommandError> {
    let path = Path::new(name);
    if path.is_file() {
        return WeightFile::open(path).map(Arc::new).map_err(|e| {
            CommandError::failure(format!("--lora {name}: {e}"), "make or download the file again")
        });
    }
    match catalog.find_auxiliary(AuxiliaryKind::Lora, name) {
        Some(entry) => entry.open().map_err(|e| {
            CommandError::failure(format!("--lora {name}: {e}"), "make or download the file again")
        }),
        None => {
            let known: Vec<String> =
                catalog.auxiliaries(AuxiliaryKind::Lora).into_iter().take(20).map(|entry| entry.id).collect();
            Err(CommandError::usage(
                format!("--lora {name}: there is no such file, and no LoRA of that name"),
                format!("name a file, or one of: {}", known.join(", ")),
            ))
        }
    }
}

/// The first ControlNet whose name says what it is for and that fits the model.
fn control_net(
    kind: ControlKind,
    catalog: &Catalog,
    pipeline: &Pipeline,
) -> Result<(String, Arc<ControlNet>), CommandError> {
    let mut last = None;
    for entry in catalog.auxiliaries(AuxiliaryKind::ControlNet) {
        if !entry.id.to_lowercase().contains(kind.name()) {
            continue;
        }
        let network = entry.open().map_err(|e| e.to_string()).and_then(|file| {
            let config = pipeline.unet_config().map_err(|e| e.to_string())?;
            ControlNet::from_file(file, config, pipeline.device(), pipeline.compute_type())
                .map_err(|e| e.to_string())
        });
        match network {
            Ok(network) => return Ok((entry.file_name(), Arc::new(network))),
            Err(error) => last = Some(format!("{}: {error}", entry.id)),
        }
    }
    let why = last.map(|error| format!(" ({error})")).unwrap_or_default();
    Err(CommandError::failure(
        format!("no ControlNet for {} fits the model{why}", kind.name()),
        "put one into controlnet/ of --models-dir, with its use in its name",
    ))
}

fn prepare(
    arg: &ControlArg,
    catalog: &Catalog,
    pipeline: &Pipeline,
    size: (usize, usize),
) -> Result<Prepared, CommandError> {
    let (picture, _) = read_picture(&arg.picture)
        .map_err(|e| CommandError::failure(format!("--control: {e}"), "name a picture file"))?;
    let (file, network) = control_net(arg.kind, catalog, pipeline)?;
    let image = arg.picture.file_name().unwrap_or(arg.picture.as_os_str()).to_string_lossy().into_owned();
    let edges = arg.kind == ControlKind::Canny;
    let control = steer(&network, &picture, edges, pipeline, size)?;
    let ControlArg { strength, start, end, .. } = *arg;
    let recipe = RecipeControl { file, image, preprocess: preprocess(edges), strength, start, end };
    Ok(Prepared { control: Control { strength, start, end, ..control }, recipe })
}

impl Following {
    fn control(
        &self,
        expression: &str,
        pipeline: &Pipeline,
        size: (usize, usize),
    ) -> Result<Prepared, CommandError> {
        let fix = "draw the missing template, or leave the expression out";
        let bytes = self
            .templates
            .read(&self.set, expression, TEMPLATE_BYTES)
            .map_err(|e| CommandError::usage(e, fix))?;
        let image = format!("{}_{expression}.png", self.set.name);
        let (picture, _) = read_picture_bytes(&bytes, &ReadLimits::default(), &image)
            .map_err(|e| CommandError::failure(e, "write the template as a PNG again"))?;
        let control = steer(&self.network, &picture, true, pipeline, size)?;
        let (strength, start, end) = (TEMPLATE_STRENGTH, 0.0, 1.0);
        let recipe = RecipeControl {
            file: self.file.clone(),
            image,
            preprocess: preprocess(true),
            strength,
            start,
            end,
        };
        Ok(Prepared { control: Control { strength, start, end, ..control }, recipe })
    }
}

fn preprocess(edges: bool) -> Preprocess {
    if edges { Preprocess::OpencvCanny { low: EDGES.0, high: EDGES.1 } } else { Preprocess::None }
}

/// The picture as the network sees it. Edges are found at the size at which they steer.
fn steer(
    network: &Arc<ControlNet>,
    picture: &Picture,
    edges: bool,
    pipeline: &Pipeline,
    (width, height): (usize, usize),
) -> Result<Control, CommandError> {
    let hint = if edges {
        let scaled = cover(picture, width, height)
            .ok_or_else(|| CommandError::plain("the control picture cannot be scaled"))?;
        let method = CannyMethod::OpenCv { l2_gradient: false };
        Canny { low: EDGES.0, high: EDGES.1, method }.detect(&scaled)
    } else {
        picture.clone()
    };
    let hint =
        Control::embed(network, &hint, width, height, pipeline.device()).map_err(CommandError::plain)?;
    Ok(Control { network: Arc::clone(network), hint, strength: 1.0, start: 0.0, end: 1.0 })
}
