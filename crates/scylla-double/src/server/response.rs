//! Bodies of responses and events (protocol v4, section 4.2).

use std::net::SocketAddr;

use super::{
    frame::{self, Compression, HEADER, Opcode},
    wire::Write,
};
use crate::{
    engine::{ChangeTarget, ColumnSpec, CqlError, ErrorDetail, Rows, SchemaChange},
    types::CqlType,
};

/// `Protocol_error`.
pub(crate) const PROTOCOL_ERROR: u32 = 0x000A;
/// `Bad credentials`.
pub(crate) const BAD_CREDENTIALS: u32 = 0x0100;
const UNPREPARED: u32 = 0x2500;

/// A response without its stream: a whole frame whose length is filled in when it is sent.
pub(crate) type Draft = Vec<u8>;

fn draft(opcode: Opcode, capacity: usize) -> Draft {
    frame::begin(0, opcode, capacity)
}

/// `ERROR` with nothing beyond its message.
pub(crate) fn error(code: u32, message: &str) -> Draft {
    let mut out = draft(Opcode::Error, message.len() + 8);
    out.put(&code.to_be_bytes());
    out.string(message);
    out
}

/// `ERROR` as the engine has it.
pub(crate) fn cql_error(e: &CqlError) -> Draft {
    let mut out = error(e.code, &e.message);
    match &e.detail {
        ErrorDetail::None => {}
        ErrorDetail::AlreadyExists { keyspace, table } => {
            out.string(keyspace);
            out.string(table);
        }
        ErrorDetail::Unavailable {
            consistency,
            required,
            alive,
        } => {
            out.u16(*consistency);
            out.i32(*required as i32);
            out.i32(*alive as i32);
        }
        ErrorDetail::FunctionFailure {
            keyspace,
            function,
            arg_types,
        } => {
            out.string(keyspace);
            out.string(function);
            out.string_list(arg_types);
        }
    }
    out
}

/// 0x2500: the id is not known, prepare again.
pub(crate) fn unprepared(id: &[u8]) -> Draft {
    let mut out = error(
        UNPREPARED,
        "No prepared statement with the requested ID found",
    );
    out.short_bytes(id);
    out
}

/// Errors of replicas that never were: what faults answer with, one replica needed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ReplicaError {
    Unavailable,
    ReadTimeout,
    ReadFailure,
    WriteTimeout,
    WriteFailure,
}

/// An error of `kind` for a statement of `table` at `consistency`.
pub(crate) fn replica_error(kind: ReplicaError, consistency: u16, table: &str) -> Draft {
    let (code, message) = match kind {
        ReplicaError::Unavailable => (
            0x1000,
            "Cannot achieve consistency level. Requires 1, alive 0".to_owned(),
        ),
        ReplicaError::ReadTimeout => (
            0x1200,
            format!("Operation timed out for {table} - received only 0 responses from 1 CL"),
        ),
        ReplicaError::ReadFailure => (
            0x1300,
            format!("Operation failed for {table} - received 0 responses and 1 failures from 1 CL"),
        ),
        ReplicaError::WriteTimeout => (
            0x1100,
            format!("Operation timed out for {table} - received only 0 responses from 1 CL"),
        ),
        ReplicaError::WriteFailure => (
            0x1500,
            format!("Operation failed for {table} - received 0 responses and 1 failures from 1 CL"),
        ),
    };
    let mut out = error(code, &message);
    out.u16(consistency);
    match kind {
        ReplicaError::Unavailable => [1, 0].into_iter().for_each(|n| out.i32(n)),
        ReplicaError::ReadTimeout => {
            [0, 1].into_iter().for_each(|n| out.i32(n));
            out.u8(0);
        }
        ReplicaError::ReadFailure => {
            [0, 1, 1].into_iter().for_each(|n| out.i32(n));
            out.u8(0);
        }
        ReplicaError::WriteTimeout => {
            [0, 1].into_iter().for_each(|n| out.i32(n));
            out.string("SIMPLE");
        }
        ReplicaError::WriteFailure => {
            [0, 1, 1].into_iter().for_each(|n| out.i32(n));
            out.string("SIMPLE");
        }
    }
    out
}

/// `READY`.
pub(crate) fn ready() -> Draft {
    draft(Opcode::Ready, 0)
}

/// `AUTHENTICATE`: a name and a password are wanted.
pub(crate) fn authenticate() -> Draft {
    let mut out = draft(Opcode::Authenticate, 64);
    out.string("org.apache.cassandra.auth.PasswordAuthenticator");
    out
}

/// `AUTH_SUCCESS`.
pub(crate) fn auth_success() -> Draft {
    let mut out = draft(Opcode::AuthSuccess, 4);
    out.bytes(None);
    out
}

/// `SUPPORTED`.
pub(crate) fn supported(options: &[(&str, Vec<String>)]) -> Draft {
    let mut out = draft(Opcode::Supported, 512);
    out.u16(options.len() as u16);
    for (name, values) in options {
        out.string(name);
        out.string_list(values);
    }
    out
}

const VOID: i32 = 1;
const ROWS: i32 = 2;
const SET_KEYSPACE: i32 = 3;
const PREPARED: i32 = 4;
const SCHEMA_CHANGE: i32 = 5;

/// `RESULT` of a statement with no rows.
pub(crate) fn void() -> Draft {
    let mut out = draft(Opcode::Result, 4);
    out.i32(VOID);
    out
}

/// `RESULT` of `USE`.
pub(crate) fn set_keyspace(keyspace: &str) -> Draft {
    let mut out = draft(Opcode::Result, 64);
    out.i32(SET_KEYSPACE);
    out.string(keyspace);
    out
}

const GLOBAL_TABLE: i32 = 0x01;
const HAS_MORE_PAGES: i32 = 0x02;
const NO_METADATA: i32 = 0x04;

/// `RESULT` with rows: one buffer of the right size, each cell copied once.
pub(crate) fn rows(
    columns: &[ColumnSpec],
    rows: &Rows,
    paging_state: Option<&[u8]>,
    skip_metadata: bool,
) -> Draft {
    let cells = rows.cells();
    let mut out = draft(Opcode::Result, 192 + columns.len() * 64 + cells.len());
    out.i32(ROWS);
    metadata(&mut out, columns, paging_state, skip_metadata);
    out.count(rows.len());
    out.extend_from_slice(cells);
    out
}

/// `RESULT` of `PREPARE`; `columns` are empty for a statement that gives no rows.
pub(crate) fn prepared(
    id: &[u8],
    binds: &[ColumnSpec],
    pk_indexes: &[u16],
    columns: &[ColumnSpec],
) -> Draft {
    let mut out = draft(Opcode::Result, 128 + (binds.len() + columns.len()) * 64);
    out.i32(PREPARED);
    out.short_bytes(id);
    let global = one_table(binds);
    out.i32(if global { GLOBAL_TABLE } else { 0 });
    out.count(binds.len());
    out.count(pk_indexes.len());
    for index in pk_indexes {
        out.u16(*index);
    }
    specs(&mut out, binds, global);
    metadata(&mut out, columns, None, columns.is_empty());
    out
}

fn metadata(out: &mut Vec<u8>, columns: &[ColumnSpec], paging_state: Option<&[u8]>, skip: bool) {
    let global = !skip && one_table(columns);
    let flags = [
        (global, GLOBAL_TABLE),
        (paging_state.is_some(), HAS_MORE_PAGES),
        (skip, NO_METADATA),
    ];
    out.i32(
        flags
            .into_iter()
            .filter(|(on, _)| *on)
            .map(|(_, flag)| flag)
            .sum(),
    );
    out.count(columns.len());
    if paging_state.is_some() {
        out.bytes(paging_state);
    }
    if !skip {
        specs(out, columns, global);
    }
}

fn one_table(columns: &[ColumnSpec]) -> bool {
    columns.first().is_some_and(|first| {
        columns
            .iter()
            .all(|c| c.keyspace == first.keyspace && c.table == first.table)
    })
}

fn specs(out: &mut Vec<u8>, columns: &[ColumnSpec], global: bool) {
    if let (true, Some(first)) = (global, columns.first()) {
        out.string(&first.keyspace);
        out.string(&first.table);
    }
    for column in columns {
        if !global {
            out.string(&column.keyspace);
            out.string(&column.table);
        }
        out.string(&column.name);
        type_option(out, &column.ty);
    }
}

/// What a client may register for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum EventType {
    Topology,
    Status,
    Schema,
}

impl EventType {
    pub(crate) fn from_name(name: &str) -> Option<Self> {
        match name {
            "TOPOLOGY_CHANGE" => Some(Self::Topology),
            "STATUS_CHANGE" => Some(Self::Status),
            "SCHEMA_CHANGE" => Some(Self::Schema),
            _ => None,
        }
    }
}

/// `EVENT`, whole: the stream is −1.
fn event(name: &str, change: &str) -> Draft {
    let mut out = frame::begin(-1, Opcode::Event, 96);
    out.string(name);
    out.string(change);
    out
}

/// `EVENT` of a changed schema.
pub(crate) fn schema_event(change: &SchemaChange) -> Draft {
    let mut out = frame::begin(-1, Opcode::Event, 128);
    out.string("SCHEMA_CHANGE");
    schema_change_body(&mut out, change);
    frame::finish(out, Compression::None)
}

/// `EVENT` of a node that went `UP` or `DOWN`.
pub(crate) fn status_event(up: bool, node: SocketAddr) -> Draft {
    let mut out = event("STATUS_CHANGE", if up { "UP" } else { "DOWN" });
    inet(&mut out, node);
    frame::finish(out, Compression::None)
}

/// `EVENT` of a `NEW_NODE` or a `REMOVED_NODE`.
pub(crate) fn topology_event(new: bool, node: SocketAddr) -> Draft {
    let mut out = event(
        "TOPOLOGY_CHANGE",
        if new { "NEW_NODE" } else { "REMOVED_NODE" },
    );
    inet(&mut out, node);
    frame::finish(out, Compression::None)
}

fn inet(out: &mut Vec<u8>, node: SocketAddr) {
    match node.ip() {
        std::net::IpAddr::V4(ip) => {
            out.u8(4);
            out.put(&ip.octets());
        }
        std::net::IpAddr::V6(ip) => {
            out.u8(16);
            out.put(&ip.octets());
        }
    }
    out.i32(node.port().into());
}

/// Puts the stream in, and the length.
pub(crate) fn seal(mut draft: Draft, stream: i16, compression: Compression) -> Vec<u8> {
    debug_assert!(draft.len() >= HEADER);
    draft[2..4].copy_from_slice(&stream.to_be_bytes());
    frame::finish(draft, compression)
}

/// `RESULT` of a statement that changed the schema.
pub(crate) fn schema_change(change: &SchemaChange) -> Draft {
    let mut out = draft(Opcode::Result, 128);
    out.i32(SCHEMA_CHANGE);
    schema_change_body(&mut out, change);
    out
}

fn schema_change_body(out: &mut Vec<u8>, change: &SchemaChange) {
    out.string(change.change.as_str());
    out.string(change.target.as_str());
    out.string(&change.keyspace);
    if change.target != ChangeTarget::Keyspace {
        out.string(&change.name);
    }
}

/// `[option]`: a type. Frozen or not is not told.
fn type_option(out: &mut Vec<u8>, ty: &CqlType) {
    let id = match ty {
        CqlType::Ascii => 0x01,
        CqlType::Bigint => 0x02,
        CqlType::Blob => 0x03,
        CqlType::Boolean => 0x04,
        CqlType::Counter => 0x05,
        CqlType::Decimal => 0x06,
        CqlType::Double => 0x07,
        CqlType::Float => 0x08,
        CqlType::Int => 0x09,
        CqlType::Timestamp => 0x0B,
        CqlType::Uuid => 0x0C,
        CqlType::Text => 0x0D,
        CqlType::Varint => 0x0E,
        CqlType::Timeuuid => 0x0F,
        CqlType::Inet => 0x10,
        CqlType::Date => 0x11,
        CqlType::Time => 0x12,
        CqlType::Smallint => 0x13,
        CqlType::Tinyint => 0x14,
        CqlType::Duration => 0x15,
        CqlType::List { .. } => 0x20,
        CqlType::Map { .. } => 0x21,
        CqlType::Set { .. } => 0x22,
        CqlType::Udt { .. } => 0x30,
        CqlType::Tuple(_) => 0x31,
        // A type that protocol v4 has no number for is told by the name of its class.
        CqlType::Vector { .. } => 0x00,
    };
    out.u16(id);
    match ty {
        CqlType::List { element, .. } | CqlType::Set { element, .. } => type_option(out, element),
        CqlType::Map { key, value, .. } => {
            type_option(out, key);
            type_option(out, value);
        }
        CqlType::Udt {
            keyspace,
            name,
            fields,
            ..
        } => {
            out.string(keyspace);
            out.string(name);
            out.u16(fields.len() as u16);
            for (name, ty) in fields {
                out.string(name);
                type_option(out, ty);
            }
        }
        CqlType::Vector { .. } => out.string(&ty.class_name()),
        CqlType::Tuple(fields) => {
            out.u16(fields.len() as u16);
            fields.iter().for_each(|ty| type_option(out, ty));
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    //! Read back by `cassandra-protocol`, which shares no code with this one nor with the clients.

    use bytes::Bytes;
    use cassandra_protocol::{
        compression::Compression as Theirs,
        frame::{
            Envelope, Serialize, Version,
            events::{SchemaChangeOptions, SchemaChangeTarget, SchemaChangeType, ServerEvent},
            message_error::ErrorType,
            message_response::ResponseBody,
            message_result::{ColType, ColTypeOptionValue, ResResultBody},
        },
    };

    use super::*;
    use crate::engine::ChangeKind;

    fn read(draft: Draft) -> ResponseBody {
        let bytes = seal(draft, 3, Compression::Lz4);
        let parsed = Envelope::from_buffer(&bytes, Theirs::Lz4).unwrap();
        assert_eq!(
            (parsed.envelope_len, parsed.envelope.stream_id),
            (bytes.len(), 3)
        );
        parsed.envelope.response_body().unwrap()
    }

    fn result(draft: Draft) -> ResResultBody {
        let ResponseBody::Result(body) = read(draft) else {
            panic!("not a result")
        };
        body
    }

    fn column(table: &str, name: &str, ty: CqlType) -> ColumnSpec {
        ColumnSpec {
            keyspace: "ks".into(),
            table: table.into(),
            name: name.into(),
            ty,
        }
    }

    fn boxed(ty: CqlType) -> Box<CqlType> {
        Box::new(ty)
    }

    #[test]
    fn rows_with_their_columns() {
        let nested = CqlType::Map {
            key: boxed(CqlType::Timeuuid),
            value: boxed(CqlType::Udt {
                keyspace: "ks".into(),
                name: "address".into(),
                fields: vec![
                    ("street".into(), CqlType::Text),
                    (
                        "codes".into(),
                        CqlType::Tuple(vec![CqlType::Int, CqlType::Date]),
                    ),
                ],
                frozen: true,
            }),
            frozen: false,
        };
        let columns = [column("t", "k", CqlType::Blob), column("t", "m", nested)];
        let cells = vec![
            vec![Some(Bytes::from_static(b"one")), None],
            vec![Some(Bytes::new()), Some(Bytes::from(vec![7; 2000]))],
        ];
        let cells: Rows = cells.into_iter().collect();
        let ResResultBody::Rows(body) = result(rows(&columns, &cells, Some(b"next"), false)) else {
            panic!("not rows")
        };
        assert_eq!(
            body.metadata.paging_state.unwrap().as_slice(),
            Some(&b"next"[..])
        );
        let table = body.metadata.global_table_spec.unwrap();
        assert_eq!(
            (table.ks_name.as_str(), table.table_name.as_str()),
            ("ks", "t")
        );
        assert_eq!(body.metadata.col_specs[0].name, "k");
        assert_eq!(body.metadata.col_specs[0].col_type.id, ColType::Blob);
        let Some(ColTypeOptionValue::CMap(key, value)) = &body.metadata.col_specs[1].col_type.value
        else {
            panic!("not a map: {:?}", body.metadata.col_specs[1])
        };
        assert_eq!(key.id, ColType::Timeuuid);
        let Some(ColTypeOptionValue::UdtType(udt)) = &value.value else {
            panic!("not a UDT: {value:?}")
        };
        assert_eq!(
            (udt.udt_name.as_str(), udt.descriptions.len()),
            ("address", 2)
        );
        assert_eq!(udt.descriptions[1].1.id, ColType::Tuple);
        let read: Vec<Vec<Option<&[u8]>>> = body
            .rows_content
            .iter()
            .map(|row| row.iter().map(|cell| cell.as_slice()).collect())
            .collect();
        assert_eq!(
            read,
            [
                [Some(&b"one"[..]), None],
                [Some(&b""[..]), Some(&[7; 2000][..])]
            ]
        );
    }

    #[test]
    fn metadata_is_left_out_or_told_by_column() {
        let columns = [
            column("t", "a", CqlType::Int),
            column("u", "b", CqlType::Varint),
        ];
        let ResResultBody::Rows(body) = result(rows(&columns, &Rows::default(), None, true)) else {
            panic!("not rows")
        };
        assert_eq!(
            (
                body.metadata.columns_count,
                body.metadata.col_specs.len(),
                body.rows_count
            ),
            (2, 0, 0)
        );
        let ResResultBody::Rows(body) = result(rows(&columns, &Rows::default(), None, false))
        else {
            panic!("not rows")
        };
        assert!(body.metadata.global_table_spec.is_none());
        assert_eq!(
            body.metadata.col_specs[1]
                .table_spec
                .as_ref()
                .unwrap()
                .table_name,
            "u"
        );
    }

    #[test]
    fn prepared_statements() {
        let binds = [
            column("t", "k", CqlType::Uuid),
            column("t", "v", CqlType::Duration),
        ];
        let ResResultBody::Prepared(body) = result(prepared(&[9; 16], &binds, &[0], &[])) else {
            panic!("not prepared")
        };
        assert_eq!(body.metadata.pk_indexes, [0]);
        assert_eq!(body.metadata.col_specs[1].col_type.id, ColType::Duration);
        assert_eq!(body.result_metadata.columns_count, 0);
        let ResResultBody::Prepared(body) = result(prepared(&[9; 16], &[], &[], &binds)) else {
            panic!("not prepared")
        };
        assert_eq!(
            (
                body.metadata.col_specs.len(),
                body.result_metadata.col_specs.len()
            ),
            (0, 2)
        );
    }

    #[test]
    fn errors_with_their_details() {
        let error_of = |draft| match read(draft) {
            ResponseBody::Error(e) => e,
            other => panic!("not an error: {other:?}"),
        };
        let e = error_of(cql_error(&CqlError::table_exists("ks", "t")));
        assert!(
            matches!(e.ty, ErrorType::AlreadyExists(e) if (e.ks.as_str(), e.table.as_str()) == ("ks", "t"))
        );
        let e = error_of(unprepared(&[1, 2, 3]));
        assert!(
            matches!(e.ty, ErrorType::Unprepared(e) if e.id.serialize_to_vec(Version::V4) == [0, 3, 1, 2, 3])
        );
        for (kind, expected) in [
            (ReplicaError::Unavailable, 0x1000),
            (ReplicaError::ReadTimeout, 0x1200),
            (ReplicaError::ReadFailure, 0x1300),
            (ReplicaError::WriteTimeout, 0x1100),
            (ReplicaError::WriteFailure, 0x1500),
        ] {
            let e = error_of(replica_error(kind, 1, "ks.t"));
            assert_eq!(e.ty.to_error_code(), expected, "{kind:?}: {e:?}");
        }
        let e = error_of(error(0x1001, "shed"));
        assert_eq!(e.ty, ErrorType::Overloaded);
        assert_eq!(e.message, "shed");
    }

    #[test]
    fn events_and_schema_changes() {
        let change = SchemaChange {
            change: ChangeKind::Updated,
            target: ChangeTarget::Table,
            keyspace: "ks".into(),
            name: "t".into(),
            args: Vec::new(),
        };
        let ResResultBody::SchemaChange(read_back) = result(schema_change(&change)) else {
            panic!("not a change")
        };
        assert_eq!(read_back.change_type, SchemaChangeType::Updated);
        assert_eq!(
            read_back.options,
            SchemaChangeOptions::TableType("ks".into(), "t".into())
        );
        let event_of = |frame: Vec<u8>| {
            let envelope = Envelope::from_buffer(&frame, Theirs::None)
                .unwrap()
                .envelope;
            assert_eq!(envelope.stream_id, -1);
            match envelope.response_body().unwrap() {
                ResponseBody::Event(body) => body.event,
                other => panic!("not an event: {other:?}"),
            }
        };
        let keyspace = SchemaChange {
            change: ChangeKind::Dropped,
            target: ChangeTarget::Keyspace,
            name: String::new(),
            ..change
        };
        let ServerEvent::SchemaChange(event) = event_of(schema_event(&keyspace)) else {
            panic!("not a change")
        };
        assert_eq!(
            (event.change_type, event.target),
            (SchemaChangeType::Dropped, SchemaChangeTarget::Keyspace)
        );
        let node: SocketAddr = "[::1]:9042".parse().unwrap();
        assert!(
            matches!(event_of(status_event(false, node)), ServerEvent::StatusChange(c) if c.addr == node)
        );
        assert!(
            matches!(event_of(topology_event(true, node)), ServerEvent::TopologyChange(c) if c.addr == node)
        );
    }

    #[test]
    fn what_is_supported() {
        let ResponseBody::Supported(body) = read(supported(&[("COMPRESSION", vec!["lz4".into()])]))
        else {
            panic!("not supported")
        };
        assert_eq!(body.data["COMPRESSION"], ["lz4"]);
    }
}
