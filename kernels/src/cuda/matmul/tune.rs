//! Choosing among the heuristic's algorithms by timing them, where that is asked for.

use candle_core::{Error, Result};
use cudarc::driver::sys::CUevent_flags::CU_EVENT_DEFAULT;

use super::library::{Addresses, Call};
use super::plan::{Algorithm, Plan, Problem};

/// Runs of each algorithm, of which the fastest counts.
const RUNS: usize = 4;

/// The fastest of the plan's algorithm and `others`, on these operands. Waits for the stream.
///
/// # Safety
/// As [`super::library::Library::multiply`]; the algorithms are ones that the heuristic gave for this plan, and the
/// stream is not being captured.
pub(super) unsafe fn fastest(
    call: &Call<'_>,
    problem: &Problem,
    plan: &Plan,
    others: &[Algorithm],
    at: Addresses,
) -> Result<Algorithm> {
    let bytes = problem.m * problem.n * problem.result.size_in_bytes();
    // Results go to a place of their own: one that is added to in place would be added to again and again.
    // SAFETY: it is written before anything reads it, or what is read does not count.
    let result = unsafe { call.stream.alloc::<u8>(bytes) }.map_err(Error::wrap)?;
    let (y, _used) = cudarc::driver::DevicePtr::device_ptr(&result, call.stream);
    let at = Addresses { y, residual: y, ..at };
    let mut best = (plan.algorithm, f32::INFINITY);
    for algorithm in std::iter::once(&plan.algorithm).chain(others) {
        for _ in 0..RUNS {
            let start = call.stream.record_event(Some(CU_EVENT_DEFAULT)).map_err(Error::wrap)?;
            // SAFETY: the caller's promise.
            if unsafe { call.run(problem, plan, algorithm, at) }.is_err() {
                break;
            }
            let end = call.stream.record_event(Some(CU_EVENT_DEFAULT)).map_err(Error::wrap)?;
            let took = start.elapsed_ms(&end).map_err(Error::wrap)?;
            if took < best.1 {
                best = (*algorithm, took);
            }
        }
    }
    Ok(best.0)
}
