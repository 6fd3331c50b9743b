//! Reading: from restrictions to ranges of partitions and rows, then filters, limits and pages.

use std::{
    collections::BTreeMap,
    ops::{Bound, ControlFlow},
};

use bytes::Bytes;

use super::{
    cell::{AtomicCell, CellData, Row},
    error::CqlError,
    filter, order,
    paging::PagingState,
    plan::{
        Aggregate, ClusteringPart, Context, Evaluated, Part, PartitionPart, Restrictions,
        SelectPlan, Selector, SliceBound, Values,
    },
    rows::Rows,
    schema::{ColumnKind, TableSchema},
    storage::{RingKey, RowView, Stored, TableData},
    types,
};
use crate::types::CqlType;

/// The most partitions one statement may name: `max-partition-key-restrictions-per-query`, as it is by default.
const MAX_PARTITION_KEYS: usize = 100;
/// The most rows one statement may name, so that a product of `IN` lists stays bounded.
const MAX_KEYS: usize = 10_000;

/// The longest key, bytes.
const MAX_KEY: usize = 65_535;

/// Ranges of encoded clustering keys, `[from, to)`, ascending and apart.
pub(crate) type Ranges = Vec<(Vec<u8>, Vec<u8>)>;

/// The partitions a statement names.
pub(crate) enum Partitions {
    Keys(Vec<(RingKey, Vec<Bytes>)>),
    /// Tokens from and to, both inclusive; empty when from > to.
    Tokens(i64, i64),
}

/// Whether a read names exactly one partition, as it must to be serial.
pub(crate) fn names_one_partition(
    plan: &SelectPlan,
    context: &Context<'_>,
) -> Result<bool, CqlError> {
    let PartitionPart::Keys(parts) = &plan.restrictions.partition else {
        return Ok(false);
    };
    if parts.iter().all(|p| matches!(p, Values::One(_))) {
        return Ok(true);
    }
    Ok(
        match partitions(&plan.table, &plan.restrictions, context)? {
            Partitions::Keys(keys) => keys.len() == 1,
            Partitions::Tokens(..) => false,
        },
    )
}

/// Refuses a key that is too long to be told of: each component has two bytes of length before it.
fn check_length(key: &[Bytes]) -> Result<(), CqlError> {
    let length: usize = key.iter().map(|component| component.len() + 2).sum();
    if length <= MAX_KEY {
        return Ok(());
    }
    Err(CqlError::invalid(format!(
        "Key length of {length} is longer than maximum of {MAX_KEY}"
    )))
}

/// Works out which partitions are meant.
pub(crate) fn partitions(
    table: &TableSchema,
    restrictions: &Restrictions,
    context: &Context<'_>,
) -> Result<Partitions, CqlError> {
    Ok(match &restrictions.partition {
        PartitionPart::All => Partitions::Tokens(i64::MIN, i64::MAX),
        PartitionPart::Tokens { lower, upper } => {
            let token = |bound: &Option<(super::plan::Expr, bool)>| -> Result<Option<(i64, bool)>, CqlError> {
                let Some((expr, inclusive)) = bound else { return Ok(None) };
                let bytes = expr.eval(context)?.bytes().ok_or_else(|| CqlError::invalid("Invalid null token value"))?;
                let token = types::bigint(&bytes).ok_or_else(|| CqlError::invalid("Invalid token value"))?;
                Ok(Some((token, *inclusive)))
            };
            let from = match token(lower)? {
                None => Some(i64::MIN),
                Some((token, true)) => Some(token),
                // The minimum stands before all keys; as a lower bound it excludes none.
                Some((i64::MIN, false)) => Some(i64::MIN),
                Some((token, false)) => token.checked_add(1),
            };
            let to = match token(upper)? {
                // As an upper bound the minimum means the end of the ring.
                None | Some((i64::MIN, _)) => Some(i64::MAX),
                Some((token, true)) => Some(token),
                Some((token, false)) => token.checked_sub(1),
            };
            match (from, to) {
                (Some(from), Some(to)) => Partitions::Tokens(from, to),
                _ => Partitions::Tokens(1, 0),
            }
        }
        PartitionPart::Keys(parts) => {
            let mut keys: Vec<Vec<Bytes>> = vec![Vec::new()];
            for (column, values) in table.partition_key().iter().zip(parts) {
                let mut values = values.keys(context, &column.name, restrictions.reading)?;
                sort_unique(&column.ty, &mut values);
                if let Some(value) = values
                    .iter()
                    .find(|v| v.is_empty() && table.partition_key_len == 1 && !restrictions.reading)
                {
                    debug_assert!(value.is_empty());
                    return Err(CqlError::invalid("Key may not be empty"));
                }
                let product = keys.len().saturating_mul(values.len());
                if product > MAX_PARTITION_KEYS {
                    return Err(CqlError::server(format!(
                        "partition-key cartesian product size {product} is greater than maximum {MAX_PARTITION_KEYS}"
                    )));
                }
                keys = keys
                    .into_iter()
                    .flat_map(|key| {
                        values.iter().map(move |value| {
                            let mut key = key.clone();
                            key.push(value.clone());
                            key
                        })
                    })
                    .collect();
            }
            keys.iter().try_for_each(|key| check_length(key))?;
            Partitions::Keys(
                keys.into_iter()
                    .map(|key| (RingKey::new(table, &key), key))
                    .collect(),
            )
        }
    })
}

fn sort_unique(ty: &CqlType, values: &mut Vec<Bytes>) {
    if values.len() > 1 {
        values.sort_by_cached_key(|v| order::value(ty, v));
        values.dedup();
    }
}

/// A range of clustering keys with its bounds, for range deletions.
pub(crate) struct KeyRange {
    pub(crate) start: super::cell::Bound,
    pub(crate) end: super::cell::Bound,
    /// All clustering columns are set.
    pub(crate) full: bool,
}

/// Works out which rows are meant, ascending.
pub(crate) fn key_ranges(
    table: &TableSchema,
    restrictions: &Restrictions,
    context: &Context<'_>,
) -> Result<Vec<KeyRange>, CqlError> {
    let columns = table.clustering_key();
    let mut prefixes: Vec<Vec<Bytes>> = vec![Vec::new()];
    let mut at = 0;
    let mut slice = None;
    for part in &restrictions.clustering {
        match part {
            ClusteringPart::Points {
                width,
                tuple,
                values,
            } => {
                let values = points(
                    table,
                    at,
                    (*width, *tuple),
                    values,
                    context,
                    restrictions.reading,
                )?;
                if prefixes.len().saturating_mul(values.len()) > MAX_KEYS {
                    return Err(CqlError::invalid("clustering-key IN list is too large"));
                }
                prefixes = prefixes
                    .into_iter()
                    .flat_map(|prefix| {
                        values
                            .iter()
                            .map(move |v| prefix.iter().chain(v).cloned().collect())
                    })
                    .collect();
                at += width;
            }
            ClusteringPart::Slice { lower, upper } => {
                let mut nowhere = false;
                let mut bound = |b: &Option<SliceBound>| -> Result<_, CqlError> {
                    let Some(b) = b else { return Ok(None) };
                    let value = Values::One(b.value.clone());
                    let shape = (b.width, b.tuple);
                    let mut values =
                        points(table, at, shape, &value, context, restrictions.reading)?;
                    // A null: neither less nor greater than anything.
                    nowhere |= values.is_empty();
                    Ok(Some((values.pop().unwrap_or_default(), b.inclusive)))
                };
                let (mut lower, mut upper) = (bound(lower)?, bound(upper)?);
                if nowhere {
                    return Ok(Vec::new());
                }
                if columns[at].descending {
                    std::mem::swap(&mut lower, &mut upper);
                }
                slice = Some((lower, upper));
            }
        }
    }
    prefixes.iter().try_for_each(|key| check_length(key))?;
    let mut ranges: Vec<KeyRange> = Vec::with_capacity(prefixes.len());
    let sliced = slice.is_some();
    let (lower, upper) = slice.unwrap_or((None, None));
    for prefix in prefixes {
        let full = !sliced && prefix.len() == columns.len();
        let end_of = |extra: &Option<(Vec<Bytes>, bool)>, is_lower: bool| {
            let Some((values, inclusive)) = extra else {
                return order::bound(columns, prefix.clone(), !is_lower);
            };
            let whole: Vec<Bytes> = prefix.iter().chain(values).cloned().collect();
            order::bound(columns, whole, is_lower != *inclusive)
        };
        let (start, end) = (end_of(&lower, true), end_of(&upper, false));
        if start.position < end.position {
            ranges.push(KeyRange { start, end, full });
        }
    }
    ranges.sort_by(|a, b| a.start.position.cmp(&b.start.position));
    ranges
        .dedup_by(|a, b| a.start.position == b.start.position && a.end.position == b.end.position);
    Ok(ranges)
}

fn points(
    table: &TableSchema,
    at: usize,
    (width, tuple): (usize, bool),
    values: &Values,
    context: &Context<'_>,
    reading: bool,
) -> Result<Vec<Vec<Bytes>>, CqlError> {
    let columns = &table.clustering_key()[at..at + width];
    let name = columns.first().map_or("", |c| c.name.as_str());
    let mut all = Vec::new();
    for value in values.keys(context, name, reading)? {
        if !tuple {
            all.push(vec![value]);
            continue;
        }
        let fields: Option<Vec<Bytes>> = types::tuple_fields(&value)
            .into_iter()
            .map(|f| f.map(|f| value.slice_ref(f)))
            .collect();
        let fields = fields.filter(|f| f.len() == width);
        all.push(fields.ok_or_else(|| {
            CqlError::invalid(format!("Invalid null value in condition for column {name}"))
        })?);
    }
    Ok(all)
}

/// What a `SELECT` is asked to return at once.
pub(crate) struct Page {
    /// The most rows; `None`: no pages.
    pub(crate) size: Option<usize>,
    /// The most that is read for one, bytes.
    pub(crate) bytes: usize,
    pub(crate) state: Option<PagingState>,
}

/// Runs a `SELECT`; gives the rows and the state of the next page, if there is one.
pub(crate) fn select(
    plan: &SelectPlan,
    data: &TableData,
    context: &Context<'_>,
    page: &Page,
) -> Result<(Rows, Option<Bytes>), CqlError> {
    let limit = |expr: &Option<super::plan::Expr>, what: &str| -> Result<u64, CqlError> {
        let Some(expr) = expr else {
            return Ok(u64::MAX);
        };
        let value = match expr.eval(context)? {
            Evaluated::Unset => return Ok(u64::MAX),
            Evaluated::Null => {
                return Err(CqlError::invalid(format!("Invalid null value of {what}")));
            }
            Evaluated::Value(bytes) => types::int(&bytes).unwrap_or(0),
        };
        if value <= 0 {
            return Err(CqlError::invalid(format!(
                "{what} must be strictly positive"
            )));
        }
        Ok(value as u64)
    };
    let rows_limit = limit(&plan.limit, "LIMIT")?;
    let partition_limit = limit(&plan.per_partition_limit, "PER PARTITION LIMIT")?;
    let whole = plan.aggregated || plan.sorted;
    let paged = page.size.filter(|_| !whole);
    let page_size = paged.unwrap_or(usize::MAX);
    let page_bytes = paged.map_or(usize::MAX, |_| page.bytes);
    let state = if whole { None } else { page.state.as_ref() };
    let mut sink = Sink {
        plan,
        context,
        filters: filter::prepare(&plan.restrictions.filters, &plan.table, context)?,
        page_size,
        page_bytes,
        read: 0,
        remaining: state.map_or(
            if plan.aggregated {
                u64::MAX
            } else {
                rows_limit
            },
            |s| s.remaining,
        ),
        partition_limit,
        partition_remaining: partition_limit,
        rows: Rows::new(plan.selectors.len()),
        order: Vec::new(),
        groups: plan.aggregated.then(|| Groups::new(plan)),
        last: None,
        more: false,
    };
    let reader = Reader {
        table: &plan.table,
        ranges: key_ranges(&plan.table, &plan.restrictions, context)?
            .into_iter()
            .map(|r| (r.start.position, r.end.position))
            .collect(),
        open: plan.restrictions.clustering.is_empty(),
        reversed: plan.reversed,
        now: context.seconds(),
    };
    let resume = state.map(|s| (&s.partition, s.row.as_deref()));
    if let Some(state) = state {
        sink.partition_remaining = state.partition_remaining;
    }
    if sink.remaining > 0 {
        match partitions(&plan.table, &plan.restrictions, context)? {
            Partitions::Keys(keys) => {
                let mut keys = &keys[..];
                if let Some((from, _)) = resume {
                    let at = keys
                        .iter()
                        .position(|(k, _)| k == from)
                        .unwrap_or(keys.len());
                    keys = &keys[at..];
                }
                for (key, _) in keys {
                    let after = resume.filter(|(from, _)| *from == key).map(|(_, row)| row);
                    if let Some(stored) = data.get(key)
                        && reader.partition(key, stored, after, &mut sink)?.is_break()
                    {
                        break;
                    }
                }
            }
            Partitions::Tokens(from, to) if from <= to => {
                let start = match resume {
                    Some((key, _)) => Bound::Included(key.clone()),
                    None => Bound::Included(RingKey {
                        token: from,
                        bytes: Bytes::new(),
                    }),
                };
                for (key, stored) in data.partitions.range((start, Bound::Unbounded)) {
                    if key.token > to {
                        break;
                    }
                    let after = resume.filter(|(from, _)| *from == key).map(|(_, row)| row);
                    if reader.partition(key, stored, after, &mut sink)?.is_break() {
                        break;
                    }
                }
            }
            Partitions::Tokens(..) => {}
        }
    }
    sink.finish(rows_limit)
}

/// Which rows of a partition are read, and how.
struct Reader<'a> {
    table: &'a TableSchema,
    ranges: Ranges,
    /// No clustering restriction, so that a partition of only a static row is a row too.
    open: bool,
    reversed: bool,
    now: i64,
}

impl Reader<'_> {
    /// Hands the live rows of a partition to the sink; `after`: the page before ended in this one, at
    /// the given row or, without one, having seen all.
    fn partition(
        &self,
        key: &RingKey,
        stored: &Stored,
        after: Option<Option<&[u8]>>,
        sink: &mut Sink<'_>,
    ) -> Result<ControlFlow<()>, CqlError> {
        let after = match after {
            Some(None) => return Ok(ControlFlow::Continue(())),
            Some(Some(row)) => Some(row),
            None => {
                sink.partition_remaining = sink.partition_limit;
                None
            }
        };
        let statics = &stored.data.static_row;
        let empty = RowView {
            table: self.table,
            key: &stored.key,
            statics: Some(statics),
            row: None,
            now: self.now,
        };
        let mut seen = after.is_some();
        let mut visit = |at: &Vec<u8>, row: &Row, sink: &mut Sink<'_>| {
            if !row.is_live(self.now) {
                return Ok(ControlFlow::Continue(true));
            }
            seen = true;
            sink.row(
                key,
                Some(at),
                RowView {
                    row: Some(row),
                    ..empty
                },
            )
        };
        let ranges: Box<dyn Iterator<Item = &(Vec<u8>, Vec<u8>)>> = if self.reversed {
            Box::new(self.ranges.iter().rev())
        } else {
            Box::new(self.ranges.iter())
        };
        'ranges: for (from, to) in ranges {
            let (mut start, mut end) = (
                Bound::Included(from.as_slice()),
                Bound::Excluded(to.as_slice()),
            );
            match after {
                Some(row) if self.reversed => {
                    if row <= from.as_slice() {
                        continue;
                    }
                    if row < to.as_slice() {
                        end = Bound::Excluded(row);
                    }
                }
                Some(row) => {
                    if row >= to.as_slice() {
                        continue;
                    }
                    if row >= from.as_slice() {
                        start = Bound::Excluded(row);
                    }
                }
                None => {}
            }
            if let (Bound::Excluded(s), Bound::Excluded(e)) = (&start, &end)
                && s >= e
            {
                continue;
            }
            let rows = stored.data.rows.range::<[u8], _>((start, end));
            let mut each = |at: &Vec<u8>, row: &Row| visit(at, row, sink);
            if self.reversed {
                for (at, row) in rows.rev() {
                    match each(at, row)? {
                        ControlFlow::Break(()) => return Ok(ControlFlow::Break(())),
                        ControlFlow::Continue(true) => {}
                        ControlFlow::Continue(false) => break 'ranges,
                    }
                }
            } else {
                for (at, row) in rows {
                    match each(at, row)? {
                        ControlFlow::Break(()) => return Ok(ControlFlow::Break(())),
                        ControlFlow::Continue(true) => {}
                        ControlFlow::Continue(false) => break 'ranges,
                    }
                }
            }
        }
        if !seen && self.open && statics.cells.iter().any(|(_, c)| c.is_live(self.now)) {
            return Ok(match sink.row(key, None, empty)? {
                ControlFlow::Break(()) => ControlFlow::Break(()),
                ControlFlow::Continue(_) => ControlFlow::Continue(()),
            });
        }
        Ok(ControlFlow::Continue(()))
    }
}

/// Where rows go: filtered, limited, selected from, gathered.
struct Sink<'a> {
    plan: &'a SelectPlan,
    context: &'a Context<'a>,
    filters: Vec<filter::Ready<'a>>,
    page_size: usize,
    page_bytes: usize,
    /// What this page has read so far, bytes.
    read: usize,
    remaining: u64,
    partition_limit: u64,
    partition_remaining: u64,
    rows: Rows,
    /// With `sorted`: the place of each row.
    order: Vec<Vec<u8>>,
    groups: Option<Groups<'a>>,
    last: Option<PagingState>,
    more: bool,
}

impl Sink<'_> {
    /// Takes a row; `Continue(false)`: no more of this partition, `Break`: no more at all.
    fn row(
        &mut self,
        key: &RingKey,
        at: Option<&Vec<u8>>,
        view: RowView<'_>,
    ) -> Result<ControlFlow<(), bool>, CqlError> {
        if self.partition_remaining == 0 {
            return Ok(ControlFlow::Continue(false));
        }
        // Full: by rows, or by what was read. The row that comes next is looked at by the next page.
        if self.rows.len() >= self.page_size || self.read >= self.page_bytes {
            self.more = true;
            return Ok(ControlFlow::Break(()));
        }
        if self.page_bytes != usize::MAX {
            self.read = self.read.saturating_add(view.size());
        }
        for filter in &self.filters {
            if !filter.accepts(&view)? {
                self.ended_at(key, at);
                return Ok(ControlFlow::Continue(true));
            }
        }
        self.partition_remaining -= 1;
        if let Some(groups) = &mut self.groups {
            groups.add(&view, self.context)?;
            return Ok(ControlFlow::Continue(true));
        }
        if self.plan.sorted {
            self.order.push(at.cloned().unwrap_or_default());
        } else {
            self.remaining -= 1;
        }
        let (selectors, context) = (&self.plan.selectors, self.context);
        self.rows
            .push(|out| put_selected(selectors, &view, context, out))?;
        self.ended_at(key, at);
        Ok(match self.remaining {
            0 => ControlFlow::Break(()),
            _ => ControlFlow::Continue(!self.plan.distinct),
        })
    }

    /// Notes a row as the last of the page, if it is.
    fn ended_at(&mut self, key: &RingKey, at: Option<&Vec<u8>>) {
        if self.rows.len() < self.page_size && self.read < self.page_bytes {
            return;
        }
        self.last = Some(PagingState {
            partition: key.clone(),
            row: at.filter(|_| !self.plan.distinct).cloned(),
            remaining: self.remaining,
            partition_remaining: self.partition_remaining,
        });
    }

    fn finish(mut self, limit: u64) -> Result<(Rows, Option<Bytes>), CqlError> {
        if let Some(groups) = self.groups {
            let mut rows = groups.finish(self.context)?;
            rows.truncate(usize::try_from(limit).unwrap_or(usize::MAX));
            return Ok((rows, None));
        }
        if self.plan.sorted {
            let mut rows: Vec<_> = self.order.into_iter().zip(self.rows.iter()).collect();
            rows.sort_by(|a, b| a.0.cmp(&b.0));
            if self.plan.reversed {
                rows.reverse();
            }
            rows.truncate(usize::try_from(limit).unwrap_or(usize::MAX));
            self.rows = rows.into_iter().map(|(_, row)| row).collect();
        }
        let state = self.more.then(|| self.last.map(|l| l.encode())).flatten();
        Ok((self.rows, state))
    }
}

/// Appends what is selected of a row.
fn put_selected(
    selectors: &[Selector],
    view: &RowView<'_>,
    context: &Context<'_>,
    out: &mut Vec<u8>,
) -> Result<(), CqlError> {
    for selector in selectors {
        match selector {
            Selector::Column(at) => view.put(&view.table.columns[*at], out),
            other => types::put_bytes(out, select_value(other, view, context)?.as_deref()),
        }
    }
    Ok(())
}

fn select_value(
    selector: &Selector,
    view: &RowView<'_>,
    context: &Context<'_>,
) -> Result<Option<Bytes>, CqlError> {
    let columns = &view.table.columns;
    Ok(match selector {
        Selector::Column(at) => view.value(&columns[*at]),
        Selector::Field(inner, index) => {
            let Some(value) = select_value(inner, view, context)? else {
                return Ok(None);
            };
            types::tuple_fields(&value)
                .get(*index)
                .copied()
                .flatten()
                .map(|f| value.slice_ref(f))
        }
        Selector::Element(inner, ty, key) => {
            let (Some(value), Some(key)) = (
                select_value(inner, view, context)?,
                key.eval(context)?.bytes(),
            ) else {
                return Ok(None);
            };
            types::element(ty, &value, &key)
        }
        Selector::WriteTime(at, part) => {
            written(view, *at, part, context)?.map(|cell| bigint(cell.timestamp))
        }
        Selector::Ttl(at, part) => written(view, *at, part, context)?
            .filter(|cell| cell.ttl.seconds > 0)
            .map(|cell| {
                Bytes::copy_from_slice(&((cell.ttl.expires_at - view.now) as i32).to_be_bytes())
            }),
        Selector::Term(expr) => expr.eval(context)?.bytes(),
        Selector::Call(function, args) => {
            let args = args
                .iter()
                .map(|a| select_value(a, view, context))
                .collect::<Result<Vec<_>, _>>()?;
            function.call(&args, context.now)?
        }
        Selector::Aggregate(..) => {
            return Err(CqlError::server("an aggregate outside of an aggregation"));
        }
    })
}

/// The live cell of a column, or of one of its parts.
fn written<'v>(
    view: &'v RowView<'_>,
    at: usize,
    part: &Option<Part>,
    context: &Context<'_>,
) -> Result<Option<&'v AtomicCell>, CqlError> {
    let column = &view.table.columns[at];
    let cell = match (view.cell(column), part) {
        (Some(CellData::Atomic(cell)), None) => cell,
        (Some(CellData::Multi(collection)), Some(part)) => {
            let key = match part {
                Part::Key(key) => key.eval(context)?.bytes(),
                Part::Field(index) => Some(super::write::field_key(*index)),
            };
            let Some(key) = key else { return Ok(None) };
            let position = super::write::element_position(column, &key);
            match collection.cells.get(&position) {
                Some(element) => &element.cell,
                None => return Ok(None),
            }
        }
        _ => return Ok(None),
    };
    Ok(cell.get(view.now).map(|_| cell))
}

fn bigint(value: i64) -> Bytes {
    Bytes::copy_from_slice(&value.to_be_bytes())
}

/// Rows gathered by a prefix of their primary key.
struct Groups<'a> {
    plan: &'a SelectPlan,
    /// In the order of their first rows.
    groups: Vec<Vec<Gathered>>,
    by_key: BTreeMap<Vec<Option<Bytes>>, usize>,
}

/// What one selector has come to so far.
enum Gathered {
    /// The first row's value, for what is not aggregated.
    First(Option<Option<Bytes>>),
    Count(i64),
    Extreme(Option<(Vec<u8>, Bytes)>),
    Sum {
        sum: types::Sum,
        count: i64,
    },
}

impl<'a> Groups<'a> {
    fn new(plan: &'a SelectPlan) -> Self {
        let mut groups = Self {
            plan,
            groups: Vec::new(),
            by_key: BTreeMap::new(),
        };
        if plan.group_by == 0 {
            // Without GROUP BY there is one answer, even over no rows.
            groups.groups.push(groups.empty());
            groups.by_key.insert(Vec::new(), 0);
        }
        groups
    }

    fn empty(&self) -> Vec<Gathered> {
        let gathered = |selector: &Selector| match selector {
            Selector::Aggregate(Aggregate::CountRows | Aggregate::Count, ..) => Gathered::Count(0),
            Selector::Aggregate(Aggregate::Min | Aggregate::Max, ..) => Gathered::Extreme(None),
            Selector::Aggregate(Aggregate::Sum | Aggregate::Avg, _, ty) => Gathered::Sum {
                sum: types::Sum::zero(ty),
                count: 0,
            },
            _ => Gathered::First(None),
        };
        self.plan.selectors.iter().map(gathered).collect()
    }

    fn add(&mut self, view: &RowView<'_>, context: &Context<'_>) -> Result<(), CqlError> {
        let key: Vec<_> = self.plan.table.columns[..self.plan.group_by]
            .iter()
            .map(|c| view.value(c))
            .collect();
        let at = match self.by_key.get(&key) {
            Some(at) => *at,
            None => {
                self.groups.push(self.empty());
                self.by_key.insert(key, self.groups.len() - 1);
                self.groups.len() - 1
            }
        };
        for (selector, gathered) in self.plan.selectors.iter().zip(&mut self.groups[at]) {
            let Selector::Aggregate(aggregate, args, ty) = selector else {
                if let Gathered::First(first @ None) = gathered {
                    *first = Some(select_value(selector, view, context)?);
                }
                continue;
            };
            let value = match args.first() {
                Some(arg) => select_value(arg, view, context)?,
                None => None,
            };
            match (gathered, aggregate, value) {
                (Gathered::Count(count), Aggregate::CountRows, _) => *count += 1,
                (Gathered::Count(count), Aggregate::Count, Some(_)) => *count += 1,
                (Gathered::Extreme(best), _, Some(value)) => {
                    let place = order::value(ty, &value);
                    let better = best.as_ref().is_none_or(|(b, _)| match aggregate {
                        Aggregate::Min => place < *b,
                        _ => place > *b,
                    });
                    if better {
                        *best = Some((place, value));
                    }
                }
                (Gathered::Sum { sum, count }, _, Some(value)) => {
                    sum.add(&value)?;
                    *count += 1;
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn finish(self, _context: &Context<'_>) -> Result<Rows, CqlError> {
        let selectors = &self.plan.selectors;
        let mut rows = Rows::new(selectors.len());
        for group in self.groups {
            let mut row = Vec::with_capacity(selectors.len());
            for (gathered, selector) in group.into_iter().zip(selectors) {
                row.push(match (gathered, selector) {
                    (Gathered::First(value), _) => value.flatten(),
                    (Gathered::Count(count), _) => Some(bigint(count)),
                    (Gathered::Extreme(best), _) => best.map(|(_, value)| value),
                    (Gathered::Sum { sum, count }, Selector::Aggregate(Aggregate::Avg, ..)) => {
                        Some(sum.average(count))
                    }
                    (Gathered::Sum { sum, .. }, _) => Some(sum.total()),
                });
            }
            rows.push_values(&row);
        }
        Ok(rows)
    }
}

/// Whether a column's values come from the row rather than from the partition.
pub(crate) fn is_of_row(kind: ColumnKind) -> bool {
    matches!(kind, ColumnKind::Clustering | ColumnKind::Regular)
}
