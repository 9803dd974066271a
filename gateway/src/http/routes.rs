//! The routes. None depends on the network being up; only those of the outbox wait, for the disk.

use axum::{
    Json, Router,
    extract::State,
    http::{StatusCode, header},
    response::{IntoResponse, Response},
    routing::get,
};
use prometheus::{Encoder, TextEncoder};

use super::outbox::{self, OutboxView};
use crate::{
    clock::Clock,
    metrics::Metrics,
    status::{Snapshot, StatusBoard},
    supervise::Pulse,
};

/// What there is to see.
#[derive(Debug, Clone)]
pub struct View {
    /// The present state.
    pub board: StatusBoard,
    /// Every number.
    pub metrics: Metrics,
    /// The stages' progress.
    pub pulse: Pulse,
    /// The clock, for whether it is trusted.
    pub clock: Clock,
    /// The outbox, once it is open.
    pub outbox: Option<OutboxView>,
}

/// Everything: what `http.listen` serves.
pub(super) fn all(view: View) -> Router {
    Router::new()
        .route("/api/v1/status", get(status))
        .with_state(view.clone())
        .merge(outbox::routes(view.clone()))
        .merge(metrics_and_health(view))
}

/// What `http.metrics_listen` serves.
pub(super) fn metrics_and_health(view: View) -> Router {
    Router::new()
        .route("/healthz", get(healthz))
        .route("/readyz", get(readyz))
        .route("/metrics", get(metrics))
        .fallback(nothing_here)
        .with_state(view)
}

async fn nothing_here() -> Response {
    (StatusCode::NOT_FOUND, "nothing here\n").into_response()
}

/// Liveness: whether every stage makes progress.
async fn healthz(State(view): State<View>) -> Response {
    match view.pulse.stalled() {
        None => "ok\n".into_response(),
        Some((stage, idle)) => {
            let text = format!("{stage} makes no progress for {} s\n", idle.as_secs());
            (StatusCode::SERVICE_UNAVAILABLE, text).into_response()
        }
    }
}

/// Readiness: whether the start is complete.
async fn readyz(State(view): State<View>) -> Response {
    if view.board.is_ready() {
        "ok\n".into_response()
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, "starting\n").into_response()
    }
}

/// Prometheus' text format. What grows by itself is brought up to date now.
async fn metrics(State(view): State<View>) -> Response {
    for (stage, idle) in view.pulse.idle() {
        let idle_s = i64::try_from(idle.as_secs()).unwrap_or(i64::MAX);
        view.metrics.stage_idle_seconds.with_label_values(&[stage]).set(idle_s);
    }
    for (lane, state) in view.board.lanes() {
        let age_s = i64::try_from(state.oldest_age_s.unwrap_or(0)).unwrap_or(i64::MAX);
        view.metrics.outbox_oldest_age_seconds.with_label_values(&[lane.as_str()]).set(age_s);
    }
    view.metrics.clock_trusted.set(i64::from(view.clock.now().trusted));
    let encoder = TextEncoder::new();
    let mut text = Vec::new();
    match encoder.encode(&view.metrics.registry.gather(), &mut text) {
        Ok(()) => ([(header::CONTENT_TYPE, encoder.format_type().to_owned())], text).into_response(),
        Err(_) => (StatusCode::INTERNAL_SERVER_ERROR, "the metrics cannot be written as text\n").into_response(),
    }
}

async fn status(State(view): State<View>) -> Json<Snapshot> {
    Json(view.board.snapshot())
}
