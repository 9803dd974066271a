//! From bytes and their times to frames: a frame ends with 3.5 characters of silence, and a pause of more than 1.5 within
//! it makes it void (SL §2.5.1.1).

use core::num::NonZeroU32;

use super::FRAME_MAX;
use crate::time::{Duration, Instant};

/// Bits of a character: start, eight data, parity or a second stop bit, stop (SL §2.5.1). With 8N1 it is one less, and the
/// times are a tenth generous.
const CHARACTER_BITS: u32 = 11;

/// Above this the two times are fixed (SL §2.5.1.1).
const FIXED_ABOVE_BAUD: u32 = 19_200;
const FIXED_PAUSE: Duration = Duration::micros(750);
const FIXED_SILENCE: Duration = Duration::micros(1_750);

/// The times of a line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timing {
    /// One character on the wire.
    pub character: Duration,
    /// Longest pause within a frame: 1.5 characters.
    pub pause: Duration,
    /// Shortest silence between two frames: 3.5 characters.
    pub silence: Duration,
}

/// `span` and a character: what lies between the ends of two characters with `span` between them. Unlike `+` it has no
/// branch that panics.
const fn and(span: Duration, character: Duration) -> Duration {
    Duration::from_ticks(span.ticks().wrapping_add(character.ticks()))
}

impl Timing {
    /// The times at so many bits a second.
    #[must_use]
    pub fn at(baud: NonZeroU32) -> Self {
        let bits = |bits: u32| Duration::micros(u64::from((bits * 1_000_000).div_ceil(baud.get())));
        let character = bits(CHARACTER_BITS);
        if baud.get() > FIXED_ABOVE_BAUD {
            return Self { character, pause: FIXED_PAUSE, silence: FIXED_SILENCE };
        }
        Self { character, pause: bits(CHARACTER_BITS * 3 / 2), silence: bits(CHARACTER_BITS * 7 / 2) }
    }
}

/// Gathers one frame.
#[derive(Debug, Clone)]
pub struct Framer {
    timing: Timing,
    buffer: [u8; FRAME_MAX],
    length: usize,
    /// When the last character ended; none while the line is silent and empty.
    last: Option<Instant>,
    /// It had a pause, a garbled character, or too many.
    void: bool,
}

/// What was on the line until it fell silent.
#[derive(Debug, PartialEq, Eq)]
pub enum Heard<'a> {
    /// Bytes without a break; the checksum is not looked at yet.
    Frame(&'a [u8]),
    /// A frame that cannot be right.
    Void,
}

impl Framer {
    /// Nothing heard yet.
    #[must_use]
    pub const fn new(timing: Timing) -> Self {
        Self { timing, buffer: [0; FRAME_MAX], length: 0, last: None, void: false }
    }

    /// Takes a character that ended at `at`, or a garbled one.
    pub fn take(&mut self, character: Option<u8>, at: Instant) {
        if let Some(since) = self.last.and_then(|last| at.checked_duration_since(last)) {
            if since >= and(self.timing.silence, self.timing.character) {
                // Nobody asked for the frame before: whoever sent it has gone on, and must not get an answer now.
                self.clear();
            } else if since > and(self.timing.pause, self.timing.character) {
                self.void = true;
            }
        }
        self.last = Some(at);
        match (character, self.buffer.get_mut(self.length)) {
            (Some(byte), Some(place)) => {
                *place = byte;
                self.length += 1;
            }
            (None, _) | (_, None) => self.void = true,
        }
    }

    /// What was heard, once the line has been silent long enough; each frame once.
    pub fn heard(&mut self, now: Instant) -> Option<Heard<'_>> {
        let silent = now.checked_duration_since(self.last?)?;
        if silent < self.timing.silence {
            return None;
        }
        let (length, void) = (self.length, self.void);
        self.clear();
        Some(self.buffer.get(..length).filter(|_| !void).map_or(Heard::Void, Heard::Frame))
    }

    /// Whether nothing is under way.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.last.is_none()
    }

    /// Forgets what was heard.
    pub const fn clear(&mut self) {
        self.length = 0;
        self.last = None;
        self.void = false;
    }
}

#[cfg(test)]
mod tests {
    use std::vec::Vec;

    use super::*;

    fn timing(baud: u32) -> Timing {
        Timing::at(NonZeroU32::new(baud).expect("a speed"))
    }

    /// Feeds bytes with the silence before each, in characters of 9600 baud; returns what the line was heard to say, asked
    /// every 100 µs.
    fn listen(bytes: &[(u8, f64)]) -> Vec<Option<Vec<u8>>> {
        let timing = timing(9_600);
        let mut framer = Framer::new(timing);
        let (mut now, mut heard) = (Instant::from_ticks(0), Vec::new());
        let mut wait = |framer: &mut Framer, until: Instant, now: &mut Instant| {
            while *now < until {
                if let Some(said) = framer.heard(*now) {
                    heard.push(match said {
                        Heard::Frame(bytes) => Some(bytes.to_vec()),
                        Heard::Void => None,
                    });
                }
                *now += Duration::micros(100);
            }
        };
        let mut end = now;
        for &(byte, silence) in bytes {
            let micros = (1.0 + silence) * timing.character.to_micros() as f64;
            end += Duration::micros(micros as u64);
            wait(&mut framer, end, &mut now);
            framer.take(Some(byte), end);
        }
        wait(&mut framer, end + Duration::millis(20), &mut now);
        heard
    }

    #[test]
    fn the_times_are_those_of_the_standard() {
        let slow = timing(9_600);
        assert_eq!(
            (slow.character.to_micros(), slow.pause.to_micros(), slow.silence.to_micros()),
            (1_146, 1_667, 3_959)
        );
        let at_limit = timing(19_200);
        assert_eq!((at_limit.pause.to_micros(), at_limit.silence.to_micros()), (834, 1_980));
        let fast = timing(115_200);
        assert_eq!((fast.pause.to_micros(), fast.silence.to_micros()), (750, 1_750));
    }

    #[test]
    fn silence_ends_a_frame() {
        let heard = listen(&[(1, 0.0), (2, 0.0), (3, 1.2), (4, 4.0), (5, 0.0)]);
        assert_eq!(heard, [Some([1, 2, 3].to_vec()), Some([4, 5].to_vec())]);
    }

    #[test]
    fn a_pause_within_a_frame_makes_it_void_and_not_the_next() {
        assert_eq!(listen(&[(1, 0.0), (2, 2.0), (3, 0.0), (4, 4.0)]), [None, Some([4].to_vec())]);
    }

    #[test]
    fn two_requests_without_silence_are_one_frame() {
        assert_eq!(listen(&[(1, 0.0), (2, 0.0), (3, 1.0)]), [Some([1, 2, 3].to_vec())]);
    }

    #[test]
    fn too_many_bytes_are_void() {
        let mut framer = Framer::new(timing(115_200));
        for _ in 0..=FRAME_MAX {
            framer.take(Some(7), Instant::from_ticks(0));
        }
        assert_eq!(framer.heard(Instant::from_ticks(2_000)), Some(Heard::Void));
        assert_eq!(framer.heard(Instant::from_ticks(9_000)), None);
    }

    #[test]
    fn a_garbled_character_makes_the_frame_void() {
        let mut framer = Framer::new(timing(115_200));
        framer.take(Some(1), Instant::from_ticks(0));
        framer.take(None, Instant::from_ticks(100));
        assert_eq!(framer.heard(Instant::from_ticks(2_000)), Some(Heard::Void));
    }

    #[test]
    fn a_frame_that_nobody_took_in_time_is_gone() {
        let mut framer = Framer::new(timing(115_200));
        framer.take(Some(1), Instant::from_ticks(0));
        framer.take(Some(2), Instant::from_ticks(50_000));
        assert_eq!(framer.heard(Instant::from_ticks(52_000)), Some(Heard::Frame(&[2])));
    }
}
