//! The native data plane of Volary's inference service.
//!
//! It owns sockets, protobuf, admission, batching, runs and replies of the hot methods; Python
//! stays the control plane and answers everything else behind it.

pub mod calibration;
mod calls;
pub mod contract;
pub mod credentials;
pub mod decisions;
mod events;
mod fields;
mod infer;
mod load;
mod messages;
pub mod noted;
mod overload;
mod plane;
pub mod queue;
pub mod records;
mod replies;
pub mod run_times;
mod running;
mod server;
mod share;
mod socket;
mod spans;
mod stream;
pub mod tensors;
mod threads;
mod turns;
mod upstream;
mod version;
mod wire;

mod python;

// what one thread makes another one throws away: glibc's allocator takes locks for that
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;
