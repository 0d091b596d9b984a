//! What work would take on more cores than there are.
//!
//! The work runs on one thread while kernels split it for many; the time of each task is kept, and the
//! pool's own rule deals the tasks to threads that do not exist. Caches and memory are those of one
//! core, so the answer is what the split allows, not what a machine with so many cores will do.

use std::cell::RefCell;
use std::time::{Duration, Instant};

thread_local! {
    static RECORDING: RefCell<Option<Recording>> = const { RefCell::new(None) };
}

struct Recording {
    threads: usize,
    forks: Vec<Vec<Duration>>,
}

/// The times of a piece of work that was split for some threads.
#[derive(Clone, Debug)]
pub struct Rehearsal {
    threads: usize,
    /// Between the forks: what only one thread can do.
    serial: Duration,
    /// The tasks of each fork.
    forks: Vec<Vec<Duration>>,
}

impl Rehearsal {
    /// Runs `work` on this thread, split for `threads`.
    pub fn of(threads: usize, work: impl FnOnce()) -> Self {
        let threads = threads.max(1);
        RECORDING.set(Some(Recording { threads, forks: Vec::new() }));
        let begin = Instant::now();
        work();
        let all = begin.elapsed();
        let forks = RECORDING.take().map_or_else(Vec::new, |recording| recording.forks);
        let inside: Duration = forks.iter().flatten().sum();
        Self { threads, serial: all.saturating_sub(inside), forks }
    }

    /// The faster time of each part of two rehearsals, if they are of the same work: what other programs
    /// took from one of them is gone.
    #[must_use]
    pub fn faster(mut self, other: &Self) -> Self {
        self.serial = self.serial.min(other.serial);
        for (own, others) in self.forks.iter_mut().zip(&other.forks) {
            for (own, other) in own.iter_mut().zip(others) {
                *own = (*own).min(*other);
            }
        }
        self
    }

    /// Forks of the work.
    pub fn forks(&self) -> usize {
        self.forks.len()
    }

    /// What only one thread can do.
    pub fn serial(&self) -> Duration {
        self.serial
    }

    /// What the work would take on all threads if each fork cost `join` on top of its tasks.
    pub fn time(&self, join: Duration) -> Duration {
        let forks: Duration =
            self.forks.iter().map(|tasks| dealt(tasks, self.threads) + join).sum();
        self.serial + forks
    }
}

/// When the last of `threads` threads is done with `tasks`: each has a range of neighbours and then
/// takes over from the threads behind it.
fn dealt(tasks: &[Duration], threads: usize) -> Duration {
    let bound = |thread: usize| tasks.len() * thread / threads;
    let mut next: Vec<usize> = (0..threads).map(bound).collect();
    let mut busy = vec![Duration::ZERO; threads];
    for _ in tasks {
        let thread = (0..threads).min_by_key(|t| busy[*t]).unwrap_or(0);
        let mut owners = (thread..threads).chain(0..thread);
        if let Some(owner) = owners.find(|owner| next[*owner] < bound(owner + 1)) {
            busy[thread] += tasks[next[owner]];
            next[owner] += 1;
        }
    }
    busy.into_iter().max().unwrap_or_default()
}

/// The number of threads that work is split for, if it is rehearsed on this thread.
pub(crate) fn threads() -> Option<usize> {
    RECORDING.with_borrow(|recording| recording.as_ref().map(|r| r.threads))
}

/// Runs a fork's tasks one after the other and keeps their times, if work is rehearsed on this thread.
pub(crate) fn fork(tasks: usize, task: &dyn Fn(usize)) -> bool {
    // What a task forks in turn belongs to it.
    let Some(mut recording) = RECORDING.take() else { return false };
    let times = (0..tasks).map(|i| {
        let begin = Instant::now();
        task(i);
        begin.elapsed()
    });
    recording.forks.push(times.collect());
    RECORDING.set(Some(recording));
    true
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pool::parallel_for;

    #[test]
    fn threads_take_over_from_those_behind_them() {
        let ms = Duration::from_millis;
        let tasks = [4, 1, 1, 1, 1].map(ms);
        assert_eq!(dealt(&tasks, 1), ms(8));
        // The first thread has 4 and 1, but the second, done with its three, takes the 1 over.
        assert_eq!(dealt(&tasks, 2), ms(4));
        assert_eq!(dealt(&tasks, 8), ms(4));
        assert_eq!(dealt(&[], 3), ms(0));
    }

    #[test]
    fn tasks_are_parallel_and_what_is_between_them_is_not() {
        let sleep = |ms| std::thread::sleep(Duration::from_millis(ms));
        let rehearsal = Rehearsal::of(4, || {
            assert_eq!(crate::pool::threads(), 4);
            sleep(4);
            parallel_for(8, |_| {
                sleep(2);
                parallel_for(2, |_| sleep(1));
            });
        });
        assert_eq!(rehearsal.forks(), 1);
        assert!(rehearsal.serial() >= Duration::from_millis(4));
        let time = rehearsal.time(Duration::from_millis(1));
        // 8 tasks of 4 ms, two for each of the threads.
        assert!(time >= Duration::from_millis(13), "{time:?}");
        assert!(rehearsal.forks[0].iter().sum::<Duration>() >= Duration::from_millis(32));
        assert_ne!(threads(), Some(4), "the rehearsal is over");
    }
}
