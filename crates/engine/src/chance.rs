//! Chance for simulations: the same again for the same seed.

use jiff::Timestamp;

/// Chance with a memory (splitmix64).
pub struct Chance(pub u64);

impl Chance {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        (z ^ (z >> 31)) >> 33
    }

    /// A number below `end`.
    pub fn below(&mut self, end: usize) -> usize {
        usize::try_from(self.next()).expect("31 bits") % end
    }

    /// The same, of a time.
    pub fn time(&mut self, end: u64) -> u64 {
        self.next() % end.max(1)
    }

    /// Whether it is this one.
    pub fn one_in(&mut self, many: usize) -> bool {
        self.below(many) == 0
    }
}

/// The seed of this run: another each time, or `DUNNAGE_SEED`. It is printed.
pub fn seed() -> u64 {
    let seed = match std::env::var("DUNNAGE_SEED") {
        Ok(seed) => seed.parse().expect("DUNNAGE_SEED is a number"),
        Err(_) => u64::from(std::process::id()) << 32 | u64::from(Timestamp::now().subsec_nanosecond().unsigned_abs()),
    };
    println!("DUNNAGE_SEED={seed}");
    seed
}
