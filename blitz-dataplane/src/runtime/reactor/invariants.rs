//! What must hold between two turns, for tests and simulation.

use super::{Body, Reactor};

impl Reactor {
    /// The most unread bytes that a stream holds now, the most unsent ones, and the slots held by
    /// tasks: what simulation compares with the written bounds.
    #[cfg(test)]
    pub(in crate::runtime) fn largest_queues(&self) -> (usize, usize, usize) {
        let mut largest = (0, 0, usize::from(self.pool.taken()));
        for (_, entry) in self.entries.iter() {
            if let Body::Stream(stream) = &entry.body {
                largest.0 = largest.0.max(stream.unread);
                largest.1 = largest.1.max(stream.out.bytes);
                largest.2 -= stream.inbox.iter().filter(|chunk| chunk.is_pooled()).count();
            }
        }
        largest
    }

    pub(in crate::runtime) fn check_invariants(&self) -> Result<(), String> {
        let mut outstanding = 0;
        let mut slots = 0u64;
        for (key, entry) in self.entries.iter() {
            outstanding += usize::from(entry.outstanding);
            if entry.closing && entry.outstanding == 0 {
                return Err(format!("socket {key:?} is closing with nothing in flight, and still open"));
            }
            let Body::Stream(stream) = &entry.body else {
                continue;
            };
            let unread: usize = stream.inbox.iter().map(|chunk| chunk.len()).sum();
            if unread != stream.unread {
                return Err(format!(
                    "socket {key:?} counts {} unread bytes and holds {unread}",
                    stream.unread
                ));
            }
            slots += stream.inbox.iter().filter(|chunk| chunk.is_pooled()).count() as u64;
            let out = &stream.out;
            let unsent =
                out.pieces.iter().map(|piece| piece.bytes().len()).sum::<usize>() - out.sent_of_first;
            if unsent != out.bytes {
                return Err(format!("socket {key:?} counts {} unsent bytes and holds {unsent}", out.bytes));
            }
            if out.in_flight > out.pieces.len() {
                return Err(format!("socket {key:?} sends {} pieces of {}", out.in_flight, out.pieces.len()));
            }
            let pending =
                out.bytes > 0 && out.in_flight == 0 && !out.dirty && out.error == 0 && !entry.closing;
            if pending {
                return Err(format!("socket {key:?} has {} bytes that nothing sends", out.bytes));
            }
        }
        if outstanding != self.outstanding {
            return Err(format!("{} operations counted, {outstanding} held by sockets", self.outstanding));
        }
        if slots > u64::from(self.pool.taken()) {
            return Err(format!("{slots} pool slots in inboxes, {} taken", self.pool.taken()));
        }
        Ok(())
    }
}
