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

fn action(stage: &'static str) -> Option<String> {
    let decide = |asked: Option<String>| Some(asked.unwrap_or_else(|| "error".to_owned()));
    match stage {
        "source" => fail::fail_point!("stage::source", decide),
        "transform" => fail::fail_point!("stage::transform", decide),
        "sink" => fail::fail_point!("stage::sink", decide),
        "dead_letter" => fail::fail_point!("stage::dead_letter", decide),
        "orders" => fail::fail_point!("stage::orders", decide),
        _ => {}
    }
    None
}
