//go:build !wasm

package penstock

import (
	"encoding/binary"
	"errors"
	"math"
	"os"
	"strconv"
	"strings"
)

// Log writes a line to standard error: a unit test has no host.
func Log(level Level, text string) {
	os.Stderr.WriteString([]string{"error", "warn", "info", "debug"}[level&3] + ": " + text + "\n")
}

// Harness runs the registered transform natively, in a unit test: no host, no component.
//
//	h, err := penstock.NewHarness(penstock.Settings{"drop": "order.cancelled"})
//	outbox, err := h.Table("shop.outbox", "id uuid primary, event_type text")
//	outcomes, err := h.Run(outbox, penstock.TestChange{Columns: penstock.Values{"event_type": "order.cancelled"}})
type Harness struct {
	transform Transform
	tables    map[uint32]*Table
	interests map[uint32]Interest
}

// Values are columns by name: what is not there was not touched, nil was set to null, and []byte is a value in its binary form.
type Values map[string]any

// TestChange is a change to be handed out; an Insert, if nothing else is said.
type TestChange struct {
	Operation                    Operation
	Columns, Preimage, Postimage Values
	TimeMicros                   int64
	TTL                          uint32
}

// Outcome is what became of a change: a record, if it has a topic, or one of the others.
type Outcome struct {
	Topic              string
	Key, Value         []byte
	Headers            map[string][]byte
	Forwarded, Dropped bool
	Error, Retry       string
}

// NewHarness makes an instance of these settings; an error refuses them.
func NewHarness(settings Settings) (*Harness, error) {
	if err := about.check(settings); err != nil {
		return nil, err
	}
	made, err := configure(settings)
	return &Harness{made, map[uint32]*Table{}, map[uint32]Interest{}}, err
}

// Table tells the transform of a table: `keyspace.name`, and `column type [primary|clustering|static], …`.
func (h *Harness) Table(name, columns string) (*Table, error) {
	keyspace, name, _ := strings.Cut(name, ".")
	table := &Table{ID: uint32(len(h.tables) + 1), Keyspace: keyspace, Name: name}
	depth, start := 0, 0
	for at, c := range columns + "," {
		switch c {
		case '<':
			depth++
		case '>':
			depth--
		}
		if c != ',' || depth > 0 {
			continue
		}
		name, cql, ok := strings.Cut(strings.TrimSpace(columns[start:at]), " ")
		start = at + 1
		if !ok {
			continue
		}
		column := Column{Name: name, Type: strings.TrimSpace(cql), Kind: Regular}
		for kind, word := range []string{" primary", " clustering", " static"} {
			if cql, ok := strings.CutSuffix(column.Type, word); ok {
				column.Type, column.Kind = cql, ColumnKind(kind)
			}
		}
		parsed, err := parseType(column.Type)
		if err != nil {
			return nil, err
		}
		column.parsed = parsed
		table.Columns = append(table.Columns, column)
	}
	interest, err := h.transform.Interest(table)
	h.tables[table.ID], h.interests[table.ID] = table, interest
	return table, err
}

// Run hands out one change.
func (h *Harness) Run(table *Table, change TestChange) ([]Outcome, error) {
	if h.interests[table.ID].kind == 0 {
		return []Outcome{{Forwarded: true}}, nil
	}
	if change.Operation == PreImage {
		change.Operation = Insert
	}
	batch, values, links := []byte{0, 0, 0, 0}, [][]cell{}, [2]uint32{}
	add := func(columns Values, operation Operation, links [2]uint32) error {
		row, cells, err := h.row(table, columns, operation, change, links)
		batch = append(append32(batch, uint32(len(row))), row...)
		values = append(values, cells)
		return err
	}
	for i, image := range []Values{change.Preimage, change.Postimage} {
		if image != nil {
			if err := add(image, []Operation{PreImage, PostImage}[i], [2]uint32{}); err != nil {
				return nil, err
			}
			links[i] = uint32(len(values))
		}
	}
	if err := add(change.Columns, change.Operation, links); err != nil {
		return nil, err
	}
	binary.LittleEndian.PutUint32(batch, uint32(len(values)))
	out, err := run(batch, h.transform, h.tables, nil)
	if err != nil {
		return nil, err
	}
	return outcomes(out, values), nil
}

type cell struct {
	tag   Tag
	bytes []byte
}

func (h *Harness) row(table *Table, columns Values, operation Operation, change TestChange, links [2]uint32) ([]byte, []cell, error) {
	row := append16([]byte{byte(operation), 2}, uint16(len(table.Columns)))
	row = append32(row, table.ID)
	row = binary.LittleEndian.AppendUint64(row, uint64(change.TimeMicros))
	row = append32(append32(append32(row, change.TTL), links[0]), links[1])
	image := operation == PreImage || operation == PostImage
	interest, data, cells, tags, seen := h.interests[table.ID], []byte{}, []cell{}, []byte{}, 0
	for i, column := range table.Columns {
		one := cell{tag: Unchanged}
		if value, ok := columns[column.Name]; ok {
			seen++
			one.tag = Null
			if value != nil {
				bytes, err := encode(column.parsed.logged(), column.parsed, value)
				if err != nil {
					return nil, nil, errors.New("column " + column.Name + ": " + err.Error())
				}
				if one = (cell{Value, bytes}); column.parsed.isMultiCell() && !image {
					one.tag = Replaced
				}
			}
		}
		cells = append(cells, one)
		wanted := interest.kind == 1
		for _, index := range interest.columns {
			wanted = wanted || int(index) == i
		}
		if !wanted {
			one = cell{}
		}
		data = append(data, one.bytes...)
		row = append32(row, uint32(len(data)))
		tags = append(tags, byte(one.tag))
	}
	if seen < len(columns) {
		return nil, nil, errors.New("a column that " + table.Keyspace + "." + table.Name + " does not have")
	}
	return append(append(row, tags...), data...), cells, nil
}

// encode writes a value in its binary form; `of` is the type as it is declared, whose lists the log has by timeuuids.
func encode(t, of *cqlType, value any) ([]byte, error) {
	sized := func(into []byte, t *cqlType, value any) ([]byte, error) {
		if value == nil {
			return binary.BigEndian.AppendUint32(into, math.MaxUint32), nil
		}
		bytes, err := encode(t, t, value)
		return append(binary.BigEndian.AppendUint32(into, uint32(len(bytes))), bytes...), err
	}
	all := func(into []byte, types func(int) *cqlType, values ...any) (_ []byte, err error) {
		for i, value := range values {
			if into, err = sized(into, types(i), value); err != nil {
				return nil, err
			}
		}
		return into, nil
	}
	wrong := errors.New("no value of type " + of.name + ": give its bytes")
	switch value := value.(type) {
	case []byte:
		return value, nil
	case string:
		switch t.name {
		case "text", "ascii", "varchar":
			return []byte(value), nil
		case "uuid", "timeuuid":
			var id []byte
			hex := strings.ReplaceAll(value, "-", "")
			for i := 0; i+2 <= len(hex); i += 2 {
				b, err := strconv.ParseUint(hex[i:i+2], 16, 8)
				if err != nil {
					return nil, err
				}
				id = append(id, byte(b))
			}
			return id, nil
		}
	case bool:
		return []byte{map[bool]byte{true: 1}[value]}, nil
	case int:
		return encode(t, of, int64(value))
	case Timestamp:
		return encode(t, of, int64(value))
	case int64:
		switch size := t.fixed(); {
		case t.name == "double":
			return encode(t, of, float64(value))
		case t.name == "float":
			return encode(t, of, float32(value))
		case t.name == "varint":
			return binary.BigEndian.AppendUint64(nil, uint64(value)), nil
		case size > 0 && size <= 8:
			return binary.BigEndian.AppendUint64(nil, uint64(value))[8-size:], nil
		}
	case float32:
		return binary.BigEndian.AppendUint32(nil, math.Float32bits(value)), nil
	case float64:
		if t.name == "float" {
			return encode(t, of, float32(value))
		}
		return binary.BigEndian.AppendUint64(nil, math.Float64bits(value)), nil
	case List:
		switch {
		case of.name == "list" && !of.frozen && t.name == "map":
			into := binary.BigEndian.AppendUint32(nil, uint32(len(value)))
			for i, one := range value {
				id := binary.BigEndian.AppendUint32(nil, uint32(i))
				id = append(id, 0, 0, 0x10, 0, 0x80, 0, 0, 0, 0, 0, 0, 7)
				bytes, err := all(into, func(i int) *cqlType { return t.parts[i] }, id, one)
				if err != nil {
					return nil, err
				}
				into = bytes
			}
			return into, nil
		case t.name == "list" || t.name == "set":
			into := binary.BigEndian.AppendUint32(nil, uint32(len(value)))
			return all(into, func(int) *cqlType { return t.parts[0] }, value...)
		case t.name == "tuple" && len(value) <= len(t.parts):
			return all(nil, func(i int) *cqlType { return t.parts[i] }, value...)
		}
	case Map:
		into := binary.BigEndian.AppendUint32(nil, uint32(len(value)))
		for _, entry := range value {
			bytes, err := all(into, func(i int) *cqlType { return t.parts[i] }, entry.Key, entry.Value)
			if err != nil {
				return nil, err
			}
			into = bytes
		}
		return into, nil
	case UDT:
		values := []any{}
		for _, name := range t.names {
			values = append(values, value.Get(name))
		}
		return all(nil, func(i int) *cqlType { return t.parts[i] }, values...)
	}
	return nil, wrong
}

// outcomes reads what the transform made.
func outcomes(out []byte, rows [][]cell) []Outcome {
	entries, at, topics, made := le32(out), 4, []string{}, []Outcome{}
	some := func(n int) []byte { at += n; return out[at-n : at] }
	field := func() []byte {
		switch some(1)[0] {
		case 1:
			return some(int(le32(some(4))))
		case 2, 3:
			row := le32(some(4))
			if cell := rows[row][le16(some(2))]; cell.tag == Value || cell.tag == Replaced {
				return cell.bytes
			}
		}
		return nil
	}
	for ; entries > 0; entries-- {
		kind := some(1)[0]
		if kind == 0 {
			topics = append(topics, string(some(int(le16(some(2))))))
			continue
		}
		some(4)
		one := Outcome{Forwarded: kind == 2, Dropped: kind == 3}
		switch kind {
		case 1:
			one.Topic, one.Headers = topics[le16(some(2))], map[string][]byte{}
			for parts := le16(some(2)); parts > 0; parts-- {
				switch some(1)[0] {
				case 0:
					one.Key = field()
				case 1:
					one.Value = field()
				default:
					name := string(some(int(le16(some(2)))))
					one.Headers[name] = field()
				}
			}
		case 4:
			one.Error = string(some(int(le32(some(4)))))
		case 5:
			one.Retry = string(some(int(le32(some(4)))))
		}
		made = append(made, one)
	}
	if len(made) == 0 {
		made = append(made, Outcome{Dropped: true})
	}
	return made
}
