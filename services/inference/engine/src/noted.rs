//! A byte that is 1 while a version runs, in the mapped file of the Python engine's run journal.
//!
//! The file outlives a crash: the next process reads there what ran. Two stores into memory a run.

use std::fs::OpenOptions;
use std::io;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU8, Ordering};

const PAGE: usize = 4_096;

/// The page of the journal that holds a version's byte.
pub struct Noted {
    page: NonNull<libc::c_void>,
    at: usize,
}

// SAFETY: the page is only ever touched by atomic stores, and unmapped when nobody has it any more
unsafe impl Send for Noted {}
unsafe impl Sync for Noted {}

impl Noted {
    /// Map the page of the byte at `offset` of a journal.
    pub fn open(journal: &Path, offset: usize) -> io::Result<Self> {
        let file = OpenOptions::new().read(true).write(true).open(journal)?;
        if offset as u64 >= file.metadata()?.len() {
            // a page beyond the end may be mapped, and kills whoever writes to it
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        // SAFETY: a new shared mapping of a file that is open and long enough
        let page = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                PAGE,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                file.as_raw_fd(),
                (offset - offset % PAGE) as libc::off_t,
            )
        };
        if page == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let page = NonNull::new(page).ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(Noted {
            page,
            at: offset % PAGE,
        })
    }

    /// Say that the version runs, until the note is dropped.
    pub fn running(&self) -> Running<'_> {
        self.set(1);
        Running(self)
    }

    fn set(&self, value: u8) {
        // SAFETY: the byte lies in the page, which is mapped as long as this lives
        let byte = unsafe { AtomicU8::from_ptr(self.page.as_ptr().cast::<u8>().add(self.at)) };
        byte.store(value, Ordering::SeqCst);
    }
}

impl Drop for Noted {
    fn drop(&mut self) {
        // SAFETY: it was mapped with this size, and nobody has a reference into it
        unsafe { libc::munmap(self.page.as_ptr(), PAGE) };
    }
}

/// Lasts as long as a run.
pub struct Running<'a>(&'a Noted);

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.0.set(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_byte_is_set_while_something_runs_and_no_other_is_touched() {
        let path = std::env::temp_dir().join(format!("journal-{}", fastrand::u64(..)));
        std::fs::write(&path, vec![7; 3 * PAGE]).unwrap();
        let offset = PAGE + 72;
        let noted = Noted::open(&path, offset).unwrap();
        let changed = |expected: u8| {
            let found = std::fs::read(&path).unwrap();
            assert_eq!(found[offset], expected);
            assert_eq!(found.iter().filter(|byte| **byte != 7).count(), 1);
        };
        let running = noted.running();
        changed(1);
        drop(running);
        changed(0);
        drop(noted);
        assert!(Noted::open(&path, 3 * PAGE).is_err(), "beyond the end");
        std::fs::remove_file(&path).unwrap();
    }
}
