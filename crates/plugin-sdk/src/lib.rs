//! penstock-plugin
