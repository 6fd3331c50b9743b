//! Whatever stands in pipeline.toml: no panic, and a refusal says why. `tests/config.rs` has the short form.
#![no_main]

use std::path::Path;

use libfuzzer_sys::fuzz_target;
use penstock::config::{self, Checks};

fuzz_target!(|text: &str| {
    if let Err(invalid) = config::parse(Path::new("/nowhere/pipeline.toml"), text, Checks::default()) {
        assert!(!invalid.problems.is_empty());
        assert!(!invalid.render(false).is_empty());
        assert!(invalid.to_json().is_array());
    }
});
