//! `penstock run`: the pipeline until it is told to stop, and what the terminal shows of it.

use std::io::IsTerminal;
use std::sync::Arc;

use clap::Args;

use super::output::Output;
use super::terminal::{self, FilterHandle, Opened, Terminal};
use super::{ConfigArgs, exit, machine};
use crate::config::settings::{Nodes, Settings};
use crate::config::{Inputs, LiveSettings};
use crate::coordinator::child::Stage;
use crate::coordinator::faults::Armed;
use crate::coordinator::handle::Handle;
use crate::coordinator::pipeline::PolicyRegistry;
use crate::coordinator::reload::Reloads;
use crate::coordinator::shutdown::Signals;
use crate::coordinator::supervisor::ChildSpec;
use crate::coordinator::{Coordinator, Outcome};
use crate::sink::redpanda::RedpandaSink;
use crate::source::{ScyllaSource, Source};
use crate::transform::PluginError;

/// `penstock run`
#[derive(Debug, Args)]
pub struct RunArgs {
    /// Show no progress, only the log
    #[arg(long, short)]
    pub quiet: bool,
    /// With JSON the log has an object a line, whatever `log.format` says, and no progress is drawn.
    #[command(flatten)]
    pub output: Output,
}

/// Children that a command adds to the pipeline, once it has a handle to it.
pub type Extra = Box<dyn FnOnce(&Handle, &Terminal) -> Vec<ChildSpec>>;

/// Runs the pipeline; the exit code says how it ended.
pub fn run(config: &ConfigArgs, args: RunArgs) -> u8 {
    let quiet = args.quiet;
    start(
        config.inputs(),
        args.output,
        Box::new(move |handle, terminal| {
            if quiet {
                Vec::new()
            } else {
                vec![terminal.progress(handle.clone())]
            }
        }),
    )
}

/// Loads, starts, runs and drains; for a program (`output`) all that is said is JSON.
pub fn start(mut inputs: Inputs, output: Output, extra: Extra) -> u8 {
    let json = output.is_json();
    if json {
        inputs.set.push("log.format=json".to_owned());
    }
    let reloads = match Reloads::load_first(inputs) {
        Ok(reloads) => reloads,
        Err(invalid) if json => {
            say!("{:#}", invalid.to_json());
            return exit::BAD_CONFIG;
        }
        Err(invalid) => {
            complain!(
                "{}",
                invalid.render(std::io::stderr().is_terminal()).trim_end()
            );
            return exit::BAD_CONFIG;
        }
    };
    let opened = Opened::new(!json && std::io::stderr().is_terminal());
    let terminal = &opened.terminal;
    terminal.show_long_work();
    let filter = terminal.init_logging(&reloads.settings().log);
    if let Some(finding) = machine::open_files(&reloads.settings()) {
        tracing::warn!(help = finding.help, "{}: {}", finding.about, finding.found);
    }
    let _armed = Armed::from_environment();
    let runtime = match tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
    {
        Ok(runtime) => runtime,
        Err(error) => {
            complain!("error: the runtime cannot be started: {error}");
            return exit::FAILURE;
        }
    };
    let code = runtime.block_on(async {
        match serve(reloads, extra, terminal, filter).await {
            Ok(Outcome::Clean) => exit::OK,
            Ok(Outcome::Failed) => exit::FAILURE,
            Ok(Outcome::Fenced) => exit::FENCED,
            Ok(Outcome::Forced) => exit::FORCED,
            Err(error) => {
                match json {
                    true => tracing::error!(error = %format!("{error:#}"), "it ends"),
                    false => terminal.line(&format!("error: {error:#}")),
                }
                // A plugin that cannot be used is the configuration's fault, as `validate` says too.
                match error.is::<PluginError>() {
                    true => exit::BAD_CONFIG,
                    false => exit::FAILURE,
                }
            }
        }
    });
    drop(opened);
    // A child that is stuck in a blocking section must not keep the process.
    runtime.shutdown_background();
    code
}

async fn serve(
    mut reloads: Reloads,
    extra: Extra,
    terminal: &Terminal,
    filter: FilterHandle,
) -> anyhow::Result<Outcome> {
    let mut signals = Signals::new()?;
    let stand_ins = reloads.start_stand_ins().await?;
    let live = reloads.live();
    // A stop that is asked for before everything has started is obeyed too.
    let mut coordinator = tokio::select! {
        started = Coordinator::start(reloads) => started?,
        () = async { while signals.next().await != crate::coordinator::shutdown::Asked::Stop {} } => {
            return Ok(Outcome::Clean);
        }
    };
    coordinator.add(filter_child(live, filter));
    for child in extra(&coordinator.handle(), terminal) {
        coordinator.add(child);
    }
    let outcome = coordinator.run(signals).await;
    if let Some(stand_ins) = std::rc::Rc::into_inner(stand_ins) {
        stand_ins.shutdown().await;
    }
    Ok(outcome)
}

/// For `validate --connect`: whether both sides answer and have what the settings name; all that is wrong.
pub fn connect(settings: Arc<Settings>) -> Result<(), Vec<String>> {
    let runtime = tokio::runtime::Runtime::new().map_err(|e| vec![e.to_string()])?;
    runtime.block_on(async {
        let live = tokio::sync::watch::Sender::new(settings.clone());
        let policies = PolicyRegistry::new(live.subscribe());
        let source = async {
            if settings.source.nodes == Nodes::Embedded {
                return Ok(());
            }
            let source =
                ScyllaSource::connect(live.subscribe(), policies.stage(&Stage::Source)).await;
            let absent = source.map_err(|e| vec![e.to_string()])?.absent();
            match absent.is_empty() {
                true => Ok(()),
                // One line for a keyspace, however many tables are to be in it.
                false => {
                    let mut said: Vec<_> = absent.iter().map(|(_, e)| e.to_string()).collect();
                    said.dedup();
                    Err(said)
                }
            }
        };
        let sink = async {
            if settings.sink.brokers == Nodes::Embedded {
                return Ok(());
            }
            let sink = RedpandaSink::connect(live.subscribe(), policies.stage(&Stage::Sink)).await;
            sink.map(drop).map_err(|e| vec![e.to_string()])
        };
        let (source, sink) = tokio::join!(source, sink);
        let wrong: Vec<String> = [source, sink]
            .into_iter()
            .filter_map(Result::err)
            .flatten()
            .collect();
        if wrong.is_empty() { Ok(()) } else { Err(wrong) }
    })
}

/// Takes a changed `log.filter` to the running subscriber.
fn filter_child(live: LiveSettings, filter: FilterHandle) -> ChildSpec {
    ChildSpec::new(Stage::Log, move |scope| {
        let (mut live, filter) = (live.clone(), filter.clone());
        async move {
            let mut current = live.borrow_and_update().log.filter.clone();
            loop {
                tokio::select! {
                    changed = live.changed() => changed?,
                    () = scope.drain.cancelled() => return Ok(()),
                }
                let wanted = live.borrow_and_update().log.filter.clone();
                if wanted != current {
                    // Validation has parsed it before.
                    filter.reload(terminal::filter(&wanted)?)?;
                    current = wanted;
                }
            }
        }
    })
}
