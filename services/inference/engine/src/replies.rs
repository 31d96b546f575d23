//! The reply of ModelInfer, written straight into the bytes that are sent.
//!
//! The numbers below are fields of the Open Inference Protocol V2; a test reads them back with the
//! generated types.

use std::io::Write;
use std::sync::OnceLock;

use bytes::Bytes;
use prost::encoding::{encode_key, encode_varint, WireType};
use prost::Message;

use crate::fields::{bytes, double, integer, nested, text};
use crate::infer::{Answered, Asked};
use crate::records::Origin;
use crate::version::Array;
use crate::wire::frame_of;

mod response {
    pub const MODEL_NAME: u32 = 1;
    pub const MODEL_VERSION: u32 = 2;
    pub const ID: u32 = 3;
    pub const PARAMETERS: u32 = 4;
    pub const OUTPUTS: u32 = 5;
    pub const RAW_OUTPUT_CONTENTS: u32 = 6;
}
mod stream {
    pub const INFER_RESPONSE: u32 = 2;
}
mod tensor {
    pub const NAME: u32 = 1;
    pub const DATATYPE: u32 = 2;
    pub const SHAPE: u32 = 3;
    pub const CONTENTS: u32 = 5;
}
mod parameter {
    pub const BOOL: u32 = 1;
    pub const INT64: u32 = 2;
    pub const STRING: u32 = 3;
    pub const DOUBLE: u32 = 4;
}
mod entry {
    pub const KEY: u32 = 1;
    pub const VALUE: u32 = 2;
}

const REPLY_BYTES: usize = 512; // about as many, without its outputs
const LONGEST_KEY: usize = 10; // of a field, with its length
/// The parameter that says that no further response comes for a request.
pub const FINAL_RESPONSE: &str = "triton_final_response";

/// The framed message: raw when the request was, or when an output has no typed form.
pub fn reply_of(asked: &Asked, answered: &Answered, origin: &Origin) -> Bytes {
    let part = &answered.part;
    let sizes = part.outputs.iter().map(|array| array.data.len());
    frame_of(REPLY_BYTES + sizes.sum::<usize>(), |out| {
        let about = &asked.loaded.about;
        text(out, response::MODEL_NAME, &about.model);
        nested(out, response::MODEL_VERSION, |out| {
            let _ = write!(out, "{}", about.version);
        });
        if !asked.id.is_empty() {
            text(out, response::ID, &asked.id);
        }
        provenance(out, asked, answered, origin);
        outputs(out, asked, &part.outputs);
    })
}

/// The framed message of a stream that carries a response, and what is to be said after it.
pub fn in_stream(response: &[u8], after: &[u8]) -> Bytes {
    let length = response.len() + after.len();
    frame_of(length + LONGEST_KEY, |out| {
        encode_key(stream::INFER_RESPONSE, WireType::LengthDelimited, out);
        encode_varint(length as u64, out);
        out.extend_from_slice(response);
        out.extend_from_slice(after);
    })
}

/// A parameter that may follow a response: no further one comes for its request.
pub fn final_mark() -> &'static [u8] {
    static MARK: OnceLock<Vec<u8>> = OnceLock::new();
    MARK.get_or_init(|| {
        let mut out = Vec::new();
        parameter(&mut out, FINAL_RESPONSE, |out| {
            integer(out, parameter::BOOL, 1);
        });
        out
    })
}

fn provenance(out: &mut Vec<u8>, asked: &Asked, answered: &Answered, origin: &Origin) {
    let (about, part) = (&asked.loaded.about, &answered.part);
    let number = |out: &mut Vec<u8>, name, value: i64| {
        parameter(out, name, |out| integer(out, parameter::INT64, value));
    };
    let word = |out: &mut Vec<u8>, name, value: &str| {
        parameter(out, name, |out| text(out, parameter::STRING, value));
    };
    number(out, "volary_version", about.version);
    word(out, "volary_digest", &about.digest);
    word(out, "volary_tier", "model");
    word(out, "volary_route", &origin.route);
    parameter(out, "volary_prediction_id", |out| {
        let id = |out: &mut Vec<u8>| origin.write_prediction_id(out, about.version);
        nested(out, parameter::STRING, id);
    });
    number(out, "volary_queue_us", part.queued.as_micros() as i64);
    number(out, "volary_batch_size", part.batch_rows as i64);
    if let Some(confidence) = answered.confidence {
        parameter(out, "volary_confidence", |out| {
            double(out, parameter::DOUBLE, confidence);
        });
    }
    if asked.loaded.version.calibration.is_some() {
        let is_true = |out: &mut Vec<u8>| integer(out, parameter::BOOL, 1);
        parameter(out, "volary_calibrated", is_true);
    }
    if let Some(band) = &answered.decided {
        word(out, "volary_reason_codes", &band.code);
        word(out, "volary_action", &band.action);
    }
}

fn outputs(out: &mut Vec<u8>, asked: &Asked, arrays: &[Array]) {
    let specs = &asked.loaded.version.outputs;
    let is_typed = |index: &usize| specs[*index].datatype.is_typed();
    let is_raw = asked.is_raw || !asked.outputs.iter().all(is_typed);
    for index in &asked.outputs {
        let (spec, array) = (&specs[*index], &arrays[*index]);
        nested(out, response::OUTPUTS, |out| {
            text(out, tensor::NAME, &spec.name);
            text(out, tensor::DATATYPE, spec.datatype.name());
            nested(out, tensor::SHAPE, |out| {
                for size in &array.shape {
                    encode_varint(*size as u64, out);
                }
            });
            if let Some(contents) = spec.datatype.to_contents(&array.data).filter(|_| !is_raw) {
                encode_key(tensor::CONTENTS, WireType::LengthDelimited, out);
                encode_varint(contents.encoded_len() as u64, out);
                contents.encode_raw(out);
            }
        });
    }
    for index in asked.outputs.iter().filter(|_| is_raw) {
        let data = &arrays[*index].data;
        bytes(out, response::RAW_OUTPUT_CONTENTS, data);
    }
}

fn parameter(out: &mut Vec<u8>, name: &str, choice: impl FnOnce(&mut Vec<u8>)) {
    nested(out, response::PARAMETERS, |out| {
        text(out, entry::KEY, name);
        nested(out, entry::VALUE, choice);
    });
}
