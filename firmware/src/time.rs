//! Time as the library sees it: microseconds of a clock that the caller reads and hands in, so that tests own it.

/// A point in time; 64 bits of microseconds outlive any node.
pub type Instant = fugit::Instant<u64, 1, 1_000_000>;

/// A span of time.
pub type Duration = fugit::Duration<u64, 1, 1_000_000>;

/// The instant `span` behind `start`; unlike `+`, it has no branch that panics.
#[must_use]
pub const fn after(start: Instant, span: Duration) -> Instant {
    Instant::from_ticks(start.ticks().wrapping_add(span.ticks()))
}
