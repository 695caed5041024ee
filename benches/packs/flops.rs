//! Multiplications and additions of a UNet's call, counted from its weights' shapes: what LoRAs add to it by counting,
//! to hold beside what they add by the clock.

use darkroom_models::adapter::{LayerAdapter, NetworkAdapter};
use darkroom_models::unet::UNetConfig;
use darkroom_models::weights::Kept;

/// Tokens of a prompt.
const TOKENS: usize = 77;

/// Of one row: one latent of `cells × cells`, with a prompt of one chunk.
pub(crate) struct Flops {
    /// The network's own: matrices, convolutions, attention. Norms and activations are left out.
    pub(crate) base: f64,
    /// What the adapter's low-rank factors add.
    pub(crate) low_rank: f64,
}

impl Flops {
    pub(crate) fn of(config: &UNetConfig, weights: &Kept, adapter: &NetworkAdapter, cells: usize) -> Self {
        let (mut base, mut low_rank) = (0.0, 0.0);
        for (name, kept) in weights.iter() {
            let Some(layer) = name.strip_suffix(".weight").filter(|_| kept.tensor.rank() > 1) else {
                continue;
            };
            let positions = positions(layer, config.block_out_channels.len(), cells);
            base += 2.0 * kept.tensor.elem_count() as f64 * positions as f64;
            if layer.ends_with(".to_q") {
                // Scores, and what they weigh.
                let seen = if layer.contains(".attn1.") { positions } else { TOKENS };
                base += 4.0 * positions as f64 * seen as f64 * kept.tensor.dims()[0] as f64;
            }
            if let Some(LayerAdapter::LowRank { down, up }) = adapter.get(layer) {
                low_rank += 2.0 * (down.elem_count() + up.elem_count()) as f64 * positions as f64;
            }
        }
        Self { base, low_rank }
    }
}

/// How often a layer's weight is used in a row.
fn positions(layer: &str, levels: usize, cells: usize) -> usize {
    if layer.contains(".attn2.to_k") || layer.contains(".attn2.to_v") {
        return TOKENS;
    }
    if layer.starts_with("time_embedding")
        || layer.starts_with("add_embedding")
        || layer.ends_with("time_emb_proj")
    {
        return 1;
    }
    let block = |way: &str| layer.strip_prefix(way)?.split('.').next()?.parse::<usize>().ok();
    let level = match (block("down_blocks."), block("up_blocks.")) {
        (Some(block), _) => block + usize::from(layer.contains(".downsamplers.")),
        (_, Some(block)) => (levels - 1).saturating_sub(block + usize::from(layer.contains(".upsamplers."))),
        _ if layer.starts_with("mid_block") => levels - 1,
        _ => 0,
    };
    (cells >> level).pow(2)
}
