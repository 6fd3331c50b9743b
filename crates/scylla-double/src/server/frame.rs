//! Frames of protocol v4: a header of nine bytes (version, flags, stream, opcode, length) and a body,
//! compressed or not.

use bytes::{Buf, Bytes, BytesMut};

use super::error::ProtocolError;

/// The only version that is spoken.
pub(crate) const VERSION: u8 = 4;
/// The header's size, bytes.
pub(crate) const HEADER: usize = 9;

/// Flag: the body is compressed.
pub(crate) const COMPRESSED: u8 = 0x01;
/// Flag: the request is to be traced; the response begins with the trace's id.
pub(crate) const TRACING: u8 = 0x02;
/// Flag: the request has a custom payload before its body.
pub(crate) const CUSTOM_PAYLOAD: u8 = 0x04;

/// Bodies below this are sent as they are: packing them saves nothing on a loopback.
const COMPRESS_FROM: usize = 512;

/// How the two ends of a connection agreed to pack bodies.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum Compression {
    /// Not at all.
    #[default]
    None,
    /// The plain length as a big-endian int, then one LZ4 block.
    Lz4,
    /// One raw Snappy block, which begins with its plain length.
    Snappy,
}

impl Compression {
    /// All that can be agreed on, as `SUPPORTED` lists them.
    pub(crate) const ALL: [Self; 2] = [Self::Lz4, Self::Snappy];

    /// As the protocol spells it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::None => "",
            Self::Lz4 => "lz4",
            Self::Snappy => "snappy",
        }
    }

    /// By its name in `STARTUP`, ignoring case; an empty one is none.
    pub(crate) fn from_name(name: &str) -> Option<Self> {
        let known = [Self::None].into_iter().chain(Self::ALL);
        known
            .into_iter()
            .find(|c| c.name().eq_ignore_ascii_case(name))
    }
}

/// What a response is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Opcode {
    Error = 0x00,
    Ready = 0x02,
    Authenticate = 0x03,
    Supported = 0x06,
    Result = 0x08,
    Event = 0x0C,
    AuthSuccess = 0x10,
}

/// A request's header and body.
#[derive(Debug)]
pub(crate) struct Frame {
    pub(crate) version: u8,
    pub(crate) flags: u8,
    pub(crate) stream: i16,
    pub(crate) opcode: u8,
    /// As sent, that is, perhaps compressed; its own allocation, so that a value kept by the engine
    /// holds on to one frame and not to a whole read buffer.
    pub(crate) body: Bytes,
}

/// Takes the first whole frame off `buffer`; `None` when more must be read.
pub(crate) fn take(buffer: &mut BytesMut, limit: usize) -> Result<Option<Frame>, ProtocolError> {
    let Some(header) = buffer.first_chunk::<HEADER>() else {
        return Ok(None);
    };
    let [version, flags, s0, s1, opcode, length @ ..] = *header;
    let size = u32::from_be_bytes(length) as usize;
    if size > limit {
        return Err(ProtocolError::TooLarge { size, limit });
    }
    if buffer.len() < HEADER + size {
        buffer.reserve(HEADER + size - buffer.len());
        return Ok(None);
    }
    buffer.advance(HEADER);
    let body = Bytes::copy_from_slice(&buffer[..size]);
    buffer.advance(size);
    Ok(Some(Frame {
        version,
        flags,
        stream: i16::from_be_bytes([s0, s1]),
        opcode,
        body,
    }))
}

/// The body as it was before compression.
pub(crate) fn inflate(
    body: &Bytes,
    compression: Compression,
    limit: usize,
) -> Result<Bytes, ProtocolError> {
    let broken = |e: String| ProtocolError::Compression(e);
    let fits = |size: usize| match size {
        size if size > limit => Err(ProtocolError::TooLarge { size, limit }),
        size => Ok(size),
    };
    match compression {
        Compression::None => Err(broken("no compression was agreed on".into())),
        Compression::Lz4 => {
            let Some((size, block)) = body.split_first_chunk::<4>() else {
                return Err(broken("no length".into()));
            };
            let size = fits(u32::from_be_bytes(*size) as usize)?;
            lz4_flex::block::decompress(block, size)
                .map(Bytes::from)
                .map_err(|e| broken(e.to_string()))
        }
        Compression::Snappy => {
            fits(snap::raw::decompress_len(body).map_err(|e| broken(e.to_string()))?)?;
            snap::raw::Decoder::new()
                .decompress_vec(body)
                .map(Bytes::from)
                .map_err(|e| broken(e.to_string()))
        }
    }
}

/// A response under construction: the header's place, then the body.
pub(crate) fn begin(stream: i16, opcode: Opcode, capacity: usize) -> Vec<u8> {
    let mut out = Vec::with_capacity(HEADER + capacity);
    out.extend_from_slice(&[0x80 | VERSION, 0]);
    out.extend_from_slice(&stream.to_be_bytes());
    out.extend_from_slice(&[opcode as u8, 0, 0, 0, 0]);
    out
}

/// Puts a trace's id before the body, as the answer to a traced request has it.
pub(crate) fn trace(mut out: Vec<u8>, id: &[u8; 16]) -> Vec<u8> {
    out.splice(HEADER..HEADER, *id);
    out[1] |= TRACING;
    out
}

/// Fills in the length; compresses when that was agreed on and pays.
pub(crate) fn finish(mut out: Vec<u8>, compression: Compression) -> Vec<u8> {
    if out.len() - HEADER >= COMPRESS_FROM
        && let Some(packed) = pack(&out, compression)
    {
        out = packed;
        out[1] |= COMPRESSED;
    }
    let length = (out.len() - HEADER) as u32;
    out[5..HEADER].copy_from_slice(&length.to_be_bytes());
    out
}

/// The header and the packed body.
fn pack(out: &[u8], compression: Compression) -> Option<Vec<u8>> {
    let (header, body) = out.split_at(HEADER);
    let mut packed = header.to_vec();
    let (room, length) = match compression {
        Compression::None => return None,
        Compression::Lz4 => {
            packed.extend_from_slice(&(body.len() as u32).to_be_bytes());
            let room = lz4_flex::block::get_maximum_output_size(body.len());
            (room, packed.len())
        }
        Compression::Snappy => (snap::raw::max_compress_len(body.len()), packed.len()),
    };
    packed.resize(length + room, 0);
    let n = match compression {
        Compression::Snappy => snap::raw::Encoder::new()
            .compress(body, &mut packed[length..])
            .ok()?,
        _ => lz4_flex::block::compress_into(body, &mut packed[length..]).ok()?,
    };
    packed.truncate(length + n);
    Some(packed)
}

#[cfg(test)]
mod tests {
    use cassandra_protocol::{
        compression::Compression as Theirs,
        frame::{Envelope, Opcode as TheirOpcode},
    };

    use super::*;

    fn sample(n: usize, compression: Compression) -> Vec<u8> {
        let mut out = begin(7, Opcode::Result, n);
        out.extend(std::iter::repeat_n(*b"penstock", n / 8).flatten());
        finish(out, compression)
    }

    #[test]
    fn another_codec_reads_what_is_written() {
        for (n, compression, theirs) in [
            (0, Compression::None, Theirs::None),
            (8, Compression::Lz4, Theirs::Lz4),
            (8192, Compression::Lz4, Theirs::Lz4),
            (8, Compression::Snappy, Theirs::Snappy),
            (8192, Compression::Snappy, Theirs::Snappy),
            (8192, Compression::None, Theirs::None),
        ] {
            let bytes = sample(n, compression);
            let parsed = Envelope::from_buffer(&bytes, theirs).unwrap();
            assert_eq!(parsed.envelope_len, bytes.len());
            assert_eq!(
                (parsed.envelope.stream_id, parsed.envelope.opcode),
                (7, TheirOpcode::Result)
            );
            assert_eq!(parsed.envelope.body, b"penstock".repeat(n / 8));
        }
        for compression in Compression::ALL {
            let packed = sample(8192, compression).len();
            assert!(packed < 600, "{compression:?}: {packed} bytes of 8192");
        }
    }

    #[test]
    fn frames_come_whole_however_they_are_cut() {
        for compression in Compression::ALL {
            frames_cut_anyhow(compression);
        }
    }

    fn frames_cut_anyhow(compression: Compression) {
        let plain = Compression::None;
        let bytes = [
            sample(800, plain),
            sample(0, plain),
            sample(800, compression),
        ]
        .concat();
        for cut in [1, 2, 9, 10, 100, 5000] {
            let mut buffer = BytesMut::new();
            let mut bodies = Vec::new();
            for chunk in bytes.chunks(cut) {
                buffer.extend_from_slice(chunk);
                while let Some(frame) = take(&mut buffer, 1 << 20).unwrap() {
                    let body = if frame.flags & COMPRESSED == 0 {
                        frame.body
                    } else {
                        inflate(&frame.body, compression, 1 << 20).unwrap()
                    };
                    bodies.push(body);
                }
            }
            assert_eq!(
                bodies.iter().map(Bytes::len).collect::<Vec<_>>(),
                [800, 0, 800],
                "cut by {cut}"
            );
            assert!(buffer.is_empty());
        }
    }

    #[test]
    fn what_is_too_large_or_broken_is_refused() {
        let mut buffer = BytesMut::from(&sample(800, Compression::None)[..]);
        assert!(matches!(
            take(&mut buffer, 799),
            Err(ProtocolError::TooLarge {
                size: 800,
                limit: 799
            })
        ));
        // A length far beyond what follows: big-endian for LZ4, seven bits a byte for Snappy.
        let bombs: [(Compression, &[u8]); 2] = [
            (Compression::Lz4, &[0x7f, 0xff, 0xff, 0xff, 0]),
            (Compression::Snappy, &[0xff, 0xff, 0xff, 0xff, 0x07, 0]),
        ];
        for (compression, bomb) in bombs {
            let refused = inflate(&Bytes::from_static(bomb), compression, 1 << 20);
            assert!(
                matches!(refused, Err(ProtocolError::TooLarge { .. })),
                "{compression:?}: {refused:?}"
            );
        }
        let broken: [(Compression, &[u8]); 5] = [
            (Compression::Lz4, &[0, 0, 0, 9, 0xff, 1]),
            (Compression::Lz4, &[0]),
            (Compression::Snappy, &[9, 0xff, 1]),
            (Compression::Snappy, &[]),
            (Compression::None, &[0, 0, 0, 0, 0]),
        ];
        for (compression, body) in broken {
            let refused = inflate(&Bytes::from_static(body), compression, 1 << 20);
            assert!(
                matches!(refused, Err(ProtocolError::Compression(_))),
                "{compression:?}: {refused:?}"
            );
        }
    }
}
