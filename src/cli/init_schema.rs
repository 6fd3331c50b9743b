//! `penstock init-schema`: the order service's keyspace and tables.

use std::io::IsTerminal;

use clap::Args;
use serde_json::json;

use super::output::Output;
use super::{ConfigArgs, exit};
use crate::config::settings::Nodes;
use crate::coordinator::reload::Reloads;
use crate::orders::store;

/// `penstock init-schema`
#[derive(Debug, Args)]
pub struct InitSchemaArgs {
    /// Print the statements instead of running them
    #[arg(long)]
    pub dry_run: bool,
    /// Of a keyspace that is created
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=16))]
    pub replication_factor: u32,
    /// How it is told.
    #[command(flatten)]
    pub output: Output,
}

/// Creates what is missing; running it again changes nothing.
pub fn run(config: &ConfigArgs, args: InitSchemaArgs) -> u8 {
    let settings = match Reloads::load_first(config.inputs()) {
        Ok(reloads) => reloads.settings(),
        Err(invalid) => {
            complain!(
                "{}",
                invalid.render(std::io::stderr().is_terminal()).trim_end()
            );
            return exit::BAD_CONFIG;
        }
    };
    let json = args.output.is_json();
    let keyspace = &settings.orders.keyspace;
    if args.dry_run && json {
        let statements = store::schema_statements(&settings, args.replication_factor);
        say!(
            "{:#}",
            json!({ "keyspace": keyspace, "statements": statements })
        );
        return exit::OK;
    }
    if args.dry_run {
        for statement in store::schema_statements(&settings, args.replication_factor) {
            say!("{statement};\n");
        }
        return exit::OK;
    }
    if settings.source.nodes == Nodes::Embedded && json {
        say!("{}", json!({ "keyspace": keyspace, "embedded": true }));
        return exit::OK;
    }
    if settings.source.nodes == Nodes::Embedded {
        say!(
            "`source.nodes` is \"embedded\": the stand-in gets the schema by itself whenever it starts"
        );
        return exit::OK;
    }
    let done = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(anyhow::Error::from)
        .and_then(|runtime| {
            Ok(runtime.block_on(store::init_schema(&settings, args.replication_factor))?)
        });
    match done {
        Ok(()) => {
            match json {
                true => say!("{}", json!({ "keyspace": keyspace, "ready": true })),
                false => say!("keyspace {keyspace} is ready"),
            }
            exit::OK
        }
        Err(error) => {
            complain!("error: {error:#}");
            exit::FAILURE
        }
    }
}
