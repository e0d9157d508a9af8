//! Dispatches operations: the only place that maps an operation to a method of an executor.

use super::operation::{CLIENTS, INITIAL_KINDS, Kind, Operation, Place, RowStatement};
use super::outcome::{Effect, Outcome};

/// An executor has a method for each kind of operation. It is engines, the store alone, or the model. All numbers are
/// in range.
pub(super) trait Executor<K, V> {
    /// Identifies the committed content of an engine. Equal content that was committed twice has two versions.
    type Version;

    fn version(&self, engine: usize) -> Self::Version;
    fn is_current(&self, engine: usize, version: &Self::Version) -> bool;
    fn engines(&self) -> usize;
    fn snapshots(&self) -> usize;
    /// The engine that a client is connected to.
    fn engine_of(&self, client: usize) -> Option<usize>;

    fn open(&mut self, client: usize, engine: usize, kind: Kind) -> Outcome<K, V>;
    fn execute(&mut self, client: usize, statement: &RowStatement<K, V>) -> Outcome<K, V>;
    fn begin(&mut self, client: usize, immediate: bool) -> Outcome<K, V>;
    fn commit(&mut self, client: usize) -> Outcome<K, V>;
    fn rollback(&mut self, client: usize) -> Outcome<K, V>;
    fn close(&mut self, client: usize) -> Outcome<K, V>;
    fn close_in_panic(&mut self, client: usize) -> Outcome<K, V> {
        self.close(client)
    }
    fn vacuum(&mut self, client: usize) -> Outcome<K, V>;
    fn take_snapshot(&mut self, engine: usize);
    fn restore(&mut self, engine: usize, snapshot: usize) -> Outcome<K, V>;
    fn reset(&mut self, engine: usize) -> Outcome<K, V>;
    fn fork(&mut self, engine: usize);
}

/// Carries out an operation. A client without a connection gets one first, if the operation needs it.
pub(super) fn apply<K, V>(executor: &mut impl Executor<K, V>, operation: &Operation<K, V>) -> Effect<K, V> {
    let engine = match operation.place() {
        Place::Engine(engine) => engine % executor.engines(),
        Place::Client(client) => executor.engine_of(client % CLIENTS).unwrap_or(0),
    };
    let before = executor.version(engine);
    if let Some(client) = operation.needs_connection().map(|client| client % CLIENTS)
        && executor.engine_of(client).is_none()
    {
        executor.open(client, 0, INITIAL_KINDS[client]);
    }
    let outcome = dispatch(executor, operation);
    Effect { outcome, replaced: !executor.is_current(engine, &before) }
}

fn dispatch<K, V>(executor: &mut impl Executor<K, V>, operation: &Operation<K, V>) -> Outcome<K, V> {
    let (engines, snapshots) = (executor.engines(), executor.snapshots());
    match operation {
        Operation::Open { client, engine, kind } => executor.open(client % CLIENTS, engine % engines, *kind),
        Operation::Do { client, statement } => executor.execute(client % CLIENTS, statement),
        Operation::Begin { client, immediate } => executor.begin(client % CLIENTS, *immediate),
        Operation::Commit { client } => executor.commit(client % CLIENTS),
        Operation::Rollback { client } => executor.rollback(client % CLIENTS),
        Operation::Drop { client } => executor.close(client % CLIENTS),
        Operation::Panic { client } => executor.close_in_panic(client % CLIENTS),
        Operation::Vacuum { client } => executor.vacuum(client % CLIENTS),
        Operation::Snapshot { engine } => {
            executor.take_snapshot(engine % engines);
            Outcome::Done
        }
        Operation::Restore { engine, snapshot } => executor.restore(engine % engines, snapshot % snapshots),
        Operation::Reset { engine } => executor.reset(engine % engines),
        Operation::Fork { engine } => {
            executor.fork(engine % engines);
            Outcome::Done
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Has two engines, three snapshots, a connection for each client, and lists of the numbers that it was called with.
    #[derive(Default)]
    struct Recorder {
        clients: Vec<usize>,
        engines: Vec<usize>,
        snapshots: Vec<usize>,
    }

    impl Recorder {
        fn record(&mut self, client: usize) -> Outcome<i64, i64> {
            self.clients.push(client);
            Outcome::Done
        }
    }

    impl Executor<i64, i64> for Recorder {
        type Version = ();

        fn version(&self, _: usize) {}

        fn is_current(&self, _: usize, (): &()) -> bool {
            true
        }

        fn engines(&self) -> usize {
            2
        }

        fn snapshots(&self) -> usize {
            3
        }

        fn engine_of(&self, client: usize) -> Option<usize> {
            (client < CLIENTS).then_some(0)
        }

        fn open(&mut self, client: usize, _: usize, _: Kind) -> Outcome<i64, i64> {
            self.record(client)
        }

        fn execute(&mut self, client: usize, _: &RowStatement<i64, i64>) -> Outcome<i64, i64> {
            self.record(client)
        }

        fn begin(&mut self, client: usize, _: bool) -> Outcome<i64, i64> {
            self.record(client)
        }

        fn commit(&mut self, client: usize) -> Outcome<i64, i64> {
            self.record(client)
        }

        fn rollback(&mut self, client: usize) -> Outcome<i64, i64> {
            self.record(client)
        }

        fn close(&mut self, client: usize) -> Outcome<i64, i64> {
            self.record(client)
        }

        fn vacuum(&mut self, client: usize) -> Outcome<i64, i64> {
            self.record(client)
        }

        fn take_snapshot(&mut self, engine: usize) {
            self.engines.push(engine);
        }

        fn restore(&mut self, engine: usize, snapshot: usize) -> Outcome<i64, i64> {
            self.snapshots.push(snapshot);
            self.reset(engine)
        }

        fn reset(&mut self, engine: usize) -> Outcome<i64, i64> {
            self.engines.push(engine);
            Outcome::Done
        }

        fn fork(&mut self, engine: usize) {
            self.engines.push(engine);
        }
    }

    #[test]
    fn clients_are_numbered_modulo_their_count() {
        for client in [0, 1, CLIENTS - 1, CLIENTS, CLIENTS + 1, 5 * CLIENTS + 2] {
            let mut recorder = Recorder::default();
            let operations = [
                Operation::Open { client, engine: 0, kind: Kind::Connection },
                Operation::Begin { client, immediate: true },
                Operation::Commit { client },
                Operation::Rollback { client },
                Operation::Vacuum { client },
                Operation::Drop { client },
                Operation::Panic { client },
                Operation::Do { client, statement: RowStatement::Read },
            ];
            for operation in &operations {
                apply(&mut recorder, operation);
            }
            assert_eq!(recorder.clients, [client % CLIENTS; 8]);
        }
    }

    #[test]
    fn engines_and_snapshots_are_numbered_modulo_their_count() {
        for (engine, snapshot) in [(0, 0), (1, 2), (2, 3), (7, 10)] {
            let mut recorder = Recorder::default();
            let operations = [
                Operation::Snapshot { engine },
                Operation::Restore { engine, snapshot },
                Operation::Reset { engine },
                Operation::Fork { engine },
            ];
            for operation in &operations {
                apply(&mut recorder, operation);
            }
            assert_eq!((recorder.engines, recorder.snapshots), (vec![engine % 2; 4], vec![snapshot % 3]));
        }
    }
}
