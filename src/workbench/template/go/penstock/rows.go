package penstock

import (
	"errors"
	"strings"
	"unicode/utf8"
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

// String is the name that golden cases and the JSON of changes have for it.
func (o Operation) String() string {
	switch o {
	case TTLPartitionDelete:
		return "ttl-partition-delete"
	case TTLRowDelete:
		return "ttl-row-delete"
	case PreImage:
		return "preimage"
	case Update:
		return "update"
	case Insert:
		return "insert"
	case RowDelete:
		return "row-delete"
	case PartitionDelete:
		return "partition-delete"
	case RangeDeleteStartInclusive:
		return "range-delete-start-inclusive"
	case RangeDeleteStartExclusive:
		return "range-delete-start-exclusive"
	case RangeDeleteEndInclusive:
		return "range-delete-end-inclusive"
	case RangeDeleteEndExclusive:
		return "range-delete-end-exclusive"
	case PostImage:
		return "postimage"
	}
	return "unknown"
}

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

// IsPreimageMissing tells whether the log has a preimage of it that could not be sent.
func (c *Change) IsPreimageMissing() bool { return c.row[1]&8 != 0 }

// IsEndMissing tells whether the log has a postimage of it, or the end of its range, that could not be sent.
func (c *Change) IsEndMissing() bool { return c.row[1]&16 != 0 }

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

// told is Column, by name; what was not asked for is no null, but a mistake.
func (c *Change) told(name string) (int, Tag, []byte) {
	index := c.table.Index(name)
	tag, bytes := c.Column(index)
	if tag == Unsent && index >= 0 {
		panic("column `" + name + "` of " + c.table.Keyspace + "." + c.table.Name + " was not declared in the interest")
	}
	return index, tag, bytes
}

// Bytes is the value of a column in its binary form; false where the change sets none (or null).
func (c *Change) Bytes(name string) ([]byte, bool) {
	_, tag, bytes := c.told(name)
	return bytes, tag == Value || tag == Replaced
}

// IsNull tells whether the change set the column to null.
func (c *Change) IsNull(name string) bool {
	_, tag, _ := c.told(name)
	return tag == Null
}

// IsSet tells whether the column has a value in this change.
func (c *Change) IsSet(name string) bool {
	_, tag, _ := c.told(name)
	return tag == Value || tag == Replaced || tag == Merged
}

func (c *Change) isImage() bool { return c.Operation() == PreImage || c.Operation() == PostImage }

func (c *Change) read(index int, work func(*cqlType) error) error {
	column := &c.table.Columns[index]
	if column.parsed == nil {
		parsed, err := parseType(column.Type)
		if err != nil {
			return err
		}
		column.parsed = parsed
	}
	if err := work(column.parsed); err != nil {
		return errors.New("column `" + column.Name + "` of " + c.table.Keyspace + "." + c.table.Name + ": " + err.Error())
	}
	return nil
}

// Value is the value of a column, of any type (see cql.go); nil where the change sets none, or null, and where there is no such
// column. Of a non-frozen collection or UDT to which elements were added: those; Elements says all.
func (c *Change) Value(name string) (value any, err error) {
	index, tag, b := c.told(name)
	if tag != Value && tag != Replaced {
		return nil, nil
	}
	err = c.read(index, func(t *cqlType) (err error) {
		if t.isMultiCell() && tag == Value && !c.isImage() {
			value, err = decode(t.logged(), b, maxDepth)
		} else {
			value, err = whole(t, b)
		}
		return err
	})
	return value, err
}

// Elements says what happened to the elements of a non-frozen collection or UDT; nil: nothing.
func (c *Change) Elements(name string) (elements *Elements, err error) {
	index, tag, b := c.told(name)
	if tag == Unsent || tag == Unchanged {
		return nil, nil
	}
	elements = &Elements{Replaced: tag == Null || tag == Replaced}
	err = c.read(index, func(t *cqlType) (err error) {
		added, removed, err := parts(tag, b)
		if err == nil && added != nil {
			elements.Added, err = decode(t.logged(), added, maxDepth)
		}
		if err == nil && removed != nil {
			elements.Removed, err = decode(t.removed(), removed, maxDepth)
		}
		return err
	})
	return elements, err
}

// parts is what was added and what was removed.
func parts(tag Tag, b []byte) (added, removed []byte, err error) {
	switch tag {
	case Value, Replaced:
		added = b
	case Removed:
		removed = b
	case Merged:
		if len(b) < 4 || int(le32(b)) > len(b)-4 {
			return nil, nil, errors.New("truncated")
		}
		added, removed = b[4:4+le32(b)], b[4+le32(b):]
	}
	return added, removed, nil
}

// JSON is what the change says of a column, in the JSON form in which changes are rendered; empty: nothing.
func (c *Change) JSON(name string) (text string, err error) {
	index, tag, b := c.told(name)
	switch tag {
	case Unsent, Unchanged:
		return "", nil
	case Null:
		return "null", nil
	}
	err = c.read(index, func(t *cqlType) error {
		if (tag == Value || tag == Replaced) && (tag == Replaced || c.isImage() || !t.isMultiCell()) {
			value, err := whole(t, b)
			text = JSON(value)
			return err
		}
		elements, err := c.Elements(name)
		if err != nil {
			return err
		}
		text = "{"
		if tag != Removed {
			text += `"added":` + JSON(elements.Added)
		}
		if tag == Merged {
			text += ","
		}
		if tag != Value {
			text += `"removed":` + JSON(elements.Removed)
		}
		text += "}"
		return nil
	})
	return text, err
}

// Text is the value of a column as text: text as it is, all else in its JSON form, without quotes. False where the change sets
// none, and where its bytes are not of its type, which Value says.
func (c *Change) Text(name string) (string, bool) {
	index, tag, b := c.told(name)
	if tag != Value && tag != Replaced {
		return "", false
	}
	if oneOf(c.table.Columns[index].Type, "text", "ascii", "varchar") {
		return string(b), utf8.Valid(b)
	}
	text, err := c.JSON(name)
	return strings.Trim(text, `"`), err == nil
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
