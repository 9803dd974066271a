//! What people write for serial lines.

use super::*;
use crate::config::{Link, Parity, SerialLine};

/// A bus at this address with a device of this unit.
fn bus(name: &str, url: &str, unit: &str) -> String {
    format!(
        "[[modbus]]\nname = '{name}'\nurl = {url}\n[[modbus.device]]\nname = '{name}'\nunit = {unit}\n\
         point = [{{ name = 'a', register = 'coil:0' }}]\n"
    )
}

fn check(marked: &str) {
    check_files(&[("gardu.toml", &format!("{BASE}{marked}"))]);
}

/// The English text of the first problem.
fn problem(url: &str) -> String {
    let folder = Folder::new();
    let path = folder.write("gardu.toml", format!("{BASE}{}", bus("a", url, "1")));
    let problems = load_with(&path, ALONE).expect_err("it is wrong");
    problems.shown[0].text(Language::English)
}

fn link(url: &str) -> Link {
    load_text(&bus("a", &format!("'{url}'"), "247")).modbus.remove(0).link
}

#[test]
fn a_port_is_a_path_and_what_is_not_written_is_9600_8n1() {
    for (url, expected_path, expected_line) in [
        ("rtu:///dev/ttyS0", "/dev/ttyS0", "9600 8N1"),
        ("rtu:///dev/ttyS0?baud=19200&parity=even&stop=1", "/dev/ttyS0", "19200 8E1"),
        ("rtu:///dev/ttyS0?stop=2", "/dev/ttyS0", "9600 8N2"),
        ("rtu:///dev/ttyS0?parity=odd&baud=921600", "/dev/ttyS0", "921600 8O1"),
        (
            "rtu:///dev/serial/by-id/usb-FTDI_FT232R_USB_UART_A50285BI-if00-port0?baud=300",
            "/dev/serial/by-id/usb-FTDI_FT232R_USB_UART_A50285BI-if00-port0",
            "300 8N1",
        ),
        (
            "rtu:///dev/serial/by-path/platform-3f980000.usb-usb-0:1.2:1.0-port0",
            "/dev/serial/by-path/platform-3f980000.usb-usb-0:1.2:1.0-port0",
            "9600 8N1",
        ),
    ] {
        let Link::Rtu { path, line } = link(url) else { panic!("{url}") };
        assert_eq!((path.to_str(), line.to_string().as_str()), (Some(expected_path), expected_line), "{url}");
    }
}

#[test]
fn a_converter_is_a_host_and_a_port_with_the_line_behind_it() {
    let line = SerialLine { baud: 9_600, parity: Parity::None, stop_bits: 1 };
    let converter = |host: &str, line| Link::RtuOverTcp { host: host.into(), port: 4_196, line };
    assert_eq!(link("rtu+tcp://10.0.0.6:4196"), converter("10.0.0.6", line));
    let even = SerialLine { baud: 115_200, parity: Parity::Even, stop_bits: 1 };
    assert_eq!(link("rtu+tcp://[fd00::6]:4196?baud=115200&parity=even"), converter("[fd00::6]", even));
}

#[test]
fn what_is_no_port_is_refused_where_it_stands() {
    for (kind, url) in [
        ("url", "rtu://"),
        ("url", "rtu:///"),
        ("url", "rtu:///dev/"),
        ("url", "rtu://?baud=9600"),
        ("url", "rtu://dev/ttyUSB0"),
        ("url", "rtu:///dev/../etc/passwd"),
        ("url", "rtu:///dev/tty USB0"),
        ("url", "rtu:///dev/ttyS0#baud=9600"),
        ("url", "rtu:/dev/ttyS0"),
        ("url", "/dev/ttyS0"),
        ("url", "modbus:///dev/ttyS0"),
        ("url-percent", "rtu:///dev/serial/by-id/usb%20serial"),
        ("url-parameter-near", "rtu:///dev/ttyS0?bauds=9600"),
        ("url-parameter-near", "rtu:///dev/ttyS0?parity=none&Stop=1"),
        ("url-parameter", "rtu:///dev/ttyS0?databits=8"),
        ("url-parameter", "rtu:///dev/ttyS0?"),
        ("url-parameter", "rtu:///dev/ttyS0?baud=9600&"),
        ("url-parameter-twice", "rtu:///dev/ttyS0?baud=9600&baud=9600"),
        ("url-parameter-value", "rtu:///dev/ttyS0?baud=9601"),
        ("url-parameter-value", "rtu:///dev/ttyS0?baud=09600"),
        ("url-parameter-value", "rtu:///dev/ttyS0?baud"),
        ("url-parameter-value", "rtu:///dev/ttyS0?parity=N"),
        ("url-parameter-value", "rtu:///dev/ttyS0?stop=1.5"),
        ("url-port", "rtu+tcp://10.0.0.6"),
        ("url-port", "rtu+tcp://10.0.0.6?baud=9600"),
        ("url", "rtu+tcp://10.0.0.6:0"),
        ("url", "rtu+tcp://"),
        ("url-login", "rtu+tcp://u:p@10.0.0.6:4196"),
        ("url-parameter-near", "rtu+tcp://10.0.0.6:4196?part=even"),
        ("url", "tcp://10.0.0.5:502?baud=9600"),
    ] {
        check(&bus("a", &format!("«{kind}»'{url}'"), "1"));
    }
    check(&bus("a", "«url-parameter»«url-parameter-value»'rtu:///dev/ttyS0?baud=1&databits=8'", "1"));
}

#[test]
fn the_problem_says_what_to_write() {
    for (url, expected) in [
        ("'rtu://dev/ttyUSB0?baud=9600'", "write it like \"rtu:///dev/ttyUSB0?baud=9600\""),
        ("'rtu://ttyUSB0'", "write it like \"rtu:///dev/ttyUSB0\""),
        ("'/dev/ttyUSB0'", "\"rtu:///dev/ttyS0?baud=9600\""),
        ("'rtu:///dev/ttyS0?bauds=9600'", "did you mean `baud`?"),
        ("'rtu:///dev/ttyS0?data=8'", "known here: baud, parity, stop"),
        ("'rtu:///dev/ttyS0?parity=E'", "choose one of: none, even, odd"),
        ("'rtu+tcp://10.0.0.6'", "for example \"rtu+tcp://10.0.0.6:4196"),
    ] {
        let said = problem(url);
        assert!(said.contains(expected), "{url}: {said}");
    }
}

#[test]
fn one_wire_has_one_owner_however_it_is_written() {
    for (first, second) in [
        ("rtu:///dev/ttyS0", "rtu:///dev/ttyS0"),
        ("rtu:///dev/ttyS0", "rtu:///dev/ttyS0?baud=19200"),
        ("rtu:///dev/ttyS0", "rtu:///dev//./ttyS0"),
        ("rtu+tcp://10.0.0.6:4196", "rtu+tcp://10.0.0.6:4196?parity=even"),
        ("rtu+tcp://10.0.0.6:502", "tcp://10.0.0.6"),
    ] {
        let first = bus("a", &format!("'{first}'"), "1");
        check(&format!("{first}{}", bus("b", &format!("«one-wire»'{second}'"), "1")));
    }
    let both = format!("{}{}", bus("a", "'rtu:///dev/ttyS0'", "1"), bus("b", "'rtu:///dev/ttyS1'", "1"));
    assert_eq!(load_text(&both).modbus.len(), 2);
}

#[test]
fn on_a_serial_line_a_unit_is_one_device() {
    for url in ["'rtu:///dev/ttyS0'", "'rtu+tcp://10.0.0.6:4196'"] {
        for unit in ["0", "248", "255", "256", "-1"] {
            check(&bus("a", url, &format!("«unit-serial»{unit}")));
        }
    }
    // The bus may be written elsewhere.
    let extension = "[[modbus]]\nname = 'a'\n[[modbus.device]]\nname = 'c'\nunit = «unit-serial»0\n\
                     point = [{ name = 'a', register = 'coil:0' }]\n";
    check(&format!("{extension}{}", bus("a", "'rtu:///dev/ttyS0'", "1")));
}
