//! The writer slot of an engine. One connection at a time holds it; the others wait in a queue.
//!
//! ```text
//! the slot:   free ──acquire──▶ held, or reserved for a time
//!                  ◀──release── (the slot is offered to the first waiter)
//!                  ◀──expire─── (a reservation only)
//! a waiter:   Asleep ──offer──▶ Called ──mark_awake──▶ Awake ──offer──▶ has the slot
//! ```
//!
//! While the first waiter is waking up (`Called`), any connection that asks gets the slot, because waking a thread takes
//! longer than most units of work. A waiter that was passed over for 20 ms is handed the slot in any stage.

use std::sync::Arc;
use std::time::Duration;

use super::origin::{Origin, Purpose};
pub(crate) use super::queue::Token;
use super::queue::{Place, Queue, Stage, Waiter};
use super::refusal::Refusal;
use super::snapshot::Snapshot;
use crate::sync::{Condvar, Patience};

/// A claim to the writer slot.
pub(crate) struct Claim {
    pub(crate) token: Token,
    pub(crate) purpose: Purpose,
    /// The content that its transaction has read and builds on. If it is replaced, the claim is refused.
    pub(crate) read: Option<Snapshot>,
    /// How long the slot stays reserved, unless the token claims it before. `None` holds it until it is released.
    pub(crate) reserve: Option<Duration>,
}

/// The slot and its queue: a plain value, which its owner protects with a lock.
#[derive(Default)]
pub(super) struct Slot {
    writer: Option<Writer>,
    /// Invariant: while the slot is free, the first waiter is waking up ([`Stage::Called`]). An expired reservation does
    /// not make the slot free; the last waiter checks for that.
    pub(super) queue: Queue,
}

struct Writer {
    token: Token,
    origin: Origin,
    /// How long the slot is reserved. After that, any connection may take it.
    reserved: Option<Patience>,
}

impl Writer {
    fn holds(&self) -> bool {
        self.reserved.as_ref().is_none_or(Patience::lasts)
    }
}

/// How long a waiter may be passed over. After that, it is handed the slot in any stage.
pub(super) const MAX_PASSED_OVER: Duration = Duration::from_millis(20);

impl Slot {
    /// Takes the slot if it is free or the claimant has it already. A waiter with a place gets it only if it is the first.
    pub(super) fn acquire(&mut self, claim: &Claim, place: Option<Place>) -> Result<(), Refusal> {
        let reserved = claim.reserve.map(Patience::of);
        let before = place.and_then(|place| self.queue.first_before(place)).map(|first| first.origin.clone());
        match (&mut self.writer, before) {
            (Some(writer), _) if writer.token == claim.token => writer.reserved = reserved,
            (Some(writer), _) if writer.holds() => {
                return Err(Refusal::Held { by: writer.origin.clone(), waited: Duration::ZERO });
            }
            (_, Some(by)) => {
                self.end_expired_reservation();
                return Err(Refusal::Held { by, waited: Duration::ZERO });
            }
            _ => self.writer = Some(Writer { token: claim.token, origin: Origin::here(claim.purpose), reserved }),
        }
        Ok(())
    }

    fn end_expired_reservation(&mut self) {
        if self.writer.take_if(|writer| !writer.holds()).is_some() {
            self.offer();
        }
    }

    /// Returns the connection that holds the slot or has reserved it.
    pub(super) fn holder(&self) -> Option<&Origin> {
        self.writer.as_ref().map(|writer| &writer.origin)
    }

    /// Returns whether no connection holds the slot or waits for it.
    pub(super) fn is_unused(&self) -> bool {
        self.writer.is_none() && self.queue.is_empty()
    }

    /// Returns whether the slot is held with this token, and not only reserved.
    pub(super) fn is_held_by(&self, token: Token) -> bool {
        self.writer.as_ref().is_some_and(|writer| writer.token == token && writer.reserved.is_none())
    }

    pub(super) fn release(&mut self, token: Token) {
        if self.writer.as_ref().is_some_and(|writer| writer.token == token) {
            self.writer = None;
            self.offer();
        }
    }

    pub(super) fn enqueue(&mut self, claim: &Claim, place: Place) -> Arc<Condvar> {
        let woken = Arc::new(Condvar::new());
        let (token, has_read) = (claim.token, claim.read.is_some());
        let origin = Origin::waiting(claim.purpose);
        self.queue.enter(Waiter { token, origin, place, has_read, woken: woken.clone(), stage: Stage::Asleep });
        woken
    }

    pub(super) fn leave_queue(&mut self, place: Place) {
        self.queue.leave(place);
        if !self.writer.as_ref().is_some_and(Writer::holds) {
            self.offer();
        }
    }

    /// Hands the free slot to the first waiter if it is awake or was passed over for long; wakes it if it sleeps.
    pub(super) fn offer(&mut self) {
        match self.queue.first_mut() {
            Some(first) if first.stage == Stage::Awake || first.place.age() >= MAX_PASSED_OVER => {
                first.woken.notify_one(); // it may have gone back to sleep
                self.writer = self.queue.take_first().map(|first| {
                    let origin = first.origin.with_slot();
                    Writer { token: first.token, origin, reserved: None }
                });
            }
            // A called waiter need not be called again; that would only take time (exempted in mutants.toml).
            Some(first) if first.stage == Stage::Asleep => {
                first.stage = Stage::Called;
                first.woken.notify_one();
            }
            _ => {}
        }
    }
}
