//! The broker at the other end: how rumqttc reaches it, and what an error on the way there means.

use std::io;

use rumqttc::{TlsConfiguration, TlsError, Transport};

use super::{
    Down, Settings,
    tls::{Tls, TlsFault},
};
use crate::config::{BrokerUrl, Scheme};

/// The broker of one connection.
pub(super) struct Peer {
    url: BrokerUrl,
    tls: Option<Tls>,
}

impl Peer {
    /// Reads the files of TLS where the URL wants it.
    pub(super) fn new(settings: &Settings) -> Result<Self, TlsFault> {
        let url = settings.url.clone();
        let tls = match url.scheme {
            Scheme::Mqtt => None,
            Scheme::Mqtts => Some(Tls::new(bare_host(&url), &settings.tls, settings.clock.clone())?),
        };
        Ok(Self { url, tls })
    }

    /// The host for rumqttc, which makes `{host}:{port}` of it to resolve and, with TLS, takes it for the name to verify.
    /// There brackets are not allowed; the resolver splits at the last colon and does not need them.
    pub(super) fn host(&self) -> String {
        let bare = bare_host(&self.url);
        if self.tls.is_none() && bare.contains(':') { format!("[{bare}]") } else { bare.to_owned() }
    }

    /// Host and port, to resolve and connect without rumqttc.
    pub(super) fn address(&self) -> (&str, u16) {
        (bare_host(&self.url), self.url.port)
    }

    /// TLS, where the URL wants it.
    pub(super) const fn tls(&self) -> Option<&Tls> {
        self.tls.as_ref()
    }

    pub(super) fn transport(&self) -> Transport {
        match &self.tls {
            None => Transport::Tcp,
            Some(tls) => Transport::Tls(TlsConfiguration::Rustls(tls.config.clone())),
        }
    }

    /// Names an error of resolving and TCP: only what a resolver says carries no code of the operating system.
    pub(super) fn unreachable(&self, error: &io::Error) -> Down {
        if error.raw_os_error().is_none() {
            Down::Dns(self.url.host.clone())
        } else {
            Down::Unreachable(error.to_string().into())
        }
    }

    /// Names an error of the TLS handshake.
    pub(super) fn no_tls(&self, error: &TlsError) -> Down {
        match (error, &self.tls) {
            (TlsError::Io(error), Some(tls)) => tls.handshake(error),
            (other, _) => Down::Tls(TlsFault::Broken(other.to_string().into())),
        }
    }

    /// Names an error after that: TLS 1.3 refuses a client certificate only there.
    pub(super) fn broken(&self, error: &io::Error) -> Down {
        match self.tls.as_ref().and_then(|tls| tls.fault(error)) {
            Some(fault) => Down::Tls(fault),
            None if error.kind() == io::ErrorKind::TimedOut => Down::Silent,
            None => Down::Closed,
        }
    }
}

/// The host without the brackets of an IPv6 address.
fn bare_host(url: &BrokerUrl) -> &str {
    url.host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(&url.host)
}
