"""The SDK for transforms in Python: what a transform is handed, and what it makes of it.

    class MyFilter:
        def __init__(self, settings): ...             # an instance of its settings; an exception refuses them
        def interest(self, table): return table.all()  # which columns of a table it wants
        def process(self, change, out): ...            # an exception refuses this change and no other

    Transform, Description = plugin(MyFilter, name="my-filter", version="0.1.0", doc="…", settings=[Setting(…)])
"""

import json
import struct
from dataclasses import dataclass, field
from typing import Any

try:
    from componentize_py_types import Err
    from wit_world.exports import description as wit_description
    from wit_world.imports import host, types
except ImportError:
    # Unit tests have no host: see `testing`.
    from ._native import Err, host, types
    from ._native import description as wit_description

from . import cql

UNSENT, UNCHANGED, NULL, VALUE, REPLACED, REMOVED, MERGED = range(7)

OPERATIONS = {
    -4: "ttl-partition-delete",
    -3: "ttl-row-delete",
    0: "preimage",
    1: "update",
    2: "insert",
    3: "row-delete",
    4: "partition-delete",
    5: "range-delete-start-inclusive",
    6: "range-delete-start-exclusive",
    7: "range-delete-end-inclusive",
    8: "range-delete-end-exclusive",
    9: "postimage",
}
LINKED = {0, 7, 8, 9}


class Error(Exception):
    """Refuses a change, or the settings, with these words and nothing else."""


class Retry(Exception):
    """Not yet: the change, and all after it, is handed out again later."""


@dataclass
class Setting:
    """Describes a setting. `kind`: text, integer, number, boolean, texts, table."""

    name: str
    doc: str = ""
    kind: str = "text"
    default: str | None = None
    required: bool = False
    choices: list = field(default_factory=list)


class Settings(dict):
    """The settings by name, as texts; what is no text in pipeline.toml is in its JSON form."""

    def texts(self, name):
        """A list of the file, or one text with commas."""
        text = self.get(name, "").strip()
        if text.startswith("["):
            return json.loads(text)
        return [one.strip() for one in text.split(",") if one.strip()]


@dataclass
class Elements:
    """What happened to the elements of a non-frozen collection or UDT."""

    replaced: bool  # The old ones are gone: `added` is all there is.
    added: Any = None  # A list's by timeuuid.
    removed: Any = None  # Elements, keys, a list's timeuuids or a UDT's field numbers.


class Table:
    """One version of a table's shape. Records of a transform before this one are rows of `penstock.record`."""

    def __init__(self, table):
        self.id, self.keyspace, self.name = table.id, table.keyspace, table.name
        self.columns = table.columns
        self.index = {column.name: at for at, column in enumerate(table.columns)}
        self._types = {}

    def type(self, name):
        """The type of a column."""
        found = self._types.get(name)
        if found is None:
            found = self._types[name] = cql.parse(self.columns[self.index[name]].cql_type)
        return found

    def is_records(self):
        return (self.keyspace, self.name) == ("penstock", "record")

    def none(self):
        """The table passes by."""
        return types.Interest_Ignore()

    def all(self):
        return types.Interest_All()

    def only(self, *names):
        """These columns, of those that there are."""
        return types.Interest_Columns([self.index[name] for name in names if name in self.index])


HEAD = struct.Struct("<bBHIqIII")


class Change:
    """One change, or an image or an end of a range that is reached through one."""

    __slots__ = ("_rows", "_at", "_ncols", "row", "table", "time_us", "ttl", "_op", "_flags", "_before", "_end")

    def __init__(self, rows, row, table):
        self._rows, self.row, self.table, self._at = rows, row, table, rows.starts[row]
        op, self._flags, self._ncols, _, self.time_us, self.ttl, self._before, self._end = HEAD.unpack_from(
            rows.batch, self._at
        )
        self._op = op

    @property
    def operation(self):
        return OPERATIONS[self._op]

    @property
    def is_late(self):
        """It came behind what had been read already."""
        return bool(self._flags & 4)

    @property
    def is_preimage_missing(self):
        """The log has a preimage of it that could not be sent."""
        return bool(self._flags & 8)

    @property
    def is_end_missing(self):
        """The log has a postimage of it, or the end of its range, that could not be sent."""
        return bool(self._flags & 16)

    def _linked(self, link):
        return Change(self._rows, link - 1, self.table) if 0 < link <= len(self._rows.starts) else None

    @property
    def preimage(self):
        return self._linked(self._before)

    @property
    def postimage(self):
        end = self._linked(self._end)
        return end if end is not None and end._op == 9 else None

    @property
    def range_end(self):
        end = self._linked(self._end)
        return end if end is not None and end._op != 9 else None

    def column(self, name):
        """What the change says of a column, and the bytes of its value."""
        index = self.table.index.get(name)
        if index is None or index >= self._ncols:
            return UNSENT, b""
        batch, ends = self._rows.batch, self._at + HEAD.size
        data = ends + 5 * self._ncols
        (end,) = struct.unpack_from("<I", batch, ends + 4 * index)
        start = struct.unpack_from("<I", batch, ends + 4 * index - 4)[0] if index else 0
        return batch[ends + 4 * self._ncols + index], batch[data + start : data + end]

    def _told(self, name):
        """Like `column`, but what was not asked for is no null."""
        tag, value = self.column(name)
        if tag == UNSENT and name in self.table.index:
            raise Error(f"column `{name}` of {self.table.keyspace}.{self.table.name} was not declared in the interest")
        return tag, value

    def _is_image(self):
        return self._op in (0, 9)

    def _read(self, name, work):
        try:
            return work(self.table.type(name))
        except cql.Invalid as error:
            raise Error(f"column `{name}` of {self.table.keyspace}.{self.table.name}: {error}")

    def is_set(self, name):
        """Whether it has a value in this change."""
        return self._told(name)[0] in (VALUE, REPLACED, MERGED)

    def is_null(self, name):
        return self._told(name)[0] == NULL

    def bytes(self, name):
        """The value in its binary form; None where the change sets none."""
        tag, value = self._told(name)
        return value if tag in (VALUE, REPLACED) else None

    def get(self, name):
        """The value of a column, of any type (see `cql`); None where the change sets none, or null, and where there is no such
        column. Of a non-frozen collection or UDT to which elements were added: those; `elements` says all."""
        tag, value = self._told(name)
        if tag not in (VALUE, REPLACED):
            return None

        def work(t):
            if t.is_multi_cell() and tag == VALUE and not self._is_image():
                return cql.read(t.logged(), value)
            return cql.whole(t, value)

        return self._read(name, work)

    def elements(self, name):
        """What happened to the elements of a non-frozen collection or UDT; None: nothing."""
        tag, value = self._told(name)
        if tag in (UNSENT, UNCHANGED):
            return None

        def work(t):
            added, removed = self._parts(tag, value)
            return Elements(
                tag in (NULL, REPLACED),
                None if added is None else cql.read(t.logged(), added),
                None if removed is None else cql.read(t.removed(), removed),
            )

        return self._read(name, work)

    @staticmethod
    def _parts(tag, value):
        if tag == MERGED:
            size = int.from_bytes(value[:4], "little")
            if len(value) < 4 + size:
                raise cql.Invalid("truncated")
            return value[4 : 4 + size], value[4 + size :]
        return (value if tag in (VALUE, REPLACED) else None), (value if tag == REMOVED else None)

    def json(self, name):
        """What the change says of a column, in the JSON form in which changes are rendered, as a text; None: nothing."""
        tag, value = self._told(name)
        if tag in (UNSENT, UNCHANGED):
            return None
        if tag == NULL:
            return "null"

        def work(t):
            if tag not in (REMOVED, MERGED) and (tag == REPLACED or self._is_image() or not t.is_multi_cell()):
                return cql.whole(t, value, cql.Json)
            added, removed = self._parts(tag, value)
            said = [] if added is None else [f'"added":{cql.read(t.logged(), added, cql.Json)}']
            if removed is not None:
                said.append(f'"removed":{cql.read(t.removed(), removed, cql.Json)}')
            return f"{{{','.join(said)}}}"

        return self._read(name, work)

    def text(self, name):
        """The value as a text: text as it is, all else in its JSON form, without quotes."""
        tag, _ = self._told(name)
        if tag not in (VALUE, REPLACED):
            return None
        if self.table.type(name).name in ("text", "ascii", "varchar"):
            return self.get(name)
        return self.json(name).strip('"')

    def ref(self, name):
        """Names the bytes of a column for a record: nobody copies them, and they need not have been sent."""
        column = self.table.index.get(name)
        if column is None:
            raise Error(f"{self.table.keyspace}.{self.table.name} has no column `{name}`")
        return Ref(self.row, column)

    def ref_or_null(self, name):
        """Likewise, and null where the change does not set the column."""
        ref = self.ref(name)
        return Ref(ref.row, ref.column, True)


class Rows:
    def __init__(self, batch):
        self.batch, self.starts, at = batch, [], 4
        for _ in range(int.from_bytes(batch[:4], "little")):
            self.starts.append(at + 4)
            at += 4 + int.from_bytes(batch[at : at + 4], "little")


class Output:
    """Takes what a transform makes of the change at hand. Writing nothing drops it."""

    def __init__(self):
        self.buf, self.entries, self.topics, self.source = bytearray(4), 0, {}, 0

    def _entry(self, kind, rest=b""):
        self.entries += 1
        self.buf += struct.pack("<BI", kind, self.source) + rest

    def record(self, topic, key=None, value=None, headers=None):
        """A record; keys, values and headers are bytes, text, a `change.ref(…)` or None. A change may make several."""
        number = self.topics.get(topic)
        if number is None:
            number = self.topics[topic] = len(self.topics)
            self.entries += 1
            self.buf += b"\0" + _name(topic)
        headers = headers or {}
        self._entry(1, struct.pack("<HH", number, 2 + len(headers)))
        self.buf += b"\0" + _field(key) + b"\1" + _field(value)
        for name, one in headers.items():
            self.buf += b"\2" + _name(name) + _field(one)

    def forward(self):
        """Hands the change on unchanged."""
        self._entry(2)

    def drop(self):
        """Lets go of the change; the same as writing nothing, but said."""
        self._entry(3)

    def _message(self, kind, text):
        text = text.encode()
        self._entry(kind, struct.pack("<I", len(text)) + text)


@dataclass
class Ref:
    """Names the bytes of a column, which nobody copies and which need not have been sent."""

    row: int
    column: int
    or_null: bool = False  # Null where the change does not set it.


def _name(text):
    text = text.encode()
    if len(text) > 0xFFFF:
        raise ValueError("a topic's or a header's name has less than 64 KiB")
    return struct.pack("<H", len(text)) + text


def _field(value):
    if value is None:
        return b"\0"
    if isinstance(value, Ref):
        return struct.pack("<BIH", 3 if value.or_null else 2, value.row, value.column)
    if isinstance(value, str):
        value = value.encode()
    elif not isinstance(value, (bytes, bytearray, memoryview)):
        # `bytes(5)` would be five zeros.
        raise TypeError(f"a key, a value or a header is a str, bytes, a ref or None, and no {type(value).__name__}")
    return struct.pack("<BI", 1, len(value)) + value


def log(level, text):
    """Writes to Penstock's log: error, warn, info, debug."""
    host.log(types.Level[level.upper()], text)


HERE = __file__.removesuffix("__init__.py")
ROOT = HERE.removesuffix("penstock/")


def _is_authors(file):
    return file.startswith(ROOT) and "site-packages" not in file or not file.startswith(("/", "<"))


def _said(error):
    if isinstance(error, Error):
        return str(error)
    # By hand: the module `traceback` reads sources, and there are no files.
    place, at = "", error.__traceback__
    while at is not None:
        file = at.tb_frame.f_code.co_filename
        # The last that is the author's: what it called fails for that.
        if _is_authors(file) and not file.startswith(HERE):
            place = f" at {file.rsplit('/', 1)[-1]}:{at.tb_lineno}"
        at = at.tb_next
    return f"{type(error).__name__}{place}: {error}"


def plugin(transform, name, version="0.1.0", doc="", settings=()):
    """The two exports of a plugin."""
    state = {}

    def check(given):
        known = {s.name for s in settings}
        for one in given:
            if one not in known:
                raise Error(f"unknown setting `{one}`")
        for s in settings:
            if s.required and s.name not in given:
                raise Error(f"setting `{s.name}` is missing")

    class Transform:
        def configure(self, given):
            given = Settings((s.key, s.value) for s in given)
            try:
                check(given)
                state["transform"], state["tables"] = transform(given), {}
            except Exception as error:
                raise Err(_said(error))
            return types.Info(name, version, 2)

        def open_table(self, table):
            table = Table(table)
            try:
                interest = state["transform"].interest(table)
            except Exception as error:
                raise Err(_said(error))
            state["tables"][table.id] = table
            return interest

        def process(self, batch):
            rows, out = Rows(batch), Output()
            work, tables = state["transform"], state["tables"]
            for row, at in enumerate(rows.starts):
                op, flags, _, table = struct.unpack_from("<bBHI", batch, at)
                if op in LINKED or flags & 1:
                    continue
                out.source = row
                mark = len(out.buf), out.entries, len(out.topics)
                try:
                    work.process(Change(rows, row, tables[table]), out)
                    continue
                except Exception as error:
                    failed = error
                # What was written for it is taken back.
                del out.buf[mark[0] :]
                out.entries = mark[1]
                out.topics = dict(list(out.topics.items())[: mark[2]])
                if isinstance(failed, Retry):
                    out._message(5, str(failed))
                    break
                said = _said(failed)
                if not isinstance(failed, Error):
                    log("error", said)
                out._message(4, said)
            out.buf[:4] = struct.pack("<I", out.entries)
            return bytes(out.buf)

    class Description:
        def describe(self):
            kind = wit_description.SettingType
            all = [
                wit_description.SettingAbout(
                    s.name, kind[s.kind.upper()], s.default, s.required, s.doc, list(s.choices)
                )
                for s in settings
            ]
            return wit_description.About("python {version}", doc, all, False)

    return Transform, Description
