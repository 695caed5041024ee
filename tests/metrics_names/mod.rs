//! The metrics that operators rely on: the dashboard asks for them, and the server must show them.

/// A metric's name as it is scraped, whether it is a histogram, and its labels.
pub(crate) type Metric = (&'static str, bool, &'static [&'static str]);

/// Everything at `/metrics`.
pub(crate) const METRICS: [Metric; 23] = [
    ("darkroom_queue_tasks", false, &["priority"]),
    ("darkroom_queue_wait_seconds", true, &["priority"]),
    ("darkroom_step_batch_size", true, &[]),
    ("darkroom_step_seconds", true, &["model"]),
    ("darkroom_stage_seconds", true, &["stage"]),
    ("darkroom_images_total", false, &["model", "outcome"]),
    ("darkroom_tasks_total", false, &["kind", "status"]),
    ("darkroom_cache_hits_total", false, &["cache"]),
    ("darkroom_cache_misses_total", false, &["cache"]),
    ("darkroom_resident_bytes", false, &["device"]),
    ("darkroom_evictions_total", false, &[]),
    ("darkroom_model_loads_total", false, &["model"]),
    ("darkroom_http_requests_total", false, &["method", "route", "status"]),
    ("darkroom_http_request_seconds", true, &["route"]),
    ("darkroom_refusals_total", false, &["reason"]),
    ("darkroom_webhook_deliveries_total", false, &["outcome"]),
    ("darkroom_streams", false, &[]),
    ("darkroom_comfy_prompts_total", false, &["outcome"]),
    ("darkroom_comfy_waiting", false, &[]),
    ("darkroom_comfy_running", false, &[]),
    ("darkroom_comfy_sockets", false, &[]),
    ("darkroom_comfy_cache_bytes", false, &[]),
    ("darkroom_comfy_upstream_prompts_total", false, &[]),
];
