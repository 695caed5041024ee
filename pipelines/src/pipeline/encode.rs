//! Prompts through the text encoders, each distinct one once.

use std::collections::HashMap;
use std::sync::Arc;

use darkroom_models::adapter::NetworkAdapter;
use darkroom_models::checkpoint::Part;
use darkroom_models::clip::{ClipTextEncoder, HiddenLayer};
use darkroom_models::qwen_vl::{QwenVlTextEncoder, prompt_ids};
use darkroom_models::tokenizer::QwenTokenizer;

use super::text::{self, Side};
use super::{Pipeline, PromptText, RequestPrompts, WantedPrompt};
use crate::PipelineError;
use crate::conditioning::{self, Conditioning};
use crate::lora::LoraSet;
use crate::prompt;
use crate::request::ImageRequest;
use crate::text_encoders::TextEncoders;

/// Most prompts that go through the language model in one call: each is padded to the longest.
const QWEN_ROWS_A_CALL: usize = 8;

impl Pipeline {
    /// The prompts that a request needs encoded. The negative one is left out where guidance would not use it.
    pub fn prompts(&self, request: &ImageRequest) -> RequestPrompts {
        let layer = self.hidden_layer(request.clip_skip);
        let guided = request.cfg != 1.0 || request.sampler.needs_uncond();
        let loras = request.loras.as_ref().filter(|set| set.changes_text()).map(|set| set.name().clone());
        let prompt = |text: &str| PromptText { layer, loras: loras.clone(), text: text.to_owned() };
        RequestPrompts {
            positive: prompt(&request.prompt),
            negative: guided.then(|| prompt(&request.negative_prompt)),
        }
    }

    /// Positive and negative conditioning of each request, every distinct prompt encoded once.
    pub fn encode(
        &self,
        requests: &[ImageRequest],
    ) -> Result<Vec<(Conditioning, Option<Conditioning>)>, PipelineError> {
        let wanted: Vec<RequestPrompts> = requests.iter().map(|request| self.prompts(request)).collect();
        let mut distinct: Vec<WantedPrompt<'_>> = Vec::new();
        for (request, prompts) in requests.iter().zip(&wanted) {
            for (field, prompt) in prompts.fields() {
                if !distinct.iter().any(|known| known.prompt == prompt) {
                    distinct.push(WantedPrompt { field, prompt, loras: request.loras.as_ref() });
                }
            }
        }
        let encoded = self.encode_prompts(&distinct)?;
        let encoded: HashMap<&PromptText, Conditioning> =
            distinct.iter().map(|wanted| wanted.prompt).zip(encoded).collect();
        let find = |prompt: &PromptText| encoded.get(prompt).cloned();
        Ok(wanted
            .iter()
            .filter_map(|prompts| Some((find(&prompts.positive)?, prompts.negative.as_ref().and_then(find))))
            .collect())
    }

    /// Encodes prompts together, in their order: those of one hidden layer and one set of LoRAs in one call.
    pub fn encode_prompts(&self, prompts: &[WantedPrompt<'_>]) -> Result<Vec<Conditioning>, PipelineError> {
        let way = |wanted: &WantedPrompt<'_>| (wanted.prompt.layer, wanted.prompt.loras.clone());
        let mut ways: Vec<(HiddenLayer, Option<Arc<str>>)> = Vec::new();
        for wanted in prompts {
            if !ways.contains(&way(wanted)) {
                ways.push(way(wanted));
            }
        }
        let mut encoded: Vec<(usize, Conditioning)> = Vec::with_capacity(prompts.len());
        for (layer, name) in ways {
            let alike = || {
                prompts.iter().enumerate().filter(|(_, w)| w.prompt.layer == layer && w.prompt.loras == name)
            };
            let loras = match &name {
                None => None,
                Some(name) => {
                    let named = alike().find_map(|(_, w)| w.loras.filter(|set| set.name() == name));
                    Some(named.ok_or_else(|| PipelineError::Request {
                        field: "loras",
                        message: "were not given with the prompt".into(),
                    })?)
                }
            };
            let texts: Vec<_> = alike().map(|(_, w)| (w.field, w.prompt.text.as_str())).collect();
            let indices = alike().map(|(index, _)| index);
            encoded.extend(indices.zip(self.encode_texts(&texts, layer, loras)?));
        }
        encoded.sort_unstable_by_key(|(index, _)| *index);
        Ok(encoded.into_iter().map(|(_, conditioning)| conditioning).collect())
    }

    fn encode_texts(
        &self,
        texts: &[(&'static str, &str)],
        layer: HiddenLayer,
        loras: Option<&Arc<LoraSet>>,
    ) -> Result<Vec<Conditioning>, PipelineError> {
        match &self.text {
            TextEncoders::Clip { clip_l, clip_g, .. } => {
                let clip_l = clip_l.as_ref().ok_or_else(|| self.missing(Part::ClipL))?;
                self.encode_by_clip(texts, layer, loras, clip_l, clip_g.as_deref())
            }
            TextEncoders::QwenVl { tokenizer, encoder } => {
                let encoder = encoder.as_ref().ok_or_else(|| self.missing(Part::QwenVl))?;
                let tokenizer = tokenizer
                    .as_deref()
                    .ok_or_else(|| PipelineError::NoTokenizer { origin: self.origin.to_string() })?;
                self.encode_by_qwen_vl(texts, tokenizer, encoder)
            }
        }
    }

    fn encode_by_clip(
        &self,
        texts: &[(&'static str, &str)],
        layer: HiddenLayer,
        loras: Option<&Arc<LoraSet>>,
        clip_l: &ClipTextEncoder,
        clip_g: Option<&ClipTextEncoder>,
    ) -> Result<Vec<Conditioning>, PipelineError> {
        let parsed = texts
            .iter()
            .map(|(field, text)| Ok((*field, text::parse(field, text, &self.limits.prompt)?)))
            .collect::<Result<Vec<_>, PipelineError>>()?;
        let run = |encoder: &ClipTextEncoder, side: Side, adapter: Option<&Arc<NetworkAdapter>>| {
            let chunks = parsed
                .iter()
                .map(|(field, segments)| self.rows((field, segments), encoder, side))
                .collect::<Result<Vec<_>, _>>()?;
            conditioning::encode_prompts(encoder, &chunks, layer, adapter)
        };
        // Where the text encoders are elsewhere, what they gave comes to the UNet.
        let here = |conditioning: Conditioning| Ok(conditioning.on(&self.device)?);
        let l = run(clip_l, Side::L, loras.map(|set| &set.clip_l))?;
        match clip_g {
            None => {
                l.into_iter().map(|l| Conditioning { context: l.hidden, pooled: None }).map(here).collect()
            }
            Some(clip_g) => {
                let g = run(clip_g, Side::G, loras.map(|set| &set.clip_g))?;
                l.iter().zip(&g).map(|(l, g)| here(conditioning::join(l, g)?)).collect()
            }
        }
    }

    /// Prompts in the template that Qwen-Image was trained with, of which only what follows its beginning counts. Weights
    /// and embeddings mean nothing here: the language model reads parentheses as parentheses.
    fn encode_by_qwen_vl(
        &self,
        texts: &[(&'static str, &str)],
        tokenizer: &QwenTokenizer,
        encoder: &QwenVlTextEncoder,
    ) -> Result<Vec<Conditioning>, PipelineError> {
        let mut prompts = Vec::with_capacity(texts.len());
        for (field, text) in texts {
            prompt::check_length(text, &self.limits.prompt)
                .map_err(|source| PipelineError::Prompt { field, source })?;
            let most = self.limits.qwen_tokens;
            let prompt = prompt_ids(tokenizer, text, most)
                .map_err(|error| PipelineError::Request { field, message: error.to_string() })?;
            prompts.push(prompt);
        }
        let mut encoded = Vec::with_capacity(prompts.len());
        for call in prompts.chunks(QWEN_ROWS_A_CALL) {
            let rows: Vec<Vec<u32>> = call.iter().map(|prompt| prompt.ids.clone()).collect();
            let hidden = encoder.encode(&rows)?;
            for (row, prompt) in call.iter().enumerate() {
                let context = hidden.get(row)?.narrow(0, prompt.drop, prompt.ids.len() - prompt.drop)?;
                // A copy: a view would hold all rows.
                let context = context.force_contiguous()?;
                encoded.push(Conditioning { context, pooled: None }.on(&self.device)?);
            }
        }
        Ok(encoded)
    }

    /// SDXL takes the penultimate layer as it is; SD 1.5 the last, normalised. Qwen-Image has no choice.
    pub(super) fn hidden_layer(&self, clip_skip: Option<usize>) -> HiddenLayer {
        match (&self.text, clip_skip) {
            (TextEncoders::QwenVl { .. }, _) => HiddenLayer::Final,
            (TextEncoders::Clip { clip_g: Some(_), .. }, skip) => HiddenLayer::Skip(skip.unwrap_or(2)),
            (_, Some(skip)) => HiddenLayer::SkipNormed(skip),
            (_, None) => HiddenLayer::Final,
        }
    }
}
