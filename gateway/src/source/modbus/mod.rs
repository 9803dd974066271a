//! Modbus: a bus is one wire, and one task owns it.
//!
//! Terms (Modbus Application Protocol 1.1b3): a **unit** answers under its number; it has four **tables** (coils,
//! discrete inputs, holding and input registers); an **exception** is its refusal of one request. A **poll** asks a
//! device for all of its points, in the requests of its **plan**.
//!
//! The way of a poll: [`plan`] and [`shape`] (which requests, by the [`timing`] of the wire) → [`schedule`] (whose turn) →
//! [`link`] (one request, one answer; on a serial line through [`line`], whose frames are [`rtu`]'s) → [`decode`] (words
//! to values) → [`poll`] (what it says about the device) → the pipeline. Only [`bus`], [`link`], [`line`] and [`port`] do
//! I/O; the others are plain functions.
//!
//! What keeps a wrong value out: one request is under way at a time, and unit, function and length must be those asked
//! for. On TCP the transaction number as well, and a connection on which anything but a Modbus exception went wrong is
//! dropped, so no late answer can meet a later request. A serial line has neither: there the checksum must be right, no
//! answer may come sooner than the wire carries it, successive requests differ in shape where they can, and after a fault
//! the line is silent for as long as the slowest answer takes. What cannot be told: an answer of equal shape that is
//! later still, or that a converter from TCP holds back and hands to the next request.

pub mod bus;
pub mod decode;
pub mod line;
pub mod link;
pub mod plan;
pub mod poll;
pub mod port;
pub mod rtu;
pub mod schedule;
mod shape;
#[cfg(test)]
mod tests;
pub mod timing;

pub use self::{
    bus::BusTask,
    plan::{Request, plan},
    timing::Medium,
};
