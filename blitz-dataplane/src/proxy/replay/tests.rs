//! Bodies that are sent again.

use std::future::Future;
use std::pin::pin;
use std::task::{Context, Poll, Waker};

use super::*;

/// A body of these pieces, all of which are there.
struct Pieces(Vec<Vec<u8>>);

impl BodySource for Pieces {
    fn length(&self) -> BodyLength {
        BodyLength::Unknown
    }

    fn is_complete(&self) -> bool {
        self.0.is_empty()
    }

    async fn next(&mut self) -> Result<Option<Chunk>, ProxyError> {
        Ok((!self.0.is_empty()).then(|| Chunk::from_vec(self.0.remove(0))))
    }

    fn trailers(&self) -> Option<&Fields> {
        None
    }
}

fn now<T>(future: impl Future<Output = T>) -> T {
    match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(output) => output,
        Poll::Pending => panic!("it waits"),
    }
}

/// Takes up to `most` pieces.
fn take(body: &mut Replay<'_, Pieces>, most: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    for _ in 0..most {
        let Some(chunk) = now(body.next()).unwrap() else { break };
        bytes.extend_from_slice(&chunk);
    }
    bytes
}

#[test]
fn what_was_taken_comes_again_and_then_the_rest() {
    for taken in 0..4 {
        let mut pieces = Pieces(vec![b"ab".to_vec(), b"c".to_vec(), b"def".to_vec()]);
        let mut body = Replay::new(&mut pieces);
        body.begin(true);
        take(&mut body, taken);
        assert!(body.is_whole());
        body.begin(true);
        assert!(!body.is_complete());
        assert_eq!(take(&mut body, 9), b"abcdef", "after {taken}");
        assert!(body.is_complete());
        body.begin(false);
        assert_eq!(take(&mut body, 9), b"abcdef", "once more");
    }
}

#[test]
fn what_nobody_asked_to_keep_is_lost() {
    let mut pieces = Pieces(vec![b"ab".to_vec(), b"c".to_vec()]);
    let mut body = Replay::new(&mut pieces);
    body.begin(false);
    assert!(body.is_whole(), "nothing was taken");
    take(&mut body, 1);
    assert!(!body.is_whole());
    body.begin(true);
    take(&mut body, 1);
    assert!(!body.is_whole(), "and stays so");
}

#[test]
fn a_long_body_is_not_kept() {
    let mut pieces = Pieces(vec![vec![0; KEPT_BYTES_MAX], vec![1]]);
    let mut body = Replay::new(&mut pieces);
    body.begin(true);
    take(&mut body, 1);
    assert!(body.is_whole());
    assert_eq!(take(&mut body, 2), [1]);
    assert!(!body.is_whole());
    assert!(body.is_complete());
    assert!(body.kept.is_empty(), "the memory is given back");
}
