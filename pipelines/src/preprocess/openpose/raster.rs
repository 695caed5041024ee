//! Discs, ellipses and thick lines without anti-aliasing, by the rules of OpenCV's drawing functions, with which
//! skeletons are usually drawn.

/// An 8-bit RGB canvas. What lies outside is not drawn.
pub(super) struct Canvas {
    width: usize,
    height: usize,
    data: Vec<u8>,
}

/// Red, green, blue.
pub(super) type Colour = [u8; 3];

impl Canvas {
    /// A black one.
    pub(super) fn new(width: usize, height: usize) -> Self {
        Self { width, height, data: vec![0; width * height * 3] }
    }

    /// The values, `[height, width, 3]`.
    pub(super) fn into_data(self) -> Vec<u8> {
        self.data
    }

    /// A filled circle (Bresenham's), as `cv2.circle`.
    pub(super) fn disc(&mut self, (x, y): (i64, i64), radius: i64, colour: Colour) {
        let (mut wide, mut narrow, mut error) = (radius, 0, 0);
        while wide >= narrow {
            for (half, offset) in [(wide, narrow), (narrow, wide)] {
                self.row(y - offset, x - half, x + half, colour);
                self.row(y + offset, x - half, x + half, colour);
            }
            error += 2 * narrow + 1;
            narrow += 1;
            if error > 0 {
                error -= 2 * wide - 1;
                wide -= 1;
            }
        }
    }

    /// A filled ellipse with half axes `along` and `across`, turned by whole `degrees`: the polygon of
    /// `cv2.ellipse2Poly` with a corner for each degree.
    pub(super) fn ellipse(
        &mut self,
        (x, y): (i64, i64),
        (along, across): (i64, i64),
        degrees: i64,
        colour: Colour,
    ) {
        let (sin, cos) = (degrees as f64).to_radians().sin_cos();
        let corner = |i: i32| {
            let (v, u) = f64::from(i).to_radians().sin_cos();
            let (u, v) = (along as f64 * u, across as f64 * v);
            let corner = (x as f64 + u * cos - v * sin, y as f64 + u * sin + v * cos);
            (corner.0.round_ties_even(), corner.1.round_ties_even())
        };
        let corners: Vec<_> = (0..=360).map(corner).collect();
        self.convex(&corners, colour);
    }

    /// A line `thickness` pixels wide with round ends.
    pub(super) fn line(&mut self, from: (i64, i64), to: (i64, i64), thickness: i64, colour: Colour) {
        let (x0, y0, x1, y1) = (from.0 as f64, from.1 as f64, to.0 as f64, to.1 as f64);
        let half = thickness as f64 / 2.0;
        let length = (x1 - x0).hypot(y1 - y0);
        if length > 0.0 {
            let (dx, dy) = ((y1 - y0) / length * half, (x1 - x0) / length * half);
            let corners = [(x0 + dx, y0 - dy), (x0 - dx, y0 + dy), (x1 - dx, y1 + dy), (x1 + dx, y1 - dy)];
            self.convex(&corners, colour);
        }
        for end in [from, to] {
            self.disc(end, (half + 0.5) as i64, colour);
        }
    }

    /// A convex polygon with its border: on each row all pixels between the outermost ones.
    fn convex(&mut self, corners: &[(f64, f64)], colour: Colour) {
        let last = self.height as f64 - 1.0;
        let mut spans = vec![(i64::MAX, i64::MIN); self.height];
        let mut cover = |x: f64, y: f64| {
            let y = (y + 0.5).floor();
            if (0.0..=last).contains(&y) {
                let (x, (low, high)) = ((x + 0.5).floor() as i64, &mut spans[y as usize]);
                (*low, *high) = ((*low).min(x), (*high).max(x));
            }
        };
        let previous = corners.iter().cycle().skip(corners.len().saturating_sub(1));
        for (&(x0, y0), &(x1, y1)) in previous.zip(corners) {
            let (dx, dy) = (x1 - x0, y1 - y0);
            // The border's pixels, one a step along the longer axis …
            let steps = dx.abs().max(dy.abs()).ceil().max(1.0);
            for step in 0..=steps as i64 {
                let share = step as f64 / steps;
                cover(x0 + dx * share, y0 + dy * share);
            }
            // … and where it crosses the rows.
            let (top, bottom) = (y0.min(y1).max(0.0).ceil(), y0.max(y1).min(last).floor());
            for y in top as i64..=bottom as i64 {
                if dy != 0.0 {
                    cover(x0 + dx * (y as f64 - y0) / dy, y as f64);
                }
            }
        }
        for (y, (low, high)) in spans.into_iter().enumerate() {
            self.row(y as i64, low, high, colour);
        }
    }

    /// Pixels `from..=to` of row `y`.
    fn row(&mut self, y: i64, from: i64, to: i64, colour: Colour) {
        let Some(y) = usize::try_from(y).ok().filter(|y| *y < self.height) else { return };
        let (from, to) = (from.max(0), to.min(self.width as i64 - 1));
        if from > to {
            return;
        }
        let row = &mut self.data[y * self.width * 3..][..self.width * 3];
        row[from as usize * 3..(to as usize + 1) * 3].as_chunks_mut::<3>().0.fill(colour);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(canvas: Canvas) -> Vec<String> {
        let width = canvas.width;
        let lit = |pixel: &[u8]| if pixel == [0; 3] { '.' } else { '#' };
        canvas.into_data().chunks(width * 3).map(|row| row.chunks(3).map(lit).collect()).collect()
    }

    #[test]
    fn a_disc_of_radius_4_is_opencvs() {
        let mut canvas = Canvas::new(9, 9);
        canvas.disc((4, 4), 4, [255; 3]);
        let rows = ["....#....", "..#####..", ".#######.", ".#######.", "#########"];
        assert_eq!(shown(canvas)[..5], rows);
    }

    #[test]
    fn what_is_outside_is_cut() {
        let mut canvas = Canvas::new(4, 3);
        canvas.disc((-1000, 5000), 40, [1; 3]);
        canvas.ellipse((2, 1), (4000, 1), 0, [1; 3]);
        canvas.line((-9000, -20), (9000, -20), 2, [1; 3]);
        assert_eq!(shown(canvas), ["####", "####", "####"]);
    }

    #[test]
    fn a_point_is_a_short_line() {
        let mut canvas = Canvas::new(5, 5);
        canvas.line((2, 2), (2, 2), 2, [1; 3]);
        assert_eq!(shown(canvas), [".....", "..#..", ".###.", "..#..", "....."]);
    }
}
