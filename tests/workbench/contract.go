// The contract's transform in Go: see contract.toml.
package main

import (
	"errors"
	"os"
	"strconv"
	"strings"
	"unsafe"

	"plugins.local/contract/penstock"
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
	if table.Name == "v" {
		return penstock.All(), nil
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
	case "or null":
		out.Record(t.topic).ValueColumnOrNull(change, "payload").Header("op", []byte(change.Operation().String()))
	case "nulls":
		out.Record(t.topic).Key(nil).Value(nil).Header("empty", []byte{})
	case "images":
		before, _ := change.Preimage().Text("n")
		after, _ := change.Postimage().Text("n")
		out.Record(t.topic).Value([]byte(before + " " + after))
	case "values":
		said, err := told(change)
		if err != nil {
			return err
		}
		for name, image := range map[string]*penstock.Change{"preimage": change.Preimage(), "postimage": change.Postimage()} {
			if image != nil {
				all, err := told(image)
				if err != nil {
					return err
				}
				said = append(said, `"`+name+`":{`+strings.Join(all, ",")+"}")
			}
		}
		out.Record(t.topic).Value([]byte("{" + strings.Join(said, ",") + "}"))
	case "typed":
		out.Record(t.topic).Value([]byte(typed(change)))
	case "drop":
		out.Drop()
	case "forward":
		out.Forward()
	case "error":
		out.Record("taken back")
		return errors.New("asked to refuse")
	case "retry":
		out.Record("taken back")
		return errors.Join(penstock.Retry(errors.New("asked to wait")))
	case "no column":
		out.Record("taken back").ValueColumn(change, "nowhere")
	case "long name":
		out.Record(strings.Repeat("x", 70_000))
	case "panic":
		panic("asked to panic")
	case "twice":
		out.Record(t.topic).Key([]byte("1"))
		out.Record("other").Key([]byte("2"))
	case "loop":
		for n := 0; ; n++ {
			t.topic = strconv.Itoa(n)
		}
	case "lie":
		// Its first field is what the host is handed.
		written := (*[]byte)(unsafe.Pointer(out))
		*written = append(*written, 1, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff)
	case "deep":
		out.Record(strconv.Itoa(deep(1)))
	case "exit":
		os.Exit(3)
	case "long error":
		return errors.New(strings.Repeat("long ", 1<<18))
	case "records":
		for {
			out.Record(t.topic).Value([]byte("much"))
		}
	case "talk":
		for n := range 1000 {
			penstock.Log(penstock.Info, "line "+strconv.Itoa(n))
		}
		out.Forward()
	case "memory":
		for {
			t.hoard = append(t.hoard, make([]byte, 1<<20))
		}
	}
	return nil
}

func deep(n int) int {
	return 1 + deep(n+1)
}

// told is what a row tells of its columns, in JSON.
func told(row *penstock.Change) (said []string, err error) {
	for _, column := range row.Table().Columns {
		if column.Name == "id" || column.Name == "what" {
			continue
		}
		value, err := row.JSON(column.Name)
		if err != nil {
			return nil, err
		}
		if value != "" {
			said = append(said, `"`+column.Name+`":`+value)
		}
	}
	return said, nil
}

// typed says what the values of the language are, in words.
func typed(change *penstock.Change) string {
	get := func(change *penstock.Change, name string) any {
		value, err := change.Value(name)
		if err != nil {
			panic(err)
		}
		return value
	}
	list := func(change *penstock.Change) string {
		if change == nil {
			return "none"
		}
		all := []string{}
		for _, one := range get(change, "l").(penstock.List) {
			all = append(all, one.(string))
		}
		return strings.Join(all, "+")
	}
	if change.IsNull("l") {
		m, _ := change.Elements("m")
		l, _ := change.Elements("l")
		return strconv.FormatBool(m.Replaced) + " " + strconv.Itoa(len(m.Added.(penstock.Map))) + " " +
			strconv.Itoa(len(m.Removed.(penstock.List))) + " " + strconv.FormatBool(l.Replaced)
	}
	st, m, mk := get(change, "st").(penstock.List), get(change, "m").(penstock.Map), get(change, "mk").(penstock.Map)
	sum := int64(0)
	for _, one := range st {
		sum += one.(int64)
	}
	return strings.Join([]string{
		list(change),
		strconv.FormatInt(sum, 10),
		penstock.JSON(m.Get("x")),
		strconv.Itoa(len(m)),
		get(change, "ad").(penstock.UDT).Get("street").(string),
		penstock.JSON(get(change, "tup").(penstock.List)[1]),
		strconv.Itoa(int(get(change, "vec").(penstock.List)[2].(float32))),
		penstock.JSON(mk[0].Value),
		strconv.FormatInt(get(change, "big").(int64), 10),
		strconv.FormatInt(int64(get(change, "ts").(penstock.Timestamp)), 10),
		string(get(change, "d").(penstock.Digits)),
		strconv.Itoa(len(get(change, "b").([]byte))),
		list(change.Preimage()),
	}, " ")
}

func main() {}
