//! The native data plane of Volary's inference service.
//!
//! It owns sockets, protobuf, admission, batching, runs and replies of the hot methods; Python
//! stays the control plane and answers everything else behind it.

mod calls;
pub mod contract;
pub mod credentials;
mod infer;
mod plane;
pub mod queue;
pub mod records;
pub mod run_times;
mod server;
pub mod tensors;
mod upstream;
mod version;
mod wire;

mod python;
