//! The command line, in the reader's language.

use std::{ffi::OsString, path::PathBuf, time::Duration};

use clap::{Arg, ArgAction, ArgMatches, Command, value_parser};

use super::{
    Form,
    outbox::{self, Extent, Shape},
};
use crate::{config::Language, record::Lane, text::say};

/// Where the configuration lies unless `--config` says otherwise.
pub const CONFIG_DEFAULT: &str = "/etc/gardu/gardu.toml";

/// What to do, and how.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Arguments {
    /// The command.
    pub command: What,
    /// Configuration file.
    pub config: PathBuf,
    /// Language asked for; without it the configuration decides.
    pub language: Option<Language>,
}

/// The commands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum What {
    /// The daemon.
    Run,
    /// Check the configuration.
    Check(Form),
    /// Ask the daemon.
    Status(Form),
    /// The simulated park; for ever unless bounded.
    Demo(Option<Duration>),
    /// Look into the outbox.
    Outbox(outbox::Task),
}

/// Parses the command line; the error prints itself (help and version are errors of exit code 0).
pub fn parse(args: &[OsString], language_of_locale: Language) -> Result<Arguments, clap::Error> {
    let mut command = command(language_asked(args).unwrap_or(language_of_locale));
    let matches = command.try_get_matches_from_mut(args)?;
    let (name, sub) = matches.subcommand().expect("clap requires a command");
    let what = match name {
        "run" => What::Run,
        "check" => What::Check(form(sub)),
        "status" => What::Status(form(sub)),
        "demo" => What::Demo(sub.get_one::<Duration>("for").copied()),
        "outbox" => What::Outbox(outbox(sub)),
        other => unreachable!("clap knows no command {other}"),
    };
    Ok(Arguments {
        command: what,
        config: deepest(sub).get_one::<PathBuf>("config").cloned().expect("it has a default"),
        language: deepest(sub).get_one::<String>("lang").and_then(|code| Language::parse(code)),
    })
}

fn outbox(sub: &ArgMatches) -> outbox::Task {
    let (name, sub) = sub.subcommand().expect("clap requires a command");
    let path = |name: &str| sub.get_one::<PathBuf>(name).cloned();
    let lane = || {
        let letter = sub.get_one::<String>("lane")?;
        Lane::ALL.into_iter().find(|lane| lane.as_str() == letter)
    };
    match name {
        "status" => outbox::Task::Status(form(sub)),
        "list" => outbox::Task::List(outbox::Listing {
            lane: lane(),
            from: sub.get_one("from").copied().unwrap_or(0),
            limit: sub.get_one("limit").copied().expect("it has a default"),
            form: form(sub),
        }),
        "export" => outbox::Task::Export {
            lane: lane(),
            extent: if sub.get_flag("all") { Extent::All } else { Extent::Waiting },
            to: path("output"),
        },
        "salvage" => outbox::Task::Salvage {
            from: path("from").expect("clap requires it"),
            shape: if sub.get_flag("events") { Shape::Events } else { Shape::Stored },
            to: path("output"),
        },
        other => unreachable!("clap knows no command {other}"),
    }
}

/// The innermost command: only there have the options for all of them arrived, wherever they were written.
fn deepest(matches: &ArgMatches) -> &ArgMatches {
    matches.subcommand().map_or(matches, |(_, sub)| deepest(sub))
}

fn form(sub: &ArgMatches) -> Form {
    if sub.get_flag("json") { Form::Json } else { Form::Text }
}

/// `--lang` before clap has run, so that help speaks it as well.
fn language_asked(args: &[OsString]) -> Option<Language> {
    let text = |i: usize| args.get(i).and_then(|a| a.to_str());
    (0..args.len()).find_map(|i| match text(i)? {
        "--lang" => Language::parse(text(i + 1)?),
        other => Language::parse(other.strip_prefix("--lang=")?),
    })
}

fn command(language: Language) -> Command {
    let t = |key: &str| say(language, key, &[]);
    let json = Arg::new("json").long("json").action(ArgAction::SetTrue).help(t("cli-json"));
    let duration = move |text: &str| {
        crate::config::units::duration(text)
            .ok_or_else(|| say(language, "cli-bad-duration", &[("text", text.to_owned().into())]))
    };
    let until = Arg::new("for").long("for").value_name("30s").value_parser(duration).help(t("cli-demo-for"));
    let template = format!(
        "{{about}}\n\n{}: {{usage}}\n\n{}:\n{{subcommands}}\n\n{}:\n{{options}}\n",
        t("cli-usage"),
        t("cli-commands"),
        t("cli-options")
    );
    let sub_template = format!("{{about}}\n\n{}: {{usage}}\n\n{}:\n{{options}}\n", t("cli-usage"), t("cli-options"));
    let sub = |name: &'static str, key: &str| {
        let help = Arg::new("help").short('h').long("help").action(ArgAction::Help).help(t("cli-help"));
        let command = Command::new(name).about(t(key)).disable_help_flag(true).arg(help);
        command.help_template(sub_template.clone())
    };
    let outbox = outbox_command(language, &sub, &json).help_template(template.clone());
    Command::new("gardu")
        .about(t("cli-about"))
        .version(env!("CARGO_PKG_VERSION"))
        .help_template(template)
        .disable_help_flag(true)
        .disable_version_flag(true)
        .disable_help_subcommand(true)
        .subcommand_required(true)
        .arg_required_else_help(true)
        .arg(Arg::new("help").short('h').long("help").action(ArgAction::Help).help(t("cli-help")))
        .arg(Arg::new("version").short('V').long("version").action(ArgAction::Version).help(t("cli-version")))
        .arg(
            Arg::new("config")
                .long("config")
                .global(true)
                .value_name("FILE")
                .value_parser(value_parser!(PathBuf))
                .default_value(CONFIG_DEFAULT)
                .help(t("cli-config")),
        )
        .arg(Arg::new("lang").long("lang").global(true).value_parser(["id", "en"]).help(t("cli-lang")))
        .subcommand(sub("run", "cli-run"))
        .subcommand(sub("check", "cli-check").arg(json.clone()))
        .subcommand(sub("status", "cli-status").arg(json))
        .subcommand(outbox)
        .subcommand(sub("demo", "cli-demo").arg(until))
}

fn outbox_command(language: Language, sub: &dyn Fn(&'static str, &str) -> Command, json: &Arg) -> Command {
    let t = |key: &str| say(language, key, &[]);
    let lane = Arg::new("lane").long("lane").value_parser(["a", "t"]).help(t("cli-outbox-lane"));
    let number = |name: &'static str, help| {
        Arg::new(name).long(name).value_name("N").value_parser(value_parser!(u64)).help(t(help))
    };
    let from = number("from", "cli-outbox-from").requires("lane");
    let limit = number("limit", "cli-outbox-limit").default_value("50");
    let flag = |name: &'static str, help| Arg::new(name).long(name).action(ArgAction::SetTrue).help(t(help));
    let path = |name: &'static str, help| Arg::new(name).value_parser(value_parser!(PathBuf)).help(t(help));
    let output = path("output", "cli-outbox-output").short('o').long("output").value_name("FILE");
    let from_where = path("from", "cli-outbox-salvage-from").value_name("PATH").required(true);
    let salvage = sub("salvage", "cli-outbox-salvage").arg(from_where).arg(flag("events", "cli-outbox-events"));
    let salvage_template =
        format!("{{about}}\n\n{}: {{usage}}\n\n{}:\n{{positionals}}\n{{options}}\n", t("cli-usage"), t("cli-options"));
    sub("outbox", "cli-outbox")
        .subcommand_required(true)
        .arg_required_else_help(true)
        .disable_help_subcommand(true)
        .subcommand(sub("status", "cli-outbox-status").arg(json.clone()))
        .subcommand(sub("list", "cli-outbox-list").arg(lane.clone()).arg(from).arg(limit).arg(json.clone()))
        .subcommand(sub("export", "cli-outbox-export").arg(lane).arg(flag("all", "cli-outbox-all")).arg(output.clone()))
        .subcommand(salvage.arg(output).help_template(salvage_template))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(line: &str) -> Result<Arguments, String> {
        let args: Vec<OsString> = line.split_whitespace().map(OsString::from).collect();
        parse(&args, Language::English).map_err(|e| e.to_string())
    }

    #[test]
    fn every_command_takes_the_common_options_before_or_after_it() {
        for line in ["gardu --config a.toml --lang id check --json", "gardu check --json --config a.toml --lang=id"] {
            let want = Arguments {
                command: What::Check(Form::Json),
                config: "a.toml".into(),
                language: Some(Language::Indonesian),
            };
            assert_eq!(parsed(line), Ok(want), "{line}");
        }
        assert_eq!(parsed("gardu run").expect("run").config, PathBuf::from(CONFIG_DEFAULT));
        assert_eq!(parsed("gardu demo --for 30s").expect("demo").command, What::Demo(Some(Duration::from_secs(30))));
    }

    #[test]
    fn the_outbox_has_commands_of_its_own() {
        let task = |line: &str| parsed(line).map(|arguments| (arguments.command, arguments.config));
        let listing = outbox::Listing { lane: Some(Lane::Telemetry), from: 9, limit: 50, form: Form::Text };
        let list = What::Outbox(outbox::Task::List(listing));
        for line in [
            "gardu --config a.toml outbox list --lane t --from 9",
            "gardu outbox --config a.toml list --from 9 --lane t --limit 50",
            "gardu outbox list --lane t --from 9 --config a.toml",
        ] {
            assert_eq!(task(line), Ok((list.clone(), "a.toml".into())), "{line}");
        }
        let export =
            outbox::Task::Export { lane: None, extent: Extent::All, to: Some("/media/usb/alarms.jsonl".into()) };
        let want = (What::Outbox(export), PathBuf::from(CONFIG_DEFAULT));
        assert_eq!(task("gardu outbox export --all -o /media/usb/alarms.jsonl"), Ok(want));
        for wrong in
            ["gardu outbox salvage", "gardu outbox list --from 9", "gardu outbox list --lane b", "gardu outbox"]
        {
            assert!(parsed(wrong).is_err(), "{wrong}");
        }
        for language in ["id", "en"] {
            for command in ["", " status", " list", " export", " salvage"] {
                let help = parsed(&format!("gardu --lang {language} outbox{command} --help")).expect_err("help");
                assert!(!help.contains("cli-"), "{help}");
            }
        }
    }

    #[test]
    fn help_speaks_the_language_asked_for() {
        assert!(parsed("gardu --lang id --help").expect_err("help").contains("Menjalankan daemon"));
        assert!(parsed("gardu --lang=en --help").expect_err("help").contains("Run the daemon"));
        assert!(parsed("gardu demo --for soon").expect_err("refused").contains("is not a duration"));
    }
}
