//! Settings that a developer makes by environment variables, for example while a test runs in a debugger.

use std::env;
use std::time::Duration;

/// Returns the duration that the environment variable sets in seconds, or `default` if the variable is not set, or empty.
///
/// # Panics
/// If the value is not a number of seconds.
pub(crate) fn duration(variable: &str, default: Duration) -> Duration {
    let Some(value) = env::var_os(variable).filter(|value| !value.is_empty()) else { return default };
    let value = value.to_string_lossy();
    seconds(&value).unwrap_or_else(|| {
        panic!(
            "can't use the environment variable {variable}={value:?}: it is not a number of seconds, such as 600 or 0.5"
        )
    })
}

fn seconds(text: &str) -> Option<Duration> {
    Duration::try_from_secs_f64(text.trim().parse().ok()?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_duration_is_a_number_of_seconds() {
        assert_eq!(seconds("600"), Some(Duration::from_secs(600)));
        assert_eq!(seconds(" 0.25 "), Some(Duration::from_millis(250)));
        assert_eq!(seconds("0"), Some(Duration::ZERO));
        for wrong in ["", "5s", "-1", "NaN", "inf", "1e99"] {
            assert_eq!(seconds(wrong), None, "{wrong:?}");
        }
    }
}
