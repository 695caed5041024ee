//! How packs are drawn with models that people use, where a request says nothing: the settings of the gateways' own
//! workflows. Small models (the built-in one) keep their own.

use crate::http::words::join;
use crate::service::ModelDefaults;

/// Models made for at least this side, pixels, are drawn by the recipe.
const LEAST_SIDE: usize = 512;
/// Models made for at least this side take the recipe's size.
const LARGE_SIDE: usize = 1024;
/// What every pack stays away from.
const NEGATIVE: &str = "blurry, low quality, worst quality, deformed";

/// How one sort of pack is drawn.
#[derive(Debug, Clone, Copy)]
pub(super) struct Recipe {
    /// Sampling steps.
    pub(super) steps: usize,
    /// Width and height with large models; `None`: the model's own.
    pub(super) size: Option<(usize, usize)>,
}

impl Recipe {
    /// The model's settings with the recipe's in their place.
    pub(super) fn tune(self, defaults: ModelDefaults) -> ModelDefaults {
        let side = defaults.width.max(defaults.height);
        if side < LEAST_SIDE {
            return defaults;
        }
        let own = (defaults.width, defaults.height);
        let (width, height) = self.size.filter(|_| side >= LARGE_SIDE).unwrap_or(own);
        ModelDefaults {
            width,
            height,
            steps: self.steps,
            cfg: 7.5,
            sampler: "dpmpp_2m".into(),
            scheduler: "karras".into(),
            negative_prompt: join(&[&defaults.negative_prompt, NEGATIVE]),
            ..defaults
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::rules::testing::defaults;

    #[test]
    fn large_models_are_drawn_by_the_recipe_and_small_ones_as_they_are() {
        let recipe = Recipe { steps: 35, size: Some((1024, 1536)) };
        assert_eq!(recipe.tune(defaults()), defaults());
        let large = recipe.tune(ModelDefaults { width: 1024, height: 1024, ..defaults() });
        assert_eq!((large.width, large.height, large.steps, large.cfg), (1024, 1536, 35, 7.5));
        assert!(large.negative_prompt.contains("deformed"));
        let middle = recipe.tune(ModelDefaults { width: 512, height: 512, ..defaults() });
        assert_eq!((middle.width, middle.height, middle.steps), (512, 512, 35));
    }
}
