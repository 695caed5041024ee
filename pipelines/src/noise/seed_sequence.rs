//! numpy's `SeedSequence`: a tree of seeds from one number, by hashing (O'Neill's `seed_seq_fe` design).

const INIT_A: u32 = 0x43b0_d7e5;
const MULT_A: u32 = 0x931e_8875;
const INIT_B: u32 = 0x8b51_f9dd;
const MULT_B: u32 = 0x58f3_8ded;
const MIX_MULT_L: u32 = 0xca01_f9dd;
const MIX_MULT_R: u32 = 0x4973_f715;

/// Pool size that torchsde's `BrownianTree` asks for.
const POOL: usize = 24;

/// First word of `SeedSequence(entropy, spawn_key=spawn_key, pool_size=24).generate_state(n)`.
pub(super) fn first_word(entropy: u64, spawn_key: &[u64]) -> u32 {
    let mut words = Vec::with_capacity(POOL + 2 * spawn_key.len());
    push_words(&mut words, entropy);
    if !spawn_key.is_empty() {
        words.resize(POOL, 0);
    }
    for &key in spawn_key {
        push_words(&mut words, key);
    }
    generate_first(mix_pool(&words)[0])
}

/// The 32-bit words of a number, lowest first, without leading zeros; zero has one word.
fn push_words(words: &mut Vec<u32>, number: u64) {
    words.push(number as u32);
    let high = (number >> 32) as u32;
    if high != 0 {
        words.push(high);
    }
}

fn mix_pool(entropy: &[u32]) -> [u32; POOL] {
    let mut constant = INIT_A;
    let mut hash = |value: u32| {
        let value = value ^ constant;
        constant = constant.wrapping_mul(MULT_A);
        let value = value.wrapping_mul(constant);
        value ^ (value >> 16)
    };
    let mut pool = [0u32; POOL];
    for (i, slot) in pool.iter_mut().enumerate() {
        *slot = hash(entropy.get(i).copied().unwrap_or(0));
    }
    for source in 0..POOL {
        for target in 0..POOL {
            if source != target {
                pool[target] = mix(pool[target], hash(pool[source]));
            }
        }
    }
    for &word in entropy.iter().skip(POOL) {
        for slot in &mut pool {
            *slot = mix(*slot, hash(word));
        }
    }
    pool
}

fn mix(x: u32, y: u32) -> u32 {
    let mixed = MIX_MULT_L.wrapping_mul(x).wrapping_sub(MIX_MULT_R.wrapping_mul(y));
    mixed ^ (mixed >> 16)
}

fn generate_first(word: u32) -> u32 {
    let word = (word ^ INIT_B).wrapping_mul(INIT_B.wrapping_mul(MULT_B));
    word ^ (word >> 16)
}

#[cfg(test)]
mod tests {
    use super::first_word;

    /// From numpy 2.4: `SeedSequence(entropy, spawn_key=key, pool_size=24).generate_state(1)[0]`.
    #[test]
    fn seeds_equal_those_of_numpy() {
        let golden: &[(u64, &[u64], u32)] = &[
            (0, &[], 4025752534),
            (0, &[0, 0], 245430115),
            (0, &[1, 1], 712187387),
            (0, &[5, 3], 2230703150),
            (0, &[16777233, 25], 4252069315),
            (1, &[], 1562320788),
            (1, &[1, 1], 2299143983),
            (1, &[16777233, 25], 4234235285),
            (12345, &[], 2888090517),
            (12345, &[1, 1], 2815068364),
            (12345, &[16777233, 25], 2668754828),
            (4294967295, &[], 1804619225),
            (4294967295, &[1, 1], 699286931),
            (4294967295, &[16777233, 25], 1987119339),
            (4294967296, &[], 434701594),
            (4294967296, &[1, 1], 3261137881),
            (4294967296, &[16777233, 25], 2687370228),
            (1099511627783, &[], 3531690330),
            (1099511627783, &[1, 1], 500863053),
            (1099511627783, &[16777233, 25], 172929293),
            (18446744073709551601, &[], 2118565715),
            (18446744073709551601, &[1, 1], 3495387790),
            (18446744073709551601, &[16777233, 25], 3163520896),
            (18446744073709551615, &[], 1186816001),
            (18446744073709551615, &[1, 1], 879418184),
            (18446744073709551615, &[16777233, 25], 503832434),
        ];
        for &(entropy, key, expected) in golden {
            assert_eq!(first_word(entropy, key), expected, "entropy {entropy}, key {key:?}");
        }
    }
}
