//! scylla-double
