//! The instruments themselves: a test of the gateway is worth no more than these.

use std::{io::ErrorKind, os::unix::net::UnixDatagram};

use tokio_modbus::{
    client::{Context, tcp},
    prelude::{Reader, Slave, SlaveContext},
};

use crate::support::{
    PATIENCE,
    broker::{Access, Broker, CENTER, GATEWAY},
    center::Center,
    mqtt::{Connection, Packet, Publisher, Retain, Version},
    plc::Plc,
    until,
};

fn status(session: u64) -> String {
    let frozen: serde_json::Value = serde_json::from_str(include_str!("../wire/v1/status-online.json")).expect("JSON");
    let mut status = frozen["payload"].clone();
    status["session"] = session.into();
    for lane in ["a", "t"] {
        (status["lanes"][lane]["next"], status["lanes"][lane]["settled"]) = (1.into(), 0.into());
    }
    status.to_string()
}

#[test]
fn the_center_hears_again_after_the_broker_was_killed_or_it_was_away() {
    for version in [Version::V311, Version::V5] {
        let mut broker = Broker::start();
        let mut center = Center::start(broker.port, version, "g", None);
        let hears = |center: &Center, session: u64| {
            center.publish("status", &status(session), Retain::Yes);
            center.wait_for_status("a status", |s| s["session"] == session);
        };
        hears(&center, 1);
        broker.kill9();
        broker.restart();
        hears(&center, 2);
        center.leave();
        center.publish("status", &status(3), Retain::Yes);
        assert_eq!(center.ledger().status_now()["session"], 2, "nobody was there to hear it");
        center.come_back();
        center.wait_for_status("the retained status", |s| s["session"] == 3);
        center.assert_complete();
    }
}

#[test]
fn the_broker_says_when_nobody_subscribes_and_when_it_is_not_allowed() {
    let broker = Broker::start_with(Access::Users);
    let open = |login| Connection::open(broker.port, Version::V5, "gardu", login);
    let refused = open(Some(("gateway", "wrong"))).expect_err("a wrong password");
    assert_eq!(refused.kind(), ErrorKind::PermissionDenied);
    // mosquitto 2.0 ends connections when it reads its files again.
    let code = |topic| {
        let mut gateway = Connection::open_patiently(broker.port, Version::V5, "gardu", Some(GATEWAY));
        gateway.publish(topic, b"x", Retain::No).unwrap_or(0xFF)
    };
    assert_eq!(code("gardu/v1/g/event/high"), 0x10, "no matching subscribers");
    let _center = Center::start(broker.port, Version::V5, "g", Some(CENTER));
    until("the subscriber counts", || code("gardu/v1/g/event/high") == 0);
    broker.set_denied(&["gardu/v1/g/event/#"]);
    until("the right is gone", || code("gardu/v1/g/event/high") == 0x87);
    until("only what is denied is refused", || code("gardu/v1/g/telemetry/panel") == 0);
    broker.set_denied(&[]);
    until("the right is back", || code("gardu/v1/g/event/high") == 0);
}

#[test]
fn the_broker_hears_a_changed_password_without_a_restart() {
    let broker = Broker::start_with(Access::Users);
    let open = |password| Connection::open(broker.port, Version::V311, "gardu", Some(("gateway", password)));
    assert!(open(GATEWAY.1).is_ok() && open("new").is_err());
    broker.set_password((GATEWAY.0, "new"));
    until("the new password counts", || open("new").is_ok());
    assert!(open(GATEWAY.1).is_err());
}

#[test]
fn a_publisher_is_heard_although_the_broker_is_killed() {
    let mut broker = Broker::start();
    let mut publisher = Publisher::new(broker.port, Version::V311, "camera");
    publisher.publish("cam/1", "true");
    broker.kill9();
    broker.restart();
    let mut listener = Connection::open_patiently(broker.port, Version::V5, "listener", None);
    listener.subscribe("cam/#").expect("the broker runs");
    assert!(matches!(listener.next(), Ok(Packet::Suback { granted: true })));
    publisher.publish("cam/1", "false");
    let Ok(Packet::Publish(message)) = listener.next() else { panic!("a message") };
    assert_eq!((message.topic.as_str(), &message.payload[..], message.retained), ("cam/1", &b"false"[..], false));
}

#[test]
fn the_plc_answers_falls_silent_and_comes_back() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let mut plc = Plc::start();
    let address = std::net::SocketAddr::from(([127, 0, 0, 1], plc.port));
    let connect = || runtime.block_on(tcp::connect(address));
    let door = |bus: &mut Context| -> Option<Vec<bool>> {
        runtime.block_on(async {
            let answer = tokio::time::timeout(PATIENCE, bus.read_discrete_inputs(0, 2)).await;
            answer.ok()?.ok()?.ok()
        })
    };
    let mut bus = connect().expect("it listens");
    bus.set_slave(Slave(1));
    plc.set_and_watch(1, "discrete:1", 1);
    assert_eq!(plc.served_at(1, "discrete:1"), None);
    assert_eq!(door(&mut bus), Some(vec![false, true]));
    assert!(plc.served_at(1, "discrete:1").is_some());
    plc.set(2, "discrete:0", 1);
    plc.stop_unit(1);
    let before = plc.requests();
    let asked = runtime.block_on(async {
        let mut asked = std::pin::pin!(bus.read_discrete_inputs(0, 2));
        assert!(futures_util::poll!(&mut asked).is_pending());
        until("the request was seen", || plc.requests() > before);
        futures_util::poll!(&mut asked).is_pending()
    });
    assert!(asked, "a silent unit does not answer");
    let mut bus = connect().expect("it listens");
    bus.set_slave(Slave(2));
    assert_eq!(door(&mut bus), Some(vec![true, false]), "another unit answers");
    plc.start_unit(1);
    bus.set_slave(Slave(1));
    assert_eq!(door(&mut bus), Some(vec![false, true]), "and so does the first again");
    plc.cut();
    assert_eq!(door(&mut bus), None, "the connection is cut");
    // Once a process that was just being started has let go of the listener.
    until("nobody listens", || connect().is_err());
    plc.restore();
    assert!(connect().is_ok());
}

#[test]
fn a_datagram_socket_hears_what_systemd_would() {
    let dir = tempfile::tempdir().expect("a folder");
    let path = dir.path().join("notify");
    let systemd = UnixDatagram::bind(&path).expect("a socket");
    let daemon = UnixDatagram::unbound().expect("a socket");
    daemon.send_to(b"READY=1\nSTATUS=up", &path).expect("sent");
    let mut buffer = [0; 64];
    let length = systemd.recv(&mut buffer).expect("heard");
    assert_eq!(&buffer[..length], b"READY=1\nSTATUS=up");
}
