//! Values of the command line: `500ms`, `1k`, `4KiB`.

use std::time::Duration;

/// Parses a duration such as `500ms`, `5s` or `2m`; a bare number is refused.
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    let parsed =
        humantime::parse_duration(text).map_err(|error| format!("{error}; write it as 500ms, 5s or 2m"))?;
    if parsed.is_zero() {
        return Err("a duration must be longer than 0".into());
    }
    Ok(parsed)
}

/// Parses a duration that may be 0.
pub(crate) fn duration_or_zero(text: &str) -> Result<Duration, String> {
    if text.trim_start_matches('0').is_empty() && !text.is_empty() {
        return Ok(Duration::ZERO);
    }
    humantime::parse_duration(text).map_err(|error| format!("{error}; write it as 500ms, 5s or 0"))
}

/// Parses a count such as `64`, `1k` or `1M`.
pub(crate) fn count(text: &str) -> Result<usize, String> {
    let (digits, factor) = split_suffix(text, &[("k", 1_000), ("K", 1_000), ("M", 1_000_000)]);
    match multiply(digits, factor) {
        Some(0) => Err("a count must be at least 1".into()),
        Some(value) => Ok(value),
        None => Err(format!("'{text}' is not a count; write it as 64, 1k or 1M")),
    }
}

/// Parses a size such as `64`, `4KiB`, `16kB` or `1MiB`.
pub(crate) fn size(text: &str) -> Result<usize, String> {
    const SUFFIXES: [(&str, usize); 7] = [
        ("KiB", 1 << 10),
        ("MiB", 1 << 20),
        ("kB", 1_000),
        ("MB", 1_000_000),
        ("k", 1 << 10),
        ("M", 1 << 20),
        ("B", 1),
    ];
    let (digits, factor) = split_suffix(text, &SUFFIXES);
    multiply(digits, factor).ok_or_else(|| format!("'{text}' is not a size; write it as 64, 4KiB or 1MiB"))
}

/// Parses an effect such as `2%` or `0.02` into a fraction.
pub(crate) fn effect(text: &str) -> Result<f64, String> {
    fraction(text)
        .filter(|value| (0.0..1.0).contains(value))
        .ok_or_else(|| format!("'{text}' is not an effect from 0% to below 100%; write it as 2% or 0.02"))
}

/// Parses a share such as `5%` or `0.05` into a fraction.
pub(crate) fn share(text: &str) -> Result<f64, String> {
    fraction(text)
        .filter(|value| (0.0..=1.0).contains(value))
        .ok_or_else(|| format!("'{text}' is not a share from 0% to 100%; write it as 5% or 0.05"))
}

fn fraction(text: &str) -> Option<f64> {
    let (digits, scale) = text.strip_suffix('%').map_or((text, 1.0), |digits| (digits, 100.0));
    digits.trim().parse::<f64>().ok().map(|value| value / scale)
}

fn split_suffix<'a>(text: &'a str, suffixes: &[(&str, usize)]) -> (&'a str, usize) {
    suffixes
        .iter()
        .find_map(|(suffix, factor)| text.strip_suffix(suffix).map(|digits| (digits.trim(), *factor)))
        .unwrap_or((text, 1))
}

fn multiply(digits: &str, factor: usize) -> Option<usize> {
    digits.parse::<usize>().ok()?.checked_mul(factor)
}

/// Writes a whole number with thousands set apart: `202,865`.
pub(crate) fn grouped(value: u64) -> String {
    let digits = value.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// Writes a number of bytes in the binary unit that suits it.
pub(crate) fn bytes(value: u64) -> String {
    const UNITS: [(&str, u64); 3] = [("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)];
    UNITS
        .iter()
        .find(|(_, unit)| value >= *unit)
        .map_or_else(|| format!("{value} B"), |(name, unit)| scaled(value, *unit, name))
}

fn scaled(value: u64, unit: u64, name: &str) -> String {
    if value.is_multiple_of(unit) {
        return format!("{} {name}", value / unit);
    }
    format!("{:.1} {name}", value as f64 / unit as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_need_a_unit_and_a_length() {
        assert_eq!(duration("500ms"), Ok(Duration::from_millis(500)));
        assert_eq!(duration("5s"), Ok(Duration::from_secs(5)));
        assert!(duration("5").is_err());
        assert!(duration("0s").is_err());
        assert_eq!(duration_or_zero("0"), Ok(Duration::ZERO));
        assert!(duration_or_zero("").is_err());
    }

    #[test]
    fn counts_and_sizes_take_suffixes() {
        assert_eq!(count("1k"), Ok(1_000));
        assert_eq!(count("1M"), Ok(1_000_000));
        assert!(count("0").is_err());
        assert!(count("1kk").is_err());
        assert_eq!(size("64"), Ok(64));
        assert_eq!(size("4KiB"), Ok(4_096));
        assert_eq!(size("16kB"), Ok(16_000));
        assert!(size("99999999999999999999MiB").is_err());
    }

    #[test]
    fn shares_have_both_ends() {
        assert_eq!((share("0%"), share("100%"), share("0.05")), (Ok(0.0), Ok(1.0), Ok(0.05)));
        assert!(share("101%").is_err() && share("-1%").is_err() && share("nan").is_err());
    }

    #[test]
    fn effects_are_fractions_or_per_cents() {
        assert_eq!(effect("2%"), Ok(0.02));
        assert_eq!(effect("0.05"), Ok(0.05));
        assert!(effect("150%").is_err());
        assert!(effect("-1%").is_err());
    }

    #[test]
    fn numbers_are_written_for_people() {
        assert_eq!(grouped(202_865), "202,865");
        assert_eq!(grouped(7), "7");
        assert_eq!(bytes(64), "64 B");
        assert_eq!(bytes(4096), "4 KiB");
        assert_eq!(bytes(12 * (1 << 20) + (1 << 19)), "12.5 MiB");
    }
}
