//! Words and bits of an answer to a value, or to the reason why there is none. Pure.
//!
//! The steps, in this order: bytes by `order`, raw number by `type`, `invalid`, not a number, then [`Quantity`].

use super::plan::Request;
use crate::{
    config::{Order, Point, Type},
    reading::{Reason, Value},
    source::quantity::Quantity,
};

/// What a device answered to one request; as long as was asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// Of coils or discrete inputs.
    Bits(Vec<bool>),
    /// Of holding or input registers.
    Registers(Vec<u16>),
}

/// The value of a point of this request.
pub fn decode(point: &Point, request: &Request, answer: &Answer) -> Result<Value, Reason> {
    let start = point.address.checked_sub(request.address).ok_or(Reason::Malformed)?;
    let span = usize::from(start)..usize::from(start) + usize::from(point.type_.width());
    match answer {
        Answer::Bits(bits) => bits.get(span.start).map(|bit| Value::Bool(*bit)).ok_or(Reason::Malformed),
        Answer::Registers(words) => registers(point, words.get(span).ok_or(Reason::Malformed)?),
    }
}

/// The value in exactly the registers of a point.
fn registers(point: &Point, words: &[u16]) -> Result<Value, Reason> {
    match point.type_ {
        Type::Bool => boolean(point, unsigned(point.order, words)),
        Type::U16 | Type::U32 | Type::U64 => integer(point, unsigned(point.order, words).into()),
        #[expect(clippy::cast_possible_truncation, reason = "16, 32 and 64 bits are read, and meant, as they stand")]
        Type::I16 => integer(point, (unsigned(point.order, words) as u16).cast_signed().into()),
        #[expect(clippy::cast_possible_truncation, reason = "as above")]
        Type::I32 => integer(point, (unsigned(point.order, words) as u32).cast_signed().into()),
        Type::I64 => integer(point, unsigned(point.order, words).cast_signed().into()),
        #[expect(clippy::cast_possible_truncation, reason = "as above")]
        Type::F32 => float(point, Value::float_of_f32(f32::from_bits(unsigned(point.order, words) as u32)).as_ref()),
        Type::F64 => float(point, Value::float(f64::from_bits(unsigned(point.order, words))).as_ref()),
        Type::Text { .. } => text(point.order, words),
    }
}

/// Up to four registers as one number, the bytes put in the order of their weight.
fn unsigned(order: Order, words: &[u16]) -> u64 {
    let shift_in = |number: u64, word: &u16| number << 16 | u64::from(byte_order(order, *word));
    match order {
        Order::Abcd | Order::Badc => words.iter().fold(0, shift_in),
        Order::Cdab | Order::Dcba => words.iter().rev().fold(0, shift_in),
    }
}

/// The bytes inside one register; this is all that `order` says about a single register and about text.
const fn byte_order(order: Order, word: u16) -> u16 {
    match order {
        Order::Abcd | Order::Cdab => word,
        Order::Badc | Order::Dcba => word.swap_bytes(),
    }
}

fn boolean(point: &Point, word: u64) -> Result<Value, Reason> {
    if is_sentinel(point, word.into()) {
        return Err(Reason::Sentinel);
    }
    let bit = |n: u8| word.checked_shr(n.into()).unwrap_or(0) & 1;
    Ok(Value::Bool(point.bit.map_or(word, bit) != 0))
}

fn integer(point: &Point, raw: i128) -> Result<Value, Reason> {
    // A sheet may say 0xFFFF of a signed register; the pattern is meant, so both spellings match.
    let pattern = raw.rem_euclid(1 << (16 * u32::from(point.type_.width())));
    if is_sentinel(point, raw) || is_sentinel(point, pattern) {
        return Err(Reason::Sentinel);
    }
    let quantity = quantity(point);
    if quantity.is_unscaled() {
        return quantity.in_range(Value::Integer(raw));
    }
    #[expect(clippy::cast_precision_loss, reason = "a scaled number is a double; 2^53 is far above any field quantity")]
    quantity.of(raw as f64)
}

fn float(point: &Point, raw: Option<&Value>) -> Result<Value, Reason> {
    let Some(&Value::Float(raw)) = raw else { return Err(Reason::NotANumber) };
    if point.invalid.contains(&raw) {
        return Err(Reason::Sentinel);
    }
    quantity(point).of(raw)
}

#[expect(clippy::cast_precision_loss, reason = "sentinels are doubles as well: both lose the same digits")]
fn is_sentinel(point: &Point, raw: i128) -> bool {
    point.invalid.contains(&(raw as f64))
}

const fn quantity(point: &Point) -> Quantity {
    Quantity { scale: point.scale, offset: point.offset, decimals: point.decimals, range: point.range }
}

/// Two bytes a register, padded with NUL or space; control characters are refused, so that none reaches a terminal.
fn text(order: Order, words: &[u16]) -> Result<Value, Reason> {
    let bytes: Vec<u8> = words.iter().flat_map(|word| byte_order(order, *word).to_be_bytes()).collect();
    let text = String::from_utf8_lossy(&bytes);
    let text = text.trim_matches(['\0', ' ']);
    if text.chars().any(char::is_control) { Err(Reason::Malformed) } else { Ok(Value::Text(text.into())) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{config::Table, source::modbus::tests::point};

    const ORDERS: [Order; 4] = [Order::Abcd, Order::Cdab, Order::Badc, Order::Dcba];
    const TYPES: [Type; 10] = [
        Type::Bool,
        Type::U16,
        Type::I16,
        Type::U32,
        Type::I32,
        Type::U64,
        Type::I64,
        Type::F32,
        Type::F64,
        Type::Text { registers: 3 },
    ];

    fn of(type_: Type, order: Order) -> Point {
        Point { order, ..point(Table::Holding, 0, type_) }
    }

    fn integer_value(i: i128) -> Result<Value, Reason> {
        Ok(Value::Integer(i))
    }

    /// The bytes of a number (high first) as registers on the wire, by the letters of the order.
    fn wire(order: Order, bytes: &[u8]) -> Vec<u16> {
        let words = bytes.chunks(2).map(|pair| match order {
            Order::Abcd | Order::Cdab => u16::from_be_bytes([pair[0], pair[1]]),
            Order::Badc | Order::Dcba => u16::from_le_bytes([pair[0], pair[1]]),
        });
        match order {
            Order::Abcd | Order::Badc => words.collect(),
            Order::Cdab | Order::Dcba => words.rev().collect(),
        }
    }

    #[test]
    fn the_letters_of_an_order_are_the_bytes_on_the_wire() {
        for (order, words) in [
            (Order::Abcd, [0x0102, 0x0304]),
            (Order::Cdab, [0x0304, 0x0102]),
            (Order::Badc, [0x0201, 0x0403]),
            (Order::Dcba, [0x0403, 0x0201]),
        ] {
            assert_eq!(registers(&of(Type::U32, order), &words), integer_value(0x0102_0304), "{order:?}");
        }
        let eight = [0x0807, 0x0605, 0x0403, 0x0201];
        assert_eq!(registers(&of(Type::U64, Order::Dcba), &eight), integer_value(0x0102_0304_0506_0708));
        assert_eq!(registers(&of(Type::U16, Order::Dcba), &[0x3412]), integer_value(0x1234));
        assert_eq!(registers(&of(Type::U16, Order::Cdab), &[0x1234]), integer_value(0x1234));
    }

    #[test]
    fn integers_stay_integers_unless_they_are_scaled() {
        let check = |type_, scale, offset, decimals, words: &[u16], expect: Value| {
            let point = Point { scale, offset, decimals, ..of(type_, Order::Abcd) };
            assert_eq!(registers(&point, words), Ok(expect), "{type_:?} x{scale} +{offset}");
        };
        check(Type::I16, 1.0, 0.0, None, &[0xFFFE], Value::Integer(-2));
        check(Type::U64, 1.0, 0.0, None, &[0xFFFF; 4], Value::Integer(u64::MAX.into()));
        check(Type::I64, 1.0, 0.0, Some(1), &[0x8000, 0, 0, 0], Value::Integer(i64::MIN.into()));
        check(Type::U16, 0.1, 0.0, None, &[217], Value::Float(21.7));
        check(Type::I16, 0.1, 0.0, None, &[0xFFFF], Value::Float(-0.1));
        check(Type::I16, 0.01, 0.0, Some(1), &[0xFFFF], Value::Float(0.0));
        check(Type::U16, 1.0, -40.0, None, &[65], Value::Float(25.0));
        check(Type::U16, 1.0 / 64.0, 0.0, Some(2), &[14_085], Value::Float(220.08));
    }

    #[test]
    fn floats_keep_their_shortest_decimal_form() {
        let words = |x: f32| wire(Order::Cdab, &x.to_be_bytes());
        assert_eq!(registers(&of(Type::F32, Order::Cdab), &words(21.7)), Ok(Value::Float(21.7)));
        let one_decimal = Point { decimals: Some(1), ..of(Type::F32, Order::Cdab) };
        assert_eq!(registers(&one_decimal, &words(229.96)), Ok(Value::Float(230.0)));
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            assert_eq!(registers(&of(Type::F32, Order::Cdab), &words(bad)), Err(Reason::NotANumber));
        }
        let overflow = Point { scale: 1e300, ..of(Type::F64, Order::Abcd) };
        assert_eq!(registers(&overflow, &wire(Order::Abcd, &1e300_f64.to_be_bytes())), Err(Reason::NotANumber));
    }

    #[test]
    fn sentinels_are_compared_before_scaling_and_ranges_after() {
        let invalid = |type_, sentinel| Point { scale: 0.1, invalid: vec![sentinel], ..of(type_, Order::Abcd) };
        for (type_, sentinel, words) in [
            (Type::U16, 65535.0, &[0xFFFF][..]),
            (Type::I16, -32768.0, &[0x8000]),
            (Type::I16, 65535.0, &[0xFFFF]),
            (Type::U64, 18_446_744_073_709_551_615.0, &[0xFFFF; 4]),
            (Type::F32, 9999.9, &wire(Order::Abcd, &9999.9_f32.to_be_bytes())),
            (Type::Bool, 65535.0, &[0xFFFF]),
        ] {
            assert_eq!(registers(&invalid(type_, sentinel), words), Err(Reason::Sentinel), "{type_:?} {sentinel}");
        }
        assert_eq!(registers(&invalid(Type::U16, 6553.5), &[0xFFFF]), Ok(Value::Float(6553.5)), "not the scaled one");
        let ranged = |scale| Point { scale, range: Some((0.0, 100.0)), ..of(Type::I16, Order::Abcd) };
        assert_eq!(registers(&ranged(0.1), &[1000]), Ok(Value::Float(100.0)));
        assert_eq!(registers(&ranged(0.1), &[1001]), Err(Reason::OutOfRange));
        assert_eq!(registers(&ranged(1.0), &[0xFFFF]), Err(Reason::OutOfRange));
    }

    #[test]
    fn booleans_are_a_bit_of_a_register_or_all_of_it() {
        let bit = |bit| Point { bit, ..of(Type::Bool, Order::Abcd) };
        for (which, word, expect) in
            [(Some(3), 8, true), (Some(3), 7, false), (Some(15), 0x8000, true), (None, 2, true), (None, 0, false)]
        {
            assert_eq!(registers(&bit(which), &[word]), Ok(Value::Bool(expect)), "{which:?} of {word}");
        }
    }

    #[test]
    fn text_is_trimmed_and_free_of_control_characters() {
        let check = |order, bytes: &[u8], expect: Result<&str, Reason>| {
            let words: Vec<u16> = bytes.chunks(2).map(|p| u16::from_be_bytes([p[0], p[1]])).collect();
            let point = of(Type::Text { registers: 3 }, order);
            assert_eq!(registers(&point, &words), expect.map(|t| Value::Text(t.into())), "{bytes:?}");
        };
        check(Order::Abcd, b"AB12\0\0", Ok("AB12"));
        check(Order::Badc, b"BA21 \0", Ok("AB12"));
        check(Order::Cdab, b" SDM  ", Ok("SDM"));
        check(Order::Abcd, b"\0\0\0\0\0\0", Ok(""));
        check(Order::Abcd, b"A\xFF\xFE ok", Ok("A\u{FFFD}\u{FFFD} ok"));
        check(Order::Abcd, b"A\x1b[2J ", Err(Reason::Malformed));
        check(Order::Abcd, b"A\0B\0\0\0", Err(Reason::Malformed));
    }

    #[test]
    fn a_point_takes_its_own_part_of_an_answer_or_none() {
        let request = Request { table: Table::Holding, address: 10, count: 4, points: vec![0] };
        let at = |address, type_| Point { address, ..of(type_, Order::Abcd) };
        let answer = Answer::Registers(vec![1, 2, 3, 4]);
        assert_eq!(decode(&at(12, Type::U16), &request, &answer), integer_value(3));
        assert_eq!(decode(&at(13, Type::U32), &request, &answer), Err(Reason::Malformed));
        assert_eq!(decode(&at(9, Type::U16), &request, &answer), Err(Reason::Malformed));
        let bits = Answer::Bits(vec![false, true]);
        assert_eq!(decode(&at(11, Type::Bool), &request, &bits), Ok(Value::Bool(true)));
        assert_eq!(decode(&at(12, Type::Bool), &request, &bits), Err(Reason::Malformed));
    }

    proptest! {
        #[test]
        fn numbers_come_back_in_every_order(bits in any::<u64>(), order in prop::sample::select(&ORDERS[..])) {
            let wire = |bytes: &[u8]| wire(order, bytes);
            let low = u32::try_from(bits & 0xFFFF_FFFF).expect("32 bits");
            let check = |type_, words: &[u16], expect| assert_eq!(registers(&of(type_, order), words), expect);
            check(Type::U64, &wire(&bits.to_be_bytes()), integer_value(bits.into()));
            check(Type::I64, &wire(&bits.to_be_bytes()), integer_value(bits.cast_signed().into()));
            check(Type::U32, &wire(&low.to_be_bytes()), integer_value(low.into()));
            check(Type::I32, &wire(&low.to_be_bytes()), integer_value(low.cast_signed().into()));
            let double = Value::float(f64::from_bits(bits)).ok_or(Reason::NotANumber);
            check(Type::F64, &wire(&bits.to_be_bytes()), double);
            let single = Value::float_of_f32(f32::from_bits(low)).ok_or(Reason::NotANumber);
            check(Type::F32, &wire(&low.to_be_bytes()), single);
        }

        #[test]
        fn any_words_give_a_finite_value_or_a_reason(
            words in prop::collection::vec(any::<u16>(), 0..6),
            bits in prop::collection::vec(any::<bool>(), 0..6),
            type_ in prop::sample::select(&TYPES[..]), order in prop::sample::select(&ORDERS[..]),
            (address, asked) in (0_u16..8, 0_u16..8), bit in prop::option::of(any::<u8>()),
            (scale, offset, sentinel) in (any::<f64>(), any::<f64>(), any::<f64>()),
            decimals in prop::option::of(any::<u8>()), range in prop::option::of((any::<f64>(), any::<f64>())),
        ) {
            let point = Point {
                address, bit, scale, offset, decimals, range, invalid: vec![sentinel], ..of(type_, order)
            };
            let request = Request { table: Table::Holding, address: asked, count: 6, points: vec![0] };
            for answer in [Answer::Registers(words), Answer::Bits(bits)] {
                if let Ok(Value::Float(x)) = decode(&point, &request, &answer) {
                    prop_assert!(x.is_finite());
                }
            }
        }
    }
}
