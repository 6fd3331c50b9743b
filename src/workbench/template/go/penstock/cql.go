package penstock

import (
	"errors"
	"math"
	"strconv"
	"strings"
	"unicode/utf8"
)

// What a column holds, as values of Go:
//
//	text, ascii                    string
//	tinyint … bigint, counter      int64
//	varint, decimal                Digits: all digits, as a text
//	boolean                        bool
//	float, double                  float32, float64
//	blob                           []byte, good until Process returns
//	timestamp, date, time          Timestamp, Date, Time
//	duration                       Duration
//	uuid, timeuuid, inet           UUID, Inet: texts
//	list, set, vector, tuple       List
//	map                            Map, in the order of its keys
//	udt                            UDT
//	null, and what is empty        nil
type (
	// Digits is a varint or a decimal; `strconv` and `math/big` read it.
	Digits string
	// UUID is a uuid or a timeuuid.
	UUID string
	// Inet is an address.
	Inet string
	// Timestamp is milliseconds since the Unix epoch.
	Timestamp int64
	// Date is days since the Unix epoch.
	Date int64
	// Time is nanoseconds since midnight.
	Time int64
	// Duration is months, days and nanoseconds.
	Duration struct {
		Months, Days int32
		Nanos        int64
	}
	// List is a list, a set, a vector or a tuple.
	List []any
	// Entry is one of a Map.
	Entry struct{ Key, Value any }
	// Map is a map in the order of the log, which is that of its keys.
	Map []Entry
	// Field is one of a UDT.
	Field struct {
		Name  string
		Value any
	}
	// UDT is a value of a user-defined type.
	UDT []Field
	// Elements is what happened to the elements of a non-frozen collection or UDT.
	Elements struct {
		// Replaced: the old ones are gone, and Added is all there is.
		Replaced bool
		// Added are elements that were set; a list's by timeuuid.
		Added any
		// Removed are elements, keys, a list's timeuuids or a UDT's field numbers.
		Removed any
	}
)

// Get finds the value of a key that is a text; nil: there is none.
func (m Map) Get(key string) any {
	for _, entry := range m {
		if entry.Key == key {
			return entry.Value
		}
	}
	return nil
}

// Get finds the value of a field; nil: there is none.
func (u UDT) Get(name string) any {
	for _, field := range u {
		if field.Name == name {
			return field.Value
		}
	}
	return nil
}

// Types nest no deeper.
const maxDepth = 32

type cqlType struct {
	name   string
	parts  []*cqlType
	names  []string
	size   int
	frozen bool
}

var simple = strings.Fields("ascii bigint blob boolean counter date decimal double duration float inet int smallint text" +
	" varchar time timestamp timeuuid tinyint uuid varint")

func oneOf(name string, names ...string) bool {
	for _, other := range names {
		if name == other {
			return true
		}
	}
	return false
}

type typeReader struct {
	text string
	at   int
}

func (r *typeReader) take(sign byte) bool {
	for r.at < len(r.text) && (r.text[r.at] == ' ' || r.text[r.at] == '\t') {
		r.at++
	}
	if r.at < len(r.text) && r.text[r.at] == sign {
		r.at++
		return true
	}
	return false
}

func (r *typeReader) name() string {
	if r.take('"') {
		var name strings.Builder
		for r.at < len(r.text) {
			c := r.text[r.at]
			r.at++
			if c == '"' && !(r.at < len(r.text) && r.text[r.at] == '"') {
				break
			}
			if c == '"' {
				r.at++
			}
			name.WriteByte(c)
		}
		return name.String()
	}
	start := r.at
	for r.at < len(r.text) && !strings.ContainsRune("<>,.: \"", rune(r.text[r.at])) {
		r.at++
	}
	return r.text[start:r.at]
}

func parseType(text string) (*cqlType, error) {
	r := &typeReader{text: text}
	t := r.one(maxDepth)
	if t == nil || r.at != len(text) {
		return nil, errors.New("not a CQL type: " + text)
	}
	return t, nil
}

func (r *typeReader) one(depth int) *cqlType {
	if depth == 0 {
		return nil
	}
	t := &cqlType{name: strings.ToLower(r.name())}
	if oneOf(t.name, simple...) {
		return t
	}
	if !r.take('<') {
		return nil
	}
	part := func() bool {
		one := r.one(depth - 1)
		t.parts = append(t.parts, one)
		return one != nil
	}
	good := false
	switch t.name {
	case "frozen":
		if t = r.one(depth - 1); t != nil {
			t.frozen, good = true, true
		}
	case "list", "set":
		good = part()
	case "map":
		good = part() && r.take(',') && part()
	case "vector":
		good = part() && r.take(',')
		r.take(' ')
		size, err := strconv.ParseUint(r.name(), 10, 31)
		t.size, good = int(size), good && err == nil
	case "tuple":
		good = part()
		for good && r.take(',') {
			good = part()
		}
	case "udt":
		r.name()
		good = r.take('.')
		r.name()
		for good && r.take(',') {
			r.take(' ')
			t.names = append(t.names, r.name())
			good = r.take(':')
			r.take(' ')
			good = good && part()
		}
	}
	if !good || !r.take('>') {
		return nil
	}
	return t
}

func (t *cqlType) isMultiCell() bool {
	return !t.frozen && oneOf(t.name, "list", "set", "map", "udt")
}

// logged is the type in which the log has a column of it: a list by timeuuids.
func (t *cqlType) logged() *cqlType {
	if t.name == "list" && !t.frozen {
		return &cqlType{name: "map", parts: []*cqlType{{name: "timeuuid"}, t.parts[0]}}
	}
	return t
}

// removed is the type of the elements that were removed.
func (t *cqlType) removed() *cqlType {
	set := &cqlType{name: "set"}
	switch t.name {
	case "list":
		set.parts = []*cqlType{{name: "timeuuid"}}
	case "udt":
		set.parts = []*cqlType{{name: "smallint"}}
	default:
		set.parts = t.parts[:1]
	}
	return set
}

// fixed is the length of every value, 0: none.
func (t *cqlType) fixed() int {
	switch t.name {
	case "boolean", "tinyint":
		return 1
	case "smallint":
		return 2
	case "int", "float", "date":
		return 4
	case "bigint", "counter", "double", "time", "timestamp":
		return 8
	case "uuid", "timeuuid":
		return 16
	}
	return 0
}

// inVector is the length of each element in a vector; -1: it is written before it.
func (t *cqlType) inVector() int {
	switch t.name {
	case "tinyint", "smallint", "date", "time", "counter":
		return -1
	case "vector":
		if one := t.parts[0].inVector(); one >= 0 {
			return one * t.size
		}
		return -1
	}
	if n := t.fixed(); n > 0 {
		return n
	}
	return -1
}

// cells reads what collections are made of; the first thing that is wrong is kept.
type cells struct {
	b   []byte
	err error
}

func (c *cells) fail(what string) {
	if c.err == nil {
		c.err = errors.New(what)
	}
}

func (c *cells) take(n int) []byte {
	if n < 0 || n > len(c.b) {
		c.fail("truncated")
		return nil
	}
	head := c.b[:n]
	c.b = c.b[n:]
	return head
}

func (c *cells) int() int32 { return int32(be(c.take(4))) }

func (c *cells) count(least int) int {
	n := int(c.int())
	if n < 0 || n > len(c.b)/least {
		c.fail("more elements than bytes")
		return 0
	}
	return n
}

// value is nil where there is none.
func (c *cells) value() []byte {
	n := c.int()
	if n < 0 || c.err != nil {
		return nil
	}
	if head := c.take(int(n)); head != nil {
		return head
	}
	return []byte{}
}

func (c *cells) vint() uint64 {
	head := c.take(1)
	if head == nil {
		return 0
	}
	extra := 0
	for extra < 8 && head[0]&(0x80>>extra) != 0 {
		extra++
	}
	n := uint64(0)
	if extra < 7 {
		n = uint64(head[0] & (0xff >> (extra + 1)))
	}
	return n<<(8*extra) | be(c.take(extra))
}

func (c *cells) signedVint() int64 {
	n := c.vint()
	return int64(n>>1) ^ -int64(n&1)
}

func (c *cells) done() {
	if len(c.b) > 0 {
		c.fail("bytes after the last element")
	}
}

func decode(t *cqlType, b []byte, depth int) (any, error) {
	bad := func(what string) (any, error) {
		return nil, errors.New("not a value of type " + t.name + ": " + what)
	}
	if depth == 0 {
		return bad("nested too deep")
	}
	switch t.name {
	case "text", "ascii", "varchar":
		if !utf8.Valid(b) {
			return bad("not UTF-8")
		}
		return string(b), nil
	case "blob":
		return b, nil
	}
	// A tuple or UDT of no bytes is one whose every field is null.
	if len(b) == 0 && t.name != "tuple" && t.name != "udt" {
		return nil, nil
	}
	if n := t.fixed(); n > 0 && n != len(b) {
		return bad("wrong length")
	}
	rest := &cells{b: b}
	element := func(t *cqlType, b []byte) any {
		if b == nil || rest.err != nil {
			return nil
		}
		value, err := decode(t, b, depth-1)
		if err != nil {
			rest.fail(err.Error())
		}
		return value
	}
	var value any
	switch t.name {
	case "tinyint", "smallint", "int", "bigint", "counter":
		n, _ := integer(b)
		return n, nil
	case "boolean":
		return b[0] != 0, nil
	case "float":
		return math.Float32frombits(uint32(be(b))), nil
	case "double":
		return math.Float64frombits(be(b)), nil
	case "timestamp":
		return Timestamp(be(b)), nil
	case "date":
		return Date(int64(be(b)) - 1<<31), nil
	case "time":
		nanos := Time(be(b))
		if nanos < 0 || nanos >= 86_400_000_000_000 {
			return bad("not within a day")
		}
		return nanos, nil
	case "uuid", "timeuuid":
		return UUID(uuid(b)), nil
	case "inet":
		if len(b) != 4 && len(b) != 16 {
			return bad("neither 4 nor 16 bytes")
		}
		return Inet(inet(b)), nil
	case "varint":
		if len(b) > 1024 {
			return bad("more than 1024 bytes")
		}
		return Digits(digits(b)), nil
	case "decimal":
		scale := rest.int()
		if len(rest.b) == 0 || len(rest.b) > 1024 {
			return bad("of no bytes, or of more than 1024")
		}
		return Digits(decimal(digits(rest.b), int(scale))), nil
	case "duration":
		months, days, nanos := rest.signedVint(), rest.signedVint(), rest.signedVint()
		if months != int64(int32(months)) || days != int64(int32(days)) {
			return bad("months or days out of range")
		}
		value = Duration{int32(months), int32(days), nanos}
	case "list", "set":
		all := make(List, 0, 8)
		for n := rest.count(4); n > 0 && rest.err == nil; n-- {
			all = append(all, element(t.parts[0], rest.value()))
		}
		value = all
	case "map":
		all := make(Map, 0, 8)
		for n := rest.count(8); n > 0 && rest.err == nil; n-- {
			key := element(t.parts[0], rest.value())
			all = append(all, Entry{key, element(t.parts[1], rest.value())})
		}
		value = all
	case "vector":
		all, one := make(List, 0, 8), t.parts[0].inVector()
		for n := 0; n < t.size && rest.err == nil; n++ {
			size := one
			if one < 0 {
				size = int(min(rest.vint(), math.MaxInt32))
			}
			all = append(all, element(t.parts[0], rest.take(size)))
		}
		value = all
	case "tuple", "udt":
		list, fields := List{}, UDT{}
		for i, part := range t.parts {
			var bytes []byte
			// What was written before the type grew ends early.
			if len(rest.b) > 0 {
				bytes = rest.value()
			}
			if t.name == "tuple" {
				list = append(list, element(part, bytes))
			} else {
				fields = append(fields, Field{t.names[i], element(part, bytes)})
			}
		}
		if value = list; t.name == "udt" {
			// Fields that this version of the type does not know yet are left alone.
			value, rest.b = fields, nil
		}
	default:
		return bad("an unknown type")
	}
	if rest.done(); rest.err != nil {
		return bad(rest.err.Error())
	}
	return value, nil
}

// whole is the value of a column that was overwritten, or that stands in an image.
func whole(t *cqlType, b []byte) (any, error) {
	value, err := decode(t.logged(), b, maxDepth)
	if err != nil || !t.isMultiCell() {
		return value, err
	}
	// A collection without elements, or a UDT without fields, does not exist: it reads as null.
	switch value := value.(type) {
	case List:
		if len(value) == 0 {
			return nil, nil
		}
	case Map:
		if len(value) == 0 {
			return nil, nil
		}
		if t.name == "list" {
			// In the order of their timeuuids, which is the list's.
			all := make(List, 0, len(value))
			for _, entry := range value {
				all = append(all, entry.Value)
			}
			return all, nil
		}
	case UDT:
		for _, field := range value {
			if field.Value != nil {
				return value, nil
			}
		}
		return nil, nil
	}
	return value, nil
}
