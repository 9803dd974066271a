//! Firmware of a park sensor node.

#![no_std]
