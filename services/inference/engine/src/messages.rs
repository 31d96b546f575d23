//! The messages of a stream's request, as its body brings them.

use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt;
use hyper::body::Incoming;

use crate::wire::PREFIX;

/// What is not a message.
pub enum Came {
    /// Its prefix announces so many bytes, more than there may be.
    TooLarge(usize),
    Broken,
    Gone,
}

/// The messages of a request, one after another, each with its prefix.
pub struct Messages {
    body: Incoming,
    held: BytesMut,
    limit: usize,
}

impl Messages {
    pub fn of(body: Incoming, limit: usize) -> Self {
        Messages {
            body,
            held: BytesMut::new(),
            limit,
        }
    }

    /// The next message, None at the end.
    pub async fn next(&mut self) -> Result<Option<Bytes>, Came> {
        loop {
            if let Some(length) = announced(&self.held) {
                if length > self.limit {
                    return Err(Came::TooLarge(length));
                }
                if self.held.len() >= PREFIX + length {
                    return Ok(Some(self.held.split_to(PREFIX + length).freeze()));
                }
            }
            match self.body.frame().await {
                None if self.held.is_empty() => return Ok(None),
                None => return Err(Came::Broken),
                Some(Err(_)) => return Err(Came::Gone),
                Some(Ok(frame)) => {
                    if let Ok(data) = frame.into_data() {
                        self.held.extend_from_slice(&data);
                    }
                }
            }
        }
    }
}

/// The length that the prefix of what was read announces; None while it is not there.
pub fn announced(held: &[u8]) -> Option<usize> {
    let length: [u8; PREFIX - 1] = held.get(1..PREFIX)?.try_into().ok()?;
    Some(u32::from_be_bytes(length) as usize)
}
