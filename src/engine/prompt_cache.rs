//! Encoded prompts, kept between tasks under a budget of bytes; the least recently used go first. A pack's pictures
//! share their negative prompt, a gateway's its quality tags: most prompts are encoded once.

use std::sync::Arc;

use darkroom_pipelines::{Conditioning, PromptText};
use lru::LruCache;

/// One device's cache.
pub(super) struct PromptCache {
    entries: LruCache<(Arc<str>, PromptText), Conditioning>,
    bytes: usize,
    budget: usize,
}

impl PromptCache {
    /// An empty cache of at most `budget` bytes.
    pub(super) fn new(budget: usize) -> Self {
        Self { entries: LruCache::unbounded(), bytes: 0, budget }
    }

    /// What `model` makes of a prompt, if it is known.
    pub(super) fn get(&mut self, model: &Arc<str>, prompt: &PromptText) -> Option<Conditioning> {
        self.entries.get(&(Arc::clone(model), prompt.clone())).cloned()
    }

    /// Keeps what `model` makes of a prompt.
    pub(super) fn put(&mut self, model: &Arc<str>, prompt: &PromptText, conditioning: &Conditioning) {
        let size = bytes_of(conditioning);
        // The files of embeddings may change under their names.
        if size > self.budget || prompt.names_embeddings() {
            return;
        }
        let old = self.entries.put((Arc::clone(model), prompt.clone()), conditioning.clone());
        self.bytes = self.bytes + size - old.as_ref().map_or(0, bytes_of);
        while self.bytes > self.budget
            && let Some((_, dropped)) = self.entries.pop_lru()
        {
            self.bytes -= bytes_of(&dropped);
        }
    }

    /// Forgets a model's prompts: its weights may come back changed.
    pub(super) fn forget(&mut self, model: &str) {
        let gone: Vec<_> =
            self.entries.iter().map(|(key, _)| key).filter(|(known, _)| &**known == model).cloned().collect();
        for key in gone {
            self.bytes -= self.entries.pop(&key).as_ref().map_or(0, bytes_of);
        }
    }
}

fn bytes_of(conditioning: &Conditioning) -> usize {
    let pooled = conditioning.pooled.as_ref();
    [Some(&conditioning.context), pooled]
        .into_iter()
        .flatten()
        .map(|tensor| tensor.elem_count() * tensor.dtype().size_in_bytes())
        .sum()
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device, Tensor};
    use darkroom_pipelines::{ImageRequest, Pipeline, Source, Speed};

    use super::*;

    fn prompt(pipeline: &Pipeline, text: &str) -> PromptText {
        let request = ImageRequest {
            prompt: text.to_owned(),
            negative_prompt: String::new(),
            steps: 1,
            cfg: 1.0,
            sampler: "euler".parse().unwrap(),
            scheduler: "normal".parse().unwrap(),
            seed: 0,
            position: darkroom_pipelines::noise::BatchPosition::ALONE,
            denoise: 1.0,
            clip_skip: None,
            source: Source::Empty { width: 64, height: 64 },
            loras: None,
            controls: Vec::new(),
            speed: Speed::default(),
            shift: None,
        };
        pipeline.prompts(&request).positive
    }

    #[test]
    fn the_least_recently_used_goes_when_bytes_run_out_and_a_model_can_be_forgotten() {
        let checkpoint = crate::embedded::checkpoint(&Device::Cpu).unwrap();
        let pipeline = Pipeline::load(&checkpoint, &Device::Cpu).unwrap();
        let [a, b, c] = ["a", "b", "c"].map(|text| prompt(&pipeline, text));
        let conditioning = Conditioning {
            context: Tensor::zeros((10, 10), DType::F32, &Device::Cpu).unwrap(),
            pooled: None,
        };
        let (one, other): (Arc<str>, Arc<str>) = ("one".into(), "other".into());
        let mut cache = PromptCache::new(2 * 400 + 100);
        cache.put(&one, &a, &conditioning);
        cache.put(&one, &b, &conditioning);
        cache.put(&one, &b, &conditioning);
        assert!(cache.get(&one, &a).is_some());
        cache.put(&other, &c, &conditioning);
        assert!(cache.get(&one, &b).is_none(), "b was used longest ago");
        assert!(cache.get(&one, &a).is_some() && cache.get(&other, &c).is_some());
        assert!(cache.get(&one, &c).is_none(), "another model's prompt is another prompt");
        cache.forget("one");
        assert_eq!((cache.entries.len(), cache.bytes), (1, 400));
    }
}
