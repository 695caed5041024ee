//! Numbers that are random, and the same again from the same seed.

use std::time::SystemTime;

/// SplitMix64 (Steele et al., 2014).
pub(crate) struct Chance(u64);

impl Chance {
    /// Seeded by the clock, or by `DARKROOM_TEST_SEED` to repeat a run. Prints the seed, which is shown when the test
    /// fails.
    pub(crate) fn new() -> Self {
        let given = std::env::var("DARKROOM_TEST_SEED").ok().and_then(|text| text.parse().ok());
        let clock =
            || SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().subsec_nanos().into();
        let seed: u64 = given.unwrap_or_else(clock);
        println!("to repeat this: DARKROOM_TEST_SEED={seed}");
        Self(seed)
    }

    /// At least 0, less than `end`.
    pub(crate) fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % end
    }
}
