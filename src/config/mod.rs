//! Everything about a server that can be set. Each section is declared once, with every field's documentation,
//! default and bounds; `load` fills it from flags, then the environment, then the file, then the defaults here;
//! `print` writes it down again. Plain data: who uses a value is elsewhere.

mod check;
mod error;
mod field;
mod load;
mod print;
mod size;

use std::net::IpAddr;
use std::path::PathBuf;

use darkroom_models::ComputeType;
use serde::{Deserialize, Serialize};

pub use error::{ConfigError, Origin};
use field::section;
pub use field::{Field, Kind, Section};
pub use load::{Loaded, Sources, darkroom_variables};
pub use print::mask_password;
pub(crate) use size::parse_bytes;

/// A server's configuration. Durations are seconds, sizes are bytes.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Where and how it listens.
    pub server: ServerConfig,
    /// What a request may ask for.
    pub limits: LimitsConfig,
    /// How many tasks wait, and in which order they are served.
    pub queue: QueueConfig,
    /// Models, memory and batching.
    pub engine: EngineConfig,
    /// What pictures give up of exactness for speed.
    pub speed: SpeedConfig,
    /// Pictures that packs follow.
    pub templates: TemplatesConfig,
    /// Which ControlNet does what.
    pub controls: ControlsConfig,
    /// The detail pass.
    pub detail: DetailConfig,
    /// Cutting subjects out.
    pub background: BackgroundConfig,
    /// Where tasks and pictures are kept, and how long.
    pub storage: StorageConfig,
    /// Who may ask.
    pub auth: AuthConfig,
    /// Requests that the server itself makes.
    pub outbound: OutboundConfig,
    /// ComfyUI's API and workflows.
    pub comfy: ComfyConfig,
    /// What it writes about itself.
    pub log: LogConfig,
}

impl Config {
    /// All sections, in the struct's order.
    pub const SECTIONS: [Section; 14] = [
        ServerConfig::SECTION,
        LimitsConfig::SECTION,
        QueueConfig::SECTION,
        EngineConfig::SECTION,
        SpeedConfig::SECTION,
        TemplatesConfig::SECTION,
        ControlsConfig::SECTION,
        DetailConfig::SECTION,
        BackgroundConfig::SECTION,
        StorageConfig::SECTION,
        AuthConfig::SECTION,
        OutboundConfig::SECTION,
        ComfyConfig::SECTION,
        LogConfig::SECTION,
    ];

    /// All settings.
    pub fn fields() -> impl Iterator<Item = &'static Field> {
        Self::SECTIONS.iter().flat_map(|section| section.fields)
    }
}

section! {
    /// Where and how it listens.
    ServerConfig in "server" {
        /// Address to listen on. Anything but loopback needs a key, or `auth.allow_anonymous`.
        host: IpAddr = IpAddr::from([127, 0, 0, 1]), flag("host"), checked(check::address);
        /// Port; 0 takes a free one and says which.
        port: u16 = 8188, flag("port");
        /// Where clients reach this server, for the addresses of pictures: `https://images.example.com`.
        public_url: Option<String> = None, flag("public-url"), checked(check::public_url);
        /// PEM certificate chain; with `tls_key`, the server speaks TLS.
        tls_cert: Option<PathBuf> = None, flag("tls-cert");
        /// PEM private key.
        tls_key: Option<PathBuf> = None, flag("tls-key");
        /// Origins that browsers may call from; `*` is any.
        cors_origins: Vec<String> = Vec::new(), checked(check::origin);
        /// Connections at once; more wait in the system's queue.
        max_connections: usize = 1024, least(1);
        /// WebSockets and event streams at once.
        max_streams: usize = 256;
        /// Tasks that one WebSocket may listen to.
        max_subscriptions: usize = 256, least(1);
        /// Seconds for a request's head to arrive, and for an idle connection's next one. Longer than clients keep
        /// theirs (90 is usual), or a request meets a connection that is just being closed.
        header_timeout: f64 = 95.0, deadline;
        /// Seconds for a request's body to arrive.
        body_timeout: f64 = 30.0, deadline;
        /// Longest that `?wait=true` waits, seconds.
        wait_timeout: f64 = 600.0;
        /// Seconds for running tasks to finish after SIGTERM.
        drain_timeout: f64 = 30.0;
    }
}

section! {
    /// What a request may ask for.
    LimitsConfig in "limits" {
        /// Bytes of a request's body.
        body_bytes: usize = 32 << 20, bytes, least(1);
        /// Characters of a prompt.
        prompt_characters: usize = 20_000, least(1);
        /// 77-token chunks of a prompt.
        prompt_chunks: usize = 16, least(1);
        /// Pixels a side.
        max_side: usize = 4096, least(16);
        /// Pixels of one picture.
        max_pixels: usize = 2048 * 2048, least(256);
        /// Sampling steps of one picture.
        max_steps: usize = 150, least(1);
        /// Pictures of one task.
        max_images: usize = 100, least(1);
        /// Requests of one batch.
        max_batch_requests: usize = 100, least(1);
        /// LoRAs of one picture.
        loras: usize = 8;
        /// ControlNets of one picture.
        controls: usize = 4;
        /// Bytes of a source picture or mask.
        source_bytes: usize = 20 << 20, bytes, least(1);
        /// Pixels of a source picture or mask.
        source_pixels: usize = 4096 * 4096, least(1);
    }
}

section! {
    /// How many tasks wait, and in which order they are served.
    QueueConfig in "queue" {
        /// Tasks that may be unfinished at once.
        max_tasks: usize = 1000, least(1);
        /// Unfinished tasks of one key; 0 is no limit of its own.
        max_tasks_per_key: usize = 0;
        /// Seconds after which a waiting picture is served in turn whatever its priority.
        age_after: f64 = 30.0;
    }
}

section! {
    /// Models, memory and batching.
    EngineConfig in "engine" {
        /// Folder of models, laid out as ComfyUI's (`checkpoints/`, …).
        models_dir: Option<PathBuf> = None, flag("models-dir");
        /// Tokenizer of Qwen-Image's text encoder, a `tokenizer.json` or a folder, where it lies not beside the encoder.
        tokenizer: Option<PathBuf> = None, flag("tokenizer");
        /// Model that requests without one get; the built-in one if none is named.
        default_model: Option<String> = None, flag("model");
        /// Models loaded before the server is ready.
        preload: Vec<String> = Vec::new(), flag("preload");
        /// Models that are never evicted.
        pin: Vec<String> = Vec::new(), flag("pin");
        /// `auto` (single precision on a CPU, the 16-bit type of the model's file on a GPU), `full`, `bf16`, `f16` or
        /// `fp8` (linear layers of UNets and ControlNets in 8 bits: close to, but not, the same picture).
        precision: PrecisionConfig = PrecisionConfig::Auto;
        /// Devices: `auto` (the first GPU, or else the CPU), `cpu`, `cuda:0`, …
        devices: Vec<String> = vec!["auto".into()], flag("device"), checked(check::device);
        /// Most bytes of a GPU's memory that are used; 0 is what is free when the server starts.
        vram_limit: u64 = 0, bytes, flag("vram-limit");
        /// Bytes for weights and activations on a CPU; 0 is three quarters of what the machine has.
        memory_budget: u64 = 0, bytes, flag("memory-budget");
        /// Pictures that go through the network at once, at most.
        max_batch: usize = 16, least(1), flag("max-batch");
        /// Bytes of cached prompt embeddings, per device.
        prompt_cache_bytes: usize = 256 << 20, bytes;
        /// Previews a second of each picture, when someone is listening; 0 is none.
        previews_per_second: f64 = 2.0;
        /// Threads that write picture files.
        image_writers: usize = 2, least(1);
    }
}

/// Precision of networks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PrecisionConfig {
    /// What the device is good at.
    #[default]
    Auto,
    /// Single precision: ComfyUI's pictures.
    Full,
    /// bfloat16; on a CPU for products alone.
    Bf16,
    /// Half precision on a GPU.
    F16,
    /// 8-bit linear layers.
    Fp8,
}

impl From<PrecisionConfig> for ComputeType {
    fn from(precision: PrecisionConfig) -> Self {
        match precision {
            PrecisionConfig::Auto => Self::Auto,
            PrecisionConfig::Full => Self::Full,
            PrecisionConfig::Bf16 => Self::Bf16,
            PrecisionConfig::F16 => Self::F16,
            PrecisionConfig::Fp8 => Self::Fp8,
        }
    }
}

section! {
    /// What pictures give up of exactness for speed, where requests do not say; nothing by default. Workflows of
    /// ComfyUI never do.
    SpeedConfig in "speed" {
        /// Share of the noise schedule at which guidance begins: before it, negative prompts are not evaluated.
        guidance_start: f64 = 0.0, share;
        /// Share of the noise schedule at which guidance ends.
        guidance_end: f64 = 1.0, share;
        /// Network evaluations of which one is whole and the others run the network's outer part; 1 is all whole.
        cache_interval: usize = 1, least(1), most(100);
        /// Skip connection below which nothing is run anew; default: the outermost blocks run as a whole.
        cache_branch_id: Option<usize> = None, most(63);
    }
}

section! {
    /// Pictures that packs follow.
    TemplatesConfig in "templates" {
        /// Folder of template sets, `SET/EXPRESSION.png`; a set there replaces a built-in one of the same name.
        folder: Option<PathBuf> = None, flag("template-dir");
        /// Set that requests without one follow.
        set: String = "default".into();
    }
}

section! {
    /// Which ControlNet does what: ids as `GET /v1/controlnets` lists them. Without one, the first that fits the model
    /// and says so in its name.
    ControlsConfig in "controls" {
        /// ControlNet for edges.
        canny: Option<String> = None;
        /// ControlNet for skeletons.
        openpose: Option<String> = None;
        /// ControlNet for depth.
        depth: Option<String> = None;
    }
}

section! {
    /// The detail pass.
    DetailConfig in "detail" {
        /// Network that finds faces; without one, the first in the models folder with `face` in its name.
        detector: Option<String> = None;
    }
}

section! {
    /// Cutting subjects out.
    BackgroundConfig in "background" {
        /// Network that finds the subject; without one, the first in the models folder.
        remover: Option<String> = None;
    }
}

section! {
    /// Where tasks and pictures are kept, and how long.
    StorageConfig in "storage" {
        /// Folder for the database and pictures, unless `database_url` and `images_url` say otherwise.
        data_dir: PathBuf = PathBuf::from("darkroom-data"), flag("data-dir");
        /// `sqlite:…` or `postgres://…`; default: a file in `data_dir`.
        database_url: Option<String> = None, flag("database-url"), checked(check::database);
        /// `file:///…` or `s3://bucket/prefix`; default: a folder in `data_dir`.
        images_url: Option<String> = None, checked(check::images);
        /// Endpoint of an S3-compatible store that is not Amazon's: `http://127.0.0.1:9000`.
        s3_endpoint: Option<String> = None, checked(check::endpoint);
        /// Seconds that finished tasks and their pictures are kept; 0 is for ever.
        keep_seconds: u64 = 0;
        /// Bytes of pictures to keep, the oldest go first; 0 is no limit.
        keep_bytes: u64 = 0, bytes;
        /// New tasks are refused while the data folder's disk has fewer free bytes.
        min_free_bytes: u64 = 64 << 20, bytes;
    }
}

section! {
    /// Who may ask.
    AuthConfig in "auth" {
        /// Serve without keys on addresses other than loopback.
        allow_anonymous: bool = false;
        /// Requests a minute of each key that has no limit of its own; 0 is no limit.
        requests_per_minute: u32 = 0;
    }
}

section! {
    /// Requests that the server itself makes.
    OutboundConfig in "outbound" {
        /// Private addresses that may be reached all the same: `10.1.0.0/16`, `127.0.0.1/32`.
        allow_networks: Vec<String> = Vec::new(), checked(check::network);
        /// Secret that signs webhooks; default: drawn once and kept in `data_dir`.
        webhook_secret: Option<String> = None, secret;
        /// Deliveries of one webhook before it is given up.
        webhook_attempts: u32 = 8, least(1);
        /// Seconds for one delivery or one download.
        timeout: f64 = 15.0, deadline;
        /// Redirects that are followed, each checked like the first address.
        max_redirects: usize = 3;
    }
}

section! {
    /// ComfyUI's API and workflows.
    ComfyConfig in "comfy" {
        /// Serve ComfyUI's routes.
        enabled: bool = true, flag("comfy");
        /// Another port to listen on, at `server.host`; 0 takes a free one.
        port: Option<u16> = None;
        /// Folder that workflows load pictures from; default: `comfy/input` in the data folder.
        input_dir: Option<PathBuf> = None;
        /// Folder that workflows save to; default: `comfy/output` in the data folder.
        output_dir: Option<PathBuf> = None;
        /// Folder for what is only shown; default: `comfy/temp` in the data folder.
        temp_dir: Option<PathBuf> = None;
        /// Folder for workflows and settings of the front end; default: `comfy/user` in the data folder.
        user_dir: Option<PathBuf> = None;
        /// Folder of ComfyUI's web front end: `static` of the package `comfyui-frontend-package`.
        frontend: Option<PathBuf> = None;
        /// A ComfyUI that gets the workflows with nodes that Darkroom lacks: `http://127.0.0.1:8189`.
        upstream: Option<String> = None, checked(check::endpoint);
        /// Prompts that run at once. Those that sample share step batches.
        max_running: usize = 32, least(1);
        /// Prompts that may wait.
        max_queued: usize = 1000, least(1);
        /// Finished prompts that are remembered; the oldest go first.
        history_size: usize = 10_000, least(1);
        /// Bytes of outputs of nodes that are kept for later prompts.
        cache_bytes: usize = 1 << 30, bytes;
        /// WebSockets at once.
        max_sockets: usize = 1000, least(1);
        /// Previews while sampling, where a prompt does not say: `none`, `auto` or `latent2rgb`.
        preview_method: PreviewMethod = PreviewMethod::None;
        /// Bytes of an uploaded file.
        max_upload_bytes: usize = 100 << 20, bytes, least(1);
    }
}

/// Whether pictures are shown while they are sampled.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PreviewMethod {
    /// They are not.
    #[default]
    None,
    /// The best way there is.
    Auto,
    /// The latent's channels as colours.
    Latent2Rgb,
}

impl ComfyConfig {
    /// The folders of workflows, below the data folder where the configuration does not say otherwise.
    pub fn folders(&self, data_dir: &std::path::Path) -> [PathBuf; 4] {
        [
            (&self.input_dir, "input"),
            (&self.output_dir, "output"),
            (&self.temp_dir, "temp"),
            (&self.user_dir, "user"),
        ]
        .map(|(set, name)| set.clone().unwrap_or_else(|| data_dir.join("comfy").join(name)))
    }
}

section! {
    /// What it writes about itself.
    LogConfig in "log" {
        /// `text` or `json`.
        format: LogFormat = LogFormat::Text;
    }
}

/// Form of log lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_section_and_field_of_the_struct_is_a_setting() {
        let defaults = toml::Table::try_from(Config::default()).unwrap();
        let names: Vec<&str> = Config::SECTIONS.iter().map(|section| section.name).collect();
        let mut sections: Vec<&str> = defaults.keys().map(String::as_str).collect();
        sections.sort_by_key(|name| names.iter().position(|known| known == name));
        assert_eq!(sections, names);
        for (section, fields) in &defaults {
            for name in fields.as_table().unwrap().keys() {
                assert!(
                    Config::fields().any(|field| field.section == section && field.name == name),
                    "{name}"
                );
            }
        }
    }

    #[test]
    fn the_defaults_are_valid() {
        Config::default().validate().unwrap();
    }

    #[test]
    fn every_name_of_a_choice_is_one_of_the_type() {
        for field in Config::fields() {
            let Kind::Choice(names) = field.kind else { continue };
            for name in names {
                let text = format!("[{}]\n{} = '{name}'", field.section, field.name);
                toml::from_str::<Config>(&text).unwrap();
            }
        }
    }

    #[test]
    fn flags_are_unique() {
        let shorts = Config::fields().filter_map(|field| field.short).map(str::to_owned);
        let mut flags: Vec<String> = Config::fields().map(Field::long_flag).chain(shorts).collect();
        let all = flags.len();
        flags.sort();
        flags.dedup();
        assert_eq!(flags.len(), all);
    }
}
