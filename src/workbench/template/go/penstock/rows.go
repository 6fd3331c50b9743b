package penstock

import (
	"errors"
	"math"
	"strconv"
)

// Operation is what a change did.
type Operation int8

// The operations. Images and ends of ranges are reached through the change that they belong to.
const (
	TTLPartitionDelete        Operation = -4
	TTLRowDelete              Operation = -3
	PreImage                  Operation = 0
	Update                    Operation = 1
	Insert                    Operation = 2
	RowDelete                 Operation = 3
	PartitionDelete           Operation = 4
	RangeDeleteStartInclusive Operation = 5
	RangeDeleteStartExclusive Operation = 6
	RangeDeleteEndInclusive   Operation = 7
	RangeDeleteEndExclusive   Operation = 8
	PostImage                 Operation = 9
)

// Tag is what a change says of a column.
type Tag uint8

// The tags. Unsent never means null. Of a non-frozen collection or UDT Value means that elements were added, Replaced that
// it was overwritten.
const (
	Unsent Tag = iota
	Unchanged
	Null
	Value
	Replaced
	Removed
	Merged
)

const header = 28

type rows struct {
	bytes  []byte
	starts []int
}

var errBatch = errors.New("the batch is not well-formed")

func parse(bytes []byte) (rows, error) {
	r := rows{bytes: bytes}
	if len(bytes) < 4 {
		return r, errBatch
	}
	n, at := int(le32(bytes)), 4
	for i := 0; i < n; i++ {
		if at+4+header > len(bytes) {
			return r, errBatch
		}
		size := int(le32(bytes[at:]))
		row := at + 4
		columns := int(le16(bytes[row+2:]))
		if size < header+columns*5 || size > len(bytes)-row {
			return r, errBatch
		}
		r.starts = append(r.starts, row)
		at = row + size
	}
	if at != len(bytes) {
		return r, errBatch
	}
	return r, nil
}

func (r *rows) row(i int) []byte {
	end := len(r.bytes)
	if i+1 < len(r.starts) {
		end = r.starts[i+1] - 4
	}
	return r.bytes[r.starts[i]:end]
}

// Change is one change, or an image or an end of a range that is reached through one. It is good until Process returns.
type Change struct {
	rows  *rows
	index int
	row   []byte
	table *Table
}

func (r *rows) change(i int, tables map[uint32]*Table) (*Change, bool) {
	row := r.row(i)
	table, ok := tables[le32(row[4:])]
	return &Change{rows: r, index: i, row: row, table: table}, ok
}

func (c *Change) isChange() bool {
	switch c.Operation() {
	case PreImage, PostImage, RangeDeleteEndInclusive, RangeDeleteEndExclusive:
		return false
	}
	return c.row[1]&1 == 0
}

// Table is the table of the change.
func (c *Change) Table() *Table { return c.table }

// Operation is what it did.
func (c *Change) Operation() Operation { return Operation(int8(c.row[0])) }

// TimeMicros is when it was written: microseconds since the Unix epoch.
func (c *Change) TimeMicros() int64 { return int64(le64(c.row[8:])) }

// TTL is its time to live in seconds; 0: none.
func (c *Change) TTL() uint32 { return le32(c.row[16:]) }

// IsLate tells whether it came behind what had been read already.
func (c *Change) IsLate() bool { return c.row[1]&4 != 0 }

func (c *Change) linked(at int) *Change {
	i := int(le32(c.row[at:])) - 1
	if i < 0 || i >= len(c.rows.starts) {
		return nil
	}
	return &Change{rows: c.rows, index: i, row: c.rows.row(i), table: c.table}
}

// Preimage is the row before the change; nil where the log has none.
func (c *Change) Preimage() *Change { return c.linked(20) }

// Postimage is the row after the change; nil where the log has none.
func (c *Change) Postimage() *Change {
	if end := c.linked(24); end != nil && end.Operation() == PostImage {
		return end
	}
	return nil
}

// RangeEnd is the end of a range delete, of which this is the start.
func (c *Change) RangeEnd() *Change {
	if end := c.linked(24); end != nil && end.Operation() != PostImage {
		return end
	}
	return nil
}

// Column is what the change says of a column, by index, and the bytes of its value.
func (c *Change) Column(index int) (Tag, []byte) {
	columns := int(le16(c.row[2:]))
	if index < 0 || index >= columns {
		return Unsent, nil
	}
	data := c.row[header+columns*5:]
	start, end := uint32(0), le32(c.row[header+index*4:])
	if index > 0 {
		start = le32(c.row[header+index*4-4:])
	}
	if start > end || int(end) > len(data) {
		return Unsent, nil
	}
	return Tag(c.row[header+columns*4+index]), data[start:end]
}

// Bytes is the value of a column in its binary form; false where the change sets none (or null).
func (c *Change) Bytes(name string) ([]byte, bool) {
	tag, bytes := c.Column(c.table.Index(name))
	return bytes, tag == Value || tag == Replaced
}

// IsNull tells whether the change set the column to null.
func (c *Change) IsNull(name string) bool {
	tag, _ := c.Column(c.table.Index(name))
	return tag == Null
}

// Text is the value of a column of a scalar type as text: UUIDs, numbers, booleans and timestamps in the form that they have in
// JSON. False where the change sets none, or where the type is none of these.
func (c *Change) Text(name string) (string, bool) {
	index := c.table.Index(name)
	tag, b := c.Column(index)
	if tag != Value && tag != Replaced {
		return "", false
	}
	switch c.table.Columns[index].Type {
	case "text", "ascii", "varchar":
		return string(b), true
	case "tinyint", "smallint", "int", "bigint", "counter":
		n, ok := integer(b)
		return strconv.FormatInt(n, 10), ok
	case "boolean":
		return strconv.FormatBool(len(b) == 1 && b[0] != 0), true
	case "float":
		if len(b) == 4 {
			return strconv.FormatFloat(float64(math.Float32frombits(uint32(be(b)))), 'g', -1, 32), true
		}
	case "double":
		if len(b) == 8 {
			return strconv.FormatFloat(math.Float64frombits(be(b)), 'g', -1, 64), true
		}
	case "uuid", "timeuuid":
		return uuid(b), len(b) == 16
	case "timestamp":
		ms, ok := integer(b)
		return rfc3339(ms), ok
	}
	return "", false
}

// Int is the value of a column of whole numbers, or of a timestamp in milliseconds.
func (c *Change) Int(name string) (int64, bool) {
	b, ok := c.Bytes(name)
	if !ok {
		return 0, false
	}
	return integer(b)
}

func be(b []byte) (n uint64) {
	for _, c := range b {
		n = n<<8 | uint64(c)
	}
	return n
}

// rfc3339 writes milliseconds since the Unix epoch; the package time would bring files and clocks, which there are none of.
// The days are counted as in <https://howardhinnant.github.io/date_algorithms.html>.
func rfc3339(ms int64) string {
	day, rest := ms/86_400_000, ms%86_400_000
	if rest < 0 {
		day, rest = day-1, rest+86_400_000
	}
	z := day + 719_468
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
		m, y = m-12, y+1
	}
	pad := func(n int64, width int) string {
		text := strconv.FormatInt(n, 10)
		for len(text) < width {
			text = "0" + text
		}
		return text
	}
	return pad(y, 4) + "-" + pad(m, 2) + "-" + pad(d, 2) + "T" + pad(rest/3_600_000, 2) + ":" +
		pad(rest/60_000%60, 2) + ":" + pad(rest/1000%60, 2) + "." + pad(rest%1000, 3) + "Z"
}

func integer(b []byte) (int64, bool) {
	if len(b) == 0 || len(b) > 8 {
		return 0, false
	}
	n := int64(int8(b[0]))
	for _, c := range b[1:] {
		n = n<<8 | int64(c)
	}
	return n, true
}

func uuid(b []byte) string {
	const digits = "0123456789abcdef"
	text := make([]byte, 0, 36)
	for i, c := range b {
		if i == 4 || i == 6 || i == 8 || i == 10 {
			text = append(text, '-')
		}
		text = append(text, digits[c>>4], digits[c&15])
	}
	return string(text)
}
