//! One mistake at a time, each at its exact place.

use super::*;

/// [`check_files`] of one text behind [`BASE`].
fn check(marked: &str) {
    check_files(&[("gardu.toml", &format!("{BASE}{marked}"))]);
}

fn check_all(texts: &[&str]) {
    texts.iter().for_each(|text| check(text));
}

/// A point with these keys, on a bus of its own.
fn point(keys: &str) -> String {
    let bus = "[[modbus]]\nname = 'b'\nurl = 'tcp://a'\n[[modbus.device]]\nname = 'd'\nunit = 1\n";
    format!("{bus}[[modbus.device.point]]\n{keys}\n")
}

#[test]
fn unknown_keys_are_found_in_every_section() {
    check_all(&[
        "[outbox]\n«unknown-key-near»paths = 'a'",
        "[http]\n«unknown-key-near»listn = '127.0.0.1:1'",
        "[telemetry]\n«unknown-key-near»intervall = '5m'\n«unknown-key»zzz = 1",
        &BUS.replace("url =", "«unknown-key-near»timout = '1s'\nurl ="),
        &BUS.replace("unit = 1", "«unknown-key-near»pol = '1s'\nunit = 1"),
        &point("name = 'a'\nregister = 'coil:0'\n«unknown-key-near»offest = 1"),
        &subscription("topic = 'a'\npoint = 'm/x'\n«unknown-key-near»valeus = {}"),
        &format!("[[mqtt]]\n«unknown-key-near»nam = 'x'\n{}", &subscription("topic = 'a'\npoint = 'm/x'")[9..]),
        &alarm("'panel/door'\n«unknown-key-near»on_dely = '1s'", "{ is = true, «unknown-key-near»abov = 1 }"),
        &alarm("'panel/door'\nmessage = { id = 'a', «unknown-key»english = 'b' }", "{ is = true }"),
    ]);
    check_files(&[("gardu.toml", &format!("«unknown-key-near»alarms = []\n{BASE}"))]);
    let gateway = "[gateway]
id = 'a'
«unknown-key-near»sitte = 'b'
location = { lat = 1, lon = 2, «unknown-key-near»adress = '' }
[command_center]
urls = ['mqtt://a']
«unknown-key-near»password = 'hunter2'
";
    check_files(&[("gardu.toml", gateway)]);
}

#[test]
fn missing_keys_are_named_at_their_section() {
    check_files(&[("gardu.toml", "«missing-section»«missing-section»")]);
    check_files(&[("gardu.toml", "«missing-section»«missing-section»# nothing\n")]);
    check_files(&[("gardu.toml", "«missing»[gateway]\n«missing»[command_center]\n")]);
    check_files(&[(
        "gardu.toml",
        "[gateway]\nid = 'a'\nlocation = «missing»«missing»{}\n[command_center]\nurls = «empty-list»[]\n",
    )]);
    check_all(&[
        "«missing»«no-devices»[[modbus]]",
        "«no-devices»[[modbus]]\nname = 'a'\nurl = 'tcp://a'",
        "[[modbus]]\nname = 'a'\nurl = 'tcp://a'\n«missing»«missing»«no-points»[[modbus.device]]",
        "[[modbus]]\nname = 'a'\nurl = 'tcp://a'\n[[modbus.device]]\nname = 'd'\nunit = 1\n«missing»«missing»[[modbus.device.point]]",
        "«missing»«no-endpoint»«no-subscriptions»[[mqtt]]",
        "[[mqtt]]\nname = 'a'\nurl = 'mqtt://a'\n«missing»«missing»[[mqtt.subscribe]]",
        "«missing»«missing»«missing»«missing»[[alarm]]",
    ]);
}

#[test]
fn wrong_types_and_values_are_named_at_the_value() {
    check_all(&[
        "[telemetry]\ninterval = «type»5",
        "[outbox]\nmax_size = «size»'256 MB'\ntelemetry_max_age = «duration»'a week'",
        "[outbox]\nmax_size = «range»'15MiB'\ntelemetry_max_age = «range»'59m'",
        "[outbox]\nmax_size = «type»268435456\ntelemetry_max_age = '10d'",
        "[telemetry]\ninterval = «duration»'5 minutes'",
        "[telemetry]\ninterval = «range»'500ms'",
        "[telemetry]\nreport = «choice»'always'",
        "«sections»[modbus]",
        "[outbox]\npath = «line»''",
        "[outbox]\nwrite_budget = «size-a-day»'2GiB'",
        "[outbox]\nwrite_budget = «size-a-day»'0MiB/day'",
        "[outbox]\nwrite_budget = «size-a-day»'2GB/day'",
        "[outbox]\npath = «variable»'$HOME/outbox'",
        "[http]\nlisten = «listen»'9184'",
        "[http]\nlisten = '127.0.0.1:1'\nmetrics_listen = «clash»'0.0.0.0:1'",
        &BUS.replace("unit = 1", "unit = «unit»256"),
        &BUS.replace("unit = 1", "unit = «unit»250"),
        &BUS.replace("unit = 1", "unit = «type»'1'"),
        &BUS.replace("unit = 1", "unit = 1\npoll = «range»'1ms'\nmissed_polls = «range»0"),
        &BUS.replace("unit = 1", "unit = 1\ncommunication_severity = «choice»'bad'"),
        &BUS.replace("name = 'panel'", "name = «name»'Panel Utama'"),
        &BUS.replace("name = 'panel'", "name = «reserved»'gateway'"),
        &BUS.replace("name = 'door'", "name = «reserved»'communication'"),
        &BUS.replace("name = 'door'", "name = «name»'a/b/c/d'"),
    ]);
    check_files(&[("gardu.toml", &format!("modbus = «sections»1\noutbox = «type»1\n{BASE}"))]);
    let gateway = "[gateway]
id = «reserved»'center'
name = «line»''
timezone = «timezone»'WIB'
language = «choice»'jv'
location = { lat = «range»-91, lon = «finite»nan, address = «type»5 }
[command_center]
urls = ['mqtt://a', «url»'cc1.example.go.id', «url-login»'mqtt://u:p@a', «url-server-name»'mqtts://cc.1']
protocol = 'v3.1.1'
delivered_when = «subscriber»'subscriber'
keep_alive = «whole-seconds»'10500ms'
topic_prefix = «topic-prefix»'/gardu'
hold_when_center_offline = «type»'no'
";
    check_files(&[("gardu.toml", gateway)]);
}

#[test]
fn a_point_is_checked_against_its_type() {
    check_all(&[
        &point("name = 'a'\nregister = «register»'holding:65536'"),
        &point("name = 'a'\nregister = «register»'hold:1'"),
        &point("name = 'a'\nregister = «register»'holding:+1'"),
        &point("name = 'a'\nregister = «register-end»'holding:65535'\ntype = 'u32'"),
        &point("name = 'a'\nregister = 'holding:0xFFFE'\ntype = 'u32'"),
        &point("name = 'a'\nregister = 'coil:0'\ntype = «bits-are-bool»'u16'"),
        &point("name = 'a'\nregister = 'coil:0'\nbit = «bit»0"),
        &point("name = 'a'\nregister = 'holding:0'\nbit = «range»16"),
        &point("name = 'a'\nregister = 'holding:0'\nbit = 3\ntype = «bit-type»'u16'"),
        &point("name = 'a'\nregister = 'holding:0'\ntype = «choice»'int'"),
        &point("name = 'a'\nregister = 'holding:0'\norder = «order»'cdab'"),
        &point("name = 'a'\nregister = 'holding:0'\ntype = 'f32'\norder = «choice»'badc '"),
        &point("name = 'a'\nregister = 'holding:0'\nlength = «length»2"),
        &point("name = 'a'\nregister = 'holding:0'\ntype = 'string'\nlength = «range»126"),
        &point("name = 'a'\nregister = 'coil:0'\nscale = «only-numbers»2.0"),
        &point("name = 'a'\nregister = 'holding:0'\nscale = «scale»0"),
        &point("name = 'a'\nregister = 'holding:0'\nscale = «finite»inf\noffset = «finite»nan"),
        &point("name = 'a'\nregister = 'holding:0'\nrange = «range-order»[1, 1]"),
        &point("name = 'a'\nregister = 'holding:0'\nrange = [«type»'a', «finite»nan]"),
        &point("name = 'a'\nregister = 'holding:0'\nrange = «range-two»[1]\ndecimals = «range»11"),
        &point("name = 'a'\nregister = 'holding:0'\ninvalid = [1, «type»'x']"),
        &point("name = 'a'\nregister = 'holding:0'\ndeadband = «deadband-report»1"),
        &point("name = 'a'\nregister = 'coil:0'\nreport = 'change'\ndeadband = «deadband-type»1"),
        &point("name = 'a'\nregister = 'holding:0'\nreport = 'change'\ndeadband = «negative»-1"),
    ]);
    check(&point("name = 'a'\nregister = 'holding:0'").replace(
        "unit = 1\n",
        "unit = 1\n«missing»[[modbus.device.point]]\nname = 's'\nregister = 'input:0'\ntype = 'string'\n",
    ));
}

#[test]
fn names_are_taken_once() {
    check_all(&[
        &point("name = 'a'\nregister = 'coil:0'\n[[modbus.device.point]]\nname = «clash»'a'\nregister = 'coil:1'"),
        &format!(
            "{BUS}{}",
            BUS.replace("cabinet", "second").replace("10.0.0.5", "b").replace("'panel'", "«clash»'panel'")
        ),
        &format!("{BUS}{}", point("name = 'a'\nregister = 'coil:0'").replace("'b'", "«clash»'cabinet'")),
        &format!(
            "{BUS}{}",
            point("name = 'a'\nregister = 'coil:0'").replace("'tcp://a'", "«one-wire»'tcp://10.0.0.5:502'")
        ),
        &format!(
            "{}{}",
            subscription("topic = 'a'\npoint = 'x/y'"),
            subscription("topic = 'b'\npoint = 'z/y'").replace("'m'", "«clash»'m'")
        ),
        &subscription("topic = 'a'\npoint = 'x/y'\n[[mqtt.subscribe]]\ntopic = 'b'\npoint = «clash»'x/y'"),
        &format!("{BUS}{}", subscription("topic = 'a'\npoint = «clash»'panel/x'")),
        &subscription("topic = 'a'\npoint = «reserved»'gateway/x'"),
        &format!(
            "{}\n[[alarm]]\nname = «clash»'x'\nseverity = 'low'\npoint = 'panel/+'\nwhen = {{ bad = true }}",
            alarm("'panel/door'", "{ is = true }")
        ),
        &format!(
            "{}\n[[alarm]]\nname = 'x'\nseverity = 'low'\npoint = 'panel/temp'\nwhen = {{ bad = true }}",
            alarm("'panel/door'", "{ is = true }")
        ),
        &format!(
            "{BUS}[[alarm]]\nname = «reserved»'stale'\nseverity = 'low'\npoint = 'panel/temp'\nwhen = {{ bad = true }}"
        ),
    ]);
}

#[test]
fn an_alarm_watches_a_point_that_can_be() {
    let open = subscription("topic = 's/{device}/{name}'\npoint = '{device}/{name}'");
    check_all(&[
        &alarm("«point-near»'panel/dor'", "{ is = true }"),
        &alarm("«point»'elsewhere/level'", "{ is = true }"),
        &alarm("«pattern»'Panel/door'", "{ is = true }"),
        &alarm("«pattern-nothing»'+/intrusion/#'", "{ is = true }"),
        &alarm("'+/door'", "{ is = true }"),
        &alarm("'panel/communication'", "{ is = true }"),
        &format!("{open}{}", alarm("'elsewhere/level'", "{ is = true }")),
        &format!("{open}{}", alarm("'+/level'", "{ above = 1 }")),
        // What Modbus owns, no message can name.
        &format!("{open}{}", alarm("«point-near»'panel/dor'", "{ is = true }")),
        &format!("{open}{}", alarm("«pattern-nothing»'+/a/b'", "{ is = true }")),
    ]);
}

#[test]
fn a_condition_can_come_true_and_end() {
    check_all(&[
        &alarm("'panel/door'", "«when-empty»{}"),
        &alarm("'panel/door'", "«when-one»{ is = true, bad = true }"),
        &alarm("'panel/door'", "«type»true"),
        &alarm("'panel/door'", "{ is = «is»1 }"),
        &alarm("'panel/door'", "{ is = «type»[1] }"),
        &alarm("'panel/temp'", "{ is = «is»true }"),
        &alarm("'panel/temp'", "{ is = «is»100 }"),
        &alarm("'panel/serial'", "{ is = 'AB' }"),
        &alarm("'panel/door'", "{ above = «limit-type»0.5 }"),
        &alarm("'panel/temp'", "{ above = «limit-range»80 }"),
        &alarm("'panel/temp'", "{ below = «limit-range»-50 }"),
        &alarm("'panel/temp'", "{ above = 10, below = «limits-order»20 }"),
        &alarm("'panel/temp'", "{ above = 20, below = 10, deadband = «deadband-wide»10 }"),
        &alarm("'panel/temp'", "{ above = 20, deadband = «deadband-wide»61 }"),
        &alarm("'panel/temp'", "{ above = 20, below = «limits-order»30, deadband = «negative»-1 }"),
        &alarm("'panel/temp'", "{ bad = true, deadband = «deadband-limit»1 }"),
        &alarm("'panel/temp'", "{ bad = «only-true»false }"),
        &alarm("'panel/presses'", "{ increments = true }"),
        &alarm("'panel/temp'", "{ increments = «increments»true }"),
        &alarm("'panel/temp'", "{ stale = «duration»'soon' }"),
        &alarm("'panel/door'\nmessage = «message-language»{ en = 'Open' }", "{ is = true }"),
        &alarm("'panel/door'\non_delay = «range»'2d'\nlatch = «type»1", "{ is = true }"),
    ]);
}

#[test]
fn a_subscription_names_its_points() {
    check_all(&[
        &subscription("topic = «topic-wildcard»'a/+/b'\npoint = 'x/y'"),
        &subscription("topic = «capture»'a/x{n}'\npoint = 'x/y'"),
        &subscription("topic = «capture-twice»'{a}/{a}'\npoint = '{a}/y'"),
        &subscription("topic = «capture-unused»'{a}/{b}'\npoint = '{a}/y'"),
        &subscription("topic = '{a}/b'\npoint = «capture-unknown»'{b}/y'\n"),
        &subscription("topic = 'a'\npoint = «template»'x/Y'"),
        &subscription("topic = 'a'\npoint = «point-name»'x'"),
        &subscription("topic = 'a'\npoint = 'x/y'\nformat = «choice»'xml'"),
        &subscription("topic = 'a'\npoint = 'x/y'\nvalue = «pointer»'value'\ntime = «pointer»'/~x'"),
        &subscription(
            "topic = 'a'\npoint = 'x/y'\nvalues = { ON = true, OFF = «type»[], N = 3, T = 't', X = «finite»inf }",
        ),
        &subscription("topic = 'a'\npoint = 'x/y'\nstale = «range»'1ms'"),
        &subscription(
            "topic = 'a/{d}'\npoint = '{d}/y'\nstale = '5m'\n[[mqtt.subscribe]]\ntopic = 'b/{d}'\npoint = '{d}/y'\nstale = «stale-differs»'9m'",
        ),
        &subscription(
            "topic = 'a/{d}'\npoint = '{d}/y'\nstale = '5m'\n[[mqtt.subscribe]]\ntopic = 'b/{d}'\npoint = '{d}/y'\nstale = '5m'",
        ),
        &subscription("topic = 'a'\npoint = 'x/y'")
            .replace("mqtt://a", "mqtt://a'\nlisten = «url-or-listen»'127.0.0.1:1"),
        &subscription("topic = 'a'\npoint = 'x/y'")
            .replace("url = 'mqtt://a'", "listen = «listen-open»'10.0.0.1:1883'"),
        &subscription("topic = 'a'\npoint = 'x/y'").replace("mqtt://a'", "mqtt://a'\nkeep_alive = «range»'9s'"),
        &subscription("topic = 'a'\npoint = 'x/y'")
            .replace("url = 'mqtt://a'", "listen = '[::1]:1883'\nprotocol = «client-decides»'v5'"),
    ]);
}

#[test]
fn what_a_later_version_understands_is_refused_not_ignored() {
    check_all(&[
        "[http]\ntls_cert_file = «later»'a'\ntls_key_file = «later»'b'",
        &point("name = 'a'\nregister = 'coil:0'\nwritable = «later»true"),
        &point("name = 'a'\nregister = 'coil:0'\nwritable = false"),
        &subscription("topic = 'frigate/reviews'\nformat = «later-value»'frigate'"),
        &alarm("'panel/temp'", "{ high_high = «later»60, low = «later»1 }"),
        &alarm("'panel/temp'", "{ rate = «later»1, bad = true }"),
    ]);
    let center = "[gateway]
id = 'a'
[command_center]
urls = ['mqtt://a']
data_budget = «later»'1GiB/month'
";
    check_files(&[("gardu.toml", center)]);
}

#[test]
fn clashes_across_files_name_both_places() {
    let main = format!("{BASE}{BUS}");
    check_files(&[("gardu.toml", &main), ("gardu.d/a.toml", "«section-twice»[gateway]\nid = 'b'\n")]);
    check_files(&[
        ("gardu.toml", &main),
        (
            "gardu.d/a.toml",
            "«bus-near»[[modbus]]
name = 'cabinat'
[[modbus.device]]
name = «clash»'panel'
unit = 1
point = [{ name = 'new', register = 'coil:0' }]
",
        ),
        ("gardu.d/b.toml", "«no-devices»[[modbus]]\nname = 'cabinet'\ntimeout = «extends»'1s'\n"),
    ]);
    let folder = Folder::new();
    folder.write("gardu.toml", &main);
    folder.write("gardu.d/a.toml", "[gateway]\nid = 'b'\n");
    let problems = load_with(&folder.path("gardu.toml"), ALONE).expect_err("two gateways");
    let first = format!("{}:1:1", folder.path("gardu.toml").display());
    assert!(problems.render(Language::English).contains(&first), "{problems}");
}

#[test]
fn broken_toml_hides_no_other_mistake_and_casts_no_shadow() {
    check_all(&[
        "[telemetry]\ninterval = «syntax»",
        "[telemetry]\nreport = 'off'\n«twice»report = 'off'\n[http]\n«unknown-key-near»lisen = 'a'",
        "[http]\n[«twice»http]",
        // The device without its unit, and the alarm whose point may be in the broken part, are not blamed.
        &BUS.replace("unit = 1", "unit = «syntax»1x"),
    ]);
}
