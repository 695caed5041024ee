//! Property tests: whatever bytes a weight file has, reading it neither panics nor asks for memory that the
//! input does not warrant.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "a helper fails as its test does"
)]

#[path = "support/safetensors_bytes.rs"]
mod safetensors_bytes;

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use candle_core::Device;
use proptest::prelude::*;
use safetensors_bytes::{f32s, file_of, i64s, open, with_header};

/// Remembers the largest single allocation of each thread.
struct Watched;

thread_local! {
    static LARGEST: Cell<usize> = const { Cell::new(0) };
}

fn note(size: usize) {
    let _ = LARGEST.try_with(|largest| largest.set(largest.get().max(size)));
}

// SAFETY: every call goes to the system's allocator unchanged.
unsafe impl GlobalAlloc for Watched {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        note(layout.size());
        // SAFETY: the caller's promises are passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        note(layout.size());
        // SAFETY: the caller's promises are passed on.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        note(size);
        // SAFETY: the caller's promises are passed on.
        unsafe { System.realloc(pointer, layout, size) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller's promises are passed on.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Watched = Watched;

/// What any error message or small table may take.
const SLACK: usize = 64 << 10;
/// Bytes of bookkeeping per byte of header: an entry of 40 bytes becomes a tree node of some hundreds, a JSON
/// escape at most doubles.
const PER_BYTE: usize = 32;

/// Opens the file and reads all its tensors, watching the allocations; gives whether it was accepted.
fn exercise(bytes: &[u8]) -> bool {
    LARGEST.with(|largest| largest.set(0));
    let opened = open(bytes);
    if let Ok(file) = &opened {
        for name in file.header().tensors.keys() {
            // An error is as good as a tensor.
            let _ = file.tensor(name, &Device::Cpu).map_err(|error| error.to_string());
        }
    }
    let largest = LARGEST.with(Cell::get);
    assert!(largest <= SLACK + PER_BYTE * bytes.len(), "{largest} bytes for a file of {}", bytes.len());
    if let Err(error) = &opened {
        assert!(error.to_string().len() < 2000, "{error}");
    }
    opened.is_ok()
}

/// A file with everything in it that the reader knows.
fn valid() -> Vec<u8> {
    file_of(
        &[
            ("a.weight", "F32", &[2, 3], f32s(&[1.0, 2.0, 3.0, 4.0, 5.0, 6.0])),
            ("b.weight", "F16", &[4], vec![0x00, 0x3c, 0, 0, 0, 0, 0, 0]),
            ("t.sparse_rows", "I64", &[2], i64s(&[1, 5])),
            ("t.sparse_values", "F32", &[2, 2], f32s(&[1.0, 2.0, 3.0, 4.0])),
        ],
        &[("darkroom.sparse.t", "9,2"), ("format", "pt")],
    )
}

fn dimension() -> impl Strategy<Value = u64> {
    prop_oneof![
        0..5u64,
        Just(1 << 31),
        Just(1 << 32),
        Just(u64::MAX / 2),
        Just(u64::MAX),
        Just(1 << 62),
        any::<u64>()
    ]
}

fn entry() -> impl Strategy<Value = String> {
    let dtype = prop::sample::select(vec!["F32", "F16", "BF16", "U8", "I64", "F4", "F8_E4M3", "BOOL", "X"]);
    let shape = prop::collection::vec(dimension(), 0..4);
    (dtype, shape, 0..40u64, prop_oneof![0..80u64, any::<u64>()]).prop_map(|(dtype, shape, from, to)| {
        serde_json::json!({ "dtype": dtype, "shape": shape, "data_offsets": [from, to] }).to_string()
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn any_bytes_are_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        exercise(&bytes);
    }

    #[test]
    fn any_header_is_read_or_refused(header in "\\{.{0,200}", data in prop::collection::vec(any::<u8>(), 0..40)) {
        exercise(&with_header(&header, &data));
    }

    #[test]
    fn any_damage_to_a_good_file_is_read_or_refused(
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4),
        cut in prop::option::of(any::<prop::sample::Index>()),
        tail in prop::collection::vec(any::<u8>(), 0..3),
    ) {
        let mut bytes = valid();
        prop_assert!(exercise(&bytes));
        for (at, value) in changes {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        if let Some(cut) = cut {
            bytes.truncate(cut.index(bytes.len()));
        }
        bytes.extend(tail);
        let accepted = exercise(&bytes);
        // The reference implementation is no stricter than ours.
        prop_assert!(!accepted || safetensors::SafeTensors::deserialize(&bytes).is_ok());
    }

    #[test]
    fn any_shapes_and_ranges_are_read_or_refused(
        entries in prop::collection::vec(entry(), 0..4),
        data in prop::collection::vec(any::<u8>(), 0..80),
    ) {
        let header: Vec<String> =
            entries.iter().enumerate().map(|(index, entry)| format!("\"t{index}\":{entry}")).collect();
        let bytes = with_header(&format!("{{{}}}", header.join(",")), &data);
        let accepted = exercise(&bytes);
        prop_assert!(!accepted || safetensors::SafeTensors::deserialize(&bytes).is_ok());
    }
}
