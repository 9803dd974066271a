//! PURE: which foreign text stands behind each name, so that two things never share one.
//!
//! `Pintu 1` and `pintu-1` have the same slug. Whoever came first keeps the name; the other is refused, because two
//! devices behind one point would be a wrong value with good quality.

use std::collections::HashMap;

use super::json::{Named, Refused};

/// How many names one input may have. Ten thousand is far above a park's devices and, at some 200 bytes a name, 2 MiB;
/// a client that invents topics ends here.
pub const NAMES_MAX: usize = 10_000;

/// Name, up to and including a captured segment, to the captured text.
#[derive(Debug, Default)]
pub struct Names(HashMap<String, Box<str>>);

impl Names {
    /// Takes the names for these originals, or says who has one of them. Refused as a whole: nothing is half taken.
    pub fn take(&mut self, named: &Named<'_>) -> Result<(), Refused> {
        let mut new = 0;
        for (name, original) in &named.captured {
            match self.0.get(name) {
                Some(first) if &**first == *original => {}
                Some(first) => {
                    let (name, first, second) = (name.clone(), first.to_string(), (*original).to_owned());
                    return Err(Refused::NameTaken { name, first, second });
                }
                None => new += 1,
            }
        }
        if self.0.len() + new > NAMES_MAX {
            return Err(Refused::TooManyNames(named.point.to_string()));
        }
        for (name, original) in &named.captured {
            self.0.entry(name.clone()).or_insert_with(|| (*original).into());
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::mqtt::{json, tests::subscription};

    fn take(names: &mut Names, topic: &str) -> Result<(), Refused> {
        let subscription = subscription("{device}/{name}", "{device}/{name}");
        names.take(&json::name(&subscription, topic).expect("matches").expect("a name"))
    }

    #[test]
    fn the_first_original_keeps_the_name_and_the_second_is_told_so() {
        let mut names = Names::default();
        assert_eq!(take(&mut names, "Kolam/Pintu 1"), Ok(()));
        assert_eq!(take(&mut names, "Kolam/Pintu 1"), Ok(()), "the same again");
        assert_eq!(take(&mut names, "Kolam/Pintu 2"), Ok(()));
        let refused = take(&mut names, "Kolam/pintu-1").expect_err("another original");
        assert_eq!(
            refused.to_string(),
            "`pintu-1` would be called `kolam/pintu-1` like `Pintu 1`: rename one of the two devices"
        );
        assert!(
            matches!(take(&mut names, "kolam/jendela"), Err(Refused::NameTaken { .. })),
            "a device has one original"
        );
        assert_eq!(take(&mut names, "Taman/pintu-1"), Ok(()), "another device, another name");
    }

    #[test]
    fn a_client_that_invents_topics_cannot_fill_the_memory() {
        let mut names = Names::default();
        let refused = (0..NAMES_MAX * 2).filter(|i| take(&mut names, &format!("a/p{i}")).is_err()).count();
        assert_eq!((names.0.len(), refused), (NAMES_MAX, NAMES_MAX + 1));
        assert_eq!(take(&mut names, "a/p1"), Ok(()), "known names go on");
    }
}
