//! The command line, in the reader's language.

use std::{ffi::OsString, path::PathBuf, time::Duration};

use clap::{Arg, ArgAction, ArgMatches, Command, value_parser};

use super::Form;
use crate::{config::Language, text::say};

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
}

/// Parses the command line; the error prints itself (help and version are errors of exit code 0).
pub fn parse(args: &[OsString], language_of_locale: Language) -> Result<Arguments, clap::Error> {
    let mut command = command(language_asked(args).unwrap_or(language_of_locale));
    let matches = command.try_get_matches_from_mut(args)?;
    let (name, sub) = matches.subcommand().expect("clap requires a command");
    let form = |sub: &ArgMatches| if sub.get_flag("json") { Form::Json } else { Form::Text };
    let what = match name {
        "run" => What::Run,
        "check" => What::Check(form(sub)),
        "status" => What::Status(form(sub)),
        "demo" => What::Demo(sub.get_one::<Duration>("for").copied()),
        other => unreachable!("clap knows no command {other}"),
    };
    Ok(Arguments {
        command: what,
        config: sub.get_one::<PathBuf>("config").cloned().expect("it has a default"),
        language: sub.get_one::<String>("lang").and_then(|code| Language::parse(code)),
    })
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
        .subcommand(sub("demo", "cli-demo").arg(until))
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
    fn help_speaks_the_language_asked_for() {
        assert!(parsed("gardu --lang id --help").expect_err("help").contains("Menjalankan daemon"));
        assert!(parsed("gardu --lang=en --help").expect_err("help").contains("Run the daemon"));
        assert!(parsed("gardu demo --for soon").expect_err("refused").contains("is not a duration"));
    }
}
