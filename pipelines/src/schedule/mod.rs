//! From a step count to the noise levels (sigmas) of a run: the model's own table of sigmas, and the schedulers
//! that pick from it. Names and numbers are ComfyUI's, arithmetic is torch's single precision.

mod beta;
mod dynamic;
pub mod explicit;
mod model_sampling;
mod process;
mod scheduler;

pub(crate) use dynamic::{dynamic_flow_sigmas, dynamic_shift};
pub use model_sampling::{ModelSampling, Prediction};
pub(crate) use model_sampling::{exp, ln};
pub use process::Process;
pub(crate) use scheduler::linspace;
pub use scheduler::{MAX_STEPS, Scheduler, sigmas};

use crate::sampler::SamplerKind;

/// What can go wrong when a schedule is made.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum ScheduleError {
    /// No scheduler has this name.
    #[error("no scheduler is called {0:?}; choose one of: {list}", list = crate::sampler::join(Scheduler::ALL))]
    UnknownScheduler(String),
    /// A run needs at least one step and has a bounded number of them.
    #[error("{0} steps are out of range; choose 1 to {MAX_STEPS}")]
    Steps(usize),
    /// Denoise is not a number or above 1.
    #[error("denoise {0} is out of range; choose more than 0, up to 1")]
    Denoise(f64),
    /// A run of `steps` at this denoise is the end of a longer one, and that is longer than allowed.
    #[error(
        "{steps} steps at denoise {denoise} are the end of a schedule of more than {MAX_STEPS} steps; \
         raise denoise or lower steps"
    )]
    DenoiseTooSmall {
        /// Steps asked for.
        steps: usize,
        /// Denoise asked for.
        denoise: f64,
    },
    /// A number of a schedule that is given by numbers does not do.
    #[error("{name} {value} is out of range; choose {needed}")]
    Value {
        /// Its name.
        name: &'static str,
        /// What it is.
        value: f64,
        /// What it may be.
        needed: &'static str,
    },
    /// The scheduler is not defined for so few steps.
    #[error("scheduler {scheduler} needs at least {least} steps with sampler {sampler}, got {steps}")]
    TooFewSteps {
        /// The scheduler.
        scheduler: Scheduler,
        /// The sampler it was asked for.
        sampler: SamplerKind,
        /// Steps asked for.
        steps: usize,
        /// Fewest steps that work.
        least: usize,
    },
}
