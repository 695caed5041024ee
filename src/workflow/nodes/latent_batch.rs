//! Batches of latents: put together, taken apart, repeated, cut anew. A sample keeps its place in the batch that its
//! noise is drawn for.

use darkroom_pipelines::resample::Filter;

use super::grid::{Grid, check_size};
use super::image_batch::batch_size;
use super::latent_compose::fitted;
use super::latent_transform::CELL;
use crate::workflow::Context;
use crate::workflow::context::{Inputs, NodeError, Outputs, Slot};
use crate::workflow::image::Mask;
use crate::workflow::interface::{Interface, int, link, tagged_combo};
use crate::workflow::latent::Latent;
use crate::workflow::registry::Registry;
use crate::workflow::value::{Kind, Value};

/// Adds them.
pub(super) fn register(registry: &mut Registry) {
    registry.add(
        Interface::new("LatentFromBatch", "latent/batch")
            .display("Latent From Batch")
            .input(link("samples", Kind::LATENT))
            .input(int("batch_index", 0, 0, 63))
            .input(int("length", 1, 1, 64))
            .output(Kind::LATENT),
        from_batch,
    );
    registry.add(
        Interface::new("RepeatLatentBatch", "latent/batch")
            .display("Repeat Latent Batch")
            .input(link("samples", Kind::LATENT))
            .input(int("amount", 1, 1, 64))
            .output(Kind::LATENT),
        repeat,
    );
    registry.add(
        Interface::new("LatentBatch", "latent/batch")
            .newer_schema()
            .input(link("samples1", Kind::LATENT))
            .input(link("samples2", Kind::LATENT))
            .output(Kind::LATENT)
            .module("comfy_extras.nodes_latent"),
        batch,
    );
    registry.add(
        Interface::new("LatentBatchSeedBehavior", "latent/advanced")
            .input(link("samples", Kind::LATENT))
            .input(tagged_combo("seed_behavior", ["random", "fixed"]).with("default", "fixed"))
            .output(Kind::LATENT)
            .module("comfy_extras.nodes_latent"),
        seed_behavior,
    );
    registry.add(
        Interface::new("RebatchLatents", "latent/batch")
            .newer_schema()
            .display("Rebatch Latents")
            .input(link("latents", Kind::LATENT))
            .input(int("batch_size", 1, 1, 4096))
            .list_output("LATENT", Kind::LATENT)
            .takes_lists()
            .module("comfy_extras.nodes_rebatch"),
        rebatch,
    );
}

fn give(latent: Latent) -> Outputs {
    Outputs::one(Value::Latent(latent.into()))
}

fn from_batch(inputs: &Inputs, _: &Context<'_>) -> Result<Outputs, NodeError> {
    let latent = inputs.latent("samples")?;
    let grid = Grid::of_latent(&latent)?;
    let start = inputs.size("batch_index")?.min(grid.count - 1);
    let length = inputs.size("length")?.min(grid.count - start);
    let masks = |mask: &Mask| -> Result<Mask, NodeError> {
        let masks = Grid::of_mask(mask)?;
        match masks.count {
            1 => Ok(mask.clone()),
            count if count < grid.count => masks.with_count(grid.count)?.part(start, length)?.into_mask(),
            _ => masks.part(start, length)?.into_mask(),
        }
    };
    let batch_index = match &latent.batch_index {
        Some(places) => places.iter().copied().skip(start).take(length).collect(),
        None => (start..start + length).collect(),
    };
    Ok(give(Latent {
        samples: grid.part(start, length)?.into_samples()?,
        noise_mask: latent.noise_mask.as_ref().map(masks).transpose()?,
        batch_index: Some(batch_index),
    }))
}

fn repeat(inputs: &Inputs, _: &Context<'_>) -> Result<Outputs, NodeError> {
    let latent = inputs.latent("samples")?;
    let amount = inputs.size("amount")?;
    let repeated = |mask: &Mask| -> Result<Mask, NodeError> {
        if mask.count() > 1 { Grid::of_mask(mask)?.repeated(amount)?.into_mask() } else { Ok(mask.clone()) }
    };
    let samples = Grid::of_latent(&latent)?.repeated(amount)?.into_samples()?;
    // Each repetition goes on after the last place of the one before.
    let places = latent.batch_index.as_ref().map(|places| {
        let (low, high) = (places.iter().min().copied(), places.iter().max().copied());
        let offset = high.unwrap_or(0) - low.unwrap_or(0) + 1;
        let shifted =
            |i: usize| places.iter().map(move |place| place.saturating_add(i.saturating_mul(offset)));
        (0..amount).flat_map(shifted).collect()
    });
    let noise_mask = latent.noise_mask.as_ref().map(repeated).transpose()?;
    Ok(give(Latent { samples, noise_mask, batch_index: places }))
}

fn batch(inputs: &Inputs, _: &Context<'_>) -> Result<Outputs, NodeError> {
    let (first, second) = (inputs.latent("samples1")?, inputs.latent("samples2")?);
    let a = Grid::of_latent(&first)?;
    let b = fitted(Grid::of_latent(&second)?, &a, Filter::Bilinear)?;
    let places = |latent: &Latent, count: usize| -> Vec<usize> {
        latent.batch_index.clone().unwrap_or_else(|| (0..count).collect())
    };
    let mut batch_index = places(&first, a.count);
    batch_index.extend(places(&second, b.count));
    Ok(give(Latent {
        samples: Grid::batched(&[a, b])?.into_samples()?,
        noise_mask: first.noise_mask.clone(),
        batch_index: Some(batch_index),
    }))
}

fn seed_behavior(inputs: &Inputs, _: &Context<'_>) -> Result<Outputs, NodeError> {
    let latent = inputs.latent("samples")?;
    let batch_index = (&*inputs.string("seed_behavior")? == "fixed").then(|| {
        let place = latent.batch_index.as_ref().and_then(|places| places.first().copied());
        vec![place.unwrap_or(0); latent.samples.dims().first().copied().unwrap_or(0)]
    });
    Ok(give(Latent { batch_index, ..(*latent).clone() }))
}

/// One sample on its way to another batch.
struct Single {
    grid: Grid<'static>,
    mask: Option<Grid<'static>>,
    place: usize,
}

fn rebatch(inputs: &Inputs, _: &Context<'_>) -> Result<Outputs, NodeError> {
    let size = batch_size(inputs)?;
    let mut singles: Vec<Single> = Vec::new();
    for value in &inputs.list("latents")? {
        let Value::Latent(latent) = value else {
            return Err(NodeError::input("latents", "has something else than latents in it"));
        };
        let grid = Grid::of_latent(latent)?;
        let masks = latent.noise_mask.as_ref().map(Grid::of_mask).transpose()?;
        let before = singles.len();
        for i in 0..grid.count {
            let mask = masks.as_ref().map(|masks| masks.part(i % masks.count, 1)).transpose()?;
            let places = latent.batch_index.as_ref();
            let place = places.and_then(|places| places.get(i).copied()).unwrap_or(before + i);
            singles.push(Single { grid: grid.part(i, 1)?, mask, place });
        }
    }
    // A batch has latents of one size only: where another begins, so does a new batch.
    let same = |a: &Single, b: &Single| (a.grid.width, a.grid.height) == (b.grid.width, b.grid.height);
    let batches = singles.chunk_by(same).flat_map(|run| run.chunks(size));
    let batches = batches.map(|batch| Ok(Value::Latent(together(batch)?.into())));
    Ok(Outputs { slots: vec![Slot::List(batches.collect::<Result<_, NodeError>>()?)], ui: None })
}

/// Samples without a mask are repainted everywhere; a mask that says so for all is none.
fn together(singles: &[Single]) -> Result<Latent, NodeError> {
    let grids: Vec<Grid<'_>> = singles.iter().map(|single| single.grid.clone()).collect();
    let mut noise_mask = None;
    if singles.iter().any(|single| single.mask.is_some()) {
        let mask = |single: &Single| match &single.mask {
            Some(mask) => Ok(mask.clone()),
            None => Grid::filled(1, single.grid.height * CELL, single.grid.width * CELL, 1, 1.0),
        };
        let total = singles.len();
        if let Some(largest) = singles.iter().filter_map(|single| single.mask.as_ref()).next() {
            check_size(total, largest.height, largest.width, 1)?;
        }
        let masks = singles.iter().map(mask).collect::<Result<Vec<_>, NodeError>>()?;
        let all = Grid::batched(&masks).map_err(|_| {
            NodeError::input("latents", "have noise masks of different sizes, which make no batch")
        })?;
        if all.data().iter().any(|value| *value != 1.0) {
            noise_mask = Some(all.into_mask()?);
        }
    }
    Ok(Latent {
        samples: Grid::batched(&grids)?.into_samples()?,
        noise_mask,
        batch_index: Some(singles.iter().map(|single| single.place).collect()),
    })
}
