//! Keeps the outbox within its quota: what gives way, when, and that it is declared first (DESIGN.md §5.3).
//!
//! Reading order: `quota` (what gives way), `thin` (telemetry to summaries), `forecast` (when it will be full).

mod disk;
pub mod forecast;
pub mod quota;
pub mod thin;
mod warning;
