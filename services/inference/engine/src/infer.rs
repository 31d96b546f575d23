//! ModelInfer: from a message to a place in a queue, and what a run gave.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;

use crate::calibration::Calibration;
use crate::contract::inference::infer_parameter::ParameterChoice as Choice;
use crate::contract::inference::{InferParameter, ModelInferRequest};
use crate::contract::{Code, Refusal};
use crate::decisions::Band;
use crate::plane::{Loaded, Table};
use crate::queue::{NoRoom, LAST, NORMAL};
use crate::tensors::{elements_of, Datatype};
use crate::turns::Turn;
use crate::version::{Array, NotRun, Part, Spec, Version};

const MAX_SUBJECT: usize = 256;
const MAX_FEATURES: usize = 4_096; // a row longer than this is no feature vector
const PROBABILITY: &str = "probability";
pub const FULL: &str = "the queue of this version is full";
pub const TOO_LATE: &str = "the call could not finish within its deadline";
const LEAST_RETRY: Duration = Duration::from_millis(1);

/// What a call wants of a version.
pub struct Asked {
    pub loaded: Arc<Loaded>,
    pub outputs: Vec<usize>,
    pub subject: String,
    pub event_time_us: Option<i64>,
    pub timeout: Option<Duration>,
    pub priority: u8,
    /// The one input, when it is one row of numbers.
    pub features: Option<(Datatype, Bytes)>,
    pub began_ns: u64,
    pub is_raw: bool,
    pub id: String,
}

/// A run's part that is fit to be a reply.
pub struct Answered {
    pub part: Part,
    pub confidence: Option<f64>,
    /// What its score means, where that is declared.
    pub decided: Option<Arc<Band>>,
}

pub enum Outcome {
    Part(Part),
    Refused(Refusal),
    /// Python has the answer: the version goes away, or its graph failed on this input.
    NotHere,
}

/// The version that a call gets, if it is served here: the one it names, else production.
pub fn chosen(table: &Table, project: &str, model: &str, number: &str) -> Option<Arc<Loaded>> {
    let model = table.get(project)?.get(model)?;
    let number = match number {
        "" => model.production?,
        text => number_of(text)?,
    };
    model.versions.get(&number).cloned()
}

fn number_of(text: &str) -> Option<i64> {
    let is_number = text.bytes().all(|byte| byte.is_ascii_digit());
    text.parse().ok().filter(|_| is_number)
}

/// The version that a message asks, by its first two fields alone: whether there is room for a call
/// is known before it is read.
pub struct Meant<'a> {
    model: &'a str,
    number: &'a str,
    pub loaded: Arc<Loaded>,
}

impl<'a> Meant<'a> {
    pub fn by(table: &Table, project: &str, message: &'a [u8], header: &str) -> Option<Self> {
        let mut data = message;
        let model = named(&mut data, 1)?;
        let number = named(&mut data, 2).unwrap_or("");
        if has_parameters(data) {
            return None; // its priority may be among them
        }
        let loaded = chosen(table, project, model, deciding(number, header))?;
        Some(Meant {
            model,
            number,
            loaded,
        })
    }

    /// Whether the whole message asks the same: what is said again later holds.
    fn is_of(&self, request: &ModelInferRequest) -> bool {
        self.model == request.model_name && self.number == request.model_version
    }
}

fn deciding<'a>(number: &'a str, header: &'a str) -> &'a str {
    if header.is_empty() {
        number
    } else {
        header
    }
}

/// Whether parameters come next, or behind the call's id.
fn has_parameters(mut data: &[u8]) -> bool {
    const PARAMETERS: u8 = 4 << 3 | 2;
    named(&mut data, 3);
    data.first() == Some(&PARAMETERS)
}

/// Take the text of a field that comes next.
fn named<'a>(data: &mut &'a [u8], field: u8) -> Option<&'a str> {
    let is_it = data.first() == Some(&(field << 3 | 2));
    let length = usize::from(*data.get(1).filter(|length| is_it && **length < 0x80)?);
    let text = data.get(2..2 + length)?;
    *data = &data[2 + length..];
    std::str::from_utf8(text).ok()
}

/// Read a request; None when it does not fit, or says what only Python understands.
///
/// `meant` is what its first fields say, where somebody looked at them before.
pub fn planned(
    table: &Table,
    project: &str,
    request: ModelInferRequest,
    header: &str,
    meant: Option<Meant<'_>>,
) -> Option<(Asked, Vec<Array>)> {
    // a malformed one in the message is refused even where the header decides
    if !request.model_version.is_empty() {
        number_of(&request.model_version)?;
    }
    let loaded = match meant {
        Some(meant) if meant.is_of(&request) => meant.loaded,
        _ => {
            let number = deciding(&request.model_version, header);
            chosen(table, project, &request.model_name, number)?
        }
    };
    let (subject, event_time_us, timeout) = about(&request.parameters)?;
    let outputs = outputs_of(&loaded.version, &request)?;
    let is_raw = !request.raw_input_contents.is_empty();
    let inputs = inputs_of(&loaded.version, &request)?;
    let features = match (&inputs[..], &loaded.version.inputs[..]) {
        ([array], [spec]) if is_row(array, spec) => Some((spec.datatype, array.data.clone())),
        _ => None,
    };
    let asked = Asked {
        loaded,
        outputs,
        subject,
        event_time_us,
        timeout,
        priority: priority_of(&request.parameters)?,
        features,
        began_ns: 0,
        is_raw,
        id: request.id,
    };
    Some((asked, inputs))
}

fn is_row(array: &Array, spec: &Spec) -> bool {
    let is_one = array.shape.len() == 1 || (array.shape.len() == 2 && array.shape[0] == 1);
    is_one && array.data.len() / spec.datatype.size() <= MAX_FEATURES
}

type About = (String, Option<i64>, Option<Duration>);

fn about(parameters: &BTreeMap<String, InferParameter>) -> Option<About> {
    let (mut subject, mut event_time_us, mut timeout) = (String::new(), None, None);
    for (name, parameter) in parameters {
        match (name.as_str(), parameter.parameter_choice.as_ref()?) {
            ("volary_subject", Choice::StringParam(text)) => {
                if text.chars().count() > MAX_SUBJECT {
                    return None;
                }
                subject.clone_from(text);
            }
            ("volary_event_time", Choice::Int64Param(time_us)) => event_time_us = Some(*time_us),
            ("timeout", Choice::Int64Param(us)) => {
                timeout = Some(Duration::from_micros(u64::try_from(*us).ok()?));
            }
            ("timeout", Choice::Uint64Param(us)) => timeout = Some(Duration::from_micros(*us)),
            ("triton_enable_empty_final_response", Choice::BoolParam(_)) => {}
            ("priority", _) => {} // see `priority_of`
            _ => return None,
        }
    }
    let is_timeout = timeout.is_none_or(|timeout| !timeout.is_zero());
    is_timeout.then_some((subject, event_time_us, timeout))
}

/// The call's priority; None for what is none.
fn priority_of(parameters: &BTreeMap<String, InferParameter>) -> Option<u8> {
    let Some(parameter) = parameters.get("priority") else {
        return Some(NORMAL);
    };
    let asked = match parameter.parameter_choice.as_ref()? {
        Choice::Int64Param(asked) => u64::try_from(*asked).ok()?,
        Choice::Uint64Param(asked) => *asked,
        _ => return None,
    };
    match u8::try_from(asked).ok()? {
        0 => Some(NORMAL),
        asked => Some(asked).filter(|asked| *asked <= LAST),
    }
}

fn outputs_of(version: &Version, request: &ModelInferRequest) -> Option<Vec<usize>> {
    if request.outputs.is_empty() {
        return Some((0..version.outputs.len()).collect());
    }
    let places = request.outputs.iter().map(|asked| {
        let place = version
            .outputs
            .iter()
            .position(|spec| spec.name == asked.name);
        place.filter(|_| asked.parameters.is_empty())
    });
    places.collect()
}

/// The inputs in the order of the graph.
fn inputs_of(version: &Version, request: &ModelInferRequest) -> Option<Vec<Array>> {
    let raw = &request.raw_input_contents;
    if request.inputs.len() != version.inputs.len()
        || !(raw.is_empty() || raw.len() == request.inputs.len())
    {
        return None;
    }
    let arrays = version.inputs.iter().map(|spec| {
        // one that is given twice leaves another one missing
        let place = request
            .inputs
            .iter()
            .position(|input| input.name == spec.name)?;
        let input = &request.inputs[place];
        let is_fit = input.parameters.is_empty()
            && Datatype::of(&input.datatype) == Some(spec.datatype)
            && spec.fits(&input.shape);
        let expected = elements_of(&input.shape).filter(|_| is_fit)? * spec.datatype.size();
        let data = match (&input.contents, raw.get(place)) {
            (None, Some(raw)) => raw.clone(),
            (Some(contents), None) => spec.datatype.from_contents(contents)?,
            _ => return None,
        };
        let shape = input.shape.clone();
        let is_whole = data.len() == expected && !spec.datatype.has_nan(&data);
        is_whole.then_some(Array { shape, data })
    });
    let arrays: Vec<Array> = arrays.collect::<Option<_>>()?;
    let rows = arrays.first().map(|array| array.shape[0]);
    let is_even = arrays.iter().all(|array| Some(array.shape[0]) == rows);
    (is_even || !version.is_batched()).then_some(arrays)
}

/// Queue the rows and wait for them.
pub async fn run(
    loaded: &Loaded,
    inputs: Vec<Array>,
    (priority, deadline): (u8, Instant),
    cancelled: Arc<AtomicBool>,
    turn: &Arc<Turn>,
) -> Outcome {
    let rows = match inputs.first() {
        Some(array) if loaded.version.is_batched() => array.shape[0] as usize,
        _ => 1,
    };
    let flag = cancelled.clone();
    let place = (priority, deadline);
    let queued = match loaded.version.put(inputs, rows, place, flag, turn) {
        Ok(queued) => queued,
        Err(NoRoom::Closing) => return Outcome::NotHere,
        Err(NoRoom::Full(retry)) => {
            return overloaded(FULL, retry);
        }
        Err(NoRoom::Late(retry)) => {
            return overloaded(TOO_LATE, retry);
        }
    };
    let answer = if queued.is_timed {
        let _timed = turn.timed();
        let Ok(answer) = tokio::time::timeout_at(deadline.into(), queued.answer).await else {
            cancelled.store(true, Ordering::Relaxed);
            return late("the model did not answer in time");
        };
        answer
    } else {
        queued.answer.await // this thread runs it before it waits for anything
    };
    match answer {
        Ok(Ok(part)) => Outcome::Part(part),
        Ok(Err(NotRun::Expired)) => late("the call's time ran out while it waited for a batch"),
        Ok(Err(NotRun::Late)) => overloaded(TOO_LATE, LEAST_RETRY),
        Ok(Err(NotRun::Failed)) | Err(_) => Outcome::NotHere,
    }
}

fn overloaded(text: &str, retry_after: Duration) -> Outcome {
    let refusal = Refusal::new(Code::ResourceExhausted, "OVERLOADED", text);
    Outcome::Refused(refusal.retry_after(retry_after.max(LEAST_RETRY)))
}

fn late(text: &str) -> Outcome {
    let code = Code::DeadlineExceeded;
    Outcome::Refused(Refusal::new(code, "DEADLINE_EXCEEDED", text))
}

/// Look at a part; None when an output is NaN: Python says whose fault it is.
pub fn answered(asked: &Asked, part: Part) -> Option<Answered> {
    let mut confidence = None;
    for index in &asked.outputs {
        let (spec, array) = (&asked.loaded.version.outputs[*index], &part.outputs[*index]);
        if spec.datatype.has_nan(&array.data) {
            return None;
        }
        if confidence.is_none() && states_confidence(spec, array) {
            confidence = match &asked.loaded.version.calibration {
                None => spec.datatype.confidence(&array.data),
                Some(calibration) => calibrated(calibration, spec, array),
            };
        }
    }
    let decided = decided(asked, &part.outputs).cloned();
    Some(Answered {
        part,
        confidence,
        decided,
    })
}

/// The band of the score of a single row, where bands are declared.
fn decided<'a>(asked: &'a Asked, arrays: &[Array]) -> Option<&'a Arc<Band>> {
    let bands = asked.loaded.version.bands.get()?;
    let index = *asked.outputs.first()?;
    let (spec, array) = (&asked.loaded.version.outputs[index], &arrays[index]);
    if !is_one_a_row(array) || !spec.datatype.is_float() {
        return None;
    }
    match spec.datatype.numbers(&array.data)[..] {
        [score] => Some(bands.of(score)),
        _ => None,
    }
}

fn calibrated(calibration: &Calibration, spec: &Spec, array: &Array) -> Option<f64> {
    let scores = spec.datatype.numbers(&array.data).into_iter();
    let of = |score| {
        let p: f64 = calibration.probability(score);
        p.max(1.0 - p)
    };
    scores.map(of).reduce(f64::min)
}

/// Only an output named `probability` with one value a row states a confidence.
fn states_confidence(spec: &Spec, array: &Array) -> bool {
    spec.name == PROBABILITY && is_one_a_row(array) && spec.datatype.is_float()
}

fn is_one_a_row(array: &Array) -> bool {
    array.shape.len() == 1 || array.shape[1..] == [1]
}

#[cfg(test)]
mod tests {
    use prost::Message;

    use super::*;

    #[test]
    fn a_priority_is_a_number_from_1_to_3_and_2_without_one() {
        let of = |choice: Option<Choice>| {
            let mut request = ModelInferRequest::default();
            if let Some(choice) = choice {
                let parameter = InferParameter {
                    parameter_choice: Some(choice),
                };
                request.parameters.insert("priority".into(), parameter);
            }
            priority_of(&request.parameters)
        };
        assert_eq!(of(None), Some(NORMAL));
        assert_eq!(of(Some(Choice::Int64Param(0))), Some(NORMAL));
        assert_eq!(of(Some(Choice::Uint64Param(1))), Some(1));
        assert_eq!(of(Some(Choice::Int64Param(3))), Some(LAST));
        for other in [
            Choice::Int64Param(-1),
            Choice::Uint64Param(4),
            Choice::Uint64Param(257),
            Choice::BoolParam(true),
        ] {
            assert_eq!(of(Some(other)), None);
        }
    }

    #[test]
    fn parameters_are_seen_before_a_message_is_read() {
        let of = |id: &str, has_parameters: bool| {
            let mut request = ModelInferRequest {
                id: id.into(),
                raw_input_contents: vec![Bytes::from_static(b"123")],
                ..ModelInferRequest::default()
            };
            if has_parameters {
                let name = "priority".into();
                request.parameters.insert(name, InferParameter::default());
            }
            super::has_parameters(&request.encode_to_vec())
        };
        for id in ["", "7"] {
            assert!(of(id, true));
            assert!(!of(id, false));
        }
    }

    #[test]
    fn what_is_asked_for_is_known_by_the_first_fields() {
        let read = |model: &str, version: &str| {
            let request = ModelInferRequest {
                model_name: model.into(),
                model_version: version.into(),
                raw_input_contents: vec![Bytes::from_static(b"123")],
                ..ModelInferRequest::default()
            };
            let data = request.encode_to_vec();
            let mut left = &data[..];
            let found = (named(&mut left, 1), named(&mut left, 2));
            (found.0.map(str::to_owned), found.1.map(str::to_owned))
        };
        assert_eq!(read("m", "7"), (Some("m".into()), Some("7".into())));
        assert_eq!(read("m", ""), (Some("m".into()), None));
        assert_eq!(read("", "7").0, None);
        assert_eq!(
            read(&"m".repeat(128), "").0,
            None,
            "it is read as a whole then"
        );
        for cut in [&[][..], &[0x0a], &[0x0a, 2, b'm'], &[0x0a, 1, 0xff]] {
            assert_eq!(named(&mut &cut[..], 1), None, "{cut:?}");
        }
    }
}
