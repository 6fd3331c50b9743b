//go:build !wasm

package main

import (
	"testing"

	"plugins.local/{name}/penstock"
)

// Without a host: `go test`. The golden cases in `cases` run the built plugin.
func TestNamedWordsAreLetGoOf(t *testing.T) {
	h, err := penstock.NewHarness(penstock.Settings{"drop": "order.cancelled"})
	if err != nil {
		t.Fatal(err)
	}
	outbox, err := h.Table("shop.outbox", "id uuid primary, event_type text")
	if err != nil {
		t.Fatal(err)
	}
	for word, dropped := range map[string]bool{"order.cancelled": true, "order.created": false} {
		got, err := h.Run(outbox, penstock.TestChange{Columns: penstock.Values{"event_type": word}})
		if err != nil || len(got) != 1 || got[0].Dropped != dropped || got[0].Forwarded == dropped {
			t.Errorf("%s: %+v, %v", word, got, err)
		}
	}
}

func TestAnUnknownSettingIsRefused(t *testing.T) {
	if _, err := penstock.NewHarness(penstock.Settings{"dorp": "x"}); err == nil {
		t.Error("it is taken")
	}
}
