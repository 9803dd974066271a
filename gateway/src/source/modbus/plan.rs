//! Which requests read a device's points: those that take the least time within the protocol's limits. Pure.
//!
//! A **hole** is an address between two points that no point wants. On TCP a register too many costs two bytes and a
//! request a round trip, so every hole is read; on a serial line only while that takes less time than one more request
//! (at 9600 baud up to some 12 registers). There, requests are also lengthened for safety, see [`shape`](super::shape).
//! A device that refuses what no point wants is read without it (see [`without_holes`]).

use std::time::Duration;

use super::{shape, timing::Medium};
use crate::config::{Device, Point, Table};

/// Most registers in one answer (Modbus Application Protocol 1.1b3 §6.3, §6.4).
pub const REGISTERS_MAX: u16 = 125;
/// Most bits in one answer (§6.1, §6.2).
pub const BITS_MAX: u16 = 2000;

/// One request and the points its answer holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// Which table.
    pub table: Table,
    /// First address, 0-based as on the wire.
    pub address: u16,
    /// Registers or bits.
    pub count: u16,
    /// Indices into the device's points, by address.
    pub points: Vec<usize>,
}

impl Request {
    /// The address after the last.
    pub(super) fn end(&self) -> u32 {
        u32::from(self.address) + u32::from(self.count)
    }
}

/// The requests of one poll, by table and address. A value of several registers is never split, so it is never torn.
#[must_use]
pub fn plan(device: &Device, medium: Medium) -> Vec<Request> {
    let mut requests = cover(&device.points, (0..device.points.len()).collect(), Holes::Read, medium);
    if medium.line().is_some() {
        shape::distinguish(&mut requests, &device.points);
    }
    requests
}

/// What to ask instead of a request that the device refuses because it has not all of the addresses: first the request
/// without what was added at its ends, then without its holes; `None` if points want all of it.
#[must_use]
pub fn without_holes(device: &Device, request: &Request) -> Option<Vec<Request>> {
    let cover = |holes| cover(&device.points, request.points.clone(), holes, Medium::Tcp);
    [Holes::Read, Holes::Avoid].into_iter().map(cover).find(|narrower| narrower[..] != [request.clone()])
}

/// Whether a request may read addresses that no point wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Holes {
    /// Yes, where it saves time.
    Read,
    /// No: the device refuses them.
    Avoid,
}

/// The points in order of their addresses, cut into requests whose costs are the least in sum: from the last point to the
/// first, the best cut of what begins there is the cheapest first request with the best cut of what it leaves. Among
/// equals the longest request comes first.
fn cover(points: &[Point], mut indices: Vec<usize>, holes: Holes, medium: Medium) -> Vec<Request> {
    indices.sort_by_key(|&i| (points[i].table, points[i].address));
    // Of the points from each on: the least time, and how many of them the first request takes.
    let mut best = vec![(Duration::ZERO, 0); indices.len() + 1];
    for from in (0..indices.len()).rev() {
        best[from] = reach(points, &indices[from..], holes)
            .map(|(taken, request)| (medium.cost(&request) + best[from + taken].0, taken))
            .min_by_key(|(time, taken)| (*time, std::cmp::Reverse(*taken)))
            .expect("one point is always a request: the configuration bounds its width");
    }
    let mut requests = Vec::new();
    let mut from = 0;
    while from < indices.len() {
        let taken = best[from].1;
        let (_, span) = reach(points, &indices[from..], holes).nth(taken - 1).expect("it was found before");
        requests.push(Request { points: indices[from..from + taken].to_vec(), ..span });
        from += taken;
    }
    requests
}

/// The spans of the requests that take the first point, the first two, and so on as far as is allowed.
fn reach<'a>(points: &'a [Point], indices: &'a [usize], holes: Holes) -> impl Iterator<Item = (usize, Request)> + 'a {
    let Point { table, address, .. } = points[indices[0]];
    let mut count = 0;
    indices.iter().enumerate().map_while(move |(n, &i)| {
        let point = &points[i];
        let start = u32::from(point.address.checked_sub(address)?);
        let reachable = point.table == table && (holes == Holes::Read || start <= count);
        count = count.max(start + u32::from(point.type_.width()));
        let request = Request { table, address, count: u16::try_from(count).ok()?, points: Vec::new() };
        (reachable && count <= u32::from(count_max(table))).then_some((n + 1, request))
    })
}

/// The most a device may be asked for at once.
pub(super) const fn count_max(table: Table) -> u16 {
    match table {
        Table::Coil | Table::Discrete => BITS_MAX,
        Table::Holding | Table::Input => REGISTERS_MAX,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;
    use crate::{
        config::{Parity, SerialLine, Type},
        source::modbus::tests::{device, point},
    };

    const fn serial(baud: u32) -> Medium {
        Medium::Serial(SerialLine { baud, parity: Parity::Even, stop_bits: 1 })
    }

    /// The plan of a device that refuses all that no point wants.
    fn exact(device: &Device) -> Vec<Request> {
        cover(&device.points, (0..device.points.len()).collect(), Holes::Avoid, Medium::Tcp)
    }

    fn registers(at: &[(u16, Type)]) -> Device {
        device(1, at.iter().map(|(address, type_)| point(Table::Holding, *address, *type_)).collect())
    }

    fn spans(requests: &[Request]) -> Vec<(u16, u16)> {
        requests.iter().map(|r| (r.address, r.count)).collect()
    }

    #[test]
    fn neighbours_share_a_request_and_holes_are_read_only_when_allowed() {
        let device = registers(&[(0, Type::F32), (2, Type::U16), (6, Type::U16), (7, Type::U64), (300, Type::Bool)]);
        assert_eq!(spans(&plan(&device, Medium::Tcp)), [(0, 11), (300, 1)]);
        assert_eq!(spans(&exact(&device)), [(0, 3), (6, 5), (300, 1)]);
    }

    #[test]
    fn a_value_is_never_split_at_the_limit() {
        let device = registers(&[(0, Type::Text { registers: 124 }), (124, Type::F32), (126, Type::U16)]);
        assert_eq!(spans(&plan(&device, Medium::Tcp)), [(0, 124), (124, 3)]);
    }

    #[test]
    fn tables_do_not_mix_and_bits_of_one_register_are_read_once() {
        let points = vec![
            point(Table::Input, 4, Type::U16),
            point(Table::Coil, 4, Type::Bool),
            point(Table::Input, 4, Type::Bool),
            point(Table::Discrete, 4, Type::Bool),
        ];
        let requests = plan(&device(1, points), Medium::Tcp);
        assert_eq!(spans(&requests), [(4, 1), (4, 1), (4, 1)]);
        assert_eq!(requests[2].points, [0, 2]);
    }

    #[test]
    fn a_refused_request_is_planned_again_without_its_holes() {
        let device = registers(&[(0, Type::U16), (1, Type::U16), (9, Type::U16)]);
        let [request] = &plan(&device, Medium::Tcp)[..] else { panic!("one request") };
        let narrower = without_holes(&device, request).expect("it spans a hole");
        assert_eq!(spans(&narrower), [(0, 2), (9, 1)]);
        assert_eq!(without_holes(&device, &narrower[0]), None);
    }

    #[test]
    fn what_was_added_at_the_ends_is_left_out_before_the_holes_are() {
        let device = registers(&[(0, Type::U16), (9, Type::U16), (100, Type::U64), (108, Type::F32)]);
        let lengthened = &plan(&device, serial(9_600))[..];
        assert_eq!(spans(lengthened), [(0, 10), (99, 11)]);
        let plain = without_holes(&device, &lengthened[1]).expect("it was lengthened");
        assert_eq!(spans(&plain), [(100, 10)]);
        let narrower = without_holes(&device, &plain[0]).expect("it spans a hole");
        assert_eq!(spans(&narrower), [(100, 4), (108, 2)]);
        assert_eq!(without_holes(&device, &narrower[0]), None);
    }

    /// The largest hole worth reading where a device takes 5 ms, computed by hand: 6.5 + (2 silences + 5 ms) / 2 characters.
    #[test]
    fn on_a_serial_line_a_hole_is_read_while_it_takes_less_time_than_a_request() {
        for (baud, hole) in [(9_600, 12), (19_200, 14), (115_200, 51)] {
            for (hole, requests) in [(hole, 1), (hole + 1, 2)] {
                let device = registers(&[(0, Type::F32), (2 + hole, Type::U16)]);
                assert_eq!(plan(&device, serial(baud)).len(), requests, "{hole} at {baud}");
                assert_eq!(plan(&device, Medium::Tcp).len(), 1);
            }
            let line = SerialLine { baud, parity: Parity::Even, stop_bits: 1 };
            let beyond = registers(&[(0, Type::F32), (3 + hole, Type::U16)]);
            assert_eq!(plan(&beyond, Medium::Converter(line)).len(), 1, "the network makes requests dearer");
        }
    }

    #[test]
    fn bits_are_eight_to_a_byte_so_their_holes_may_be_wide() {
        let bits = |at: &[u16]| device(1, at.iter().map(|a| point(Table::Coil, *a, Type::Bool)).collect());
        assert_eq!(spans(&plan(&bits(&[0, 190]), serial(9_600))), [(0, 191)]);
        assert_eq!(plan(&bits(&[0, 260]), serial(9_600)).len(), 2);
    }

    /// 1,000 points over 10 units: 10 groups of 10 a unit, holes 0 to 3 inside a group, 40 to 80 between groups.
    #[test]
    fn a_thousand_scattered_points_take_at_most_a_hundred_requests() {
        let mut requests = 0;
        for unit in 0..10_u16 {
            let (mut at, mut points) = (0, Vec::new());
            for n in 0..100_u16 {
                points.push(point(Table::Holding, at, Type::U16));
                at += 1 + if n % 10 == 9 { 40 + (n * 7 + unit) % 41 } else { (n * 5 + unit) % 4 };
            }
            requests += plan(&device(1, points), Medium::Tcp).len();
        }
        assert!((10..=100).contains(&requests), "{requests}");
    }

    fn any_point() -> impl Strategy<Value = Point> {
        let types = prop_oneof![
            Just(Type::U16),
            Just(Type::F32),
            Just(Type::I64),
            (1_u16..=125).prop_map(|registers| Type::Text { registers }),
        ];
        let tables = prop_oneof![Just(Table::Coil), Just(Table::Discrete), Just(Table::Holding), Just(Table::Input)];
        // A narrow band gives neighbours and overlaps, the whole range the far ends.
        let addresses = prop_oneof![4 => 0_u16..400, 1 => any::<u16>()];
        (tables, addresses, types).prop_map(|(table, address, type_)| {
            let bits = matches!(table, Table::Coil | Table::Discrete);
            point(table, address, if bits { Type::Bool } else { type_ })
        })
    }

    fn wanted(point: &Point) -> impl Iterator<Item = u32> + use<> {
        let start = u32::from(point.address);
        start..start + u32::from(point.type_.width())
    }

    proptest! {
        #[test]
        fn every_point_is_read_once_and_whole_within_the_limits(
            points in prop::collection::vec(any_point(), 1..80), avoid in any::<bool>(),
        ) {
            let device = device(1, points);
            let requests = if avoid { exact(&device) } else { plan(&device, Medium::Tcp) };
            let mut seen = vec![0; device.points.len()];
            for request in &requests {
                prop_assert!(request.count <= count_max(request.table));
                let span = u32::from(request.address)..u32::from(request.address) + u32::from(request.count);
                let mut asked = BTreeSet::new();
                for &i in &request.points {
                    seen[i] += 1;
                    prop_assert_eq!(device.points[i].table, request.table);
                    prop_assert!(wanted(&device.points[i]).all(|a| span.contains(&a)));
                    asked.extend(wanted(&device.points[i]));
                }
                prop_assert!(!avoid || asked.len() == usize::from(request.count), "reads a hole");
                prop_assert!(asked.first() == Some(&span.start) && asked.last() == Some(&(span.end - 1)));
            }
            prop_assert!(seen.iter().all(|n| *n == 1));
        }

        /// The reference: a contiguous run of single registers needs its length over the limit, rounded up.
        #[test]
        fn contiguous_runs_take_the_least_requests(
            runs in prop::collection::vec((1_u16..400, 1_u16..200), 1..5), bits in any::<bool>(),
        ) {
            let (mut at, mut points, mut least) = (0, Vec::new(), 0);
            let table = if bits { Table::Coil } else { Table::Input };
            for (length, hole) in runs {
                points.extend((at..at + length).map(|a| point(table, a, if bits { Type::Bool } else { Type::U16 })));
                least += usize::from(length.div_ceil(count_max(table)));
                at += length + hole;
            }
            let device = device(1, points);
            prop_assert_eq!(exact(&device).len(), least);
            prop_assert!(plan(&device, Medium::Tcp).len() <= least);
        }

        /// The reference: every way to cut the points, in the order of their addresses, into requests.
        #[test]
        fn no_other_cut_takes_less_time(
            points in prop::collection::vec(small_point(), 1..9), baud in prop::sample::select(&[1_200, 9_600, 115_200][..]),
        ) {
            let medium = serial(baud);
            let mut order: Vec<usize> = (0..points.len()).collect();
            order.sort_by_key(|&i| (points[i].table, points[i].address));
            let least = (0..1_u32 << (order.len() - 1)).filter_map(|cuts| time_of(&points, &order, cuts, medium)).min();
            let requests = cover(&points, order, Holes::Read, medium);
            prop_assert_eq!(Some(requests.iter().map(|request| medium.cost(request)).sum()), least);
        }
    }

    fn small_point() -> impl Strategy<Value = Point> {
        let types = prop_oneof![3 => Just(Type::U16), 1 => Just(Type::I64), 1 => Just(Type::Text { registers: 60 })];
        let tables = prop_oneof![3 => Just(Table::Input), 1 => Just(Table::Coil)];
        (tables, 0_u16..300, types).prop_map(|(table, address, type_)| {
            point(table, address, if table == Table::Coil { Type::Bool } else { type_ })
        })
    }

    /// The time of the requests between the cuts, bit n after the n-th point; none if they are not allowed.
    fn time_of(points: &[Point], order: &[usize], cuts: u32, medium: Medium) -> Option<Duration> {
        let mut time = Duration::ZERO;
        let mut from = 0;
        for to in 1..=order.len() {
            if to < order.len() && cuts & (1 << (to - 1)) == 0 {
                continue;
            }
            let run: Vec<&Point> = order[from..to].iter().map(|&i| &points[i]).collect();
            let end = run.iter().flat_map(|point| wanted(point)).max()? + 1;
            let (table, address) = (run[0].table, run[0].address);
            let count = u16::try_from(end).ok()? - address;
            if run.iter().any(|point| point.table != table) || count > count_max(table) {
                return None;
            }
            time += medium.cost(&Request { table, address, count, points: Vec::new() });
            from = to;
        }
        Some(time)
    }
}
