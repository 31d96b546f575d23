//! One loaded version: its session, its queue, and the thread that empties it.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::{Builder, JoinHandle};
use std::time::{Duration, Instant};

use bytes::Bytes;
use ort::memory::Allocator;
use ort::session::{Session, SessionInputValue};
use ort::value::{DynTensor, DynTensorValueType, ValueType};
use tokio::sync::oneshot;

use crate::calibration::Calibration;
use crate::decisions::Bands;
use crate::load::RecentLoad;
use crate::noted::Noted;
use crate::queue::{Closing, Entry, NoRoom, Policy, Queue, Step, Waiting, CLOSINGS, NORMAL};
use crate::tensors::Datatype;
use crate::threads;
use crate::turns::Turn;

/// A full batch that takes no longer than this may run on the I/O thread: no other call waits
/// longer for it than the system's own time slices make it wait.
const TURN: Duration = Duration::from_micros(500);

/// One input or output of the graph; -1 is a size that varies.
#[derive(Clone, Debug)]
pub struct Spec {
    pub name: String,
    pub datatype: Datatype,
    pub shape: Vec<i64>,
}

impl Spec {
    pub fn fits(&self, shape: &[i64]) -> bool {
        self.shape.len() == shape.len()
            && self
                .shape
                .iter()
                .zip(shape)
                .all(|(size, got)| *size == -1 || size == got)
    }
}

/// A tensor's shape and row-major bytes.
#[derive(Clone, Debug)]
pub struct Array {
    pub shape: Vec<i64>,
    pub data: Bytes,
}

/// What a call gets of a run: its own rows of every output.
#[derive(Debug)]
pub struct Part {
    pub outputs: Vec<Array>,
    pub batch_rows: usize,
    pub queued: Duration,
}

/// Why a call got nothing of a run.
#[derive(Debug, PartialEq, Eq)]
pub enum NotRun {
    /// Its time ran out in the queue.
    Expired,
    /// It would have been answered too late, and made room for others.
    Late,
    /// The graph failed on its rows.
    Failed,
}

pub type Answer = oneshot::Receiver<Result<Part, NotRun>>;

/// What a call gets, on its way to where it waits.
pub struct Reply {
    to: oneshot::Sender<Result<Part, NotRun>>,
    what: Result<Part, NotRun>,
}

impl Reply {
    pub fn send(self) {
        let _ = self.to.send(self.what); // nobody waits any more: it was cancelled
    }
}

/// One call's rows in the queue, in the order of the graph's inputs.
pub struct Ticket {
    inputs: Vec<Array>,
    rows: usize,
    priority: u8,
    cancelled: Arc<AtomicBool>,
    reply: oneshot::Sender<Result<Part, NotRun>>,
}

impl Ticket {
    fn gets(self, what: Result<Part, NotRun>) -> Reply {
        let to = self.reply;
        Reply { to, what }
    }
}

impl Waiting for Ticket {
    fn rows(&self) -> usize {
        self.rows
    }

    fn priority(&self) -> u8 {
        self.priority
    }

    fn is_cancelled(&self) -> bool {
        self.cancelled.load(Ordering::Relaxed) || self.reply.is_closed()
    }

    fn joins(&self, other: &Self) -> bool {
        let pairs = self.inputs.iter().zip(&other.inputs);
        pairs.clone().all(|(a, b)| a.shape[1..] == b.shape[1..])
    }
}

/// How often, and how long in all.
#[derive(Clone, Copy, Debug, Default)]
pub struct Total {
    pub count: u64,
    pub seconds: f64,
}

impl Total {
    pub fn add(&mut self, time: Duration) {
        self.count += 1;
        self.seconds += time.as_secs_f64();
    }
}

/// Counts and durations of a version since it was loaded.
#[derive(Clone, Debug, Default)]
pub struct Statistics {
    pub success: Total,
    pub failure: Total,
    pub queue: Total,
    pub run: Total,
    pub rows: u64,
    pub last_us: i64,
    pub recent_queue_s: f64,
    pub load: RecentLoad,
    pub by_batch_size: BTreeMap<usize, Total>,
    pub closings: [u64; CLOSINGS.len()],
    pub expired: u64,
    pub cancelled: u64,
}

/// A place in the queue: where the answer comes, and whether a timer has to watch for it.
pub struct Queued {
    pub answer: Answer,
    pub is_timed: bool,
}

pub struct Version {
    pub inputs: Vec<Spec>,
    pub outputs: Vec<Spec>,
    pub calibration: Option<Calibration>,
    /// What a score means, where that is declared.
    pub bands: OnceLock<Bands>,
    /// Whether Python has an answer of a lower tier to a call that there is no room for.
    pub has_tiers: AtomicBool,
    /// Where its runs are noted, for whoever asks after a crash what ran.
    pub noted: OnceLock<Noted>,
    policy: Policy,
    // every row takes as long as any other, and nobody asked to wait for more of them
    is_even: bool,
    session: Mutex<Session>,
    queue: Mutex<Queue<Ticket>>,
    changed: Condvar,
    turn: OnceLock<Arc<Turn>>,
    statistics: Mutex<Statistics>,
    thread: Mutex<Option<JoinHandle<()>>>,
    is_ended: (Mutex<bool>, Condvar),
}

/// A lock whose holder panicked is still a lock: its data are counters and queues.
pub fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Version {
    /// Load a graph; one thread a session, as only the batching thread runs it.
    pub fn load(
        graph: &[u8],
        inputs: Vec<Spec>,
        outputs: Vec<Spec>,
        calibration: Option<Calibration>,
        max_rows: usize,
        max_delay: Duration,
        max_queued_rows: usize,
    ) -> ort::Result<Arc<Self>> {
        let session = Session::builder()?
            .with_intra_threads(1)?
            .with_inter_threads(1)?
            .with_intra_op_spinning(false)?
            .commit_from_memory(graph)?;
        let is_batched = inputs
            .iter()
            .chain(&outputs)
            .all(|spec| spec.shape.first() == Some(&-1));
        let policy = Policy {
            max_rows,
            max_delay,
            max_queued_rows,
            is_batched,
        };
        let is_fixed = |spec: &Spec| spec.shape.iter().skip(1).all(|size| *size > 0);
        let is_even = max_delay.is_zero() && inputs.iter().all(is_fixed);
        Ok(Arc::new(Version {
            inputs,
            outputs,
            calibration,
            bands: OnceLock::new(),
            has_tiers: AtomicBool::new(false),
            noted: OnceLock::new(),
            policy,
            is_even,
            session: Mutex::new(session),
            queue: Mutex::new(Queue::new(policy, Instant::now())),
            changed: Condvar::new(),
            turn: OnceLock::new(),
            statistics: Mutex::default(),
            thread: Mutex::default(),
            is_ended: (Mutex::new(false), Condvar::new()),
        }))
    }

    /// Start the batching thread.
    pub fn start(self: &Arc<Self>, name: &str) -> std::io::Result<()> {
        let version = self.clone();
        let thread = Builder::new()
            .name(format!("batch {name}"))
            .spawn(move || {
                version.work();
                *locked(&version.is_ended.0) = true;
                version.is_ended.1.notify_all();
            })?;
        *locked(&self.thread) = Some(thread);
        Ok(())
    }

    pub fn is_batched(&self) -> bool {
        self.policy.is_batched
    }

    pub fn statistics(&self) -> MutexGuard<'_, Statistics> {
        locked(&self.statistics)
    }

    /// Why one more row would find no room, if it would find none.
    pub fn refusal(&self, deadline: Instant, now: Instant) -> Option<NoRoom> {
        locked(&self.queue).refusal(1, (NORMAL, deadline), now)
    }

    /// Queue one call's rows, or say why there is no room.
    pub fn put(
        self: &Arc<Self>,
        inputs: Vec<Array>,
        rows: usize,
        (priority, deadline): (u8, Instant),
        cancelled: Arc<AtomicBool>,
        turn: &Arc<Turn>,
    ) -> Result<Queued, NoRoom> {
        let (reply, answer) = oneshot::channel();
        self.turn.get_or_init(|| turn.clone());
        let ticket = Ticket {
            inputs,
            rows,
            priority,
            cancelled,
            reply,
        };
        let mut queue = locked(&self.queue);
        let was_empty = queue.is_empty();
        let had_gathered = queue.has_gathered();
        queue.put(ticket, deadline, Instant::now())?;
        let is_full = queue.is_full();
        let is_gathered = !had_gathered && queue.has_gathered();
        let is_small = self.is_even && queue.run_times.remembered(self.policy.max_rows) <= TURN;
        drop(queue);
        if !is_small {
            // a busy thread looks by itself; one that waits for more may have to close now
            if was_empty || is_gathered || !self.policy.max_delay.is_zero() {
                self.changed.notify_one();
            }
        } else if is_full {
            self.run_queued();
        } else {
            turn.add(self);
        }
        Ok(Queued {
            answer,
            is_timed: !is_small,
        })
    }

    /// Run all that is queued in this thread.
    pub fn run_queued(&self) {
        let (mut dropped, mut replies) = (Vec::new(), Vec::new());
        loop {
            let now = Instant::now();
            let step = locked(&self.queue).step(now, &mut dropped);
            if !dropped.is_empty() {
                self.drop_unrun(&mut dropped, now, &mut replies);
            }
            let is_over = match step {
                Step::Run(batch, closing) => {
                    self.run(batch, closing, now, &mut replies);
                    false
                }
                Step::Wait(_) | Step::End => true,
            };
            replies.drain(..).for_each(Reply::send);
            if is_over {
                return;
            }
        }
    }

    /// Take no more and answer what is queued; say whether all was answered in time.
    pub fn close(&self, within: Duration) -> bool {
        locked(&self.queue).close();
        self.changed.notify_one();
        if locked(&self.thread).is_none() {
            return true;
        }
        let ended = locked(&self.is_ended.0);
        let waited = self
            .is_ended
            .1
            .wait_timeout_while(ended, within, |ended| !*ended);
        let is_ended = *waited.unwrap_or_else(PoisonError::into_inner).0;
        if is_ended {
            if let Some(thread) = locked(&self.thread).take() {
                drop(thread.join());
            }
        }
        is_ended
    }

    /// Run the graph once, outside of any batch; a measured run counts for admission.
    pub fn run_once(
        &self,
        inputs: &[Array],
        rows: usize,
        is_measured: bool,
    ) -> Result<Vec<Array>, String> {
        let shapes: Vec<Vec<i64>> = inputs.iter().map(|array| array.shape.clone()).collect();
        let parts: Vec<[&Bytes; 1]> = inputs.iter().map(|array| [&array.data]).collect();
        let parts: Vec<&[&Bytes]> = parts.iter().map(|part| &part[..]).collect();
        let began = Instant::now();
        let outputs = self.run_graph(&shapes, &parts)?;
        if is_measured {
            let now = Instant::now();
            locked(&self.queue).ended(rows, now - began, now);
        }
        Ok(outputs)
    }

    fn work(&self) {
        threads::give_way();
        let (mut dropped, mut replies) = (Vec::new(), Vec::new());
        let mut queue = locked(&self.queue);
        loop {
            let now = Instant::now();
            let step = match queue.gathering(now) {
                Some(wait) => Step::Wait(Some(wait)),
                None => queue.step(now, &mut dropped),
            };
            if !dropped.is_empty() {
                self.drop_unrun(&mut dropped, now, &mut replies);
                self.deliver(&mut replies);
            }
            queue = match step {
                Step::End => return,
                Step::Wait(None) => self
                    .changed
                    .wait(queue)
                    .unwrap_or_else(PoisonError::into_inner),
                Step::Wait(Some(wait)) => {
                    self.changed
                        .wait_timeout(queue, wait)
                        .unwrap_or_else(PoisonError::into_inner)
                        .0
                }
                Step::Run(batch, closing) => {
                    drop(queue);
                    self.run(batch, closing, now, &mut replies);
                    self.deliver(&mut replies);
                    locked(&self.queue)
                }
            };
        }
    }

    /// Hand over what this thread ran; only calls of a turn are ever queued.
    fn deliver(&self, replies: &mut Vec<Reply>) {
        if let Some(turn) = self.turn.get() {
            turn.deliver(replies);
        }
    }

    fn drop_unrun(&self, dropped: &mut Vec<Entry<Ticket>>, now: Instant, replies: &mut Vec<Reply>) {
        let mut statistics = self.statistics();
        for entry in dropped.drain(..) {
            if entry.waiting.is_cancelled() {
                statistics.cancelled += 1;
            } else {
                statistics.expired += 1;
                let is_over = entry.deadline <= now;
                let why = if is_over {
                    NotRun::Expired
                } else {
                    NotRun::Late
                };
                replies.push(entry.waiting.gets(Err(why)));
            }
        }
    }

    /// Run a batch; one that fails is run again call by call, so that a poisoned one fails alone.
    fn run(
        &self,
        batch: Vec<Entry<Ticket>>,
        closing: Closing,
        began: Instant,
        replies: &mut Vec<Reply>,
    ) {
        let rows: usize = batch.iter().map(|entry| entry.waiting.rows).sum();
        match self.run_together(&batch, rows) {
            Ok(outputs) => {
                let now = Instant::now();
                let took = now - began;
                let late = batch.iter().filter(|entry| entry.deadline <= now).count();
                let mut queue = locked(&self.queue);
                queue.ended(rows, took, now);
                queue.saw(batch.len() - late, late);
                drop(queue);
                self.note_run(rows, took, closing);
                self.answer(batch, &outputs, rows, began, replies);
            }
            Err(_) if batch.len() == 1 => {
                let failed = |entry: Entry<Ticket>| entry.waiting.gets(Err(NotRun::Failed));
                replies.extend(batch.into_iter().map(failed));
            }
            Err(_) => {
                for entry in batch {
                    self.run(vec![entry], closing, Instant::now(), replies);
                }
            }
        }
    }

    fn note_run(&self, rows: usize, took: Duration, closing: Closing) {
        let mut statistics = self.statistics();
        statistics.run.add(took);
        statistics.rows += rows as u64;
        statistics.by_batch_size.entry(rows).or_default().add(took);
        statistics.closings[closing as usize] += 1;
    }

    fn run_together(&self, batch: &[Entry<Ticket>], rows: usize) -> Result<Vec<Array>, String> {
        let first = &batch[0].waiting;
        let mut shapes: Vec<Vec<i64>> = Vec::with_capacity(first.inputs.len());
        let mut parts: Vec<Vec<&Bytes>> = Vec::with_capacity(first.inputs.len());
        for (index, array) in first.inputs.iter().enumerate() {
            let mut shape = array.shape.clone();
            if self.policy.is_batched {
                shape[0] = rows as i64;
            }
            shapes.push(shape);
            let datas = batch.iter().map(|entry| &entry.waiting.inputs[index].data);
            parts.push(datas.collect());
        }
        let parts: Vec<&[&Bytes]> = parts.iter().map(|part| &part[..]).collect();
        let outputs = self.run_graph(&shapes, &parts)?;
        let is_whole = |array: &Array| array.shape.first() == Some(&(rows as i64));
        if self.policy.is_batched && !outputs.iter().all(is_whole) {
            return Err(format!("the graph gave another number of rows than {rows}"));
        }
        Ok(outputs)
    }

    fn answer(
        &self,
        batch: Vec<Entry<Ticket>>,
        outputs: &[Array],
        rows: usize,
        began: Instant,
        replies: &mut Vec<Reply>,
    ) {
        let mut start = 0;
        for entry in batch {
            let end = start + entry.waiting.rows;
            let own = outputs.iter().map(|array| {
                if !self.policy.is_batched {
                    return array.clone();
                }
                let mut shape = array.shape.clone();
                shape[0] = entry.waiting.rows as i64;
                let row_bytes = array.data.len() / rows;
                let data = array.data.slice(start * row_bytes..end * row_bytes);
                Array { shape, data }
            });
            let part = Part {
                outputs: own.collect(),
                batch_rows: rows,
                queued: began.saturating_duration_since(entry.enqueued),
            };
            replies.push(entry.waiting.gets(Ok(part)));
            start = end;
        }
    }

    /// Run the graph on inputs that are each the concatenation of their parts.
    fn run_graph(&self, shapes: &[Vec<i64>], parts: &[&[&Bytes]]) -> Result<Vec<Array>, String> {
        let allocator = Allocator::default();
        let mut values: Vec<SessionInputValue<'_>> = Vec::with_capacity(self.inputs.len());
        for ((spec, shape), parts) in self.inputs.iter().zip(shapes).zip(parts) {
            values.push(tensor_of(&allocator, spec, shape, parts)?.into());
        }
        let mut session = locked(&self.session);
        let _note = self.noted.get().map(Noted::running);
        let ran = session
            .run(&values[..])
            .map_err(|error| error.to_string())?;
        self.outputs
            .iter()
            .map(|spec| array_of(&ran[spec.name.as_str()], spec))
            .collect()
    }
}

fn tensor_of(
    allocator: &Allocator,
    spec: &Spec,
    shape: &[i64],
    parts: &[&Bytes],
) -> Result<DynTensor, String> {
    let element = spec.datatype.element();
    let mut tensor =
        DynTensor::new(allocator, element, shape.to_vec()).map_err(|error| error.to_string())?;
    let expected = shape.iter().product::<i64>() as usize * spec.datatype.size();
    if parts.iter().map(|part| part.len()).sum::<usize>() != expected {
        return Err(format!("{} has another size than its shape", spec.name));
    }
    let mut to = tensor.data_ptr_mut().cast::<u8>();
    for part in parts {
        // SAFETY: the tensor was allocated for its shape, which the parts fill exactly
        unsafe {
            std::ptr::copy_nonoverlapping(part.as_ptr(), to, part.len());
            to = to.add(part.len());
        }
    }
    Ok(tensor)
}

fn array_of(value: &ort::value::DynValue, spec: &Spec) -> Result<Array, String> {
    let ValueType::Tensor { ty, shape, .. } = value.dtype() else {
        return Err(format!("{} is no tensor", spec.name));
    };
    if *ty != spec.datatype.element() {
        return Err(format!("{} is of another datatype", spec.name));
    }
    let elements = shape.iter().product::<i64>() as usize;
    let tensor = value
        .downcast_ref::<DynTensorValueType>()
        .map_err(|error| error.to_string())?;
    // SAFETY: a CPU tensor of fixed-size elements holds as many as its shape says
    let data = unsafe {
        std::slice::from_raw_parts(
            tensor.data_ptr().cast::<u8>(),
            elements * spec.datatype.size(),
        )
    };
    Ok(Array {
        shape: shape.to_vec(),
        data: Bytes::copy_from_slice(data),
    })
}
