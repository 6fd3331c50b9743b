// {about}.
package main

import "plugins.local/{name}/penstock"

func init() {
	penstock.Register(penstock.About{
		Name:    "{name}",
		Version: "0.1.0",
		Doc:     "{about}.",
		Settings: []penstock.Setting{
			{Name: "drop", Kind: penstock.Texts, Doc: "the words, e.g. [\"order.cancelled\"]"},
			{Name: "column", Default: "event_type", Doc: "the text column; tables without it pass by"},
		},
	}, configure)
}

type transform struct {
	drop   []string
	column string
}

// configure is called once for each instance. An error refuses the settings: what ran before goes on.
func configure(settings penstock.Settings) (penstock.Transform, error) {
	return &transform{
		drop:   settings.Texts("drop"),
		column: settings.Get("column", "event_type"),
	}, nil
}

// Interest is asked for each version of a table. The fewer columns are wanted, the less is copied.
func (t *transform) Interest(table *penstock.Table) (penstock.Interest, error) {
	if table.Index(t.column) < 0 {
		return penstock.None(), nil
	}
	return table.Only(t.column), nil
}

// Process is called for each change. An error sends this change, and no other, to the dead letters.
func (t *transform) Process(change *penstock.Change, out *penstock.Output) error {
	word, _ := change.Text(t.column)
	for _, drop := range t.drop {
		if word == drop {
			out.Drop()
			return nil
		}
	}
	out.Forward()
	return nil
}

func main() {}
