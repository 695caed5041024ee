//! The networks as lists of layers, walked from their configs: names and shapes of all weights (to make random ones),
//! and what a forward pass multiplies and adds (to say what share of a card's rate was reached).

use darkroom_models::clip::ClipTextConfig;
use darkroom_models::unet::UNetConfig;
use darkroom_models::vae::VaeConfig;

/// A layer, or attention between layers.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Layer {
    /// `[out, in, k, k]` and a bias, at `height × width` outputs.
    Conv { name: String, out: usize, inner: usize, kernel: usize, stride: usize, height: usize, width: usize },
    /// `[out, in]`, used for `rows` rows; `pointwise`: stored as a 1×1 convolution.
    Linear { name: String, out: usize, inner: usize, bias: bool, pointwise: bool, rows: usize },
    /// Scale and shift.
    Norm { name: String, channels: usize },
    /// A table: no arithmetic.
    Table { name: String, rows: usize, width: usize },
    /// Softmax attention.
    Attention { queries: usize, keys: usize, heads: usize, width: usize },
}

impl Layer {
    /// Floating-point operations of one row of a batch: of matrices, convolutions and attention. Norms and pointwise
    /// work are left out, as is usual.
    pub(crate) fn flops(&self) -> f64 {
        let product = |factors: &[usize]| factors.iter().map(|n| *n as f64).product::<f64>();
        match self {
            Self::Conv { out, inner, kernel, height, width, .. } => {
                product(&[2, *out, *inner, *kernel, *kernel, *height, *width])
            }
            Self::Linear { out, inner, rows, .. } => product(&[2, *out, *inner, *rows]),
            // Scores, and what they weigh.
            Self::Attention { queries, keys, width, .. } => product(&[4, *queries, *keys, *width]),
            Self::Norm { .. } | Self::Table { .. } => 0.0,
        }
    }

    /// Weights under diffusers' (transformers') names.
    pub(crate) fn weights(&self) -> Vec<(String, Vec<usize>)> {
        match self {
            Self::Conv { name, out, inner, kernel, .. } => vec![
                (format!("{name}.weight"), vec![*out, *inner, *kernel, *kernel]),
                (format!("{name}.bias"), vec![*out]),
            ],
            Self::Linear { name, out, inner, bias, pointwise, .. } => {
                let shape = if *pointwise { vec![*out, *inner, 1, 1] } else { vec![*out, *inner] };
                let mut weights = vec![(format!("{name}.weight"), shape)];
                if *bias {
                    weights.push((format!("{name}.bias"), vec![*out]));
                }
                weights
            }
            Self::Norm { name, channels } => {
                vec![(format!("{name}.weight"), vec![*channels]), (format!("{name}.bias"), vec![*channels])]
            }
            Self::Table { name, rows, width } => vec![(format!("{name}.weight"), vec![*rows, *width])],
            Self::Attention { .. } => Vec::new(),
        }
    }
}

/// Operations of all layers, for one row.
pub(crate) fn flops(layers: &[Layer]) -> f64 {
    layers.iter().map(Layer::flops).sum()
}

/// Layers in order, with what most of them share.
struct Walk {
    layers: Vec<Layer>,
    height: usize,
    width: usize,
    tokens: usize,
}

impl Walk {
    fn new(height: usize, width: usize, tokens: usize) -> Self {
        Self { layers: Vec::new(), height, width, tokens }
    }

    fn positions(&self) -> usize {
        self.height * self.width
    }

    fn conv(&mut self, name: &str, inner: usize, out: usize) {
        self.strided(name, inner, out, 1);
    }

    /// A 3×3 convolution; with `stride` 2 it halves the picture first.
    fn strided(&mut self, name: &str, inner: usize, out: usize, stride: usize) {
        (self.height, self.width) = (self.height.div_ceil(stride), self.width.div_ceil(stride));
        let (height, width) = (self.height, self.width);
        self.layers.push(Layer::Conv { name: name.into(), out, inner, kernel: 3, stride, height, width });
    }

    fn pointwise(&mut self, name: &str, inner: usize, out: usize) {
        let rows = self.positions();
        self.layers.push(Layer::Linear { name: name.into(), out, inner, bias: true, pointwise: true, rows });
    }

    fn linear(&mut self, name: &str, inner: usize, out: usize, bias: bool, rows: usize) {
        self.layers.push(Layer::Linear { name: name.into(), out, inner, bias, pointwise: false, rows });
    }

    fn norm(&mut self, name: &str, channels: usize) {
        self.layers.push(Layer::Norm { name: name.into(), channels });
    }

    /// A residual block; `time`: the width of the time embedding that it takes.
    fn resnet(&mut self, name: &str, inner: usize, out: usize, time: Option<usize>) {
        self.norm(&format!("{name}.norm1"), inner);
        self.conv(&format!("{name}.conv1"), inner, out);
        if let Some(time) = time {
            self.linear(&format!("{name}.time_emb_proj"), time, out, true, 1);
        }
        self.norm(&format!("{name}.norm2"), out);
        self.conv(&format!("{name}.conv2"), out, out);
        if inner != out {
            self.pointwise(&format!("{name}.conv_shortcut"), inner, out);
        }
    }

    /// A spatial transformer.
    fn transformer(&mut self, name: &str, config: &UNetConfig, c: usize, heads: usize, depth: usize) {
        let (n, tokens, context) = (self.positions(), self.tokens, config.cross_attention_dim);
        let project = |walk: &mut Self, end: &str| match config.use_linear_projection {
            true => walk.linear(&format!("{name}.{end}"), c, c, true, n),
            false => walk.pointwise(&format!("{name}.{end}"), c, c),
        };
        self.norm(&format!("{name}.norm"), c);
        project(self, "proj_in");
        for block in 0..depth {
            let block = format!("{name}.transformer_blocks.{block}");
            for (norm, attention, keys, width) in
                [("norm1", "attn1", n, c), ("norm2", "attn2", tokens, context)]
            {
                let attention = format!("{block}.{attention}");
                self.norm(&format!("{block}.{norm}"), c);
                self.linear(&format!("{attention}.to_q"), c, c, false, n);
                self.linear(&format!("{attention}.to_k"), width, c, false, keys);
                self.linear(&format!("{attention}.to_v"), width, c, false, keys);
                self.layers.push(Layer::Attention { queries: n, keys, heads, width: c });
                self.linear(&format!("{attention}.to_out.0"), c, c, true, n);
            }
            self.norm(&format!("{block}.norm3"), c);
            self.linear(&format!("{block}.ff.net.0.proj"), c, 8 * c, true, n);
            self.linear(&format!("{block}.ff.net.2"), 4 * c, c, true, n);
        }
        project(self, "proj_out");
    }

    /// Time and addition embeddings, `conv_in`, the way down and the middle: what a ControlNet shares with a UNet. Gives
    /// the channels of the skips.
    fn downward(&mut self, config: &UNetConfig) -> Vec<usize> {
        let (time, channels) = (config.time_embed_dim(), &config.block_out_channels);
        let first = channels.first().copied().unwrap_or(0);
        self.linear("time_embedding.linear_1", first, time, true, 1);
        self.linear("time_embedding.linear_2", time, time, true, 1);
        if let Some(addition) = &config.addition {
            self.linear("add_embedding.linear_1", addition.projection_input_dim, time, true, 1);
            self.linear("add_embedding.linear_2", time, time, true, 1);
        }
        self.conv("conv_in", config.in_channels, first);
        let mut skips = vec![first];
        let mut inner = first;
        for (level, &c) in channels.iter().enumerate() {
            let block = format!("down_blocks.{level}");
            for layer in 0..config.layers_per_block {
                self.resnet(&format!("{block}.resnets.{layer}"), inner, c, Some(time));
                self.attention(&format!("{block}.attentions.{layer}"), config, level);
                inner = c;
                skips.push(c);
            }
            if level + 1 < channels.len() {
                self.strided(&format!("{block}.downsamplers.0.conv"), c, c, 2);
                skips.push(c);
            }
        }
        let (last, heads) = (inner, config.attention_heads.last().copied().unwrap_or(1));
        self.resnet("mid_block.resnets.0", last, last, Some(time));
        if config.mid_transformer_layers > 0 {
            let depth = config.mid_transformer_layers;
            self.transformer("mid_block.attentions.0", config, last, heads, depth);
            self.resnet("mid_block.resnets.1", last, last, Some(time));
        }
        skips
    }

    fn attention(&mut self, name: &str, config: &UNetConfig, level: usize) {
        let depth = config.transformer_layers[level];
        if depth > 0 {
            let (c, heads) = (config.block_out_channels[level], config.attention_heads[level]);
            self.transformer(name, config, c, heads, depth);
        }
    }

    /// The autoencoder's single-head attention.
    fn picture_attention(&mut self, name: &str, c: usize) {
        let n = self.positions();
        self.norm(&format!("{name}.group_norm"), c);
        for end in ["to_q", "to_k", "to_v"] {
            self.linear(&format!("{name}.{end}"), c, c, true, n);
        }
        self.layers.push(Layer::Attention { queries: n, keys: n, heads: 1, width: c });
        self.linear(&format!("{name}.to_out.0"), c, c, true, n);
    }

    fn picture_middle(&mut self, name: &str, c: usize) {
        self.resnet(&format!("{name}.resnets.0"), c, c, None);
        self.picture_attention(&format!("{name}.attentions.0"), c);
        self.resnet(&format!("{name}.resnets.1"), c, c, None);
    }
}

/// A UNet's forward pass over a latent of `height × width` cells and a context of `tokens`.
pub(crate) fn unet(config: &UNetConfig, height: usize, width: usize, tokens: usize) -> Vec<Layer> {
    let mut walk = Walk::new(height, width, tokens);
    let (time, channels) = (config.time_embed_dim(), &config.block_out_channels);
    let mut skips = walk.downward(config);
    let mut inner = channels.last().copied().unwrap_or(0);
    // Sides of each level: halving rounds up, and the way up returns to them.
    let mut sides = vec![(height, width)];
    for _ in 1..channels.len() {
        let (h, w) = sides[sides.len() - 1];
        sides.push((h.div_ceil(2), w.div_ceil(2)));
    }
    for (block, level) in (0..channels.len()).rev().enumerate() {
        let (c, name) = (channels[level], format!("up_blocks.{block}"));
        for layer in 0..=config.layers_per_block {
            let skip = skips.pop().unwrap_or(0);
            walk.resnet(&format!("{name}.resnets.{layer}"), inner + skip, c, Some(time));
            walk.attention(&format!("{name}.attentions.{layer}"), config, level);
            inner = c;
        }
        if level > 0 {
            (walk.height, walk.width) = sides[level - 1];
            walk.conv(&format!("{name}.upsamplers.0.conv"), c, c);
        }
    }
    walk.norm("conv_norm_out", inner);
    walk.conv("conv_out", inner, config.out_channels);
    walk.layers
}

/// A ControlNet's forward pass with its picture embedded already.
pub(crate) fn control_net(config: &UNetConfig, height: usize, width: usize, tokens: usize) -> Vec<Layer> {
    let mut walk = Walk::new(height, width, tokens);
    let skips = walk.downward(config);
    let last = config.block_out_channels.last().copied().unwrap_or(0);
    walk.pointwise("controlnet_mid_block", last, last);
    // Each at its own level's side.
    let (mut h, mut w) = (height, width);
    let per_level = config.layers_per_block + 1;
    for (index, c) in skips.into_iter().enumerate() {
        if index > 0 && index % per_level == 0 {
            (h, w) = (h.div_ceil(2), w.div_ceil(2));
        }
        (walk.height, walk.width) = (h, w);
        walk.pointwise(&format!("controlnet_down_blocks.{index}"), c, c);
    }
    walk.layers
}

/// The part of a ControlNet that embeds its picture of `8 height × 8 width` pixels.
pub(crate) fn hint(levels: &[usize], out: usize, height: usize, width: usize) -> Vec<Layer> {
    let mut walk = Walk::new(8 * height, 8 * width, 0);
    let name = |end: &str| format!("controlnet_cond_embedding.{end}");
    let mut inner = levels.first().copied().unwrap_or(0);
    walk.conv(&name("conv_in"), 3, inner);
    for (level, &next) in levels.iter().skip(1).enumerate() {
        walk.conv(&name(&format!("blocks.{}", 2 * level)), inner, inner);
        walk.strided(&name(&format!("blocks.{}", 2 * level + 1)), inner, next, 2);
        inner = next;
    }
    walk.conv(&name("conv_out"), inner, out);
    walk.layers
}

/// An autoencoder's way from a picture of `8 height × 8 width` to a latent.
pub(crate) fn vae_encoder(config: &VaeConfig, height: usize, width: usize) -> Vec<Layer> {
    let channels = &config.block_out_channels;
    let up = config.downscale();
    let mut walk = Walk::new(up * height, up * width, 0);
    let mut inner = channels.first().copied().unwrap_or(0);
    walk.conv("encoder.conv_in", config.in_channels, inner);
    for (level, &c) in channels.iter().enumerate() {
        for layer in 0..config.layers_per_block {
            walk.resnet(&format!("encoder.down_blocks.{level}.resnets.{layer}"), inner, c, None);
            inner = c;
        }
        if level + 1 < channels.len() {
            walk.strided(&format!("encoder.down_blocks.{level}.downsamplers.0.conv"), c, c, 2);
        }
    }
    walk.picture_middle("encoder.mid_block", inner);
    walk.norm("encoder.conv_norm_out", inner);
    walk.conv("encoder.conv_out", inner, 2 * config.latent_channels);
    walk.pointwise("quant_conv", 2 * config.latent_channels, 2 * config.latent_channels);
    walk.layers
}

/// An autoencoder's way from a latent of `height × width` cells to a picture.
pub(crate) fn vae_decoder(config: &VaeConfig, height: usize, width: usize) -> Vec<Layer> {
    let channels: Vec<usize> = config.block_out_channels.iter().rev().copied().collect();
    let mut walk = Walk::new(height, width, 0);
    let mut inner = channels.first().copied().unwrap_or(0);
    walk.pointwise("post_quant_conv", config.latent_channels, config.latent_channels);
    walk.conv("decoder.conv_in", config.latent_channels, inner);
    walk.picture_middle("decoder.mid_block", inner);
    for (level, &c) in channels.iter().enumerate() {
        for layer in 0..=config.layers_per_block {
            walk.resnet(&format!("decoder.up_blocks.{level}.resnets.{layer}"), inner, c, None);
            inner = c;
        }
        if level + 1 < channels.len() {
            (walk.height, walk.width) = (2 * walk.height, 2 * walk.width);
            walk.conv(&format!("decoder.up_blocks.{level}.upsamplers.0.conv"), c, c);
        }
    }
    walk.norm("decoder.conv_norm_out", inner);
    walk.conv("decoder.conv_out", inner, config.out_channels);
    walk.layers
}

/// A text encoder over one chunk.
pub(crate) fn clip(config: &ClipTextConfig, projected: bool) -> Vec<Layer> {
    let (n, c) = (config.max_position_embeddings, config.hidden_size);
    let mut walk = Walk::new(1, n, n);
    let table =
        |name: &str, rows| Layer::Table { name: format!("text_model.embeddings.{name}"), rows, width: c };
    walk.layers.push(table("token_embedding", config.vocab_size));
    walk.layers.push(table("position_embedding", n));
    for layer in 0..config.num_hidden_layers {
        let name = |end: &str| format!("text_model.encoder.layers.{layer}.{end}");
        walk.norm(&name("layer_norm1"), c);
        for end in ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"] {
            walk.linear(&name(end), c, c, true, n);
        }
        walk.layers.push(Layer::Attention {
            queries: n,
            keys: n,
            heads: config.num_attention_heads,
            width: c,
        });
        walk.linear(&name("self_attn.out_proj"), c, c, true, n);
        walk.norm(&name("layer_norm2"), c);
        walk.linear(&name("mlp.fc1"), c, config.intermediate_size, true, n);
        walk.linear(&name("mlp.fc2"), config.intermediate_size, c, true, n);
    }
    walk.norm("text_model.final_layer_norm", c);
    if let Some(width) = config.projection_dim.filter(|_| projected) {
        walk.linear("text_projection", c, width, false, 1);
    }
    walk.layers
}
