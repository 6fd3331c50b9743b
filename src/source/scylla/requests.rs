//! The reads under way.
//!
//! A read may hold the breaker's one probe, so it must be polled until it has ended, whether or not somebody
//! wants a batch meanwhile: [`Requests::drive`].

use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU8, Ordering::Relaxed};

use futures::FutureExt;
use futures::future::BoxFuture;
use futures::stream::{FuturesUnordered, StreamExt};
use scylla::response::PagingState;

use super::error::SourceError;
use super::group::GroupId;
use super::log::{Columns, Fetched, Keys, LogTable, Page, Read};
use super::{ScyllaSource, ShardStats, classify};

/// What was asked for.
pub(super) enum Got {
    Rows(Box<Page>),
    Keys(Keys),
}

/// One page, whatever it took.
pub(super) struct PageRead {
    pub(super) group: GroupId,
    pub(super) result: Result<Got, SourceError>,
    /// The end of the window that was read in the end: a first page that met pressure asks for less.
    pub(super) to_us: i64,
    /// How often the database had too much to do.
    pub(super) pressure: u8,
}

/// See the module.
#[derive(Default)]
pub(super) struct Requests {
    under_way: FuturesUnordered<BoxFuture<'static, PageRead>>,
    /// Those that have ended while nobody wanted them.
    arrived: VecDeque<PageRead>,
}

impl Requests {
    /// Reads whose pages have not been taken.
    pub(super) fn len(&self) -> usize {
        self.under_way.len() + self.arrived.len()
    }

    /// Starts a read.
    pub(super) fn start(
        &mut self,
        group: GroupId,
        source: Arc<ScyllaSource>,
        table: Arc<LogTable>,
        stats: Arc<ShardStats>,
        read: Read,
    ) {
        let page = async move { read_page(group, &source, &table, &stats, read).await };
        self.push(page.boxed());
    }

    fn push(&mut self, page: BoxFuture<'static, PageRead>) {
        self.under_way.push(page);
    }

    /// Takes a page that is there.
    pub(super) fn take(&mut self) -> Option<PageRead> {
        let arrived = self.arrived.pop_front();
        arrived.or_else(|| self.under_way.next().now_or_never().flatten())
    }

    /// Waits for a page. Cancel-safe.
    pub(super) async fn next(&mut self) -> PageRead {
        if let Some(arrived) = self.arrived.pop_front() {
            return arrived;
        }
        match self.under_way.next().await {
            Some(read) => read,
            None => std::future::pending().await,
        }
    }

    /// Keeps what is under way going while nobody wants a page. Never ends; cancel-safe.
    pub(super) async fn drive(&mut self) -> Infallible {
        loop {
            match self.under_way.next().await {
                Some(read) => self.arrived.push_back(read),
                None => std::future::pending().await,
            }
        }
    }
}

enum Answer {
    Rows(Box<Fetched>),
    Keys(Keys),
}

/// Reads a page by the stage's policies.
async fn read_page(
    group: GroupId,
    source: &ScyllaSource,
    table: &Arc<LogTable>,
    stats: &ShardStats,
    read: Read,
) -> PageRead {
    let pressure = AtomicU8::new(0);
    let to_us = AtomicI64::new(read.to_us);
    let attempt = || {
        let settings = source.live.borrow().clone();
        let mut read = read.clone();
        for _ in 0..pressure.load(Relaxed) {
            read.span.pressed();
        }
        if pressure.load(Relaxed) > 0 && read.paging == PagingState::start() {
            let least = read
                .least_us
                .saturating_add(read.span.us(settings.source.window));
            read.to_us = read.to_us.min(least);
            to_us.store(read.to_us, Relaxed);
        }
        let pressure = &pressure;
        async move {
            source.probe_waits().await;
            let (session, settings) = (&source.session(), &settings.source);
            let asked = read.clone();
            let result = match read.columns {
                Columns::All => {
                    let fetched = table.read(session, settings, read).await;
                    fetched.map(Box::new).map(Answer::Rows)
                }
                Columns::Keys => {
                    let keys = table.read_keys(session, settings, read).await;
                    keys.map(Answer::Keys)
                }
            };
            result.inspect_err(|error| {
                source.failed(error);
                source.glance.failed(table, &asked);
                if classify::is_pressure(error) {
                    pressure.store(pressure.load(Relaxed).saturating_add(1), Relaxed);
                    stats.pressed.store(true, Relaxed);
                }
                if classify::is_stale_statement(error) {
                    table.forget_statement();
                }
            })
        }
    };
    let result = match source.policies.run(attempt, classify::classify).await {
        Ok(Answer::Rows(fetched)) => {
            let page = version(source, table, *fetched).await;
            page.map(Box::new).map(Got::Rows)
        }
        Ok(Answer::Keys(keys)) => Ok(Got::Keys(keys)),
        Err(error) => Err(error),
    };
    PageRead {
        group,
        result,
        to_us: to_us.load(Relaxed),
        pressure: pressure.load(Relaxed),
    }
}

/// Waits for the schema that a page's rows are of, if need be. The breaker has had its answer by then.
async fn version(
    source: &ScyllaSource,
    table: &LogTable,
    fetched: Fetched,
) -> Result<Page, SourceError> {
    let version = match fetched.version {
        Some(version) => version,
        None => {
            source.survey.schema_anew().await;
            table.version_at_last(&source.session(), &fetched.rows)?
        }
    };
    Ok(Page {
        rows: fetched.rows,
        version,
        postimages: table.postimages.load(Relaxed),
        next: fetched.next,
    })
}

#[cfg(test)]
mod tests {
    use tokio::sync::oneshot;

    use super::*;

    /// Requests of which each is answered when it is told to; the page's `to_us` is its number.
    fn requests(n: i64) -> (Requests, Vec<oneshot::Sender<()>>) {
        let mut requests = Requests::default();
        let answers = (0..n).map(|to_us| {
            let (answer, answered) = oneshot::channel();
            let page = async move {
                answered.await.expect("the test answers");
                PageRead {
                    group: GroupId::default(),
                    result: Err(SourceError::NoEmbeddedNode),
                    to_us,
                    pressure: 0,
                }
            };
            requests.push(page.boxed());
            answer
        });
        let answers = answers.collect();
        (requests, answers)
    }

    fn taken(requests: &mut Requests) -> Option<i64> {
        requests.take().map(|page| page.to_us)
    }

    #[tokio::test]
    async fn what_ends_while_nobody_wants_it_is_kept_in_the_order_of_its_answers() {
        let (mut requests, answers) = requests(3);
        let [first, second, third] = answers.try_into().expect("three");
        assert_eq!(taken(&mut requests), None);
        second.send(()).expect("under way");
        // Driven, and let go of: a lane that finds room meanwhile.
        assert!(requests.drive().now_or_never().is_none());
        first.send(()).expect("under way");
        assert!(requests.drive().now_or_never().is_none());
        assert_eq!(requests.len(), 3, "those that nobody took are counted");
        assert_eq!(requests.next().await.to_us, 1);
        assert_eq!(taken(&mut requests), Some(0));
        assert_eq!((taken(&mut requests), requests.len()), (None, 1));
        third.send(()).expect("under way");
        assert_eq!(taken(&mut requests), Some(2), "without being driven");
    }

    #[tokio::test]
    async fn a_wait_that_is_given_up_loses_nothing() {
        let (mut requests, mut answers) = requests(1);
        assert!(requests.next().now_or_never().is_none());
        answers.pop().expect("one").send(()).expect("under way");
        assert_eq!(requests.next().await.to_us, 0);
        assert!(requests.next().now_or_never().is_none(), "there is none");
    }
}
