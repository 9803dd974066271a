//! `[[gpio]]` and `[[i2c]]`.

use std::path::Path;

use super::*;
use crate::config::{Bias, I2cChip, I2cInput, Level, Report};

fn check(marked: &str) {
    check_files(&[("gardu.toml", &format!("{BASE}{marked}"))]);
}

/// A chip with these keys of one contact.
fn contact(keys: &str) -> String {
    format!("[[gpio]]\nname = 'header'\nchip = '/dev/gpiochip0'\n[[gpio.contact]]\n{keys}\n")
}

/// A converter with these keys of one point.
fn point(keys: &str) -> String {
    format!("[[i2c]]\nname = 'analog'\nbus = '/dev/i2c-1'\nchip = 'ads1115'\n[[i2c.point]]\n{keys}\n")
}

#[test]
fn a_contact_has_a_state_and_a_counter_that_alarms_can_watch() {
    let alarms = "
        [[alarm]]
        name = 'pressed'
        point = 'header/panic-events'
        when = { increments = true }
        severity = 'critical'
        [[alarm]]
        name = 'open'
        point = 'header/panic'
        when = { is = true }
        severity = 'high'
    ";
    let config = load_text(&format!("{}{alarms}", contact("name = 'panic'\nline = 17")));
    let [gpio] = &config.gpio[..] else { panic!("one chip") };
    assert_eq!((gpio.name.as_str(), gpio.chip.as_path()), ("header", Path::new("/dev/gpiochip0")));
    assert_eq!((gpio.poll, gpio.missed_polls), (Duration::from_secs(1), 3));
    let [panic] = &gpio.contacts[..] else { panic!("one contact") };
    assert_eq!((panic.state.as_str(), panic.events.as_str()), ("header/panic", "header/panic-events"));
    assert_eq!((panic.line, panic.active, panic.bias), (17, Level::Low, Bias::PullUp));
    assert_eq!((panic.debounce, panic.report), (Duration::from_millis(20), Report::Interval));
    let silent =
        config.rules.iter().find(|rule| rule.select.matches(&PointId::parse("header/communication").expect("a point")));
    assert_eq!(silent.expect("the built-in rule").severity, Severity::Medium);

    let all = "name = 'door'\nline = 0\nactive = 'high'\nbias = 'none'\ndebounce = '1s'\nreport = 'change'";
    let config = load_text(&contact(all));
    let door = &config.gpio[0].contacts[0];
    assert_eq!((door.line, door.active, door.bias), (0, Level::High, Bias::None));
    assert_eq!((door.debounce, door.report), (Duration::from_secs(1), Report::Change { deadband: 0.0 }));
}

#[test]
fn mistakes_in_contacts_stand_at_their_places() {
    check("«no-contacts»[[gpio]]\nname = 'header'\nchip = '/dev/gpiochip0'");
    check("«missing»«missing»«no-contacts»[[gpio]]");
    check(&contact("name = 'door'\nline = «range»4096"));
    check(&contact("name = 'door'\nline = «type»'17'"));
    check(&contact("name = «reserved»'communication'\nline = 1"));
    check(&contact("name = «name»'Door'\nline = 1"));
    check(&contact("name = 'door'\nline = 1\nactive = «choice»'closed'"));
    check(&contact("name = 'door'\nline = 1\nbias = «choice»'up'"));
    check(&contact("name = 'door'\nline = 1\ndebounce = «range»'11s'"));
    check(&contact("name = 'door'\nline = 1\n«unknown-key-near»debouce = '1s'"));
    check(&contact("name = 'door'\nline = 1\nreport = 'change'\ndeadband = «deadband-type»1"));
    check(&contact("name = 'a'\nline = 1\n[[gpio.contact]]\nname = 'b'\nline = «line-taken»1"));
    check(&contact("name = 'a'\nline = 1\n[[gpio.contact]]\nname = «clash»'a-events'\nline = 2"));
    check(&contact(&format!("name = «name»'{}'\nline = 1", "x".repeat(60))));
    for path in ["gpiochip0", "/dev/../x", "/dev/", "/dev/gpio chip0"] {
        check(&format!("[[gpio]]\nname = 'h'\nchip = «device-file»'{path}'\ncontact = [{{ name = 'a', line = 1 }}]"));
    }
    let header = |name: &str, line| {
        format!("[[gpio]]\nname = {name}\nchip = '/dev/gpiochip0'\ncontact = [{{ name = 'a', line = {line} }}]\n")
    };
    check(&format!("{}{}", header("'h'", "1"), header("'i'", "«line-taken»1")));
    check(&format!("{}{}", header("'h'", "1"), header("«clash»'h'", "2")));
    check(&header("«reserved»'gateway'", "1"));
}

#[test]
fn a_climate_sensor_has_both_points_unless_some_are_written() {
    let climate = "[[i2c]]\nname = 'air'\nbus = '/dev/i2c-1'\nchip = 'sht4x'\nreport = 'change'\ndeadband = 0.5\n";
    let config = load_text(climate);
    let [air] = &config.i2c[..] else { panic!("one chip") };
    assert_eq!((air.chip, air.poll, air.missed_polls), (I2cChip::Climate, Duration::from_secs(10), 3));
    let told: Vec<_> = air.points.iter().map(|p| (p.id.as_str(), p.input, p.unit.as_deref(), p.decimals)).collect();
    let expected = [
        ("air/temperature", I2cInput::Temperature, Some("°C"), Some(1)),
        ("air/humidity", I2cInput::Humidity, Some("%"), Some(1)),
    ];
    assert_eq!(told, expected);
    assert!(air.points.iter().all(|point| point.report == Report::Change { deadband: 0.5 }));

    let one = "[[i2c]]\nname = 'air'\nbus = '/dev/i2c-1'\nchip = 'sht3x'\n\
               [[i2c.point]]\nname = 'heat'\ninput = 'temperature'\nunit = 'K'\noffset = 273.15\n";
    let config = load_text(one);
    let [heat] = &config.i2c[0].points[..] else { panic!("one point") };
    assert_eq!((heat.id.as_str(), heat.unit.as_deref(), heat.decimals), ("air/heat", Some("K"), None));
    let alarm = "[[alarm]]\nname = 'hot'\npoint = 'air/temperature'\nwhen = { above = 60 }\nseverity = 'medium'\n";
    assert_eq!(load_text(&format!("{climate}{alarm}")).rules[0].severity, Severity::Medium);
}

#[test]
fn a_converter_has_the_inputs_that_are_connected() {
    let keys =
        "name = 'pond'\ninput = 'loop-1'\nscale = 125\noffset = -500\nunit = 'mm'\ndecimals = 0\nrange = [0, 2000]";
    let lamps = "[[i2c.point]]\nname = 'lamps'\ninput = 'line-current'\n";
    let text = point(keys).replace("chip = 'ads1115'", "chip = 'ads1115'\ntransformer = 100") + lamps;
    let config = load_text(&text);
    let [analog] = &config.i2c[..] else { panic!("one chip") };
    assert_eq!((analog.chip, analog.transformer_a), (I2cChip::Ads1115, 100));
    let [pond, lamps] = &analog.points[..] else { panic!("two points") };
    assert_eq!((pond.scale, pond.offset, pond.range), (125.0, -500.0, Some((0.0, 2_000.0))));
    assert_eq!((lamps.input, lamps.unit.as_deref(), lamps.decimals), (I2cInput::LineCurrent, Some("A"), Some(2)));
    let config = load_text(&point("name = 'supply'\ninput = 'supply'"));
    assert_eq!(config.i2c[0].transformer_a, 0);
}

#[test]
fn mistakes_in_chips_stand_at_their_places() {
    check("«no-inputs»[[i2c]]\nname = 'analog'\nbus = '/dev/i2c-1'\nchip = 'ads1115'");
    check("«missing»«missing»«missing»[[i2c]]");
    check("[[i2c]]\nname = 'air'\nbus = '/dev/i2c-1'\nchip = «choice»'bme280'");
    check("[[i2c]]\nname = 'air'\nbus = «device-file»'i2c-1'\nchip = 'sht4x'");
    check("[[i2c]]\nname = 'air'\nbus = '/dev/i2c-1'\nchip = 'sht4x'\npoll = «range»'500ms'");
    check("[[i2c]]\nname = 'air'\nbus = '/dev/i2c-1'\nchip = 'sht4x'\npoint = «empty-list»[]");
    check("[[i2c]]\nname = 'air'\nbus = '/dev/i2c-1'\nchip = 'sht4x'\ntransformer = «transformer»100");
    check(&point("name = 'x'\ninput = «choice»'temperature'"));
    check(&point("name = 'x'\ninput = 'loop-1'\nscale = «scale»0"));
    check(&point("name = 'x'\ninput = 'loop-1'\nrange = «range-order»[2, 1]"));
    check(&point("name = 'x'\ninput = 'loop-1'\n«unknown-key»invalid = [1]"));
    check(&format!("«missing»{}", point("name = 'x'\ninput = 'line-current'")));
    let air = |name, chip| format!("[[i2c]]\nname = '{name}'\nbus = '/dev/i2c-1'\nchip = {chip}\n");
    check(&format!("{}{}", air("a", "'sht4x'"), air("b", "«chip-taken»'sht3x'")));
    check(&format!("{}{}", air("a", "'sht4x'"), air("b", "'sht4x'").replace("i2c-1", "i2c-2")));
    let alarm =
        "[[alarm]]\nname = 'x'\npoint = 'a/humidity'\nwhen = { increments = «increments»true }\nseverity = 'low'\n";
    check(&format!("{}{alarm}", air("a", "'sht4x'")));
}

#[test]
fn nobody_else_can_speak_as_a_device_on_our_own_pins() {
    let mqtt = "[[mqtt]]\nname = 'm'\nurl = 'mqtt://a'\n[[mqtt.subscribe]]\ntopic = 's/{device}/{name}'\n";
    check(
        &format!("{}{mqtt}point = «clash»'header/{{name}}'\n", contact("name = 'door'\nline = 1"))
            .replace("{device}/", ""),
    );
    let alarm = "[[alarm]]\nname = 'x'\npoint = «point-near»'header/doors'\nwhen = { is = true }\nseverity = 'low'\n";
    check(&format!("{}{mqtt}point = '{{device}}/{{name}}'\n{alarm}", contact("name = 'door'\nline = 1")));
    check(
        "[[modbus]]\nname = 'b'\nurl = 'tcp://a'\n[[modbus.device]]\nname = 'air'\nunit = 1\n\
           point = [{ name = 'x', register = 'coil:0' }]\n\
           [[i2c]]\nname = «clash»'air'\nbus = '/dev/i2c-1'\nchip = 'sht4x'\n",
    );
}

#[test]
fn the_commented_example_is_a_working_configuration() {
    let (_, block) = SHIPPED.split_once("# [[gpio]]").expect("the example of a header");
    let (block, _) = block.split_once("# ------").expect("the next part");
    let code = |line: &str| {
        let bare = line.strip_prefix("# ")?;
        (bare.starts_with("[[") || bare.contains(" = ")).then(|| format!("{bare}\n"))
    };
    let config = load_text(&format!("[[gpio]]\n{}", block.lines().filter_map(code).collect::<String>()));
    assert_eq!((config.gpio.len(), config.i2c.len()), (1, 2));
    assert_eq!(config.gpio[0].contacts.len() + config.i2c.iter().map(|device| device.points.len()).sum::<usize>(), 6);
}
