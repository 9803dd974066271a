//! Whether the files by which the broker and we know each other have changed since they were last used.

use std::time::Duration;

use crate::{
    clock::Now,
    config::{BrokerUrl, Scheme, TlsFiles},
    wire::tls::Fingerprint,
};

/// So often they are read: a technician who put new files there sees soon what comes of it.
const LOOK_EVERY: Duration = Duration::from_secs(5);

/// The files of one broker; nothing where its URL is without TLS.
#[derive(Debug)]
pub(super) struct Certificates {
    files: Option<TlsFiles>,
    used: Option<Fingerprint>,
    /// What the last look found, if it was neither used nor seen twice.
    fresh: Option<Fingerprint>,
    looked: Now,
}

impl Certificates {
    /// As they are now, just before they are used.
    pub(super) fn of<'a>(urls: impl IntoIterator<Item = &'a BrokerUrl>, files: &TlsFiles, now: Now) -> Self {
        let files = urls.into_iter().any(|url| url.scheme == Scheme::Mqtts).then(|| files.clone());
        Self { used: files.as_ref().map(Fingerprint::of), files, fresh: None, looked: now }
    }

    /// Whether they have changed; from then on the new ones count as used. Reads at most every [`LOOK_EVERY`], and believes
    /// a change that it sees twice: a certificate and its key are two files, and are written one after the other.
    pub(super) fn changed(&mut self, now: Now) -> bool {
        let Some(files) = self.files.as_ref().filter(|_| now.since(self.looked) >= LOOK_EVERY) else { return false };
        self.looked = now;
        let found = Some(Fingerprint::of(files));
        let settled = self.fresh == found;
        self.fresh = found.filter(|_| !settled && found != self.used);
        if settled {
            self.used = found;
        }
        settled
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Now {
        Now { mono_ms: seconds * 1_000, wall_ms: 0, trusted: true }
    }

    fn url(scheme: Scheme) -> BrokerUrl {
        BrokerUrl { scheme, host: "cc1".into(), port: 8883 }
    }

    #[test]
    fn a_change_that_has_settled_is_seen_once_and_only_with_tls() {
        let file = tempfile::NamedTempFile::new().expect("a file");
        let write = |text: &str| std::fs::write(file.path(), text).expect("written");
        write("one");
        let files = TlsFiles { ca: Some(file.path().to_owned()), client: None };
        let mut with = Certificates::of(&[url(Scheme::Mqtt), url(Scheme::Mqtts)], &files, at(0));
        let mut without = Certificates::of(&[url(Scheme::Mqtt)], &files, at(0));
        assert!(!with.changed(at(5)), "nothing changed");
        write("two");
        assert!(!with.changed(at(9)), "not looked at yet");
        assert!(!with.changed(at(10)), "perhaps the other file is still to come");
        write("three");
        assert!(!with.changed(at(15)), "and so it was");
        assert!(with.changed(at(20)) && !with.changed(at(25)) && !with.changed(at(30)));
        write("four");
        assert!(!with.changed(at(35)));
        write("three");
        assert!(!with.changed(at(40)) && !with.changed(at(45)), "as it was");
        assert!(!without.changed(at(50)));
    }
}
