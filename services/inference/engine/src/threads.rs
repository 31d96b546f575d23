//! Which thread goes first where cores are scarce: the one of the sockets, before runs and records.
//!
//! No call waits in a socket unseen while its time runs out, and a refusal comes at once.

const NICER: i32 = 5;
/// How long the thread of the sockets wants to run at a time. One that asks for less than the one
/// that runs takes its place as soon as it wakes, instead of at the end of that one's slice.
const SLICE_NS: u64 = 100_000; // the least that the system knows

/// `struct sched_attr` of sched_setattr(2), as far as normal threads have need of it.
#[repr(C)]
struct Attributes {
    size: u32,
    policy: u32,
    flags: u64,
    nice: i32,
    priority: u32,
    runtime: u64,
    deadline: u64,
    period: u64,
}

/// Let this thread run as soon as it has something to do; before Linux 6.12 that changes nothing.
pub fn go_first() {
    // SAFETY: on Linux niceness and attributes are a thread's, and 0 is this one; the struct lives
    // for as long as the call and says how long it is
    unsafe {
        let attributes = Attributes {
            size: std::mem::size_of::<Attributes>() as u32,
            policy: libc::SCHED_OTHER as u32,
            flags: 0,
            nice: libc::getpriority(libc::PRIO_PROCESS, 0),
            priority: 0,
            runtime: SLICE_NS,
            deadline: 0,
            period: 0,
        };
        libc::syscall(libc::SYS_sched_setattr, 0, &attributes, 0);
    }
}

/// Lower this thread's own priority.
pub fn give_way() {
    // SAFETY: no memory is handed over; on Linux niceness is a thread's, and 0 is this one
    unsafe {
        let nice = libc::getpriority(libc::PRIO_PROCESS, 0);
        libc::setpriority(libc::PRIO_PROCESS, 0, nice + NICER);
    }
}
