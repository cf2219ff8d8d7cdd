//! Reads the next step's tokens while the device works on this one.
//!
//! A thread owns the [`TokenStream`] and stays one batch ahead. Buffers travel back and forth, so nothing is
//! allocated per step. The stream's true position for a checkpoint is [`Batch::cursor`] of the last batch *used*,
//! not of the one read ahead.

use super::stream::{Batch, BatchShape, TokenStream};
use anyhow::{Result, anyhow};
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};
use std::thread::JoinHandle;

/// A background reader. Dropping it ends the thread.
pub struct Prefetch {
    ready: Option<Receiver<Result<Batch>>>,
    empty: Sender<Batch>,
    thread: Option<JoinHandle<()>>,
}

impl Prefetch {
    pub fn start(stream: TokenStream, shape: BatchShape) -> Self {
        let (to_loop, ready) = sync_channel(1);
        let (empty, from_loop) = channel();
        let thread = std::thread::spawn(move || read_ahead(stream, shape, &to_loop, &from_loop));
        Self {
            ready: Some(ready),
            empty,
            thread: Some(thread),
        }
    }

    /// The next batch, waiting for it if need be.
    pub fn take(&mut self) -> Result<Batch> {
        let ready = self.ready.as_ref().expect("alive until dropped");
        ready
            .recv()
            .map_err(|_| anyhow!("the data thread has ended after an earlier error"))?
    }

    /// Gives a used batch's buffers back.
    pub fn recycle(&self, batch: Batch) {
        // The thread may be gone after an error that `take` has reported.
        let _ = self.empty.send(batch);
    }
}

fn read_ahead(
    mut stream: TokenStream,
    shape: BatchShape,
    to_loop: &SyncSender<Result<Batch>>,
    from_loop: &Receiver<Batch>,
) {
    loop {
        let mut batch = from_loop.try_recv().unwrap_or_default();
        let result = stream.next_into(&shape, &mut batch);
        let failed = result.is_err();
        if to_loop.send(result.map(|()| batch)).is_err() || failed {
            return;
        }
    }
}

impl Drop for Prefetch {
    fn drop(&mut self) {
        self.ready = None;
        if let Some(thread) = self.thread.take() {
            // A panic of the thread has already been printed; there is nothing to add to it here.
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delivers_the_same_batches_as_the_stream() {
        let stream =
            || TokenStream::from_tokens((0..500).map(|i| i % 97).collect(), 97, "test").unwrap();
        let shape = BatchShape {
            step_tokens: 32,
            micro_steps: 2,
            ranks: 1,
            rank: 0,
            seq_len: 8,
        };
        let mut direct = stream();
        let mut ahead = Prefetch::start(stream(), shape);
        for _ in 0..20 {
            let batch = ahead.take().unwrap();
            assert_eq!(batch, direct.next(&shape).unwrap());
            ahead.recycle(batch);
        }
    }

    #[test]
    fn reports_a_bad_token_once_and_then_the_end() {
        let stream = TokenStream::from_tokens(vec![1, 2, 99, 4, 5], 10, "test").unwrap();
        let mut ahead = Prefetch::start(
            stream,
            BatchShape {
                step_tokens: 4,
                micro_steps: 1,
                ranks: 1,
                rank: 0,
                seq_len: 4,
            },
        );
        assert!(ahead.take().unwrap_err().to_string().contains("token 99"));
        assert!(ahead.take().is_err());
    }
}
