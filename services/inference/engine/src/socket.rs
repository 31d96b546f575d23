//! A connection's socket as HTTP/2 uses it here: much is read at once, and written together.
//!
//! HTTP/2 asks for eight KiB at a time, and sends what is longer than a few hundred bytes by a call
//! of the system's own where a socket can write from many places. Both are right for large bodies;
//! under calls of some hundred bytes each they cost more than all that is done for the call.

use std::io;
use std::pin::Pin;
use std::task::{ready, Context, Poll};

use hyper::rt::{Read, ReadBufCursor, Write};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

const AT_ONCE: usize = 64 << 10;

/// A socket that is read ahead, and that writes from one place.
pub struct Socket {
    stream: TcpStream,
    held: Box<[u8]>,
    from: usize,
    to: usize,
}

impl Socket {
    pub fn new(stream: TcpStream) -> Self {
        Socket {
            stream,
            held: vec![0; AT_ONCE].into_boxed_slice(),
            from: 0,
            to: 0,
        }
    }
}

impl Read for Socket {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        mut into: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if this.from == this.to {
            let mut held = ReadBuf::new(&mut this.held);
            ready!(Pin::new(&mut this.stream).poll_read(context, &mut held))?;
            (this.from, this.to) = (0, held.filled().len());
        }
        let count = into.remaining().min(this.to - this.from);
        into.put_slice(&this.held[this.from..this.from + count]);
        this.from += count;
        Poll::Ready(Ok(()))
    }
}

impl Write for Socket {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        data: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, data)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
