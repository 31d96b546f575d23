//! Fields of protobuf messages, written straight into the bytes that are sent.
//!
//! The generated types hold each text and each part in memory of its own: to fill one, to encode it
//! and to throw it away costs several times the run of a small graph.

use bytes::BufMut;
use prost::encoding::{encode_key, encode_varint, encoded_len_varint, WireType};

pub fn integer(out: &mut Vec<u8>, field: u32, value: i64) {
    encode_key(field, WireType::Varint, out);
    encode_varint(value as u64, out);
}

pub fn double(out: &mut Vec<u8>, field: u32, value: f64) {
    encode_key(field, WireType::SixtyFourBit, out);
    out.put_f64_le(value);
}

/// `repeated double`, packed.
pub fn packed(out: &mut Vec<u8>, field: u32, values: &[f64]) {
    encode_key(field, WireType::LengthDelimited, out);
    encode_varint(8 * values.len() as u64, out);
    out.reserve(8 * values.len());
    values.iter().for_each(|value| out.put_f64_le(*value));
}

pub fn fixed64(out: &mut Vec<u8>, field: u32, value: u64) {
    encode_key(field, WireType::SixtyFourBit, out);
    out.put_u64_le(value);
}

pub fn fixed32(out: &mut Vec<u8>, field: u32, value: u32) {
    encode_key(field, WireType::ThirtyTwoBit, out);
    out.put_u32_le(value);
}

pub fn text(out: &mut Vec<u8>, field: u32, value: &str) {
    bytes(out, field, value.as_bytes());
}

pub fn bytes(out: &mut Vec<u8>, field: u32, value: &[u8]) {
    encode_key(field, WireType::LengthDelimited, out);
    encode_varint(value.len() as u64, out);
    out.extend_from_slice(value);
}

/// Write what is as long as it turns out to be.
pub fn nested(out: &mut Vec<u8>, field: u32, fill: impl FnOnce(&mut Vec<u8>)) {
    encode_key(field, WireType::LengthDelimited, out);
    let place = out.len();
    out.push(0);
    fill(out);
    let length = out.len() - place - 1;
    if let Ok(short @ 0..=127) = u8::try_from(length) {
        out[place] = short;
        return;
    }
    let mut bytes = Vec::with_capacity(encoded_len_varint(length as u64));
    encode_varint(length as u64, &mut bytes);
    out.splice(place..=place, bytes);
}

/// The same where zero and nothing mean the same, and nothing is written of it (proto3).
pub mod filled {
    pub fn integer(out: &mut Vec<u8>, field: u32, value: i64) {
        if value != 0 {
            super::integer(out, field, value);
        }
    }

    pub fn text(out: &mut Vec<u8>, field: u32, value: &str) {
        if !value.is_empty() {
            super::text(out, field, value);
        }
    }

    pub fn packed(out: &mut Vec<u8>, field: u32, values: &[f64]) {
        if !values.is_empty() {
            super::packed(out, field, values);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_longer_than_a_byte_counts_is_moved_aside() {
        for length in [0, 1, 127, 128, 300, 20_000] {
            let (mut out, value) = (Vec::new(), "x".repeat(length));
            nested(&mut out, 1, |out| out.extend_from_slice(value.as_bytes()));
            let mut whole = Vec::new();
            text(&mut whole, 1, &value);
            assert_eq!(out, whole, "{length}");
        }
    }
}
