//! Keying of drawn pictures whose true alpha is known.

use proptest::prelude::*;

use super::*;

const GREEN: [f32; 3] = [0.35, 0.8, 0.4];
const PINK: [f32; 3] = [0.9, 0.45, 0.6];
const LINE: [f32; 3] = [0.15, 0.1, 0.15];

/// What is drawn at a point, in pixels.
type Scene<'a> = &'a dyn Fn(f32, f32) -> [f32; 3];

/// Draws with 8 × 8 points a pixel, so that edges are mixtures as drawings have them.
fn draw(width: usize, height: usize, scene: Scene<'_>) -> Picture {
    let mut data = Vec::new();
    for y in 0..height {
        for x in 0..width {
            let mut sum = [0f32; 3];
            for point in 0..64 {
                let at = |i: usize, base: usize| base as f32 + (i as f32 + 0.5) / 8.0;
                let colour = scene(at(point % 8, x), at(point / 8, y));
                sum.iter_mut().zip(colour).for_each(|(sum, v)| *sum += v / 64.0);
            }
            data.extend(sum);
        }
    }
    Picture::new(width, height, data).unwrap()
}

fn from_centre(x: f32, y: f32) -> f32 {
    ((x - 32.0).powi(2) + (y - 32.0).powi(2)).sqrt()
}

fn disc(background: [f32; 3], inside: [f32; 3]) -> Picture {
    draw(64, 64, &|x, y| if from_centre(x, y) < 20.3 { inside } else { background })
}

/// Deterministic grain of about ±`size`.
fn with_grain(picture: &Picture, size: f32) -> Picture {
    let data = picture.data().iter().enumerate().map(|(i, v)| {
        let noise = (i as u32).wrapping_mul(2_654_435_761).rotate_left(13).wrapping_mul(0x9E37_79B9) >> 8;
        v + size * (noise as f32 / f32::from(u16::MAX) / 128.0 - 1.0)
    });
    Picture::new(picture.width(), picture.height(), data.collect()).unwrap()
}

fn alpha_at(cutout: &Cutout, x: usize, y: usize) -> f32 {
    cutout.alpha.data()[y * cutout.alpha.width() + x]
}

#[test]
fn the_alpha_of_a_disc_is_its_coverage() {
    let cutout = key_out(&disc(GREEN, PINK), &KeyOptions::default()).unwrap();
    let truth = disc([0.0; 3], [1.0; 3]);
    let errors: Vec<f32> =
        cutout.alpha.data().iter().zip(truth.data().chunks_exact(3)).map(|(a, t)| (a - t[0]).abs()).collect();
    let edge = truth.data().chunks_exact(3).filter(|t| t[0] > 0.0 && t[0] < 1.0).count();
    assert!(edge > 80, "{edge} edge pixels");
    assert!(errors.iter().sum::<f32>() / (edge as f32) < 0.1, "{}", errors.iter().sum::<f32>() / edge as f32);
    assert!(errors.iter().all(|e| *e < 0.35), "{:?}", errors.iter().copied().fold(0.0, f32::max));
    assert_eq!(cutout.border_share, 1.0);
    assert_eq!(cutout.colour, GREEN.map(|v| (255.0 * v).round() as u8));
}

#[test]
fn the_background_leaves_no_tint_on_the_edge() {
    let picture = disc(GREEN, PINK);
    let cutout = key_out(&picture, &KeyOptions::default()).unwrap();
    let tint = |picture: &Picture| {
        let visible = picture.data().chunks_exact(3).zip(cutout.alpha.data()).filter(|(_, a)| **a > 0.2);
        visible
            .map(|(p, _)| p.iter().zip(PINK).map(|(p, t)| (p - t).abs()).fold(0.0, f32::max))
            .fold(0.0, f32::max)
    };
    assert!(tint(&picture) > 0.25, "the test's picture has a tint to remove: {}", tint(&picture));
    assert!(tint(&cutout.picture) < 0.12, "{}", tint(&cutout.picture));
}

#[test]
fn a_thin_dark_outline_stays_opaque() {
    let picture = draw(64, 64, &|x, y| match from_centre(x, y) {
        d if d < 18.0 => PINK,
        d if d < 21.0 => LINE,
        _ => GREEN,
    });
    let cutout = key_out(&picture, &KeyOptions::default()).unwrap();
    for y in 0..64 {
        for x in 0..64 {
            let d = from_centre(x as f32 + 0.5, y as f32 + 0.5);
            if d < 20.0 {
                assert_eq!(alpha_at(&cutout, x, y), 1.0, "({x}, {y}), {d} from the centre");
            }
            if d > 22.0 {
                assert_eq!(alpha_at(&cutout, x, y), 0.0, "({x}, {y}), {d} from the centre");
            }
        }
    }
}

#[test]
fn a_hole_is_kept_unless_enclosed_areas_are_asked_for() {
    let picture = draw(64, 64, &|x, y| match from_centre(x, y) {
        d if d < 6.0 => GREEN,
        d if d < 20.0 => PINK,
        _ => GREEN,
    });
    let kept = key_out(&picture, &KeyOptions::default()).unwrap();
    assert_eq!(alpha_at(&kept, 32, 32), 1.0);
    let removed = key_out(&picture, &KeyOptions { enclosed: true, ..Default::default() }).unwrap();
    assert_eq!(alpha_at(&removed, 32, 32), 0.0);
    assert_eq!(alpha_at(&removed, 32, 45), 1.0);
}

#[test]
fn a_bust_that_fills_the_lower_edge_is_cut_out() {
    let picture = draw(64, 64, &|x, y| if y > 40.0 || from_centre(x, y) < 14.0 { PINK } else { GREEN });
    let cutout = key_out(&picture, &KeyOptions::default()).unwrap();
    assert!((0.7..0.8).contains(&cutout.border_share), "{}", cutout.border_share);
    assert_eq!((alpha_at(&cutout, 2, 2), alpha_at(&cutout, 2, 60)), (0.0, 1.0));
}

#[test]
fn a_shirt_of_the_backgrounds_colour_on_the_lower_edge_is_kept() {
    // As white shirts on white: an outline closes it off from the background, the lower edge does not.
    let picture = draw(64, 64, &|x, y| match from_centre(x, y - 32.0) {
        d if d < 18.0 => GREEN,
        d if d < 22.0 => LINE,
        _ => GREEN,
    });
    let cutout = key_out(&picture, &KeyOptions::default()).unwrap();
    assert_eq!((alpha_at(&cutout, 32, 63), alpha_at(&cutout, 2, 63)), (1.0, 0.0));
}

#[test]
fn grain_on_the_background_leaves_nothing_behind() {
    let picture = with_grain(&disc(GREEN, PINK), 0.05);
    let cutout = key_out(&picture, &KeyOptions::default()).unwrap();
    for y in 0..64 {
        for x in 0..64 {
            if from_centre(x as f32 + 0.5, y as f32 + 0.5) > 25.0 {
                assert_eq!(alpha_at(&cutout, x, y), 0.0, "({x}, {y})");
            }
        }
    }
}

#[test]
fn a_gradient_is_refused_and_the_error_says_what_to_do() {
    let picture = draw(64, 64, &|x, y| [x / 64.0, y / 64.0, 0.5]);
    let error = key_out(&picture, &KeyOptions::default()).unwrap_err();
    assert!(matches!(error, BackgroundError::NotFlat { share, .. } if share < 0.4), "{error}");
    let message = error.to_string();
    for part in ["not flat", " % of it is", "simple background", "background-removal model"] {
        assert!(message.contains(part), "{message}");
    }
}

#[test]
fn a_background_that_shades_off_is_refused_although_most_of_it_is_one_colour() {
    let picture = draw(64, 64, &|_, y| [0.6, 0.8, 0.95].map(|v: f32| v - 0.005 * (y - 16.0).max(0.0)));
    let error = key_out(&picture, &KeyOptions::default()).unwrap_err();
    let BackgroundError::NotFlat { share, shaded, .. } = error else { panic!("{error}") };
    assert!(share > LEAST_BORDER_SHARE && shaded > MOST_SHADED * share, "{share} {shaded}");
    assert!(key_out(&picture, &KeyOptions { tolerance: 0.25, ..Default::default() }).is_ok());
}

#[test]
fn a_given_colour_is_taken_even_where_another_is_commoner() {
    // Green on a quarter of the border, white on the rest.
    let picture = draw(64, 64, &|_, y| if y < 20.0 { GREEN } else { [1.0; 3] });
    let colour = Some(GREEN.map(|v| (255.0 * v).round() as u8));
    let cutout = key_out(&picture, &KeyOptions { colour, ..Default::default() }).unwrap();
    assert_eq!((alpha_at(&cutout, 30, 5), alpha_at(&cutout, 30, 50)), (0.0, 1.0));
    let absent = KeyOptions { colour: Some([0, 0, 255]), ..Default::default() };
    assert_eq!(
        key_out(&picture, &absent).unwrap_err(),
        BackgroundError::Absent { colour: [0, 0, 255], share: 0.0 }
    );
}

#[test]
fn options_out_of_bounds_and_no_numbers_are_refused() {
    let picture = disc(GREEN, PINK);
    for tolerance in [0.0, -1.0, 0.6, f32::NAN, f32::INFINITY] {
        let error = key_out(&picture, &KeyOptions { tolerance, ..Default::default() }).unwrap_err();
        assert!(error.to_string().starts_with("tolerance"), "{error}");
    }
    for softness in [-0.1, 0.6, f32::NAN] {
        let error = key_out(&picture, &KeyOptions { softness, ..Default::default() }).unwrap_err();
        assert!(error.to_string().starts_with("softness"), "{error}");
    }
}

#[test]
fn without_softness_the_tolerance_is_a_hard_limit() {
    let cutout = key_out(&disc(GREEN, PINK), &KeyOptions { softness: 0.0, ..Default::default() }).unwrap();
    assert_eq!((alpha_at(&cutout, 0, 0), alpha_at(&cutout, 32, 32)), (0.0, 1.0));
}

#[test]
fn four_bytes_a_pixel_hold_colour_and_alpha() {
    let cutout = key_out(&disc(GREEN, PINK), &KeyOptions::default()).unwrap();
    let bytes = cutout.to_rgba8();
    assert_eq!(bytes.len(), 64 * 64 * 4);
    let middle = 4 * (32 * 64 + 32);
    assert_eq!(bytes[middle..middle + 4], [229, 114, 152, 255]);
    assert_eq!(bytes[3], 0);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn any_picture_of_any_size_is_keyed_or_refused(
        (width, height, data) in (1usize..24, 1usize..24).prop_flat_map(|(w, h)| {
            let value = prop_oneof![8 => 0f32..=1.0, 1 => Just(f32::NAN), 1 => Just(1e30), 8 => Just(0.5)];
            (Just(w), Just(h), proptest::collection::vec(value, w * h * 3))
        }),
        tolerance in 0.01f32..0.5,
        softness in 0f32..0.5,
        enclosed: bool,
    ) {
        let picture = Picture::new(width, height, data).unwrap();
        let options = KeyOptions { tolerance, softness, enclosed, ..Default::default() };
        if let Ok(cutout) = key_out(&picture, &options) {
            prop_assert!(cutout.alpha.data().iter().all(|a| (0.0..=1.0).contains(a)));
            prop_assert!(cutout.picture.data().iter().all(|v| (0.0..=1.0).contains(v)));
            prop_assert!(cutout.border_share >= LEAST_BORDER_SHARE);
            prop_assert!(cutout.alpha.data().contains(&0.0));
        }
    }

    #[test]
    fn a_rectangle_of_another_colour_is_cut_out_whole(
        background in proptest::array::uniform3(0f32..=1.0),
        inside in proptest::array::uniform3(0f32..=1.0),
        left in 6usize..20,
        top in 6usize..20,
        mirrored: bool,
    ) {
        let far = Oklab::from_pixel(&background).distance(Oklab::from_pixel(&inside));
        prop_assume!(far > 0.15);
        let covers = |x: f32, y: f32| (left as f32..30.0).contains(&x) && (top as f32..40.0).contains(&y);
        let picture = draw(48, 48, &|x, y| {
            if covers(if mirrored { 48.0 - x } else { x }, y) { inside } else { background }
        });
        let cutout = key_out(&picture, &KeyOptions::default()).unwrap();
        for y in 0..48 {
            for x in 0..48 {
                let centre = x as f32 + 0.5;
                let truth = covers(if mirrored { 48.0 - centre } else { centre }, y as f32 + 0.5);
                prop_assert_eq!(alpha_at(&cutout, x, y), f32::from(truth), "({}, {})", x, y);
            }
        }
    }
}
