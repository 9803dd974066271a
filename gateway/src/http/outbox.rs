//! The outbox over HTTP: counted, and its waiting records page by page.
//!
//! `GET /api/v1/outbox` is what `gardu outbox status` shows. `GET /api/v1/outbox/a?from=PLACE&limit=N` (or `…/t`) gives one
//! JSON object a line: `{"place":…,"event":{…}}`, the event as the command center would receive it, and at the end
//! `{"next":PLACE}`, or `null` where nothing more waits. Reading confirms nothing.

use std::{collections::BTreeMap, io, path::PathBuf, sync::Arc};

use axum::{
    Json, Router,
    extract::{Path, Query, State},
    http::{StatusCode, header},
    response::{IntoResponse, Response},
    routing::get,
};
use serde::Deserialize;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::View;
use crate::{
    clock::Clock,
    metrics::Metrics,
    record::{Lane, LossReason},
    status::{
        StatusBoard,
        outbox::{Aside, Lost, LostOver, Outbox, OutboxLane, cursor, line},
    },
    store::{Store, StoreError, inspect},
    supervise,
    uplink::message::{self, About, Sent},
};

/// Records in one page: about 256 KiB of events.
const PAGE_RECORDS_MAX: usize = 256;

/// Why the outbox cannot be shown now.
#[derive(Debug, thiserror::Error)]
enum Unavailable {
    #[error("the outbox's folder cannot be read: {0}")]
    Folder(#[from] io::Error),
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// The open outbox, for whoever asks.
#[derive(Debug, Clone)]
pub struct OutboxView {
    store: Store,
    about: About,
    path: PathBuf,
    quota_bytes: u64,
    /// One page and one look at the folder at a time, so that many who ask take no more memory or threads than one.
    page: Arc<Semaphore>,
    look: Arc<Semaphore>,
}

impl OutboxView {
    /// A view of this store.
    #[must_use]
    pub fn new(store: Store, about: About, path: PathBuf, quota_bytes: u64) -> Self {
        let one = || Arc::new(Semaphore::new(1));
        Self { store, about, path, quota_bytes, page: one(), look: one() }
    }

    /// What the folder takes and what was set aside in it. On a card that hangs this hangs, and only this.
    async fn folder(&self) -> io::Result<inspect::Folder> {
        let turn: OwnedSemaphorePermit = self.look.clone().acquire_owned().await.expect("it is never closed");
        let path = self.path.clone();
        let look = move || {
            let looked = inspect::folder(&path);
            drop(turn);
            looked
        };
        supervise::blocking(look).await
    }

    async fn count(&self, board: &StatusBoard, metrics: &Metrics) -> Result<Outbox, Unavailable> {
        let folder = self.folder().await?;
        let mut lanes = BTreeMap::new();
        for (lane, state) in board.lanes() {
            let generations = self.store.generations(lane).await?;
            lanes.insert(lane, OutboxLane { state, generations });
        }
        let measured = board.outbox();
        Ok(Outbox {
            gateway: self.about.gateway.clone(),
            path: self.path.clone(),
            disk_bytes: folder.disk_bytes,
            quota_bytes: Some(measured.as_ref().map_or(self.quota_bytes, |measured| measured.quota_bytes)),
            full_in_s: measured.as_ref().and_then(|measured| measured.full_in_s),
            space: Some(*self.store.space().borrow()),
            full_since: board.full_since(),
            unusable: measured.and_then(|measured| measured.unusable),
            lanes,
            lost: lost(metrics),
            lost_over: LostOver::Run,
            aside: folder.aside.into_iter().map(|(name, bytes)| Aside { name, bytes }).collect(),
            unreadable: Vec::new(),
        })
    }

    async fn page(&self, lane: Lane, from: u64, limit: usize, clock: &Clock) -> Result<String, StoreError> {
        let _turn = self.page.acquire().await.expect("it is never closed");
        let records = self.store.read(lane, from, limit.clamp(1, PAGE_RECORDS_MAX)).await?;
        let boots = self.store.boots();
        let (boots, sent) = (boots.borrow().clone(), Sent { boot: clock.boot(), at: clock.now() });
        let mut text = String::new();
        for stored in &records {
            let event = message::encode(&stored.record, &boots, &self.about, sent).payload;
            text.push_str(&line(stored.position, std::str::from_utf8(&event).expect("JSON is text")));
        }
        text.push_str(&cursor(records.last().map(|last| last.position + 1)));
        Ok(text)
    }
}

/// The routes.
pub(super) fn routes(view: View) -> Router {
    Router::new().route("/api/v1/outbox", get(outbox)).route("/api/v1/outbox/{lane}", get(records)).with_state(view)
}

async fn outbox(State(view): State<View>) -> Response {
    let Some(outbox) = &view.outbox else { return unavailable("the outbox is not open yet\n") };
    match outbox.count(&view.board, &view.metrics).await {
        Ok(counted) => Json(counted).into_response(),
        Err(error) => unavailable(&format!("{error}\n")),
    }
}

#[derive(Debug, Deserialize)]
struct Wanted {
    #[serde(default)]
    from: u64,
    limit: Option<usize>,
}

async fn records(State(view): State<View>, Path(lane): Path<String>, Query(wanted): Query<Wanted>) -> Response {
    let Some(lane) = Lane::ALL.into_iter().find(|known| known.as_str() == lane) else {
        return (StatusCode::NOT_FOUND, "there are the lanes a and t\n").into_response();
    };
    let Some(outbox) = &view.outbox else { return unavailable("the outbox is not open yet\n") };
    match outbox.page(lane, wanted.from, wanted.limit.unwrap_or(PAGE_RECORDS_MAX), &view.clock).await {
        Ok(text) => ([(header::CONTENT_TYPE, "application/x-ndjson")], text).into_response(),
        Err(error) => unavailable(&format!("{error}\n")),
    }
}

fn unavailable(why: &str) -> Response {
    (StatusCode::SERVICE_UNAVAILABLE, why.to_owned()).into_response()
}

/// What was declared lost in this run, as the metric counts it; a series that was never counted is 0.
fn lost(metrics: &Metrics) -> Vec<Lost> {
    let all = Lane::ALL.into_iter().flat_map(|lane| LossReason::ALL.map(|reason| (lane, reason)));
    let counted = all.map(|(lane, reason)| {
        let count = metrics.outbox_lost.with_label_values(&[lane.as_str(), reason.as_str()]).get();
        Lost { lane, reason, count }
    });
    counted.filter(|lost| lost.count > 0).collect()
}
