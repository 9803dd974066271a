//! What both boards do alike: memory that outlives a reset, the record of a panic, and a look at how deep the stack went.
//!
//! Memory that no start-up code clears (section `.uninit`) keeps its content over every reset but the loss of power. What
//! lies there has a checksum or a mark, as after power-on it holds anything.

use core::{
    cell::UnsafeCell,
    mem::MaybeUninit,
    panic::{Location, PanicInfo},
    ptr,
};

use cortex_m::peripheral::SCB;
use cortex_m_rt::STACK_PAINT_VALUE;
use gardu_node::{kept::Kept, modbus::checksum};

/// Bytes in memory that outlives a reset; for statics in `.uninit`.
#[derive(Debug)]
pub(crate) struct Lasting<const N: usize>(UnsafeCell<MaybeUninit<[u8; N]>>);

// SAFETY: there is one core in use and there are no interrupt handlers, so nothing runs at the same time.
unsafe impl<const N: usize> Sync for Lasting<N> {}

impl<const N: usize> Lasting<N> {
    pub(crate) const fn new() -> Self {
        Self(UnsafeCell::new(MaybeUninit::uninit()))
    }

    pub(crate) fn read(&self) -> [u8; N] {
        let start = self.0.get().cast::<u8>();
        // SAFETY: all N bytes lie in this static; they are memory of the chip and hold some value, whoever wrote it, and
        // the compiler takes a volatile read for nothing else.
        core::array::from_fn(|i| unsafe { ptr::read_volatile(start.add(i)) })
    }

    pub(crate) fn write(&self, bytes: &[u8; N]) {
        let start = self.0.get().cast::<u8>();
        for (i, byte) in bytes.iter().enumerate() {
            // SAFETY: all N bytes lie in this static, and no reference to them exists.
            unsafe { ptr::write_volatile(start.add(i), *byte) }
        }
    }
}

/// Says that the reset which follows was asked for.
const ASKED: [u8; 4] = *b"asks";
/// Says that the power never went since it was written.
const RUNNING: [u8; 4] = *b"runs";

/// Longest text of a panic: the end of the file's path, and the line.
const TEXT_LEN: usize = 45;
/// Length, text, checksum.
const RECORD_LEN: usize = 1 + TEXT_LEN + 2;

#[unsafe(link_section = ".uninit.mark")]
static MARK: Lasting<4> = Lasting::new();
#[unsafe(link_section = ".uninit.panic")]
static PANIC: Lasting<RECORD_LEN> = Lasting::new();
#[unsafe(link_section = ".uninit.kept")]
static KEPT: [Lasting<{ Kept::SIZE }>; 2] = [const { Lasting::new() }; 2];

/// How it came to this start, as far as memory tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Before {
    /// The power was off.
    Off,
    /// It ran, and asked for no reset.
    Running,
    /// It asked for this reset.
    Asked,
}

/// Looks at the mark and sets it for the next start.
pub(crate) fn before() -> Before {
    let before = match MARK.read() {
        RUNNING => Before::Running,
        ASKED => Before::Asked,
        _ => Before::Off,
    };
    MARK.write(&RUNNING);
    before
}

/// Resets the chip because the firmware wants it.
pub(crate) fn restart() -> ! {
    MARK.write(&ASKED);
    SCB::sys_reset()
}

/// What the node keeps over a reset, in two slots that are written in turn: one of them is always whole.
#[derive(Debug)]
pub(crate) struct Slots {
    kept: Option<Kept>,
    turn: u32,
}

impl Slots {
    /// Finds what was kept, which is nothing after power-on.
    pub(crate) fn open() -> Self {
        let found = Kept::from_slots(&KEPT.each_ref().map(Lasting::read));
        Self { kept: found.map(|(kept, _)| kept), turn: found.map_or(0, |(_, turn)| turn) }
    }

    pub(crate) const fn kept(&self) -> Option<Kept> {
        self.kept
    }

    /// Writes it if it changed.
    pub(crate) fn keep(&mut self, kept: Kept) {
        if self.kept != Some(kept) {
            self.turn = self.turn.wrapping_add(1);
            self.kept = Some(kept);
            let [even, odd] = &KEPT;
            let slot = if self.turn.is_multiple_of(2) { even } else { odd };
            slot.write(&kept.to_slot(self.turn));
        }
    }
}

/// Where the firmware panicked before this start, told once.
#[derive(Debug)]
pub(crate) struct LastPanic([u8; RECORD_LEN]);

impl LastPanic {
    pub(crate) fn take() -> Self {
        let record = PANIC.read();
        PANIC.write(&[0; RECORD_LEN]);
        Self(record)
    }

    /// File and line, if there was one.
    pub(crate) fn text(&self) -> Option<&str> {
        let (said, check) = self.0.split_last_chunk()?;
        let (len, text) = said.split_first()?;
        let whole = *len > 0 && checksum(said) == *check;
        str::from_utf8(text.get(..usize::from(*len)).filter(|_| whole)?).ok()
    }
}

#[panic_handler]
fn panic(info: &PanicInfo<'_>) -> ! {
    if let Some(place) = info.location() {
        PANIC.write(&record(place));
    }
    restart()
}

/// The end of the path, a colon and the line.
fn record(place: &Location<'_>) -> [u8; RECORD_LEN] {
    let mut text = [0; TEXT_LEN];
    let mut room = text.iter_mut().rev();
    let mut len = 0;
    let mut put = |byte| {
        if let Some(free) = room.next() {
            *free = byte;
            len += 1;
        }
    };
    let mut line = place.line();
    while line > 0 {
        put(b'0' + (line % 10) as u8);
        line /= 10;
    }
    put(b':');
    place.file().bytes().rev().for_each(put);
    text.rotate_left(TEXT_LEN - len);
    let mut record = [0; RECORD_LEN];
    record[0] = len as u8;
    record[1..=TEXT_LEN].copy_from_slice(&text);
    let check = checksum(&record[..=TEXT_LEN]);
    record[1 + TEXT_LEN..].copy_from_slice(&check);
    record
}

unsafe extern "C" {
    static _stack_end: u32;
    static _stack_start: u32;
}

/// Bytes of the stack that were never used: they still have the paint that the start-up code put there.
pub(crate) fn stack_free() -> u16 {
    let (end, start) = (&raw const _stack_end, &raw const _stack_start);
    let mut untouched = end;
    // SAFETY: the linker script puts both at the ends of the stack, which is RAM and aligned to words; nothing is written.
    while untouched < start && unsafe { ptr::read_volatile(untouched) } == STACK_PAINT_VALUE {
        untouched = untouched.wrapping_add(1);
    }
    u16::try_from(untouched.addr() - end.addr()).unwrap_or(u16::MAX)
}
