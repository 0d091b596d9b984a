//! The one thread pool of all kernels: one fork per operation, workers that spin briefly and then
//! park.
//!
//! A fork of a work-stealing pool costs tens of microseconds after a pause; at a hundred forks per
//! picture that is milliseconds. Here a fork writes one word that spinning workers see at once.
//! Results never depend on the number of threads: tasks write disjoint memory, and sums are split
//! by fixed chunks, not by thread.

use crate::rehearsal;
use std::cell::Cell;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};
use std::sync::{Mutex, OnceLock};
use std::thread::Thread;

/// Turns of the idle loop before a worker parks: about 0.1 ms.
const SPINS: u32 = 4_000;

struct Pool {
    threads: usize,
    /// Changes with every fork; idle workers watch it.
    epoch: AtomicU32,
    /// True while the published task may be entered.
    open: AtomicBool,
    /// Workers inside the published task.
    active: AtomicUsize,
    /// A range of tasks for each thread; who has finished his own helps with the others.
    shares: Box<[Share]>,
    /// The two words of a `*const dyn Fn(usize)`.
    task: [AtomicUsize; 2],
    panicked: AtomicBool,
    /// One fork at a time; a second caller runs its tasks itself.
    fork: Mutex<()>,
    workers: OnceLock<Vec<(Thread, &'static AtomicBool)>>,
}

/// The tasks `next..end`, on a cache line of their own.
#[derive(Default)]
#[repr(align(64))]
struct Share {
    next: AtomicUsize,
    end: AtomicUsize,
}

static REQUESTED: AtomicUsize = AtomicUsize::new(0);
static POOL: OnceLock<Pool> = OnceLock::new();

thread_local! {
    static INSIDE: Cell<bool> = const { Cell::new(false) };
}

/// Sets the number of threads. Returns false if the pool runs already with another number.
pub fn set_threads(threads: usize) -> bool {
    REQUESTED.store(threads.max(1), Ordering::SeqCst);
    POOL.get().is_none_or(|p| p.threads == threads.max(1))
}

/// Threads that kernels use: what [`set_threads`] asked for, else `OCELLI_THREADS`,
/// `RAYON_NUM_THREADS`, `OMP_NUM_THREADS`, else one per core.
pub fn threads() -> usize {
    let real = || POOL.get().map_or_else(wanted_threads, |p| p.threads);
    rehearsal::threads().unwrap_or_else(real)
}

fn wanted_threads() -> usize {
    let requested = REQUESTED.load(Ordering::SeqCst);
    if requested > 0 {
        return requested;
    }
    for name in ["OCELLI_THREADS", "RAYON_NUM_THREADS", "OMP_NUM_THREADS"] {
        if let Some(n) = std::env::var(name).ok().and_then(|v| v.parse::<usize>().ok())
            && n > 0
        {
            return n;
        }
    }
    std::thread::available_parallelism().map_or(1, usize::from)
}

fn pool() -> &'static Pool {
    let pool = POOL.get_or_init(|| {
        let threads = wanted_threads();
        Pool {
            threads,
            epoch: AtomicU32::new(0),
            open: AtomicBool::new(false),
            active: AtomicUsize::new(0),
            shares: (0..threads).map(|_| Share::default()).collect(),
            task: [AtomicUsize::new(0), AtomicUsize::new(0)],
            panicked: AtomicBool::new(false),
            fork: Mutex::new(()),
            workers: OnceLock::new(),
        }
    });
    pool.workers.get_or_init(|| {
        (1..pool.threads)
            .filter_map(|i| {
                let parked: &'static AtomicBool = Box::leak(Box::new(AtomicBool::new(false)));
                let handle = std::thread::Builder::new()
                    .name(format!("kernel-{i}"))
                    .spawn(move || pool.work(i, parked))
                    .ok()?;
                Some((handle.thread().clone(), parked))
            })
            .collect()
    });
    pool
}

/// Leaves the published task even when it panics, so that the caller never waits forever.
struct Leave<'a>(&'a Pool);

impl Drop for Leave<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.panicked.store(true, Ordering::SeqCst);
        }
        self.0.active.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Pool {
    fn work(&self, thread: usize, parked: &AtomicBool) {
        INSIDE.set(true);
        let mut seen = 0;
        loop {
            let mut spins = 0;
            while self.epoch.load(Ordering::Acquire) == seen {
                spins += 1;
                if spins < SPINS {
                    std::hint::spin_loop();
                    continue;
                }
                parked.store(true, Ordering::SeqCst);
                while self.epoch.load(Ordering::SeqCst) == seen {
                    std::thread::park();
                }
                parked.store(false, Ordering::SeqCst);
            }
            seen = self.epoch.load(Ordering::Acquire);
            self.active.fetch_add(1, Ordering::SeqCst);
            let leave = Leave(self);
            if self.open.load(Ordering::SeqCst) {
                let words = self.task.each_ref().map(|w| w.load(Ordering::SeqCst));
                // SAFETY: the words are those of the published reference; its caller keeps it
                // alive until `active` is 0 after closing, and we counted ourselves in before
                // seeing it open.
                let task =
                    unsafe { std::mem::transmute::<[usize; 2], &(dyn Fn(usize) + Sync)>(words) };
                // A panic ends this worker's part; `Leave` reports it to the caller.
                let _ = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                    let _report = Report(self);
                    self.drain(thread, task);
                }));
            }
            drop(leave);
        }
    }

    fn drain(&self, thread: usize, task: &(dyn Fn(usize) + Sync)) {
        let (before, own) = self.shares.split_at(thread);
        for share in own.iter().chain(before) {
            let end = share.end.load(Ordering::Relaxed);
            loop {
                let i = share.next.fetch_add(1, Ordering::Relaxed);
                if i >= end {
                    break;
                }
                task(i);
            }
        }
    }
}

struct Report<'a>(&'a Pool);

impl Drop for Report<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.panicked.store(true, Ordering::SeqCst);
        }
    }
}

/// Calls `task(0)` to `task(tasks - 1)` on all threads and returns when all are done. Neighbouring
/// tasks mostly run on one thread, one after the other, but any order may happen. Inside a task, or while another thread forks, the calls run on the calling thread.
///
/// # Panics
/// If a task panicked on a worker.
pub fn parallel_for(tasks: usize, task: impl Fn(usize) + Sync) {
    let serial = || (0..tasks).for_each(&task);
    if tasks > 1 && rehearsal::fork(tasks, &task) {
        return;
    }
    if tasks <= 1 || INSIDE.get() || threads() == 1 {
        return serial();
    }
    let pool = pool();
    let Ok(_guard) = pool.fork.try_lock() else { return serial() };
    let object: &(dyn Fn(usize) + Sync) = &task;
    // SAFETY: a reference to a trait object is two words; only their values are kept.
    let words = unsafe { std::mem::transmute::<&(dyn Fn(usize) + Sync), [usize; 2]>(object) };
    pool.task[0].store(words[0], Ordering::SeqCst);
    pool.task[1].store(words[1], Ordering::SeqCst);
    for (thread, share) in pool.shares.iter().enumerate() {
        share.end.store(tasks * (thread + 1) / pool.threads, Ordering::SeqCst);
        share.next.store(tasks * thread / pool.threads, Ordering::SeqCst);
    }
    pool.panicked.store(false, Ordering::SeqCst);
    pool.open.store(true, Ordering::SeqCst);
    pool.epoch.fetch_add(1, Ordering::SeqCst);
    for (thread, parked) in pool.workers.get().into_iter().flatten() {
        if parked.load(Ordering::SeqCst) {
            thread.unpark();
        }
    }
    /// Closes the task and waits for the workers, also when the caller's own part panics.
    struct Close<'a>(&'a Pool);
    impl Drop for Close<'_> {
        fn drop(&mut self) {
            INSIDE.set(false);
            self.0.open.store(false, Ordering::SeqCst);
            let mut spins = 0_u32;
            while self.0.active.load(Ordering::SeqCst) != 0 {
                spins += 1;
                if spins < 100_000 {
                    std::hint::spin_loop();
                } else {
                    std::thread::yield_now();
                }
            }
        }
    }
    INSIDE.set(true);
    let close = Close(pool);
    pool.drain(0, object);
    drop(close);
    assert!(!pool.panicked.load(Ordering::SeqCst), "a kernel task panicked on a worker thread");
}

/// A raw pointer that several tasks may write through, each to its own part.
#[derive(Clone, Copy)]
pub(crate) struct Shared<T>(*mut T);

// SAFETY: users write disjoint parts; that is stated where the pointer is used.
unsafe impl<T> Send for Shared<T> {}
// SAFETY: as above.
unsafe impl<T> Sync for Shared<T> {}

impl<T> Shared<T> {
    pub(crate) fn new(slice: &mut [T]) -> Self {
        Self(slice.as_mut_ptr())
    }

    pub(crate) fn get(self) -> *mut T {
        self.0
    }

    /// The part `start..start + len`.
    ///
    /// # Safety
    /// It lies inside the slice, and no other task touches it meanwhile.
    pub(crate) unsafe fn slice<'a>(self, start: usize, len: usize) -> &'a mut [T] {
        // SAFETY: by the contract above.
        unsafe { std::slice::from_raw_parts_mut(self.0.add(start), len) }
    }
}

/// Splits `rows` into chunks of about `grain` values and calls `task(first_row, rows)` for each.
/// The chunks depend on the sizes only, never on the number of threads.
pub(crate) fn parallel_rows(
    rows: usize,
    values_per_row: usize,
    grain: usize,
    task: impl Fn(usize, usize) + Sync,
) {
    let per_chunk = (grain / values_per_row.max(1)).clamp(1, rows.max(1));
    let chunks = rows.div_ceil(per_chunk);
    parallel_for(chunks, |c| {
        let first = c * per_chunk;
        task(first, per_chunk.min(rows - first));
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_task_runs_once_also_after_a_pause() {
        for pause in [0, 3] {
            for n in [0, 1, 2, 7, 1000] {
                std::thread::sleep(std::time::Duration::from_millis(pause));
                let counts: Vec<AtomicUsize> = (0..n).map(|_| AtomicUsize::new(0)).collect();
                parallel_for(n, |i| {
                    counts[i].fetch_add(1, Ordering::Relaxed);
                });
                assert!(counts.iter().all(|c| c.load(Ordering::Relaxed) == 1));
            }
        }
    }

    #[test]
    fn forks_inside_tasks_and_from_many_threads_run() {
        let sum = AtomicUsize::new(0);
        std::thread::scope(|s| {
            for _ in 0..4 {
                s.spawn(|| {
                    for _ in 0..50 {
                        parallel_for(4, |_| {
                            parallel_for(3, |i| {
                                sum.fetch_add(i, Ordering::Relaxed);
                            });
                        });
                    }
                });
            }
        });
        assert_eq!(sum.load(Ordering::Relaxed), 4 * 50 * 4 * 3);
    }

    #[test]
    fn a_panic_reaches_the_caller_and_the_pool_survives() {
        let run = std::panic::catch_unwind(|| {
            parallel_for(64, |i| {
                std::thread::sleep(std::time::Duration::from_micros(50));
                assert!(i != 33, "expected");
            });
        });
        assert!(run.is_err());
        let count = AtomicUsize::new(0);
        parallel_for(10, |_| {
            count.fetch_add(1, Ordering::Relaxed);
        });
        assert_eq!(count.load(Ordering::Relaxed), 10);
    }
}
