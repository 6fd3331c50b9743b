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
/// Flag: the request has a custom payload before its body.
pub(crate) const CUSTOM_PAYLOAD: u8 = 0x04;

/// Bodies below this are sent as they are: packing them saves nothing on a loopback.
const COMPRESS_FROM: usize = 512;

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

/// The body as it was before compression. LZ4 in v4: the plain length as a big-endian int, then one
/// LZ4 block.
pub(crate) fn inflate(body: &Bytes, limit: usize) -> Result<Bytes, ProtocolError> {
    let Some((size, block)) = body.split_first_chunk::<4>() else {
        return Err(ProtocolError::Compression("no length".into()));
    };
    let size = u32::from_be_bytes(*size) as usize;
    if size > limit {
        return Err(ProtocolError::TooLarge { size, limit });
    }
    lz4_flex::block::decompress(block, size)
        .map(Bytes::from)
        .map_err(|e| ProtocolError::Compression(e.to_string()))
}

/// A response under construction: the header's place, then the body.
pub(crate) fn begin(stream: i16, opcode: Opcode, capacity: usize) -> Vec<u8> {
    let mut out = Vec::with_capacity(HEADER + capacity);
    out.extend_from_slice(&[0x80 | VERSION, 0]);
    out.extend_from_slice(&stream.to_be_bytes());
    out.extend_from_slice(&[opcode as u8, 0, 0, 0, 0]);
    out
}

/// Fills in the length; compresses when that was agreed on and pays.
pub(crate) fn finish(mut out: Vec<u8>, compress: bool) -> Vec<u8> {
    let plain = out.len() - HEADER;
    if compress && plain >= COMPRESS_FROM {
        let block = HEADER + 4;
        let mut packed =
            Vec::with_capacity(block + lz4_flex::block::get_maximum_output_size(plain));
        packed.extend_from_slice(&out[..HEADER]);
        packed.extend_from_slice(&(plain as u32).to_be_bytes());
        packed.resize(packed.capacity(), 0);
        if let Ok(n) = lz4_flex::block::compress_into(&out[HEADER..], &mut packed[block..]) {
            packed.truncate(block + n);
            packed[1] |= COMPRESSED;
            out = packed;
        }
    }
    let length = (out.len() - HEADER) as u32;
    out[5..HEADER].copy_from_slice(&length.to_be_bytes());
    out
}

#[cfg(test)]
mod tests {
    use cassandra_protocol::{
        compression::Compression,
        frame::{Envelope, Opcode as TheirOpcode},
    };

    use super::*;

    fn sample(n: usize, compress: bool) -> Vec<u8> {
        let mut out = begin(7, Opcode::Result, n);
        out.extend(std::iter::repeat_n(*b"penstock", n / 8).flatten());
        finish(out, compress)
    }

    #[test]
    fn another_codec_reads_what_is_written() {
        for (n, compress, compression) in [
            (0, false, Compression::None),
            (8, true, Compression::Lz4),
            (8192, true, Compression::Lz4),
            (8192, false, Compression::None),
        ] {
            let bytes = sample(n, compress);
            let parsed = Envelope::from_buffer(&bytes, compression).unwrap();
            assert_eq!(parsed.envelope_len, bytes.len());
            assert_eq!(
                (parsed.envelope.stream_id, parsed.envelope.opcode),
                (7, TheirOpcode::Result)
            );
            assert_eq!(parsed.envelope.body, b"penstock".repeat(n / 8));
        }
        assert!(sample(8192, true).len() < 200, "a large body is compressed");
    }

    #[test]
    fn frames_come_whole_however_they_are_cut() {
        let bytes = [sample(800, false), sample(0, false), sample(800, true)].concat();
        for cut in [1, 2, 9, 10, 100, 5000] {
            let mut buffer = BytesMut::new();
            let mut bodies = Vec::new();
            for chunk in bytes.chunks(cut) {
                buffer.extend_from_slice(chunk);
                while let Some(frame) = take(&mut buffer, 1 << 20).unwrap() {
                    let body = if frame.flags & COMPRESSED == 0 {
                        frame.body
                    } else {
                        inflate(&frame.body, 1 << 20).unwrap()
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
        let mut buffer = BytesMut::from(&sample(800, false)[..]);
        assert!(matches!(
            take(&mut buffer, 799),
            Err(ProtocolError::TooLarge {
                size: 800,
                limit: 799
            })
        ));
        let bomb = Bytes::from_static(&[0x7f, 0xff, 0xff, 0xff, 0]);
        assert!(matches!(
            inflate(&bomb, 1 << 20),
            Err(ProtocolError::TooLarge { .. })
        ));
        assert!(matches!(
            inflate(&Bytes::from_static(&[0, 0, 0, 9, 0xff, 1]), 1 << 20),
            Err(ProtocolError::Compression(_))
        ));
        assert!(matches!(
            inflate(&Bytes::from_static(&[0]), 1 << 20),
            Err(ProtocolError::Compression(_))
        ));
    }
}
