//! Everything about a server that can be set: one section a struct, each field documented where it is declared and
//! given its default in `Default`. Values come from flags, then the environment, then `darkroom.toml`, then here.

use std::net::IpAddr;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

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
    /// Where tasks and pictures are kept, and how long.
    pub storage: StorageConfig,
    /// Who may ask.
    pub auth: AuthConfig,
    /// Requests that the server itself makes.
    pub outbound: OutboundConfig,
    /// What it writes about itself.
    pub log: LogConfig,
}

/// Where and how it listens.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ServerConfig {
    /// Address to listen on. Anything but loopback needs a key, or `auth.allow_anonymous`.
    pub host: IpAddr,
    /// Port; 0 takes a free one and says which.
    pub port: u16,
    /// Where clients reach this server, for the addresses of pictures: `https://images.example.com`.
    pub public_url: Option<String>,
    /// PEM certificate chain; with `tls_key`, the server speaks TLS.
    pub tls_cert: Option<PathBuf>,
    /// PEM private key.
    pub tls_key: Option<PathBuf>,
    /// Origins that browsers may call from; `*` is any.
    pub cors_origins: Vec<String>,
    /// Connections at once; more wait in the system's queue.
    pub max_connections: usize,
    /// WebSockets and event streams at once.
    pub max_streams: usize,
    /// Tasks that one WebSocket may listen to.
    pub max_subscriptions: usize,
    /// Seconds for a request's head to arrive.
    pub header_timeout: f64,
    /// Seconds for a request's body to arrive.
    pub body_timeout: f64,
    /// Longest that `?wait=true` waits, seconds.
    pub wait_timeout: f64,
    /// Seconds for running tasks to finish after SIGTERM.
    pub drain_timeout: f64,
}

/// What a request may ask for.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LimitsConfig {
    /// Bytes of a request's body.
    pub body_bytes: usize,
    /// Characters of a prompt.
    pub prompt_characters: usize,
    /// 77-token chunks of a prompt.
    pub prompt_chunks: usize,
    /// Pixels a side.
    pub max_side: usize,
    /// Pixels of one picture.
    pub max_pixels: usize,
    /// Sampling steps of one picture.
    pub max_steps: usize,
    /// Pictures of one task.
    pub max_images: usize,
    /// Requests of one batch.
    pub max_batch_requests: usize,
    /// Bytes of a source picture or mask.
    pub source_bytes: usize,
    /// Pixels of a source picture or mask.
    pub source_pixels: usize,
}

/// How many tasks wait, and in which order they are served.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct QueueConfig {
    /// Tasks that may be unfinished at once.
    pub max_tasks: usize,
    /// Unfinished tasks of one key; 0 is no limit of its own.
    pub max_tasks_per_key: usize,
    /// Seconds after which a waiting picture is served in turn whatever its priority.
    pub age_after: f64,
}

/// Models, memory and batching.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct EngineConfig {
    /// Folder of models, laid out as ComfyUI's (`checkpoints/`, …).
    pub models_dir: Option<PathBuf>,
    /// Model that requests without one get; the built-in one if none is named.
    pub default_model: Option<String>,
    /// Models loaded before the server is ready.
    pub preload: Vec<String>,
    /// Models that are never evicted.
    pub pin: Vec<String>,
    /// `full` or `bf16`.
    pub precision: PrecisionConfig,
    /// Devices: only `cpu` today.
    pub devices: Vec<String>,
    /// Bytes for weights and activations on each device; 0 is three quarters of what the machine has.
    pub memory_budget: u64,
    /// Pictures that go through the network at once, at most.
    pub max_batch: usize,
    /// Bytes of cached prompt embeddings, per device.
    pub prompt_cache_bytes: usize,
    /// Previews a second of each picture, when someone is listening; 0 is none.
    pub previews_per_second: f64,
    /// Threads that write picture files.
    pub image_writers: usize,
}

/// Precision of networks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PrecisionConfig {
    /// Single precision: ComfyUI's pictures.
    #[default]
    Full,
    /// bfloat16 products.
    Bf16,
}

/// Where tasks and pictures are kept, and how long.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct StorageConfig {
    /// Folder for the database and pictures, unless `database_url` and `images_url` say otherwise.
    pub data_dir: PathBuf,
    /// `sqlite:…` or `postgres://…`; default: a file in `data_dir`.
    pub database_url: Option<String>,
    /// `file:///…` or `s3://bucket/prefix`; default: a folder in `data_dir`.
    pub images_url: Option<String>,
    /// Endpoint of an S3-compatible store that is not Amazon's: `http://127.0.0.1:9000`.
    pub s3_endpoint: Option<String>,
    /// Seconds that finished tasks and their pictures are kept; 0 is for ever.
    pub keep_seconds: u64,
    /// Bytes of pictures to keep, the oldest go first; 0 is no limit.
    pub keep_bytes: u64,
    /// New tasks are refused while the data folder's disk has fewer free bytes.
    pub min_free_bytes: u64,
}

/// Who may ask.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AuthConfig {
    /// Serve without keys on addresses other than loopback.
    pub allow_anonymous: bool,
    /// Requests a minute of each key that has no limit of its own; 0 is no limit.
    pub requests_per_minute: u32,
}

/// Requests that the server itself makes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct OutboundConfig {
    /// Private addresses that may be reached all the same: `10.1.0.0/16`, `127.0.0.1/32`.
    pub allow_networks: Vec<String>,
    /// Secret that signs webhooks; default: drawn once and kept in `data_dir`.
    pub webhook_secret: Option<String>,
    /// Deliveries of one webhook before it is given up.
    pub webhook_attempts: u32,
    /// Seconds for one delivery or one download.
    pub timeout: f64,
    /// Redirects that are followed, each checked like the first address.
    pub max_redirects: usize,
}

/// What it writes about itself.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LogConfig {
    /// `text` or `json`.
    pub format: LogFormat,
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

impl Default for ServerConfig {
    fn default() -> Self {
        Self {
            host: IpAddr::from([127, 0, 0, 1]),
            port: 8188,
            public_url: None,
            tls_cert: None,
            tls_key: None,
            cors_origins: Vec::new(),
            max_connections: 1024,
            max_streams: 256,
            max_subscriptions: 256,
            header_timeout: 10.0,
            body_timeout: 30.0,
            wait_timeout: 600.0,
            drain_timeout: 30.0,
        }
    }
}

impl Default for LimitsConfig {
    fn default() -> Self {
        Self {
            body_bytes: 32 << 20,
            prompt_characters: 20_000,
            prompt_chunks: 16,
            max_side: 4096,
            max_pixels: 2048 * 2048,
            max_steps: 150,
            max_images: 100,
            max_batch_requests: 100,
            source_bytes: 20 << 20,
            source_pixels: 4096 * 4096,
        }
    }
}

impl Default for QueueConfig {
    fn default() -> Self {
        Self { max_tasks: 1000, max_tasks_per_key: 0, age_after: 30.0 }
    }
}

impl Default for EngineConfig {
    fn default() -> Self {
        Self {
            models_dir: None,
            default_model: None,
            preload: Vec::new(),
            pin: Vec::new(),
            precision: PrecisionConfig::Full,
            devices: vec!["cpu".into()],
            memory_budget: 0,
            max_batch: 16,
            prompt_cache_bytes: 256 << 20,
            previews_per_second: 2.0,
            image_writers: 2,
        }
    }
}

impl Default for StorageConfig {
    fn default() -> Self {
        Self {
            data_dir: PathBuf::from("darkroom-data"),
            database_url: None,
            images_url: None,
            s3_endpoint: None,
            keep_seconds: 0,
            keep_bytes: 0,
            min_free_bytes: 64 << 20,
        }
    }
}

impl Default for OutboundConfig {
    fn default() -> Self {
        Self {
            allow_networks: Vec::new(),
            webhook_secret: None,
            webhook_attempts: 8,
            timeout: 15.0,
            max_redirects: 3,
        }
    }
}
