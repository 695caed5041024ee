//! PNG files: encoded with text chunks, and written so that a reader sees a whole file or none.

use std::fs::File;
use std::io::{BufReader, Write};
use std::path::{Path, PathBuf};

use tempfile::NamedTempFile;

use super::ReadError;

/// Most memory that the text chunks of a foreign PNG may take when read, bytes.
const MAX_TEXT_BYTES: usize = 8 << 20;

/// With fast deflate this one makes files 2 % larger than the default does, in a twentieth of the time; choosing
/// anew for each row takes twice as long and saves less than 1 %.
const FAST_FILTER: png::Filter = png::Filter::Paeth;

/// A keyword and its text, as PNG stores them (`tEXt`, or `iTXt` where Latin-1 cannot hold the text).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TextChunk {
    /// 1..79 Latin-1 characters: `parameters`, `prompt`, …
    pub keyword: String,
    /// The text.
    pub text: String,
}

/// Why a file could not be written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WriteError {
    /// The system refused.
    #[error("{file}: cannot write: {source}")]
    Io {
        /// The file or its folder.
        file: String,
        /// What the system said.
        source: std::io::Error,
    },
    /// The picture cannot be stored as a PNG.
    #[error("cannot encode the PNG: {0}")]
    Encode(#[from] png::EncodingError),
}

/// Encodes 8-bit RGB, `[height, width, 3]`, as a PNG with `chunks` before the pixels, where readers look first.
pub fn encode_png(
    width: usize,
    height: usize,
    rgb: &[u8],
    chunks: &[TextChunk],
) -> Result<Vec<u8>, png::EncodingError> {
    png_with(Effort::Small, width, height, png::ColorType::Rgb, rgb, chunks)
}

/// Encodes 8-bit RGB or, with `alpha`, RGBA in little time, a few per cent larger than [`encode_png`] does.
///
/// # Errors
/// Pixels that are none or not as many as the size says; keywords that PNG cannot hold.
pub fn encode_png_fast(
    width: usize,
    height: usize,
    alpha: bool,
    pixels: &[u8],
    chunks: &[TextChunk],
) -> Result<Vec<u8>, png::EncodingError> {
    let color = if alpha { png::ColorType::Rgba } else { png::ColorType::Rgb };
    png_with(Effort::Fast, width, height, color, pixels, chunks)
}

/// What a PNG's compression is to save.
#[derive(Debug, Clone, Copy)]
pub(super) enum Effort {
    /// Bytes.
    Small,
    /// Time.
    Fast,
}

/// [`encode_png`] with a choice of effort and of what a pixel's bytes are.
pub(super) fn png_with(
    effort: Effort,
    width: usize,
    height: usize,
    color: png::ColorType,
    pixels: &[u8],
    chunks: &[TextChunk],
) -> Result<Vec<u8>, png::EncodingError> {
    let mut bytes = Vec::with_capacity(pixels.len() / 2 + 4096);
    // A size beyond u32 becomes 0, which the encoder refuses.
    let side = |length: usize| u32::try_from(length).unwrap_or(0);
    let mut encoder = png::Encoder::new(&mut bytes, side(width), side(height));
    encoder.set_color(color);
    encoder.set_depth(png::BitDepth::Eight);
    if let Effort::Fast = effort {
        encoder.set_deflate_compression(png::DeflateCompression::FdeflateUltraFast);
        encoder.set_filter(FAST_FILTER);
    }
    for TextChunk { keyword, text } in chunks {
        if text.chars().all(|c| u32::from(c) < 256) {
            encoder.add_text_chunk(keyword.clone(), text.clone())?;
        } else {
            encoder.add_itxt_chunk(keyword.clone(), text.clone())?;
        }
    }
    let mut writer = encoder.write_header()?;
    writer.write_image_data(pixels)?;
    writer.finish()?;
    Ok(bytes)
}

/// The text chunks that stand before the pixels of the PNG at `path`.
pub fn read_text_chunks(path: &Path) -> Result<Vec<TextChunk>, ReadError> {
    let file = path.display().to_string();
    let opened = File::open(path).map_err(|source| ReadError::Io { file: file.clone(), source })?;
    let damaged =
        |e: &dyn std::fmt::Display| ReadError::Damaged { file: file.clone(), reason: e.to_string() };
    let limits = png::Limits { bytes: MAX_TEXT_BYTES };
    let reader =
        png::Decoder::new_with_limits(BufReader::new(opened), limits).read_info().map_err(|e| damaged(&e))?;
    let info = reader.info();
    let mut chunks = Vec::new();
    for chunk in &info.uncompressed_latin1_text {
        chunks.push(TextChunk { keyword: chunk.keyword.clone(), text: chunk.text.clone() });
    }
    for chunk in &info.compressed_latin1_text {
        let text = chunk.get_text().map_err(|e| damaged(&e))?;
        chunks.push(TextChunk { keyword: chunk.keyword.clone(), text });
    }
    for chunk in &info.utf8_text {
        let text = chunk.get_text().map_err(|e| damaged(&e))?;
        chunks.push(TextChunk { keyword: chunk.keyword.clone(), text });
    }
    Ok(chunks)
}

/// Writes `bytes` to `path`, replacing what is there: whole, or not at all.
pub fn save_whole(path: &Path, bytes: &[u8]) -> Result<(), WriteError> {
    let io = |source| WriteError::Io { file: path.display().to_string(), source };
    let file = written_beside(path, bytes).map_err(io)?;
    file.persist(path).map_err(|e| io(e.error))?;
    Ok(())
}

/// Writes `bytes` to `folder` as `prefix_NNNNN_.png`, one above the highest number there, as ComfyUI names its
/// pictures. Never replaces a file, also when several programs write to the folder.
pub fn save_numbered(folder: &Path, prefix: &str, bytes: &[u8]) -> Result<PathBuf, WriteError> {
    let io = |source| WriteError::Io { file: folder.display().to_string(), source };
    let mut number = highest_number(folder, prefix).map_err(io)?;
    let mut file = written_beside(&folder.join("_"), bytes).map_err(io)?;
    loop {
        number += 1;
        let path = folder.join(format!("{prefix}_{number:05}_.png"));
        match file.persist_noclobber(&path) {
            Ok(_) => return Ok(path),
            Err(e) if e.error.kind() == std::io::ErrorKind::AlreadyExists => file = e.file,
            Err(e) => return Err(io(e.error)),
        }
    }
}

fn written_beside(path: &Path, bytes: &[u8]) -> std::io::Result<NamedTempFile> {
    let folder = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    std::fs::create_dir_all(folder)?;
    let mut builder = tempfile::Builder::new();
    builder.prefix(".darkroom-");
    #[cfg(unix)]
    {
        // Temporary files are private; a result has the permissions of any new file (the umask applies).
        use std::os::unix::fs::PermissionsExt;
        builder.permissions(std::fs::Permissions::from_mode(0o666));
    }
    let mut file = builder.tempfile_in(folder)?;
    file.write_all(bytes)?;
    file.as_file().sync_all()?;
    Ok(file)
}

fn highest_number(folder: &Path, prefix: &str) -> std::io::Result<u64> {
    let entries = match std::fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(0),
        Err(e) => return Err(e),
    };
    let mut highest = 0;
    for entry in entries {
        let name = entry?.file_name();
        let number = name
            .to_str()
            .and_then(|name| name.strip_prefix(prefix)?.strip_prefix('_')?.strip_suffix("_.png"))
            .and_then(|digits| digits.parse::<u64>().ok());
        highest = highest.max(number.unwrap_or(0));
    }
    Ok(highest)
}

#[cfg(test)]
mod tests {
    use tempfile::TempDir;

    use super::*;

    fn chunk(keyword: &str, text: &str) -> TextChunk {
        TextChunk { keyword: keyword.into(), text: text.into() }
    }

    fn kinds(png: &[u8]) -> Vec<String> {
        let mut kinds = Vec::new();
        let mut at = 8;
        while at < png.len() {
            let length = u32::from_be_bytes(png[at..at + 4].try_into().unwrap()) as usize;
            kinds.push(String::from_utf8_lossy(&png[at + 4..at + 8]).into_owned());
            at += 12 + length;
        }
        kinds
    }

    #[test]
    fn text_is_text_in_latin_1_and_itxt_beyond_it_and_reads_back() {
        let folder = TempDir::new().unwrap();
        let path = folder.path().join("a.png");
        let chunks = [chunk("parameters", "café\nSteps: 1"), chunk("prompt", "少女 \u{1f600}")];
        let bytes = encode_png(2, 1, &[1, 2, 3, 4, 5, 6], &chunks).unwrap();
        assert_eq!(kinds(&bytes), ["IHDR", "tEXt", "iTXt", "IDAT", "IEND"]);
        save_whole(&path, &bytes).unwrap();
        assert_eq!(read_text_chunks(&path).unwrap(), chunks);
        assert_eq!(image::open(&path).unwrap().into_rgb8().into_raw(), [1, 2, 3, 4, 5, 6]);
    }

    #[test]
    fn a_picture_without_pixels_is_an_error() {
        assert!(encode_png(0, 4, &[], &[]).is_err());
        assert!(encode_png(4, 4, &[0; 3], &[]).is_err());
    }

    #[test]
    fn numbers_go_on_above_the_highest_and_never_replace() {
        let folder = TempDir::new().unwrap();
        let into = folder.path().join("deep/er");
        let name = |path: PathBuf| path.file_name().unwrap().to_str().unwrap().to_owned();
        assert_eq!(name(save_numbered(&into, "darkroom", b"1").unwrap()), "darkroom_00001_.png");
        std::fs::write(into.join("darkroom_00041_.png"), b"kept").unwrap();
        std::fs::write(into.join("darkroom_x_.png"), b"").unwrap();
        std::fs::write(into.join("other_00099_.png"), b"").unwrap();
        assert_eq!(name(save_numbered(&into, "darkroom", b"2").unwrap()), "darkroom_00042_.png");
        assert_eq!(std::fs::read(into.join("darkroom_00041_.png")).unwrap(), b"kept");
    }

    #[test]
    fn a_failed_write_leaves_nothing_behind() {
        let folder = TempDir::new().unwrap();
        let path = folder.path().join("taken");
        std::fs::create_dir(&path).unwrap();
        assert!(save_whole(&path, b"bytes").is_err());
        let left: Vec<_> =
            std::fs::read_dir(folder.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert_eq!(left, ["taken"]);
    }

    #[cfg(unix)]
    #[test]
    fn results_are_readable_as_any_new_file() {
        use std::os::unix::fs::PermissionsExt;
        let folder = TempDir::new().unwrap();
        let (ours, plain) = (folder.path().join("ours"), folder.path().join("plain"));
        save_whole(&ours, b"x").unwrap();
        std::fs::write(&plain, b"x").unwrap();
        let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode();
        assert_eq!(mode(&ours), mode(&plain));
    }
}
