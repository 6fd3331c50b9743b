"""Runs a transform natively, in a unit test: no host, no component.

    from app import Transform
    from penstock.testing import Harness

    harness = Harness(Transform, {"drop": '["order.cancelled"]'})
    outbox = harness.table("shop.outbox", "id uuid primary, event_type text")
    assert harness.run(outbox, {"event_type": "order.cancelled"}) == [{"dropped": 1}]

What becomes of a change has the form that golden cases have; keys and values are bytes.
"""

import json
import struct
import uuid
from datetime import date, datetime, timezone
from types import SimpleNamespace

from . import HEAD, MERGED, NULL, OPERATIONS, REMOVED, REPLACED, UNCHANGED, UNSENT, VALUE, cql, types
from ._native import Err

_KINDS = {"primary": 0, "clustering": 1, "static": 2}


class Harness:
    """A configured transform and the tables that it was told of."""

    def __init__(self, transform, settings=None):
        """An instance of its settings, which may be other things than texts; `Refused` says why there is none."""
        self._work, self._tables = transform(), []
        text = lambda value: value if isinstance(value, str) else json.dumps(value)
        given = [SimpleNamespace(key=key, value=text(value)) for key, value in (settings or {}).items()]
        _asked(self._work.configure, given)

    def table(self, name, columns):
        """A table: `keyspace.name`, and `column type [primary|clustering|static], …`."""
        keyspace, name = name.split(".", 1)
        parts, depth, start = [], 0, 0
        for at, c in enumerate(columns + ","):
            depth += (c == "<") - (c == ">")
            if c == "," and depth == 0:
                parts.append(columns[start:at].strip())
                start = at + 1
        made = []
        for part in filter(None, parts):
            column, cql_type = part.split(None, 1)
            words = cql_type.rsplit(None, 1)
            kind = _KINDS.get(words[-1]) if len(words) == 2 else None
            made.append(SimpleNamespace(name=column, cql_type=cql_type if kind is None else words[0], kind=3 if kind is None else kind))
        table = SimpleNamespace(id=len(self._tables) + 1, keyspace=keyspace, name=name, columns=made)
        interest = _asked(self._work.open_table, table)
        sent = range(len(made)) if isinstance(interest, types.Interest_All) else getattr(interest, "value", None)
        self._tables.append((table, sent))
        return table

    def run(self, table, columns, operation="insert", preimage=None, postimage=None, time_us=0, ttl=0):
        """What becomes of one change. A column that is not named was not touched, None was set to null."""
        sent = self._tables[table.id - 1][1]
        if sent is None:
            return [{"forwarded": 1}]
        rows, links = [], [0, 0]
        numbers = {name: number for number, name in OPERATIONS.items()}
        for at, (image, name) in enumerate(((preimage, "preimage"), (postimage, "postimage"))):
            if image is not None:
                rows.append(_row(table, sent, image, numbers[name], time_us, ttl, (0, 0), True))
                links[at] = len(rows)
        rows.append(_row(table, sent, columns, numbers[operation], time_us, ttl, links, False))
        batch = struct.pack("<I", len(rows)) + b"".join(struct.pack("<I", len(row)) + row for row, _ in rows)
        return _outcomes(_asked(self._work.process, batch), [values for _, values in rows])


def _asked(work, given):
    try:
        return work(given)
    except Exception as error:
        if isinstance(getattr(error, "value", None), str):
            raise Refused(error.value) from None
        raise


class Refused(Exception):
    """The transform refuses its settings, a table or a whole batch."""


def _row(table, sent, columns, operation, time_us, ttl, links, image):
    unknown = set(columns) - {column.name for column in table.columns}
    if unknown:
        raise KeyError(f"{table.keyspace}.{table.name} has no column {', '.join(sorted(unknown))}")
    ends, tags, data, values = [], [], b"", []
    for at, column in enumerate(table.columns):
        t, tag, value = cql.parse(column.cql_type), UNCHANGED, b""
        if column.name in columns:
            given = columns[column.name]
            whole = REPLACED if t.is_multi_cell() and not image else VALUE
            tag, value = (NULL, b"") if given is None else (whole, encode(t, given))
        values.append((tag, value))
        if at not in sent:
            tag, value = UNSENT, b""
        data += value
        ends.append(len(data))
        tags.append(tag)
    head = HEAD.pack(operation, 2, len(tags), table.id, time_us, ttl, *links)
    return head + struct.pack(f"<{len(ends)}I", *ends) + bytes(tags) + data, values


def encode(t, value):
    """The binary form of a value of Python; bytes stand for themselves."""
    if isinstance(value, (bytes, bytearray)):
        return bytes(value)
    name = t.name
    if name in ("text", "ascii", "varchar"):
        return value.encode()
    if name == "boolean":
        return bytes([value])
    if name in ("float", "double"):
        return struct.pack(">f" if name == "float" else ">d", value)
    if name in ("uuid", "timeuuid"):
        return uuid.UUID(str(value)).bytes
    if name == "timestamp" and isinstance(value, datetime):
        value = round((value - datetime(1970, 1, 1, tzinfo=timezone.utc)).total_seconds() * 1000)
    if name == "date" and isinstance(value, date):
        return ((value - date(1970, 1, 1)).days + (1 << 31)).to_bytes(4, "big")
    if isinstance(value, int):
        size = cql._FIXED.get(name) or (value.bit_length() + 8) // 8
        return value.to_bytes(size, "big", signed=True)
    sized = lambda t, one: b"\xff" * 4 if one is None else (lambda b: struct.pack(">i", len(b)) + b)(encode(t, one))
    if name in ("list", "set"):
        count = struct.pack(">i", len(value))
        if name == "list" and not t.frozen:
            # The log has a list by timeuuids.
            ids = (uuid.UUID(fields=(at, 0, 0x1000, 0x80, 0, 7)).bytes for at in range(len(value)))
            return count + b"".join(struct.pack(">i", 16) + id + sized(t.parts[0], one) for id, one in zip(ids, value))
        return count + b"".join(sized(t.parts[0], one) for one in value)
    if name == "map":
        pairs = (sized(t.parts[0], key) + sized(t.parts[1], one) for key, one in value.items())
        return struct.pack(">i", len(value)) + b"".join(pairs)
    if name == "tuple":
        return b"".join(sized(part, one) for part, one in zip(t.parts, value))
    if name == "udt":
        return b"".join(sized(part, value.get(field)) for field, part in zip(t.names, t.parts))
    raise TypeError(f"no {name} of {value!r}: give its bytes")


def _outcomes(out, rows):
    (entries,), at, topics, outcomes = struct.unpack_from("<I", out), 4, [], []

    def take(form):
        nonlocal at
        found = struct.unpack_from("<" + form, out, at)
        at += struct.calcsize("<" + form)
        return found[0]

    def some(n):
        nonlocal at
        at += n
        return out[at - n : at]

    def field():
        kind = take("B")
        if kind in (2, 3):
            tag, value = rows[take("I")][take("H")]
            return None if tag in (NULL, UNCHANGED, REMOVED, MERGED) else value
        return some(take("I")) if kind == 1 else None

    for _ in range(entries):
        kind = take("B")
        if kind == 0:
            topics.append(some(take("H")).decode())
            continue
        take("I")
        if kind == 1:
            record = {"topic": topics[take("H")], "key": None, "value": None, "headers": {}}
            for _ in range(take("H")):
                role = take("B")
                if role == 2:
                    name = some(take("H")).decode()
                    record["headers"][name] = field()
                else:
                    record["key" if role == 0 else "value"] = field()
            outcomes.append(record)
        else:
            said = some(take("I")).decode() if kind > 3 else 1
            outcomes.append({("forwarded", "dropped", "error", "retry")[kind - 2]: said})
    return outcomes or [{"dropped": 1}]
