//! The blocks of a deep network, one after another: all of them held, or each read from its file when its turn comes and
//! given back after it, where memory holds no more than a few.

use std::fmt;
use std::sync::Arc;

use crate::weights::{Weights, WeightsError};

/// What makes a block of its weights.
type Load<B> = Arc<dyn Fn(&Weights) -> Result<B, WeightsError> + Send + Sync>;

/// Blocks of one kind under the names `0`, `1`, ….
#[derive(Clone)]
pub(crate) enum Blocks<B> {
    /// In memory.
    Held(Vec<B>),
    /// In their file.
    Streamed {
        /// Where each is.
        weights: Vec<Weights>,
        /// What makes it.
        load: Load<B>,
    },
}

impl<B> fmt::Debug for Blocks<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (how, count) = match self {
            Self::Held(blocks) => ("held", blocks.len()),
            Self::Streamed { weights, .. } => ("streamed", weights.len()),
        };
        write!(f, "{count} {how} blocks")
    }
}

impl<B> Blocks<B> {
    /// Takes `count` blocks from the scopes `0`, `1`, … of `weights`.
    ///
    /// # Errors
    /// What `load` says of one; of streamed blocks, of the first.
    pub(crate) fn load(
        weights: &Weights,
        count: usize,
        load: impl Fn(&Weights) -> Result<B, WeightsError> + Send + Sync + 'static,
    ) -> Result<Self, WeightsError> {
        if !weights.is_streamed() {
            let blocks = (0..count).map(|i| load(&weights.scope(i))).collect::<Result<_, _>>()?;
            return Ok(Self::Held(blocks));
        }
        (0..count).try_for_each(|i| weights.scope(i).note_shapes())?;
        let weights: Vec<Weights> = (0..count).map(|i| weights.scope(i).detached()).collect();
        if let Some(first) = weights.first() {
            let view = first.forked();
            load(&view)?;
            view.finish()?;
            // All blocks have one shape: what is wrong with the file shows here and not in the middle of a picture.
            let shapes = |weights: &Weights| {
                weights.names().into_iter().map(|name| (weights.shape(&name), name)).collect::<Vec<_>>()
            };
            let expected = shapes(first);
            for block in &weights {
                for (shape, name) in &expected {
                    let found = block.shape(name);
                    if found != *shape {
                        return Err(block.misfit(name, found, shape.clone()));
                    }
                }
            }
        }
        Ok(Self::Streamed { weights, load: Arc::new(load) })
    }

    /// Runs each in turn.
    ///
    /// # Errors
    /// What `run` says, or what is wrong with a streamed block's weights.
    pub(crate) fn try_for_each(
        &self,
        mut run: impl FnMut(usize, &B) -> candle_core::Result<()>,
    ) -> candle_core::Result<()> {
        match self {
            Self::Held(blocks) => blocks.iter().enumerate().try_for_each(|(i, block)| run(i, block)),
            Self::Streamed { weights, load } => weights.iter().enumerate().try_for_each(|(i, weights)| {
                let view = weights.forked();
                let block = load(&view).map_err(candle_core::Error::wrap)?;
                view.finish().map_err(candle_core::Error::wrap)?;
                run(i, &block)
            }),
        }
    }
}
