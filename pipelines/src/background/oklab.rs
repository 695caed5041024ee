//! OKLab (Ottosson 2020): a space in which equal distances look equally different.

/// Lightness (0 to 1) and two axes of colour.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Oklab(pub(super) [f32; 3]);

impl Oklab {
    /// From sRGB values in `0..=1`; what is outside or no number counts as the nearest bound or as 0.
    pub(super) fn from_pixel(rgb: &[f32]) -> Self {
        let linear = |i: usize| {
            let v = rgb.get(i).copied().filter(|v| v.is_finite()).unwrap_or(0.0).clamp(0.0, 1.0);
            if v <= 0.04045 { v / 12.92 } else { ((v + 0.055) / 1.055).powf(2.4) }
        };
        let (r, g, b) = (linear(0), linear(1), linear(2));
        let l = (0.412_221_46 * r + 0.536_332_55 * g + 0.051_445_995 * b).cbrt();
        let m = (0.211_903_5 * r + 0.680_699_5 * g + 0.107_396_96 * b).cbrt();
        let s = (0.088_302_46 * r + 0.281_718_85 * g + 0.629_978_7 * b).cbrt();
        Self([
            0.210_454_26 * l + 0.793_617_8 * m - 0.004_072_047 * s,
            1.977_998_5 * l - 2.428_592_2 * m + 0.450_593_7 * s,
            0.025_904_037 * l + 0.782_771_77 * m - 0.808_675_77 * s,
        ])
    }

    /// Euclidean distance; black and white are 1 apart.
    pub(super) fn distance(self, other: Self) -> f32 {
        self.0.iter().zip(other.0).map(|(a, b)| (a - b) * (a - b)).sum::<f32>().sqrt()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn published_values_of_pure_colours_are_met() {
        for (rgb, expected) in [
            ([1.0, 1.0, 1.0], [1.0, 0.0, 0.0]),
            ([1.0, 0.0, 0.0], [0.627_96, 0.224_86, 0.125_85]),
            ([0.0, 1.0, 0.0], [0.866_44, -0.233_89, 0.179_5]),
            ([0.0, 0.0, 1.0], [0.452_01, -0.032_46, -0.311_53]),
        ] {
            let error = Oklab::from_pixel(&rgb).distance(Oklab(expected));
            assert!(error < 2e-4, "{rgb:?}: {error}");
        }
    }

    #[test]
    fn no_number_is_black() {
        assert_eq!(Oklab::from_pixel(&[f32::NAN; 3]), Oklab::from_pixel(&[0.0; 3]));
    }
}
