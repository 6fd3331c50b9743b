//go:build wasm

package penstock

// The canonical ABI of `penstock:plugin` (penstock.wit), by hand: Go has no generator for components without more tools.

import (
	"runtime"
	"strconv"
	"strings"
	"unsafe"
)

//go:wasmimport penstock:plugin/host@0.1.0 log
func hostLog(level uint32, text unsafe.Pointer, size uint32)

//go:wasmimport wasi_snapshot_preview1 proc_exit
func exit(code int32)

// Log writes a line to Penstock's log.
func Log(level Level, text string) {
	if text != "" {
		hostLog(uint32(level), unsafe.Pointer(unsafe.StringData(text)), uint32(len(text)))
	}
}

var (
	transform Transform
	tables    = map[uint32]*Table{}
	// What the host wrote into our memory for the call at hand, and what it reads of the last one: kept from the collector.
	given [][]byte
	// Words, so that it is aligned.
	area [4]uint64
	kept []any
	buf  []byte
)

//go:wasmexport cabi_realloc
func realloc(old unsafe.Pointer, oldSize, align, size uint32) unsafe.Pointer {
	if size == 0 {
		return unsafe.Pointer(&area)
	}
	// Words, so that every alignment of the contract holds.
	words := make([]uint64, (size+7)/8)
	bytes := unsafe.Slice((*byte)(unsafe.Pointer(unsafe.SliceData(words))), size)
	if oldSize > 0 {
		copy(bytes, unsafe.Slice((*byte)(old), oldSize))
	}
	given = append(given, bytes)
	return unsafe.Pointer(unsafe.SliceData(bytes))
}

// begin forgets the call before, end what this one was given. A panic is said with its place, and ends the instance.
func begin() { kept, area = kept[:0], [4]uint64{} }

func end() {
	clear(given)
	given = given[:0]
	if said := recover(); said != nil {
		Log(Error, "panicked at "+place()+": "+describe(said))
		exit(2)
	}
}

func describe(said any) string {
	switch said := said.(type) {
	case error:
		return said.Error()
	case string:
		return said
	case interface{ String() string }:
		return said.String()
	case int:
		return strconv.Itoa(said)
	}
	return "a value that is no text"
}

// place finds the first line of the panic that is the author's: what it called failed for that.
func place() string {
	var calls [64]uintptr
	frames := runtime.CallersFrames(calls[:runtime.Callers(3, calls[:])])
	for {
		frame, more := frames.Next()
		if isAuthors(frame.Function) {
			file := frame.File
			if at := strings.LastIndexByte(file, '/'); at >= 0 {
				file = file[at+1:]
			}
			return file + ":" + strconv.Itoa(frame.Line)
		}
		if !more {
			return "an unknown place"
		}
	}
}

// isAuthors tells whether a function is of the project: of its main package, or of one beside ours.
func isAuthors(function string) bool {
	pc, _, _, _ := runtime.Caller(0)
	module, _, _ := strings.Cut(runtime.FuncForPC(pc).Name(), "/penstock.")
	ours := strings.HasPrefix(function, module+"/penstock.")
	return strings.HasPrefix(function, "main.") || strings.HasPrefix(function, module+"/") && !ours
}

func put8(at int, value uint8) {
	*(*uint8)(unsafe.Add(unsafe.Pointer(&area), at)) = value
}

func put32(at int, value uint32) {
	*(*uint32)(unsafe.Add(unsafe.Pointer(&area), at)) = value
}

func putText(at int, text string) {
	kept = append(kept, text)
	put32(at, address(unsafe.Pointer(unsafe.StringData(text))))
	put32(at+4, uint32(len(text)))
}

func result() unsafe.Pointer { return unsafe.Pointer(&area) }

func fail(at int, err error) unsafe.Pointer {
	put8(0, 1)
	putText(at, err.Error())
	return result()
}

// text copies what the host wrote: its memory is let go of.
func text(at unsafe.Pointer, size uint32) string {
	return string(unsafe.Slice((*byte)(at), size))
}

// An address in memory has 32 bits; a pointer of Go has 64 there.
func address(at unsafe.Pointer) uint32 { return uint32(uintptr(at)) }

func pointer(address uint32) unsafe.Pointer { return unsafe.Add(nil, address) }

type wireText struct{ at, size uint32 }

func (w wireText) text() string { return text(pointer(w.at), w.size) }

type wireSetting struct{ key, value wireText }

//go:wasmexport penstock:plugin/transform@0.1.0#configure
func exportConfigure(settings unsafe.Pointer, n uint32) unsafe.Pointer {
	begin()
	defer end()
	all := Settings{}
	for _, s := range unsafe.Slice((*wireSetting)(settings), n) {
		all[s.key.text()] = s.value.text()
	}
	if err := about.check(all); err != nil {
		return fail(4, err)
	}
	made, err := configure(all)
	if err != nil {
		return fail(4, err)
	}
	transform = made
	putText(4, about.Name)
	putText(12, about.Version)
	put8(20, 2) // The version of the encoding.
	return result()
}

type wireColumn struct {
	name, cqlType wireText
	kind          uint8
}

//go:wasmexport penstock:plugin/transform@0.1.0#open-table
func exportOpenTable(id uint32, keyspace unsafe.Pointer, keyspaceSize uint32, name unsafe.Pointer, nameSize uint32, columns unsafe.Pointer, n uint32) unsafe.Pointer {
	begin()
	defer end()
	table := &Table{ID: id, Keyspace: text(keyspace, keyspaceSize), Name: text(name, nameSize)}
	for _, c := range unsafe.Slice((*wireColumn)(columns), n) {
		table.Columns = append(table.Columns, Column{
			Name: c.name.text(),
			Type: c.cqlType.text(),
			Kind: ColumnKind(c.kind),
		})
	}
	interest, err := transform.Interest(table)
	if err != nil {
		return fail(4, err)
	}
	tables[id] = table
	put8(4, interest.kind)
	if len(interest.columns) > 0 {
		kept = append(kept, interest.columns)
		put32(8, address(unsafe.Pointer(unsafe.SliceData(interest.columns))))
	} else {
		put32(8, 8)
	}
	put32(12, uint32(len(interest.columns)))
	return result()
}

//go:wasmexport penstock:plugin/transform@0.1.0#process
func exportProcess(batch unsafe.Pointer, n uint32) unsafe.Pointer {
	begin()
	defer end()
	out, err := run(unsafe.Slice((*byte)(batch), n), transform, tables, buf)
	if err != nil {
		return fail(4, err)
	}
	// Its room is used again by the next batch, unless one was far larger than what is usual.
	buf = out
	if cap(out) > 4<<20 {
		buf = nil
		kept = append(kept, out)
	}
	put32(4, address(unsafe.Pointer(unsafe.SliceData(out))))
	put32(8, uint32(len(out)))
	return result()
}

type wireAbout struct {
	name       wireText
	kind       uint8
	_          [3]byte // An option is aligned as what it may hold.
	hasDefault uint8
	fallback   wireText
	required   uint8
	doc        wireText
	choices, n uint32
}

func wire(text string) wireText {
	kept = append(kept, text)
	return wireText{address(unsafe.Pointer(unsafe.StringData(text))), uint32(len(text))}
}

//go:wasmexport penstock:plugin/description@0.1.0#describe
func exportDescribe() unsafe.Pointer {
	begin()
	defer end()
	settings := make([]wireAbout, len(about.Settings))
	for i, s := range about.Settings {
		choices := make([]wireText, len(s.Choices))
		for j, choice := range s.Choices {
			choices[j] = wire(choice)
		}
		kept = append(kept, choices)
		one := wireAbout{name: wire(s.Name), kind: uint8(s.Kind), doc: wire(s.Doc), n: uint32(len(choices))}
		if one.choices = address(unsafe.Pointer(&area)); len(choices) > 0 {
			one.choices = address(unsafe.Pointer(unsafe.SliceData(choices)))
		}
		if s.Default != "" {
			one.hasDefault, one.fallback = 1, wire(s.Default)
		}
		if s.Required {
			one.required = 1
		}
		settings[i] = one
	}
	kept = append(kept, settings)
	putText(0, "go {version}")
	putText(8, about.Doc)
	at := unsafe.Pointer(&area)
	if len(settings) > 0 {
		at = unsafe.Pointer(unsafe.SliceData(settings))
	}
	put32(16, address(at))
	put32(20, uint32(len(settings)))
	return result()
}
