//! From the names that travel along links to the weights behind them, borrowed from the engine while a node runs.

use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

use darkroom_models::controlnet::ControlNet as ControlNetwork;
use darkroom_pipelines::{LoraSet, Pipeline};

use super::context::{Context, NodeError};
use super::value::Origin;
use crate::engine::{BorrowError, DenoiseError};
use crate::task::{LoraSpec, TaskErrorKind};

impl From<BorrowError> for NodeError {
    fn from(error: BorrowError) -> Self {
        match error {
            BorrowError::Interrupted => Self::Interrupted,
            other => Self::Failed(other.to_string()),
        }
    }
}

impl From<DenoiseError> for NodeError {
    fn from(error: DenoiseError) -> Self {
        match error {
            DenoiseError::Interrupted => Self::Interrupted,
            DenoiseError::Failed(error) if error.kind == TaskErrorKind::OutOfMemory => {
                Self::OutOfMemory(error.message)
            }
            other => Self::Failed(other.to_string()),
        }
    }
}

/// A model, and the name that the engine knows it by.
pub(super) struct Borrowed {
    /// The engine's name.
    pub(super) name: Arc<str>,
    /// The networks.
    pub(super) pipeline: Arc<Pipeline>,
}

impl Borrowed {
    /// Waits until it is there.
    pub(super) fn model(context: &Context<'_>, origin: &Origin) -> Result<Self, NodeError> {
        let name = Arc::clone(origin);
        let pipeline = context.engine.borrow_model(&name, context.interrupt)?;
        Ok(Self { name, pipeline })
    }

    /// LoRAs, bound to it.
    pub(super) fn loras(
        &self,
        context: &Context<'_>,
        loras: &[LoraSpec],
    ) -> Result<Option<Arc<LoraSet>>, NodeError> {
        Ok(context.engine.borrow_loras(&self.name, loras, context.interrupt)?)
    }

    /// A ControlNet, shaped for it.
    pub(super) fn control_net(
        &self,
        context: &Context<'_>,
        id: &str,
    ) -> Result<Arc<ControlNetwork>, NodeError> {
        Ok(context.engine.borrow_control_net(&self.name, id, context.interrupt)?)
    }
}

/// Work that takes every core and much memory: one after another, however many prompts run.
struct Turns {
    taken: Mutex<bool>,
    free: Condvar,
}

static TURNS: Turns = Turns { taken: Mutex::new(false), free: Condvar::new() };
/// How often who waits looks whether it is to end.
const LOOK: Duration = Duration::from_millis(50);

/// The right to do such work, until dropped.
pub(super) struct Turn(());

impl Turn {
    /// Waits for it.
    pub(super) fn wait(context: &Context<'_>) -> Result<Self, NodeError> {
        let mut taken = TURNS.taken.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            context.check_interrupt()?;
            if !*taken {
                *taken = true;
                return Ok(Self(()));
            }
            taken = TURNS.free.wait_timeout(taken, LOOK).unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        *TURNS.taken.lock().unwrap_or_else(PoisonError::into_inner) = false;
        TURNS.free.notify_one();
    }
}
