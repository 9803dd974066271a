//! Who may know whom: reads the `crate::` paths of the gateway's sources and fails on an arrow that [`MAY_KNOW`] does
//! not have, and on a foreign crate named outside the modules that own it ([`MAY_NAME`]).
//!
//! Data flows left to right, knowledge upward; a new arrow is a decision for review, made by adding it here. Test code
//! (`#[cfg(test)]` modules) may know anyone.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

/// A module, and what it may know beside itself and what lies in it. The longest matching name counts. `*` is everyone.
const MAY_KNOW: &[(&str, &[&str])] = &[
    // The nouns.
    ("reading", &["clock::Now"]),
    ("clock", &[]),
    ("alarm", &["clock", "command::Refusal", "reading", "record::Epoch"]),
    ("command", &["alarm", "reading", "record::Epoch"]),
    ("record", &["alarm", "clock", "reading"]),
    // Tools that know at most nouns.
    ("backoff", &["clock"]),
    ("log", &[]),
    ("machine", &[]),
    ("metrics", &[]),
    ("supervise", &["clock"]),
    ("text", &["alarm::Texts", "config::Language"]),
    ("config", &["alarm", "clock", "reading", "text"]),
    ("wire", &["clock", "config"]),
    // The way of a reading.
    ("source", &["backoff", "clock", "config", "metrics", "pipeline::Input", "reading", "supervise"]),
    ("source::mqtt", &["backoff", "clock", "config", "metrics", "pipeline::Input", "reading", "supervise", "wire"]),
    ("telemetry", &["clock", "config", "reading", "record"]),
    (
        "pipeline",
        &[
            "alarm",
            "clock",
            "command",
            "config",
            "metrics",
            "reading",
            "record",
            "status",
            "store",
            "supervise",
            "telemetry",
            "text",
        ],
    ),
    ("store", &["alarm", "clock", "command", "machine", "metrics", "reading", "record", "supervise"]),
    (
        "uplink",
        &[
            "alarm",
            "backoff",
            "clock",
            "command",
            "config",
            "metrics",
            "pipeline::Input",
            "reading",
            "record",
            "status",
            "store",
            "supervise",
            "text",
            "wire",
        ],
    ),
    ("uplink::message", &["alarm", "clock", "command", "config", "reading", "record", "store", "text"]),
    ("uplink::delivery", &["alarm::Severity", "clock", "config::DeliveredWhen", "record", "store", "wire"]),
    (
        "keeper",
        &[
            "alarm",
            "clock",
            "config::Outbox",
            "metrics",
            "pipeline::Certainty",
            "pipeline::Input",
            "pipeline::Summarised",
            "reading",
            "record",
            "status",
            "store",
            "supervise",
            "telemetry::cut",
        ],
    ),
    // What people see.
    (
        "status",
        &[
            "alarm",
            "clock",
            "config",
            "reading",
            "record",
            "store::Generation",
            "store::Head",
            "store::Space",
            "supervise",
        ],
    ),
    ("http", &["clock", "config", "metrics", "reading", "record", "status", "store", "supervise", "uplink::message"]),
    ("notify", &["clock", "supervise"]),
    ("flash", &["alarm", "clock", "metrics", "pipeline::Input", "reading", "status", "supervise"]),
    // The wiring.
    ("daemon", &["*"]),
    ("cli", &["*"]),
    ("main", &["*"]),
    ("lib", &[]),
];

/// A foreign crate, and who may name it: it can then be exchanged in one place.
const MAY_NAME: &[(&str, &[&str])] = &[
    ("rumqttc", &["wire", "source::mqtt::listener"]),
    ("rustls", &["wire::probe", "wire::tls", "config::tls"]),
    ("tokio_rustls", &["wire::probe", "wire::tls"]),
    ("rustls_native_certs", &["wire::tls"]),
    ("sled", &["store"]),
    ("prometheus", &["metrics", "http"]),
    ("tokio_modbus", &["source::modbus", "cli::demo"]),
    ("tokio_serial", &["source::modbus::port"]),
    ("crc", &["source::modbus::rtu"]),
    ("gpiocdev", &["source::gpio::lines"]),
    ("linux_embedded_hal", &["source::i2c::bus"]),
    ("gardu_node", &["source::gpio", "source::i2c"]),
    ("axum", &["http"]),
    ("hyper", &["http", "cli"]),
    ("toml", &["config"]),
    ("fluent_bundle", &["text"]),
    ("rtime_clock", &["clock"]),
    ("jiff", &["clock", "config"]),
    ("tracing_subscriber", &["log"]),
    ("clap", &["cli", "main"]),
    ("anyhow", &["cli", "main"]),
];

#[test]
fn no_module_knows_whom_it_must_not() {
    let sources = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let files = production_files(&sources);
    assert!(files.len() > 20, "found only {} files below {}", files.len(), sources.display());
    let wrong: Vec<String> = files
        .iter()
        .flat_map(|file| {
            let text = fs::read_to_string(file).expect("a source file is readable text");
            forbidden(&module_of(file.strip_prefix(&sources).expect("found below it")), &text)
        })
        .collect();
    assert!(wrong.is_empty(), "forbidden arrows (STYLE.md, \"Who may know whom\"):\n{}", wrong.join("\n"));
}

#[test]
fn a_forbidden_line_is_found_however_it_is_written() {
    for (module, line) in [
        ("store::chain", "use crate::wire::Event;"),
        ("store", "use crate::{\n    record::{Lane, Record},\n    uplink::delivery::{self},\n};"),
        ("reading", "fn f() -> crate::clock::Clock { todo!() }"),
        ("alarm::engine", "use super::super::store::Store;"),
        ("source::modbus::bus", "pub(crate) use crate::wire::{Wire as W};"),
        ("uplink", "use crate::pipeline::core::Core;"),
        ("pipeline", "let db = sled::open(path);"),
        ("uplink", "use rumqttc::v5;"),
        ("source::mqtt::client", "use rumqttc as mqtt;"),
        ("http", "use crate::*;"),
        ("brand_new", "use crate::reading::Value;"),
    ] {
        assert_eq!(forbidden(module, line).len(), 1, "{module}: {line}: {:?}", forbidden(module, line));
    }
}

#[test]
fn allowed_lines_pass() {
    for (module, line) in [
        ("store::chain", "use crate::{record::Record, store::layout::Layout};\nuse super::envelope;"),
        ("reading", "use crate::clock::Now; // not crate::clock::Clock"),
        ("source::mqtt::listener::codec", "use rumqttc::mqttbytes::v4;"),
        ("source", "/// See [`Wire`](crate::wire::Wire).\nfn sled() {}"),
        ("daemon", "use crate::{http::HttpTask, uplink::Uplink};"),
        ("alarm", "use crate::reading::Value;\n#[cfg(test)]\nmod tests {\n    use crate::store::Store;\n}"),
    ] {
        assert_eq!(forbidden(module, line), [""; 0], "{module}: {line}");
    }
}

/// Every source file that is not test code only.
fn production_files(folder: &Path) -> Vec<PathBuf> {
    let (mut files, mut folders) = (Vec::new(), vec![folder.to_owned()]);
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).expect("a source folder is readable") {
            let path = entry.expect("a source folder is readable").path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                files.push(path);
            }
        }
    }
    let test_only: BTreeSet<PathBuf> = files.iter().flat_map(|file| test_modules(file)).collect();
    files.retain(|file| !file.ancestors().any(|path| test_only.contains(&path.with_extension(""))));
    files
}

/// The files or folders, without extension, of `#[cfg(test)] mod name;` in this file.
fn test_modules(file: &Path) -> Vec<PathBuf> {
    let text = fs::read_to_string(file).expect("a source file is readable text");
    let owns_folder = ["mod.rs", "lib.rs", "main.rs"].iter().any(|name| file.ends_with(name));
    let folder =
        if owns_folder { file.parent().expect("a file lies in a folder").to_owned() } else { file.with_extension("") };
    let mut after_cfg = text.split("#[cfg(test)]").skip(1);
    let named = |rest: &str| {
        let declared = rest.trim_start().split_once("mod ").filter(|(before, _)| !before.contains(['{', ';']))?.1;
        let name = declared.split_once(';')?.0;
        name.bytes().all(|b| b.is_ascii_lowercase() || b == b'_').then(|| folder.join(name))
    };
    after_cfg.by_ref().filter_map(named).collect()
}

/// `store/chain.rs` is `store::chain`, `store/mod.rs` is `store`.
fn module_of(file: &Path) -> String {
    let path = file.with_extension("");
    let names: Vec<&str> = path.iter().map(|name| name.to_str().expect("module names are text")).collect();
    names.strip_suffix(&["mod"]).unwrap_or(&names).join("::")
}

/// What this source says that its module must not.
fn forbidden(module: &str, text: &str) -> Vec<String> {
    let code = production_code(text);
    let Some((who, may_know)) = rule_of(MAY_KNOW, module) else {
        return vec![format!("`{module}` is not in the table of tests/arrows.rs: say there whom it may know")];
    };
    let family = module.split("::").next().unwrap_or(module);
    let mut wrong: Vec<String> = Vec::new();
    for path in paths(&code, module) {
        let known =
            path.split("::").next() == Some(family) || may_know.iter().any(|one| *one == "*" || lies_in(&path, one));
        if !known {
            wrong.push(format!("`{module}` names crate::{path}; `{who}` may know: {}", may_know.join(", ")));
        }
    }
    for (name, owners) in MAY_NAME {
        if names_crate(&code, name) && !owners.iter().any(|owner| lies_in(module, owner)) {
            wrong.push(format!("`{module}` names the crate {name}, which belongs to: {}", owners.join(", ")));
        }
    }
    wrong
}

/// The longest entry that `module` lies in.
fn rule_of<'a>(table: &[(&'a str, &'a [&'a str])], module: &str) -> Option<(&'a str, &'a [&'a str])> {
    table.iter().copied().filter(|(name, _)| lies_in(module, name)).max_by_key(|(name, _)| name.len())
}

fn lies_in(path: &str, ancestor: &str) -> bool {
    path.strip_prefix(ancestor).is_some_and(|rest| rest.is_empty() || rest.starts_with("::"))
}

/// The source without comments and without the test module at its end.
fn production_code(text: &str) -> String {
    let mut code = String::new();
    let mut lines = text.lines().peekable();
    while let Some(line) = lines.next() {
        let bare = line.split("//").next().unwrap_or(line);
        if bare.trim() == "#[cfg(test)]" {
            while lines.next_if(|next| next.starts_with("#[")).is_some() {}
            if lines.peek().is_some_and(|next| next.contains("mod ") && next.ends_with('{')) {
                break;
            }
        }
        code.push_str(bare);
        code.push('\n');
    }
    code
}

/// Every path from the crate's root that the code names, `use` groups taken apart.
fn paths(code: &str, module: &str) -> Vec<String> {
    let mut found = Vec::new();
    for (at, _) in code.match_indices("crate::") {
        let whole = !code[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_' || c == '$');
        if whole {
            tree(&code[at + "crate::".len()..], "", &mut found);
        }
    }
    // `super::super::x` leaves the folder; a single `super::` stays in the family unless the module is at the top.
    for (at, up) in code.match_indices("super::super::") {
        let parent: Vec<&str> = module.split("::").collect();
        if let Some(above) = parent.len().checked_sub(2) {
            tree(&code[at + up.len()..], &parent[..above].join("::"), &mut found);
        }
    }
    found
}

/// Reads one `use` tree or path; returns what follows it.
fn tree<'a>(mut code: &'a str, prefix: &str, found: &mut Vec<String>) -> &'a str {
    let mut path = prefix.to_owned();
    loop {
        code = code.trim_start();
        if let Some(mut inside) = code.strip_prefix('{') {
            loop {
                inside = tree(inside, &path, found).trim_start();
                match inside.strip_prefix(',') {
                    Some(rest) => inside = rest,
                    None => return inside.strip_prefix('}').unwrap_or(inside),
                }
                if let Some(rest) = inside.trim_start().strip_prefix('}') {
                    return rest;
                }
            }
        }
        let end = code.find(|c: char| !(c.is_alphanumeric() || c == '_' || c == '*')).unwrap_or(code.len());
        let (name, rest) = code.split_at(end);
        code = rest;
        if name != "self" {
            path = if path.is_empty() { name.to_owned() } else { format!("{path}::{name}") };
        }
        match code.strip_prefix("::") {
            Some(rest) if rest.starts_with(|c: char| c.is_alphabetic() || "_{*".contains(c)) => code = rest,
            _ => break,
        }
    }
    found.push(path);
    // `as name` ends with the next separator.
    let renamed =
        code.trim_start().strip_prefix("as ").map(|rest| &rest[rest.find([',', '}', ';']).unwrap_or(rest.len())..]);
    renamed.unwrap_or(code)
}

/// Whether the code names a foreign crate: `name::…`, `use name;` or `use name as …`.
fn names_crate(code: &str, name: &str) -> bool {
    code.match_indices(name).any(|(at, _)| {
        let (before, after) = (&code[..at], &code[at + name.len()..]);
        let starts = !before.ends_with(|c: char| c.is_alphanumeric() || c == '_' || c == ':' || c == '.');
        let used = before.ends_with("use ") && after.starts_with([';', ' ']);
        starts && (after.starts_with("::") || used)
    })
}
