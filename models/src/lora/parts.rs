//! What the tensors of a LoRA file are, told by the ends of their names: `….lora_up.weight`, `….hada_w1_a`.

/// What a tensor is to its module.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Role {
    /// The factor on the input's side, `[rank, in, ..]`.
    Down,
    /// The factor on the output's side, `[out, rank, ..]`.
    Up,
    /// A convolution between them (LoCon's Tucker form).
    Mid,
    /// A number: the change is scaled by it over the rank.
    Alpha,
    /// DoRA's magnitudes, as LyCORIS and kohya's scripts store them.
    DoraScale,
    /// DoRA's magnitudes, as PEFT stores them.
    Magnitude,
    /// LoHa's factors.
    Hada1A,
    /// See [`Role::Hada1A`].
    Hada1B,
    /// LoHa's Tucker core.
    Hada1Core,
    /// See [`Role::Hada1A`].
    Hada2A,
    /// See [`Role::Hada1A`].
    Hada2B,
    /// See [`Role::Hada1Core`].
    Hada2Core,
    /// LoKr's first factor, whole.
    Kron1,
    /// LoKr's first factor, itself a product.
    Kron1A,
    /// See [`Role::Kron1A`].
    Kron1B,
    /// LoKr's second factor, whole.
    Kron2,
    /// LoKr's second factor, itself a product.
    Kron2A,
    /// See [`Role::Kron2A`].
    Kron2B,
    /// LoKr's Tucker core.
    Kron2Core,
    /// Added to the weight as it is.
    Diff,
    /// Added to the bias.
    DiffBias,
    /// Added to a norm's scale.
    Norm,
    /// Added to a norm's shift.
    NormBias,
    /// Put in place of the weight.
    Set,
}

/// What a stored name says.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Name<'a> {
    /// A part of a module.
    Part(&'a str, Role),
    /// A part of a kind that is not supported.
    Unsupported(&'static str),
    /// Nothing that a LoRA is made of.
    Unknown,
}

const ENDS: &[(&str, Role)] = &[
    (".lora_up.weight", Role::Up),
    (".lora_down.weight", Role::Down),
    (".lora_mid.weight", Role::Mid),
    (".lora_B.weight", Role::Up),
    (".lora_A.weight", Role::Down),
    (".lora_B", Role::Up),
    (".lora_A", Role::Down),
    (".lora.up.weight", Role::Up),
    (".lora.down.weight", Role::Down),
    (".lora_linear_layer.up.weight", Role::Up),
    (".lora_linear_layer.down.weight", Role::Down),
    ("_lora.up.weight", Role::Up),
    ("_lora.down.weight", Role::Down),
    (".alpha", Role::Alpha),
    (".dora_scale", Role::DoraScale),
    (".lora_magnitude_vector.weight", Role::Magnitude),
    (".lora_magnitude_vector", Role::Magnitude),
    (".hada_w1_a", Role::Hada1A),
    (".hada_w1_b", Role::Hada1B),
    (".hada_t1", Role::Hada1Core),
    (".hada_w2_a", Role::Hada2A),
    (".hada_w2_b", Role::Hada2B),
    (".hada_t2", Role::Hada2Core),
    (".lokr_w1", Role::Kron1),
    (".lokr_w1_a", Role::Kron1A),
    (".lokr_w1_b", Role::Kron1B),
    (".lokr_w2", Role::Kron2),
    (".lokr_w2_a", Role::Kron2A),
    (".lokr_w2_b", Role::Kron2B),
    (".lokr_t2", Role::Kron2Core),
    (".diff", Role::Diff),
    (".diff_b", Role::DiffBias),
    (".w_norm", Role::Norm),
    (".b_norm", Role::NormBias),
    (".set_weight", Role::Set),
];

/// PEFT's names of several adapters in one file: `….lora_A.NAME.weight`.
const NAMED: &[(&str, Role)] =
    &[(".lora_B", Role::Up), (".lora_A", Role::Down), (".lora_magnitude_vector", Role::Magnitude)];

const UNSUPPORTED: &[(&str, &str)] = &[
    (".oft_blocks", "an OFT or BOFT file"),
    (".oft_diag", "an OFT file"),
    (".oft_R", "an OFT file"),
    (".boft_R", "a BOFT file"),
    (".a1.weight", "a GLoRA file"),
    (".a2.weight", "a GLoRA file"),
    (".b1.weight", "a GLoRA file"),
    (".b2.weight", "a GLoRA file"),
    (".on_input", "an IA3 file"),
    (".reshape_weight", "a LoRA that changes the shape of layers"),
];

impl Role {
    /// Whether it says what a layer becomes, rather than how strongly.
    pub(super) fn changes(self) -> bool {
        !matches!(self, Self::Alpha)
    }
}

/// Reads a stored name.
pub(super) fn name(stored: &str) -> Name<'_> {
    for (end, role) in ENDS {
        if let Some(module) = stored.strip_suffix(end) {
            return Name::Part(module, *role);
        }
    }
    // `….lora_A.default.weight`, and the same without the last part.
    let bare = stored.strip_suffix(".weight").unwrap_or(stored);
    if let Some((head, _)) = bare.rsplit_once('.') {
        for (end, role) in NAMED {
            if let Some(module) = head.strip_suffix(end) {
                // `….lora_B.bias` is a bias, which no rank scales.
                let bias = stored.ends_with(".bias");
                return if bias { Name::Unknown } else { Name::Part(module, *role) };
            }
        }
    }
    match UNSUPPORTED.iter().find(|(end, _)| stored.ends_with(end)) {
        Some((_, kind)) => Name::Unsupported(kind),
        None => Name::Unknown,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_trainers_spelling_is_the_same_part_of_the_same_module() {
        for (up, down) in [
            ("m.x.lora_up.weight", "m.x.lora_down.weight"),
            ("m.x.lora_B.weight", "m.x.lora_A.weight"),
            ("m.x.lora_B.default.weight", "m.x.lora_A.default.weight"),
            ("m.x.lora_B.default", "m.x.lora_A.default"),
            ("m.x.lora_B", "m.x.lora_A"),
            ("m.x_lora.up.weight", "m.x_lora.down.weight"),
            ("m.x.lora.up.weight", "m.x.lora.down.weight"),
            ("m.x.lora_linear_layer.up.weight", "m.x.lora_linear_layer.down.weight"),
        ] {
            assert_eq!(name(up), Name::Part("m.x", Role::Up), "{up}");
            assert_eq!(name(down), Name::Part("m.x", Role::Down), "{down}");
        }
    }

    #[test]
    fn factors_are_not_taken_for_wholes() {
        assert_eq!(name("x.lokr_w1_a"), Name::Part("x", Role::Kron1A));
        assert_eq!(name("x.diff_b"), Name::Part("x", Role::DiffBias));
        assert_eq!(name("x.lora_B.bias"), Name::Unknown);
        assert_eq!(name("x.lora_B.default.bias"), Name::Unknown);
        assert_eq!(name("down_blocks.0.resnets.0.conv1.weight"), Name::Unknown);
        assert_eq!(name(""), Name::Unknown);
    }

    #[test]
    fn kinds_without_support_are_known_by_name() {
        assert_eq!(name("x.oft_blocks"), Name::Unsupported("an OFT or BOFT file"));
        assert_eq!(name("x.a1.weight"), Name::Unsupported("a GLoRA file"));
    }
}
