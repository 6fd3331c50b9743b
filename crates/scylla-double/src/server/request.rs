//! Bodies of requests (protocol v4, section 4.1).

use bytes::Bytes;

use super::{
    error::ProtocolError,
    frame::{CUSTOM_PAYLOAD, Frame},
    wire::Reader,
};
use crate::engine::{BatchKind, BoundValue};

/// What a client asks for.
#[derive(Debug)]
pub(crate) enum Request {
    /// What can be agreed on.
    Options,
    /// Opens the connection.
    Startup(Vec<(String, String)>),
    /// Asks for events, by type.
    Register(Vec<String>),
    /// Prepares a statement.
    Prepare(String),
    /// Runs a statement given as text.
    Query { text: String, params: QueryParams },
    /// Runs a prepared statement.
    Execute { id: Bytes, params: QueryParams },
    /// Runs several.
    Batch {
        kind: BatchKind,
        statements: Vec<(BatchStatement, Vec<BoundValue>)>,
        params: QueryParams,
    },
    /// Credentials; nobody asked for them.
    AuthResponse(Option<Bytes>),
}

/// What a statement of a batch is.
#[derive(Debug)]
pub(crate) enum BatchStatement {
    Text(String),
    Prepared(Bytes),
}

/// `<query_parameters>`.
#[derive(Debug, Default)]
pub(crate) struct QueryParams {
    pub(crate) consistency: u16,
    pub(crate) values: Vec<BoundValue>,
    /// As many as `values` when they are bound by name, else none.
    pub(crate) names: Vec<String>,
    pub(crate) skip_metadata: bool,
    pub(crate) page_size: Option<i32>,
    pub(crate) paging_state: Option<Bytes>,
    pub(crate) serial_consistency: Option<u16>,
    /// µs.
    pub(crate) timestamp: Option<i64>,
}

const VALUES: u8 = 0x01;
const SKIP_METADATA: u8 = 0x02;
const PAGE_SIZE: u8 = 0x04;
const PAGING_STATE: u8 = 0x08;
const SERIAL_CONSISTENCY: u8 = 0x10;
const TIMESTAMP: u8 = 0x20;
const NAMES: u8 = 0x40;

impl QueryParams {
    fn read(r: &mut Reader) -> Result<Self, ProtocolError> {
        let mut params = Self {
            consistency: r.u16()?,
            ..Self::default()
        };
        let flags = r.u8()?;
        if flags & VALUES != 0 {
            let n = r.u16()?.into();
            params.values.reserve(n);
            for _ in 0..n {
                if flags & NAMES != 0 {
                    params.names.push(r.string()?);
                }
                params.values.push(r.value()?);
            }
        }
        params.skip_metadata = flags & SKIP_METADATA != 0;
        if flags & PAGE_SIZE != 0 {
            params.page_size = Some(r.i32()?).filter(|n| *n > 0);
        }
        if flags & PAGING_STATE != 0 {
            params.paging_state = r.bytes()?;
        }
        params.read_tail(flags, r)?;
        Ok(params)
    }

    /// What a query and a batch have in common.
    fn read_tail(&mut self, flags: u8, r: &mut Reader) -> Result<(), ProtocolError> {
        if flags & SERIAL_CONSISTENCY != 0 {
            self.serial_consistency = Some(r.u16()?);
        }
        if flags & TIMESTAMP != 0 {
            self.timestamp = Some(r.i64()?);
        }
        Ok(())
    }
}

impl Request {
    /// Reads the body of `frame`, which is `body` when it was compressed.
    pub(crate) fn read(frame: &Frame, body: Bytes) -> Result<Self, ProtocolError> {
        let mut r = Reader::new(body);
        if frame.flags & CUSTOM_PAYLOAD != 0 {
            r.skip_bytes_map()?;
        }
        match frame.opcode {
            0x01 => Ok(Self::Startup(r.string_map()?)),
            0x05 => Ok(Self::Options),
            0x07 => Ok(Self::Query {
                text: r.long_string()?,
                params: QueryParams::read(&mut r)?,
            }),
            0x09 => Ok(Self::Prepare(r.long_string()?)),
            0x0A => Ok(Self::Execute {
                id: r.short_bytes()?,
                params: QueryParams::read(&mut r)?,
            }),
            0x0B => Ok(Self::Register(r.string_list()?)),
            0x0D => Self::batch(&mut r),
            0x0F => Ok(Self::AuthResponse(r.bytes()?)),
            other => Err(ProtocolError::Opcode(other)),
        }
    }

    fn batch(r: &mut Reader) -> Result<Self, ProtocolError> {
        let kind = match r.u8()? {
            0 => BatchKind::Logged,
            1 => BatchKind::Unlogged,
            2 => BatchKind::Counter,
            other => {
                return Err(ProtocolError::Malformed(format!(
                    "Invalid BATCH message type {other}"
                )));
            }
        };
        let statements = (0..r.u16()?)
            .map(|_| {
                let statement = match r.u8()? {
                    0 => BatchStatement::Text(r.long_string()?),
                    1 => BatchStatement::Prepared(r.short_bytes()?),
                    other => {
                        return Err(ProtocolError::Malformed(format!(
                            "Invalid query kind in BATCH messages: {other}"
                        )));
                    }
                };
                let values = (0..r.u16()?).map(|_| r.value()).collect::<Result<_, _>>()?;
                Ok((statement, values))
            })
            .collect::<Result<_, _>>()?;
        let mut params = QueryParams {
            consistency: r.u16()?,
            ..QueryParams::default()
        };
        let flags = r.u8()?;
        if flags & NAMES != 0 {
            // As the protocol has it (CASSANDRA-10246), the names cannot be told from the values.
            return Err(ProtocolError::Malformed(
                "named values are not supported in a BATCH".into(),
            ));
        }
        params.read_tail(flags, r)?;
        Ok(Self::Batch {
            kind,
            statements,
            params,
        })
    }

    /// The message's name.
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Self::Options => "OPTIONS",
            Self::Startup(_) => "STARTUP",
            Self::Register(_) => "REGISTER",
            Self::Prepare(_) => "PREPARE",
            Self::Query { .. } => "QUERY",
            Self::Execute { .. } => "EXECUTE",
            Self::Batch { .. } => "BATCH",
            Self::AuthResponse(_) => "AUTH_RESPONSE",
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn frame(opcode: u8, flags: u8, body: Vec<u8>) -> Frame {
        Frame {
            version: 4,
            flags,
            stream: 0,
            opcode,
            body: body.into(),
        }
    }

    fn read(opcode: u8, body: Vec<u8>) -> Result<Request, ProtocolError> {
        let frame = frame(opcode, 0, body);
        Request::read(&frame, frame.body.clone())
    }

    proptest! {
        #[test]
        fn no_body_makes_it_panic(opcode in 0_u8..0x11, flags in 0_u8..8, body in proptest::collection::vec(any::<u8>(), 0..200)) {
            let frame = frame(opcode, flags, body);
            // Any answer will do: what is looked for is a panic, or an allocation of what is not there.
            prop_assert!(matches!(Request::read(&frame, frame.body.clone()), Ok(_) | Err(_)));
        }
    }

    #[test]
    fn a_query_with_everything() {
        let text = "SELECT * FROM t WHERE k = :k AND c = :c";
        let mut body = (text.len() as u32).to_be_bytes().to_vec();
        body.extend_from_slice(text.as_bytes());
        body.extend_from_slice(&[0, 6, 0x7f]);
        body.extend_from_slice(&[0, 2, 0, 1, b'k', 0, 0, 0, 2, 8, 9]);
        body.extend_from_slice(&[0, 1, b'c', 0xff, 0xff, 0xff, 0xfe]);
        body.extend_from_slice(&[0, 0, 0, 50]);
        body.extend_from_slice(&[0, 0, 0, 1, 77]);
        body.extend_from_slice(&[0, 9]);
        body.extend_from_slice(&(-5_i64).to_be_bytes());
        let Ok(Request::Query {
            text: read_text,
            params,
        }) = read(0x07, body)
        else {
            panic!("not a query")
        };
        assert_eq!(read_text, text);
        assert_eq!(
            (params.consistency, params.serial_consistency),
            (6, Some(9))
        );
        assert_eq!(params.names, ["k", "c"]);
        assert_eq!(
            params.values,
            [
                BoundValue::Bytes(Bytes::from_static(&[8, 9])),
                BoundValue::Unset
            ]
        );
        assert!(params.skip_metadata);
        assert_eq!((params.page_size, params.timestamp), (Some(50), Some(-5)));
        assert_eq!(params.paging_state.as_deref(), Some(&[77][..]));
    }

    #[test]
    fn a_custom_payload_is_passed_over() {
        let mut body = vec![0, 1, 0, 1, b'x', 0, 0, 0, 2, 1, 2];
        body.extend_from_slice(&[0, 0, 0, 1, b'?']);
        let frame = frame(0x09, CUSTOM_PAYLOAD, body);
        let Ok(Request::Prepare(text)) = Request::read(&frame, frame.body.clone()) else {
            panic!("not a PREPARE")
        };
        assert_eq!(text, "?");
    }

    #[test]
    fn a_batch_of_both_kinds_of_statement() {
        let mut body = vec![1, 0, 2, 0, 0, 0, 0, 1, b'q', 0, 0, 1, 0, 3, 7, 7, 7, 0, 1];
        body.extend_from_slice(&[0xff, 0xff, 0xff, 0xff]);
        body.extend_from_slice(&[0, 1, 0x20]);
        body.extend_from_slice(&9_i64.to_be_bytes());
        let Ok(Request::Batch {
            kind,
            statements,
            params,
        }) = read(0x0D, body)
        else {
            panic!("not a batch")
        };
        assert_eq!((kind, params.timestamp), (BatchKind::Unlogged, Some(9)));
        assert!(
            matches!(&statements[0], (BatchStatement::Text(q), values) if q == "q" && values.is_empty())
        );
        assert!(
            matches!(&statements[1], (BatchStatement::Prepared(id), values)
            if id[..] == [7, 7, 7] && *values == [BoundValue::Null])
        );
    }
}
