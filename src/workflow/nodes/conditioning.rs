//! Conditioning: several prompts together, and where and when each counts.

use std::sync::Arc;

use candle_core::Tensor;
use darkroom_pipelines::{Area, Conditioning};

use crate::workflow::context::{Inputs, NodeError, Outputs};
use crate::workflow::interface::{Input, Interface, combo, float, int, link};
use crate::workflow::registry::Registry;
use crate::workflow::value::{Cond, CondMask, Kind, Value};

/// Pixels a side of a latent cell.
const CELL: usize = 8;
/// Most prompts that count together: each is a row of every network call.
const MOST_PROMPTS: usize = 256;
/// Most tokens of one prompt.
const MOST_TOKENS: usize = 128 * 77;

/// Adds them.
pub(super) fn register(registry: &mut Registry) {
    several(registry);
    places(registry);
    registry.add(
        Interface::new("ConditioningSetTimestepRange", "advanced/conditioning")
            .display("ConditioningSetTimestepRange")
            .description("Between which shares of the schedule a prompt counts.")
            .input(link("conditioning", Kind::CONDITIONING))
            .input(float("start", 0.0, 0.0, 1.0).with("step", 0.001))
            .input(float("end", 1.0, 0.0, 1.0).with("step", 0.001))
            .output(Kind::CONDITIONING),
        |inputs, _| {
            let range = (inputs.float("start")?, inputs.float("end")?);
            each(inputs, |cond| cond.range = Some(range))
        },
    );
    registry.add(
        Interface::new("ConditioningZeroOut", "advanced/conditioning")
            .display("ConditioningZeroOut")
            .input(link("conditioning", Kind::CONDITIONING))
            .output(Kind::CONDITIONING),
        |inputs, _| zero_out(inputs),
    );
}

fn several(registry: &mut Registry) {
    registry.add(
        Interface::new("ConditioningCombine", "conditioning")
            .display("Conditioning (Combine)")
            .description("Both prompts count, each by itself; what the network makes of them is averaged.")
            .input(link("conditioning_1", Kind::CONDITIONING))
            .input(link("conditioning_2", Kind::CONDITIONING))
            .output(Kind::CONDITIONING),
        |inputs, _| {
            let (first, second) =
                (inputs.conditioning("conditioning_1")?, inputs.conditioning("conditioning_2")?);
            if first.len() + second.len() > MOST_PROMPTS {
                let message = format!("more than {MOST_PROMPTS} prompts cannot count together");
                return Err(NodeError::input("conditioning_2", message));
            }
            let both = first.iter().chain(second.iter()).cloned().collect();
            Ok(Outputs::one(Value::Conditioning(Arc::new(both))))
        },
    );
    registry.add(
        Interface::new("ConditioningConcat", "conditioning")
            .display("Conditioning (Concat)")
            .description("One prompt behind the other, read together.")
            .input(link("conditioning_to", Kind::CONDITIONING))
            .input(link("conditioning_from", Kind::CONDITIONING))
            .output(Kind::CONDITIONING),
        |inputs, _| concat(inputs),
    );
    registry.add(
        Interface::new("ConditioningAverage", "conditioning")
            .display("ConditioningAverage")
            .description("A prompt between two.")
            .input(link("conditioning_to", Kind::CONDITIONING))
            .input(link("conditioning_from", Kind::CONDITIONING))
            .input(float("conditioning_to_strength", 1.0, 0.0, 1.0).with("step", 0.01))
            .output(Kind::CONDITIONING),
        |inputs, _| average(inputs),
    );
}

fn places(registry: &mut Registry) {
    let strength = || -> Input { float("strength", 1.0, 0.0, 10.0).with("step", 0.01) };
    let pixels = |name, least: i64| -> Input { int(name, least, least, 16384).with("step", 8) };
    registry.add(
        Interface::new("ConditioningSetArea", "conditioning")
            .display("Conditioning (Set Area)")
            .input(link("conditioning", Kind::CONDITIONING))
            .input(pixels("width", 64))
            .input(pixels("height", 64))
            .input(pixels("x", 0))
            .input(pixels("y", 0))
            .input(strength())
            .output(Kind::CONDITIONING),
        |inputs, _| {
            let cells = |name| Ok::<_, NodeError>(inputs.size(name)? / CELL);
            let (height, width, y, x) = (cells("height")?, cells("width")?, cells("y")?, cells("x")?);
            set_area(inputs, Area::Cells { height, width, y, x })
        },
    );
    // ComfyUI writes some of these as whole numbers.
    let share = |name, default: f64| -> Input {
        let input = float(name, default, 0.0, 1.0).with("min", 0).with("step", 0.01);
        if default == 0.0 { input.with("default", 0) } else { input }
    };
    registry.add(
        Interface::new("ConditioningSetAreaPercentage", "conditioning")
            .display("Conditioning (Set Area with Percentage)")
            .input(link("conditioning", Kind::CONDITIONING))
            .input(share("width", 1.0))
            .input(share("height", 1.0))
            .input(share("x", 0.0))
            .input(share("y", 0.0))
            .input(strength())
            .output(Kind::CONDITIONING),
        |inputs, _| {
            let (height, width) = (inputs.float("height")?, inputs.float("width")?);
            set_area(inputs, Area::Shares { height, width, y: inputs.float("y")?, x: inputs.float("x")? })
        },
    );
    registry.add(
        Interface::new("ConditioningSetAreaStrength", "conditioning")
            .display("ConditioningSetAreaStrength")
            .input(link("conditioning", Kind::CONDITIONING))
            .input(strength())
            .output(Kind::CONDITIONING),
        |inputs, _| {
            let strength = inputs.float("strength")?;
            each(inputs, |cond| cond.strength = strength)
        },
    );
    registry.add(
        Interface::new("ConditioningSetMask", "conditioning")
            .display("Conditioning (Set Mask)")
            .input(link("conditioning", Kind::CONDITIONING))
            .input(link("mask", Kind::MASK))
            .input(strength())
            .input(combo("set_cond_area", ["default", "mask bounds"]))
            .output(Kind::CONDITIONING),
        |inputs, _| {
            let (mask, strength) = (inputs.mask("mask")?, inputs.float("strength")?);
            let bounds = &*inputs.string("set_cond_area")? != "default";
            each(inputs, |cond| cond.mask = Some(CondMask { mask: mask.clone(), strength, bounds }))
        },
    );
}

/// Changes each of `conditioning`.
fn each(inputs: &Inputs, change: impl Fn(&mut Cond)) -> Result<Outputs, NodeError> {
    let mut conds = inputs.conditioning("conditioning")?.to_vec();
    conds.iter_mut().for_each(change);
    Ok(Outputs::one(Value::Conditioning(Arc::new(conds))))
}

fn set_area(inputs: &Inputs, area: Area) -> Result<Outputs, NodeError> {
    let strength = inputs.float("strength")?;
    each(inputs, |cond| {
        cond.area = Some(area);
        cond.strength = strength;
        // A mask that came before no longer sets the area.
        if let Some(mask) = &mut cond.mask {
            mask.bounds = false;
        }
    })
}

/// What each of `conditioning_to` becomes with the first of `conditioning_from`; ComfyUI leaves out the others.
fn with_first(
    inputs: &Inputs,
    join: impl Fn(&Conditioning, &Conditioning) -> candle_core::Result<Conditioning>,
) -> Result<Outputs, NodeError> {
    let (to, from) = (inputs.conditioning("conditioning_to")?, inputs.conditioning("conditioning_from")?);
    let first = from.first().ok_or_else(|| NodeError::input("conditioning_from", "has no prompt in it"))?;
    let mut conds = to.to_vec();
    for cond in &mut conds {
        let (own, other) = (cond.text.context.dims(), first.text.context.dims());
        if own.last() != other.last() {
            let message = format!(
                "was encoded by another kind of model: {:?} numbers a token, conditioning_to has {:?}",
                other.last().unwrap_or(&0),
                own.last().unwrap_or(&0)
            );
            return Err(NodeError::input("conditioning_from", message));
        }
        cond.text = join(&cond.text, &first.text)?;
    }
    Ok(Outputs::one(Value::Conditioning(Arc::new(conds))))
}

fn concat(inputs: &Inputs) -> Result<Outputs, NodeError> {
    let tokens = |name| -> Result<usize, NodeError> {
        let conds = inputs.conditioning(name)?;
        Ok(conds.iter().filter_map(|cond| cond.text.context.dims().first().copied()).max().unwrap_or(0))
    };
    if tokens("conditioning_to")? + tokens("conditioning_from")? > MOST_TOKENS {
        let message = format!("makes a prompt of more than {MOST_TOKENS} tokens");
        return Err(NodeError::input("conditioning_from", message));
    }
    with_first(inputs, |to, from| {
        Ok(Conditioning {
            context: Tensor::cat(&[&to.context, &from.context], 0)?,
            pooled: to.pooled.clone(),
        })
    })
}

fn average(inputs: &Inputs) -> Result<Outputs, NodeError> {
    let strength = inputs.float("conditioning_to_strength")?;
    let mix = |to: &Tensor, from: &Tensor| to.affine(strength, 0.0)? + from.affine(1.0 - strength, 0.0)?;
    with_first(inputs, |to, from| {
        let tokens = to.context.dim(0)?;
        let shared = from.context.dim(0)?.min(tokens);
        // Zeros stand where the other prompt has no tokens.
        let other = from.context.narrow(0, 0, shared)?.pad_with_zeros(0, 0, tokens - shared)?;
        let pooled = match (&to.pooled, &from.pooled) {
            (Some(to), Some(from)) => Some(mix(to, from)?),
            (None, Some(from)) => Some(mix(from, from)?),
            (to, None) => to.clone(),
        };
        Ok(Conditioning { context: mix(&to.context, &other)?, pooled })
    })
}

fn zero_out(inputs: &Inputs) -> Result<Outputs, NodeError> {
    let mut conds = inputs.conditioning("conditioning")?.to_vec();
    for cond in &mut conds {
        cond.text.context = cond.text.context.zeros_like()?;
        cond.text.pooled = cond.text.pooled.as_ref().map(Tensor::zeros_like).transpose()?;
    }
    Ok(Outputs::one(Value::Conditioning(Arc::new(conds))))
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    fn prompt(context: &[[f32; 2]], pooled: f32) -> Arc<Vec<Cond>> {
        let rows: Vec<f32> = context.iter().flatten().copied().collect();
        let context = Tensor::from_vec(rows, (context.len(), 2), &Device::Cpu).unwrap();
        let pooled = Some(Tensor::new(&[pooled], &Device::Cpu).unwrap());
        Arc::new(vec![Cond::new(Conditioning { context, pooled })])
    }

    fn inputs(values: Vec<(&str, Value)>) -> Inputs {
        Inputs(values.into_iter().map(|(name, value)| (name.to_owned(), value)).collect())
    }

    fn conds(outputs: &Outputs) -> Arc<Vec<Cond>> {
        match &outputs.slots[0] {
            crate::workflow::context::Slot::One(Value::Conditioning(conds)) => Arc::clone(conds),
            other => panic!("{other:?}"),
        }
    }

    fn two(to: Arc<Vec<Cond>>, from: Arc<Vec<Cond>>, strength: f64) -> Inputs {
        inputs(vec![
            ("conditioning_to", Value::Conditioning(to)),
            ("conditioning_from", Value::Conditioning(from)),
            ("conditioning_to_strength", Value::Float(strength)),
        ])
    }

    #[test]
    fn an_average_takes_missing_tokens_for_zeros_and_cuts_those_that_are_too_many() {
        let run = |inputs: &Inputs| {
            let average = average(inputs).unwrap();
            let cond = &conds(&average)[0].text;
            let pooled: Vec<f32> = cond.pooled.as_ref().unwrap().to_vec1().unwrap();
            (cond.context.to_vec2::<f32>().unwrap(), pooled)
        };
        let (long, short) = (|| prompt(&[[4.0, 8.0], [2.0, 2.0]], 1.0), || prompt(&[[0.0, 4.0]], 3.0));
        assert_eq!(run(&two(long(), short(), 0.5)), (vec![vec![2.0, 6.0], vec![1.0, 1.0]], vec![2.0]));
        assert_eq!(run(&two(short(), long(), 0.25)), (vec![vec![3.0, 7.0]], vec![1.5]));
    }

    #[test]
    fn an_area_takes_over_from_a_masks_bounds() {
        let mut cond = prompt(&[[1.0, 1.0]], 0.0)[0].clone();
        let mask = crate::workflow::Mask::new(1, 1, 1, vec![1.0]).unwrap();
        cond.mask = Some(CondMask { mask, strength: 1.0, bounds: true });
        let values = vec![
            ("conditioning", Value::Conditioning(Arc::new(vec![cond]))),
            ("strength", Value::Float(0.5)),
        ];
        let area = Area::Cells { height: 8, width: 8, y: 0, x: 0 };
        let out = conds(&set_area(&inputs(values), area).unwrap());
        assert_eq!((out[0].area, out[0].strength), (Some(area), 0.5));
        assert!(!out[0].mask.as_ref().unwrap().bounds);
    }

    #[test]
    fn prompts_of_two_kinds_of_models_do_not_mix() {
        let other = Tensor::new(&[[1f32, 2.0, 3.0]], &Device::Cpu).unwrap();
        let other = Arc::new(vec![Cond::new(Conditioning { context: other, pooled: None })]);
        let error = concat(&two(prompt(&[[1.0, 1.0]], 0.0), other, 1.0)).unwrap_err();
        assert!(error.to_string().starts_with("conditioning_from: was encoded by another"), "{error}");
    }
}
