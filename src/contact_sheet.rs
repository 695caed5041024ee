//! The contact sheet of a pack: all pictures on one page, each with its label, under the character's prompt.
//! Draws into plain RGB; the font is compiled in, so the page looks the same on every machine.

use ab_glyph::{Font, FontRef, Glyph, PxScale, ScaleFont, point};
use image::imageops::{FilterType, resize};
use image::{Rgb, RgbImage};

/// What goes on a sheet.
#[derive(Debug, Clone)]
pub struct Sheet<'a> {
    /// A short line above the title: what kind of sheet it is.
    pub heading: &'a str,
    /// The title: the character's prompt. Up to three lines are shown.
    pub title: &'a str,
    /// A small line at the bottom: model and settings.
    pub footer: &'a str,
    /// The pictures, in reading order.
    pub tiles: Vec<Tile<'a>>,
}

/// One picture of a sheet.
#[derive(Debug, Clone)]
pub struct Tile<'a> {
    /// What a person calls it: `Gentle smile`.
    pub label: &'a str,
    /// What programs call it: `smile_gentle`.
    pub name: &'a str,
    /// The picture.
    pub picture: &'a RgbImage,
}

/// Why a sheet could not be drawn.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SheetError {
    /// A sheet of no pictures.
    #[error("a contact sheet needs at least one picture")]
    Empty,
    /// The font that is compiled in is damaged.
    #[error("the built-in font cannot be read: {0}")]
    Font(#[from] ab_glyph::InvalidFont),
}

const BACKGROUND: Rgb<u8> = Rgb([0x16, 0x15, 0x17]);
const CARD: Rgb<u8> = Rgb([0x24, 0x22, 0x26]);
const TEXT: Rgb<u8> = Rgb([0xf4, 0xf0, 0xea]);
const QUIET: Rgb<u8> = Rgb([0x9a, 0x94, 0x90]);
/// The red of a darkroom's safelight.
const SAFELIGHT: Rgb<u8> = Rgb([0xf0, 0x5a, 0x46]);

const MARGIN: u32 = 40;
const GAP: u32 = 18;
const PADDING: u32 = 10;
const LABELS: u32 = 56;
const CORNER: f32 = 12.0;
const FOOTER: u32 = 22;
/// Pictures below this are magnified by a whole factor, so that nothing blurs more than it must.
const SMALLEST_SIDE: u32 = 224;
/// Pictures above this are scaled down.
const LARGEST_SIDE: u32 = 384;

const HEADING_SIZE: f32 = 17.0;
const TITLE_SIZE: f32 = 32.0;
const TITLE_LINE: u32 = 42;
const TITLE_LINES: usize = 3;
const LABEL_SIZE: f32 = 22.0;
const NAME_SIZE: f32 = 15.0;
const FOOTER_SIZE: f32 = 15.0;

/// Draws the sheet.
pub fn draw(sheet: &Sheet<'_>) -> Result<RgbImage, SheetError> {
    if sheet.tiles.is_empty() {
        return Err(SheetError::Empty);
    }
    let regular = FontRef::try_from_slice(dejavu::sans::regular())?;
    let bold = FontRef::try_from_slice(dejavu::sans::bold())?;

    let pictures: Vec<RgbImage> = sheet.tiles.iter().map(|tile| fitted(tile.picture)).collect();
    let cell_width = pictures.iter().map(RgbImage::width).max().unwrap_or(0) + 2 * PADDING;
    let cell_height = pictures.iter().map(RgbImage::height).max().unwrap_or(0) + 2 * PADDING + LABELS;
    let columns = columns(pictures.len()) as u32;
    let rows = (pictures.len() as u32).div_ceil(columns);
    // Narrow sheets still leave room for the title.
    let content = (columns * cell_width + (columns - 1) * GAP).max(2 * SMALLEST_SIDE);
    let width = 2 * MARGIN + content;

    let title = wrapped(&bold, TITLE_SIZE, sheet.title, content as f32, TITLE_LINES);
    let header = MARGIN + 34 + TITLE_LINE * title.len() as u32 + 16;
    let height = header + rows * (cell_height + GAP) + FOOTER + MARGIN;

    let mut page = RgbImage::from_pixel(width, height, BACKGROUND);
    let left = MARGIN as f32;
    rounded(&mut page, MARGIN, MARGIN + 1, 5, HEADING_SIZE as u32, 2.5, SAFELIGHT);
    text(&mut page, &bold, HEADING_SIZE, left + 15.0, MARGIN as f32, SAFELIGHT, sheet.heading);
    for (line, words) in title.iter().enumerate() {
        let y = MARGIN + 34 + TITLE_LINE * line as u32;
        text(&mut page, &bold, TITLE_SIZE, left, y as f32, TEXT, words);
    }

    for (index, (tile, picture)) in sheet.tiles.iter().zip(&pictures).enumerate() {
        let index = index as u32;
        let x = MARGIN + (index % columns) * (cell_width + GAP);
        let y = header + (index / columns) * (cell_height + GAP);
        rounded(&mut page, x, y, cell_width, cell_height, CORNER, CARD);
        let (px, py) = (x + (cell_width - picture.width()) / 2, y + PADDING);
        paste(&mut page, picture, px, py, CORNER - 5.0);
        let room = (cell_width - 2 * PADDING) as f32;
        let below = (y + cell_height - LABELS) as f32;
        let label = shortened(&bold, LABEL_SIZE, tile.label, room);
        text(&mut page, &bold, LABEL_SIZE, (x + PADDING + 2) as f32, below, TEXT, &label);
        let name = shortened(&regular, NAME_SIZE, tile.name, room);
        text(&mut page, &regular, NAME_SIZE, (x + PADDING + 2) as f32, below + 27.0, QUIET, &name);
    }

    let footer = shortened(&regular, FOOTER_SIZE, sheet.footer, content as f32);
    text(&mut page, &regular, FOOTER_SIZE, left, (height - MARGIN - 12) as f32, QUIET, &footer);
    Ok(page)
}

/// The number of columns, 1 to 6, that leaves the fewest empty cells on a page a bit wider than high.
fn columns(count: usize) -> usize {
    if count <= 4 {
        return count;
    }
    let ideal = (count as f64 * 1.3).sqrt();
    let cost = |columns: usize| {
        let empty = columns * count.div_ceil(columns) - count;
        empty as f64 * 0.6 + (columns as f64 - ideal).abs()
    };
    (3..=6).min_by(|a, b| cost(*a).total_cmp(&cost(*b))).unwrap_or(4)
}

fn fitted(picture: &RgbImage) -> RgbImage {
    let (width, height) = picture.dimensions();
    let longest = width.max(height).max(1);
    if longest > LARGEST_SIDE {
        let side = |length: u32| {
            ((u64::from(length) * u64::from(LARGEST_SIDE)).div_ceil(u64::from(longest)) as u32).max(1)
        };
        resize(picture, side(width), side(height), FilterType::Lanczos3)
    } else {
        match SMALLEST_SIDE.div_ceil(longest) {
            0 | 1 => picture.clone(),
            factor => resize(picture, width * factor, height * factor, FilterType::CatmullRom),
        }
    }
}

/// How much of the pixel at (`x`, `y`) lies in a rectangle of `width` × `height` with round corners, 0..1.
fn coverage(x: u32, y: u32, width: u32, height: u32, corner: f32) -> f32 {
    let inward = |at: u32, length: u32| {
        let at = at as f32 + 0.5;
        (corner - at).max(at - (length as f32 - corner)).max(0.0)
    };
    let (dx, dy) = (inward(x, width), inward(y, height));
    (corner - dx.hypot(dy) + 0.5).clamp(0.0, 1.0)
}

fn blend(page: &mut RgbImage, x: u32, y: u32, colour: Rgb<u8>, share: f32) {
    if let Some(pixel) = page.get_pixel_mut_checked(x, y) {
        for (under, over) in pixel.0.iter_mut().zip(colour.0) {
            let mixed = f32::from(*under) + (f32::from(over) - f32::from(*under)) * share;
            *under = mixed.round() as u8;
        }
    }
}

fn rounded(page: &mut RgbImage, x: u32, y: u32, width: u32, height: u32, corner: f32, colour: Rgb<u8>) {
    for dy in 0..height {
        for dx in 0..width {
            blend(page, x + dx, y + dy, colour, coverage(dx, dy, width, height, corner));
        }
    }
}

fn paste(page: &mut RgbImage, picture: &RgbImage, x: u32, y: u32, corner: f32) {
    let (width, height) = picture.dimensions();
    for (dx, dy, colour) in picture.enumerate_pixels() {
        blend(page, x + dx, y + dy, *colour, coverage(dx, dy, width, height, corner));
    }
}

/// Glyphs of one line at the origin, and the line's width.
fn line_of(font: &FontRef<'_>, size: f32, words: &str) -> (Vec<Glyph>, f32) {
    let scaled = font.as_scaled(PxScale::from(size));
    let mut glyphs: Vec<Glyph> = Vec::new();
    let mut x = 0.0;
    for c in words.chars() {
        let mut glyph = scaled.scaled_glyph(if c.is_control() { ' ' } else { c });
        if let Some(last) = glyphs.last() {
            x += scaled.kern(last.id, glyph.id);
        }
        glyph.position = point(x, scaled.ascent());
        x += scaled.h_advance(glyph.id);
        glyphs.push(glyph);
    }
    (glyphs, x)
}

/// Writes one line with its top left corner at (`x`, `y`).
fn text(page: &mut RgbImage, font: &FontRef<'_>, size: f32, x: f32, y: f32, colour: Rgb<u8>, words: &str) {
    for mut glyph in line_of(font, size, words).0 {
        glyph.position += point(x, y);
        let Some(outline) = font.outline_glyph(glyph) else { continue };
        let bounds = outline.px_bounds();
        outline.draw(|dx, dy, share| {
            let (px, py) = (bounds.min.x + dx as f32, bounds.min.y + dy as f32);
            if px >= 0.0 && py >= 0.0 {
                blend(page, px as u32, py as u32, colour, share.min(1.0));
            }
        });
    }
}

/// `words`, or as much of it as fits into `room` pixels with an ellipsis.
fn shortened(font: &FontRef<'_>, size: f32, words: &str, room: f32) -> String {
    if line_of(font, size, words).1 <= room {
        return words.to_owned();
    }
    let mut kept = String::new();
    for c in words.chars() {
        kept.push(c);
        if line_of(font, size, &format!("{kept}…")).1 > room {
            kept.pop();
            break;
        }
    }
    format!("{}…", kept.trim_end())
}

/// `words` in lines of at most `room` pixels, broken at spaces; what does not fit in `lines` is cut.
fn wrapped(font: &FontRef<'_>, size: f32, words: &str, room: f32, lines: usize) -> Vec<String> {
    let mut done: Vec<String> = Vec::new();
    let mut rest = words.split_whitespace().peekable();
    while rest.peek().is_some() && done.len() < lines {
        let mut line = String::new();
        let last = done.len() + 1 == lines;
        while let Some(word) = rest.peek() {
            let longer = if line.is_empty() { (*word).to_owned() } else { format!("{line} {word}") };
            let fits = line_of(font, size, &longer).1 <= room;
            if !fits && !last && !line.is_empty() {
                break;
            }
            line = longer;
            rest.next();
            if !fits {
                // One word too wide, or the last line running over: cut it below.
                break;
            }
        }
        done.push(shortened(font, size, &line, room));
    }
    done
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sheet<'a>(picture: &'a RgbImage, labels: &[&'a str]) -> Sheet<'a> {
        let tiles = labels.iter().map(|label| Tile { label, name: label, picture }).collect();
        Sheet { heading: "EXPRESSION PACK", title: "1girl, blonde hair", footer: "seed 7", tiles }
    }

    #[test]
    fn twelve_pictures_stand_in_four_columns_and_three_rows() {
        let picture = RgbImage::from_pixel(128, 128, Rgb([200, 30, 90]));
        let page = draw(&sheet(&picture, &["Happy"; 12])).unwrap();
        // 128 is magnified to 256; each picture's centre shows it, in 4 columns and 3 rows.
        let of_picture = |(x, y): (u32, u32)| {
            let pixel = page.get_pixel(x, y).0;
            pixel == [200, 30, 90]
        };
        let step = 256 + 2 * PADDING + GAP;
        let first = (MARGIN + PADDING + 128, MARGIN + 34 + TITLE_LINE + 16 + PADDING + 128);
        for row in 0..3 {
            for column in 0..4 {
                assert!(of_picture((first.0 + column * step, first.1 + row * (step + LABELS))));
            }
        }
        assert_eq!(page.width(), 2 * MARGIN + 4 * step - GAP);
    }

    #[test]
    fn labels_are_written_and_differ() {
        let picture = RgbImage::new(64, 64);
        let (a, b) =
            (draw(&sheet(&picture, &["Angry"])).unwrap(), draw(&sheet(&picture, &["Happy"])).unwrap());
        assert_eq!(a.dimensions(), b.dimensions());
        assert_ne!(a, b);
        assert!(a.pixels().any(|pixel| *pixel == TEXT));
    }

    #[test]
    fn any_text_and_any_size_of_picture_draws() {
        let long = "supercalifragilistic ".repeat(200);
        for (width, height) in [(1, 1), (1, 900), (2048, 64), (384, 384)] {
            let picture = RgbImage::new(width, height);
            let mut sheet = sheet(&picture, &["", "少女 \u{1f600}\n\t\u{0}", &long, "d", "e"]);
            sheet.title = &long;
            sheet.footer = &long;
            let page = draw(&sheet).unwrap();
            assert!(page.width() < 3000 && page.height() < 3000, "{:?}", page.dimensions());
        }
    }

    #[test]
    fn a_sheet_of_nothing_is_an_error() {
        let picture = RgbImage::new(8, 8);
        assert!(matches!(draw(&sheet(&picture, &[])), Err(SheetError::Empty)));
    }

    #[test]
    fn a_title_too_long_ends_in_an_ellipsis() {
        let font = FontRef::try_from_slice(dejavu::sans::bold()).unwrap();
        let lines = wrapped(&font, 20.0, &"word ".repeat(100), 200.0, 2);
        assert_eq!(lines.len(), 2);
        assert!(lines[1].ends_with('…') && !lines[0].ends_with('…'), "{lines:?}");
        assert!(lines.iter().all(|line| line_of(&font, 20.0, line).1 <= 200.0));
    }

    #[test]
    fn columns_leave_few_cells_empty() {
        for (count, expected) in [(1, 1), (3, 3), (12, 4), (16, 4), (20, 5), (9, 3), (24, 6)] {
            assert_eq!(columns(count), expected, "{count}");
        }
    }
}
