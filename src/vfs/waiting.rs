//! How a connection waits for the writer slot.
//!
//! SQLite asks for the slot when it raises a lock to RESERVED. If the slot is taken, the next step depends on two
//! things: whether the transaction has read, and which busy handler the connection has.
//!
//! * A transaction that has read nothing is refused with SQLITE_BUSY. SQLite lowers its lock, calls the connection's
//!   busy handler, and begins again with SHARED.
//! * A transaction that has read can't be given newer content, and SQLite doesn't call the busy handler for it. So this
//!   module calls the handler, until the slot is reserved for the connection, or the content that it has read is
//!   replaced.
//!
//! Where the connection waits depends on the handler:
//!
//! * The crate's busy handler ([`wait_in_turn`]) waits in the engine's queue, for the refusal that was announced to it
//!   ([`Pending`]).
//! * SQLite's handler (`sqlite3_busy_timeout`) sleeps by a method of this VFS, which waits in the queue meanwhile
//!   ([`sleep`]).
//! * Any other handler sleeps elsewhere. The connection waits in the queue when it comes back, before it reads.
//!
//! A connection's wait, from its first refusal until it has the slot:
//!
//! ```text
//!            refuse                gives up, without having waited
//!   Idle ──────────────▶ Refused ─────────────────────────────────▶ GaveUp
//!    ▲ ▲                  ▲   │                                      │
//!    │ └─ acquire, end ───│───┤                                      │
//!    │                    └───│─ come back ──────────────────────────┤
//!    └────────────────────────┴─ gives up, having waited ────────────┘ refuse
//! ```
//!
//! `Refused` and `GaveUp` keep a place in the queue. It expires when the connection stays away for longer than
//! [`KEPT`].

use std::cell::{Cell, RefCell};
use std::sync::{Arc, Weak};
use std::thread;
use std::time::{Duration, Instant};

use super::mount::Mount;
use super::report::{REPORTED_AFTER, SELF_REPORTED_AFTER, report, report_long_wait};
use crate::content::Snapshot;
use crate::content::origin::Purpose;
use crate::content::queue::Place;
use crate::content::refusal::Refusal;
use crate::content::store::{Claim, Token};
use crate::faults;
use crate::marks;
use crate::statements::{Recorder, waits};

/// The properties of the calling connection that determine how it waits for the writer slot.
pub(super) trait Caller {
    /// Identifies the connection: the address of its `sqlite3`.
    fn id(&self) -> usize;
    /// Whether its transaction has read this file before, so that it can't be given newer content.
    fn is_mid_transaction(&self) -> bool;
    /// Whether it may be about to write: not if all statements that it is running only read. (A backup into it runs no
    /// statement.)
    fn may_write(&self) -> bool;
    /// Whether it is in a transaction, even one that has not read yet.
    fn is_in_transaction(&self) -> bool;
    /// Whether it must not write what could corrupt a database (`SQLITE_DBCONFIG_DEFENSIVE`).
    fn is_defensive(&self) -> bool;
    /// Calls its busy handler, which waits. Returns whether to try again.
    fn call_busy_handler(&self) -> bool;
}

/// A connection as the engine's queue knows it.
pub(super) struct Claimant {
    pub(super) mount: Arc<Mount>,
    pub(super) token: Token,
    /// Dropped with the claimant, so that a busy handler that is called later detects that the claimant is gone.
    alive: Arc<()>,
    pub(super) purpose: Purpose,
}

impl Claimant {
    pub(super) fn new(mount: Arc<Mount>) -> Claimant {
        Claimant { mount, token: Token::new(), alive: Arc::new(()), purpose: Purpose::Uri }
    }

    fn claim(&self, read: Option<Snapshot>, reserve: Option<Duration>) -> Claim {
        Claim { token: self.token, purpose: self.purpose, read, reserve }
    }

    /// Announces the refusal to the busy handler that SQLite may call next.
    fn announce(&self, caller: &impl Caller, read: Option<Snapshot>, place: Place, is_fault: bool) {
        let (mount, alive) = (Arc::downgrade(&self.mount), Arc::downgrade(&self.alive));
        let claim = self.claim(read, Some(RESERVATION));
        waits::note_refusal();
        Pending::set(Pending { connection: caller.id(), mount, alive, claim, place, is_fault });
    }

    /// Remembers why a fault plan has refused a lock, and informs the busy handler.
    pub(super) fn refuse_by_fault(&self, caller: &impl Caller, by: faults::Order) {
        self.announce(caller, None, Place::new(), true);
        Refusal::Injected { by }.remember(self.mount.name());
    }
}

/// How long the slot is reserved for a connection that waited in a busy handler, until SQLite asks for it again. That
/// takes some microseconds, unless the thread is not running.
const RESERVATION: Duration = Duration::from_millis(100);

/// How long a connection keeps its place while it is away. SQLite's own busy handler sleeps for up to 100 ms at a time.
const KEPT: Duration = Duration::from_millis(200);

/// The shortest time that a connection waits in the queue between two calls of a busy handler that sleeps elsewhere.
const SHORTEST_TURN: Duration = Duration::from_millis(10);

/// A connection's wait for the writer slot.
pub(super) enum Wait {
    /// The connection does not wait.
    Idle,
    /// It was refused, and is expected to come back.
    Refused(Waiting),
    /// Its busy handler did not wait, or waits no longer. Code may retry without the handler.
    GaveUp(Waiting),
}

pub(super) struct Waiting {
    pub(super) place: Place,
    /// When it was refused last.
    refused_at: Instant,
    /// Whether its busy handler is known to have waited.
    handler_waited: bool,
    /// Whether the message about its wait was printed.
    is_reported: bool,
}

impl Waiting {
    fn new() -> Waiting {
        Waiting { place: Place::new(), refused_at: Instant::now(), handler_waited: false, is_reported: false }
    }

    /// Notes that the connection was refused again. Returns the refusal with the time since the first one.
    fn refuse(&mut self, mount: &Mount, refusal: Refusal) -> Refusal {
        self.refused_at = Instant::now();
        let refusal = refusal.after(self.place.age());
        self.report(mount, &refusal);
        refusal
    }

    /// Prints what the connection waits for, once, when it has been waiting for long.
    fn report(&mut self, mount: &Mount, refusal: &Refusal) {
        let after = if refusal.is_by_this_thread() { SELF_REPORTED_AFTER } else { REPORTED_AFTER };
        if !self.is_reported && self.place.age() >= after {
            self.is_reported = true;
            report_long_wait(mount, refusal);
        }
    }
}

impl Wait {
    pub(super) fn is_idle(&self) -> bool {
        matches!(self, Wait::Idle)
    }

    /// Ends the wait: the connection took the slot, or is now for another user.
    pub(super) fn end(&mut self) {
        *self = Wait::Idle;
    }

    fn take(&mut self) -> Option<Waiting> {
        match std::mem::replace(self, Wait::Idle) {
            Wait::Idle => None,
            Wait::Refused(waiting) | Wait::GaveUp(waiting) => Some(waiting),
        }
    }

    /// Takes the slot, or returns why not. The connection has read `read`.
    pub(super) fn acquire(
        &mut self,
        claimant: &Claimant,
        read: Option<&Snapshot>,
        caller: &impl Caller,
    ) -> Result<(), Refusal> {
        let claim = claimant.claim(read.cloned(), None);
        loop {
            match claimant.mount.store.try_acquire(&claim) {
                Ok(()) => {
                    if !self.is_idle() {
                        Pending::take_of(claim.token); // SQLite did not call the busy handler
                        self.end();
                    }
                    return Ok(());
                }
                Err(refusal) if !caller.is_mid_transaction() => {
                    return Err(self.refuse(claimant, caller, refusal.of_fresh_transaction()));
                }
                Err(refusal @ Refusal::Held { .. }) => self.wait_mid_transaction(claimant, read, caller, refusal)?,
                Err(refusal) => return Err(self.fail_to_serialize(claimant, refusal)),
            }
        }
    }

    fn wait_mid_transaction(
        &mut self,
        claimant: &Claimant,
        read: Option<&Snapshot>,
        caller: &impl Caller,
        refusal: Refusal,
    ) -> Result<(), Refusal> {
        let result = self.wait_by_busy_handler(claimant, caller, read, refusal);
        if matches!(self, Wait::GaveUp(waiting) if waiting.handler_waited) {
            self.end();
        }
        result
    }

    /// Ends the wait of a transaction whose content was replaced since it read. It has to be rolled back.
    fn fail_to_serialize(&mut self, claimant: &Claimant, refusal: Refusal) -> Refusal {
        self.end();
        report(&claimant.mount, claimant.purpose, &refusal);
        refusal.clone().remember(claimant.mount.name());
        refusal
    }

    /// Refuses a transaction that has read nothing. SQLite calls its busy handler next, if it has one that waits.
    fn refuse(&mut self, claimant: &Claimant, caller: &impl Caller, refusal: Refusal) -> Refusal {
        let gave_up = matches!(self, Wait::GaveUp(_));
        let mut waiting = self.take().unwrap_or_else(Waiting::new);
        let refusal = waiting.refuse(&claimant.mount, refusal);
        refusal.clone().remember(claimant.mount.name());
        match gave_up {
            false => {
                claimant.announce(caller, None, waiting.place, false);
                *self = Wait::Refused(waiting);
            }
            true if waiting.handler_waited => {} // it was the last word
            true => *self = Wait::GaveUp(waiting),
        }
        refusal
    }

    /// Called when the connection begins to read. If it was refused before, it may have come back for the writer slot.
    /// In that case it waits in the queue now, before it takes the snapshot that it reads. Otherwise it would find the
    /// slot taken each time while others wait.
    pub(super) fn come_back(&mut self, claimant: &Claimant, caller: &impl Caller) {
        if !self.keep_place() {
            return;
        }
        // The crate's busy handler takes the announcement. If an announcement is still there, it was for another busy
        // handler.
        let polls = Pending::take_of(claimant.token).is_some();
        if polls && caller.may_write() {
            let claim = claimant.claim(None, Some(RESERVATION));
            if let Err(refusal) = claimant.mount.store.try_acquire(&claim) {
                // It continues even if it does not get the slot, because it asks for the slot next.
                let _ = self.wait_by_busy_handler(claimant, caller, None, refusal);
            }
        }
    }

    /// Continues a wait at its place, or at a new place if that has expired. Returns whether there was a wait.
    fn keep_place(&mut self) -> bool {
        let Some(waiting) = self.take() else { return false };
        let has_expired = waiting.refused_at.elapsed() > KEPT;
        *self = Wait::Refused(if has_expired { Waiting::new() } else { waiting });
        true
    }

    /// Calls the connection's busy handler, until the slot is reserved or `read` is replaced. Fails when the handler
    /// gives up.
    fn wait_by_busy_handler(
        &mut self,
        claimant: &Claimant,
        caller: &impl Caller,
        read: Option<&Snapshot>,
        refusal: Refusal,
    ) -> Result<(), Refusal> {
        self.keep_place();
        let mut waiting = self.take().unwrap_or_else(Waiting::new);
        let refusal = waiting.refuse(&claimant.mount, refusal);
        let result = waiting.wait_in_turns(claimant, caller, read, refusal);
        *self = if result.is_ok() { Wait::Refused(waiting) } else { Wait::GaveUp(waiting) };
        result
    }
}

impl Waiting {
    fn wait_in_turns(
        &mut self,
        claimant: &Claimant,
        caller: &impl Caller,
        read: Option<&Snapshot>,
        mut refusal: Refusal,
    ) -> Result<(), Refusal> {
        let mount = &claimant.mount;
        let claim = || claimant.claim(read.cloned(), Some(RESERVATION));
        loop {
            claimant.announce(caller, read.cloned(), self.place, false);
            let start = Instant::now();
            let (tries_again, waited) = call(|| caller.call_busy_handler(), mount, claim(), self.place);
            let is_ours = Pending::take_of(claimant.token).is_none();
            if !tries_again {
                return Err(self.give_up(claimant, refusal, is_ours));
            }
            if is_ours {
                return Ok(());
            }
            self.handler_waited = true;
            let elsewhere = || wait(mount, &claim(), self.place, turn_after(start.elapsed()));
            match waited.unwrap_or_else(elsewhere) {
                Err(held @ Refusal::Held { .. }) => refusal = held,
                _ => return Ok(()), // if what was read was replaced, the connection learns that when it asks again
            }
            self.report(mount, &refusal);
        }
    }

    /// The busy handler waits no longer. If it is the crate's, it has already printed the messages.
    fn give_up(&mut self, claimant: &Claimant, refusal: Refusal, is_ours: bool) -> Refusal {
        let refusal = refusal.after(self.place.age());
        if is_ours {
            return refusal;
        }
        if self.handler_waited {
            report(&claimant.mount, claimant.purpose, &refusal);
        } else {
            self.report(&claimant.mount, &refusal); // code may retry by itself
        }
        refusal.clone().remember(claimant.mount.name());
        refusal
    }
}

/// Returns how long to wait in the queue after a busy handler has slept elsewhere: about as long. The time varies,
/// because the slot may be released at equal intervals. With a fixed time, the connection could be away at each
/// release.
fn turn_after(slept: Duration) -> Duration {
    slept.mul_f64(0.5 + fastrand::f64()).max(SHORTEST_TURN)
}

/// A refusal for which SQLite may call a busy handler next, on this thread.
///
/// If SQLite does not call it, this value stays until the next refusal of the connection, or until it has the slot. So
/// its effect must not last, and the claim is only for a reservation. There may be several: code in a busy handler may
/// use other connections, which may be refused too.
struct Pending {
    /// The connection of the busy handler: the address of a `sqlite3`. If another connection has the address by now,
    /// `alive` is dropped.
    connection: usize,
    mount: Weak<Mount>,
    alive: Weak<()>,
    claim: Claim,
    place: Place,
    /// Whether a fault plan has refused the lock. Then a wait may have no purpose.
    is_fault: bool,
}

/// A wait for which SQLite calls a busy handler repeatedly.
#[derive(Clone, Copy)]
struct HandlerCalls {
    connection: usize,
    tries: i32,
    start: Instant,
}

/// The wait in the queue while SQLite's own busy handler sleeps.
struct Sleeper {
    mount: Arc<Mount>,
    claim: Claim,
    place: Place,
    /// The result of the wait, once it has slept.
    result: Option<Result<(), Refusal>>,
}

thread_local! {
    static PENDING: RefCell<Vec<Pending>> = const { RefCell::new(Vec::new()) };
    static CALLS: Cell<Option<HandlerCalls>> = const { Cell::new(None) };
    static SLEEPER: RefCell<Option<Sleeper>> = const { RefCell::new(None) };
}

impl Pending {
    fn set(pending: Pending) {
        let _ = PENDING.try_with(|cell| {
            let mut all = cell.borrow_mut();
            all.retain(|other| other.claim.token != pending.claim.token && other.alive.strong_count() > 0);
            all.push(pending);
        });
    }

    /// Takes the latest one of these.
    fn take(is_it: impl FnMut(&Pending) -> bool) -> Option<Pending> {
        let take = |cell: &RefCell<Vec<Pending>>| {
            let mut all = cell.borrow_mut();
            all.iter().rposition(is_it).map(|index| all.remove(index))
        };
        PENDING.try_with(take).ok().flatten()
    }

    fn take_of(token: Token) -> Option<Pending> {
        Pending::take(|pending| pending.claim.token == token)
    }
}

/// The busy handler of the crate's connections: waits in the engine's queue. Returns whether SQLite should try again.
/// `tries` counts the calls for one statement.
pub(super) fn wait_in_turn(connection: usize, tries: i32) -> bool {
    let start = waiting_since(connection, tries);
    let pending = Pending::take(|pending| pending.connection == connection);
    let Some(pending) = pending.filter(|pending| pending.alive.strong_count() > 0) else {
        Refusal::forget();
        return poll(start, tries); // another database that this connection has attached is busy
    };
    waits::note_own_handler();
    let Some(mount) = pending.mount.upgrade() else { return false };
    let timeout = mount.store.lock_timeout();
    if pending.is_fault {
        return outlasts_fault(timeout);
    }
    match wait_and_report(&mount, &pending.claim, pending.place, timeout.saturating_sub(start.elapsed())) {
        // If the content that was read was replaced, SQLite detects that when it tries again.
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

/// Returns, without waiting, whether a wait would outlast a fault plan's refusals. A plan for one call has ended. A
/// plan for all later calls outlasts each wait.
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
        wait_and_report(self, claim, Place::new(), patience)
    }
}

/// Waits for the writer slot at this place in the queue. If the wait seems to be for the current thread, it is printed
/// early. A deadlock can't be proven, because another thread may own the holder by now and release the slot.
fn wait_and_report(mount: &Mount, claim: &Claim, place: Place, patience: Duration) -> Result<(), Refusal> {
    let (first, rest) = parts(patience);
    match wait(mount, claim, place, first) {
        Err(refusal @ Refusal::Held { .. }) if !rest.is_zero() => {
            if refusal.is_by_this_thread() {
                report_long_wait(mount, &refusal);
            }
            wait(mount, claim, place, rest)
        }
        result => result,
    }
}

/// Returns how long to wait before and after a report.
fn parts(patience: Duration) -> (Duration, Duration) {
    let first = patience.min(SELF_REPORTED_AFTER);
    (first, patience - first)
}

/// Waits for the writer slot at this place in the queue, and prints nothing.
fn wait(mount: &Mount, claim: &Claim, place: Place, patience: Duration) -> Result<(), Refusal> {
    mount.store.reached(marks::SLOT_ASKED);
    let start = Recorder::any_is_on().then(Instant::now);
    let result = mount.store.acquire(claim, place, patience);
    if let Some(start) = start {
        waits::add(start.elapsed());
    }
    match &result {
        Ok(()) => mount.store.reached_taken(claim),
        Err(_) => mount.store.reached(marks::SLOT_REFUSED),
    }
    result
}

/// Clears the refusals of this thread and the calls of its busy handler. A lock was taken, so a later wait is another
/// one.
pub(super) fn forget() {
    Refusal::forget();
    let _ = CALLS.try_with(|cell| cell.set(None));
}

/// Returns when the wait began. SQLite does not count from 0 for each kind of wait. So a call that does not follow the
/// last one begins another wait.
fn waiting_since(connection: usize, tries: i32) -> Instant {
    let follows = |calls: &HandlerCalls| calls.connection == connection && calls.tries + 1 == tries;
    let last = CALLS.try_with(Cell::get).ok().flatten().filter(follows);
    let start = last.map_or_else(Instant::now, |calls| calls.start);
    let _ = CALLS.try_with(|cell| cell.set(Some(HandlerCalls { connection, tries, start })));
    start
}

/// Does what rusqlite's default busy handler does: waits for 5 s, in small steps.
fn poll(start: Instant, tries: i32) -> bool {
    let patient = start.elapsed() < Duration::from_secs(5);
    if patient {
        thread::sleep(Duration::from_millis(u64::from(tries.unsigned_abs()).clamp(1, 50)));
    }
    patient
}

/// Calls a busy handler. If it is SQLite's own, it sleeps by a method of this VFS, which waits in the queue meanwhile.
/// Then returns the result of that wait too.
fn call(
    busy_handler: impl FnOnce() -> bool,
    mount: &Arc<Mount>,
    claim: Claim,
    place: Place,
) -> (bool, Option<Result<(), Refusal>>) {
    let sleeper = Sleeper { mount: mount.clone(), claim, place, result: None };
    let outer = SLEEPER.try_with(|cell| cell.replace(Some(sleeper))).ok().flatten();
    let tries_again = busy_handler();
    let sleeper = SLEEPER.try_with(|cell| cell.replace(outer)).ok().flatten();
    (tries_again, sleeper.and_then(|sleeper| sleeper.result))
}

/// Waits in the queue, if a busy handler is being called for an engine on this thread. Returns whether it waited.
pub(super) fn sleep(time: Duration) -> bool {
    let waits = |sleeper: &mut Sleeper| !matches!(sleeper.result, Some(Ok(())));
    // The value is not borrowed during the wait. A wait that has its slot does not sleep again. If it has the slot,
    // this sleep is of another connection, which code in the busy handler uses.
    let taken = SLEEPER.try_with(|cell| cell.borrow_mut().take_if(waits));
    let Some(mut sleeper) = taken.ok().flatten() else { return false };
    sleeper.result = Some(wait(&sleeper.mount, &sleeper.claim, sleeper.place, time));
    let _ = SLEEPER.try_with(|cell| cell.replace(Some(sleeper)));
    true
}

#[cfg(test)]
impl Wait {
    pub(super) fn place(&self) -> Option<Place> {
        match self {
            Wait::Idle => None,
            Wait::Refused(waiting) | Wait::GaveUp(waiting) => Some(waiting.place),
        }
    }

    /// Makes it as if the connection had stayed away for too long.
    pub(super) fn expire(&mut self) {
        if let Wait::Refused(waiting) | Wait::GaveUp(waiting) = self {
            waiting.refused_at -= 2 * KEPT;
        }
    }

    pub(super) fn gave_up_after_waiting(&self) -> bool {
        matches!(self, Wait::GaveUp(waiting) if waiting.handler_waited)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_expires_when_its_connection_stays_away() {
        let first = Waiting::new();
        let place = first.place;
        let mut wait = Wait::GaveUp(first);
        assert!(wait.keep_place());
        assert!(matches!(&wait, Wait::Refused(waiting) if !place.is_before(&waiting.place)), "it is kept");
        wait.expire();
        assert!(wait.keep_place());
        assert!(matches!(&wait, Wait::Refused(waiting) if place.is_before(&waiting.place)), "it is the last one now");
    }

    #[test]
    fn a_connection_that_was_not_refused_has_no_place_to_keep() {
        let mut wait = Wait::Idle;
        assert!(!wait.keep_place());
        assert!(wait.is_idle());
    }

    #[test]
    fn a_turn_is_about_as_long_as_the_busy_handler_has_slept() {
        assert_eq!(turn_after(Duration::ZERO), SHORTEST_TURN);
        let second = Duration::from_secs(1);
        for _ in 0..100 {
            assert!((second / 2..second * 3 / 2).contains(&turn_after(second)));
        }
    }

    #[test]
    fn a_wait_that_is_reported_takes_no_longer() {
        let second = Duration::from_secs(1);
        assert_eq!(parts(second), (SELF_REPORTED_AFTER, second - SELF_REPORTED_AFTER));
        assert_eq!(parts(SELF_REPORTED_AFTER / 2), (SELF_REPORTED_AFTER / 2, Duration::ZERO), "it is not reported");
    }

    #[test]
    fn a_busy_handler_that_has_the_slot_does_not_sleep_in_the_queue_again() {
        let mount = Mount::new(Snapshot::empty(), crate::vfs::Name::Numbered);
        let claimant = Claimant::new(mount.clone());
        let handler = || sleep(Duration::from_secs(60)) && !sleep(Duration::from_secs(60));
        let (both, result) = call(handler, &mount, claimant.claim(None, None), Place::new());
        assert!(both && matches!(result, Some(Ok(()))));
    }

    #[test]
    fn a_busy_handler_within_another_does_not_end_its_wait() {
        let mount = Mount::new(Snapshot::empty(), crate::vfs::Name::Numbered);
        let claimants = [(); 2].map(|()| Claimant::new(mount.clone()));
        let call_for = |claimant: &Claimant, handler: &dyn Fn() -> bool| {
            call(handler, &mount, claimant.claim(None, None), Place::new())
        };
        let outer = || {
            let (_, inner) = call_for(&claimants[1], &|| true);
            inner.is_none() && sleep(Duration::from_secs(60))
        };
        let (waited, result) = call_for(&claimants[0], &outer);
        assert!(waited && matches!(result, Some(Ok(()))));
    }

    #[test]
    fn a_sleep_that_is_for_no_engine_waits_in_no_queue() {
        assert!(!thread::spawn(|| sleep(Duration::from_secs(60))).join().unwrap());
    }

    fn pending_for(connection: usize, mount: &Arc<Mount>, alive: &Arc<()>) -> Pending {
        let claim = Claimant::new(mount.clone()).claim(None, Some(RESERVATION));
        let (mount, alive) = (Arc::downgrade(mount), Arc::downgrade(alive));
        Pending { connection, mount, alive, claim, place: Place::new(), is_fault: false }
    }

    #[test]
    fn the_busy_handler_takes_no_slot_for_a_connection_that_is_gone() {
        let mount = Mount::new(Snapshot::empty(), crate::vfs::Name::Numbered);
        Pending::set(pending_for(1, &mount, &Arc::new(()))); // its connection is dropped here
        assert!(wait_in_turn(1, 0), "it polls");
        let other = Claimant::new(mount.clone());
        assert!(mount.acquire(&other.claim(None, None), Duration::ZERO).is_ok(), "nothing is reserved");
    }

    #[test]
    fn the_busy_handler_tries_again_until_the_lock_timeout() {
        let (alive, connection) = (Arc::new(()), 2);
        for (timeout, tries, tries_again) in [(60, 0, true), (60, 1, true), (0, 0, true), (0, 1, false)] {
            let mount = Mount::new(Snapshot::empty(), crate::vfs::Name::Numbered);
            mount.store.set_lock_timeout(Duration::from_secs(timeout));
            Pending::set(pending_for(connection, &mount, &alive));
            assert_eq!(wait_in_turn(connection, tries), tries_again, "{timeout} s, {tries} tries");
        }
    }

    #[test]
    fn a_wait_lasts_as_long_as_its_connection_counts_on() {
        let start = waiting_since(3, 0);
        let later = |connection, tries| {
            thread::sleep(Duration::from_millis(1));
            waiting_since(connection, tries) != start
        };
        assert!(!later(3, 1) && !later(3, 2));
        assert!(later(3, 2), "it begins again");
        let start = waiting_since(3, 3);
        thread::sleep(Duration::from_millis(1));
        assert_ne!(waiting_since(4, 4), start, "another connection's");
    }

    #[test]
    fn polling_ends_after_five_seconds() {
        assert!(poll(Instant::now(), 1));
        assert!(!poll(Instant::now() - Duration::from_secs(6), 1));
    }
}
