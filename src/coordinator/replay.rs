//! Sends dead letters through the pipeline again.

use std::sync::Arc;
use std::time::Instant;

use parking_lot::Mutex;
use serde::Serialize;

use super::blocking;
use super::pipeline::Pipeline;
use super::transforms::Handover;
use crate::dead_letter::{DeadLetter, Filter, Listed};
use crate::progress::{HowFar, Progress};
use crate::sink::Replay;
use crate::sink::redpanda::REPLAY_SHARD;
use crate::transform::Chain;

/// What became of one replayed letter.
#[derive(Clone, Debug, Serialize)]
pub struct Replayed {
    /// The change's position.
    pub id: String,
    /// `delivered (2 records)`, `dropped by the transforms`, or `failed: …`: then the letter stays, with the new
    /// error.
    pub outcome: String,
    /// Whether it is gone from the dead letters.
    pub done: bool,
}

/// Why one letter could not be replayed.
enum Failure {
    /// It failed as before, or otherwise: in this stage, with this error.
    Again(Arc<str>, String),
    /// It was not tried to the end.
    Untried(String),
}

/// What it is called where it is told how far it is.
const WORK: &str = "replaying dead letters";

/// A replay of which it is told how far it is, however it ends.
struct Told<'a>(&'a Mutex<Option<HowFar>>);

impl Drop for Told<'_> {
    fn drop(&mut self) {
        *self.0.lock() = None;
    }
}

impl Pipeline {
    /// How far the replay under way is; `None`: there is none.
    pub(crate) fn replay_under_way(&self) -> Option<HowFar> {
        *self.replayed.lock()
    }

    /// Sends the letters that match through the transforms and to Redpanda, oldest first; each is taken away
    /// once its records are acknowledged.
    ///
    /// Their records come after those that their keys had meanwhile: a replay mends, it does not reorder.
    ///
    /// # Errors
    /// A replay is under way already: two at once would deliver everything twice. Or the dead letters cannot be
    /// read or written; what was replayed before that is taken away.
    pub async fn replay(&self, filter: &Filter) -> anyhow::Result<Vec<Replayed>> {
        let _one_at_a_time = self
            .replaying
            .try_lock()
            .map_err(|_| anyhow::anyhow!("a replay is under way; try again when it is done"))?;
        let _told = Told(&self.replayed);
        *self.replayed.lock() = Some(Progress::begin(WORK, Instant::now()).how_far(Instant::now()));
        let Listed { letters, foreign } = self.dead_letters.read(filter).await?;
        let letters = self.restored(letters).await;
        let mut chain = blocking(|| self.transforms.chain(&Handover::default()))?;
        let mut sink = self.sink.clone().open_replay()?;
        sink.open().await?;
        let mut outcomes = Vec::with_capacity(letters.len());
        for foreign in foreign {
            outcomes.push(Replayed {
                id: foreign.place,
                outcome: format!("skipped, for it is no dead letter: {}", foreign.reason),
                done: false,
            });
        }
        // A letter of each table version. The chain is the replay's own, so their ids count from 1 as those of a
        // source do; an id each letter would have the plugins open a table for each.
        let mut tables: Vec<&DeadLetter> = Vec::new();
        let mut progress = Progress::begin(WORK, Instant::now());
        let of = u64::try_from(letters.len()).ok();
        for letter in &letters {
            let known = tables.iter().position(|known| known.has_table_of(letter));
            let table = known.unwrap_or_else(|| {
                tables.push(letter);
                tables.len() - 1
            });
            let replayed = replay_one(&mut chain, &mut *sink, letter, table as u32 + 1).await;
            // At once, so that a replay that is cut short delivers none of these again: in the transaction of its records
            // where there is one.
            if replayed.is_ok() {
                match sink.is_atomic() {
                    true => sink.take_away(&[letter.position]).await?,
                    false => self.dead_letters.take_away(&[letter.position]).await?,
                }
            } else {
                // What of it was delivered is nobody's.
                sink.reset().await?;
            }
            let (outcome, done) = match replayed {
                Ok(0) => ("dropped by the transforms".to_owned(), true),
                Ok(1) => ("delivered".to_owned(), true),
                Ok(records) => (format!("delivered ({records} records)"), true),
                Err(Failure::Again(stage, error)) => {
                    self.dead_letters
                        .rewrite(&[letter.failed_again(stage, error.clone())])
                        .await?;
                    (format!("failed: {error}"), false)
                }
                Err(Failure::Untried(error)) => (format!("not replayed: {error}"), false),
            };
            tracing::info!(position = %letter.position, outcome, "dead letter replayed");
            let now = Instant::now();
            progress.step(|| of, now);
            let far = progress.how_far(now);
            *self.replayed.lock() = Some(HowFar { of, ..far });
            outcomes.push(Replayed {
                id: letter.position.to_string(),
                outcome,
                done,
            });
        }
        sink.close().await;
        Ok(outcomes)
    }
}

impl Pipeline {
    /// The letters with what was abridged of them read from the log again, as far as that has it. The others are as
    /// they were, and cannot be replayed.
    async fn restored(&self, letters: Vec<DeadLetter>) -> Vec<DeadLetter> {
        let mut restored = Vec::with_capacity(letters.len());
        for letter in letters {
            if !letter.is_abridged() {
                restored.push(letter);
                continue;
            }
            let read = self.source.read_again(&letter.table, letter.position).await;
            let again = match read {
                Ok(write) => write.and_then(|write| letter.restored(&write)),
                Err(error) => {
                    tracing::warn!(position = %letter.position, %error, "a change could not be read again");
                    None
                }
            };
            restored.push(again.unwrap_or(letter));
        }
        restored
    }
}

/// The number of records that were acknowledged.
async fn replay_one(
    chain: &mut Chain,
    sink: &mut dyn Replay,
    letter: &DeadLetter,
    schema: u32,
) -> Result<usize, Failure> {
    let untried = |error: &dyn std::fmt::Display| Failure::Untried(error.to_string());
    let batch = letter
        .rebuild(REPLAY_SHARD, 0, schema)
        .map_err(|e| untried(&e))?;
    let records = blocking(|| chain.process(batch)).map_err(|e| untried(&e))?;
    if let Some(rejected) = records.rejected.first() {
        return Err(Failure::Again(
            rejected.stage.clone(),
            rejected.error.clone(),
        ));
    }
    let count = records.records.len();
    let ticket = sink
        .submit(Arc::new(records))
        .await
        .map_err(|e| untried(&e))?;
    let delivered = ticket.await.map_err(|e| untried(&e))?;
    match delivered.poison.into_iter().next() {
        None => Ok(count),
        Some((_, error)) => Err(Failure::Again("sink".into(), error)),
    }
}
