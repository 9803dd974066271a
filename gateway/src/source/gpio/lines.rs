//! The lines of a GPIO chip by the kernel's character device (uAPI v2); the only file that names gpiocdev.

use std::{fs::File, io, path::Path, time::Duration};

use gardu_node::time::Instant;
use gpiocdev::{
    Chip, Error, Request,
    line::{Bias as KernelBias, EdgeDetection, EdgeKind, Value},
};

use super::{Edge, Lines, Opener, Trouble};
use crate::config::{Bias, Gpio};

/// Edges that the kernel keeps for each line until they are read: a burst of the worst bouncing, and a busy second of ours.
const KERNEL_EDGES: u32 = 64;
/// Edges that are read at once.
const READ_EDGES: usize = 16;

/// Opens the lines of a chip.
#[derive(Debug)]
pub struct Header(pub Gpio);

/// Lines that are open.
#[derive(Debug)]
pub struct Opened {
    request: Request,
    /// In the order of the contacts.
    offsets: Vec<u32>,
    buffer: Vec<u64>,
}

impl Opener for Header {
    type Lines = Opened;

    fn open(&mut self) -> Result<Opened, Trouble> {
        let Gpio { chip, contacts, .. } = &self.0;
        File::open(chip).map_err(|error| Trouble::of(&error))?;
        let mut builder = Request::builder();
        builder.on_chip(chip).with_consumer("gardu");
        for contact in contacts {
            let bias = match contact.bias {
                Bias::PullUp => KernelBias::PullUp,
                Bias::PullDown => KernelBias::PullDown,
                Bias::None => KernelBias::Disabled,
            };
            builder.with_line(contact.line).as_input().as_active_high().with_bias(bias);
            builder.with_edge_detection(EdgeDetection::BothEdges);
        }
        let lines = u32::try_from(contacts.len()).unwrap_or(u32::MAX);
        builder.with_kernel_event_buffer_size(lines.saturating_mul(KERNEL_EDGES));
        let offsets: Vec<u32> = contacts.iter().map(|contact| contact.line).collect();
        let request = builder.request().map_err(|error| explain(chip, &offsets, &error))?;
        let buffer = vec![0; READ_EDGES * request.edge_event_u64_size()];
        Ok(Opened { request, offsets, buffer })
    }
}

/// Why the lines were not given. What the kernel says fits several causes; looking at each line tells them apart.
fn explain(path: &Path, offsets: &[u32], error: &Error) -> Trouble {
    if let Error::GpioChip(..) = error {
        return Trouble::NotAChip;
    }
    let Ok(chip) = Chip::from_path(path) else { return Trouble::Failed(error.to_string()) };
    let lines = chip.info().map_or(u32::MAX, |info| info.num_lines);
    if let Some(&line) = offsets.iter().find(|line| **line >= lines) {
        return Trouble::NoLine { line, lines };
    }
    let used = |line: &u32| chip.line_info(*line).ok().filter(|info| info.used).map(|info| (*line, info.consumer));
    match offsets.iter().find_map(used) {
        Some((line, by)) => Trouble::InUse { line, by },
        None => Trouble::Failed(error.to_string()),
    }
}

impl Lines for Opened {
    fn levels(&mut self) -> Result<Vec<bool>, Trouble> {
        let mut values = gpiocdev::line::Values::from_offsets(&self.offsets);
        self.request.values(&mut values).map_err(gone)?;
        Ok(self.offsets.iter().map(|line| values.get(*line) == Some(Value::Active)).collect())
    }

    fn edges(&mut self, patience: Duration) -> Result<Vec<Edge>, Trouble> {
        // All that waiting on an open file can fail of is a signal to this process; a chip that is gone is ready, to say so.
        if !self.request.wait_edge_event(patience).unwrap_or(false) {
            return Ok(Vec::new());
        }
        // Not `read_edge_event`: built for v2 alone, it reads several edges and gives the first.
        let words = self.request.read_edge_events_into_slice(&mut self.buffer).map_err(gone)?;
        let events = self.buffer[..words].chunks_exact(self.request.edge_event_u64_size());
        let mut edges = Vec::new();
        for event in events {
            let event = self.request.edge_event_from_slice(event).map_err(gone)?;
            let Some(index) = self.offsets.iter().position(|line| *line == event.offset) else { continue };
            let high = event.kind == EdgeKind::Rising;
            edges.push(Edge { index, high, at: Instant::from_ticks(event.timestamp_ns / 1_000) });
        }
        Ok(edges)
    }
}

#[expect(clippy::needless_pass_by_value, reason = "as `map_err` hands it over")]
fn gone(error: Error) -> Trouble {
    Trouble::Failed(error.to_string())
}

impl Trouble {
    /// Why a device file cannot be opened.
    fn of(error: &io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::NotFound => Self::NotThere,
            io::ErrorKind::PermissionDenied => Self::NotAllowed,
            _ => Self::Failed(error.to_string()),
        }
    }
}

#[cfg(test)]
mod tests;
