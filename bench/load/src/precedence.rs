//! The load goes before whatever else has its core: it is the clock that everything is measured by.

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

/// Ask for short turns: who asks for less than the one that runs takes its place on waking. Before
/// Linux 6.12 that changes nothing.
pub fn go_first() {
    // SAFETY: the struct lives for as long as the call and says how long it is; 0 is this thread
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
