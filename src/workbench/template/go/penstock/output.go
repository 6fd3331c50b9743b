package penstock

// Output takes what a transform makes of the change at hand.
type Output struct {
	buf     []byte
	entries uint32
	topics  []string
	source  uint32
	parts   int
}

func (o *Output) entry(kind byte) {
	o.entries++
	o.buf = append(o.buf, kind)
	o.buf = append32(o.buf, o.source)
}

// Record is a record being written; what is not set is null.
type Record struct{ out *Output }

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
		o.buf = append16(o.buf, uint16(len(topic)))
		o.buf = append(o.buf, topic...)
	}
	o.entry(1)
	o.buf = append16(o.buf, uint16(index))
	o.parts = len(o.buf)
	o.buf = append(o.buf, 0, 0)
	return Record{o}
}

func (o *Output) part(role byte) {
	n := le16(o.buf[o.parts:])
	put16(o.buf[o.parts:], n+1)
	o.buf = append(o.buf, role)
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

func (o *Output) column(change *Change, name string) {
	o.buf = append(o.buf, 2)
	o.buf = append32(o.buf, uint32(change.index))
	o.buf = append16(o.buf, uint16(change.table.Index(name)))
}

// Key sets the key; nil is null.
func (r Record) Key(key []byte) Record {
	r.out.part(0)
	r.out.field(key)
	return r
}

// Value sets the value; nil is null.
func (r Record) Value(value []byte) Record {
	r.out.part(1)
	r.out.field(value)
	return r
}

// KeyColumn sets the key to the bytes of a column, which nobody copies and which need not have been sent.
func (r Record) KeyColumn(change *Change, name string) Record {
	r.out.part(0)
	r.out.column(change, name)
	return r
}

// ValueColumn sets the value likewise.
func (r Record) ValueColumn(change *Change, name string) Record {
	r.out.part(1)
	r.out.column(change, name)
	return r
}

// Header adds a header; nil is null.
func (r Record) Header(name string, value []byte) Record {
	r.out.part(2)
	r.out.buf = append16(r.out.buf, uint16(len(name)))
	r.out.buf = append(r.out.buf, name...)
	r.out.field(value)
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
		err := transform.Process(change, &out)
		if err == nil {
			continue
		}
		// What was written for it is taken back.
		out.buf, out.entries, out.topics = out.buf[:size], entries, out.topics[:topics]
		if later, ok := err.(retry); ok {
			out.message(5, later.Error())
			break
		}
		out.message(4, err.Error())
	}
	copy(out.buf, append32(nil, out.entries))
	return out.buf, nil
}
