//! Values of CQL from the JSON form that [`penstock_plugin_encoding::cql`] writes.

use penstock_plugin_encoding::CqlType;
use serde_json::Value;

/// The bytes of a value of this type; `None` for null.
///
/// # Errors
/// What was found, and what is expected.
pub fn encode(cql_type: &CqlType, value: &Value) -> Result<Option<Vec<u8>>, String> {
    if value.is_null() {
        return Ok(None);
    }
    bytes_of(cql_type, value).map(Some)
}

fn bytes_of(t: &CqlType, value: &Value) -> Result<Vec<u8>, String> {
    let fail = |expected: &str| Err(format!("expected {expected} for {t}, found {value}"));
    let text = || value.as_str().map(str::trim);
    let integer = |min: i64, max: i64| match value.as_i64() {
        Some(n) if (min..=max).contains(&n) => Ok(n),
        _ => Err(format!(
            "expected a whole number from {min} to {max} for {t}, found {value}"
        )),
    };
    Ok(match t {
        CqlType::Frozen(inner) => return bytes_of(inner, value),
        CqlType::Ascii | CqlType::Text => match value.as_str() {
            Some(text) => text.as_bytes().to_vec(),
            None => return fail("a string"),
        },
        CqlType::Blob => match text().and_then(|t| hex::decode(t.strip_prefix("0x")?).ok()) {
            Some(bytes) => bytes,
            None => return fail("\"0x…\" in hex"),
        },
        CqlType::Boolean => match value.as_bool() {
            Some(b) => vec![u8::from(b)],
            None => return fail("true or false"),
        },
        CqlType::Tinyint => vec![integer(i8::MIN.into(), i8::MAX.into())? as u8],
        CqlType::Smallint => (integer(i16::MIN.into(), i16::MAX.into())? as i16)
            .to_be_bytes()
            .to_vec(),
        CqlType::Int => (integer(i32::MIN.into(), i32::MAX.into())? as i32)
            .to_be_bytes()
            .to_vec(),
        CqlType::Bigint | CqlType::Counter => integer(i64::MIN, i64::MAX)?.to_be_bytes().to_vec(),
        CqlType::Float => match number(value) {
            Some(x) => (x as f32).to_be_bytes().to_vec(),
            None => return fail("a number"),
        },
        CqlType::Double => match number(value) {
            Some(x) => x.to_be_bytes().to_vec(),
            None => return fail("a number"),
        },
        CqlType::Varint => match digits(value).and_then(|digits| twos_complement(&digits)) {
            Some(bytes) => bytes,
            None => return fail("a whole number, as a string if it is a long one,"),
        },
        CqlType::Decimal => match digits(value).and_then(|digits| decimal(&digits)) {
            Some(bytes) => bytes,
            None => return fail("a number, as a string if it is a long one,"),
        },
        CqlType::Uuid | CqlType::Timeuuid => {
            match text().and_then(|t| uuid::Uuid::parse_str(t).ok()) {
                Some(id) => id.as_bytes().to_vec(),
                None => return fail("a UUID"),
            }
        }
        CqlType::Inet => match text().and_then(|t| t.parse().ok()) {
            Some(std::net::IpAddr::V4(ip)) => ip.octets().to_vec(),
            Some(std::net::IpAddr::V6(ip)) => ip.octets().to_vec(),
            None => return fail("an address"),
        },
        CqlType::Timestamp => match text().and_then(|t| t.parse::<jiff::Timestamp>().ok()) {
            Some(at) => at.as_millisecond().to_be_bytes().to_vec(),
            None => return fail("a time such as \"2026-01-31T12:00:00.000Z\""),
        },
        CqlType::Date => match text().and_then(|t| t.parse::<jiff::civil::Date>().ok()) {
            Some(date) => {
                let days = date.since(jiff::civil::date(1970, 1, 1));
                let days = days.map_or(0, |span| span.get_days());
                ((i64::from(days) + (1 << 31)) as u32)
                    .to_be_bytes()
                    .to_vec()
            }
            None => return fail("a date such as \"2026-01-31\""),
        },
        CqlType::Time => match text().and_then(|t| t.parse::<jiff::civil::Time>().ok()) {
            Some(time) => {
                let seconds = i64::from(time.hour()) * 3600
                    + i64::from(time.minute()) * 60
                    + i64::from(time.second());
                let nanos = seconds * 1_000_000_000 + i64::from(time.subsec_nanosecond());
                nanos.to_be_bytes().to_vec()
            }
            None => return fail("a time such as \"12:00:00.000000000\""),
        },
        CqlType::Duration => match text().and_then(duration) {
            Some(bytes) => bytes,
            None => return fail("a duration such as \"1mo2d3ns\""),
        },
        CqlType::List(inner) | CqlType::Set(inner) => match value.as_array() {
            Some(elements) => {
                let mut bytes = (elements.len() as i32).to_be_bytes().to_vec();
                for element in elements {
                    prefixed(inner, element, &mut bytes)?;
                }
                bytes
            }
            None => return fail("an array"),
        },
        CqlType::Vector(inner, n) => match value.as_array() {
            Some(elements) if elements.len() == usize::from(*n) => vector(inner, elements)?,
            _ => return fail(&format!("an array of {n}")),
        },
        CqlType::Tuple(types) => match value.as_array() {
            Some(elements) if elements.len() <= types.len() => {
                let mut bytes = Vec::new();
                for (inner, element) in types.iter().zip(elements) {
                    prefixed(inner, element, &mut bytes)?;
                }
                bytes
            }
            _ => return fail(&format!("an array of {} at most", types.len())),
        },
        CqlType::Map(key_type, inner) => match value.as_object() {
            Some(entries) => {
                let mut bytes = (entries.len() as i32).to_be_bytes().to_vec();
                for (key, value) in entries {
                    prefixed(key_type, &key_value(key_type, key), &mut bytes)?;
                    prefixed(inner, value, &mut bytes)?;
                }
                bytes
            }
            None => return fail("an object"),
        },
        CqlType::Udt(udt) => match value.as_object() {
            Some(fields) => {
                let known = |name: &String| udt.fields.iter().any(|(field, _)| field == name);
                if let Some(unknown) = fields.keys().find(|name| !known(name)) {
                    return Err(format!("{t} has no field `{unknown}`"));
                }
                let mut bytes = Vec::new();
                for (name, inner) in &udt.fields {
                    prefixed(inner, fields.get(name).unwrap_or(&Value::Null), &mut bytes)?;
                }
                bytes
            }
            None => return fail("an object"),
        },
    })
}

/// A map's key, of which JSON has the text.
fn key_value(t: &CqlType, key: &str) -> Value {
    match t.thawed() {
        CqlType::Ascii | CqlType::Text => key.into(),
        _ => serde_json::from_str(key).unwrap_or_else(|_| key.into()),
    }
}

fn prefixed(t: &CqlType, value: &Value, out: &mut Vec<u8>) -> Result<(), String> {
    match encode(t, value)? {
        Some(bytes) => {
            out.extend_from_slice(&(bytes.len() as i32).to_be_bytes());
            out.extend_from_slice(&bytes);
        }
        None => out.extend_from_slice(&(-1i32).to_be_bytes()),
    }
    Ok(())
}

/// Elements without lengths where their type has a fixed one as the drivers define it.
fn vector(inner: &CqlType, elements: &[Value]) -> Result<Vec<u8>, String> {
    let mut bytes = Vec::new();
    for element in elements {
        let Some(encoded) = encode(inner, element)? else {
            return Err("a vector has no nulls".to_owned());
        };
        if !inner.is_fixed_in_vector() {
            vint(encoded.len() as u64, &mut bytes);
        }
        bytes.extend_from_slice(&encoded);
    }
    Ok(bytes)
}

fn number(value: &Value) -> Option<f64> {
    match value {
        Value::Number(n) => n.as_f64(),
        Value::String(text) => match text.as_str() {
            "NaN" => Some(f64::NAN),
            "Infinity" => Some(f64::INFINITY),
            "-Infinity" => Some(f64::NEG_INFINITY),
            _ => None,
        },
        _ => None,
    }
}

/// The digits of a number or of a string; a number that JSON readers round is refused.
fn digits(value: &Value) -> Option<String> {
    match value {
        Value::Number(n) if n.is_f64() => {
            let text = n.to_string();
            let significant = text.bytes().filter(u8::is_ascii_digit).count();
            (significant <= 15).then_some(text)
        }
        Value::Number(n) => Some(n.to_string()),
        Value::String(text) => Some(text.trim().to_owned()),
        _ => None,
    }
}

/// The big-endian two's complement of a decimal number, as short as it can be.
fn twos_complement(digits: &str) -> Option<Vec<u8>> {
    let (negative, digits) = match digits.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, digits),
    };
    if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    // The magnitude, its last byte first.
    let mut bytes = vec![0u8];
    for digit in digits.bytes() {
        let mut carry = u32::from(digit - b'0');
        for byte in &mut bytes {
            let n = u32::from(*byte) * 10 + carry;
            *byte = n as u8;
            carry = n >> 8;
        }
        if carry > 0 {
            bytes.push(carry as u8);
        }
    }
    bytes.push(0);
    if negative {
        let mut carry = true;
        for byte in &mut bytes {
            let (n, over) = (!*byte).overflowing_add(u8::from(carry));
            (*byte, carry) = (n, over);
        }
    }
    bytes.reverse();
    let sign = bytes[0] & 0x80;
    let spare = bytes
        .windows(2)
        .take_while(|pair| {
            matches!(pair[0], 0 | 0xff) && pair[0] & 0x80 == sign && pair[1] & 0x80 == sign
        })
        .count();
    Some(bytes.split_off(spare))
}

fn decimal(text: &str) -> Option<Vec<u8>> {
    let (mantissa, exponent) = match text.split_once(['e', 'E']) {
        Some((mantissa, exponent)) => (mantissa, exponent.parse::<i32>().ok()?),
        None => (text, 0),
    };
    let (whole, part) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    let scale = i32::try_from(part.len()).ok()?.checked_sub(exponent)?;
    let unscaled = twos_complement(&format!("{whole}{part}"))?;
    Some([&scale.to_be_bytes()[..], &unscaled].concat())
}

/// `[-]<n>mo<n>d<n>ns`, each part optional.
fn duration(text: &str) -> Option<Vec<u8>> {
    let (sign, mut rest) = match text.strip_prefix('-') {
        Some(rest) => (-1, rest),
        None => (1, text),
    };
    let mut parts = [0i64; 3];
    let mut any = false;
    for (part, unit) in parts.iter_mut().zip(["mo", "d", "ns"]) {
        let end = rest
            .find(|c: char| !c.is_ascii_digit())
            .unwrap_or(rest.len());
        if let Some(after) = rest[end..].strip_prefix(unit)
            && end > 0
        {
            *part = sign * rest[..end].parse::<i64>().ok()?;
            (rest, any) = (after, true);
        }
    }
    if !any || !rest.is_empty() {
        return None;
    }
    let mut bytes = Vec::new();
    for part in parts {
        vint((part << 1 ^ part >> 63) as u64, &mut bytes);
    }
    Some(bytes)
}

/// An unsigned vint: leading ones of the first byte say how many bytes follow.
fn vint(n: u64, out: &mut Vec<u8>) {
    let bits = 64 - n.leading_zeros() as usize;
    let extra = (1..=8).find(|extra| bits <= 7 * extra).map_or(8, |e| e - 1);
    let bytes = n.to_be_bytes();
    if extra == 8 {
        out.push(0xff);
        out.extend_from_slice(&bytes);
        return;
    }
    let start = out.len();
    out.extend_from_slice(&bytes[7 - extra..]);
    let ones = !(0xffu16 >> extra) as u8;
    out[start] |= ones;
}

#[cfg(test)]
mod tests {
    use penstock_plugin_encoding::CqlValue;
    use serde_json::json;

    use super::*;

    #[test]
    fn what_is_written_is_read_back_the_same() {
        let udt = "udt<ks.address, street: text, no: int, tags: frozen<set<text>>>";
        for (t, value) in [
            ("text", json!("é \"x\"")),
            ("blob", json!("0x00ff")),
            ("boolean", json!(true)),
            ("tinyint", json!(-128)),
            ("smallint", json!(-2)),
            ("int", json!(i32::MIN)),
            ("bigint", json!(i64::MAX)),
            ("float", json!(1.5)),
            ("double", json!("-Infinity")),
            ("varint", json!(-128)),
            ("varint", json!(128)),
            ("varint", json!(0)),
            ("decimal", json!(-12.34)),
            ("uuid", json!("8e3d2f00-e86c-11f0-9d3d-0242ac120002")),
            ("inet", json!("::1")),
            ("timestamp", json!("2026-01-31T12:00:00.123Z")),
            ("date", json!("1969-12-30")),
            ("date", json!("2026-01-31")),
            ("time", json!("12:00:01.000000002")),
            ("duration", json!("1mo2d3ns")),
            ("duration", json!("-100mo2000000d30000000000ns")),
            ("list<int>", json!([1, null, 3])),
            ("map<int, text>", json!({ "1": "a", "-2": "b" })),
            ("map<text, frozen<list<int>>>", json!({ "1": [2] })),
            ("tuple<int, text>", json!([1, null])),
            ("vector<float, 3>", json!([1.0, 2.0, 3.0])),
            ("vector<smallint, 2>", json!([1, 2])),
            ("vector<text, 2>", json!(["a", "b"])),
            (udt, json!({ "street": "s", "no": null, "tags": ["a"] })),
        ] {
            let parsed: CqlType = t.parse().unwrap();
            let bytes = encode(&parsed, &value).unwrap().unwrap();
            let decoded = CqlValue::decode(&parsed, &bytes).unwrap();
            let back: Value = serde_json::from_str(&decoded.to_json().unwrap()).unwrap();
            assert_eq!(back, value, "{t}");
        }
        let long = "-123456789012345678901234567890";
        let bytes = encode(&CqlType::Varint, &json!(long)).unwrap().unwrap();
        let decoded = CqlValue::decode(&CqlType::Varint, &bytes).unwrap();
        assert_eq!(decoded.to_json().unwrap(), long);
    }

    #[test]
    fn what_is_of_another_type_is_said() {
        let said = |t: &str, value: Value| encode(&t.parse().unwrap(), &value).unwrap_err();
        assert_eq!(
            said("int", json!("7")),
            "expected a whole number from -2147483648 to 2147483647 for int, found \"7\""
        );
        assert_eq!(
            said("list<uuid>", json!(["x"])),
            "expected a UUID for uuid, found \"x\""
        );
        let udt = "udt<ks.a, b: int>";
        assert_eq!(
            said(udt, json!({ "c": 1 })),
            "udt<ks.a, b: int> has no field `c`"
        );
    }
}
