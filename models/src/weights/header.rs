//! The header of a safetensors file: what is stored, where, in which type and shape. Parsed from bytes that
//! nobody vouches for; [`WeightFile`](super::WeightFile) opens nothing that did not pass here.
//!
//! The format: eight bytes of header length (little endian), the header (a JSON object from tensor names to
//! type, shape and byte range, and `__metadata__`), then the data, which the ranges must cover exactly.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;

use safetensors::Dtype;
use serde::de::{self, DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};

use super::{WeightsError, foreign};

/// Longest header accepted, in bytes: the same limit as the `safetensors` crate's.
pub const MAX_HEADER_BYTES: usize = 100_000_000;
/// Most tensors in one file. A full SDXL checkpoint has about 2,600, a large LoRA about 10,000.
pub const MAX_TENSORS: usize = 200_000;
/// Most dimensions of a tensor.
pub const MAX_RANK: usize = 8;
/// Longest tensor name that an error quotes.
const QUOTED: usize = 200;
/// Bytes before the header.
const LENGTH_BYTES: usize = 8;

/// Element types that safetensors files of this field use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StoredType {
    /// IEEE single precision.
    F32,
    /// IEEE half precision.
    F16,
    /// bfloat16.
    BF16,
    /// Eight bits, four of them exponent: weights that are widened when they are multiplied, or multiplied as they are.
    F8E4M3,
    /// Eight bits, five of them exponent: recognised, not yet computed with.
    F8E5M2,
    /// 64-bit integers: row numbers of sparse tables, position ids.
    I64,
    /// Anything else that safetensors knows: kept for inspection, never computed with.
    Other(Dtype),
}

impl StoredType {
    /// Bits of one element.
    pub fn bits(self) -> usize {
        match self {
            Self::F32 => 32,
            Self::F16 | Self::BF16 => 16,
            Self::F8E4M3 | Self::F8E5M2 => 8,
            Self::I64 => 64,
            Self::Other(other) => other.bitsize(),
        }
    }
}

impl From<Dtype> for StoredType {
    fn from(dtype: Dtype) -> Self {
        match dtype {
            Dtype::F32 => Self::F32,
            Dtype::F16 => Self::F16,
            Dtype::BF16 => Self::BF16,
            Dtype::F8_E4M3 => Self::F8E4M3,
            Dtype::F8_E5M2 => Self::F8E5M2,
            Dtype::I64 => Self::I64,
            other => Self::Other(other),
        }
    }
}

impl fmt::Display for StoredType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::F32 => f.write_str("f32"),
            Self::F16 => f.write_str("f16"),
            Self::BF16 => f.write_str("bf16"),
            Self::F8E4M3 => f.write_str("f8_e4m3"),
            Self::F8E5M2 => f.write_str("f8_e5m2"),
            Self::I64 => f.write_str("i64"),
            Self::Other(other) => f.write_str(&format!("{other:?}").to_lowercase()),
        }
    }
}

/// Where a tensor's bytes are, as ranges of the file's data section.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Storage {
    /// All elements, row-major.
    Dense(Range<usize>),
    /// Only some rows; the others are zero (see [`sparse`](super::sparse)).
    SparseRows {
        /// Row numbers, strictly increasing.
        rows: Range<usize>,
        /// Those rows' elements.
        values: Range<usize>,
    },
}

/// One tensor's entry in the header.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorInfo {
    /// Element type.
    pub dtype: StoredType,
    /// Dimensions, outermost first.
    pub shape: Vec<usize>,
    /// Where it is.
    pub storage: Storage,
}

impl TensorInfo {
    /// Number of elements.
    pub fn elements(&self) -> usize {
        self.shape.iter().product()
    }

    /// Bytes that it takes in the file.
    pub fn stored_bytes(&self) -> usize {
        match &self.storage {
            Storage::Dense(range) => range.len(),
            Storage::SparseRows { rows, values } => rows.len() + values.len(),
        }
    }
}

/// All entries, by stored name, and the free-form metadata.
#[derive(Debug, Clone, Default)]
pub struct Header {
    /// Every tensor.
    pub tensors: BTreeMap<String, TensorInfo>,
    /// `__metadata__`.
    pub metadata: BTreeMap<String, String>,
}

/// Reads and checks the header of `bytes`, a whole file. Also gives the offset of the data section.
pub(super) fn parse(file: &str, bytes: &[u8]) -> Result<(Header, usize), WeightsError> {
    let malformed = |reason: String| WeightsError::Malformed { file: file.to_owned(), reason };
    if bytes.is_empty() {
        return Err(malformed("it is empty (0 bytes): copy or download it again".into()));
    }
    let (Some(length), Some(first)) = (bytes.first_chunk::<LENGTH_BYTES>(), bytes.get(LENGTH_BYTES)) else {
        foreign::refuse(file, bytes)?;
        return Err(malformed(format!(
            "it has only {} bytes, too few for a header: copy or download it again",
            bytes.len()
        )));
    };
    let length = u64::from_le_bytes(*length);
    if *first != b'{' {
        foreign::refuse(file, bytes)?;
        return Err(malformed("no header begins at byte 8, so it is another kind of file".into()));
    }
    let header =
        usize::try_from(length).ok().filter(|length| *length <= MAX_HEADER_BYTES).ok_or_else(|| {
            malformed(format!("its header claims {length} bytes; {MAX_HEADER_BYTES} is the limit"))
        })?;
    let data_start = LENGTH_BYTES + header;
    let text = bytes.get(LENGTH_BYTES..data_start).ok_or_else(|| {
        malformed(format!(
            "its header claims {header} bytes, but only {} follow: the file is truncated, copy or download it \
             again",
            bytes.len() - LENGTH_BYTES
        ))
    })?;
    let text = std::str::from_utf8(text).map_err(|e| {
        malformed(format!("its header is not UTF-8 text (byte {})", LENGTH_BYTES + e.valid_up_to()))
    })?;
    let mut json = serde_json::Deserializer::from_str(text);
    let header = HeaderSeed
        .deserialize(&mut json)
        .and_then(|header| json.end().map(|()| header))
        .map_err(|e| malformed(format!("its header cannot be understood: {e}")))?;
    check_ranges(&header, bytes.len() - data_start).map_err(malformed)?;
    Ok((header, data_start))
}

/// Fails unless the ranges have the sizes that types and shapes say and cover `data` bytes exactly, without
/// overlaps and gaps.
fn check_ranges(header: &Header, data: usize) -> Result<(), String> {
    let mut entries: Vec<(&str, &TensorInfo, &Range<usize>)> = header
        .tensors
        .iter()
        .filter_map(|(name, info)| match &info.storage {
            Storage::Dense(range) => Some((name.as_str(), info, range)),
            Storage::SparseRows { .. } => None,
        })
        .collect();
    entries.sort_by_key(|(_, _, range)| (range.start, range.end));
    let mut position = 0;
    for (name, info, range) in entries {
        let name = quoted(name);
        // A dimension of 0 counts as 1 here, so that no product of dimensions overflows later.
        let largest =
            info.shape.iter().try_fold(info.dtype.bits(), |bits, size| bits.checked_mul((*size).max(1)));
        if largest.is_none() {
            return Err(format!("tensor {name}: shape {:?} is impossibly large", info.shape));
        }
        let needed = info.elements() * info.dtype.bits();
        if range.start > range.end {
            return Err(format!("tensor {name}: its byte range {range:?} ends before it begins"));
        }
        if needed % 8 != 0 || needed / 8 != range.len() {
            return Err(format!(
                "tensor {name}: shape {:?} of {} needs {} bytes, but its range {range:?} has {}",
                info.shape,
                info.dtype,
                needed.div_ceil(8),
                range.len()
            ));
        }
        if range.end > data {
            return Err(format!(
                "tensor {name} ends at byte {} of the data, but there are only {data}: the file is truncated, \
                 copy or download it again",
                range.end
            ));
        }
        if range.start < position {
            return Err(format!("tensor {name}: its range {range:?} overlaps the one before it"));
        }
        if range.start > position {
            return Err(format!("{} bytes before tensor {name} belong to nothing", range.start - position));
        }
        position = range.end;
    }
    if position != data {
        return Err(format!("{} bytes after the last tensor belong to nothing", data - position));
    }
    Ok(())
}

/// A name as an error quotes it.
pub(super) fn quoted(name: &str) -> String {
    match name.char_indices().nth(QUOTED) {
        None => format!("'{name}'"),
        Some((end, _)) => format!("'{}…'", &name[..end]),
    }
}

/// Reads the header object entry by entry, so that limits and duplicates are noticed at once.
struct HeaderSeed;

impl<'de> DeserializeSeed<'de> for HeaderSeed {
    type Value = Header;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Header, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for HeaderSeed {
    type Value = Header;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object of tensors")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Header, A::Error> {
        let mut header = Header::default();
        let mut seen_metadata = false;
        while let Some(name) = map.next_key::<String>()? {
            if name == "__metadata__" {
                if std::mem::replace(&mut seen_metadata, true) {
                    return Err(de::Error::custom("there are two __metadata__ entries"));
                }
                header.metadata = map
                    .next_value::<Metadata>()
                    .map_err(|e| de::Error::custom(format_args!("__metadata__: {e}")))?
                    .0;
                continue;
            }
            if header.tensors.len() == MAX_TENSORS {
                return Err(de::Error::custom(format_args!("more than {MAX_TENSORS} tensors")));
            }
            let info = map
                .next_value::<Entry>()
                .map_err(|e| de::Error::custom(format_args!("tensor {}: {e}", quoted(&name))))?
                .0;
            if header.tensors.contains_key(&name) {
                return Err(de::Error::custom(format_args!("two tensors are named {}", quoted(&name))));
            }
            header.tensors.insert(name, info);
        }
        Ok(header)
    }
}

struct Metadata(BTreeMap<String, String>);

impl<'de> de::Deserialize<'de> for Metadata {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct MetadataVisitor;
        impl<'de> Visitor<'de> for MetadataVisitor {
            type Value = Metadata;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of texts")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Metadata, A::Error> {
                let mut entries = BTreeMap::new();
                while let Some((key, value)) = map.next_entry::<String, String>()? {
                    if entries.contains_key(&key) {
                        return Err(de::Error::custom(format_args!("two entries {}", quoted(&key))));
                    }
                    entries.insert(key, value);
                }
                Ok(Metadata(entries))
            }

            fn visit_unit<E>(self) -> Result<Metadata, E> {
                Ok(Metadata(BTreeMap::new()))
            }
        }
        deserializer.deserialize_any(MetadataVisitor)
    }
}

struct Entry(TensorInfo);

impl<'de> de::Deserialize<'de> for Entry {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(serde::Deserialize)]
        struct Raw {
            dtype: Dtype,
            shape: Shape,
            data_offsets: (usize, usize),
        }
        let raw = Raw::deserialize(deserializer)?;
        let (start, end) = raw.data_offsets;
        let storage = Storage::Dense(Range { start, end });
        Ok(Self(TensorInfo { dtype: raw.dtype.into(), shape: raw.shape.0, storage }))
    }
}

/// Dimensions, at most [`MAX_RANK`].
struct Shape(Vec<usize>);

impl<'de> de::Deserialize<'de> for Shape {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct ShapeVisitor;
        impl<'de> Visitor<'de> for ShapeVisitor {
            type Value = Shape;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "a list of at most {MAX_RANK} dimensions")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Shape, A::Error> {
                let mut shape = Vec::new();
                while shape.len() < MAX_RANK {
                    match list.next_element::<usize>()? {
                        Some(size) => shape.push(size),
                        None => return Ok(Shape(shape)),
                    }
                }
                match list.next_element::<IgnoredAny>()? {
                    None => Ok(Shape(shape)),
                    Some(_) => Err(de::Error::custom(format_args!("more than {MAX_RANK} dimensions"))),
                }
            }
        }
        deserializer.deserialize_seq(ShapeVisitor)
    }
}
