//! outbox router
