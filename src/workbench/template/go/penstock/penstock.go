// Package penstock is the SDK for transforms in Go: what a transform is handed, and what it makes of it. The bytes
// between host and guest are its business (abi.go, rows.go, output.go), not an author's.
//
//	func init() {
//		penstock.Register(penstock.About{Doc: "…"}, func(s penstock.Settings) (penstock.Transform, error) { … })
//	}
//
//	func main() {}
package penstock

import (
	"errors"
	"strconv"
	"strings"
)

// Transform is what an author writes. One instance serves one shard, a change at a time; after a fault or a swap there
// is a new one, so what it keeps is a cache.
type Transform interface {
	// Interest says which columns of a table are wanted: All, None, or Columns of it.
	Interest(table *Table) (Interest, error)
	// Process makes what it wants of a change. An error refuses this change and no other; Retry(err) asks for it
	// again later, with all that comes after it.
	Process(change *Change, out *Output) error
}

// About describes a transform.
type About struct {
	// Name and Version are what the plugin says that it is; Doc is a sentence.
	Name, Version, Doc string
	Settings           []Setting
}

// Setting describes one setting.
type Setting struct {
	Name     string
	Kind     Kind
	Default  string // empty: none
	Required bool
	Doc      string
	Choices  []string
}

// Kind is what the text of a setting is read as.
type Kind uint8

// The kinds of settings. Texts is a list, or one text with commas.
const (
	Text Kind = iota
	Integer
	Number
	Boolean
	Texts
	TableOf
)

// Settings are the settings of pipeline.toml, as texts; what is no text there is in its JSON form.
type Settings map[string]string

// Get returns the text of a setting, or another one where it is not set.
func (s Settings) Get(name, otherwise string) string {
	if text, ok := s[name]; ok {
		return text
	}
	return otherwise
}

// Texts returns a list: of the file, or one text with commas.
func (s Settings) Texts(name string) []string {
	text := strings.TrimSpace(s[name])
	if inner, ok := strings.CutPrefix(text, "["); ok {
		var all []string
		rest := strings.TrimSuffix(inner, "]")
		for rest = strings.TrimSpace(rest); rest != ""; rest = strings.TrimSpace(strings.TrimPrefix(rest, ",")) {
			quoted, err := strconv.QuotedPrefix(rest)
			if err != nil {
				return all
			}
			one, _ := strconv.Unquote(quoted)
			all = append(all, one)
			rest = strings.TrimSpace(rest[len(quoted):])
		}
		return all
	}
	var all []string
	for _, one := range strings.Split(text, ",") {
		if one = strings.TrimSpace(one); one != "" {
			all = append(all, one)
		}
	}
	return all
}

// check refuses settings that the description does not have.
func (a *About) check(settings Settings) error {
	for name := range settings {
		known := false
		for _, s := range a.Settings {
			known = known || s.Name == name
		}
		if !known {
			return errors.New("unknown setting `" + name + "`")
		}
	}
	for _, s := range a.Settings {
		if _, ok := settings[s.Name]; s.Required && !ok {
			return errors.New("setting `" + s.Name + "` is missing")
		}
	}
	return nil
}

// ColumnKind is what a column is in its table.
type ColumnKind uint8

// The kinds of columns.
const (
	PartitionKey ColumnKind = iota
	ClusteringKey
	StaticColumn
	Regular
)

// Column is a column of a table; Type is in CQL notation.
type Column struct {
	Name, Type string
	Kind       ColumnKind
	parsed     *cqlType
}

// Table is one version of a table's shape. Records of a transform before this one are rows of `penstock.record`: topic,
// key, value, headers.
type Table struct {
	ID             uint32
	Keyspace, Name string
	Columns        []Column
}

// IsRecords tells whether its rows are records of a transform before this one.
func (t *Table) IsRecords() bool { return t.Keyspace == "penstock" && t.Name == "record" }

// Index finds a column; -1: there is none.
func (t *Table) Index(name string) int {
	for i := range t.Columns {
		if t.Columns[i].Name == name {
			return i
		}
	}
	return -1
}

// Interest is what of a table is sent.
type Interest struct {
	kind    uint8
	columns []uint16
}

// None lets a table pass by.
func None() Interest { return Interest{kind: 0} }

// All sends every column.
func All() Interest { return Interest{kind: 1} }

// Only sends these columns, by name, of those that there are.
func (t *Table) Only(names ...string) Interest {
	interest := Interest{kind: 2}
	for _, name := range names {
		if i := t.Index(name); i >= 0 {
			interest.columns = append(interest.columns, uint16(i))
		}
	}
	return interest
}

// Level is how much a line of the log matters.
type Level uint32

// The levels.
const (
	Error Level = iota
	Warn
	Info
	Debug
)

type retry struct{ error }

func (r retry) Unwrap() error { return r.error }

// Retry makes an error that says "not yet": the change, and all after it, is handed out again later. Errors that wrap it say
// so, too. Retry(nil) is nil.
func Retry(err error) error {
	if err == nil {
		return nil
	}
	return retry{err}
}

var (
	about     About
	configure func(Settings) (Transform, error)
)

// Register says what the plugin is. To be called once, from an init.
func Register(a About, make func(Settings) (Transform, error)) {
	about, configure = a, make
}
