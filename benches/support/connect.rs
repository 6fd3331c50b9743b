//! Kafka Connect with ScyllaDB's connector: what a user would run instead.
#![allow(unreachable_pub)]

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};

/// Where its records go.
pub fn topic(prefix: &str) -> String {
    format!("{prefix}.ks.outbox")
}

/// Properties of the connector for a backlog: windows that hold much, and batches of the largest size that helped.
pub const WIDE: &str = "scylla.query.time.window.size=10000\n\
     scylla.confidence.window.size=1000\n\
     max.batch.size=20000\n\
     max.queue.size=80000\n";
/// For few rows: windows as narrow as Penstock's poll, closed as late as its `safety_interval` has it.
pub const NARROW: &str = "scylla.query.time.window.size=100\n\
     scylla.confidence.window.size=1000\n\
     poll.interval.ms=100\n";

/// One worker with one task and these properties; the connector lies in the folder `plugins`.
pub fn command(
    dir: &Path,
    plugins: &str,
    node: &str,
    brokers: &str,
    prefix: &str,
    properties: &str,
) -> Result<Command> {
    let state = testkit::root().join("target/kafka");
    std::fs::create_dir_all(&state)?;
    let jars = kafka_node::connect_jars(&state)?;
    let plugins = std::fs::canonicalize(plugins).with_context(|| plugins.to_owned())?;
    let worker = format!(
        "bootstrap.servers={brokers}\n\
         key.converter=org.apache.kafka.connect.json.JsonConverter\n\
         value.converter=org.apache.kafka.connect.json.JsonConverter\n\
         key.converter.schemas.enable=false\n\
         value.converter.schemas.enable=false\n\
         offset.storage.file.filename={offsets}\n\
         listeners=http://127.0.0.1:0\n\
         producer.linger.ms=5\n\
         producer.batch.size=1000000\n\
         plugin.path={plugins}\n",
        offsets = dir.join(format!("{prefix}.offsets")).display(),
        plugins = plugins.display(),
    );
    // The name was `scylla.name` before 1.2.3 of the connector.
    let connector = format!(
        "name={prefix}\n\
         connector.class=com.scylladb.cdc.debezium.connector.ScyllaConnector\n\
         tasks.max=1\n\
         topic.prefix={prefix}\n\
         scylla.name={prefix}\n\
         scylla.cluster.ip.addresses={node}\n\
         scylla.table.names=ks.outbox\n\
         {properties}"
    );
    let (worker_file, connector_file) = (
        dir.join("worker.properties"),
        dir.join("connector.properties"),
    );
    std::fs::write(&worker_file, worker)?;
    std::fs::write(&connector_file, connector)?;
    let mut java = Command::new("java");
    java.args(["-Xmx2g", "-cp"])
        .arg(jars.join("*"))
        .arg("org.apache.kafka.connect.cli.ConnectStandalone")
        .args([worker_file, connector_file]);
    Ok(java)
}
