//! One picture or latent put on another, through a mask: the rule that `ImageCompositeMasked` and
//! `LatentCompositeMasked` share.

use darkroom_pipelines::resample::{Crop, Filter};
use rayon::prelude::*;

use super::grid::Grid;
use crate::workflow::NodeError;

/// `source` on `destination` with its left upper corner at `x`, `y` (in the grid's own cells): where the mask is 1 the
/// source, where it is 0 the destination. Source and mask begin again where the batch has more; the mask is scaled to
/// the source. Both have as many channels.
pub(super) fn composite(
    destination: &Grid<'_>,
    source: &Grid<'_>,
    (x, y): (usize, usize),
    mask: Option<&Grid<'_>>,
    resize_source: bool,
) -> Result<Grid<'static>, NodeError> {
    if destination.channels != source.channels {
        return Err(NodeError::Failed(format!(
            "{} channels do not go onto {}",
            source.channels, destination.channels
        )));
    }
    let bilinear =
        |grid: &Grid<'_>, to: &Grid<'_>| grid.scaled(to.width, to.height, Filter::Bilinear, Crop::Disabled);
    let resized = if resize_source { Some(bilinear(source, destination)?) } else { None };
    let source = resized.as_ref().unwrap_or(source);
    let mask = mask.map(|mask| bilinear(mask, source)).transpose()?;
    let (count, height, width, channels) =
        (destination.count, destination.height, destination.width, destination.channels);
    let visible = source.width.min(width.saturating_sub(x));
    let mut data = destination.data().to_vec();
    data.par_chunks_mut(width * channels).enumerate().for_each(|(line, row)| {
        let (i, line) = (line / height, line % height);
        if visible == 0 || !(y..y.saturating_add(source.height)).contains(&line) {
            return;
        }
        let row = row[x * channels..][..visible * channels].chunks_exact_mut(channels);
        let from = source.row(i % source.count, line - y).chunks_exact(channels);
        let mask = mask.as_ref().map(|mask| mask.row(i % mask.count, line - y));
        for (at, (old, new)) in row.zip(from).enumerate() {
            let share = mask.map_or(1.0, |mask| mask[at]);
            old.iter_mut().zip(new).for_each(|(old, new)| *old = share * new + (1.0 - share) * *old);
        }
    });
    Grid::new(count, height, width, channels, data)
}
