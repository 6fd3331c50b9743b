//! Requests that run statements: from the message to the engine and back, past the faults.

use std::{borrow::Cow, ops::ControlFlow};

use super::{
    Shared,
    request::{BatchStatement, QueryParams, Request},
    response::{self, Draft, ReplicaError},
    session::Session,
    trace::Tracer,
};
use crate::{
    engine::{BatchKind, BoundValue, CqlError, Outcome, Params, Prepared, SERVER_ERROR},
    faults::{Action, Operation, Target},
};

/// `Continue` with an answer; `Break` with what is to be sent by half, or with nothing.
pub(super) type Answer = ControlFlow<Option<Draft>, Draft>;

/// The answer of a fault that does not run the statement.
pub(super) fn failure(action: &Action, consistency: u16, table: &str) -> Draft {
    let replica = |kind| response::replica_error(kind, consistency, table);
    match action {
        Action::Overloaded => response::error(0x1001, "request shed: the node is overloaded"),
        Action::Unavailable => replica(ReplicaError::Unavailable),
        Action::ReadTimeout => replica(ReplicaError::ReadTimeout),
        Action::ReadFailure => replica(ReplicaError::ReadFailure),
        Action::WriteTimeout => replica(ReplicaError::WriteTimeout),
        Action::WriteFailure => replica(ReplicaError::WriteFailure),
        Action::Error { code, message } => response::error(*code, message),
        Action::ServerError(message) => response::error(SERVER_ERROR, message),
        Action::Delay(_) | Action::BreakConnection | Action::Silence => response::error(
            SERVER_ERROR,
            "an injected fault that has no error of its own",
        ),
    }
}

impl Shared {
    /// Runs a request and gives its answer.
    pub(super) async fn run(
        &self,
        session: &Session,
        request: Request,
        tracer: &mut Tracer,
    ) -> Answer {
        match request {
            Request::Prepare(text) => {
                tracer.request(|| "Preparing CQL3 query".into());
                tracer.query(None, &text, None);
                tracer.note(|| "Parsing a statement".into());
                let keyspace = session.keyspace.lock().clone();
                let prepared = self
                    .prepared
                    .prepare(&self.engine, &text, keyspace.as_deref());
                let (id, prepared) = match prepared {
                    Ok(prepared) => prepared,
                    Err(e) => return Answer::Continue(response::cql_error(&e)),
                };
                let target = Target {
                    operation: Operation::Prepare,
                    table: prepared.table(),
                };
                let answer = || {
                    response::prepared(
                        &id,
                        prepared.bind_variables(),
                        prepared.primary_key_indexes(),
                        prepared.result_columns(),
                    )
                };
                let answer = self.faulty(&target, 1, answer).await;
                tracer.note(|| {
                    let id: String = id.iter().map(|b| format!("{b:02x}")).collect();
                    format!("Done preparing on a local shard - preparing a result. ID is [{id}]")
                });
                answer
            }
            Request::Query { text, params } => {
                tracer.request(|| "Execute CQL3 query".into());
                tracer.query(None, &text, None);
                tracer.params(&params);
                tracer.note(|| "Parsing a statement".into());
                let keyspace = session.keyspace.lock().clone();
                match self.engine.prepare(&text, keyspace.as_deref()) {
                    Ok(prepared) => self.execute(session, &prepared, params, tracer).await,
                    Err(e) => Answer::Continue(response::cql_error(&e)),
                }
            }
            Request::Execute { id, params } => match self.prepared.current(&self.engine, &id) {
                Some(prepared) => {
                    tracer.request(|| {
                        let id: String = id.iter().map(|b| format!("{b:02x}")).collect();
                        format!("Execute CQL3 prepared query [{id}]")
                    });
                    tracer.params(&params);
                    tracer.values(None, prepared.bind_variables(), &params.values);
                    self.execute(session, &prepared, params, tracer).await
                }
                None => Answer::Continue(response::unprepared(&id)),
            },
            Request::Batch {
                kind,
                statements,
                params,
            } => self.batch(session, kind, statements, params, tracer).await,
            other => Answer::Continue(response::error(
                response::PROTOCOL_ERROR,
                &format!(
                    "Unexpected message {} during query processing",
                    other.name()
                ),
            )),
        }
    }

    async fn execute(
        &self,
        session: &Session,
        prepared: &Prepared,
        params: QueryParams,
        tracer: &mut Tracer,
    ) -> Answer {
        tracer.query(None, prepared.text(), prepared.table());
        tracer.note(|| processing(session));
        let target = Target {
            operation: operation(prepared),
            table: prepared.table(),
        };
        let (consistency, skip_metadata) = (params.consistency, params.skip_metadata);
        let params = engine_params(session, params);
        let modifies = prepared.is_modification();
        let run = || {
            tracer.note(|| beginning(prepared.is_read(), modifies).into());
            let outcome = self.engine.execute(prepared, &params);
            tracer.note(|| ending(&outcome, modifies));
            answer(session, outcome, skip_metadata.then_some(prepared))
        };
        let answer = self.faulty(&target, consistency, run).await;
        tracer.note(|| "Done processing - preparing a result".into());
        answer
    }

    async fn batch(
        &self,
        session: &Session,
        kind: BatchKind,
        statements: Vec<(BatchStatement, Vec<BoundValue>)>,
        params: QueryParams,
        tracer: &mut Tracer,
    ) -> Answer {
        tracer.request(|| "Execute batch of CQL3 queries".into());
        tracer.params(&params);
        let keyspace = session.keyspace.lock().clone();
        let several = statements.len() > 1;
        let mut prepared = Vec::with_capacity(statements.len());
        for (n, (statement, values)) in statements.into_iter().enumerate() {
            let statement = match &statement {
                BatchStatement::Text(text) => self.engine.prepare(text, keyspace.as_deref()),
                BatchStatement::Prepared(id) => match self.prepared.current(&self.engine, id) {
                    Some(prepared) => Ok(prepared),
                    None => return Answer::Continue(response::unprepared(id)),
                },
            };
            match statement {
                Ok(statement) => {
                    let n = several.then_some(n);
                    tracer.query(n, statement.text(), statement.table());
                    tracer.values(n, statement.bind_variables(), &values);
                    prepared.push((statement, values));
                }
                Err(e) => return Answer::Continue(response::cql_error(&e)),
            }
        }
        let table = prepared
            .first()
            .and_then(|(statement, _)| statement.table());
        let target = Target {
            operation: Operation::Batch,
            table,
        };
        let consistency = params.consistency;
        let params = engine_params(session, params);
        tracer.note(|| "Creating a batch statement".into());
        let run = || {
            tracer.note(|| beginning(false, true).into());
            let outcome = self.engine.execute_batch(kind, &prepared, &params);
            tracer.note(|| ending(&outcome, true));
            answer(session, outcome, None)
        };
        let answer = self.faulty(&target, consistency, run).await;
        tracer.note(|| "Done processing - preparing a result".into());
        answer
    }

    /// Answers with what `run` gives, unless a fault has another answer.
    async fn faulty(
        &self,
        target: &Target<'_>,
        consistency: u16,
        run: impl FnOnce() -> Draft,
    ) -> Answer {
        let Some(action) = self.faults.hit(target) else {
            return Answer::Continue(run());
        };
        match action {
            Action::Delay(by) => {
                tokio::time::sleep(by).await;
                Answer::Continue(run())
            }
            Action::BreakConnection => Answer::Break(Some(run())),
            Action::Silence => {
                run();
                Answer::Break(None)
            }
            action => {
                if action == Action::WriteTimeout {
                    run();
                }
                let table = target.table.map_or(Cow::Borrowed("the request"), |(k, t)| {
                    Cow::Owned(format!("{k}.{t}"))
                });
                Answer::Continue(failure(&action, consistency, &table))
            }
        }
    }
}

fn processing(session: &Session) -> String {
    let user = session.user.lock();
    let user = user.as_deref().unwrap_or("anonymous");
    format!("Processing a statement for authenticated user: {user}")
}

/// What a trace says before the engine runs a statement.
fn beginning(reads: bool, modifies: bool) -> &'static str {
    match (reads, modifies) {
        (true, _) => "read_data: querying locally",
        (_, true) => "Executing a mutation locally",
        _ => "Changing what is there locally",
    }
}

/// What a trace says after it.
fn ending(outcome: &Result<Outcome, CqlError>, modifies: bool) -> String {
    match outcome {
        Err(e) => format!("Failed: {}", e.message),
        Ok(Outcome::Rows { rows, .. }) if !modifies => {
            format!("Querying is done: {} rows", rows.len())
        }
        Ok(_) if modifies => "Mutation successfully completed".into(),
        Ok(_) => "The change is done".into(),
    }
}

fn engine_params(session: &Session, params: QueryParams) -> Params {
    Params {
        values: params.values,
        names: params.names,
        keyspace: session.keyspace.lock().clone(),
        default_timestamp: params.timestamp,
        consistency: params.consistency,
        serial_consistency: params.serial_consistency,
        page_size: params.page_size,
        paging_state: params.paging_state,
        now: None,
    }
}

/// The engine's outcome as a response; without the columns of rows when `known` says the client has
/// them, and has them right.
fn answer(
    session: &Session,
    outcome: Result<Outcome, CqlError>,
    known: Option<&Prepared>,
) -> Draft {
    match outcome {
        Err(e) => response::cql_error(&e),
        Ok(Outcome::Void) => response::void(),
        Ok(Outcome::Rows {
            columns,
            rows,
            paging_state,
        }) => {
            let skip = known.is_some_and(|prepared| prepared.result_columns() == columns);
            response::rows(&columns, &rows, paging_state.as_deref(), skip)
        }
        Ok(Outcome::SetKeyspace(keyspace)) => {
            let draft = response::set_keyspace(&keyspace);
            *session.keyspace.lock() = Some(keyspace);
            draft
        }
        Ok(Outcome::SchemaChange(change)) => response::schema_change(&change),
    }
}

/// What a statement does, by its first word where the engine does not tell.
fn operation(prepared: &Prepared) -> Operation {
    if prepared.is_read() {
        return Operation::Select;
    }
    let word = prepared
        .text()
        .split_whitespace()
        .next()
        .unwrap_or_default();
    let is = |name: &str| word.eq_ignore_ascii_case(name);
    if is("INSERT") {
        Operation::Insert
    } else if is("DELETE") || is("TRUNCATE") {
        Operation::Delete
    } else if is("BEGIN") {
        Operation::Batch
    } else if prepared.is_modification() {
        Operation::Update
    } else {
        Operation::Schema
    }
}
