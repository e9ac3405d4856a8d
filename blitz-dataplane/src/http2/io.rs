//! The byte stream under the h2 crate: tokio's traits over the runtime's stream, the meter in between.
//!
//! Received bytes are handed over up to the end of a field block at most, so that what the crate says about a block can
//! be told from what it says about the frames behind it. Sent bytes are gathered and go to the stream's outbox when the
//! poll is over, which leaves at the end of the turn; more than 64 KiB unsent is where the crate has to wait.
//!
//! Owns: the hand-over in both directions. Does not own: the stream, the meter's rules, deadlines (`server.rs`).

use std::cell::{Cell, RefCell};
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::frame::{Code, HEADER_BYTES, Header, kind};
use super::gather::Gathered;
use super::meter::{Abuse, Fault, Meter, Sent, Stop};
use super::streams::StreamSet;
use crate::runtime::{Chunk, Handle, Transport};

/// Bytes of bodies that are held back at most: a record holds no more.
const GIVEN_BYTES_MAX: usize = 16 * 1024;

/// Turns of the loop for which answers are held back at most, while it has other work.
const HELD_TURNS_MAX: u8 = 4;

/// Field blocks of one connection that are handed over before the others have their turn (count).
///
/// The crate writes when there is nothing to read, so it is also how many answers of its own may wait: fewer than there
/// are streams, or those behind them would be refused.
const BLOCKS_PER_TURN: u32 = 32;

/// What the parts of one connection know of each other.
pub(super) struct Shared {
    pub(super) meter: RefCell<Meter>,
    /// Why the connection has to end; nothing more is read then.
    pub(super) fault: Cell<Option<Fault>>,
    /// More is unsent than may be, and the crate has to wait.
    is_blocked: Cell<bool>,
    /// What was handed over last is a field block. The meter has seen to all that is wrong with its frames, so that a
    /// connection error is one of its compression.
    is_behind_block: Cell<bool>,
    /// Answers that the crate has given itself: 431.
    pub(super) own_answers: Cell<u32>,
    /// What the crate has found too much.
    pub(super) calm: Cell<Option<Abuse>>,
    /// The client has ended its side.
    has_ended: Cell<bool>,
    taken: RefCell<Box<StreamSet>>,
    /// Who drives the connection, while it holds answers back.
    held: RefCell<Option<Waker>>,
    /// Bytes of bodies that the crate was given since it was polled last.
    given: Cell<usize>,
    /// What the crate has written and the stream does not have yet.
    gathered: Gathered,
}

impl Shared {
    pub(super) fn new(meter: Meter) -> Rc<Self> {
        Rc::new(Self {
            meter: RefCell::new(meter),
            fault: Cell::new(None),
            is_blocked: Cell::new(false),
            is_behind_block: Cell::new(false),
            own_answers: Cell::new(0),
            calm: Cell::new(None),
            has_ended: Cell::new(false),
            taken: RefCell::default(),
            held: RefCell::default(),
            given: Cell::new(0),
            gathered: Gathered::default(),
        })
    }

    /// Notes that the crate has passed a request on.
    pub(super) fn took(&self, stream: u32) {
        self.taken.borrow_mut().set(stream, true);
    }

    /// Notes a fault; the first one stays.
    pub(super) fn fail(&self, fault: Fault) {
        if self.fault.get().is_none() {
            self.fault.set(Some(fault));
        }
    }

    /// Counts an event, and notes the fault when it is one too many.
    pub(super) fn charge(&self, abuse: Abuse, now_ms: u64) {
        if let Err(fault) = self.meter.borrow_mut().charge(abuse, 1, now_ms) {
            self.fail(fault);
        }
    }

    /// Notes that the crate was given bytes of an answer. When many are there they are held back no longer.
    pub(super) fn give(&self, bytes: usize) {
        self.given.set(self.given.get().saturating_add(bytes));
        if self.given.get() >= GIVEN_BYTES_MAX
            && let Some(waker) = self.held.take()
        {
            waker.wake();
        }
    }

    /// Holds answers back for a moment, until others have joined them. Not twice for the same, and not when there are
    /// many already.
    pub(super) fn hold(&self, handle: &Handle, cx: &Context<'_>) -> bool {
        if self.held.take().is_some() || self.given.get() >= GIVEN_BYTES_MAX {
            return false;
        }
        self.held.replace(Some(cx.waker().clone()));
        handle.wake_later(cx, HELD_TURNS_MAX);
        true
    }

    /// Notes that answers are not held back any more.
    pub(super) fn let_go(&self) {
        self.held.take();
        self.given.set(0);
    }

    /// Passes on what the crate has written while it was polled.
    pub(super) fn pass_on(&self, stream: &impl Transport) {
        // What it could not write, the crate's next look at the connection tells.
        let _gone = self.gathered.pass_on(stream);
    }

    /// Whether the crate has to wait because the client takes nothing.
    pub(super) fn is_blocked(&self) -> bool {
        self.is_blocked.get()
    }

    /// Whether the client has ended its side.
    pub(super) fn has_ended(&self) -> bool {
        self.has_ended.get()
    }
}

/// The stream as the crate sees it.
pub(super) struct MeteredIo<'a, T> {
    stream: &'a T,
    shared: Rc<Shared>,
    /// Received and not yet handed over.
    unread: Option<Chunk>,
    /// Field blocks handed over since the crate had nothing to read.
    blocks: u32,
}

impl<'a, T: Transport> MeteredIo<'a, T> {
    /// `received` is what has been read to find out that it speaks HTTP/2.
    pub(super) fn new(stream: &'a T, shared: Rc<Shared>, received: Option<Chunk>) -> Self {
        Self { stream, shared, unread: received, blocks: 0 }
    }

    fn put_bytes(&self, bytes: &[u8]) -> io::Result<()> {
        let renamed;
        let mut bytes = bytes;
        if !self.shared.meter.borrow().is_sending()
            && let Some(goaway) = find_goaway(bytes)
        {
            if goaway.code == Code::EnhanceYourCalm as u32 {
                let debug = bytes.get(goaway.debug).unwrap_or_default();
                self.shared.calm.set(Some(named(debug)));
            } else if goaway.code == Code::ProtocolError as u32 && self.shared.is_behind_block.get() {
                // The crate has one code for both, RFC 9113 section 4.3 asks for this one.
                let mut other = bytes.to_vec();
                if let Some(code) = other.get_mut(goaway.code_at..goaway.code_at + 4) {
                    code.copy_from_slice(&(Code::CompressionError as u32).to_be_bytes());
                }
                renamed = other;
                bytes = &renamed;
            }
        }
        self.shared.gathered.push(bytes, self.stream)?;
        let now_ms = self.stream.handle().now_ms();
        let taken = self.shared.taken.borrow();
        let (mut own_answers, mut fault) = (0, None);
        self.shared.meter.borrow_mut().sent(bytes, now_ms, |found| match found {
            // What is answered is young: a number in place of the highest says so.
            Sent::LastHeaders(stream) if taken.get(stream, stream) == Some(false) => {
                own_answers += 1;
            }
            Sent::LastHeaders(_) => {}
            Sent::Fault(found) => fault = Some(found),
        });
        self.shared.own_answers.set(self.shared.own_answers.get() + own_answers);
        // The crate resets the stream behind such an answer. That is not what the client is after: the cause comes
        // before the effect.
        for _ in 0..own_answers {
            self.shared.charge(Abuse::HpackBomb, now_ms);
        }
        if let Some(fault) = fault {
            self.shared.fail(fault);
        }
        Ok(())
    }
}

impl<T: Transport> AsyncRead for MeteredIo<'_, T> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buf.filled().len();
        this.shared.is_behind_block.set(false);
        // Only where more is there: whoever sends less at once is not held up.
        if this.blocks >= BLOCKS_PER_TURN && this.unread.is_some() {
            this.blocks = 0;
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        loop {
            if this.shared.fault.get().is_some() {
                // The owner looks at the fault after each poll, and reading is over.
                return if buf.filled().len() > before { Poll::Ready(Ok(())) } else { Poll::Pending };
            }
            let mut chunk = match this.unread.take() {
                Some(chunk) => chunk,
                None => match this.stream.poll_receive(cx) {
                    Poll::Ready(Ok(Some(chunk))) => chunk,
                    Poll::Ready(Ok(None)) => {
                        this.shared.has_ended.set(true);
                        return Poll::Ready(Ok(()));
                    }
                    Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                    Poll::Pending if buf.filled().len() > before => return Poll::Ready(Ok(())),
                    Poll::Pending => {
                        this.blocks = 0;
                        return Poll::Pending;
                    }
                },
            };
            let room = chunk.get(..buf.remaining().min(chunk.len())).unwrap_or_default();
            let now_ms = this.stream.handle().now_ms();
            let (passed, stop) = this.shared.meter.borrow_mut().received(room, now_ms);
            buf.put_slice(room.get(..passed).unwrap_or_default());
            chunk.advance(passed);
            if !chunk.is_empty() {
                this.unread = Some(chunk);
            }
            match stop {
                Some(Stop::Fault(fault)) => this.shared.fail(fault),
                Some(Stop::Block(block)) => {
                    if block.is_opening {
                        this.shared.taken.borrow_mut().set(block.stream, false);
                    }
                    this.shared.is_behind_block.set(true);
                    this.blocks += 1;
                    return Poll::Ready(Ok(()));
                }
                None if buf.remaining() == 0 => {
                    if let Some(unread) = &mut this.unread {
                        // The crate may be waiting for room to answer: others need the pool's slot.
                        unread.spill();
                    }
                    return Poll::Ready(Ok(()));
                }
                None => {}
            }
        }
    }
}

impl<T: Transport> AsyncWrite for MeteredIo<'_, T> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[IoSlice::new(buf)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let room = self.stream.poll_writable(cx);
        self.shared.is_blocked.set(room.is_pending());
        if let Err(error) = std::task::ready!(room) {
            return Poll::Ready(Err(error));
        }
        let mut written = 0;
        for buf in bufs {
            self.put_bytes(buf)?;
            written += buf.len();
        }
        Poll::Ready(Ok(written))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    /// What is written leaves when the poll is over.
    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    /// The owner of the stream ends it, after the last bytes have left.
    fn poll_shutdown(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

/// A GOAWAY among whole frames.
struct GoAway {
    /// Where its code lies.
    code_at: usize,
    code: u32,
    /// Where its debug data lie.
    debug: std::ops::Range<usize>,
}

/// Finds the first GOAWAY in bytes that begin with a frame.
fn find_goaway(bytes: &[u8]) -> Option<GoAway> {
    let mut at = 0;
    loop {
        let rest = bytes.get(at..)?;
        let frame = Header::parse(*rest.first_chunk()?);
        let end = at + HEADER_BYTES + frame.length as usize;
        if frame.kind == kind::GOAWAY {
            // The last stream, then the code.
            let code_at = at + HEADER_BYTES + 4;
            let code = u32::from_be_bytes(*bytes.get(code_at..)?.first_chunk()?);
            return Some(GoAway { code_at, code, debug: code_at + 4..end });
        }
        at = end;
    }
}

/// The abuse that the crate means by the debug data of its GOAWAY.
fn named(debug: &[u8]) -> Abuse {
    match debug {
        b"header_list_way_too_large" => Abuse::HpackBomb,
        b"too_many_continuations" => Abuse::ContinuationFlood,
        b"too_many_internal_resets" => Abuse::MadeYouReset,
        b"too_many_resets" => Abuse::RapidReset,
        // `too_many_data_frames`: small ones, which cost more memory than they bring.
        _ => Abuse::EmptyDataFlood,
    }
}
