//! The busy handler of our own connections, and what it is told by way of the thread that it is called on.

use std::cell::{Cell, RefCell};
use std::sync::Weak;
use std::thread;
use std::time::{Duration, Instant};

use super::mount::Mount;
use super::report::{SELF_TOLD_AFTER, report, report_long_wait};
use crate::content::queue::Place;
use crate::content::refusal::Refusal;
use crate::content::store::Claim;
use crate::faults;
use crate::marks;

/// A refusal that a busy handler may be called for next, on this thread.
///
/// It may also not be called, and then this stays. So what is done about it must not last: the claim is for a reservation.
pub(super) struct Pending {
    /// Whose busy handler it is: the address of a `sqlite3`. The address may be another one's by now; then `alive` is not.
    pub(super) connection: usize,
    pub(super) mount: Weak<Mount>,
    pub(super) alive: Weak<()>,
    pub(super) claim: Claim,
    /// Where it waits among the others.
    pub(super) place: Place,
    /// Whether a fault plan has refused it, where there may be nothing to wait for.
    pub(super) is_fault: bool,
}

/// A wait that a busy handler is called for again and again.
#[derive(Clone, Copy)]
struct Wait {
    connection: usize,
    tries: i32,
    start: Instant,
}

thread_local! {
    static PENDING: RefCell<Option<Pending>> = const { RefCell::new(None) };
    static WAIT: Cell<Option<Wait>> = const { Cell::new(None) };
}

impl Pending {
    pub(super) fn set(pending: Pending) {
        let _ = PENDING.try_with(|cell| cell.replace(Some(pending)));
    }

    pub(super) fn take(is_it: impl FnOnce(&mut Pending) -> bool) -> Option<Pending> {
        PENDING.try_with(|cell| cell.borrow_mut().take_if(is_it)).ok().flatten()
    }
}

/// Waits in the engine's queue for the writer slot. Returns whether SQLite should try again. `tries` counts the calls for
/// one statement.
pub(super) fn wait_in_turn(connection: usize, tries: i32) -> bool {
    let start = waiting_since(connection, tries);
    let pending = Pending::take(|pending| pending.connection == connection);
    let Some(pending) = pending.filter(|pending| pending.alive.strong_count() > 0) else {
        Refusal::forget();
        return poll(start, tries); // another database that this connection has attached is busy
    };
    let Some(mount) = pending.mount.upgrade() else { return false };
    let timeout = mount.store.lock_timeout();
    if pending.is_fault {
        return outlasts_fault(timeout);
    }
    match wait_and_tell(&mount, &pending.claim, pending.place, timeout.saturating_sub(start.elapsed())) {
        // That what was read is out of date, SQLite will be told when it tries again.
        Ok(()) | Err(Refusal::Stale { .. }) => tries == 0 || start.elapsed() <= timeout,
        Err(refusal) => {
            let refusal = refusal.after(start.elapsed());
            if !timeout.is_zero() {
                report(&mount, pending.claim.purpose, &refusal);
            }
            refusal.remember(mount.name());
            false
        }
    }
}

/// What would come of a wait for a lock that a fault plan has refused, without the wait: a plan for one call is over, and one
/// that goes on outlasts all patience.
fn outlasts_fault(patience: Duration) -> bool {
    let outlasts = !patience.is_zero() && !faults::would_refuse_again();
    if outlasts {
        Refusal::forget();
    }
    outlasts
}

impl Mount {
    /// Takes the writer slot, waiting for it in the queue for `patience` at most.
    pub(crate) fn acquire(&self, claim: &Claim, patience: Duration) -> Result<(), Refusal> {
        wait_and_tell(self, claim, Place::new(), patience)
    }
}

/// Waits for the writer slot at this place in the queue. What seems to wait for its own thread is printed soon: another thread
/// may have the holder by now and give the slot back, so a deadlock can't be proven.
fn wait_and_tell(mount: &Mount, claim: &Claim, place: Place, patience: Duration) -> Result<(), Refusal> {
    let first = patience.min(SELF_TOLD_AFTER);
    match wait(mount, claim, place, first) {
        Err(refusal @ Refusal::Held { .. }) if patience > first => {
            if refusal.is_by_this_thread() {
                report_long_wait(mount, &refusal);
            }
            wait(mount, claim, place, patience - first)
        }
        result => result,
    }
}

/// Waits for the writer slot at this place in the queue, and prints nothing.
pub(super) fn wait(mount: &Mount, claim: &Claim, place: Place, patience: Duration) -> Result<(), Refusal> {
    mount.store.reached(marks::SLOT_ASKED);
    let result = mount.store.acquire(claim, place, patience);
    match &result {
        Ok(()) => mount.store.reached_taken(claim),
        Err(_) => mount.store.reached(marks::SLOT_REFUSED),
    }
    result
}

/// A lock was got: what comes after that on this thread is another wait, and another refusal.
pub(super) fn over() {
    Refusal::forget();
    let _ = WAIT.try_with(|cell| cell.set(None));
}

/// When the wait began. SQLite does not start to count from 0 for everything that may wait, so a call that does not go on
/// where the last one was begins another wait.
fn waiting_since(connection: usize, tries: i32) -> Instant {
    let goes_on = |wait: &Wait| wait.connection == connection && wait.tries + 1 == tries;
    let last = WAIT.try_with(Cell::get).ok().flatten().filter(goes_on);
    let start = last.map_or_else(Instant::now, |wait| wait.start);
    let _ = WAIT.try_with(|cell| cell.set(Some(Wait { connection, tries, start })));
    start
}

/// What rusqlite's default busy handler does: 5 s in small steps.
fn poll(start: Instant, tries: i32) -> bool {
    let patient = start.elapsed() < Duration::from_secs(5);
    if patient {
        thread::sleep(Duration::from_millis(u64::from(tries.unsigned_abs()).clamp(1, 50)));
    }
    patient
}
