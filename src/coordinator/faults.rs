//! Points at which tests make a stage fail, by the `fail` crate's `FAILPOINTS` variable or its API.
//!
//! Compiled to nothing unless the crate is built for tests (its `failpoints` feature).

/// Does what the fault point `stage::<name>` is set to: `panic`, `return(error)`, `return(hang)`, `sleep(ms)`.
pub(super) async fn point(stage: &'static str) -> anyhow::Result<()> {
    match action(stage).as_deref() {
        None => Ok(()),
        Some("hang") => std::future::pending().await,
        Some(error) => anyhow::bail!("fault point: {error}"),
    }
}

macro_rules! fault_point {
    ($name:literal) => {
        fail::fail_point!($name, |asked: Option<String>| Some(
            asked.unwrap_or_else(|| "error".to_owned())
        ))
    };
}

fn action(stage: &'static str) -> Option<String> {
    match stage {
        "source" => fault_point!("stage::source"),
        "transform" => fault_point!("stage::transform"),
        "sink" => fault_point!("stage::sink"),
        "dead_letter" => fault_point!("stage::dead_letter"),
        "orders" => fault_point!("stage::orders"),
        _ => {}
    }
    None
}
