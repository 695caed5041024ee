//! What is drawn with: a models folder of random weights, or what is built in. And the requests.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use candle_core::Device;
use darkroom::catalog::AuxiliaryKind;
use darkroom::embedded;
use darkroom_models::checkpoint::Checkpoint;
use serde_json::{Value, json};

use crate::Plan;
use crate::server::{Server, program};

pub(crate) const CFG: f64 = 7.5;
pub(crate) const SAMPLER: &str = "dpmpp_2m";
pub(crate) const SCHEDULER: &str = "karras";
pub(crate) const CONTROL_STRENGTH: f64 = 0.8;
pub(crate) const NEGATIVE: &str = "blurry, low quality, worst quality, deformed";
/// One character keeps one seed.
pub(crate) const SEED: u64 = 42;

const EXPRESSIONS: [&str; 20] = [
    "neutral",
    "gentle smile",
    "smirk",
    "laughing",
    "sad",
    "crying",
    "angry",
    "surprised",
    "scared",
    "blush",
    "wink",
    "sleepy",
    "pout",
    "shy",
    "proud",
    "bored",
    "confused",
    "excited",
    "disgusted",
    "thinking",
];

/// Longest that a request may take, busy machines included.
const PATIENCE: Duration = Duration::from_secs(1800);

/// A model and what is drawn with it.
pub(crate) struct Subject {
    /// The model's id.
    pub(crate) name: String,
    /// Pixels a side.
    pub(crate) side: usize,
    /// Ids of its LoRAs.
    pub(crate) loras: Vec<String>,
    /// Where its files are; `None`: built in.
    pub(crate) folder: Option<PathBuf>,
    control: String,
    templates: Vec<Template>,
}

struct Template {
    file: PathBuf,
    bytes: Vec<u8>,
}

impl Subject {
    /// What `make_random_pack.py` wrote.
    pub(crate) fn random(folder: &Path) -> Self {
        let mut files: Vec<PathBuf> = fs::read_dir(folder.join("templates/bench"))
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .collect();
        files.sort();
        let templates = files.into_iter().map(|file| Template { bytes: fs::read(&file).unwrap(), file });
        Self {
            name: "pack_sdxl".into(),
            side: 256,
            loras: ["pack_a", "pack_b", "pack_c"].map(str::to_owned).to_vec(),
            folder: Some(folder.to_owned()),
            control: "pack_canny".into(),
            templates: templates.collect(),
        }
    }

    /// The tiny model that is compiled in.
    pub(crate) fn built_in() -> Self {
        let ids =
            |kind| embedded::auxiliaries(kind).iter().map(|(id, _)| (*id).to_owned()).collect::<Vec<_>>();
        let template = include_bytes!("../../assets/templates/default/smile_gentle.png").to_vec();
        Self {
            name: "tiny-sdxl".into(),
            side: 64,
            loras: ids(AuxiliaryKind::Lora),
            folder: None,
            control: ids(AuxiliaryKind::ControlNet).remove(0),
            templates: vec![Template { file: PathBuf::new(), bytes: template }],
        }
    }

    pub(crate) fn checkpoint(&self) -> Checkpoint {
        match &self.folder {
            Some(folder) => {
                let file = folder.join("checkpoints").join(format!("{}.safetensors", self.name));
                Checkpoint::open(&file, &Device::Cpu).unwrap()
            }
            None => embedded::checkpoint(&Device::Cpu).unwrap(),
        }
    }

    /// A LoRA's file.
    pub(crate) fn lora(&self, id: &str) -> Vec<u8> {
        match &self.folder {
            Some(folder) => fs::read(folder.join("loras").join(format!("{id}.safetensors"))).unwrap(),
            None => {
                let all = embedded::auxiliaries(AuxiliaryKind::Lora);
                all.iter().find(|(known, _)| *known == id).unwrap().1.to_vec()
            }
        }
    }

    /// A server that draws with it, on `data`, with copies of the second LoRA under more names: to a server each is
    /// one that it has never used.
    pub(crate) fn serve(&self, plan: &Plan, data: &Path, copies: &[String]) -> Server {
        let models = data.join("models");
        fs::create_dir_all(models.join("loras")).unwrap();
        if let Some(folder) = &self.folder {
            for part in ["checkpoints", "controlnet"] {
                link(&folder.join(part), &models.join(part)).unwrap();
            }
            for id in &self.loras {
                fs::write(models.join("loras").join(format!("{id}.safetensors")), self.lora(id)).unwrap();
            }
        }
        for copy in copies {
            fs::write(models.join("loras").join(format!("{copy}.safetensors")), self.lora(&self.loras[1]))
                .unwrap();
        }
        let mut command = program();
        command.args(["serve", "--port", "0", "--model", &self.name, "--data-dir"]).arg(data.join("data"));
        command.arg("--models-dir").arg(&models).env("RAYON_NUM_THREADS", plan.threads.to_string());
        command.stderr(Stdio::null());
        let mut server = Server::start_command(command);
        server.client = reqwest::Client::builder().no_proxy().timeout(PATIENCE).build().unwrap();
        server
    }

    /// Request number `index` of a pack, with `lora` and Canny.
    pub(crate) fn request(&self, plan: &Plan, index: usize, lora: Option<&str>) -> Value {
        let template = &self.templates[index % self.templates.len()];
        let mut request = json!({
            "prompt": prompt(index), "negative_prompt": NEGATIVE, "width": self.side, "height": self.side,
            "steps": plan.steps, "cfg": CFG, "sampler": SAMPLER, "scheduler": SCHEDULER, "seed": SEED,
            "controls": [{
                "id": self.control, "image": STANDARD.encode(&template.bytes), "preprocess": "opencv_canny",
                "low": 100, "high": 200, "strength": CONTROL_STRENGTH,
            }],
        });
        if let Some(lora) = lora {
            request["loras"] = json!([{"id": lora}]);
        }
        request
    }

    /// The same picture for diffusers.
    pub(crate) fn for_diffusers(&self, index: usize) -> Value {
        let template = &self.templates[index % self.templates.len()].file;
        json!({"prompt": prompt(index), "negative_prompt": NEGATIVE, "seed": SEED, "template": template})
    }
}

pub(crate) fn prompt(index: usize) -> String {
    format!("1girl, light blue hair, twintails, {}", EXPRESSIONS[index % EXPRESSIONS.len()])
}

/// Makes what lies at `from` be at `to` too, without a copy where the system can.
fn link(from: &Path, to: &Path) -> io::Result<()> {
    let from = fs::canonicalize(from)?;
    #[cfg(unix)]
    return std::os::unix::fs::symlink(from, to);
    #[cfg(not(unix))]
    {
        fs::create_dir_all(to)?;
        for entry in fs::read_dir(from)? {
            let entry = entry?;
            fs::copy(entry.path(), to.join(entry.file_name()))?;
        }
        Ok(())
    }
}
