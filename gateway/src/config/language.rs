//! The two languages of texts for people.

/// Language of alarms, page and tools.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Language {
    /// Bahasa Indonesia.
    #[default]
    Indonesian,
    /// English.
    English,
}

impl Language {
    /// Both, the default first.
    pub const ALL: [Self; 2] = [Self::Indonesian, Self::English];

    /// ISO 639-1 code, as in the configuration.
    #[must_use]
    pub const fn code(self) -> &'static str {
        match self {
            Self::Indonesian => "id",
            Self::English => "en",
        }
    }

    /// Parses `id` or `en`.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|language| language.code() == text)
    }

    /// The language of the locale that POSIX variables name (`LC_ALL`, `LC_MESSAGES`, `LANG`, in this order), if it is
    /// one of ours.
    #[must_use]
    pub fn of_locale(variable: impl Fn(&str) -> Option<String>) -> Option<Self> {
        let set = |name| variable(name).filter(|value| !value.is_empty());
        let locale = ["LC_ALL", "LC_MESSAGES", "LANG"].into_iter().find_map(set)?;
        Self::ALL.into_iter().find(|language| locale.split(['_', '.', '@']).next() == Some(language.code()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_locale_speaks_through_its_most_specific_variable() {
        let of = |set: &[(&str, &str)]| {
            Language::of_locale(|name| set.iter().find(|(n, _)| *n == name).map(|(_, value)| (*value).to_owned()))
        };
        assert_eq!(of(&[("LANG", "id_ID.UTF-8")]), Some(Language::Indonesian));
        assert_eq!(of(&[("LANG", "id_ID.UTF-8"), ("LC_ALL", "en_US")]), Some(Language::English));
        assert_eq!(of(&[("LANG", "en"), ("LC_ALL", "")]), Some(Language::English));
        assert_eq!(of(&[("LANG", "C.UTF-8")]), None);
        assert_eq!(of(&[]), None);
    }
}
