//! The stand-in in a process of its own, for benchmarks and for clients run by hand.
//!
//! Prints one line with its address to standard output once it listens, and ends on SIGINT or SIGTERM.

use std::{io::Write, net::SocketAddr, process::ExitCode};

use clap::Parser;
use scylla_double::{Node, Options};
use tokio::signal::unix::{SignalKind, signal};

/// A test double of one ScyllaDB node, in memory. What is written is gone when it ends.
#[derive(Debug, Parser)]
#[command(name = "scylla-double", version)]
struct Args {
    /// Where to listen; port 0 takes a free one
    #[arg(long, default_value = "127.0.0.1:9042")]
    listen: SocketAddr,
    /// Token ranges, and so groups of CDC streams in a generation
    #[arg(long, default_value_t = Options::default().vnodes, value_parser = clap::value_parser!(u32).range(1..=4096))]
    vnodes: u32,
    /// CDC streams in a group
    #[arg(long, default_value_t = Options::default().shards_per_vnode, value_parser = clap::value_parser!(u32).range(1..=256))]
    shards_per_vnode: u32,
    /// Make keyspaces with vnodes unless they ask for tablets, as ScyllaDB did before 2025
    #[arg(long)]
    no_tablets: bool,
    /// Tablets, and so CDC streams, of a table in a keyspace with tablets
    #[arg(long, default_value_t = Options::default().initial_tablets, value_parser = clap::value_parser!(u32).range(1..=4096))]
    initial_tablets: u32,
    /// What to log, e.g. `info` or `scylla_double=trace`
    #[arg(long, env = "SCYLLA_DOUBLE_LOG", default_value = "warn")]
    log: String,
}

fn main() -> ExitCode {
    let args = Args::parse();
    let runtime = match tokio::runtime::Runtime::new() {
        Ok(runtime) => runtime,
        Err(e) => {
            eprintln!("scylla-double: no runtime: {e}");
            return ExitCode::FAILURE;
        }
    };
    match runtime.block_on(run(args)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("scylla-double: {e}");
            ExitCode::FAILURE
        }
    }
}

async fn run(args: Args) -> std::io::Result<()> {
    let filter =
        tracing_subscriber::EnvFilter::try_new(&args.log).map_err(std::io::Error::other)?;
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .init();
    let (mut interrupt, mut terminate) = (
        signal(SignalKind::interrupt())?,
        signal(SignalKind::terminate())?,
    );
    let node = Node::start(Options {
        listen: args.listen,
        vnodes: args.vnodes,
        shards_per_vnode: args.shards_per_vnode,
        tablets: !args.no_tablets,
        initial_tablets: args.initial_tablets,
        ..Options::default()
    })
    .await?;
    let mut out = std::io::stdout().lock();
    writeln!(out, "scylla-double listens on {}", node.addr())?;
    out.flush()?;
    drop(out);
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
    node.shutdown().await;
    Ok(())
}
