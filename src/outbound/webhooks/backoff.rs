//! How long to wait after a failed attempt.

use std::time::Duration;

use sha2::{Digest, Sha256};

/// Longest wait, also where a receiver asks for more.
pub(super) const LONGEST: Duration = Duration::from_secs(3600);

/// The wait after attempt number `attempt` (from 1) of delivery `id`: 1 s, 4 s, 16 s, …, and up to a quarter more,
/// so that deliveries that failed together do not come back together. At least `asked`, what the receiver wants;
/// never more than [`LONGEST`].
///
/// The share that is added follows from the id and the attempt: spread over deliveries, yet the same each time.
pub(super) fn wait_after(id: &str, attempt: u32, asked: Option<Duration>) -> Duration {
    let seconds = 4_u64.saturating_pow(attempt.saturating_sub(1)).min(LONGEST.as_secs());
    let digest = Sha256::digest(format!("{id}/{attempt}"));
    let share = f64::from(u16::from_be_bytes([digest[0], digest[1]])) / 65536.0;
    let wait = Duration::from_secs(seconds).mul_f64(1.0 + 0.25 * share);
    wait.max(asked.unwrap_or_default()).min(LONGEST)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_fourfold_to_an_hour() {
        let expected = [1, 4, 16, 64, 256, 1024, 3600, 3600];
        for (attempt, seconds) in (1..).zip(expected) {
            let wait = wait_after("a", attempt, None).as_secs_f64();
            let least = f64::from(seconds);
            assert!((least..=(least * 1.25).min(3600.0)).contains(&wait), "{attempt}: {wait}");
        }
        assert_eq!(wait_after("a", u32::MAX, None), LONGEST);
    }

    #[test]
    fn deliveries_that_fail_together_come_back_apart() {
        let waits: std::collections::HashSet<_> =
            (0..100).map(|n| wait_after(&n.to_string(), 3, None)).collect();
        assert!(waits.len() > 95, "{}", waits.len());
    }

    #[test]
    fn a_receiver_may_ask_for_more_but_not_for_less_or_for_ever() {
        let asked = |seconds| wait_after("a", 2, Some(Duration::from_secs(seconds)));
        assert_eq!(asked(90), Duration::from_secs(90));
        assert_eq!(asked(0), wait_after("a", 2, None));
        assert_eq!(asked(u64::MAX), LONGEST);
    }
}
