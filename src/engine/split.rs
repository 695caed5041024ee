//! Getting through a step batch that does not go as a whole: halves it until what fails stands alone. A batch that
//! does not fit into memory fits in parts, and one spoiled sample does not take its batch-mates with it.

/// What became of a batch.
#[derive(Debug)]
pub(super) struct Outcome<E> {
    /// Which items failed, and why.
    pub(super) failed: Vec<(usize, E)>,
    /// The largest part that went through at once; 0 if none did.
    pub(super) largest: usize,
}

/// Runs `step` over `items`, in halves of halves where it fails. A failed `step` must have changed nothing.
pub(super) fn in_halves<T, E>(
    items: &mut [T],
    step: &mut dyn FnMut(&mut [T]) -> Result<(), E>,
) -> Outcome<E> {
    let mut outcome = Outcome { failed: Vec::new(), largest: 0 };
    part(items, 0, step, &mut outcome);
    outcome
}

fn part<T, E>(
    items: &mut [T],
    offset: usize,
    step: &mut dyn FnMut(&mut [T]) -> Result<(), E>,
    outcome: &mut Outcome<E>,
) {
    if items.is_empty() {
        return;
    }
    match step(items) {
        Ok(()) => outcome.largest = outcome.largest.max(items.len()),
        Err(error) if items.len() == 1 => outcome.failed.push((offset, error)),
        Err(_) => {
            let (left, right) = items.split_at_mut(items.len() / 2);
            let middle = offset + left.len();
            part(left, offset, step, outcome);
            part(right, middle, step, outcome);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_batch_that_does_not_fit_goes_in_parts_that_do_and_every_item_steps_once() {
        let mut items = [0; 13];
        let outcome = in_halves(&mut items, &mut |part| {
            if part.len() > 4 {
                return Err("out of memory");
            }
            part.iter_mut().for_each(|steps| *steps += 1);
            Ok(())
        });
        assert_eq!((items, outcome.failed.len()), ([1; 13], 0));
        assert!(outcome.largest <= 4 && outcome.largest >= 2, "{}", outcome.largest);
    }

    #[test]
    fn one_bad_item_fails_alone() {
        let mut items: Vec<(usize, u32)> = (0..8).map(|i| (i, 0)).collect();
        let outcome = in_halves(&mut items, &mut |part| {
            if part.iter().any(|(index, _)| *index == 5) {
                return Err("spoiled");
            }
            part.iter_mut().for_each(|(_, steps)| *steps += 1);
            Ok(())
        });
        assert_eq!(outcome.failed, [(5, "spoiled")]);
        assert!(items.iter().all(|(index, steps)| *steps == u32::from(*index != 5)), "{items:?}");
    }
}
