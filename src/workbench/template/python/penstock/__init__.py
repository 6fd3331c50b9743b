"""The SDK for transforms in Python: what a transform is handed, and what it makes of it.

    class MyFilter:
        def __init__(self, settings): ...             # an instance of its settings; an exception refuses them
        def interest(self, table): return table.all()  # which columns of a table it wants
        def process(self, change, out): ...            # an exception refuses this change and no other

    Transform, Description = plugin(MyFilter, name="my-filter", version="0.1.0", doc="…", settings=[Setting(…)])
"""

import json
import struct
import uuid
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone

from componentize_py_types import Err
from wit_world.exports import description as wit_description
from wit_world.imports import host, types

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


class Table:
    """One version of a table's shape. Records of a transform before this one are rows of `penstock.record`."""

    def __init__(self, table):
        self.id, self.keyspace, self.name = table.id, table.keyspace, table.name
        self.columns = table.columns
        self.index = {column.name: at for at, column in enumerate(table.columns)}

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
        return bool(self._flags & 4)

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

    def is_null(self, name):
        return self.column(name)[0] == NULL

    def bytes(self, name):
        """The value in its binary form; None where the change sets none."""
        tag, value = self.column(name)
        return value if tag in (VALUE, REPLACED) else None

    def get(self, name):
        """The value of a column of a scalar type: text, numbers, booleans, UUIDs, timestamps; bytes of any other."""
        value = self.bytes(name)
        if value is None:
            return None
        return decode(self.table.columns[self.table.index[name]].cql_type, value)

    def text(self, name):
        value = self.get(name)
        return value if value is None or isinstance(value, str) else str(value)


def decode(cql_type, value):
    if cql_type in ("text", "ascii", "varchar"):
        return value.decode()
    if cql_type in ("tinyint", "smallint", "int", "bigint", "counter", "varint"):
        return int.from_bytes(value, "big", signed=True)
    if cql_type == "boolean":
        return value != b"\0"
    if cql_type in ("float", "double"):
        return struct.unpack(">f" if cql_type == "float" else ">d", value)[0]
    if cql_type in ("uuid", "timeuuid"):
        return str(uuid.UUID(bytes=value))
    if cql_type == "timestamp":
        ms = int.from_bytes(value, "big", signed=True)
        return datetime(1970, 1, 1, tzinfo=timezone.utc) + timedelta(milliseconds=ms)
    return value


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
            number, name = len(self.topics), topic.encode()
            self.topics[topic] = number
            self.entries += 1
            self.buf += struct.pack("<BH", 0, len(name)) + name
        headers = headers or {}
        self._entry(1, struct.pack("<HH", number, 2 + len(headers)))
        self.buf += b"\0" + _field(key) + b"\1" + _field(value)
        for name, one in headers.items():
            name = name.encode()
            self.buf += struct.pack("<BH", 2, len(name)) + name + _field(one)

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


def ref(change, name):
    return Ref(change.row, change.table.index[name])


def _field(value):
    if value is None:
        return b"\0"
    if isinstance(value, Ref):
        return struct.pack("<BIH", 2, value.row, value.column)
    value = value.encode() if isinstance(value, str) else bytes(value)
    return struct.pack("<BI", 1, len(value)) + value


def log(level, text):
    """Writes to Penstock's log: error, warn, info, debug."""
    host.log(types.Level[level.upper()], text)


def _said(error):
    if isinstance(error, Error):
        return str(error)
    # By hand: the module `traceback` reads sources, and there are no files.
    place, at = "", error.__traceback__
    while at is not None:
        file = at.tb_frame.f_code.co_filename
        if "penstock" not in file:
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
            return types.Info(name, version, 1)

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
