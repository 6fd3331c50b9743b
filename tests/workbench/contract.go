// The contract's transform in Go: see contract.toml.
package main

import (
	"errors"
	"strconv"

	"contract/penstock"
)

func init() {
	penstock.Register(penstock.About{
		Name:     "contract",
		Version:  "0.1.0",
		Doc:      "Does what a change says.",
		Settings: []penstock.Setting{{Name: "topic", Default: "out", Doc: "where to"}},
	}, configure)
}

type transform struct {
	topic string
	hoard [][]byte
}

func configure(settings penstock.Settings) (penstock.Transform, error) {
	topic := settings.Get("topic", "out")
	if topic == "refuse me" {
		return nil, errors.New("asked to refuse the settings")
	}
	return &transform{topic: topic}, nil
}

func (t *transform) Interest(table *penstock.Table) (penstock.Interest, error) {
	if table.Index("what") < 0 {
		return penstock.None(), nil
	}
	return table.Only("what", "n", "at", "key", "flag"), nil
}

func (t *transform) Process(change *penstock.Change, out *penstock.Output) error {
	what, _ := change.Text("what")
	switch what {
	case "record":
		key, _ := change.Text("key")
		n, _ := change.Text("n")
		at, _ := change.Int("at")
		flag, _ := change.Text("flag")
		out.Record(t.topic).Key([]byte(key)).ValueColumn(change, "payload").Header("n", []byte(n)).
			Header("at", []byte(strconv.FormatInt(at, 10))).Header("flag", []byte(flag)).Header("op", []byte("insert"))
	case "nulls":
		out.Record(t.topic).Key(nil).Value(nil).Header("empty", []byte{})
	case "images":
		before, _ := change.Preimage().Text("n")
		after, _ := change.Postimage().Text("n")
		out.Record(t.topic).Value([]byte(before + " " + after))
	case "drop":
		out.Drop()
	case "forward":
		out.Forward()
	case "error":
		out.Record("taken back")
		return errors.New("asked to refuse")
	case "retry":
		out.Record("taken back")
		return penstock.Retry(errors.New("asked to wait"))
	case "panic":
		panic("asked to panic")
	case "twice":
		out.Record(t.topic).Key([]byte("1"))
		out.Record("other").Key([]byte("2"))
	case "loop":
		for n := 0; ; n++ {
			t.topic = strconv.Itoa(n)
		}
	case "memory":
		for {
			t.hoard = append(t.hoard, make([]byte, 1<<20))
		}
	}
	return nil
}

func main() {}
