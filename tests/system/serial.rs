//! The whole gateway on a serial line of Modbus RTU: what a technician does to it, and what the command center hears.

use std::cell::RefCell;

use tempfile::TempDir;

use crate::{
    faults::silence,
    support::{
        broker::Access,
        park::{CABINET, Park, Plan},
        serial::{BAUD, Cable},
    },
};

/// The park whose cabinet hangs on a serial line; nothing is plugged in yet, and the gateway is not started.
fn park_on_a_line() -> (Park, TempDir) {
    let folder = tempfile::tempdir().expect("a folder for the line");
    let url = format!("rtu://{}?baud={BAUD}&parity=none&stop=1", Cable::gateway_end(folder.path()).display());
    let body = CABINET.replace("tcp://127.0.0.1:{plc}", &url);
    assert_ne!(body, CABINET, "the cabinet is on TCP no more");
    (Park::furnish(&Plan { access: Access::Open, command_center: "", body: &body }), folder)
}

fn start(park: &mut Park) {
    park.gateway.start();
    park.center.wait_for_status("the gateway online", |status| status["state"] == "online");
}

#[test]
fn a_door_on_a_serial_line_reaches_the_command_center_and_so_does_the_silence_of_its_panel() {
    let (mut park, folder) = park_on_a_line();
    // Before the start: on a slow machine its absence would be an alarm of its own.
    let _cable = Cable::plug_in(folder.path(), &park.plc);
    park.plc.set(1, "discrete:0", 0);
    start(&mut park);
    park.wait_until_good("panel/door");
    silence(&mut park, |park| park.plc.stop_unit(1), |park| park.plc.start_unit(1));
    let metric = |fault| format!("gardu_modbus_line_faults_total{{bus=\"cabinet\",fault=\"{fault}\"}}");
    assert!(park.gateway.metric(&metric("silence")) >= 3.0);
    for fault in ["unit", "function", "length", "checksum", "early", "babble"] {
        assert!(park.gateway.metric(&metric(fault)) < 1.0, "{fault}\n{}", park.gateway.log());
    }
}

#[test]
fn an_adapter_that_is_plugged_out_is_a_link_that_is_down_and_is_found_when_it_is_back() {
    let (mut park, folder) = park_on_a_line();
    start(&mut park);
    // Not even there at the start.
    assert_eq!(park.wait_until_read("panel/temp", "bad")["reason"], "link-down");
    let missing = "the adapter is not plugged in: there is no ";
    assert!(park.gateway.log().contains(missing), "{}", park.gateway.log());
    let said = |park: &Park, kind: &str, times: usize| {
        park.center.wait_for(&format!("panel/communication {kind} for time {times}"), |ledger| {
            (ledger.transitions(kind, "panel/communication").count() == times).then_some(())
        });
    };
    said(&park, "raised", 1);
    let cable = RefCell::new(Some(Cable::plug_in(folder.path(), &park.plc)));
    said(&park, "cleared", 1);
    let unplug = |park: &mut Park| {
        cable.take();
        assert_eq!(park.wait_until_read("panel/temp", "bad")["reason"], "link-down");
        said(park, "raised", 2);
    };
    silence(&mut park, unplug, |park| {
        cable.replace(Some(Cable::plug_in(folder.path(), &park.plc)));
    });
    said(&park, "cleared", 2);
    assert_eq!(park.gateway.log().matches("the bus cannot be reached").count(), 2, "once each time");
}
