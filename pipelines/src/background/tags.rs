//! The background to ask for: a colour that the character does not have.

/// Backgrounds that models know by tag, best first, each with the words of a prompt that speak against it. Strong
/// colours that skin never has come first; white and black come last, since highlights and outlines have them.
const BACKGROUNDS: &[(&str, &[&str])] = &[
    (
        "green background",
        &[
            "green",
            "emerald",
            "jade",
            "lime",
            "mint",
            "olive",
            "teal",
            "turquoise",
            "aqua",
            "cyan",
            "forest",
            "grass",
            "leaf",
            "leaves",
            "plant",
            "camouflage",
        ],
    ),
    (
        "blue background",
        &[
            "blue",
            "navy",
            "azure",
            "cobalt",
            "indigo",
            "sapphire",
            "aqua",
            "cyan",
            "teal",
            "turquoise",
            "denim",
            "jeans",
            "sky",
            "ocean",
            "sea",
            "sailor",
        ],
    ),
    (
        "purple background",
        &["purple", "violet", "lavender", "lilac", "magenta", "amethyst", "indigo", "plum"],
    ),
    (
        "pink background",
        &["pink", "rose", "magenta", "fuchsia", "salmon", "peach", "blush", "sakura", "skin"],
    ),
    (
        "yellow background",
        &["yellow", "gold", "golden", "blonde", "blond", "lemon", "amber", "straw", "cream", "beige"],
    ),
    (
        "orange background",
        &["orange", "ginger", "amber", "copper", "peach", "tan", "skin", "brown", "blonde"],
    ),
    ("grey background", &["grey", "gray", "silver", "metal", "armor", "armour", "platinum", "ash"]),
    ("white background", &["white", "ivory", "cream", "snow", "pale", "silver", "platinum", "apron"]),
    ("black background", &["black", "dark", "ebony", "raven", "shadow", "outline"]),
];

/// A background tag whose colour does not occur in `prompt`: tags, sentences or a list of colours, in any case, with
/// weights and underscores. When every colour occurs, the one that occurs least.
pub fn contrasting_background(prompt: &str) -> &'static str {
    let prompt = prompt.to_lowercase();
    let words: Vec<&str> = prompt.split(|c: char| !c.is_alphabetic()).collect();
    let against = |bad: &[&str]| words.iter().filter(|word| bad.contains(*word)).count();
    // The first of those with the fewest words against them.
    BACKGROUNDS.iter().min_by_key(|(_, bad)| against(bad)).map_or("green background", |(tag, _)| tag)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn green_is_asked_for_unless_the_character_has_it() {
        assert_eq!(contrasting_background("1girl, pink hair, blue eyes, white shirt"), "green background");
        assert_eq!(contrasting_background("1girl, (Green_Hair:1.2), red dress"), "blue background");
        assert_eq!(contrasting_background("hair: teal, coat: black"), "purple background");
    }

    #[test]
    fn a_word_that_only_contains_a_colour_does_not_count() {
        assert_eq!(contrasting_background("evergreen, limelight"), "green background");
    }

    #[test]
    fn with_every_colour_in_the_prompt_the_rarest_is_asked_for() {
        let all = "green green blue blue purple purple pink pink yellow yellow orange orange grey grey white white black";
        assert_eq!(contrasting_background(all), "black background");
        assert_eq!(contrasting_background(""), "green background");
    }

    #[test]
    fn every_background_speaks_against_itself() {
        for (tag, against) in BACKGROUNDS {
            let colour = tag.split(' ').next().unwrap();
            assert!(against.contains(&colour), "{tag}");
            assert_ne!(contrasting_background(&format!("{colour} hair")), *tag);
        }
    }
}
