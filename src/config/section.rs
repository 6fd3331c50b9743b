//! How a section of pipeline.toml is described: once, a row a key.
//!
//! ```text
//! section! {
//!     /// `[shutdown]`
//!     pub struct Shutdown {
//!         /// Deadline of the whole drain; past it the process stops with exit code 75
//!         timeout: Duration = { Kind::Duration(100, 3_600_000), Value(r#""30s""#), Live, r#""30s""# },
//!     }
//! }
//! ```
//!
//! A row is the key's documentation (of the field, of the schema, of the manual: a sentence without its full
//! stop), its name, its type, and in braces what it may hold, where its value comes from when nobody sets it, what
//! a change of it does, and an example. `name as "type"` is for keys that Rust cannot name so; `= table` for a
//! table below; `= flat` for rows that are described elsewhere and stand in this table; `fills` a struct that lives
//! elsewhere. To add a key, add a row
//! and use its field: nothing else knows the keys.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::num::NonZeroU32;
use std::path::PathBuf;
use std::time::Duration;

use penstock_conditions::Condition;

use super::key::{Key, Leaf};
use super::value::{Contents, Nodes, Secret, StartFrom};
use crate::policy::rate;
use crate::words::Word;

/// What sections are read from: values that were checked against their keys.
pub(super) trait Values {
    /// The value in force: set, or the default. What is required and not there reads as the example, so that the
    /// other checks can go on; a problem has been reported.
    fn leaf(&self, path: &str) -> Option<Leaf>;
    /// A path, relative to the file that it stands in.
    fn path(&self, path: &str) -> Option<PathBuf>;
    /// A secret, wherever it comes from.
    fn secret(&self, path: &str) -> Option<Secret>;
    /// What the file holds that a key names.
    fn file(&self, path: &str) -> Option<Contents>;
}

/// A table of pipeline.toml.
pub(super) trait Section: Sized {
    /// Its keys, in the order in which they are documented, for a table that stands at this path.
    fn keys(at: &str, into: &mut Vec<Key>);
    /// The table at this path.
    fn read(from: &dyn Values, at: &str) -> Self;
    /// Takes the values of those keys from another one that `takes` names, by their paths.
    fn retune(&mut self, at: &str, new: &Self, takes: &dyn Fn(&str) -> bool);
}

/// A type that a key's value is read as.
pub(super) trait FromKey: Sized {
    /// The value of the key at this path. [`Values`] has checked it against the key, so a value of another kind is
    /// a row whose type and kind disagree; a test reads every row.
    fn from_key(from: &dyn Values, path: &str) -> Self;
}

macro_rules! section {
    (
        $(#[$meta:meta])*
        $vis:vis struct $name:ident {
            $($(#[doc = $doc:literal])+ $field:ident $(as $key:literal)?: $type:ty = $spec:tt,)+
        }
    ) => {
        $(#[$meta])*
        #[derive(Clone, Debug, PartialEq)]
        #[allow(rustdoc::invalid_html_tags)]
        $vis struct $name {
            $($(#[doc = $doc])+ $vis $field: $type,)+
        }

        $crate::config::section::section! {
            fills $name {
                $($(#[doc = $doc])+ $field $(as $key)?: $type = $spec,)+
            }
        }
    };
    (
        fills $name:path {
            $($(#[doc = $doc:literal])+ $field:ident $(as $key:literal)?: $type:ty = $spec:tt,)+
        }
    ) => {
        impl $crate::config::section::Section for $name {
            fn keys(at: &str, into: &mut Vec<$crate::config::key::Key>) {
                $($crate::config::section::section!(
                    @keys into, at, ($field $($key)?), concat!($($doc),+), $type, $spec
                );)+
            }

            fn read(from: &dyn $crate::config::section::Values, at: &str) -> Self {
                Self {
                    $($field: $crate::config::section::section!(
                        @read from, at, ($field $($key)?), $type, $spec
                    ),)+
                }
            }

            fn retune(&mut self, at: &str, new: &Self, takes: &dyn Fn(&str) -> bool) {
                $($crate::config::section::section!(
                    @retune self, at, new, takes, $field, ($field $($key)?), $spec
                );)+
            }
        }
    };
    (@name $field:ident) => { stringify!($field) };
    (@name $field:ident $key:literal) => { $key };
    (@keys $into:ident, $at:ident, $name:tt, $doc:expr, $type:ty, flat) => {
        <$type as $crate::config::section::Section>::keys($at, $into)
    };
    (@keys $into:ident, $at:ident, ($($name:tt)+), $doc:expr, $type:ty, table) => {
        <$type as $crate::config::section::Section>::keys(
            &format!("{}.{}", $at, $crate::config::section::section!(@name $($name)+)),
            $into,
        )
    };
    (@keys $into:ident, $at:ident, ($($name:tt)+), $doc:expr, $type:ty,
        { $kind:expr, $fallback:expr, $class:expr, $example:expr }) => {
        $into.push($crate::config::key::Key {
            path: format!("{}.{}", $at, $crate::config::section::section!(@name $($name)+)),
            kind: $kind,
            fallback: $fallback,
            class: $class,
            doc: $doc.trim_ascii_start(),
            example: $example,
        })
    };
    (@retune $self:ident, $at:ident, $new:ident, $takes:ident, $field:ident, $name:tt, flat) => {
        $crate::config::section::Section::retune(&mut $self.$field, $at, &$new.$field, $takes)
    };
    (@retune $self:ident, $at:ident, $new:ident, $takes:ident, $field:ident, ($($name:tt)+), table) => {
        $crate::config::section::Section::retune(
            &mut $self.$field,
            &format!("{}.{}", $at, $crate::config::section::section!(@name $($name)+)),
            &$new.$field,
            $takes,
        )
    };
    (@retune $self:ident, $at:ident, $new:ident, $takes:ident, $field:ident, ($($name:tt)+), $spec:tt) => {
        if $takes(&format!("{}.{}", $at, $crate::config::section::section!(@name $($name)+))) {
            $self.$field.clone_from(&$new.$field);
        }
    };
    (@read $from:ident, $at:ident, $name:tt, $type:ty, flat) => {
        <$type as $crate::config::section::Section>::read($from, $at)
    };
    (@read $from:ident, $at:ident, ($($name:tt)+), $type:ty, table) => {
        <$type as $crate::config::section::Section>::read(
            $from,
            &format!("{}.{}", $at, $crate::config::section::section!(@name $($name)+)),
        )
    };
    (@read $from:ident, $at:ident, ($($name:tt)+), $type:ty, $spec:tt) => {
        <$type as $crate::config::section::FromKey>::from_key(
            $from,
            &format!("{}.{}", $at, $crate::config::section::section!(@name $($name)+)),
        )
    };
}
pub(super) use section;

macro_rules! from_leaf {
    ($($type:ty: $pattern:pat => $value:expr;)+) => {$(
        impl FromKey for $type {
            fn from_key(from: &dyn Values, path: &str) -> Self {
                match from.leaf(path) {
                    $pattern => $value,
                    other => unreachable!("{path} is no {}: {other:?}", stringify!($type)),
                }
            }
        }
    )+};
}

from_leaf! {
    bool: Some(Leaf::Bool(b)) => b;
    u64: Some(Leaf::Int(n)) => n;
    f64: Some(Leaf::Float(n)) => n;
    Duration: Some(Leaf::Duration(d)) => d;
    SocketAddr: Some(Leaf::Address(a)) => a;
    Nodes: Some(Leaf::Nodes(n)) => n;
    StartFrom: Some(Leaf::StartFrom(from)) => from;
    Option<rate::Settings>: Some(Leaf::Rate(rate)) => rate;
    Vec<String>: Some(Leaf::List(list)) => list;
    BTreeMap<String, String>: Some(Leaf::Map(map)) => map;
}

impl FromKey for u32 {
    fn from_key(from: &dyn Values, path: &str) -> Self {
        // The key's range ends before; a test looks at each.
        u32::try_from(u64::from_key(from, path)).unwrap_or(u32::MAX)
    }
}

impl FromKey for NonZeroU32 {
    fn from_key(from: &dyn Values, path: &str) -> Self {
        NonZeroU32::new(u32::from_key(from, path)).unwrap_or(NonZeroU32::MIN)
    }
}

/// Absent, or a number from 1 on; 0 is absent too where a key may be 0.
impl FromKey for Option<NonZeroU32> {
    fn from_key(from: &dyn Values, path: &str) -> Self {
        from.leaf(path)?;
        NonZeroU32::new(u32::from_key(from, path))
    }
}

impl FromKey for Option<Duration> {
    fn from_key(from: &dyn Values, path: &str) -> Self {
        from.leaf(path)?;
        Some(Duration::from_key(from, path))
    }
}

impl FromKey for Option<Vec<String>> {
    fn from_key(from: &dyn Values, path: &str) -> Self {
        from.leaf(path)?;
        Some(Vec::from_key(from, path))
    }
}

impl FromKey for Option<String> {
    fn from_key(from: &dyn Values, path: &str) -> Self {
        match from.leaf(path)? {
            Leaf::Text(text) => Some(text),
            other => unreachable!("{path} is no text: {other:?}"),
        }
    }
}

/// One that is malformed is absent; the checks say so.
impl FromKey for Option<Condition> {
    fn from_key(from: &dyn Values, path: &str) -> Self {
        Condition::compile(&Option::<String>::from_key(from, path)?).ok()
    }
}

/// Absent is empty.
impl FromKey for String {
    fn from_key(from: &dyn Values, path: &str) -> Self {
        Option::from_key(from, path).unwrap_or_default()
    }
}

impl FromKey for Option<PathBuf> {
    fn from_key(from: &dyn Values, path: &str) -> Self {
        from.path(path)
    }
}

impl FromKey for PathBuf {
    fn from_key(from: &dyn Values, path: &str) -> Self {
        from.path(path).unwrap_or_default()
    }
}

impl FromKey for Option<Secret> {
    fn from_key(from: &dyn Values, path: &str) -> Self {
        from.secret(path)
    }
}

impl FromKey for Option<Contents> {
    fn from_key(from: &dyn Values, path: &str) -> Self {
        from.file(path)
    }
}

impl<T: Word> FromKey for T {
    fn from_key(from: &dyn Values, path: &str) -> Self {
        let word = String::from_key(from, path);
        T::of(&word)
            .unwrap_or_else(|| unreachable!("{path} is {word:?}, not one of {:?}", T::WORDS))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::key::Fallback::Value;
    use crate::config::key::Kind;
    use crate::config::key::ReloadClass::Live;
    use crate::words::words;

    words! {
        /// For this test.
        enum Size {
            Small = "small",
            Large = "large",
        }
    }

    section! {
        /// For this test.
        struct Shop {
            /// How long it stays open; a row is all that a key takes: this is
            /// its documentation
            open_for: Duration = { Kind::Duration(1, 1_000), Value(r#""30s""#), Live, r#""8h""# },
            /// How large it is
            kind as "type": Size = { Kind::Choice(Size::WORDS), Value(r#""small""#), Live, r#""large""# },
            /// What is on it
            shelf: Shelf = table,
        }
    }

    section! {
        /// For this test.
        struct Shelf {
            /// How many boards it has
            boards: NonZeroU32 = { Kind::Int(1, 9), Value("3"), Live, "4" },
        }
    }

    struct Given;

    impl Values for Given {
        fn leaf(&self, path: &str) -> Option<Leaf> {
            match path {
                "shop.open_for" => Some(Leaf::Duration(Duration::from_secs(5))),
                "shop.type" => Some(Leaf::Text("large".to_owned())),
                "shop.shelf.boards" => Some(Leaf::Int(7)),
                other => panic!("no row asks for {other}"),
            }
        }

        fn path(&self, _: &str) -> Option<PathBuf> {
            None
        }

        fn secret(&self, _: &str) -> Option<Secret> {
            None
        }

        fn file(&self, _: &str) -> Option<Contents> {
            None
        }
    }

    #[test]
    fn a_row_is_all_that_a_key_takes() {
        let mut keys = Vec::new();
        Shop::keys("shop", &mut keys);
        let paths: Vec<&str> = keys.iter().map(|key| key.path.as_str()).collect();
        assert_eq!(paths, ["shop.open_for", "shop.type", "shop.shelf.boards"]);
        let doc =
            "How long it stays open; a row is all that a key takes: this is its documentation";
        assert_eq!(keys[0].doc, doc);
        assert_eq!(
            (keys[1].class, keys[1].fallback),
            (Live, Value(r#""small""#))
        );
        assert!(matches!(keys[1].kind, Kind::Choice(["small", "large"])));
        let shop = Shop::read(&Given, "shop");
        let expected = Shop {
            open_for: Duration::from_secs(5),
            kind: Size::Large,
            shelf: Shelf {
                boards: NonZeroU32::new(7).unwrap(),
            },
        };
        assert_eq!(shop, expected);
    }
}
