//! Which pixels are background: what the fill from the border reaches, and what is added to that.

/// A set of pixels of a picture.
#[derive(Debug, Clone)]
pub(super) struct Region {
    width: usize,
    height: usize,
    inside: Vec<bool>,
}

impl Region {
    /// Everything that four-connected steps over pixels within `tolerance` reach from the picture's upper edge and
    /// sides. Not from the lower edge: a white shirt that the picture cuts off would be filled from there.
    pub(super) fn from_border(distance: &[f32], width: usize, height: usize, tolerance: f32) -> Self {
        let mut region = Self { width, height, inside: vec![false; distance.len()] };
        let mut open: Vec<usize> =
            (0..width).chain((0..height).flat_map(|y| [y * width, y * width + width - 1])).collect();
        while let Some(i) = open.pop() {
            if !region.inside[i] && distance[i] <= tolerance {
                region.inside[i] = true;
                open.extend(region.neighbours(i));
            }
        }
        region
    }

    /// Adds areas within `tolerance` that the fill did not reach, if they are large enough to be seen as gaps.
    pub(super) fn add_enclosed(&mut self, distance: &[f32], tolerance: f32) {
        for area in self.areas_outside(|i| distance[i] <= tolerance) {
            if area.len() >= self.speck() {
                self.add(&area);
            }
        }
    }

    /// Adds areas outside that are too small to be anything and nowhere farther than `limit` from the background's
    /// colour: the blots that decoders and compression leave on flat colours.
    pub(super) fn add_specks(&mut self, distance: &[f32], limit: f32) {
        for area in self.areas_outside(|_| true) {
            if area.len() < self.speck() && area.iter().all(|&i| distance[i] <= limit) {
                self.add(&area);
            }
        }
    }

    /// Whether pixel `(x, y)` is inside.
    pub(super) fn contains(&self, x: usize, y: usize) -> bool {
        self.inside[y * self.width + x]
    }

    /// Whether any pixel is inside within `reach` pixels of each, along both axes and diagonals.
    pub(super) fn within_reach(&self, reach: usize) -> Vec<bool> {
        let mut wide = self.inside.clone();
        for (row, near) in self.inside.chunks_exact(self.width).zip(wide.chunks_exact_mut(self.width)) {
            for (x, near) in near.iter_mut().enumerate() {
                *near = row[x.saturating_sub(reach)..(x + reach + 1).min(self.width)].contains(&true);
            }
        }
        let mut near = vec![false; wide.len()];
        for y in 0..self.height {
            let target = &mut near[y * self.width..(y + 1) * self.width];
            for other in y.saturating_sub(reach)..(y + reach + 1).min(self.height) {
                let row = &wide[other * self.width..(other + 1) * self.width];
                target.iter_mut().zip(row).for_each(|(target, near)| *target |= near);
            }
        }
        near
    }

    /// Pixels of the largest area that is too small to matter.
    fn speck(&self) -> usize {
        (self.inside.len() / 4096).max(4)
    }

    fn add(&mut self, area: &[usize]) {
        for &i in area {
            self.inside[i] = true;
        }
    }

    /// The four-connected areas of pixels that are outside and fulfil `belongs`.
    fn areas_outside(&self, belongs: impl Fn(usize) -> bool) -> Vec<Vec<usize>> {
        let mut seen = self.inside.clone();
        let mut areas = Vec::new();
        for start in 0..seen.len() {
            if seen[start] || !belongs(start) {
                continue;
            }
            seen[start] = true;
            let mut area = vec![start];
            let mut next = 0;
            while let Some(&i) = area.get(next) {
                next += 1;
                for neighbour in self.neighbours(i) {
                    if !seen[neighbour] && belongs(neighbour) {
                        seen[neighbour] = true;
                        area.push(neighbour);
                    }
                }
            }
            areas.push(area);
        }
        areas
    }

    fn neighbours(&self, i: usize) -> impl Iterator<Item = usize> + use<> {
        let (x, y, width) = (i % self.width, i / self.width, self.width);
        let left = (x > 0).then(|| i - 1);
        let right = (x + 1 < width).then_some(i + 1);
        let above = (y > 0).then(|| i - width);
        let below = (y + 1 < self.height).then_some(i + width);
        [left, right, above, below].into_iter().flatten()
    }
}
