//! Asking whether a broker can be reached, without becoming its client.

use super::{
    certificates::{Admits, Authority, Folder, TLS_VERSIONS, accept, server},
    tls::{YEARS, listen, with_tls},
    *,
};

#[tokio::test]
async fn without_tls_whoever_accepts_is_there() {
    let (listener, port) = listen().await;
    assert_eq!(probe(&settings(port, MqttVersion::V5)).await, Ok(()));
    drop(listener);
    assert!(matches!(probe(&settings(port, MqttVersion::V5)).await, Err(Down::Unreachable(_))));
}

#[tokio::test]
async fn with_tls_both_must_know_each_other() {
    let (city, other, folder) = (Authority::new("city"), Authority::new("other"), Folder::new());
    let (broker, ours, foreign) =
        (city.issue(&["localhost"], YEARS), city.issue(&["taman-01"], YEARS), other.issue(&["taman-01"], YEARS));
    for (authority, client, expected) in [
        (&city, Some(&ours), Ok(())),
        (&other, Some(&ours), Err("tls-unknown-issuer")),
        (&city, Some(&foreign), Err("tls-client-refused")),
        (&city, None, Err("tls-client-required")),
    ] {
        let files = folder.files(authority, client);
        for version in TLS_VERSIONS {
            let (listener, port) = listen().await;
            let tls = server(&broker, Admits::OnlyOf(&city), version);
            let settings = with_tls("localhost", port, MqttVersion::V5, files.clone());
            let (found, _broker) = tokio::join!(probe(&settings), accept(&listener, &tls));
            assert_eq!(found.map_err(|down| down.word()), expected);
        }
    }
}
