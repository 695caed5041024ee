//! What `darkroom pack` takes LoRAs and ControlNets by: `FILE:strength`, `type=PICTURE:strength:start-end`. Numbers are
//! read from the right end, so a path may have colons of its own as long as what follows its last one is no number.

use std::path::PathBuf;
use std::str::FromStr;

/// Strengths of LoRAs.
const LORA_STRENGTHS: std::ops::RangeInclusive<f64> = -10.0..=10.0;
/// Strengths of ControlNets.
const CONTROL_STRENGTHS: std::ops::RangeInclusive<f64> = 0.0..=10.0;

/// `--lora FILE|NAME[:strength[:text_strength]]`.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct LoraArg {
    /// A file, or the name of a built-in one.
    pub(super) lora: String,
    /// Strength on the denoising network.
    pub(super) strength: f64,
    /// Strength on the text encoders.
    pub(super) text_strength: f64,
}

/// `--control TYPE=PICTURE[:strength[:start-end]]`.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct ControlArg {
    /// What it is steered by.
    pub(super) kind: ControlKind,
    /// The picture.
    pub(super) picture: PathBuf,
    /// How strongly it counts.
    pub(super) strength: f64,
    /// Share of the schedule at which it begins.
    pub(super) start: f64,
    /// Share of the schedule at which it ends.
    pub(super) end: f64,
}

/// What a ControlNet is steered by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ControlKind {
    /// The picture's edges.
    Canny,
    /// A skeleton, as it is.
    OpenPose,
    /// A picture of nearness, as it is.
    Depth,
}

impl ControlKind {
    const ALL: [Self; 3] = [Self::Canny, Self::OpenPose, Self::Depth];

    /// Its name on the command line.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Canny => "canny",
            Self::OpenPose => "openpose",
            Self::Depth => "depth",
        }
    }
}

/// `--templates SET|none`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum TemplatesArg {
    /// Follow none.
    None,
    /// Follow this set.
    Set(String),
}

impl FromStr for TemplatesArg {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.trim() {
            "" => Err("name a set, or none".into()),
            "none" => Ok(Self::None),
            set => Ok(Self::Set(set.to_owned())),
        }
    }
}

impl FromStr for LoraArg {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (rest, mut numbers) = split_numbers(text, 2);
        if rest.is_empty() {
            return Err("names no LoRA; write FILE[:strength[:text_strength]]".into());
        }
        check_rest(rest, "write FILE:strength, such as mia.safetensors:0.8")?;
        let strength = numbers.next().unwrap_or(1.0);
        let text_strength = numbers.next().unwrap_or(strength);
        for number in [strength, text_strength] {
            in_range(number, &LORA_STRENGTHS)?;
        }
        Ok(Self { lora: rest.to_owned(), strength, text_strength })
    }
}

impl FromStr for ControlArg {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        const FORM: &str = "write TYPE=PICTURE[:strength[:start-end]], such as canny=a.png:0.8:0-0.6";
        let (name, rest) = text.split_once('=').ok_or_else(|| format!("has no '='; {FORM}"))?;
        let kind = ControlKind::ALL.into_iter().find(|kind| kind.name() == name.trim());
        let kind = kind.ok_or_else(|| format!("'{name}' is no type; there are canny, openpose and depth"))?;
        // The range counts only behind a strength, so that `b:0-1` stays a name.
        let ranged = rest.rsplit_once(':').and_then(|(before, last)| {
            let range = range_of(last)?;
            let (_, strength) = before.rsplit_once(':')?;
            strength.trim().parse::<f64>().ok()?;
            Some((before, range))
        });
        let (rest, (start, end)) = ranged.unwrap_or((rest, (0.0, 1.0)));
        let (picture, mut numbers) = split_numbers(rest, 1);
        if picture.is_empty() {
            return Err(format!("names no picture; {FORM}"));
        }
        check_rest(picture, FORM)?;
        let strength = numbers.next().unwrap_or(1.0);
        in_range(strength, &CONTROL_STRENGTHS)?;
        for share in [start, end] {
            in_range(share, &(0.0..=1.0))?;
        }
        if start >= end {
            return Err(format!("starts at {start}, which is not before its end ({end})"));
        }
        Ok(Self { kind, picture: picture.into(), strength, start, end })
    }
}

/// Takes at most `most` numbers off the right end; the rest, and the numbers from left to right.
fn split_numbers(text: &str, most: usize) -> (&str, impl Iterator<Item = f64> + use<>) {
    let (mut rest, mut numbers) = (text, Vec::new());
    while numbers.len() < most
        && let Some((before, last)) = rest.rsplit_once(':')
        && let Ok(number) = last.trim().parse::<f64>()
    {
        numbers.push(number);
        rest = before;
    }
    (rest.trim(), numbers.into_iter().rev())
}

/// What is left must be a name: a colon at its end, or before something that is almost a number, is a slip.
fn check_rest(rest: &str, form: &str) -> Result<(), String> {
    let Some((before, last)) = rest.rsplit_once(':') else { return Ok(()) };
    let slip = last.is_empty()
        || before.is_empty()
        || last.starts_with(|c: char| c.is_ascii_digit() || c == '-' || c == '.');
    if slip {
        return Err(format!("'{last}' behind the colon cannot be read; {form}"));
    }
    Ok(())
}

/// `0.2-0.8`.
fn range_of(text: &str) -> Option<(f64, f64)> {
    let (start, end) = text.split_once('-')?;
    Some((start.trim().parse().ok()?, end.trim().parse().ok()?))
}

fn in_range(number: f64, range: &std::ops::RangeInclusive<f64>) -> Result<(), String> {
    if range.contains(&number) {
        return Ok(());
    }
    Err(format!("{number} must be {} to {}", range.start(), range.end()))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn lora(text: &str) -> Result<(String, f64, f64), String> {
        text.parse::<LoraArg>().map(|arg| (arg.lora, arg.strength, arg.text_strength))
    }

    fn control(text: &str) -> Result<(String, f64, f64, f64), String> {
        let arg: ControlArg = text.parse()?;
        Ok((arg.picture.to_string_lossy().into_owned(), arg.strength, arg.start, arg.end))
    }

    #[test]
    fn a_lora_has_one_strength_or_two() {
        assert_eq!(lora("a.safetensors"), Ok(("a.safetensors".into(), 1.0, 1.0)));
        assert_eq!(lora("a:0.8"), Ok(("a".into(), 0.8, 0.8)));
        assert_eq!(lora("dir/a.safetensors:0.8:-1"), Ok(("dir/a.safetensors".into(), 0.8, -1.0)));
    }

    #[test]
    fn a_path_keeps_its_own_colons() {
        assert_eq!(lora("C:\\loras\\a.safetensors:0.5"), Ok(("C:\\loras\\a.safetensors".into(), 0.5, 0.5)));
        assert_eq!(lora("a:b"), Ok(("a:b".into(), 1.0, 1.0)));
        assert_eq!(control("canny=a:b.png:0.5"), Ok(("a:b.png".into(), 0.5, 0.0, 1.0)));
    }

    #[test]
    fn a_control_has_a_strength_and_a_range() {
        assert_eq!(control("canny=a.png"), Ok(("a.png".into(), 1.0, 0.0, 1.0)));
        assert_eq!(control("openpose=a.png:0.8:0.1-0.6"), Ok(("a.png".into(), 0.8, 0.1, 0.6)));
        assert_eq!("depth=x".parse::<ControlArg>().unwrap().kind, ControlKind::Depth);
    }

    #[test]
    fn what_cannot_be_meant_is_refused_and_says_how_to_write_it() {
        for wrong in ["", ":1", "a:11", "a:NaN", "a:0.5:inf", "a:0,5", "a:", "a:1:2:3"] {
            assert!(lora(wrong).is_err(), "{wrong}: {:?}", lora(wrong));
        }
        for (wrong, said) in [
            ("a.png", "="),
            ("tile=a.png", "canny"),
            ("canny=", "picture"),
            ("canny=a.png:-1", "0 to 10"),
            ("canny=a.png:1:0.6-0.2", "not before"),
            ("canny=a.png:1:0-2", "0 to 1"),
            ("canny=a.png:1:0.5", "start-end"),
            ("canny=a.png:0-0.5", "start-end"),
        ] {
            let error = control(wrong).unwrap_err();
            assert!(error.contains(said), "{wrong}: {error}");
        }
    }

    #[test]
    fn templates_are_a_set_or_none() {
        assert_eq!("none".parse(), Ok(TemplatesArg::None));
        assert_eq!("short".parse(), Ok(TemplatesArg::Set("short".into())));
        assert!("".parse::<TemplatesArg>().is_err());
    }

    proptest! {
        #[test]
        fn no_text_makes_the_parsers_panic(text in ".{0,40}") {
            let _ = lora(&text);
            let _ = control(&text);
            let _ = control(&format!("canny={text}"));
        }
    }
}
