//! What holds for every route: which names the gateway answers to, sizes, and headers that keep browsers honest.

use std::{collections::BTreeSet, net::IpAddr, sync::Arc};

use axum::{
    Router,
    body::HttpBody,
    extract::{DefaultBodyLimit, Request, State},
    http::{HeaderValue, StatusCode, header, uri::Authority},
    middleware::{Next, from_fn_with_state},
    response::{IntoResponse, Response},
};

use crate::reading::Segment;

/// Largest request body; commands and answers are below 32 KiB (DESIGN.md §5.2).
const BODY_MAX: usize = 64 * 1024;

/// On every response, errors included: never guessed, kept, framed, or allowed to load or tell anything.
const HEADERS: [(header::HeaderName, &str); 4] = [
    (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    (header::CACHE_CONTROL, "no-store"),
    (header::CONTENT_SECURITY_POLICY, "default-src 'none'; frame-ancestors 'none'; base-uri 'none'"),
    (header::REFERRER_POLICY, "no-referrer"),
];

/// The names by which the gateway may be asked for.
///
/// A page elsewhere can point a DNS name of its own at this machine and then read our answers as its own ("DNS
/// rebinding"); refusing every foreign name stops that. An address in numbers cannot be rebound, so each one passes.
#[derive(Debug, Clone)]
pub struct Names(Arc<BTreeSet<String>>);

impl Names {
    /// `localhost`, the gateway's id and the machine's host name, the latter two also with `.local` (mDNS).
    #[must_use]
    pub fn of(gateway: &Segment) -> Self {
        let host = rustix::system::uname().nodename().to_string_lossy().to_ascii_lowercase();
        let own = [gateway.as_str().to_owned(), host];
        let local = own.clone().map(|name| format!("{name}.local"));
        Self(Arc::new(own.into_iter().chain(local).chain(["localhost".to_owned()]).collect()))
    }

    /// Whether the request asks for us: exactly one `Host`, and the target, if it names one, agrees.
    fn admit(&self, request: &Request) -> bool {
        let mut hosts = request.headers().get_all(header::HOST).iter();
        let (Some(host), None) = (hosts.next(), hosts.next()) else { return false };
        let Some(host) = host.to_str().ok().and_then(|text| text.parse::<Authority>().ok()) else { return false };
        self.admit_host(&host) && request.uri().authority().is_none_or(|target| self.admit_host(target))
    }

    fn admit_host(&self, authority: &Authority) -> bool {
        let host = authority.host().trim_start_matches('[').trim_end_matches(']').trim_end_matches('.');
        host.parse::<IpAddr>().is_ok() || self.0.contains(&host.to_ascii_lowercase())
    }
}

/// The routes behind the guard.
pub(super) fn guarded(routes: Router, names: &Names) -> Router {
    routes.layer(DefaultBodyLimit::max(BODY_MAX)).layer(from_fn_with_state(names.clone(), guard))
}

async fn guard(State(names): State<Names>, request: Request, next: Next) -> Response {
    let mut response = if !names.admit(&request) {
        (StatusCode::MISDIRECTED_REQUEST, "this gateway does not go by that name: use its address or localhost\n")
            .into_response()
    } else if request.body().size_hint().lower() > BODY_MAX as u64 {
        (StatusCode::PAYLOAD_TOO_LARGE, "the request is larger than 64 KiB\n").into_response()
    } else {
        next.run(request).await
    };
    response.headers_mut().extend(HEADERS.map(|(name, value)| (name, HeaderValue::from_static(value))));
    response
}
