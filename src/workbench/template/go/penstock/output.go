package penstock

import (
	"errors"
	"math"
)

// Output takes what a transform makes of the change at hand.
type Output struct {
	buf     []byte
	entries uint32
	topics  []string
	source  uint32
	// Where the number of parts of the record at hand is; 0: there is none.
	parts int
	// The first thing of the change at hand that cannot be written.
	failed error
}

func (o *Output) fail(what string) {
	if o.failed == nil {
		o.failed = errors.New(what)
	}
}

// name writes a text of 65535 bytes at most.
func (o *Output) name(text string) {
	if len(text) > math.MaxUint16 {
		o.fail("a topic's or a header's name has less than 64 KiB")
		text = ""
	}
	o.buf = append16(o.buf, uint16(len(text)))
	o.buf = append(o.buf, text...)
}

func (o *Output) entry(kind byte) {
	o.entries++
	o.parts = 0
	o.buf = append(o.buf, kind)
	o.buf = append32(o.buf, o.source)
}

// Record is a record being written; what is not set is null.
type Record struct {
	out   *Output
	parts int
}

// Record writes a record to a topic. A change may make several.
func (o *Output) Record(topic string) Record {
	index := -1
	for i, known := range o.topics {
		if known == topic {
			index = i
		}
	}
	if index < 0 {
		index = len(o.topics)
		o.topics = append(o.topics, topic)
		o.entries++
		o.buf = append(o.buf, 0)
		o.name(topic)
	}
	o.entry(1)
	o.buf = append16(o.buf, uint16(index))
	o.parts = len(o.buf)
	o.buf = append(o.buf, 0, 0)
	return Record{o, o.parts}
}

// part begins a part; false: it is not written.
func (r Record) part(role byte) bool {
	if r.parts != r.out.parts {
		r.out.fail("a part of a record after the next was begun")
		return false
	}
	n := le16(r.out.buf[r.parts:])
	if n == math.MaxUint16 {
		r.out.fail("more than 65535 parts of a record")
		return false
	}
	put16(r.out.buf[r.parts:], n+1)
	r.out.buf = append(r.out.buf, role)
	return true
}

func (o *Output) field(value []byte) {
	if value == nil {
		o.buf = append(o.buf, 0)
		return
	}
	o.buf = append(o.buf, 1)
	o.buf = append32(o.buf, uint32(len(value)))
	o.buf = append(o.buf, value...)
}

// column names the bytes of a column: 2, and with 3 null where the change does not set it.
func (o *Output) column(kind byte, change *Change, name string) {
	index := change.table.Index(name)
	if index < 0 {
		o.fail(change.table.Keyspace + "." + change.table.Name + " has no column `" + name + "`")
		index = 0
	}
	o.buf = append(o.buf, kind)
	o.buf = append32(o.buf, uint32(change.index))
	o.buf = append16(o.buf, uint16(index))
}

// Key sets the key; nil is null.
func (r Record) Key(key []byte) Record {
	if r.part(0) {
		r.out.field(key)
	}
	return r
}

// Value sets the value; nil is null.
func (r Record) Value(value []byte) Record {
	if r.part(1) {
		r.out.field(value)
	}
	return r
}

// KeyColumn sets the key to the bytes of a column, which nobody copies and which need not have been sent.
func (r Record) KeyColumn(change *Change, name string) Record {
	if r.part(0) {
		r.out.column(2, change, name)
	}
	return r
}

// KeyColumnOrNull likewise; the key is null where the change does not set the column.
func (r Record) KeyColumnOrNull(change *Change, name string) Record {
	if r.part(0) {
		r.out.column(3, change, name)
	}
	return r
}

// ValueColumn sets the value likewise.
func (r Record) ValueColumn(change *Change, name string) Record {
	if r.part(1) {
		r.out.column(2, change, name)
	}
	return r
}

// ValueColumnOrNull likewise; the value is null where the change does not set the column.
func (r Record) ValueColumnOrNull(change *Change, name string) Record {
	if r.part(1) {
		r.out.column(3, change, name)
	}
	return r
}

// HeaderColumnOrNull adds a header of a column likewise.
func (r Record) HeaderColumnOrNull(header string, change *Change, name string) Record {
	if r.part(2) {
		r.out.name(header)
		r.out.column(3, change, name)
	}
	return r
}

// Header adds a header; nil is null.
func (r Record) Header(name string, value []byte) Record {
	if r.part(2) {
		r.out.name(name)
		r.out.field(value)
	}
	return r
}

// Forward hands the change on unchanged.
func (o *Output) Forward() { o.entry(2) }

// Drop lets go of the change; the same as writing nothing, but said.
func (o *Output) Drop() { o.entry(3) }

func (o *Output) message(kind byte, text string) {
	o.entry(kind)
	o.buf = append32(o.buf, uint32(len(text)))
	o.buf = append(o.buf, text...)
}

func run(batch []byte, transform Transform, tables map[uint32]*Table, buf []byte) ([]byte, error) {
	rows, err := parse(batch)
	if err != nil {
		return nil, err
	}
	out := Output{buf: append(buf[:0], 0, 0, 0, 0)}
	for i := range rows.starts {
		change, known := rows.change(i, tables)
		if !change.isChange() {
			continue
		}
		out.source = uint32(i)
		size, entries, topics := len(out.buf), out.entries, len(out.topics)
		if !known {
			out.message(4, "its table was never opened")
			continue
		}
		out.parts, out.failed = 0, nil
		err := transform.Process(change, &out)
		if err == nil {
			err = out.failed
		}
		if err == nil {
			continue
		}
		// What was written for it is taken back.
		out.buf, out.entries, out.topics = out.buf[:size], entries, out.topics[:topics]
		if later := (retry{}); errors.As(err, &later) {
			out.message(5, err.Error())
			break
		}
		out.message(4, err.Error())
	}
	copy(out.buf, append32(nil, out.entries))
	return out.buf, nil
}
