package penstock

import (
	"math"
	"strconv"
	"strings"
)

// JSON is the JSON form of a value that Value and Elements gave, as in the JSON of a change.
func JSON(value any) string {
	var out strings.Builder
	writeJSON(&out, value)
	return out.String()
}

func writeJSON(out *strings.Builder, value any) {
	switch value := value.(type) {
	case nil:
		out.WriteString("null")
	case string:
		quote(out, value)
	case []byte:
		const digits = "0123456789abcdef"
		out.WriteString(`"0x`)
		for _, b := range value {
			out.WriteByte(digits[b>>4])
			out.WriteByte(digits[b&15])
		}
		out.WriteByte('"')
	case bool:
		out.WriteString(strconv.FormatBool(value))
	case int64:
		out.WriteString(strconv.FormatInt(value, 10))
	case float32:
		float(out, float64(value), 32)
	case float64:
		float(out, value, 64)
	case Digits:
		// What no double holds is a string.
		if number := string(value); tooLong(number) {
			quote(out, number)
		} else {
			out.WriteString(number)
		}
	case Map:
		out.WriteByte('{')
		for i, entry := range value {
			comma(out, i)
			if key := JSON(entry.Key); strings.HasPrefix(key, `"`) {
				out.WriteString(key)
			} else {
				quote(out, key)
			}
			out.WriteByte(':')
			writeJSON(out, entry.Value)
		}
		out.WriteByte('}')
	case UDT:
		out.WriteByte('{')
		for i, field := range value {
			comma(out, i)
			quote(out, field.Name)
			out.WriteByte(':')
			writeJSON(out, field.Value)
		}
		out.WriteByte('}')
	case List:
		out.WriteByte('[')
		for i, element := range value {
			comma(out, i)
			writeJSON(out, element)
		}
		out.WriteByte(']')
	case interface{ String() string }:
		quote(out, value.String())
	case UUID:
		quote(out, string(value))
	case Inet:
		quote(out, string(value))
	}
}

func comma(out *strings.Builder, i int) {
	if i > 0 {
		out.WriteByte(',')
	}
}

func quote(out *strings.Builder, text string) {
	const digits = "0123456789abcdef"
	out.WriteByte('"')
	for i := 0; i < len(text); i++ {
		switch c := text[i]; {
		case c == '"' || c == '\\':
			out.WriteByte('\\')
			out.WriteByte(c)
		case c < ' ':
			out.WriteString(`\u00`)
			out.WriteByte(digits[c>>4])
			out.WriteByte(digits[c&15])
		default:
			out.WriteByte(c)
		}
	}
	out.WriteByte('"')
}

func float(out *strings.Builder, x float64, bits int) {
	switch {
	case math.IsNaN(x):
		out.WriteString(`"NaN"`)
	case math.IsInf(x, 1):
		out.WriteString(`"Infinity"`)
	case math.IsInf(x, -1):
		out.WriteString(`"-Infinity"`)
	default:
		text := strconv.FormatFloat(x, 'g', -1, bits)
		out.WriteString(text)
		if !strings.ContainsAny(text, ".e") {
			out.WriteString(".0")
		}
	}
}

// String is the JSON form, without quotes.
func (ms Timestamp) String() string { return rfc3339(int64(ms)) }

// String is the JSON form, without quotes.
func (days Date) String() string { return civil(int64(days)) }

// String is the JSON form, without quotes.
func (nanos Time) String() string {
	return clock(int64(nanos)/1_000_000_000) + "." + pad(int64(nanos)%1_000_000_000, 9)
}

// String is the JSON form, without quotes.
func (d Duration) String() string {
	abs := func(n int64) string { return strings.TrimPrefix(strconv.FormatInt(n, 10), "-") }
	sign := ""
	if d.Months < 0 || d.Days < 0 || d.Nanos < 0 {
		sign = "-"
	}
	return sign + abs(int64(d.Months)) + "mo" + abs(int64(d.Days)) + "d" + abs(d.Nanos) + "ns"
}

func pad(n int64, width int) string {
	text := strconv.FormatInt(n, 10)
	for len(text) < width {
		text = "0" + text
	}
	return text
}

func clock(s int64) string {
	return pad(s/3600, 2) + ":" + pad(s/60%60, 2) + ":" + pad(s%60, 2)
}

// rfc3339 writes milliseconds since the Unix epoch; the package time would bring files and clocks, which there are none of.
func rfc3339(ms int64) string {
	day, rest := ms/86_400_000, ms%86_400_000
	if rest < 0 {
		day, rest = day-1, rest+86_400_000
	}
	return civil(day) + "T" + clock(rest/1000) + "." + pad(rest%1000, 3) + "Z"
}

// civil writes days since the Unix epoch: <https://howardhinnant.github.io/date_algorithms.html#civil_from_days>.
func civil(days int64) string {
	z := days + 719_468
	era := z / 146_097
	if z < 0 {
		era = (z - 146_096) / 146_097
	}
	doe := z - era*146_097
	yoe := (doe - doe/1460 + doe/36_524 - doe/146_096) / 365
	doy := doe - (365*yoe + yoe/4 - yoe/100)
	mp := (5*doy + 2) / 153
	d, m, y := doy-(153*mp+2)/5+1, mp+3, yoe+era*400
	if m > 12 {
		m -= 12
	}
	if m <= 2 {
		y++
	}
	sign := ""
	if y < 0 {
		sign, y = "-", -y
	} else if y > 9999 {
		sign = "+"
	}
	return sign + pad(y, 4) + "-" + pad(m, 2) + "-" + pad(d, 2)
}

func inet(b []byte) string {
	if len(b) == 4 {
		text := ""
		for i, n := range b {
			if i > 0 {
				text += "."
			}
			text += strconv.Itoa(int(n))
		}
		return text
	}
	if be(b[:8]) == 0 && be(b[8:12]) == 0xffff {
		return "::ffff:" + inet(b[12:])
	}
	var groups [8]uint64
	for i := range groups {
		groups[i] = be(b[2*i : 2*i+2])
	}
	start, size := 0, 1
	for at := 0; at < 8; at++ {
		end := at
		for end < 8 && groups[end] == 0 {
			end++
		}
		if end-at > size {
			start, size = at, end-at
		}
		at = end
	}
	text := ""
	for i := 0; i < 8; i++ {
		if size > 1 && i == start {
			text, i = text+"::", i+size-1
			continue
		}
		if text != "" && !strings.HasSuffix(text, "::") {
			text += ":"
		}
		text += strconv.FormatUint(groups[i], 16)
	}
	return text
}

// digits writes a big-endian two's complement number in decimal.
func digits(b []byte) string {
	negative := b[0]&0x80 != 0
	// Limbs of nine digits, the least first; of a negative number first |n| − 1, which is its complement.
	limbs := []uint64{0}
	add := func(times, carry uint64) {
		for i := range limbs {
			n := limbs[i]*times + carry
			limbs[i], carry = n%1_000_000_000, n/1_000_000_000
		}
		if carry > 0 {
			limbs = append(limbs, carry)
		}
	}
	for _, c := range b {
		if negative {
			c = ^c
		}
		add(256, uint64(c))
	}
	text := ""
	if negative {
		add(1, 1)
		text = "-"
	}
	last := len(limbs) - 1
	text += strconv.FormatUint(limbs[last], 10)
	for i := last - 1; i >= 0; i-- {
		text += pad(int64(limbs[i]), 9)
	}
	return text
}

// decimal puts the point where it is to be, or writes an exponent where that is far away.
func decimal(digits string, scale int) string {
	if scale == 0 {
		return digits
	}
	if scale < 0 || scale > 64 {
		return digits + "e" + strconv.Itoa(-scale)
	}
	digits, negative := strings.CutPrefix(digits, "-")
	for len(digits) <= scale {
		digits = "0" + digits
	}
	at := len(digits) - scale
	text := digits[:at] + "." + digits[at:]
	if negative {
		text = "-" + text
	}
	return text
}

// tooLong: more digits than this before the point overflow the numbers of most readers.
func tooLong(number string) bool {
	digits, exponent, ok := strings.Cut(number, "e")
	n, _ := strconv.Atoi(exponent)
	return ok && len(digits)+n > 300
}
