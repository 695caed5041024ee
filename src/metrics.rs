//! What the server counts, in Prometheus' words. One value of [`Metrics`] is shared by the engine, the service and
//! the HTTP layer; `/metrics` prints it. The dashboard under `deploy/` reads these names.

use std::fmt::Write as _;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Registry, Unit};

macro_rules! labels {
    ($(#[$doc:meta])* $name:ident { $($field:ident: $type:ty),+ }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
        #[allow(missing_docs, reason = "label names say what they are")]
        pub struct $name { $(pub $field: $type),+ }
    };
}

labels!(/** By priority. */ ByPriority { priority: &'static str });
labels!(/** By model. */ ByModel { model: String });
labels!(/** By stage: encode, prepare, step, decode, write. */ ByStage { stage: &'static str });
labels!(/** Pictures: completed, failed, cancelled, cached. */ ByOutcome { model: String, outcome: &'static str });
labels!(/** Tasks. */ ByStatus { kind: &'static str, status: &'static str });
labels!(/** By cache: prompt, bank, workflow. */ ByCache { cache: &'static str });
labels!(/** Of samples with LoRAs: adapters, merged. */ ByWay { way: &'static str });
labels!(/** Of rows of step batches: whole, shallow, controlnet. */ ByPass { pass: &'static str });
labels!(/** By device. */ ByDevice { device: String });
labels!(/** HTTP requests. */ ByRequest { method: String, route: String, status: u16 });
labels!(/** By route. */ ByRoute { route: String });
labels!(/** By reason: queue_full, rate_limit, … */ ByReason { reason: &'static str });
labels!(/** ComfyUI's prompts: succeeded, failed, interrupted, deleted, refused. */ ByEnd { outcome: &'static str });
labels!(/** By class of a node. */ ByNode { class: String });
labels!(/** Deliveries: delivered, failed, given_up. */ ByDelivery { outcome: &'static str });

/// A histogram that knows how to start.
type Timed<L> = Family<L, Histogram, fn() -> Histogram>;

/// Everything that is counted.
#[derive(Debug)]
#[allow(missing_docs, reason = "each is described where it is registered, in the text that /metrics shows")]
pub struct Metrics {
    registry: Registry,
    pub queue_tasks: Family<ByPriority, Gauge>,
    pub queue_wait: Timed<ByPriority>,
    pub step_batch_size: Histogram,
    pub step_time: Timed<ByModel>,
    pub stage_time: Timed<ByStage>,
    pub images: Family<ByOutcome, Counter>,
    pub tasks: Family<ByStatus, Counter>,
    pub cache_hits: Family<ByCache, Counter>,
    pub cache_misses: Family<ByCache, Counter>,
    pub resident_bytes: Family<ByDevice, Gauge>,
    pub lora_steps: Family<ByWay, Counter>,
    pub step_rows: Family<ByPass, Counter>,
    pub evictions: Counter,
    pub model_loads: Family<ByModel, Counter>,
    pub http_requests: Family<ByRequest, Counter>,
    pub http_time: Timed<ByRoute>,
    pub refusals: Family<ByReason, Counter>,
    pub webhook_deliveries: Family<ByDelivery, Counter>,
    pub streams: Gauge,
    pub comfy_prompts: Family<ByEnd, Counter>,
    pub comfy_waiting: Gauge,
    pub comfy_running: Gauge,
    pub comfy_sockets: Gauge,
    pub comfy_cache_bytes: Gauge,
    pub comfy_upstream_prompts: Counter,
    pub comfy_missing_nodes: Family<ByNode, Counter>,
    /// Sum and number of step-batch sizes, for those who want the mean without a Prometheus.
    pub step_batches: AtomicU64,
    pub stepped_samples: AtomicU64,
}

fn seconds() -> Histogram {
    Histogram::new(exponential_buckets(0.0005, 2.0, 20))
}

impl Default for Metrics {
    fn default() -> Self {
        let new = || seconds as fn() -> Histogram;
        let mut metrics = Self {
            registry: Registry::with_prefix("darkroom"),
            queue_tasks: Family::default(),
            queue_wait: Family::new_with_constructor(new()),
            step_batch_size: Histogram::new([1.0, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0, 16.0, 24.0, 32.0, 64.0]),
            step_time: Family::new_with_constructor(new()),
            stage_time: Family::new_with_constructor(new()),
            images: Family::default(),
            tasks: Family::default(),
            cache_hits: Family::default(),
            cache_misses: Family::default(),
            resident_bytes: Family::default(),
            lora_steps: Family::default(),
            step_rows: Family::default(),
            evictions: Counter::default(),
            model_loads: Family::default(),
            http_requests: Family::default(),
            http_time: Family::new_with_constructor(new()),
            refusals: Family::default(),
            webhook_deliveries: Family::default(),
            streams: Gauge::default(),
            comfy_prompts: Family::default(),
            comfy_waiting: Gauge::default(),
            comfy_running: Gauge::default(),
            comfy_sockets: Gauge::default(),
            comfy_cache_bytes: Gauge::default(),
            comfy_upstream_prompts: Counter::default(),
            comfy_missing_nodes: Family::default(),
            step_batches: AtomicU64::new(0),
            stepped_samples: AtomicU64::new(0),
        };
        metrics.register();
        metrics
    }
}

impl Metrics {
    fn register(&mut self) {
        let r = &mut self.registry;
        r.register("queue_tasks", "Unfinished tasks that have not started", self.queue_tasks.clone());
        r.register_with_unit(
            "queue_wait",
            "From submission to first step",
            Unit::Seconds,
            self.queue_wait.clone(),
        );
        r.register("step_batch_size", "Pictures in a step batch", self.step_batch_size.clone());
        r.register_with_unit("step", "One network call", Unit::Seconds, self.step_time.clone());
        r.register_with_unit("stage", "One call of a stage", Unit::Seconds, self.stage_time.clone());
        r.register("images", "Pictures that ended", self.images.clone());
        r.register("tasks", "Tasks that ended", self.tasks.clone());
        r.register("cache_hits", "Found in a cache", self.cache_hits.clone());
        r.register("cache_misses", "Not found in a cache", self.cache_misses.clone());
        r.register("resident_bytes", "Weights on a device", self.resident_bytes.clone());
        r.register("lora_steps", "Steps of pictures with LoRAs", self.lora_steps.clone());
        r.register("step_rows", "Rows that went through networks in steps", self.step_rows.clone());
        r.register("evictions", "Models put out for room", self.evictions.clone());
        r.register("model_loads", "Models loaded", self.model_loads.clone());
        r.register("http_requests", "Requests answered", self.http_requests.clone());
        r.register_with_unit("http_request", "Time to answer", Unit::Seconds, self.http_time.clone());
        r.register("refusals", "Requests refused for a limit", self.refusals.clone());
        r.register("webhook_deliveries", "Webhook deliveries tried", self.webhook_deliveries.clone());
        r.register("streams", "Open WebSockets and event streams", self.streams.clone());
        r.register("comfy_prompts", "ComfyUI's prompts that ended", self.comfy_prompts.clone());
        r.register("comfy_waiting", "ComfyUI's prompts that wait", self.comfy_waiting.clone());
        r.register("comfy_running", "ComfyUI's prompts that run", self.comfy_running.clone());
        r.register("comfy_sockets", "Open WebSockets of ComfyUI's clients", self.comfy_sockets.clone());
        r.register("comfy_cache_bytes", "Outputs of nodes that are kept", self.comfy_cache_bytes.clone());
        let help = "Prompts that went to the ComfyUI behind this server";
        r.register("comfy_upstream_prompts", help, self.comfy_upstream_prompts.clone());
        let help = "Prompts with a node that Darkroom lacks, by its class";
        r.register("comfy_missing_nodes", help, self.comfy_missing_nodes.clone());
    }

    /// A stage took so long.
    pub fn stage(&self, stage: &'static str, time: Duration) {
        self.stage_time.get_or_create(&ByStage { stage }).observe(time.as_secs_f64());
    }

    /// All of it in OpenMetrics' text format, `application/openmetrics-text; version=1.0.0; charset=utf-8`.
    pub fn text(&self) -> String {
        let mut text = String::new();
        if encode(&mut text, &self.registry).is_err() {
            let _ = write!(text, "# EOF");
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_counted_is_in_the_text_under_its_full_name() {
        let metrics = Metrics::default();
        metrics.images.get_or_create(&ByOutcome { model: "m".into(), outcome: "completed" }).inc();
        metrics.stage("decode", Duration::from_millis(3));
        let text = metrics.text();
        assert!(text.contains("darkroom_images_total{model=\"m\",outcome=\"completed\"} 1"), "{text}");
        assert!(text.contains("darkroom_stage_seconds_count{stage=\"decode\"} 1"), "{text}");
        assert!(text.ends_with("# EOF\n"), "{text}");
    }
}
