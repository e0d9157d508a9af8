//! Compares subjects with the model.

use std::fmt::{self, Debug};

use super::model::Model;
use super::operation::Operation;
use super::outcome::Effect;

/// Something that carries out operations, to be compared with the model.
pub trait Subject<K, V> {
    /// Carries out the operation, and returns its effect.
    fn apply(&mut self, operation: &Operation<K, V>) -> Effect<K, V>;
}

/// A difference between a subject and the model: where it is, what was expected, and what was found.
#[derive(Clone, PartialEq, Eq)]
pub struct Difference {
    at: String,
    expected: String,
    got: String,
}

impl Difference {
    pub(super) fn new(at: impl Into<String>, expected: &impl Debug, got: &impl Debug) -> Difference {
        Difference { at: at.into(), expected: format!("{expected:?}"), got: format!("{got:?}") }
    }
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: expected {}, got {}", self.at, self.expected, self.got)
    }
}

impl Debug for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl std::error::Error for Difference {}

impl<K, V> Model<K, V>
where
    K: Clone + Debug + Ord,
    V: Clone + Debug + PartialEq,
{
    /// Carries out the operations on the subject and on this model, up to the first difference.
    ///
    /// # Errors
    /// The first difference.
    pub fn compare(
        &mut self,
        subject: &mut impl Subject<K, V>,
        operations: &[Operation<K, V>],
    ) -> Result<(), Difference> {
        for (step, operation) in operations.iter().enumerate() {
            let got = subject.apply(operation);
            let expected = self.apply(operation, got.replaced);
            if got != expected {
                let at = format!("step {} of {}, {operation:?}", step + 1, operations.len());
                return Err(Difference::new(at, &expected, &got));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_difference_is_printed_in_words() {
        let difference = Difference::new("the end", &1, &2);
        assert_eq!(
            (difference.to_string(), format!("{difference:?}")),
            ("the end: expected 1, got 2".into(), difference.to_string())
        );
    }
}
