//! How durations, sizes, addresses and URLs are spelled in the configuration.

use std::{net::Ipv6Addr, time::Duration};

/// The units of a duration, in milliseconds, largest first.
const UNITS_MS: [(&str, u64); 5] = [("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1_000), ("ms", 1)];

/// Parses `500ms`, `5s`, `10m`, `2h`, `7d`.
pub fn duration(text: &str) -> Option<Duration> {
    let digits = text.find(|c: char| !c.is_ascii_digit())?;
    let (number, unit) = text.split_at(digits);
    let unit_ms = UNITS_MS.into_iter().find(|(name, _)| *name == unit)?.1;
    number.parse::<u64>().ok()?.checked_mul(unit_ms).map(Duration::from_millis)
}

/// Spells a duration of whole milliseconds in the largest unit that fits exactly.
#[must_use]
pub fn show_duration(duration: Duration) -> String {
    let ms = duration.as_millis();
    let fits = |unit_ms: u64| ms > 0 && ms.is_multiple_of(u128::from(unit_ms));
    let (unit, unit_ms) = UNITS_MS.into_iter().find(|(_, ms)| fits(*ms)).unwrap_or(("s", 1_000));
    format!("{}{unit}", ms / u128::from(unit_ms))
}

/// The units of a size, in bytes, largest first. Only these, so that nobody wonders which of two MB is meant.
const UNITS_BYTES: [(&str, u64); 4] = [("TiB", 1 << 40), ("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)];

/// Parses `512KiB`, `256MiB`, `2GiB`, `1TiB` to bytes.
pub fn size(text: &str) -> Option<u64> {
    let digits = text.find(|c: char| !c.is_ascii_digit())?;
    let (number, unit) = text.split_at(digits);
    let unit_bytes = UNITS_BYTES.into_iter().find(|(name, _)| *name == unit)?.1;
    number.parse::<u64>().ok()?.checked_mul(unit_bytes)
}

/// Spells a size of whole KiB as [`size`] reads it, in the largest unit that fits exactly.
#[must_use]
pub fn show_size(bytes: u64) -> String {
    let fits = |unit_bytes: u64| bytes > 0 && bytes.is_multiple_of(unit_bytes);
    let (unit, unit_bytes) = UNITS_BYTES.into_iter().find(|(_, bytes)| fits(*bytes)).unwrap_or(("KiB", 1 << 10));
    format!("{}{unit}", bytes / unit_bytes)
}

/// Spells a measured size for people, in the largest unit of which it has one, with at most one decimal.
#[must_use]
pub fn about_size(bytes: u64) -> String {
    let Some((unit, unit_bytes)) = UNITS_BYTES.into_iter().find(|(_, unit_bytes)| bytes >= *unit_bytes) else {
        return format!("{bytes} B");
    };
    let tenths = u128::from(bytes) * 10 / u128::from(unit_bytes);
    if tenths < 100 { format!("{}.{} {unit}", tenths / 10, tenths % 10) } else { format!("{} {unit}", tenths / 10) }
}

/// Why a URL is not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum UrlError {
    /// A login inside: it would end up in logs. The text must not be repeated.
    Login,
    /// Anything else.
    Shape,
}

/// A scheme of a URL: its name, what it stands for, and the port unless one is written.
pub(super) type UrlScheme<T> = (&'static str, T, u16);

/// Parses `{scheme}://host[:port]` to scheme, host and port. An IPv6 address keeps its brackets, as in a URL.
pub(super) fn url<T: Copy>(text: &str, schemes: &[UrlScheme<T>]) -> Result<(T, String, u16), UrlError> {
    if text.contains('@') {
        return Err(UrlError::Login);
    }
    let (found, rest) = text.split_once("://").ok_or(UrlError::Shape)?;
    let (_, scheme, port_default) = *schemes.iter().find(|(name, ..)| *name == found).ok_or(UrlError::Shape)?;
    let (host, port) = match rest.rsplit_once(':') {
        Some((host, port)) if !port.ends_with(']') => (host, port_number(port).ok_or(UrlError::Shape)?),
        _ => (rest, port_default),
    };
    if is_host(host) { Ok((scheme, host.to_owned(), port)) } else { Err(UrlError::Shape) }
}

fn port_number(text: &str) -> Option<u16> {
    text.bytes().all(|b| b.is_ascii_digit()).then(|| text.parse().ok()).flatten().filter(|port| *port > 0)
}

/// A DNS name (RFC 1123, underscores tolerated as resolvers do), an IPv4 address, or an IPv6 address in brackets.
fn is_host(text: &str) -> bool {
    if let Some(inside) = text.strip_prefix('[').and_then(|t| t.strip_suffix(']')) {
        return inside.parse::<Ipv6Addr>().is_ok();
    }
    let is_label = |label: &str| {
        (1..=63).contains(&label.len())
            && label.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'))
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    let only_digits = text.bytes().all(|b| b.is_ascii_digit() || b == b'.');
    text.len() <= 253 && text.split('.').all(is_label) && (!only_digits || text.parse::<std::net::Ipv4Addr>().is_ok())
}

/// Whether the text is a JSON pointer (RFC 6901 §3).
pub(super) fn is_json_pointer(text: &str) -> bool {
    let escaped = |t: &str| t.split('~').skip(1).all(|after| after.starts_with(['0', '1']));
    (text.is_empty() || text.starts_with('/')) && escaped(text)
}

/// Whether the text has the shape of an IANA time zone.
pub(super) fn is_time_zone(text: &str) -> bool {
    let is_part = |part: &str| {
        part.starts_with(|c: char| c.is_ascii_uppercase())
            && part.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b'+'))
    };
    text == "UTC" || ((2..=3).contains(&text.split('/').count()) && text.len() <= 64 && text.split('/').all(is_part))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_have_one_whole_number_and_one_unit() {
        for (text, ms) in [("500ms", 500), ("5s", 5_000), ("10m", 600_000), ("2h", 7_200_000), ("7d", 604_800_000)] {
            assert_eq!(duration(text), Some(Duration::from_millis(ms)), "{text}");
            assert_eq!(show_duration(Duration::from_millis(ms)), text);
        }
        assert_eq!(duration("0s"), Some(Duration::ZERO));
        assert_eq!(show_duration(Duration::ZERO), "0s");
        assert_eq!(show_duration(Duration::from_millis(1_500)), "1500ms");
        for bad in ["", "5", "s", "1.5s", "-1s", "5 s", "1h30m", "5S", "99999999999999999999d", "18446744073709551615d"]
        {
            assert_eq!(duration(bad), None, "{bad}");
        }
    }

    #[test]
    fn sizes_have_one_whole_number_and_one_unit() {
        for (text, bytes) in [
            ("0KiB", 0),
            ("512KiB", 512 << 10),
            ("256MiB", 256 << 20),
            ("3GiB", 3 << 30),
            ("1025MiB", 1025 << 20),
            ("1TiB", 1 << 40),
        ] {
            assert_eq!(size(text), Some(bytes), "{text}");
            assert_eq!(show_size(bytes), text);
        }
        for bad in ["", "5", "MiB", "1.5GiB", "-1MiB", "5 MiB", "5MB", "5mib", "17179869184GiB"] {
            assert_eq!(size(bad), None, "{bad}");
        }
    }

    #[test]
    fn a_measured_size_is_rounded_down_to_what_people_remember() {
        for (bytes, shown) in
            [(0, "0 B"), (1_023, "1023 B"), (1_536, "1.5 KiB"), (12 << 20, "12 MiB"), (2 << 30, "2.0 GiB")]
        {
            assert_eq!(about_size(bytes), shown);
        }
    }

    #[test]
    fn a_url_is_a_scheme_a_host_and_perhaps_a_port() {
        let parse = |text| url(text, &[("mqtt", 'p', 1883), ("mqtts", 't', 8883)]);
        for (text, scheme, host, port) in [
            ("mqtt://127.0.0.1", 'p', "127.0.0.1", 1883),
            ("mqtt://cc1.example.go.id:8884", 'p', "cc1.example.go.id", 8884),
            ("mqtt://[fd00::1]", 'p', "[fd00::1]", 1883),
            ("mqtt://[fd00::1]:99", 'p', "[fd00::1]", 99),
            ("mqtts://mosquitto", 't', "mosquitto", 8883),
            ("mqtts://mosquitto:1883", 't', "mosquitto", 1883),
        ] {
            assert_eq!(parse(text), Ok((scheme, host.to_owned(), port)), "{text}");
        }
        assert_eq!(parse("ws://a"), Err(UrlError::Shape));
        assert_eq!(parse("mqtt://user:rahasia@a"), Err(UrlError::Login));
        for bad in [
            "",
            "a",
            "http://a",
            "mqttss://a",
            "mqtt://",
            "mqtt://a:",
            "mqtt://a:0",
            "mqtt://a:65536",
            "mqtt://a:+1",
            "mqtt://a/b",
            "mqtt://a?b",
            "mqtt://a b",
            "mqtt://fd00::1",
            "mqtt://[x]",
            "mqtt://-a",
            "mqtt://300.1.1.1",
            "mqtt://1.2",
        ] {
            assert_eq!(parse(bad), Err(UrlError::Shape), "{bad}");
        }
    }

    #[test]
    fn pointers_and_zones_have_their_shapes() {
        assert!(["", "/", "/a/b~0~1", "/0"].into_iter().all(is_json_pointer));
        assert!(!["a", "/a~", "/a~2"].into_iter().any(is_json_pointer));
        assert!(["UTC", "Asia/Jakarta", "America/Argentina/Ushuaia", "Etc/GMT+7"].into_iter().all(is_time_zone));
        assert!(!["", "WIB", "Asia/", "asia/jakarta", "Asia/Ja karta", "../etc"].into_iter().any(is_time_zone));
    }
}
