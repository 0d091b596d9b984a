//! Ctrl-C: once ends the work after what is being computed, twice ends the program.

use std::io::{Write, stderr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, LazyLock};

static ASKED: LazyLock<Arc<AtomicBool>> = LazyLock::new(Arc::default);
/// Whether a line of a chat is waited for.
static WAITS: AtomicBool = AtomicBool::new(false);

/// From now on Ctrl-C only raises a flag; a second one exits with 130.
#[allow(clippy::exit)] // There is no other way out of a computation.
pub(crate) fn watch() {
    // Without a handler, which the system may refuse, Ctrl-C ends the program as by default.
    let _ = ctrlc::set_handler(|| {
        if ASKED.swap(true, Ordering::SeqCst) {
            std::process::exit(130);
        }
        if WAITS.load(Ordering::SeqCst) {
            // What was typed of the line is gone. Nobody is left to be told of a terminal that is gone.
            let _ = write!(stderr(), "\nCtrl-C again, Ctrl-D or /exit leaves\n> ");
        }
    });
}

/// Whether Ctrl-C was pressed.
pub(crate) fn asked() -> bool {
    ASKED.load(Ordering::SeqCst)
}

/// Takes back that Ctrl-C was pressed, as what it was to end has ended.
pub(crate) fn forget() {
    ASKED.store(false, Ordering::SeqCst);
}

/// Says whether a line of a chat is waited for, which Ctrl-C does not end but a second one leaves.
pub(crate) fn wait(waits: bool) {
    WAITS.store(waits, Ordering::SeqCst);
}

/// What Ctrl-C sets, for work that looks at it itself.
pub(crate) fn flag() -> Arc<AtomicBool> {
    Arc::clone(&ASKED)
}
