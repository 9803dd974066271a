//! What the slave counts about its line, and function 8 that reads it (AP §6.8, SL appendix A.1).

use super::Exception;

/// Counters since the start, or since a master cleared them; each wraps.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Diagnostics {
    /// Frames on the bus with a right checksum, whoever they were for.
    pub bus_messages: u16,
    /// Frames that were cut, garbled or had a wrong checksum.
    pub bus_errors: u16,
    /// Exceptions, those to a broadcast included, which nobody hears.
    pub exceptions: u16,
    /// Requests to this node or to everyone.
    pub messages: u16,
    /// Requests to it that got no answer.
    pub no_responses: u16,
    /// Characters that were lost because nobody took them in time.
    pub overruns: u16,
    mode: Mode,
}

/// Whether the slave speaks.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum Mode {
    #[default]
    Online,
    /// Told to be silent; only a restart of communications ends it.
    ListenOnly,
}

/// What becomes of a request of function 8.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Outcome {
    /// The request comes back as it is.
    Echo,
    /// The subfunction comes back with this number.
    Number(u16),
    /// The diagnostic register, which the node knows, comes back.
    DiagnosticRegister,
    /// Nothing.
    Silence,
}

impl Diagnostics {
    /// Whether it was told to be silent.
    #[must_use]
    pub const fn is_listening_only(&self) -> bool {
        matches!(self.mode, Mode::ListenOnly)
    }

    /// Whether these data of function 8 bring a silent slave back.
    pub(super) const fn ends_silence(data: &[u8]) -> bool {
        matches!(data, [0, 1, 0 | 0xff, 0])
    }

    /// Does function 8.
    pub(super) fn request(&mut self, data: &[u8]) -> Result<Outcome, Exception> {
        let Some((subfunction, data)) = data.split_first_chunk() else { return Err(Exception::IllegalDataValue) };
        let subfunction = u16::from_be_bytes(*subfunction);
        // Subfunction 1 restarts communications, 4 forces listen-only mode, 10 and 20 clear; the rest are counters.
        match (subfunction, data) {
            (0, data) if data.len().is_multiple_of(2) && !data.is_empty() => Ok(Outcome::Echo),
            (1, [0 | 0xff, 0]) => {
                let was_silent = self.is_listening_only();
                *self = Self::default();
                Ok(if was_silent { Outcome::Silence } else { Outcome::Echo })
            }
            (2, [0, 0]) => Ok(Outcome::DiagnosticRegister),
            (4, [0, 0]) => {
                self.mode = Mode::ListenOnly;
                Ok(Outcome::Silence)
            }
            (10, [0, 0]) => {
                *self = Self { mode: self.mode, ..Self::default() };
                Ok(Outcome::Echo)
            }
            (20, [0, 0]) => {
                self.overruns = 0;
                Ok(Outcome::Echo)
            }
            (11, [0, 0]) => Ok(Outcome::Number(self.bus_messages)),
            (12, [0, 0]) => Ok(Outcome::Number(self.bus_errors)),
            (13, [0, 0]) => Ok(Outcome::Number(self.exceptions)),
            (14, [0, 0]) => Ok(Outcome::Number(self.messages)),
            (15, [0, 0]) => Ok(Outcome::Number(self.no_responses)),
            // This slave never answers "negative acknowledge" (16) or "busy" (17).
            (16 | 17, [0, 0]) => Ok(Outcome::Number(0)),
            (18, [0, 0]) => Ok(Outcome::Number(self.overruns)),
            (0 | 1 | 2 | 4 | 10..=18 | 20, _) => Err(Exception::IllegalDataValue),
            _ => Err(Exception::IllegalFunction),
        }
    }
}
