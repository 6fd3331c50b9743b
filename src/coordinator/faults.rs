//! Points at which tests make a stage fail, by the `fail` crate's `FAILPOINTS` variable.
//!
//! Compiled to nothing unless the crate is built for tests (its `failpoints` feature).

use super::child::Stage;

/// The fault points that `FAILPOINTS` sets are in force until this is dropped.
pub struct Armed {
    _scenario: Option<fail::FailScenario<'static>>,
}

impl Armed {
    /// Reads `FAILPOINTS`, e.g. `stage::sink=1*return(hang)->off;stage::source=panic`. A build without fault
    /// points does not look at it.
    pub fn from_environment() -> Self {
        let armed = fail::has_failpoints().then(fail::FailScenario::setup);
        for (point, actions) in fail::list() {
            tracing::warn!(point, actions, "fault point armed");
        }
        Self { _scenario: armed }
    }
}

macro_rules! fault_point {
    ($name:literal) => {
        fail::fail_point!($name, |asked: Option<String>| Some(
            asked.unwrap_or_else(|| "error".to_owned())
        ))
    };
}

/// Does what the fault point `stage::<name>` is set to: `panic`, `return(error)`, `return(hang)`, `sleep(ms)`.
pub(super) async fn point(stage: &Stage) -> anyhow::Result<()> {
    match action(stage).as_deref() {
        None => Ok(()),
        Some("hang") => std::future::pending().await,
        Some(error) => anyhow::bail!("fault point: {error}"),
    }
}

/// Hangs if the fault point `coordinator` is set to.
pub(super) async fn coordinator() {
    let asked = || -> Option<String> {
        fault_point!("coordinator");
        None
    };
    if asked().is_some() {
        std::future::pending().await
    }
}

fn action(stage: &Stage) -> Option<String> {
    match stage {
        Stage::Source => fault_point!("stage::source"),
        Stage::Transform(_) | Stage::Untransformed => fault_point!("stage::transform"),
        Stage::Sink => fault_point!("stage::sink"),
        Stage::DeadLetter => fault_point!("stage::dead_letter"),
        Stage::Orders => fault_point!("stage::orders"),
        _ => {}
    }
    None
}
