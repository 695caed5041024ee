//! Each operation against the same on the CPU in `f32`: how far off, and how fast.

use candle_core::{DType, Device, Tensor};
use serde_json::{Value, json};

use crate::device::Target;
use crate::likeness::relative_error;
use crate::measure::{Repeat, Spread, seconds};
use crate::operations::{self, Case, Role, Scale};
use crate::record::{Record, rounded};
use crate::{Outcome, Plan, fused, random};

/// Bytes of inputs that are gone through in turn, so that no run finds its inputs in the cache by luck alone.
const ROTATED: usize = 128 << 20;

/// `‖out − ref‖ / ‖ref‖` that is allowed. Inputs have the type's precision on both sides, so what is left is the
/// rounding of the output and of what an operation rounds in between.
pub(crate) fn limit(dtype: DType) -> f64 {
    match dtype {
        DType::BF16 => 1e-2,
        DType::F16 => 2e-3,
        _ => 1e-5,
    }
}

pub(crate) fn name_of(dtype: DType) -> &'static str {
    match dtype {
        DType::BF16 => "bf16",
        DType::F16 => "f16",
        _ => "f32",
    }
}

pub(crate) fn check(plan: &Plan, record: &mut Record) -> Outcome<()> {
    for case in operations::all(Scale { quick: plan.quick }) {
        if !fused::runs_on(&case, &plan.target.device)? {
            record.skipped(&case.name, "this card has no such products");
            continue;
        }
        let mut reference: Option<(Vec<Tensor>, Tensor)> = None;
        for dtype in plan.target.types() {
            if *dtype == DType::F32 && !case.in_f32 && !plan.quick {
                continue;
            }
            let name = format!("{} {}", case.name, name_of(*dtype));
            record.case(&name, 0.5, || one(plan, &case, *dtype, &mut reference));
        }
    }
    Ok(())
}

/// Inputs on the CPU in `f32`. Where they are to be rounded, to `bf16`: such numbers are exact in `f16` as well, but
/// for tiny ones, and one reference does for both.
fn inputs(plan: &Plan, case: &Case, rounded: bool) -> Outcome<Vec<Tensor>> {
    let draw = |(index, input): (usize, &operations::Input)| -> Outcome<Tensor> {
        let stream = random::stream(plan.seed, &format!("{} {index}", case.name));
        let x = random::tensor(&input.shape, stream, input.deviation)?;
        Ok(match rounded && input.role == Role::Computed {
            true => x.to_dtype(DType::BF16)?.to_dtype(DType::F32)?,
            false => x,
        })
    };
    case.inputs.iter().enumerate().map(draw).collect()
}

fn one(
    plan: &Plan,
    case: &Case,
    dtype: DType,
    reference: &mut Option<(Vec<Tensor>, Tensor)>,
) -> Outcome<Value> {
    let (inputs, expected) = match reference {
        Some((inputs, expected)) if dtype != DType::F32 => (inputs.clone(), expected.clone()),
        _ => {
            let inputs = inputs(plan, case, dtype != DType::F32)?;
            let expected = (case.run)(&inputs)?;
            *reference = Some((inputs.clone(), expected.clone()));
            (inputs, expected)
        }
    };
    let there = |(x, input): (&Tensor, &operations::Input)| -> Outcome<Tensor> {
        let dtype = if input.role == Role::Computed { dtype } else { DType::F32 };
        Ok(x.to_dtype(dtype)?.to_device(&plan.target.device)?)
    };
    let inputs: Vec<Tensor> = inputs.iter().zip(&case.inputs).map(there).collect::<Outcome<_>>()?;

    poison(&plan.target.device, expected.dims(), dtype)?;
    let actual = (case.run)(&inputs)?;
    let error = relative_error(&actual, &expected)?;
    // The same inputs again: what differs between runs is a race.
    poison(&plan.target.device, expected.dims(), dtype)?;
    let again = relative_error(&(case.run)(&inputs)?, &actual)?;
    drop(actual);

    let taken = time(&plan.target, plan.quick, case, &inputs)?;
    let of_type = |x: &Tensor| x.elem_count() * x.dtype().size_in_bytes();
    let bytes = inputs.iter().map(of_type).sum::<usize>() + expected.elem_count() * dtype.size_in_bytes();
    let (limit, median) = (limit(dtype), taken.median());
    let mut found = json!({
        "operation": case.operation, "dtype": name_of(dtype), "error": error, "limit": limit,
        "within": error <= limit, "repeat_error": again,
        "microseconds": rounded(median * 1e6), "least_microseconds": rounded(taken.least() * 1e6),
        "gb_per_second": rounded(bytes as f64 / median / 1e9),
    });
    if case.flops > 0.0 {
        found["tflops"] = json!(rounded(case.flops / median / 1e12));
    }
    Ok(found)
}

/// Leaves NaN in the memory that an output is most likely to get: an element that is not written shows.
fn poison(device: &Device, shape: &[usize], dtype: DType) -> Outcome<()> {
    let nan = Tensor::full(f32::NAN, shape, device)?.to_dtype(dtype)?;
    let more = nan.copy()?;
    drop((nan, more));
    Ok(())
}

fn time(target: &Target, quick: bool, case: &Case, inputs: &[Tensor]) -> Outcome<Spread> {
    let bytes: usize = inputs.iter().map(|x| x.elem_count() * x.dtype().size_in_bytes()).sum();
    let sets = if target.is_cuda() { (ROTATED / bytes.max(1)).clamp(1, 8) } else { 1 };
    let copies = (1..sets)
        .map(|_| inputs.iter().map(Tensor::copy).collect::<candle_core::Result<Vec<_>>>())
        .collect::<candle_core::Result<Vec<_>>>()?;
    let all: Vec<&[Tensor]> = std::iter::once(inputs).chain(copies.iter().map(Vec::as_slice)).collect();
    let repeat = match quick {
        true => Repeat { warm_up: 1, times: 3, patience: 0.01 },
        false => Repeat { warm_up: 3, times: 20, patience: 0.5 },
    };
    seconds(target, repeat, |call| {
        (case.run)(all[call % all.len()])?;
        Ok(())
    })
}
