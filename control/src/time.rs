//! Times as people type them: `90s`, `5m`, `1h 30m`.

use std::time::Duration;

/// A time that is not nothing.
///
/// # Errors
/// Says what a time looks like.
pub fn parse(typed: &str) -> Result<Duration, String> {
    match humantime::parse_duration(typed) {
        Ok(time) if !time.is_zero() => Ok(time),
        _ => Err("a time is such as 90s, 5m or 2h, and more than nothing".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_and_nothing_is_none() {
        assert_eq!(parse("1m 30s"), Ok(Duration::from_secs(90)));
        for wrong in ["", "abc", "10", "0s", "-1s"] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
    }
}
