//! What the coordinator runs, by type: a stage, and a child of it.
//!
//! Their texts are what a person sees (`status`, the log, metrics' labels) and what pipeline.toml calls a stage.
//! Nothing is decided by them.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

/// What a child belongs to. Those of pipeline.toml have policies; the others are the coordinator's own.
///
/// The order is that of a start: whoever starts finds its taker ready. `rest_for_one` and lists follow it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Stage {
    /// The admin interface.
    Admin,
    /// Sends traces.
    Tracing,
    /// Turns silence of the brokers into failures of the sink's breaker.
    Guard,
    /// `[dead_letter]`
    DeadLetter,
    /// `[sink]`
    Sink,
    /// A `[[transform]]`, by its name. The transforms of a shard share one child, which belongs to the first.
    Transform(Arc<str>),
    /// In the place of the transforms where there are none.
    Untransformed,
    /// `[source]`
    Source,
    /// Opens a shard that was assigned.
    Opening,
    /// Follows what other instances commit.
    Checkpoints,
    /// `[orders]`
    Orders,
    /// Takes part in the group by which instances share the shards out.
    Membership,
    /// Takes `log.filter` to the subscriber.
    Log,
    /// The line that shows what flows.
    Progress,
    /// Closes what was replaced.
    LetGo,
    /// What `penstock demo` adds.
    Demo(Demo),
}

/// The children of `penstock demo`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Demo {
    /// Stops it after a while.
    Clock,
    /// Sends orders to the order service.
    Feed,
    /// Reads back what arrives.
    Tail,
}

impl Stage {
    /// The stage of the transform of this name.
    pub fn transform(name: &str) -> Self {
        Self::Transform(name.into())
    }

    /// Whether a child of this stage does (also) the work of `stage`, so ends with it: the transforms of a shard
    /// share one child, whichever of them it is that failed; without the order service nobody takes orders.
    pub fn serves(&self, stage: &Self) -> bool {
        match (self, stage) {
            (Self::Transform(_), Self::Transform(_) | Self::Untransformed) => true,
            (Self::Demo(Demo::Feed), Self::Orders) => true,
            (own, other) => own == other,
        }
    }

    /// Whether it makes or takes the records of a change: between source and sink.
    pub fn transforms(&self) -> bool {
        matches!(self, Self::Transform(_) | Self::Untransformed)
    }

    /// Whether it is part of the pipeline, and is made anew with it.
    pub fn is_of_pipeline(&self) -> bool {
        match self {
            Self::Guard | Self::DeadLetter | Self::Sink | Self::Source => true,
            Self::Transform(_) | Self::Untransformed => true,
            Self::Opening | Self::Checkpoints => true,
            Self::Admin | Self::Orders | Self::Log | Self::Progress => false,
            Self::Tracing | Self::Membership => false,
            Self::LetGo | Self::Demo(_) => false,
        }
    }
}

/// As pipeline.toml, the log and metrics call it.
impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Admin => "admin",
            Self::Tracing => "tracing",
            Self::Guard => "guard",
            Self::DeadLetter => "dead_letter",
            Self::Sink => "sink",
            Self::Transform(name) => return write!(f, "transform.{name}"),
            Self::Untransformed => "transform",
            Self::Source => "source",
            Self::Opening => "opening",
            Self::Checkpoints => "checkpoints",
            Self::Membership => "membership",
            Self::Orders => "orders",
            Self::Log => "log",
            Self::Progress => "progress",
            Self::LetGo => "let-go",
            Self::Demo(Demo::Feed) => "orders.feed",
            Self::Demo(Demo::Clock | Demo::Tail) => "demo",
        })
    }
}

/// No stage of pipeline.toml is called so.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("there is no stage {0:?}")]
pub struct NoSuchStage(pub String);

/// The stages of pipeline.toml, by the names that it gives them.
impl FromStr for Stage {
    type Err = NoSuchStage;

    fn from_str(name: &str) -> Result<Self, NoSuchStage> {
        match name {
            "source" => Ok(Self::Source),
            "sink" => Ok(Self::Sink),
            "dead_letter" => Ok(Self::DeadLetter),
            "orders" => Ok(Self::Orders),
            other => match other.strip_prefix("transform.") {
                Some(transform) => Ok(Self::transform(transform)),
                None => Err(NoSuchStage(other.to_owned())),
            },
        }
    }
}

/// A child of the coordinator. There is at most one of a name at a time, but for those that are retired.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ChildId {
    /// Whose policies it has.
    pub stage: Stage,
    /// The shard that it works for, if it works for one.
    pub shard: Option<u32>,
}

impl ChildId {
    /// The child of a stage in a shard.
    pub fn of_shard(stage: Stage, shard: u32) -> Self {
        Self {
            stage,
            shard: Some(shard),
        }
    }
}

/// The one child of a stage.
impl From<Stage> for ChildId {
    fn from(stage: Stage) -> Self {
        Self { stage, shard: None }
    }
}

/// `sink/2`, `dead_letter`, `demo/feed`.
impl fmt::Display for ChildId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.stage {
            Stage::Guard => f.write_str("sink/guard")?,
            Stage::Transform(_) => f.write_str("transform")?,
            Stage::Demo(Demo::Clock) => f.write_str("demo/clock")?,
            Stage::Demo(Demo::Feed) => f.write_str("demo/feed")?,
            Stage::Demo(Demo::Tail) => f.write_str("demo/tail")?,
            stage => write!(f, "{stage}")?,
        }
        self.shard.map_or(Ok(()), |shard| write!(f, "/{shard}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_stages_of_pipeline_toml_are_read_as_they_are_written() {
        let router = Stage::transform("outbox-router");
        for stage in [
            Stage::Source,
            Stage::Sink,
            Stage::DeadLetter,
            Stage::Orders,
            router,
        ] {
            assert_eq!(stage.to_string().parse(), Ok(stage));
        }
        assert!("sink.more".parse::<Stage>().is_err());
        assert!("transform".parse::<Stage>().is_err());
    }

    #[test]
    fn children_are_called_what_status_and_metrics_called_them_before_they_had_a_type() {
        let called = |id: ChildId| (id.to_string(), id.stage.to_string());
        let expect = |name: &str, stage: &str| (name.to_owned(), stage.to_owned());
        assert_eq!(called(Stage::Guard.into()), expect("sink/guard", "guard"));
        assert_eq!(
            called(ChildId::of_shard(Stage::transform("a"), 2)),
            expect("transform/2", "transform.a")
        );
        assert_eq!(
            called(ChildId::of_shard(Stage::Untransformed, 0)),
            expect("transform/0", "transform")
        );
        assert_eq!(
            called(ChildId::of_shard(Stage::Sink, 7)),
            expect("sink/7", "sink")
        );
        let feed = called(Stage::Demo(Demo::Feed).into());
        assert_eq!(feed, expect("demo/feed", "orders.feed"));
    }

    #[test]
    fn a_start_is_downstream_first_whatever_the_shard() {
        let of = ChildId::of_shard;
        let mut ids = [
            of(Stage::Source, 0),
            of(Stage::Sink, 1),
            of(Stage::transform("a"), 0),
            Stage::DeadLetter.into(),
            of(Stage::Sink, 0),
        ];
        ids.sort();
        let names: Vec<String> = ids.iter().map(ChildId::to_string).collect();
        assert_eq!(
            names,
            ["dead_letter", "sink/0", "sink/1", "transform/0", "source/0"]
        );
    }
}
