//! What a server or a command line needs of workflows: what nodes there are, whether a prompt can be run, running it.

use std::cell::RefCell;
use std::sync::Arc;

use serde_json::{Map, Value as Json};
use tokio_util::sync::CancellationToken;

use super::cache::Cache;
use super::check::{Checked, Refusal, check};
use super::event::Listener;
use super::execute::{Run, RunResult, Surroundings, execute};
use super::folders::Folders;
use super::graph::Graph;
use super::interface::Choices;
use super::ordered::Ordered;
use super::registry::Registry;
use crate::catalog::Catalog;
use crate::engine::Engine;

/// Everything that workflows run with.
pub struct Workflows {
    /// All nodes.
    pub registry: Registry,
    /// What nodes gave before.
    pub cache: Cache,
    /// Weights and samples.
    pub engine: Arc<Engine>,
    /// Which models there are.
    pub catalog: Arc<Catalog>,
    /// Where files are.
    pub folders: Folders,
}

impl Workflows {
    /// With every node there is, and a cache of up to `cache_bytes`.
    pub fn new(engine: Arc<Engine>, catalog: Arc<Catalog>, folders: Folders, cache_bytes: usize) -> Self {
        Self { registry: Registry::all(), cache: Cache::new(cache_bytes), engine, catalog, folders }
    }

    /// The names behind a list of choices.
    pub fn choices(&self, choices: &Choices) -> Vec<String> {
        let mut names = self.folders.choices(choices);
        if matches!(choices, Choices::Models { folder: "checkpoints", .. }) {
            self.add_catalog(&mut names);
        }
        names
    }

    /// Files of a folder of models, by ComfyUI's name of it; `None` for an unknown folder.
    pub fn model_files(&self, folder: &str) -> Option<Vec<String>> {
        let mut names = self.folders.model_files(folder)?;
        if folder == "checkpoints" {
            self.add_catalog(&mut names);
        }
        Some(names)
    }

    /// Models that are no single file in `checkpoints`, which ComfyUI would not list.
    fn add_catalog(&self, names: &mut Vec<String>) {
        for entry in self.catalog.list() {
            let name = entry.file_name();
            if !names.contains(&name) {
                names.push(name);
            }
        }
    }

    /// What `GET /object_info` says: of all nodes, or of one; of one that there is not, `{}`.
    pub fn object_info(&self, class: Option<&str>) -> Json {
        let lists = Lists::of(self);
        let choices = |list: &Choices| lists.names(list);
        let nodes =
            self.registry.iter().filter(|node| class.is_none_or(|class| class == node.interface.class));
        let infos = nodes.map(|node| (node.interface.class.to_owned(), node.interface.object_info(&choices)));
        Json::Object(infos.collect::<Map<_, _>>())
    }

    /// Checks a prompt. `targets`: the output nodes that are asked for; `None`: all.
    ///
    /// # Errors
    /// When not one output can be run.
    pub fn check(&self, graph: &Graph, targets: Option<&[String]>) -> Result<Checked, Refusal> {
        let lists = Lists::of(self);
        let choices = |list: &Choices| lists.names(list);
        check(graph, &self.registry, &choices, &self.folders, targets)
    }

    /// Runs a prompt on the calling thread, and blocks until it has ended.
    pub fn run(
        &self,
        prompt_id: &str,
        checked: &Checked,
        extra_pnginfo: Option<&Ordered>,
        listener: &dyn Listener,
        interrupt: &CancellationToken,
    ) -> RunResult {
        let run = Run { prompt_id, checked, extra_pnginfo, listener, interrupt, keep: &[] };
        execute(self.surroundings(), run)
    }

    /// What [`execute`] takes, for those who want values of nodes as well.
    pub fn surroundings(&self) -> Surroundings<'_> {
        Surroundings {
            registry: &self.registry,
            cache: &self.cache,
            engine: &self.engine,
            catalog: &self.catalog,
            folders: &self.folders,
        }
    }
}

/// The names behind lists of choices, each looked up once: many nodes have the same.
struct Lists<'a> {
    workflows: &'a Workflows,
    known: RefCell<Vec<(Choices, Vec<String>)>>,
}

impl<'a> Lists<'a> {
    fn of(workflows: &'a Workflows) -> Self {
        Self { workflows, known: RefCell::default() }
    }

    fn names(&self, choices: &Choices) -> Vec<String> {
        if let Choices::Fixed(names) = choices {
            return names.clone();
        }
        let known =
            self.known.borrow().iter().find(|(list, _)| list == choices).map(|(_, names)| names.clone());
        known.unwrap_or_else(|| {
            let names = self.workflows.choices(choices);
            self.known.borrow_mut().push((choices.clone(), names.clone()));
            names
        })
    }
}
