//! Binding: which layer of a model each module of a LoRA file changes, and its tensors, read to the device once and
//! checked against the layer before.

use candle_core::{DType, Tensor};

use super::aliases::{self, Aliases, Network, Place};
use super::change::{Axis, Change, Dora, Factor, Patch, Product};
use super::file::Module;
use super::parts::Role;
use super::{DenoiserKind, Family, Lora, LoraError, LoraFile, LoraTarget};
use crate::weights::{Kept, KeptOrder, KeptTensor};

/// Largest rank of a product with a core: both sides of the core grow with it.
const MAX_CORE_RANK: usize = 8192;

impl Aliases {
    fn of(target: &LoraTarget<'_>) -> Self {
        let names = |kept: &Kept| kept.iter().map(|(name, _)| name.to_owned()).collect::<Vec<_>>();
        let clip = |kept: &Kept| aliases::clip(names(kept).iter().map(String::as_str));
        let denoiser = names(target.denoiser);
        let denoiser = denoiser.iter().map(String::as_str);
        Self {
            denoiser: match target.kind {
                Some(DenoiserKind::UNet(config)) => aliases::unet(denoiser, config),
                Some(DenoiserKind::QwenImage) => aliases::transformer(denoiser),
                None => aliases::Spellings::default(),
            },
            clip_l: clip(target.clip_l),
            clip_g: target.clip_g.map(clip).unwrap_or_default(),
        }
    }
}

impl LoraFile {
    /// Finds the layers of `target` that this file changes and reads its tensors for them to where those are, in
    /// their stored type.
    ///
    /// # Errors
    /// When it was made for another kind of model, nothing in it fits, or a tensor is damaged or has a shape
    /// that fits neither its layer nor its counterpart.
    pub fn bind(&self, target: &LoraTarget<'_>) -> Result<Lora, LoraError> {
        let wanted = target.kind.map_or(Family::Sdxl, |kind| kind.family());
        let other_family = |family| LoraError::Family {
            file: self.name().to_owned(),
            family,
            model: target.denoiser.origin().to_owned(),
            wanted,
        };
        match target.kind {
            Some(DenoiserKind::UNet(config)) => {
                let context = self.context_width();
                if let Some(context) = context.filter(|context| *context != config.cross_attention_dim) {
                    return Err(other_family(Family::of_context(context)));
                }
            }
            Some(DenoiserKind::QwenImage) => {
                // Blocks of other transformers have the same names and, of Flux, the same shapes.
                if let Some(family) = self.family().filter(|family| *family != wanted) {
                    return Err(other_family(family));
                }
            }
            None => {}
        }
        let aliases = Aliases::of(target);
        let mut lora = Lora { unmatched: self.strays.clone(), ..Lora::default() };
        for (name, module) in &self.modules {
            let Some((network, places)) = aliases.find(name) else {
                lora.unmatched.extend(module.values().cloned());
                continue;
            };
            let (kept, layers) = match (network, target.clip_g) {
                (Network::Denoiser, _) => (target.denoiser, &mut lora.unet.layers),
                (Network::ClipG, Some(clip_g)) => (clip_g, &mut lora.clip_g.layers),
                _ => (target.clip_l, &mut lora.clip_l.layers),
            };
            for place in places {
                let mut binding = Binding {
                    file: self,
                    name,
                    module,
                    place,
                    packed: places.len(),
                    kept,
                    unmatched: Vec::new(),
                };
                let patch = binding.patch()?;
                lora.unmatched.append(&mut binding.unmatched);
                if patch.weight.is_none() && patch.bias.is_none() {
                    continue;
                }
                if layers.insert(place.layer.clone(), patch).is_some() {
                    let first = self.modules.keys().find(|other| {
                        let found = aliases.find(other);
                        found.is_some_and(|(n, places)| n == network && places.contains(place))
                    });
                    return Err(LoraError::Twice {
                        file: self.name().to_owned(),
                        first: first.cloned().unwrap_or_default(),
                        second: name.clone(),
                    });
                }
            }
        }
        lora.unmatched.sort();
        lora.unmatched.dedup();
        // A network alone may well be one that this LoRA does not change.
        let whole = match target.kind {
            Some(DenoiserKind::UNet(_)) => !target.denoiser.is_empty() && !target.clip_l.is_empty(),
            // There is nothing else that it could change.
            Some(DenoiserKind::QwenImage) => true,
            None => false,
        };
        if whole && lora.unet.is_empty() && lora.clip_l.is_empty() && lora.clip_g.is_empty() {
            return Err(match self.family().filter(|family| *family != wanted) {
                Some(family) => other_family(family),
                None => LoraError::NothingFits {
                    file: self.name().to_owned(),
                    modules: self.modules.len(),
                    first: self.modules.keys().next().cloned().unwrap_or_default().into(),
                    model: target.denoiser.origin().into(),
                    wanted,
                },
            });
        }
        Ok(lora)
    }
}

/// One module on its way to one layer.
struct Binding<'a> {
    file: &'a LoraFile,
    name: &'a str,
    module: &'a Module,
    place: &'a Place,
    /// How many layers share the module's rows.
    packed: usize,
    kept: &'a Kept,
    unmatched: Vec<String>,
}

/// A tensor of the file, not read yet.
#[derive(Clone, Copy)]
struct Found<'a> {
    stored: &'a str,
    shape: &'a [usize],
}

impl Found<'_> {
    fn elements(&self) -> usize {
        self.shape.iter().product()
    }

    fn dim(&self, dim: usize) -> usize {
        self.shape.get(dim).copied().unwrap_or(1)
    }
}

type Bound<T> = Result<T, LoraError>;

impl<'a> Binding<'a> {
    fn find(&self, role: Role) -> Option<Found<'a>> {
        let stored = self.module.get(&role)?;
        Some(Found { stored, shape: &self.file.info(stored)?.shape })
    }

    fn need(&self, role: Role, missing: &'static str) -> Bound<Found<'a>> {
        self.find(role).ok_or_else(|| LoraError::Incomplete {
            file: self.file.name().to_owned(),
            module: self.name.to_owned(),
            missing,
        })
    }

    fn read(&self, found: Found<'_>) -> Bound<Tensor> {
        Ok(self.file.file.tensor(found.stored, self.kept.device())?)
    }

    fn misfit(&self, found: Found<'_>, expected: &[usize]) -> LoraError {
        LoraError::Shape {
            file: self.file.name().to_owned(),
            tensor: found.stored.into(),
            found: found.shape.into(),
            layer: self.place.layer.as_str().into(),
            expected: expected.into(),
        }
    }

    fn ranks_differ(&self, first: Found<'_>, second: Found<'_>) -> LoraError {
        LoraError::Rank {
            file: self.file.name().to_owned(),
            first: first.stored.into(),
            first_shape: first.shape.into(),
            second: second.stored.into(),
            second_shape: second.shape.into(),
        }
    }

    /// Alpha over `rank`; 1 without alpha.
    fn scale(&self, rank: Option<usize>) -> Bound<f64> {
        let (Some(alpha), Some(rank)) = (self.find(Role::Alpha), rank) else { return Ok(1.0) };
        Ok(self.file.file.scalar(alpha.stored)? / rank as f64)
    }

    fn patch(&mut self) -> Bound<Patch> {
        let layer = &self.place.layer;
        let kept = self.kept.get(&format!("{layer}.weight"));
        let shape = kept.map(KeptTensor::shape).unwrap_or_default();
        let weight = match kept {
            Some(kept) => self.weight(&Layer {
                outputs: shape.first().copied().unwrap_or(0),
                channels_last: kept.order == KeptOrder::ChannelsLast,
                shape: shape.clone(),
            })?,
            None => None,
        };
        Ok(Patch { weight, bias: self.bias()?, shape })
    }

    fn bias(&mut self) -> Bound<Option<Tensor>> {
        let mut found = [Role::DiffBias, Role::NormBias].into_iter().filter_map(|role| self.find(role));
        let (first, second) = (found.next(), found.next());
        if let (Some(first), Some(second)) = (first, second) {
            return Err(self.twice(first, second));
        }
        let Some(found) = first else { return Ok(None) };
        let Some(kept) = self.kept.get(&format!("{}.bias", self.place.layer)) else {
            self.unmatched.push(found.stored.to_owned());
            return Ok(None);
        };
        let shape = kept.shape();
        let length: usize = shape.iter().product();
        if found.elements() != length * self.packed {
            return Err(self.misfit(found, &shape));
        }
        let all = self.read(found)?.reshape((self.packed, length))?;
        Ok(Some(all.get(self.place.third.unwrap_or(0))?.reshape(shape)?.contiguous()?))
    }

    fn twice(&self, first: Found<'_>, second: Found<'_>) -> LoraError {
        LoraError::Twice {
            file: self.file.name().to_owned(),
            first: first.stored.to_owned(),
            second: second.stored.to_owned(),
        }
    }

    fn weight(&self, layer: &Layer) -> Bound<Option<Change>> {
        let ways = [
            &[Role::Up, Role::Down, Role::Mid] as &[_],
            &[Role::Hada1A, Role::Hada1B, Role::Hada2A, Role::Hada2B],
            &[Role::Kron1, Role::Kron1A, Role::Kron1B, Role::Kron2, Role::Kron2A, Role::Kron2B],
            &[Role::Diff],
            &[Role::Norm],
            &[Role::Set],
        ];
        let way = |roles: &[Role]| roles.iter().find_map(|role| self.find(*role));
        let mut present = ways.iter().enumerate().filter_map(|(i, roles)| Some((i, way(roles)?)));
        let Some((way, first)) = present.next() else {
            return match [Role::DoraScale, Role::Magnitude].into_iter().find_map(|role| self.find(role)) {
                Some(_) => self.need(Role::Down, "factors for its magnitudes").map(|_| None),
                None => Ok(None),
            };
        };
        if let Some((_, second)) = present.next() {
            return Err(self.twice(first, second));
        }
        Ok(Some(match way {
            0 => self.low_rank(layer)?,
            1 => self.hadamard(layer)?,
            2 => self.kronecker(layer)?,
            5 => Change::Set(self.whole(layer, first)?),
            _ => Change::Difference(self.whole(layer, first)?),
        }))
    }

    /// A tensor with as many elements as the layer's weight.
    fn whole(&self, layer: &Layer, found: Found<'_>) -> Bound<Tensor> {
        if found.elements() != layer.elements() * self.packed {
            return Err(self.misfit(found, &layer.shape));
        }
        let all = self.read(found)?.reshape((self.packed, layer.elements()))?;
        Ok(all.get(self.place.third.unwrap_or(0))?.reshape(layer.shape.as_slice())?.contiguous()?)
    }

    /// `up · down`, with the convolution between them folded into `down`.
    fn low_rank(&self, layer: &Layer) -> Bound<Change> {
        let up = self.need(Role::Up, "up (B) factor")?;
        let down = self.need(Role::Down, "down (A) factor")?;
        let rank = down.dim(0);
        if layer.shape.len() < 2 || up.dim(0) != layer.outputs * self.packed {
            return Err(self.misfit(up, &layer.shape));
        }
        if rank == 0 || up.elements() != up.dim(0) * rank {
            return Err(self.ranks_differ(up, down));
        }
        let dora = self.dora(layer)?;
        let scale = self.scale(Some(rank))?;
        let columns = layer.elements() / layer.outputs.max(1);
        let down = match self.find(Role::Mid) {
            None if down.elements() == rank * columns => self.read(down)?,
            None => return Err(self.misfit(down, &layer.shape)),
            Some(mid) => {
                let (inputs, taps) = (layer.shape.get(1).copied().unwrap_or(0), layer.taps());
                if down.elements() != rank * inputs {
                    return Err(self.misfit(down, &layer.shape));
                }
                let [_, _, spatial @ ..] = mid.shape else { return Err(self.ranks_differ(mid, down)) };
                if mid.dim(0) != rank || mid.dim(1) != rank || rank > MAX_CORE_RANK {
                    return Err(self.ranks_differ(mid, down));
                }
                if spatial.iter().product::<usize>() != taps {
                    return Err(self.misfit(mid, &layer.shape));
                }
                let down = self.read(down)?.to_dtype(DType::F32)?.reshape((rank, inputs))?;
                let mid = self.read(mid)?.to_dtype(DType::F32)?.reshape((rank, rank, taps))?;
                let mid = mid.transpose(0, 1)?.reshape((rank, rank * taps))?;
                let folded = down.t()?.matmul(&mid)?.reshape((inputs, rank, taps))?;
                folded.transpose(0, 1)?.contiguous()?
            }
        };
        let down = match layer.shape.as_slice() {
            [_, inputs, height, width] if layer.channels_last => {
                let down = down.reshape((rank, *inputs, *height, *width))?;
                down.permute((0, 2, 3, 1))?.contiguous()?
            }
            _ => down.reshape((rank, columns))?,
        };
        let up = self.read(up)?.reshape((layer.outputs * self.packed, rank))?;
        let start = self.place.third.unwrap_or(0) * layer.outputs;
        let up = up.narrow(0, start, layer.outputs)?.contiguous()?;
        Ok(Change::LowRank { down, up, scale, dora })
    }

    fn hadamard(&self, layer: &Layer) -> Bound<Change> {
        let product = |a, b, core| {
            let a = self.need(a, "first LoHa factor (hada_w1_a or hada_w2_a)")?;
            let b = self.need(b, "second LoHa factor (hada_w1_b or hada_w2_b)")?;
            Ok::<_, LoraError>((a, b, self.find(core)))
        };
        let first = product(Role::Hada1A, Role::Hada1B, Role::Hada1Core)?;
        let second = product(Role::Hada2A, Role::Hada2B, Role::Hada2Core)?;
        if first.2.is_some() != second.2.is_some() {
            self.need(Role::Hada1Core, "Tucker core hada_t1")?;
            self.need(Role::Hada2Core, "Tucker core hada_t2")?;
        }
        self.unpacked(first.0)?;
        for (a, b, core) in [first, second] {
            let (rows, columns) = self.product_shape(a, b, core)?;
            if rows != layer.outputs || rows.checked_mul(columns) != Some(layer.elements()) {
                return Err(self.misfit(b, &layer.shape));
            }
        }
        let scale = self.scale(Some(first.1.dim(0)))?;
        let dora = self.dora(layer)?;
        Ok(Change::Hadamard { first: self.product(first)?, second: self.product(second)?, scale, dora })
    }

    fn kronecker(&self, layer: &Layer) -> Bound<Change> {
        let mut rank = None;
        let mut rows = 1usize;
        let mut elements = Some(1usize);
        let mut factor = |whole, a, b, core: Option<Role>, missing| {
            let Some(found) = self.find(whole) else {
                let product =
                    (self.need(a, missing)?, self.need(b, missing)?, core.and_then(|c| self.find(c)));
                let (a, b) = self.product_shape(product.0, product.1, product.2)?;
                rows = rows.saturating_mul(a);
                elements = elements.and_then(|n| n.checked_mul(a)?.checked_mul(b));
                rank = Some(product.1.dim(0));
                return Ok::<_, LoraError>((None, Some(product)));
            };
            if found.shape.len() < 2 {
                return Err(self.misfit(found, &layer.shape));
            }
            rows = rows.saturating_mul(found.dim(0));
            elements = elements.and_then(|n| n.checked_mul(found.elements()));
            Ok((Some(found), None))
        };
        let first = factor(Role::Kron1, Role::Kron1A, Role::Kron1B, None, "first LoKr factor (lokr_w1)")?;
        let core = Some(Role::Kron2Core);
        let second = factor(Role::Kron2, Role::Kron2A, Role::Kron2B, core, "second LoKr factor (lokr_w2)")?;
        let any = first.0.or(second.0).or(first.1.map(|product| product.0));
        let any =
            any.or(second.1.map(|product| product.0)).unwrap_or(Found { stored: self.name, shape: &[] });
        self.unpacked(any)?;
        if rows != layer.outputs || elements != Some(layer.elements()) {
            return Err(self.misfit(any, &layer.shape));
        }
        let scale = self.scale(rank)?;
        let dora = self.dora(layer)?;
        let read = |(whole, product): (Option<Found<'_>>, Option<_>)| match (whole, product) {
            (Some(whole), _) => Ok(Factor::Whole(self.read(whole)?)),
            (None, Some(product)) => Ok(Factor::Product(self.product(product)?)),
            (None, None) => Err(self.misfit(any, &layer.shape)),
        };
        Ok(Change::Kronecker { first: read(first)?, second: read(second)?, scale, dora })
    }

    /// Rows and columns of `a · b`, or of `a · core · b`.
    fn product_shape(&self, a: Found<'_>, b: Found<'_>, core: Option<Found<'_>>) -> Bound<(usize, usize)> {
        let [rank, _, ..] = b.shape else { return Err(self.ranks_differ(a, b)) };
        let columns = b.elements() / (*rank).max(1);
        let fits =
            |fits: bool, other| if fits && *rank > 0 { Ok(()) } else { Err(self.ranks_differ(a, other)) };
        let Some(core) = core else {
            fits(a.elements() == a.dim(0) * rank, b)?;
            return Ok((a.dim(0), columns));
        };
        let ranks = [a.dim(0), *rank];
        let shaped = core.shape.len() == 4 && ranks == [core.dim(0), core.dim(1)];
        fits(shaped && ranks.iter().all(|rank| *rank <= MAX_CORE_RANK && *rank > 0), core)?;
        fits(a.shape.len() == 2 && b.shape.len() == 2, b)?;
        Ok((a.dim(1), columns.saturating_mul(core.dim(2)).saturating_mul(core.dim(3))))
    }

    fn product(&self, (a, b, core): (Found<'_>, Found<'_>, Option<Found<'_>>)) -> Bound<Product> {
        let core = core.map(|core| self.read(core)).transpose()?;
        Ok(Product { a: self.read(a)?, b: self.read(b)?, core })
    }

    /// Fails for what cannot be shared out among the layers of a packed projection.
    fn unpacked(&self, found: Found<'_>) -> Bound<()> {
        if self.packed == 1 {
            return Ok(());
        }
        Err(LoraError::Unsupported {
            file: self.file.name().to_owned(),
            tensor: found.stored.to_owned(),
            kind: "a change of a packed projection that is not plainly low-rank",
        })
    }

    fn dora(&self, layer: &Layer) -> Bound<Option<Dora>> {
        let scale = self.find(Role::DoraScale);
        let Some(found) = scale.or_else(|| self.find(Role::Magnitude)) else { return Ok(None) };
        self.unpacked(found)?;
        let inputs = layer.shape.get(1).copied().unwrap_or(0);
        let outputs = found.dim(0) == layer.outputs && found.elements() == layer.outputs;
        let axis = match scale {
            Some(_) if outputs => Axis::OutputOfBase,
            None if found.elements() == layer.outputs => Axis::OutputOfSum,
            Some(_) if layer.shape.len() > 1 && found.elements() == inputs => Axis::Input,
            _ => return Err(self.misfit(found, &layer.shape)),
        };
        Ok(Some(Dora { magnitudes: self.read(found)?.flatten_all()?, axis }))
    }
}

/// The weight that a module changes.
struct Layer {
    /// Canonical: `[out, in]`, `[out, in, height, width]`, or a norm's `[channels]`.
    shape: Vec<usize>,
    outputs: usize,
    channels_last: bool,
}

impl Layer {
    fn elements(&self) -> usize {
        self.shape.iter().product()
    }

    fn taps(&self) -> usize {
        self.shape.iter().skip(2).product()
    }
}
