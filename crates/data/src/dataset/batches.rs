//! The threads behind a loader, and their batches put back in order.

use std::{
    collections::HashMap,
    panic::resume_unwind,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread::JoinHandle,
};

use super::{
    augment::Scratch,
    error::{DatasetError, Result},
    loader::{Batch, LoaderConfig, OnBroken},
    order::{DataState, Sampler},
    worker::{Maker, Ticket},
};

/// Parts made ahead of the one in use; one a thread if there are more threads.
const PREFETCH: u64 = 2;

/// Batches in order, from [`super::Loader::batches`], or their parts. Dropping it ends the threads.
///
/// It ends after the last epoch, and after an error: a broken sample that may not be left out, or one
/// too many.
pub struct Batches {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
    /// Broken samples left out so far.
    skipped: u64,
    /// Whether the caller has parts of a batch whose last part is still to come.
    is_within: bool,
    is_done: bool,
}

/// What the threads share.
struct Shared {
    maker: Arc<Maker>,
    queue: Mutex<Queue>,
    changed: Condvar,
    /// Batches that may be in work or ready.
    in_flight: u64,
}

struct Queue {
    sampler: Sampler,
    /// Of `epoch`.
    order: Arc<[u32]>,
    /// Of the next batch to hand out, as is `index`.
    epoch: u64,
    index: usize,
    /// Most samples of a part.
    part_size: usize,
    /// Samples of the batch at `index` that are still to be handed out; 0 before a new batch.
    left: usize,
    /// Parts handed out to threads.
    issued: u64,
    /// Parts given to the caller.
    delivered: u64,
    ready: HashMap<u64, Result<Batch>>,
    /// Whether the last part has been handed out.
    is_exhausted: bool,
    is_stopped: bool,
    has_panicked: bool,
}

impl Queue {
    /// The next part to make, with its number; `None` after the last epoch.
    fn issue(&mut self, config: &LoaderConfig) -> Option<(u64, Ticket)> {
        let is_over = |left: usize| left == 0 || config.drop_last && left < config.batch_size;
        if self.left == 0 && is_over(self.order.len() - self.index) {
            self.epoch += 1;
            self.index = 0;
            self.order = Arc::from(self.sampler.order(self.epoch));
        }
        if config.epochs.is_some_and(|epochs| self.epoch >= epochs) {
            self.is_exhausted = true;
            return None;
        }
        if self.left == 0 {
            self.left = config.batch_size.min(self.order.len() - self.index);
        }
        let positions = self.index..self.index + self.left.min(self.part_size);
        self.index = positions.end;
        self.left -= positions.len();
        let ends_batch = self.left == 0;
        let ends_epoch = ends_batch && is_over(self.order.len() - self.index);
        let state_after = DataState {
            epoch: self.epoch + u64::from(ends_epoch),
            index: if ends_epoch { 0 } else { self.index as u64 },
            ..self.sampler.start()
        };
        let order = Arc::clone(&self.order);
        self.issued += 1;
        let epoch = self.epoch;
        Some((self.issued - 1, Ticket { epoch, positions, order, ends_batch, state_after }))
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Queue> {
        // A thread that panics does so outside the lock.
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'a>(&self, queue: MutexGuard<'a, Queue>) -> MutexGuard<'a, Queue> {
        self.changed.wait(queue).unwrap_or_else(PoisonError::into_inner)
    }

    /// What a thread does.
    fn work(&self) {
        let _alarm = Alarm(self);
        let mut scratch = Scratch::default();
        loop {
            let mut queue = self.lock();
            while !queue.is_stopped && queue.issued - queue.delivered >= self.in_flight {
                queue = self.wait(queue);
            }
            if queue.is_stopped {
                return;
            }
            let Some((number, ticket)) = queue.issue(self.maker.config()) else {
                self.changed.notify_all();
                return;
            };
            drop(queue);
            let batch = self.maker.batch(ticket, &mut scratch);
            self.lock().ready.insert(number, batch);
            self.changed.notify_all();
        }
    }
}

/// Tells the caller when a thread ends by a panic, so that it does not wait for ever.
struct Alarm<'a>(&'a Shared);

impl Drop for Alarm<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.lock().has_panicked = true;
            self.0.changed.notify_all();
        }
    }
}

impl Batches {
    pub(super) fn start(
        maker: Arc<Maker>,
        sampler: Sampler,
        state: &DataState,
        part_size: usize,
    ) -> Result<Self> {
        let threads = maker.config().threads;
        let queue = Queue {
            order: Arc::from(sampler.order(state.epoch)),
            sampler,
            epoch: state.epoch,
            index: state.index as usize,
            part_size,
            left: 0,
            issued: 0,
            delivered: 0,
            ready: HashMap::new(),
            is_exhausted: false,
            is_stopped: false,
            has_panicked: false,
        };
        let shared = Arc::new(Shared {
            maker,
            queue: Mutex::new(queue),
            changed: Condvar::new(),
            in_flight: PREFETCH.max(threads as u64),
        });
        let (skipped, is_within, is_done) = (state.skipped, false, false);
        let mut batches = Self { shared, threads: Vec::new(), skipped, is_within, is_done };
        for number in 0..threads {
            let shared = Arc::clone(&batches.shared);
            let thread = std::thread::Builder::new().name(format!("loader-{number}"));
            let thread = thread.spawn(move || shared.work()).map_err(DatasetError::Thread)?;
            batches.threads.push(thread);
        }
        Ok(batches)
    }

    /// The next batch in order, as its thread left it.
    fn take(&mut self) -> Option<Result<Batch>> {
        let mut queue = self.shared.lock();
        loop {
            let number = queue.delivered;
            if let Some(batch) = queue.ready.remove(&number) {
                queue.delivered += 1;
                self.shared.changed.notify_all();
                return Some(batch);
            }
            if queue.has_panicked {
                drop(queue);
                self.stop();
                return None;
            }
            if queue.is_exhausted && queue.issued == number {
                return None;
            }
            queue = self.shared.wait(queue);
        }
    }

    /// Counts what was left out of a batch.
    fn count(&mut self, mut batch: Batch) -> Result<Batch> {
        self.skipped += batch.skipped.len() as u64;
        batch.state_after.skipped = self.skipped;
        match self.shared.maker.config().on_broken {
            OnBroken::Skip { limit } if self.skipped > limit => match batch.skipped.pop() {
                Some(last) => {
                    let (skipped, last) = (self.skipped, Box::new(last));
                    Err(DatasetError::TooManyBroken { skipped, limit, last })
                }
                None => Ok(batch),
            },
            _ => Ok(batch),
        }
    }

    /// Ends the threads, passing on a panic of theirs.
    fn stop(&mut self) {
        self.shared.lock().is_stopped = true;
        self.shared.changed.notify_all();
        for thread in self.threads.drain(..) {
            if let Err(panic) = thread.join()
                && !std::thread::panicking()
            {
                resume_unwind(panic);
            }
        }
    }
}

impl Iterator for Batches {
    type Item = Result<Batch>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.is_done {
            return None;
        }
        let mut skipped = Vec::new();
        let next = loop {
            match self.take().map(|batch| self.count(batch?)) {
                // Nothing is left of it: its errors go with the next one. The caller is told even so
                // when a batch ends of which there were other parts.
                Some(Ok(mut batch))
                    if batch.keys.is_empty() && !(batch.ends_batch && self.is_within) =>
                {
                    skipped.append(&mut batch.skipped);
                }
                Some(Ok(mut batch)) => {
                    skipped.append(&mut batch.skipped);
                    batch.skipped = skipped;
                    self.is_within = !batch.ends_batch;
                    break Some(Ok(batch));
                }
                end => break end,
            }
        };
        self.is_done = !matches!(next, Some(Ok(_)));
        next
    }
}

impl Drop for Batches {
    fn drop(&mut self) {
        self.stop();
    }
}

impl std::fmt::Debug for Batches {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Batches from {} threads", self.threads.len())
    }
}
