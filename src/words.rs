//! Enums whose variants have a word each: in pipeline.toml, in logs, in what the admin interface says.

/// One of some words.
pub(crate) trait Word: Copy + 'static {
    /// All of them, in the order in which they are told.
    const WORDS: &'static [&'static str];

    /// The variant of a word.
    fn of(word: &str) -> Option<Self>;

    /// Its word.
    fn word(self) -> &'static str;
}

/// Declares an enum with the words of its variants: the one place where they stand.
macro_rules! words {
    (
        $(#[$meta:meta])*
        $vis:vis enum $name:ident {
            $($(#[$about:meta])* $variant:ident = $word:literal,)+
        }
    ) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        $vis enum $name {
            $($(#[$about])* $variant,)+
        }

        impl $crate::words::Word for $name {
            const WORDS: &'static [&'static str] = &[$($word),+];

            fn of(word: &str) -> Option<Self> {
                match word {
                    $($word => Some(Self::$variant),)+
                    _ => None,
                }
            }

            fn word(self) -> &'static str {
                match self {
                    $(Self::$variant => $word,)+
                }
            }
        }
    };
}
pub(crate) use words;

#[cfg(test)]
mod tests {
    use super::*;

    words! {
        /// For this test.
        enum Colour {
            Red = "red",
            DarkRed = "dark-red",
        }
    }

    #[test]
    fn each_word_is_its_variants() {
        assert_eq!(Colour::WORDS, ["red", "dark-red"]);
        for word in Colour::WORDS {
            assert_eq!(Colour::of(word).map(Word::word), Some(*word));
        }
        assert_eq!(Colour::of("Red"), None);
    }
}
