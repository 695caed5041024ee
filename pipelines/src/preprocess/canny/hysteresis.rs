//! The last step of both methods: weak pixels are edges where they touch strong ones.

/// What thinning and thresholds made of a pixel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Strength {
    /// No ridge, or below the low threshold.
    None,
    /// Between the thresholds.
    Weak,
    /// Above the high threshold.
    Strong,
}

/// Which pixels are edges: the strong ones, and the weak ones that touch an edge on a side or at a corner.
pub(super) fn connected(mut strengths: Vec<Strength>, width: usize) -> Vec<bool> {
    let height = strengths.len() / width.max(1);
    let strong = |(i, s): (usize, &Strength)| (*s == Strength::Strong).then_some(i);
    let mut open: Vec<usize> = strengths.iter().enumerate().filter_map(strong).collect();
    while let Some(i) = open.pop() {
        let (x, y) = (i % width, i / width);
        for y in y.saturating_sub(1)..=(y + 1).min(height - 1) {
            for x in x.saturating_sub(1)..=(x + 1).min(width - 1) {
                let neighbour = y * width + x;
                if strengths[neighbour] == Strength::Weak {
                    strengths[neighbour] = Strength::Strong;
                    open.push(neighbour);
                }
            }
        }
    }
    strengths.into_iter().map(|strength| strength == Strength::Strong).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_weak_line_counts_as_far_as_it_hangs_together_with_a_strong_pixel() {
        let picture = ["w....", ".w.s.", "..w..", "....w", ".ww.."];
        let of = |c| match c {
            's' => Strength::Strong,
            'w' => Strength::Weak,
            _ => Strength::None,
        };
        let edges = connected(picture.iter().flat_map(|row| row.chars().map(of)).collect(), 5);
        let shown: Vec<String> =
            edges.chunks(5).map(|row| row.iter().map(|e| if *e { '#' } else { '.' }).collect()).collect();
        assert_eq!(shown, ["#....", ".#.#.", "..#..", ".....", "....."]);
    }
}
