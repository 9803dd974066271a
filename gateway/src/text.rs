//! Every sentence for people, in Bahasa Indonesia and English (Project Fluent; `locales/{id,en}/*.ftl`).
//!
//! Logs are English; alarms, answers to commands, the tools and the page speak the reader's language.

use std::{borrow::Cow, sync::LazyLock};

use fluent_bundle::{FluentArgs, FluentResource, FluentValue, concurrent::FluentBundle};

use crate::{alarm::Texts, config::Language};

/// The files of one language, the other's in the same order.
macro_rules! locale {
    ($language:literal) => {
        [
            include_str!(concat!("../locales/", $language, "/alarm.ftl")),
            include_str!(concat!("../locales/", $language, "/check.ftl")),
            include_str!(concat!("../locales/", $language, "/command.ftl")),
            include_str!(concat!("../locales/", $language, "/daemon.ftl")),
            include_str!(concat!("../locales/", $language, "/demo.ftl")),
            include_str!(concat!("../locales/", $language, "/outbox.ftl")),
            include_str!(concat!("../locales/", $language, "/status.ftl")),
        ]
    };
}

type Bundle = FluentBundle<FluentResource>;

static INDONESIAN: LazyLock<Bundle> = LazyLock::new(|| bundle(Language::Indonesian, locale!("id")));
static ENGLISH: LazyLock<Bundle> = LazyLock::new(|| bundle(Language::English, locale!("en")));

fn bundle(language: Language, files: [&'static str; 7]) -> Bundle {
    let mut bundle = FluentBundle::new_concurrent(vec![language.code().parse().expect("both codes are language tags")]);
    bundle.set_use_isolating(false); // texts end in terminals and JSON, not in bidirectional HTML
    for file in files {
        let resource = FluentResource::try_new(file.to_owned()).expect("a test parses every locale file");
        bundle.add_resource(resource).expect("a test finds repeated keys");
    }
    bundle
}

fn of(language: Language) -> &'static Bundle {
    match language {
        Language::Indonesian => &INDONESIAN,
        Language::English => &ENGLISH,
    }
}

/// One value to put into a sentence.
pub type Arg<'a> = (&'static str, FluentValue<'a>);

/// A sentence by its key. A key that does not exist is a bug that a test finds; it shows as the key itself.
#[must_use]
pub fn say(language: Language, key: &str, args: &[Arg<'_>]) -> String {
    let bundle = of(language);
    let Some(pattern) = bundle.get_message(key).and_then(|message| message.value()) else { return key.to_owned() };
    let args: FluentArgs<'_> = args.iter().map(|(name, value)| (*name, value.clone())).collect();
    let mut errors = Vec::new();
    let said: Cow<'_, str> = bundle.format_pattern(pattern, Some(&args), &mut errors);
    debug_assert!(errors.is_empty(), "{key}: {errors:?}");
    said.into_owned()
}

/// A sentence in both languages.
#[must_use]
pub fn both(key: &str, args: &[Arg<'_>]) -> Texts {
    let of = |language| Some(say(language, key, args).into());
    Texts { id: of(Language::Indonesian), en: of(Language::English) }
}

/// Whether both languages have this key.
#[must_use]
pub fn exists(key: &str) -> bool {
    Language::ALL.into_iter().all(|language| of(language).has_message(key))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn keys(files: [&str; 7]) -> BTreeSet<String> {
        let lines = files.into_iter().flat_map(str::lines);
        lines
            .filter_map(|line| line.split_once(" ="))
            .map(|(key, _)| key)
            .filter(|key| is_key(key))
            .map(str::to_owned)
            .collect()
    }

    fn is_key(text: &str) -> bool {
        !text.is_empty() && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
    }

    #[test]
    fn both_languages_say_the_same_things() {
        let (id, en) = (keys(locale!("id")), keys(locale!("en")));
        assert_eq!(id, en);
        assert!(id.iter().all(|key| exists(key)) && !id.is_empty());
    }

    #[test]
    fn a_sentence_takes_its_values() {
        let texts = both("alarm-communication", &[("device", "panel".into())]);
        assert_eq!(texts.id.as_deref(), Some("Perangkat panel tidak menjawab"));
        assert_eq!(texts.en.as_deref(), Some("Device panel does not answer"));
    }
}
