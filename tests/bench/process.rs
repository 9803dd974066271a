//! What the kernel counts of a process (proc(5)).

use std::fs;

use crate::mib;

/// Unit of the times in `/proc/PID/stat`: USER_HZ, 100 on every Linux architecture this runs on.
const TICKS_PER_S: f64 = 100.0;

/// Processor seconds so far, in user and kernel.
pub(crate) fn cpu_s(pid: u32) -> f64 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).expect("it runs");
    // Fields 14 and 15 of proc(5); counted after the name, which may hold anything and is field 2.
    let fields: Vec<&str> = stat.rsplit_once(')').expect("the name is in brackets").1.split_whitespace().collect();
    let ticks: f64 = [11, 12].map(|i| fields[i].parse::<f64>().expect("a number")).iter().sum();
    ticks / TICKS_PER_S
}

/// Memory it holds now.
pub(crate) fn resident_mib(pid: u32) -> f64 {
    memory(pid, "VmRSS:")
}

/// The most it ever held.
pub(crate) fn peak_mib(pid: u32) -> f64 {
    memory(pid, "VmHWM:")
}

fn memory(pid: u32, field: &str) -> f64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("it runs");
    let line = status.lines().find_map(|line| line.strip_prefix(field)).expect("proc(5) has it");
    let kib: u64 = line.trim().trim_end_matches(" kB").parse().expect("a number");
    mib(kib * 1024)
}
