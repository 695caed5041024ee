//! Parts of a file and what is already known of it: the headers `Range`, `If-Range` and `If-None-Match` (RFC 9110).

use axum::http::{HeaderMap, header};

/// Which part of a file is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Part {
    /// All of it.
    Whole,
    /// Bytes `from` to `to`, both included.
    Bytes {
        /// First byte.
        from: usize,
        /// Last byte.
        to: usize,
    },
    /// A part that the file does not have.
    Unsatisfiable,
}

/// The part of a file of `length` bytes that the headers ask for. Headers that are no byte range, and several ranges
/// at once, ask for the whole: the standard lets a server do so.
pub(super) fn part(headers: &HeaderMap, etag: &str, length: usize) -> Part {
    let Some(range) = headers.get(header::RANGE).and_then(|value| value.to_str().ok()) else {
        return Part::Whole;
    };
    // A part of another version is of no use, so the client then wants all. Dates are never ours.
    if headers.get(header::IF_RANGE).is_some_and(|known| known.as_bytes() != etag.as_bytes()) {
        return Part::Whole;
    }
    parse(range, length).unwrap_or(Part::Whole)
}

/// `None`: not one byte range.
fn parse(range: &str, length: usize) -> Option<Part> {
    let (unit, spec) = range.split_once('=')?;
    if !unit.trim().eq_ignore_ascii_case("bytes") {
        return None;
    }
    let (first, last) = spec.trim().split_once('-')?;
    let (first, last) = (first.trim(), last.trim());
    if first.is_empty() {
        let count = number(last)?;
        return Some(if count == 0 || length == 0 {
            Part::Unsatisfiable
        } else {
            Part::Bytes { from: length.saturating_sub(count), to: length - 1 }
        });
    }
    let from = number(first)?;
    let to = if last.is_empty() { usize::MAX } else { number(last)? };
    if to < from {
        return None;
    }
    Some(if from >= length { Part::Unsatisfiable } else { Part::Bytes { from, to: to.min(length - 1) } })
}

/// Digits alone; a number too large for memory stands for the end.
fn number(text: &str) -> Option<usize> {
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    digits.then(|| text.parse().unwrap_or(usize::MAX))
}

/// Whether the client has this version already.
pub(super) fn is_known(headers: &HeaderMap, etag: &str) -> bool {
    headers.get_all(header::IF_NONE_MATCH).iter().filter_map(|value| value.to_str().ok()).any(|list| {
        list.split(',')
            .map(str::trim)
            .any(|known| known == "*" || known.strip_prefix("W/").unwrap_or(known) == etag)
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn with(name: header::HeaderName, value: &str) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert(name, value.parse().unwrap());
        headers
    }

    fn of(range: &str) -> Part {
        part(&with(header::RANGE, range), "\"e\"", 100)
    }

    #[test]
    fn a_part_is_cut_to_the_file() {
        assert_eq!(of("bytes=0-9"), Part::Bytes { from: 0, to: 9 });
        assert_eq!(of("bytes=90-"), Part::Bytes { from: 90, to: 99 });
        assert_eq!(of("bytes=90-500"), Part::Bytes { from: 90, to: 99 });
        assert_eq!(of("bytes=-10"), Part::Bytes { from: 90, to: 99 });
        assert_eq!(of("bytes=-1000"), Part::Bytes { from: 0, to: 99 });
        assert_eq!(of("Bytes = 99-99"), Part::Bytes { from: 99, to: 99 });
    }

    #[test]
    fn a_part_behind_the_end_cannot_be_had() {
        for range in ["bytes=100-", "bytes=100-200", "bytes=-0", "bytes=99999999999999999999999-"] {
            assert_eq!(of(range), Part::Unsatisfiable, "{range}");
        }
    }

    #[test]
    fn what_is_not_one_byte_range_asks_for_the_whole() {
        for range in [
            "",
            "bytes",
            "bytes=",
            "bytes=a-b",
            "bytes=9-1",
            "lines=1-2",
            "bytes=0-1,5-6",
            "bytes=--1",
            "bytes=+1-2",
        ] {
            assert_eq!(of(range), Part::Whole, "{range}");
        }
        assert_eq!(part(&HeaderMap::new(), "\"e\"", 100), Part::Whole);
    }

    #[test]
    fn a_part_of_another_version_becomes_the_whole() {
        let mut headers = with(header::RANGE, "bytes=0-9");
        headers.insert(header::IF_RANGE, "\"e\"".parse().unwrap());
        assert_eq!(part(&headers, "\"e\"", 100), Part::Bytes { from: 0, to: 9 });
        assert_eq!(part(&headers, "\"f\"", 100), Part::Whole);
    }

    #[test]
    fn a_version_that_the_client_has_is_known() {
        assert!(is_known(&with(header::IF_NONE_MATCH, "\"a\", W/\"e\""), "\"e\""));
        assert!(is_known(&with(header::IF_NONE_MATCH, "*"), "\"e\""));
        assert!(!is_known(&with(header::IF_NONE_MATCH, "\"a\""), "\"e\""));
        assert!(!is_known(&HeaderMap::new(), "\"e\""));
    }

    proptest! {
        #[test]
        fn any_range_of_any_file_stays_inside_it(range in "(bytes=)?[0-9]{0,25}-?[0-9]{0,25}[,a ]?", length in 0_usize..1000) {
            if let Part::Bytes { from, to } = part(&with(header::RANGE, &range), "\"e\"", length) {
                prop_assert!(from <= to && to < length);
            }
        }
    }
}
