//! What Python sees: the plane, and the versions that it loads into it.

use std::collections::HashMap;
use std::net::TcpListener;
use std::panic::catch_unwind;
use std::path::PathBuf;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use http::header::HeaderValue;
use pyo3::exceptions::{PyOSError, PyRuntimeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::PyBytes;

use crate::calibration::Calibration;
use crate::contract::rows_of;
use crate::decisions::{Band, Bands};
use crate::noted::Noted;
use crate::plane::{Counted, Loaded, Plane, Table};
use crate::queue::CLOSINGS;
use crate::records::{Identity, Records};
use crate::server::Server;
use crate::tensors::Datatype;
use crate::upstream::Upstream;
use crate::version::{locked, Array, Spec, Total, Version};

const MAX_QUEUED_ROWS: usize = 65_536;

type SpecRow = (String, String, Vec<i64>);
type TotalRow = (u64, f64);

/// Open onnxruntime's shared library; once, before any version is loaded. RuntimeError when that
/// cannot be: a library that is not there, or too old, is a panic of the crate's.
#[pyfunction]
fn open_runtime(path: &str) -> PyResult<()> {
    let opened = catch_unwind(|| ort::init_from(path).with_telemetry(false).commit());
    let problem = match opened {
        Ok(Ok(_)) => return Ok(()),
        Ok(Err(error)) => error.to_string(),
        Err(panic) => match panic.downcast::<String>() {
            Ok(text) => *text,
            Err(_) => "it does not fit this module".to_owned(),
        },
    };
    Err(PyRuntimeError::new_err(problem))
}

/// A version in the plane: its session and its batching thread.
#[pyclass(frozen)]
struct NativeVersion {
    version: Arc<Version>,
}

#[pymethods]
impl NativeVersion {
    /// Load a graph; ValueError for a datatype that is not served here. `calibration` is scores
    /// and their probabilities.
    #[new]
    #[pyo3(signature = (graph, inputs, outputs, calibration, max_rows, max_delay_us))]
    fn load(
        py: Python<'_>,
        graph: &[u8],
        inputs: Vec<SpecRow>,
        outputs: Vec<SpecRow>,
        calibration: Option<(Vec<f64>, Vec<f64>)>,
        max_rows: usize,
        max_delay_us: u64,
    ) -> PyResult<Self> {
        let calibration = calibration.map(|(scores, probabilities)| {
            let found = Calibration::new(scores, probabilities);
            found.ok_or(PyValueError::new_err("the calibration is no rising list"))
        });
        let calibration = calibration.transpose()?;
        let (inputs, outputs) = (specs_of(inputs)?, specs_of(outputs)?);
        let delay = Duration::from_micros(max_delay_us);
        let load = || {
            let most = MAX_QUEUED_ROWS;
            Version::load(graph, inputs, outputs, calibration, max_rows, delay, most)
        };
        py.detach(load)
            .map(|version| NativeVersion { version })
            .map_err(|error| PyRuntimeError::new_err(error.to_string()))
    }

    /// The probabilities of scores, by the calibration that it was loaded with.
    fn calibrated(&self, scores: Vec<f64>) -> Vec<f64> {
        let of = |score: f64| match &self.version.calibration {
            Some(calibration) => calibration.probability(score),
            None => score,
        };
        scores.into_iter().map(of).collect()
    }

    /// Say what its scores mean, (below, code, action) a band, and whether Python has lower tiers;
    /// ValueError unless the last band alone has no bound.
    fn declare(&self, bands: Vec<(Option<f64>, String, String)>, has_tiers: bool) -> PyResult<()> {
        self.version.has_tiers.store(has_tiers, Ordering::Relaxed);
        if bands.is_empty() {
            return Ok(());
        }
        let of = |(below, code, action)| Band {
            below,
            code,
            action,
        };
        let bands = Bands::new(bands.into_iter().map(of).collect());
        let bands = bands.ok_or(PyValueError::new_err("the last band has no bound"))?;
        let _ = self.version.bands.set(bands); // a version is declared once
        Ok(())
    }

    /// Note its runs in the byte at `offset` of a journal; OSError when that cannot be mapped.
    fn note_in(&self, journal: PathBuf, offset: usize) -> PyResult<()> {
        let _ = self.version.noted.set(Noted::open(&journal, offset)?);
        Ok(())
    }

    /// Start the batching thread.
    fn start(&self, name: &str) -> PyResult<()> {
        Ok(self.version.start(name)?)
    }

    /// Run once on raw inputs in the graph's order; return each output's shape and bytes.
    /// A measured run tells admission how long so many rows take.
    fn run<'py>(
        &self,
        py: Python<'py>,
        inputs: Vec<(Vec<i64>, Vec<u8>)>,
        rows: usize,
        is_measured: bool,
    ) -> PyResult<Vec<(Vec<i64>, Bound<'py, PyBytes>)>> {
        let inputs: Vec<Array> = inputs
            .into_iter()
            .map(|(shape, data)| Array {
                shape,
                data: Bytes::from(data),
            })
            .collect();
        let outputs = py
            .detach(|| self.version.run_once(&inputs, rows, is_measured))
            .map_err(PyRuntimeError::new_err)?;
        Ok(outputs
            .into_iter()
            .map(|array| (array.shape, PyBytes::new(py, &array.data)))
            .collect())
    }

    /// Take no more and answer what is queued; say whether all was answered in time.
    fn close(&self, py: Python<'_>, within_s: f64) -> bool {
        py.detach(|| self.version.close(Duration::from_secs_f64(within_s)))
    }

    /// The counters since it was loaded.
    fn statistics(&self) -> StatisticsRow {
        let found = self.version.statistics().clone();
        let row = |total: Total| (total.count, total.seconds);
        StatisticsRow {
            success: row(found.success),
            failure: row(found.failure),
            queue: row(found.queue),
            run: row(found.run),
            rows: found.rows,
            last_us: found.last_us,
            recent_queue_s: found.recent_queue_s,
            by_batch_size: found
                .by_batch_size
                .into_iter()
                .map(|(size, total)| (size, row(total)))
                .collect(),
            closings: CLOSINGS
                .iter()
                .map(|(closing, name)| ((*name).to_owned(), found.closings[*closing as usize]))
                .filter(|(_, count)| *count > 0)
                .collect(),
            dropped: [("expired", found.expired), ("cancelled", found.cancelled)]
                .into_iter()
                .filter(|(_, count)| *count > 0)
                .map(|(name, count)| (name.to_owned(), count))
                .collect(),
        }
    }
}

/// Counters of a version; totals are (count, seconds).
#[pyclass(frozen, get_all)]
struct StatisticsRow {
    success: TotalRow,
    failure: TotalRow,
    queue: TotalRow,
    run: TotalRow,
    rows: u64,
    last_us: i64,
    recent_queue_s: f64,
    by_batch_size: HashMap<usize, TotalRow>,
    closings: HashMap<String, u64>,
    dropped: HashMap<String, u64>,
}

/// A version that answers calls: project, model, number, digest, and what it runs with.
type VersionRow = (String, String, i64, String, Py<NativeVersion>);

/// The data plane of one process.
#[pyclass(frozen)]
struct DataPlane {
    plane: Arc<Plane>,
    server: Mutex<Option<Server>>,
}

#[pymethods]
impl DataPlane {
    /// `rows` is the text of methods.json, `socket` where the Python engine listens,
    /// `edges_s` the histogram's, `resource` the spans' serialized Resource, None for no spans.
    #[new]
    #[pyo3(signature = (rows, jwks, revocations, socket, edges_s, max_calls, events, spans, resource))]
    #[allow(clippy::too_many_arguments)] // once, by keyword
    fn new(
        rows: &str,
        jwks: Option<PathBuf>,
        revocations: Option<PathBuf>,
        socket: PathBuf,
        edges_s: Vec<f64>,
        max_calls: usize,
        events: usize,
        spans: usize,
        resource: Option<Vec<u8>>,
    ) -> PyResult<Self> {
        let made = rows_of(rows).and_then(|rows| {
            let records = Records::new(events, spans, resource.as_deref())?;
            let upstream = Upstream::new(socket);
            Plane::new(
                &rows,
                jwks,
                revocations,
                edges_s,
                max_calls,
                records,
                upstream,
            )
        });
        Ok(DataPlane {
            plane: Arc::new(made.map_err(PyValueError::new_err)?),
            server: Mutex::new(None),
        })
    }

    /// Bind and take calls; return the port. OSError when the port is taken.
    fn start(&self, host: &str, port: u16) -> PyResult<u16> {
        let listener = TcpListener::bind((host, port))?;
        let port = listener.local_addr()?.port();
        let server = Server::start(listener, self.plane.clone());
        *locked(&self.server) = Some(server.map_err(PyOSError::new_err)?);
        Ok(port)
    }

    /// Say how long a message of a stream may take; before the first call.
    fn set_stream_timeout(&self, timeout_s: f64) {
        let timeout = Duration::from_secs_f64(timeout_s);
        self.plane.set_stream_timeout(timeout);
    }

    /// Take no new call, let those in flight finish within the grace.
    fn stop(&self, py: Python<'_>, grace_s: f64) {
        if let Some(server) = locked(&self.server).take() {
            py.detach(|| server.stop(Duration::from_secs_f64(grace_s)));
        }
    }

    /// Replace the table: the versions that answer here, and each model's production version.
    fn publish(
        &self,
        versions: Vec<VersionRow>,
        production: Vec<(String, String, i64)>,
    ) -> PyResult<()> {
        let mut table = Table::default();
        for (project, model, version, digest, native) in versions {
            let number = HeaderValue::from(version);
            let place = table.entry(project.clone()).or_default();
            let about = Arc::new(Identity {
                project,
                model: model.clone(),
                version,
                digest,
            });
            let loaded = Loaded {
                about,
                version: native.get().version.clone(),
                number,
            };
            let place = place.entry(model).or_default();
            place.versions.insert(version, Arc::new(loaded));
        }
        for (project, model, version) in production {
            if let Some(found) = table.get_mut(&project).and_then(|of| of.get_mut(&model)) {
                found.production = Some(version);
            }
        }
        self.plane.set_table(table);
        Ok(())
    }

    /// Say which services take calls; what is not named, Python is asked for.
    fn set_health(&self, health: HashMap<String, bool>) {
        self.plane.set_health(health);
    }

    /// Take prediction events, serialized `volary.events.v1.Event`: how many, and all of them as
    /// bulk strings of Redis's protocol. Waits for the first one, then a moment for more.
    fn take_events<'py>(
        &self,
        py: Python<'py>,
        limit: usize,
        wait_s: f64,
    ) -> (usize, Bound<'py, PyBytes>) {
        let wait = Duration::from_secs_f64(wait_s);
        let (count, bulk) = py.detach(|| self.plane.records.take_events(limit, wait));
        (count, PyBytes::new(py, &bulk))
    }

    /// Take spans: how many, and the serialized `ExportTraceServiceRequest`.
    fn take_spans<'py>(
        &self,
        py: Python<'py>,
        limit: usize,
        wait_s: f64,
    ) -> (usize, Bound<'py, PyBytes>) {
        let wait = Duration::from_secs_f64(wait_s);
        let (count, data) = py.detach(|| self.plane.records.take_spans(limit, wait));
        (count, PyBytes::new(py, &data))
    }

    /// Events and spans that found their ring full since the last time.
    fn take_dropped(&self) -> (u64, u64) {
        let records = &self.plane.records;
        (
            records.predictions.take_dropped(),
            records.spans.take_dropped(),
        )
    }

    /// Events that wait to be taken.
    fn queued_events(&self) -> usize {
        self.plane.records.predictions.waiting()
    }

    /// Calls that ended since the last time: (method, {code: calls}, buckets, seconds).
    fn take_counts(&self) -> Vec<Counted<HashMap<&'static str, u64>>> {
        let taken = self.plane.take_counts().into_iter();
        taken
            .map(|(path, codes, buckets, s)| (path, codes.into_iter().collect(), buckets, s))
            .collect()
    }

    /// Calls that are in flight here; those that were handed over are not.
    fn in_flight(&self) -> usize {
        self.plane.in_flight()
    }
}

fn specs_of(rows: Vec<SpecRow>) -> PyResult<Vec<Spec>> {
    rows.into_iter()
        .map(|(name, datatype, shape)| {
            let found = Datatype::of(&datatype);
            let datatype = found.ok_or(PyValueError::new_err(format!("{datatype} is Python's")))?;
            Ok(Spec {
                name,
                datatype,
                shape,
            })
        })
        .collect()
}

#[pymodule]
fn volary_inference_engine(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_function(wrap_pyfunction!(open_runtime, module)?)?;
    module.add_class::<NativeVersion>()?;
    module.add_class::<StatisticsRow>()?;
    module.add_class::<DataPlane>()
}
