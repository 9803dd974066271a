//! Makes the answers to successive requests differ in shape. Pure.
//!
//! An RTU answer says its unit, its function and how many bytes of data it has, its **shape**, but not which addresses
//! they are of. Where two successive requests to a unit would get answers of one shape, a second copy of the first
//! answer, or a late one, could be taken for the second. One of the two is therefore lengthened until the shapes differ.
//! The requests of a poll follow each other in a circle: after the last comes the first of the next poll.
//!
//! Limits: a device of one request has nothing to differ from, so there a late answer gives the right registers as they
//! were one poll ago. The shapes stay equal where both requests are as long as the protocol allows, and after the device
//! has refused the lengthened one.

use super::plan::{Request, count_max};
use crate::config::{Point, Table};

/// What two successive requests of one shape weigh: more than any lengthening.
const SAME_SHAPE: u64 = 1_000_000;
/// What it weighs to read an address that a point wants: only time.
const KNOWN: u64 = 1;
/// One between the points of a table, which most devices answer.
const BETWEEN: u64 = 3;
/// One before or behind them all, which some devices refuse.
const OUTSIDE: u64 = 9;

/// Lengthens as few of the requests as necessary, over addresses that the device has if it can be known.
///
/// Of every way to lengthen them the lightest is taken: from request to request, the lightest way to come to each of its
/// choices, once for each choice of the first request, for the circle closes there.
pub(super) fn distinguish(requests: &mut [Request], points: &[Point]) {
    let successive = || requests.iter().zip(requests.iter().cycle().skip(1));
    if requests.len() < 2 || !successive().any(|(a, b)| is_same(a, b)) {
        return;
    }
    let choices: Vec<Vec<Choice>> = requests.iter().map(|request| choices(request, points)).collect();
    let best = choices[0].iter().map(|first| lightest_circle(first, &choices[1..])).min_by_key(|(weight, _)| *weight);
    let (_, chosen) = best.expect("a request can always stay as it is");
    for (request, Choice { span, .. }) in requests.iter_mut().zip(chosen) {
        (request.address, request.count) = (span.address, span.count);
    }
}

/// A request as it is or lengthened; it names no points.
#[derive(Debug, Clone)]
struct Choice {
    span: Request,
    weight: u64,
}

fn lightest_circle<'a>(first: &'a Choice, others: &'a [Vec<Choice>]) -> (u64, Vec<&'a Choice>) {
    let step = |(weight, way): &(u64, Vec<&'a Choice>), to: &Choice| {
        let last = way.last().expect("a way begins with the first request");
        weight + if is_same(&last.span, &to.span) { SAME_SHAPE } else { 0 }
    };
    let mut ways = vec![(first.weight, vec![first])];
    for choices in others {
        let to = |choice: &'a Choice| {
            let from = ways.iter().min_by_key(|way| step(way, choice)).expect("there is always a way");
            let way = from.1.iter().copied().chain([choice]).collect();
            (step(from, choice) + choice.weight, way)
        };
        ways = choices.iter().map(to).collect();
    }
    ways.into_iter()
        .map(|way| (step(&way, first), way.1))
        .min_by_key(|(weight, _)| *weight)
        .expect("there is always a way")
}

fn is_same(a: &Request, b: &Request) -> bool {
    a.table == b.table && a.data_bytes() == b.data_bytes()
}

/// As it is, or the least longer for another shape, and for a third: on a circle of equal requests two do not suffice.
fn choices(request: &Request, points: &[Point]) -> Vec<Choice> {
    let Request { table, address, count, .. } = *request;
    let longer = |shape: u16| match table {
        Table::Holding | Table::Input => shape,
        Table::Coil | Table::Discrete => (request.data_bytes() + shape - 1) * 8 + 1 - count,
    };
    let behind = [0, longer(1), longer(2)].map(|added| (address, added));
    let before = [longer(1), longer(2)].map(|added| (address.wrapping_sub(added), added));
    let allowed = |(from, added): (u16, u16)| {
        let span = Request { table, address: from, count: count + added, points: Vec::new() };
        (from <= address && span.count <= count_max(table) && span.end() <= 1 << 16).then_some(span)
    };
    let weighed = |span: Request| {
        let own = u32::from(address)..request.end();
        let added = (u32::from(span.address)..span.end()).filter(|a| !own.contains(a));
        let weight = added.map(|a| weight(table, a, points)).sum();
        Choice { span, weight }
    };
    behind.into_iter().chain(before).filter_map(allowed).map(weighed).collect()
}

/// How unwelcome it is to read an address for nothing.
fn weight(table: Table, address: u32, points: &[Point]) -> u64 {
    let start = |point: &Point| u32::from(point.address);
    let end = |point: &Point| start(point) + u32::from(point.type_.width());
    let any = |is: &dyn Fn(&Point) -> bool| points.iter().any(|point| point.table == table && is(point));
    let has_lower = any(&|point| start(point) <= address);
    let has_higher = any(&|point| address < end(point));
    match has_lower && has_higher {
        true if any(&|point| (start(point)..end(point)).contains(&address)) => KNOWN,
        true => BETWEEN,
        false => OUTSIDE,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{config::Type, source::modbus::tests::point};

    /// `h0+1 i5+2 c8+16`: table, address and count of each request.
    fn parse(text: &str) -> Vec<Request> {
        let request = |word: &str| {
            let table = match &word[..1] {
                "c" => Table::Coil,
                "d" => Table::Discrete,
                "h" => Table::Holding,
                "i" => Table::Input,
                other => panic!("{other}"),
            };
            let (address, count) = word[1..].split_once('+').expect("address+count");
            let number = |text: &str| text.parse().expect("a number");
            Request { table, address: number(address), count: number(count), points: Vec::new() }
        };
        text.split_whitespace().map(request).collect()
    }

    fn show(requests: &[Request]) -> String {
        let letter = |table| match table {
            Table::Coil => 'c',
            Table::Discrete => 'd',
            Table::Holding => 'h',
            Table::Input => 'i',
        };
        requests.iter().map(|r| format!("{}{}+{}", letter(r.table), r.address, r.count)).collect::<Vec<_>>().join(" ")
    }

    /// A point for every address of the requests.
    fn points(requests: &[Request]) -> Vec<Point> {
        let of = |r: &Request| {
            let table = r.table;
            let type_ = if matches!(table, Table::Coil | Table::Discrete) { Type::Bool } else { Type::U16 };
            (0..r.count).map(move |n| point(table, r.address + n, type_)).collect::<Vec<_>>()
        };
        requests.iter().flat_map(of).collect()
    }

    fn same(requests: &[Request]) -> usize {
        let next = requests.iter().cycle().skip(1);
        requests.iter().zip(next).filter(|(a, b)| is_same(a, b)).count()
    }

    fn check(plain: &str, expected: &str) {
        let mut requests = parse(plain);
        let points = points(&requests);
        distinguish(&mut requests, &points);
        assert_eq!(show(&requests), expected, "{plain}");
    }

    #[test]
    fn requests_of_different_shape_stay_as_they_are() {
        check("h0+1", "h0+1");
        check("h0+1 h50+2", "h0+1 h50+2");
        check("h0+1 i0+1", "h0+1 i0+1");
        check("c0+8 c500+9", "c0+8 c500+9");
    }

    #[test]
    fn one_of_two_equal_requests_is_lengthened_over_the_hole_between_them() {
        check("h0+1 h50+1", "h0+1 h49+2");
        check("i7+4 i90+4", "i7+4 i89+5");
    }

    #[test]
    fn what_points_want_is_read_twice_rather_than_what_the_device_may_not_have() {
        // A run longer than the limit, cut into equal halves.
        check("h0+100 h100+100", "h0+100 h99+101");
        check("h50+1 h51+1 h90+1", "h50+3 h50+2 h90+1");
    }

    #[test]
    fn bits_differ_only_with_their_bytes() {
        check("c0+3 c500+8", "c0+3 c499+9");
        check("d0+8 d500+1", "d0+9 d500+1");
    }

    #[test]
    fn the_last_request_is_followed_by_the_first_of_the_next_poll() {
        check("h0+1 i0+1 h50+1", "h0+1 i0+1 h49+2");
        check("h0+1 h50+1 h90+1", "h0+1 h50+3 h89+2");
    }

    #[test]
    fn the_limits_of_request_and_address_space_hold() {
        check("h0+125 h200+125", "h0+125 h200+125");
        check("h0+124 h65412+124", "h0+124 h65411+125");
        check("h0+125 h65535+1 i0+1 i9+1", "h0+125 h65535+1 i0+2 i9+1");
        check("c0+2000 c3000+1993", "c0+2000 c3000+1993");
    }

    fn requests() -> impl Strategy<Value = Vec<Request>> {
        let table = prop::sample::select(&[Table::Coil, Table::Holding, Table::Holding][..]);
        prop::collection::vec((table, 0_u16..40, 1_u16..4), 1..7).prop_map(|parts| {
            let mut at = 0;
            let place = |(table, hole, count)| {
                let request = Request { table, address: at + hole, count, points: Vec::new() };
                at += hole + count;
                request
            };
            parts.into_iter().map(place).collect()
        })
    }

    proptest! {
        #[test]
        fn shapes_differ_all_the_way_round_and_every_request_still_reads_its_own(plain in requests()) {
            let mut longer = plain.clone();
            distinguish(&mut longer, &points(&plain));
            prop_assert_eq!(same(&longer), usize::from(plain.len() == 1), "{}", show(&longer));
            for (plain, longer) in plain.iter().zip(&longer) {
                prop_assert!(longer.address <= plain.address && longer.end() >= plain.end());
                prop_assert!(longer.data_bytes() <= plain.data_bytes() + 4);
            }
        }

        /// The reference: every combination of choices.
        #[test]
        fn no_other_lengthening_is_lighter(plain in requests()) {
            let (mut longer, points) = (plain.clone(), points(&plain));
            distinguish(&mut longer, &points);
            let choices: Vec<Vec<Choice>> = plain.iter().map(|r| choices(r, &points)).collect();
            let mut ways: Vec<(u64, Vec<Request>)> = vec![(0, Vec::new())];
            for choices in &choices {
                let extend = |(weight, way): &(u64, Vec<Request>)| {
                    let with = |c: &Choice| (weight + c.weight, [&way[..], std::slice::from_ref(&c.span)].concat());
                    choices.iter().map(with).collect::<Vec<_>>()
                };
                ways = ways.iter().flat_map(extend).collect();
            }
            let least = ways.iter().filter(|(_, way)| way.len() == 1 || same(way) == 0).map(|(weight, _)| *weight).min();
            let added = |(plain, longer): (&Request, &Request)| {
                let own = u32::from(plain.address)..plain.end();
                let outside = (u32::from(longer.address)..longer.end()).filter(|a| !own.contains(a));
                outside.map(|a| weight(plain.table, a, &points)).sum::<u64>()
            };
            prop_assert_eq!(Some(plain.iter().zip(&longer).map(added).sum()), least);
        }
    }
}
