//! Which requests read a device's points: as few as the protocol's limits allow. Pure.
//!
//! A **hole** is an address between two points that no point wants. On TCP a register too many costs two bytes and a
//! request a round trip, so holes are read; a device that refuses to is read without them (see [`without_holes`]).

use crate::config::{Device, Point, Table};

/// Most registers in one answer (Modbus Application Protocol 1.1b3 §6.3, §6.4).
pub const REGISTERS_MAX: u16 = 125;
/// Most bits in one answer (§6.1, §6.2).
pub const BITS_MAX: u16 = 2000;

/// Whether a request may read addresses that no point wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Holes {
    /// Yes, to save requests.
    Read,
    /// No: the device answers exception 2 to them.
    Avoid,
}

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

/// The requests of one poll, by table and address. A value of several registers is never split, so it is never torn.
#[must_use]
pub fn plan(device: &Device, holes: Holes) -> Vec<Request> {
    merge(&device.points, (0..device.points.len()).collect(), holes)
}

/// The same points as `request`, without its holes; `None` if it has none.
#[must_use]
pub fn without_holes(device: &Device, request: &Request) -> Option<Vec<Request>> {
    let requests = merge(&device.points, request.points.clone(), Holes::Avoid);
    (requests.len() > 1).then_some(requests)
}

/// Greedy from the lowest address: what does not fit any more opens the next request. Every request must start at some
/// point, so this is also the least number of requests.
fn merge(points: &[Point], mut indices: Vec<usize>, holes: Holes) -> Vec<Request> {
    indices.sort_by_key(|&i| (points[i].table, points[i].address));
    let mut requests: Vec<Request> = Vec::new();
    for i in indices {
        let Point { table, address, type_, .. } = &points[i];
        let end = u32::from(*address) + u32::from(type_.width());
        if let Some(last) = requests.last_mut().filter(|last| last.table == *table) {
            let last_end = u32::from(last.address) + u32::from(last.count);
            let count = last_end.max(end) - u32::from(last.address);
            let reachable = holes == Holes::Read || u32::from(*address) <= last_end;
            if let Some(count) = u16::try_from(count).ok().filter(|n| reachable && *n <= count_max(*table)) {
                last.count = count;
                last.points.push(i);
                continue;
            }
        }
        requests.push(Request { table: *table, address: *address, count: type_.width(), points: vec![i] });
    }
    requests
}

const fn count_max(table: Table) -> u16 {
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
        config::Type,
        source::modbus::tests::{device, point},
    };

    fn registers(at: &[(u16, Type)]) -> Device {
        device(1, at.iter().map(|(address, type_)| point(Table::Holding, *address, *type_)).collect())
    }

    fn spans(requests: &[Request]) -> Vec<(u16, u16)> {
        requests.iter().map(|r| (r.address, r.count)).collect()
    }

    #[test]
    fn neighbours_share_a_request_and_holes_are_read_only_when_allowed() {
        let device = registers(&[(0, Type::F32), (2, Type::U16), (6, Type::U16), (7, Type::U64), (300, Type::Bool)]);
        assert_eq!(spans(&plan(&device, Holes::Read)), [(0, 11), (300, 1)]);
        assert_eq!(spans(&plan(&device, Holes::Avoid)), [(0, 3), (6, 5), (300, 1)]);
    }

    #[test]
    fn a_value_is_never_split_at_the_limit() {
        let device = registers(&[(0, Type::Text { registers: 124 }), (124, Type::F32), (126, Type::U16)]);
        assert_eq!(spans(&plan(&device, Holes::Read)), [(0, 124), (124, 3)]);
    }

    #[test]
    fn tables_do_not_mix_and_bits_of_one_register_are_read_once() {
        let points = vec![
            point(Table::Input, 4, Type::U16),
            point(Table::Coil, 4, Type::Bool),
            point(Table::Input, 4, Type::Bool),
            point(Table::Discrete, 4, Type::Bool),
        ];
        let requests = plan(&device(1, points), Holes::Read);
        assert_eq!(spans(&requests), [(4, 1), (4, 1), (4, 1)]);
        assert_eq!(requests[2].points, [0, 2]);
    }

    #[test]
    fn a_refused_request_is_planned_again_without_its_holes() {
        let device = registers(&[(0, Type::U16), (1, Type::U16), (9, Type::U16)]);
        let [request] = &plan(&device, Holes::Read)[..] else { panic!("one request") };
        let narrower = without_holes(&device, request).expect("it spans a hole");
        assert_eq!(spans(&narrower), [(0, 2), (9, 1)]);
        assert_eq!(without_holes(&device, &narrower[0]), None);
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
            requests += plan(&device(1, points), Holes::Read).len();
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
            let requests = plan(&device, if avoid { Holes::Avoid } else { Holes::Read });
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
            prop_assert_eq!(plan(&device, Holes::Avoid).len(), least);
            prop_assert!(plan(&device, Holes::Read).len() <= least);
        }
    }
}
