//! AUTOMATIC1111's `parameters`: the prompt with its LoRAs, the negative prompt, and one line of settings. ControlNets
//! are written as its extension sd-webui-controlnet writes them; what neither has a word for gets one of ours.

use std::fmt::Write as _;

use darkroom_pipelines::{FlowShift, GuidanceInterval, Speed, StepCache};
use serde_json::Value;

use super::{Origin, Recipe, RecipeControl, RecipeLora};
use crate::task::{Background, DetailPlaces, DetailSpec, Preprocess};

impl Recipe {
    /// AUTOMATIC1111's text: the prompt, the negative prompt if any, and one line of settings.
    pub fn parameters(&self) -> String {
        let mut text = self.prompt.clone();
        for lora in &self.loras {
            if !text.is_empty() {
                text.push(' ');
            }
            text.push_str(&tag(lora));
        }
        if !self.negative_prompt.is_empty() {
            let _ = write!(text, "\nNegative prompt: {}", self.negative_prompt);
        }
        let _ = write!(
            text,
            "\nSteps: {}, Sampler: {}, Schedule type: {}, CFG scale: {}, Seed: {}, Size: {}x{}, Model: {}",
            self.steps,
            a1111_sampler(&self.sampler),
            a1111_scheduler(&self.scheduler),
            self.cfg,
            self.seed,
            self.width,
            self.height,
            quoted(title(&self.model)),
        );
        if self.denoise < 1.0 {
            let _ = write!(text, ", Denoising strength: {}", self.denoise);
        }
        if let Some(skip) = self.clip_skip {
            let _ = write!(text, ", Clip skip: {skip}");
        }
        match self.flow.as_ref().map(|flow| flow.shift) {
            None => {}
            Some(FlowShift::Fixed(shift)) => {
                let _ = write!(text, ", Shift: {shift}");
            }
            Some(FlowShift::Dynamic) => text.push_str(", Shift: dynamic"),
        }
        if !self.computed.is_full() {
            let _ = write!(text, ", Precision: {}", self.computed);
        }
        if let Origin::Inpaint { fill_grow, .. } = self.origin {
            let content = if fill_grow.is_some() { "fill" } else { "original" };
            let _ = write!(text, ", Masked content: {content}");
        }
        for (index, control) in self.controls.iter().enumerate() {
            let _ = write!(text, ", ControlNet {index}: {}", quoted(&unit(control)));
        }
        text.push_str(&speed_text(&self.speed));
        if let Some(detail) = &self.detail {
            let _ = write!(text, ", Detail: {}", quoted(&detail_text(detail)));
        }
        match &self.background {
            Background::Keep => {}
            Background::Key => text.push_str(", Background: keyed out"),
            Background::Remove { remover } => {
                let _ = write!(text, ", Background: {}", quoted(&format!("removed by {remover}")));
            }
        }
        let _ = write!(text, ", Version: darkroom {}", env!("CARGO_PKG_VERSION"));
        text
    }
}

/// A LoRA as prompts name it there: with one strength, or with the text encoders' and then the network's.
fn tag(lora: &RecipeLora) -> String {
    let RecipeLora { file, strength, text_strength } = lora;
    if strength == text_strength {
        format!("<lora:{}:{strength}>", title(file))
    } else {
        format!("<lora:{}:{text_strength}:{strength}>", title(file))
    }
}

/// A ControlNet in the extension's fields, in their order there; those left out have its defaults. Its `canny` is
/// OpenCV's, whose thresholds on 8-bit grey are 255 times those of ComfyUI's node.
fn unit(control: &RecipeControl) -> String {
    let (module, thresholds) = match control.preprocess {
        Preprocess::None => ("none", None),
        Preprocess::Canny { low, high } => ("canny", Some((255.0 * low, 255.0 * high))),
        Preprocess::OpencvCanny { low, high } => ("canny", Some((low, high))),
        Preprocess::Depth => ("depth_anything_v2", None),
    };
    let model = title(&control.file);
    let mut text = format!(
        "Module: {module}, Model: {model}, Weight: {}, Resize Mode: Crop and Resize",
        control.strength
    );
    if let Some((low, high)) = thresholds {
        let hundredths = |value: f64| (100.0 * value).round() / 100.0;
        let _ = write!(text, ", Threshold A: {}, Threshold B: {}", hundredths(low), hundredths(high));
    }
    let _ = write!(text, ", Guidance Start: {}, Guidance End: {}", control.start, control.end);
    if control.preprocess != Preprocess::None {
        text.push_str(", Pixel Perfect: True");
    }
    text.push_str(", Control Mode: Balanced");
    text
}

/// What was given up, and nothing where nothing was.
fn speed_text(speed: &Speed) -> String {
    let mut text = String::new();
    let Speed { guidance_interval, step_cache } = speed.effective();
    if let Some(GuidanceInterval { start, end }) = guidance_interval {
        let _ = write!(text, ", Guidance interval: {start}-{end}");
    }
    if let Some(StepCache { cache_interval: interval, cache_branch_id }) = step_cache {
        let _ = write!(text, ", DeepCache interval: {interval}");
        if let Some(branch) = cache_branch_id {
            let _ = write!(text, ", DeepCache branch: {branch}");
        }
    }
    text
}

fn detail_text(detail: &DetailSpec) -> String {
    let mut text = match &detail.places {
        DetailPlaces::Detected { detector, confidence } => {
            format!("Detector: {detector}, Confidence: {confidence}")
        }
        DetailPlaces::Boxes { boxes } => {
            let boxes =
                boxes.iter().map(|[left, top, right, bottom]| format!("{left} {top} {right} {bottom}"));
            format!("Boxes: {}", boxes.collect::<Vec<_>>().join("; "))
        }
    };
    let _ = write!(text, ", Denoising strength: {}", detail.denoise);
    if let Some(size) = detail.size {
        let _ = write!(text, ", Size: {size}");
    }
    let _ = write!(text, ", Crop factor: {}, Feather: {}", detail.crop_factor, detail.feather);
    text
}

/// A file name without its folder and extension, as AUTOMATIC1111 shows it.
fn title(file: &str) -> &str {
    let name = file.rsplit(['/', '\\']).next().unwrap_or(file);
    name.strip_suffix(".safetensors").unwrap_or(name)
}

/// A value that would be cut by AUTOMATIC1111's reader is quoted as JSON.
fn quoted(text: &str) -> String {
    if text.contains([',', ':', '\n']) { Value::from(text).to_string() } else { text.to_owned() }
}

/// AUTOMATIC1111's name of a sampler; samplers that it does not have keep ComfyUI's.
fn a1111_sampler(name: &str) -> &str {
    match name {
        "euler" => "Euler",
        "euler_ancestral" => "Euler a",
        "heun" => "Heun",
        "dpm_2" => "DPM2",
        "dpm_2_ancestral" => "DPM2 a",
        "lms" => "LMS",
        "dpmpp_2s_ancestral" => "DPM++ 2S a",
        "dpmpp_sde" => "DPM++ SDE",
        "dpmpp_2m" => "DPM++ 2M",
        "dpmpp_2m_sde" => "DPM++ 2M SDE",
        "dpmpp_3m_sde" => "DPM++ 3M SDE",
        "lcm" => "LCM",
        "ddim" => "DDIM",
        "uni_pc" => "UniPC",
        other => other,
    }
}

fn a1111_scheduler(name: &str) -> &str {
    match name {
        "normal" => "Normal",
        "karras" => "Karras",
        "exponential" => "Exponential",
        "sgm_uniform" => "SGM Uniform",
        "simple" => "Simple",
        "ddim_uniform" => "DDIM",
        "beta" => "Beta",
        "kl_optimal" => "KL Optimal",
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use darkroom_models::Computed;

    use super::super::tests::{control, lora, recipe};
    use super::*;

    #[test]
    fn parameters_read_as_automatic1111_writes_them() {
        assert_eq!(
            recipe(Origin::Empty).parameters(),
            format!(
                "1girl, (smile:1.2)\nNegative prompt: blurry\nSteps: 20, Sampler: DPM++ 2M, \
                 Schedule type: Karras, CFG scale: 7, Seed: 18446744073709551615, Size: 512x768, \
                 Model: base, Version: darkroom {}",
                env!("CARGO_PKG_VERSION")
            )
        );
    }

    #[test]
    fn optional_settings_appear_only_when_they_matter() {
        let mut recipe = recipe(Origin::Image { image: "a.png".into(), scaled: false });
        recipe.negative_prompt.clear();
        recipe.denoise = 0.55;
        assert!(!recipe.parameters().contains("Precision"));
        recipe.clip_skip = Some(2);
        recipe.computed = Computed::Bf16;
        recipe.cfg = 7.5;
        recipe.model = "a, b".into();
        let text = recipe.parameters();
        assert!(!text.contains("Negative prompt"));
        for part in [
            "Denoising strength: 0.55",
            "Clip skip: 2",
            "Precision: bf16",
            "CFG scale: 7.5",
            "Model: \"a, b\"",
        ] {
            assert!(text.contains(part), "{part} not in {text}");
        }
    }

    #[test]
    fn what_was_given_up_for_speed_is_said_and_what_was_not_is_not() {
        let mut recipe = recipe(Origin::Empty);
        let exact = recipe.parameters();
        let interval = |start, end| Some(GuidanceInterval { start, end });
        let cache = |cache_interval, cache_branch_id| Some(StepCache { cache_interval, cache_branch_id });
        recipe.speed = Speed { guidance_interval: interval(0.0, 1.0), step_cache: cache(1, Some(2)) };
        assert_eq!(recipe.parameters(), exact);
        recipe.speed = Speed { guidance_interval: interval(0.1, 0.8), step_cache: cache(3, None) };
        assert!(recipe.parameters().contains(", Guidance interval: 0.1-0.8, DeepCache interval: 3, Version"));
        recipe.speed = Speed { guidance_interval: None, step_cache: cache(2, Some(0)) };
        assert!(recipe.parameters().contains(", DeepCache interval: 2, DeepCache branch: 0, Version"));
    }

    #[test]
    fn loras_stand_in_the_prompt_with_one_strength_or_with_both() {
        let mut recipe = recipe(Origin::Empty);
        recipe.loras = vec![lora("chars/rin.safetensors", 0.8, 0.8), lora("ink", 1.0, -0.5)];
        let text = recipe.parameters();
        assert!(text.starts_with("1girl, (smile:1.2) <lora:rin:0.8> <lora:ink:-0.5:1>\nNegative"), "{text}");
        recipe.prompt.clear();
        assert!(recipe.parameters().starts_with("<lora:rin:0.8> <lora:ink"), "{}", recipe.parameters());
    }

    #[test]
    fn controls_read_as_the_extension_writes_them() {
        let mut recipe = recipe(Origin::Empty);
        recipe.controls = vec![
            control("sdxl/canny.safetensors", Preprocess::OpencvCanny { low: 100.0, high: 200.0 }),
            control("canny", Preprocess::Canny { low: 0.4, high: 0.55 }),
            control("pose", Preprocess::None),
            control("depth", Preprocess::Depth),
        ];
        let text = recipe.parameters();
        for part in [
            ", ControlNet 0: \"Module: canny, Model: canny, Weight: 0.8, Resize Mode: Crop and Resize, \
             Threshold A: 100, Threshold B: 200, Guidance Start: 0, Guidance End: 0.75, Pixel Perfect: True, \
             Control Mode: Balanced\", ",
            ", ControlNet 1: \"Module: canny, Model: canny, Weight: 0.8, Resize Mode: Crop and Resize, \
             Threshold A: 102, Threshold B: 140.25, ",
            ", ControlNet 2: \"Module: none, Model: pose, Weight: 0.8, Resize Mode: Crop and Resize, \
             Guidance Start: 0, Guidance End: 0.75, Control Mode: Balanced\", ",
            ", ControlNet 3: \"Module: depth_anything_v2, Model: depth, ",
        ] {
            assert!(text.contains(part), "{part} not in {text}");
        }
    }

    #[test]
    fn detail_and_background_are_said_where_there_is_something_to_say() {
        let mut recipe = recipe(Origin::Empty);
        let text = recipe.parameters();
        assert!(!text.contains("Detail") && !text.contains("Background"), "{text}");
        let places = DetailPlaces::Detected { detector: "face".into(), confidence: 0.5 };
        let detail = DetailSpec { places, denoise: 0.4, size: Some(768), crop_factor: 2.5, feather: 8 };
        recipe.detail = Some(detail.clone());
        recipe.background = Background::Key;
        let text = recipe.parameters();
        let said = ", Detail: \"Detector: face, Confidence: 0.5, Denoising strength: 0.4, Size: 768, \
                    Crop factor: 2.5, Feather: 8\", Background: keyed out, Version: ";
        assert!(text.contains(said), "{text}");
        let places = DetailPlaces::Boxes { boxes: vec![[0.1, 0.2, 0.3, 0.4], [0.5, 0.5, 1.0, 1.0]] };
        recipe.detail = Some(DetailSpec { places, size: None, ..detail });
        recipe.background = Background::Remove { remover: "rmbg: 1.4".into() };
        let text = recipe.parameters();
        let said = ", Detail: \"Boxes: 0.1 0.2 0.3 0.4; 0.5 0.5 1 1, Denoising strength: 0.4, Crop factor: 2.5, \
                    Feather: 8\", Background: \"removed by rmbg: 1.4\", Version: ";
        assert!(text.contains(said), "{text}");
    }
}
