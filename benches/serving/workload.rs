//! Requests as many clients would make them: no two alike, the same ones in every run.

use serde_json::{Value, json};

const PROMPTS: [&str; 8] = [
    "1girl, blonde hair, long hair, blue eyes, red shirt, blue background",
    "1boy, black hair, short hair, brown eyes, angry, white background",
    "1girl, (pink hair:1.2), twintails, gentle smile, white shirt",
    "no humans, scenery, beach, ocean",
    "1girl, red hair, medium hair, blue eyes, surprised, hat",
    "1boy, brown hair, sad, green shirt, grey background",
    "no humans, scenery, forest, trees",
    "1girl, white hair, cat ears, red eyes, smirk, purple background",
];
const SAMPLERS: [&str; 6] = ["dpmpp_2m", "euler", "euler_ancestral", "dpmpp_2m_sde", "uni_pc", "heun"];
const SCHEDULERS: [&str; 3] = ["karras", "normal", "exponential"];
const CFG: [f64; 4] = [5.0, 1.0, 7.5, 3.0];
const SIDES: [usize; 3] = [64, 96, 128];

/// Request number `index` of a mixed load: 4 to 20 steps, three sizes, six samplers, with and without guidance.
pub(crate) fn mixed(index: usize) -> Value {
    json!({
        "prompt": PROMPTS[index % PROMPTS.len()],
        "negative_prompt": if index.is_multiple_of(3) { "hat" } else { "" },
        "width": SIDES[index % SIDES.len()],
        "height": SIDES[index % SIDES.len()],
        "steps": 4 + index * 7 % 17,
        "cfg": CFG[index / 2 % CFG.len()],
        "sampler": SAMPLERS[index / 3 % SAMPLERS.len()],
        "scheduler": SCHEDULERS[index / 5 % SCHEDULERS.len()],
        "seed": 1000 + index,
    })
}

/// The model's own size and settings.
pub(crate) fn ordinary(index: usize, priority: &str) -> Value {
    json!({
        "prompt": PROMPTS[index % PROMPTS.len()],
        "width": 128, "height": 128, "steps": 20, "seed": index, "priority": priority,
    })
}

/// As little network as a picture can take: one step without guidance of the smallest size.
pub(crate) fn tiny(index: usize) -> Value {
    json!({
        "prompt": "1girl", "width": 16, "height": 16, "steps": 1, "cfg": 1.0, "sampler": "euler", "seed": index,
    })
}
