//! Draws skeletons: bodies as ellipses between joints and discs on them, hands as thin lines, faces as dots, each in
//! the colours of OpenPose's ControlNets, on black.

use super::raster::{Canvas, Colour};
use super::{Hand, Joint, Keypoint, Person, Pose};
use crate::Picture;

/// Shorter side, pixels, at which skeletons have the sizes below: what detectors usually work at.
const USUAL_SIDE: f64 = 512.0;
/// Half the width of a limb, and the radius of a joint, pixels.
const STICK: f64 = 4.0;
/// Width of a finger's line, pixels.
const FINGER: f64 = 2.0;
/// Radius of a hand's joint, pixels.
const KNUCKLE: f64 = 4.0;
/// Radius of a face's dot, pixels.
const DOT: f64 = 3.0;
/// Whole pixels must survive their way through shares in f32, pixels.
const ROUNDING: f64 = 1e-3;
/// Longest side that is drawn, pixels.
const MAX_SIDE: usize = 16_384;

/// Hues all around, by joint and by limb.
const COLOURS: [Colour; super::BODY_POINTS] = [
    [255, 0, 0],
    [255, 85, 0],
    [255, 170, 0],
    [255, 255, 0],
    [170, 255, 0],
    [85, 255, 0],
    [0, 255, 0],
    [0, 255, 85],
    [0, 255, 170],
    [0, 255, 255],
    [0, 170, 255],
    [0, 85, 255],
    [0, 0, 255],
    [85, 0, 255],
    [170, 0, 255],
    [255, 0, 255],
    [255, 0, 170],
    [255, 0, 85],
];

/// Limbs in the order in which they are drawn and take their colours.
const LIMBS: [(Joint, Joint); 17] = [
    (Joint::Neck, Joint::RightShoulder),
    (Joint::Neck, Joint::LeftShoulder),
    (Joint::RightShoulder, Joint::RightElbow),
    (Joint::RightElbow, Joint::RightWrist),
    (Joint::LeftShoulder, Joint::LeftElbow),
    (Joint::LeftElbow, Joint::LeftWrist),
    (Joint::Neck, Joint::RightHip),
    (Joint::RightHip, Joint::RightKnee),
    (Joint::RightKnee, Joint::RightAnkle),
    (Joint::Neck, Joint::LeftHip),
    (Joint::LeftHip, Joint::LeftKnee),
    (Joint::LeftKnee, Joint::LeftAnkle),
    (Joint::Neck, Joint::Nose),
    (Joint::Nose, Joint::RightEye),
    (Joint::RightEye, Joint::RightEar),
    (Joint::Nose, Joint::LeftEye),
    (Joint::LeftEye, Joint::LeftEar),
];

/// `pose` on black, `width` × `height` pixels (each taken for 1 to 16,384). Limbs are 8 pixels wide where the shorter
/// side has 512, and keep that share: a control picture means the same at every size.
///
/// A pose that knows its canvas is shown whole and undistorted, in the middle; another is stretched.
pub fn draw(pose: &Pose, width: usize, height: usize) -> Picture {
    draw_scaled(pose, width, height, width.min(height) as f64 / USUAL_SIDE)
}

/// [`draw`] with limbs `8 × scale` pixels wide: 1 is what `controlnet_aux` draws at every size. A scale that is not
/// positive is taken for the least.
pub fn draw_scaled(pose: &Pose, width: usize, height: usize, scale: f64) -> Picture {
    let (width, height) = (width.clamp(1, MAX_SIDE), height.clamp(1, MAX_SIDE));
    let brush = Brush { frame: Frame::new(pose.canvas, width, height), scale };
    let mut canvas = Canvas::new(width, height);
    for person in &pose.people {
        brush.person(&mut canvas, person);
    }
    let data = canvas.into_data().into_iter().map(|value| f32::from(value) / 255.0).collect();
    // The buffer has the length that the size asks for, so a picture it is.
    Picture::new(width, height, data).unwrap_or_else(|| Picture::black(width, height))
}

/// Where the pose's canvas lies in the picture, pixels.
#[derive(Debug, Clone, Copy)]
struct Frame {
    left: f64,
    top: f64,
    width: f64,
    height: f64,
}

impl Frame {
    fn new(canvas: Option<(u32, u32)>, width: usize, height: usize) -> Self {
        let (width, height) = (width as f64, height as f64);
        let Some((w, h)) =
            canvas.map(|(w, h)| (f64::from(w), f64::from(h))).filter(|(w, h)| *w > 0.0 && *h > 0.0)
        else {
            return Self { left: 0.0, top: 0.0, width, height };
        };
        let scale = (width / w).min(height / h);
        let (w, h) = (w * scale, h * scale);
        Self { left: (width - w) / 2.0, top: (height - h) / 2.0, width: w, height: h }
    }

    fn at(&self, point: Keypoint) -> (f64, f64) {
        (self.left + f64::from(point.x) * self.width, self.top + f64::from(point.y) * self.height)
    }
}

struct Brush {
    frame: Frame,
    scale: f64,
}

impl Brush {
    fn size(&self, pixels: f64) -> i64 {
        ((pixels * self.scale).round() as i64).clamp(1, MAX_SIDE as i64)
    }

    /// The pixel that a point lies in; towards zero, as Python's `int`.
    fn pixel(&self, point: Keypoint) -> (i64, i64) {
        let (x, y) = self.frame.at(point);
        ((x + ROUNDING) as i64, (y + ROUNDING) as i64)
    }

    fn person(&self, canvas: &mut Canvas, person: &Person) {
        self.body(canvas, person);
        for hand in [&person.left_hand, &person.right_hand].into_iter().flatten() {
            self.hand(canvas, hand);
        }
        for point in person.face.iter().flatten().flatten() {
            canvas.disc(self.pixel(*point), self.size(DOT), [255; 3]);
        }
    }

    fn body(&self, canvas: &mut Canvas, person: &Person) {
        for ((from, to), colour) in LIMBS.iter().zip(COLOURS) {
            let (Some(from), Some(to)) = (person.body[from.index()], person.body[to.index()]) else {
                continue;
            };
            let ((x0, y0), (x1, y1)) = (self.frame.at(from), self.frame.at(to));
            let middle = (((x0 + x1) / 2.0 + ROUNDING) as i64, ((y0 + y1) / 2.0 + ROUNDING) as i64);
            let half = ((x0 - x1).hypot(y0 - y1) / 2.0 + ROUNDING) as i64;
            let degrees = (y0 - y1).atan2(x0 - x1).to_degrees() as i64;
            // Limbs are darker than joints: 60 %.
            let colour = colour.map(|value| (f64::from(value) * 0.6) as u8);
            canvas.ellipse(middle, (half, self.size(STICK)), degrees, colour);
        }
        for (point, colour) in person.body.iter().zip(COLOURS) {
            if let Some(point) = point {
                canvas.disc(self.pixel(*point), self.size(STICK), colour);
            }
        }
    }

    fn hand(&self, canvas: &mut Canvas, hand: &Hand) {
        // Five fingers of four bones, each from the wrist.
        for bone in 0..20 {
            let (from, to) = (if bone % 4 == 0 { 0 } else { bone }, bone + 1);
            if let (Some(from), Some(to)) = (hand[from], hand[to]) {
                let colour = hue(bone as f64 / 20.0);
                canvas.line(self.pixel(from), self.pixel(to), self.size(FINGER), colour);
            }
        }
        for point in hand.iter().flatten() {
            canvas.disc(self.pixel(*point), self.size(KNUCKLE), [0, 0, 255]);
        }
    }
}

/// The full colour of a hue, `0..1` around from red by way of green.
fn hue(hue: f64) -> Colour {
    let channel = |offset: f64| {
        let k = (offset + hue * 6.0) % 6.0;
        (255.0 * (1.0 - k.min(4.0 - k).clamp(0.0, 1.0))).round_ties_even() as u8
    };
    [channel(5.0), channel(3.0), channel(1.0)]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn standing() -> Pose {
        Pose::from_json(
            r#"{"joints": {"neck": [0.5, 0.2], "left_hip": [0.5, 0.8], "right_shoulder": [0.1, 0.2]}}"#,
        )
        .unwrap()
    }

    fn lit(picture: &Picture) -> Vec<(usize, usize)> {
        let pixels = picture.data().chunks_exact(3).enumerate().filter(|(_, rgb)| **rgb != [0.0; 3]);
        pixels.map(|(i, _)| (i % picture.width(), i / picture.width())).collect()
    }

    #[test]
    fn hues_go_from_red_by_way_of_green() {
        assert_eq!(
            [hue(0.0), hue(0.25), hue(1.0 / 3.0), hue(0.5)],
            [[255, 0, 0], [128, 255, 0], [0, 255, 0], [0, 255, 255]]
        );
    }

    #[test]
    fn limbs_take_the_same_share_of_every_size() {
        let share = |side| lit(&draw(&standing(), side, side)).len() as f64 / (side * side) as f64;
        let usual = share(512);
        for side in [256, 1024] {
            let ratio = share(side) / usual;
            // A limb is 2 × 4 × scale + 1 pixels wide: the one counts for more in small pictures.
            assert!((0.8..1.2).contains(&ratio), "{side}: {ratio}");
        }
        assert!(
            lit(&draw_scaled(&standing(), 512, 512, f64::NAN)).len()
                < lit(&draw(&standing(), 512, 512)).len() / 2
        );
    }

    #[test]
    fn a_pose_that_knows_its_canvas_is_not_distorted() {
        let mut pose = standing();
        let stretched = lit(&draw(&pose, 512, 256));
        pose.canvas = Some((100, 100));
        let fitted = lit(&draw(&pose, 512, 256));
        let leftmost = |pixels: &[(usize, usize)]| pixels.iter().map(|(x, _)| *x).min();
        // A tenth of the width from the left edge, against a tenth of the square of 256 that begins at 128.
        assert_eq!((leftmost(&stretched), leftmost(&fitted)), (Some(51 - 2), Some(128 + 25 - 2)));
    }

    #[test]
    fn every_size_is_drawn() {
        for (width, height) in [(0, 0), (1, 1), (3, 700)] {
            let picture = draw(&standing(), width, height);
            assert_eq!((picture.width(), picture.height()), (width.max(1), height.max(1)));
        }
    }
}
