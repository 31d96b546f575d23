//! A prediction event as bytes: `volary.events.v1.Event`, whose fields the numbers below are.

use std::io::Write;

use crate::fields::{double, filled, nested, text};
use crate::records::Prediction;

mod event {
    pub const ID: u32 = 1;
    pub const PROJECT: u32 = 2;
    pub const EVENT_TIME: u32 = 3;
    pub const KNOWN_AT: u32 = 4;
    pub const TRACEPARENT: u32 = 5;
    pub const PREDICTION: u32 = 10;
}
mod prediction {
    pub const ID: u32 = 1;
    pub const REQUEST_KEY: u32 = 2;
    pub const MODEL: u32 = 3;
    pub const VERSION: u32 = 4;
    pub const DIGEST: u32 = 5;
    pub const TIER: u32 = 6;
    pub const ROUTE: u32 = 7;
    pub const SHADOW: u32 = 8;
    pub const SUBJECT: u32 = 9;
    pub const FEATURES: u32 = 13;
    pub const OUTPUTS: u32 = 14;
    pub const CONFIDENCE: u32 = 15;
    pub const LATENCY: u32 = 16;
    pub const QUEUE_TIME: u32 = 17;
    pub const BATCH_SIZE: u32 = 18;
    pub const CODE: u32 = 19;
    pub const TRACE_ID: u32 = 20;
    pub const REPLIED_AT: u32 = 21;
    pub const REASON_CODES: u32 = 23;
    pub const ACTION: u32 = 24;
}
const MICROS: i64 = 1_000_000;
const MAX_VALUES: usize = 4_096; // a row longer than this is no feature vector

/// Append the event of a prediction.
pub fn write_event(out: &mut Vec<u8>, of: &Prediction) {
    let id = |out: &mut Vec<u8>| of.origin.write_prediction_id(out, of.about.version);
    nested(out, event::ID, id);
    filled::text(out, event::PROJECT, &of.about.project);
    time(out, event::EVENT_TIME, of.event_time_us);
    // a prediction is known at the instant that it is for: both are of the world's clock
    time(out, event::KNOWN_AT, of.event_time_us);
    nested(out, event::TRACEPARENT, |out| {
        let trace = &of.origin.trace;
        let flags = u8::from(trace.is_sampled);
        let _ = write!(out, "00-{:032x}-{:016x}-{flags:02x}", trace.id, trace.span);
    });
    nested(out, event::PREDICTION, |out| write_prediction(out, of));
}

fn write_prediction(out: &mut Vec<u8>, of: &Prediction) {
    let (about, origin) = (&of.about, &of.origin);
    let id = |out: &mut Vec<u8>| origin.write_prediction_id(out, about.version);
    nested(out, prediction::ID, id);
    filled::text(out, prediction::REQUEST_KEY, &origin.request_key);
    filled::text(out, prediction::MODEL, &about.model);
    filled::integer(out, prediction::VERSION, about.version);
    filled::text(out, prediction::DIGEST, &about.digest);
    filled::text(out, prediction::TIER, of.tier);
    filled::text(out, prediction::ROUTE, &origin.route);
    filled::integer(out, prediction::SHADOW, origin.is_shadow.into());
    filled::text(out, prediction::SUBJECT, &of.subject);
    if let Some((datatype, data)) = &of.features {
        filled::packed(out, prediction::FEATURES, &datatype.numbers(data));
    }
    let outputs = of.outputs.iter();
    let outputs = outputs.flat_map(|(datatype, data)| datatype.numbers(data));
    let outputs: Vec<f64> = outputs.collect();
    if outputs.len() <= MAX_VALUES {
        filled::packed(out, prediction::OUTPUTS, &outputs);
    }
    if let Some(confidence) = of.confidence.filter(|value| *value != 0.0) {
        double(out, prediction::CONFIDENCE, confidence);
    }
    duration(out, prediction::LATENCY, of.latency);
    duration(out, prediction::QUEUE_TIME, of.queued);
    filled::integer(out, prediction::BATCH_SIZE, of.batch_size as i64);
    filled::integer(out, prediction::CODE, of.code.into());
    nested(out, prediction::TRACE_ID, |out| {
        let _ = write!(out, "{:032x}", origin.trace.id);
    });
    time(out, prediction::REPLIED_AT, of.replied_at_us);
    if let Some(band) = &of.decided {
        text(out, prediction::REASON_CODES, &band.code);
        filled::text(out, prediction::ACTION, &band.action);
    }
}

fn time(out: &mut Vec<u8>, field: u32, time_us: i64) {
    let nanos = time_us.rem_euclid(MICROS) * 1_000;
    seconds(out, field, time_us.div_euclid(MICROS), nanos);
}

fn duration(out: &mut Vec<u8>, field: u32, duration: std::time::Duration) {
    let nanos = i64::from(duration.subsec_micros()) * 1_000;
    seconds(out, field, duration.as_secs() as i64, nanos);
}

/// `google.protobuf.Timestamp` and `Duration` have the same two fields.
fn seconds(out: &mut Vec<u8>, field: u32, seconds: i64, nanos: i64) {
    nested(out, field, |out| {
        filled::integer(out, 1, seconds);
        filled::integer(out, 2, nanos);
    });
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use prost::Message;

    use super::*;
    use crate::contract::volary::events::v1::{event::Payload, Event, PredictionEvent};
    use crate::contract::{duration_of, timestamp_of};
    use crate::decisions::Band;
    use crate::records::{Identity, Origin, Trace};
    use crate::tensors::Datatype;

    fn told() -> Prediction {
        Prediction {
            about: Arc::new(Identity {
                project: "p".into(),
                model: "m".into(),
                version: 7,
                digest: "sha256:0".into(),
            }),
            origin: Origin {
                request_key: "key".into(),
                attempt: 2,
                route: "m/r/s/7".into(),
                is_shadow: true,
                trace: Trace {
                    id: 1 << 100,
                    span: 9,
                    is_sampled: true,
                    ..Trace::default()
                },
            },
            tier: "model",
            subject: "s".into(),
            event_time_us: -1,
            replied_at_us: 1_700_000_000_000_001,
            features: Some((Datatype::Fp32, 1.5f32.to_le_bytes().to_vec().into())),
            outputs: vec![(Datatype::Int64, (-3i64).to_le_bytes().to_vec().into())],
            confidence: Some(0.75),
            latency: Duration::from_micros(1_500_001),
            queued: Duration::from_micros(3),
            batch_size: 300,
            code: 8,
            decided: Some(Arc::new(Band {
                below: None,
                code: "HIGH".into(),
                action: "ask".into(),
            })),
        }
    }

    fn read(of: &Prediction) -> (Event, PredictionEvent) {
        let mut out = Vec::new();
        write_event(&mut out, of);
        let mut event = Event::decode(&out[..]).unwrap();
        match event.payload.take() {
            Some(Payload::Prediction(prediction)) => (event, *prediction),
            _ => panic!("no prediction"),
        }
    }

    #[test]
    fn every_field_comes_back() {
        let of = told();
        let (event, prediction) = read(&of);
        let time = Some(timestamp_of(-1));
        let expected = Event {
            id: "key.7.2".into(),
            project: "p".into(),
            event_time: time,
            known_at: time,
            traceparent: of.origin.trace.traceparent(),
            payload: None,
        };
        assert_eq!(event, expected);
        let expected = PredictionEvent {
            prediction_id: "key.7.2".into(),
            request_key: "key".into(),
            model: "m".into(),
            version: 7,
            digest: "sha256:0".into(),
            tier: "model".into(),
            route: "m/r/s/7".into(),
            shadow: true,
            subject: "s".into(),
            features: vec![1.5],
            outputs: vec![-3.0],
            confidence: 0.75,
            latency: Some(duration_of(of.latency)),
            queue_time: Some(duration_of(of.queued)),
            batch_size: 300,
            code: 8,
            trace_id: of.origin.trace.id_text(),
            replied_at: Some(timestamp_of(of.replied_at_us)),
            reason_codes: vec!["HIGH".into()],
            action: "ask".into(),
            ..PredictionEvent::default()
        };
        assert_eq!(prediction, expected);
    }

    #[test]
    fn what_is_not_there_is_not_written() {
        let of = Prediction {
            features: None,
            outputs: Vec::new(),
            confidence: None,
            origin: Origin::default(),
            subject: String::new(),
            code: 0,
            batch_size: 0,
            decided: None,
            ..told()
        };
        let (_, prediction) = read(&of);
        assert!(prediction.features.is_empty() && prediction.outputs.is_empty());
        assert!(prediction.reason_codes.is_empty() && prediction.action.is_empty());
        assert_eq!(
            (prediction.shadow, prediction.batch_size, prediction.code),
            (false, 0, 0)
        );
    }

    #[test]
    fn a_long_output_is_left_out() {
        let data = vec![0; MAX_VALUES + 1];
        let of = Prediction {
            outputs: vec![(Datatype::Uint8, data.into())],
            ..told()
        };
        assert!(read(&of).1.outputs.is_empty());
    }
}
