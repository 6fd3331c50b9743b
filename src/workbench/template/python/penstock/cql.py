"""CQL types and values: their notation, and the values of Python and the JSON form of what a column holds.

    text, ascii                       str
    tinyint … bigint, counter, varint int
    boolean                           bool
    float, double                     float
    decimal                           decimal.Decimal
    blob                              bytes
    timestamp, date                   datetime.datetime (UTC), datetime.date
    uuid, timeuuid, inet              str
    time, duration                    str, in their JSON form: no type of Python holds them
    list, set, vector                 list
    tuple                             tuple
    map, udt                          dict; a key that is itself a list or a dict is a tuple
    null, and what is empty           None
"""

import json
import re
import struct
from datetime import date, datetime, timedelta, timezone
from decimal import Decimal, InvalidOperation

DEPTH = 32
_EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)
_WORD = re.compile(r'\s*(?:"((?:[^"]|"")*)"|([A-Za-z0-9_]+)|([<>,.:]))')
_SIMPLE = frozenset(
    "ascii bigint blob boolean counter date decimal double duration float inet int smallint text varchar time timestamp"
    " timeuuid tinyint uuid varint".split()
)
_FIXED = {
    "boolean": 1, "tinyint": 1, "smallint": 2, "int": 4, "float": 4, "date": 4, "bigint": 8, "counter": 8, "double": 8,
    "time": 8, "timestamp": 8, "uuid": 16, "timeuuid": 16,
}  # fmt: skip
_INTEGERS = frozenset(("tinyint", "smallint", "int", "bigint", "counter"))


class Invalid(Exception):
    """The bytes are not of the type, or the text is no type."""


class Type:
    """A type: its name, and what it is made of. `frozen<…>` is told apart where a column is one."""

    __slots__ = ("name", "parts", "names", "size", "frozen")

    def __init__(self, name, parts=(), names=(), size=0):
        self.name, self.parts, self.names, self.size, self.frozen = name, parts, names, size, False

    def is_multi_cell(self):
        """Whether the log says of a column of it which elements were added and removed."""
        return not self.frozen and self.name in ("list", "set", "map", "udt")

    def logged(self):
        """The type in which the log has a column of it: a list by timeuuids."""
        if self.name == "list" and not self.frozen:
            return Type("map", (Type("timeuuid"), self.parts[0]))
        return self

    def removed(self):
        """The type of the elements that were removed."""
        of = {"list": lambda: Type("timeuuid"), "udt": lambda: Type("smallint")}.get(self.name, lambda: self.parts[0])
        return Type("set", (of(),))

    def in_vector(self):
        """The length of each element in a vector, where none is written before it."""
        if self.name in ("tinyint", "smallint", "date", "time", "counter"):
            return None
        if self.name == "vector":
            one = self.parts[0].in_vector()
            return None if one is None else one * self.size
        return _FIXED.get(self.name)


def parse(text):
    """Reads the notation of a type."""
    words, at = [], 0
    while text[at:].strip():
        found = _WORD.match(text, at)
        if found is None:
            raise Invalid(f"not a CQL type: {text!r}")
        quoted, plain, sign = found.groups()
        words.append(("name", quoted.replace('""', '"')) if quoted is not None else ("name", plain) if plain else (sign, sign))
        at = found.end()
    words.reverse()

    def take(kind):
        if not words or words[-1][0] != kind:
            raise Invalid(f"not a CQL type: {text!r}")
        return words.pop()[1]

    def more():
        return bool(words) and words[-1][0] == "," and bool(take(","))

    def one(depth):
        if depth == 0:
            raise Invalid(f"types nest too deep: {text!r}")
        name = take("name").lower()
        if name in _SIMPLE:
            return Type(name)
        take("<")
        if name == "frozen":
            made = one(depth - 1)
            made.frozen = True
        elif name in ("list", "set"):
            made = Type(name, (one(depth - 1),))
        elif name == "map":
            key = one(depth - 1)
            take(",")
            made = Type(name, (key, one(depth - 1)))
        elif name == "vector":
            element = one(depth - 1)
            take(",")
            size = take("name")
            if not size.isdecimal():
                raise Invalid(f"not a CQL type: {text!r}")
            made = Type(name, (element,), size=int(size))
        elif name == "tuple":
            parts = [one(depth - 1)]
            while more():
                parts.append(one(depth - 1))
            made = Type(name, tuple(parts))
        elif name == "udt":
            take("name")
            take(".")
            take("name")
            names, parts = [], []
            while more():
                names.append(take("name"))
                take(":")
                parts.append(one(depth - 1))
            made = Type(name, tuple(parts), tuple(names))
        else:
            raise Invalid(f"not a CQL type: {text!r}")
        take(">")
        return made

    made = one(DEPTH)
    if words:
        raise Invalid(f"not a CQL type: {text!r}")
    return made


class Values:
    """Makes values of Python."""

    null, text, blob, number, boolean = None, str, bytes, int, bool
    sequence, pair, pairs = list, lambda key, value: (_hashable(key), value), dict
    fields, fixed = dict, tuple

    @staticmethod
    def real(x, _):
        return x

    @staticmethod
    def decimal(unscaled, scale):
        try:
            return Decimal((int(unscaled < 0), tuple(map(int, str(abs(unscaled)))), -scale))
        except (InvalidOperation, ValueError, OverflowError):
            raise Invalid("a decimal with more digits than Python's Decimal takes")

    @staticmethod
    def timestamp(ms):
        try:
            return _EPOCH + timedelta(milliseconds=ms)
        except OverflowError:
            raise Invalid("a timestamp outside of what datetime holds (`json` reads it)")

    @staticmethod
    def date(days):
        try:
            return date(1970, 1, 1) + timedelta(days=days)
        except OverflowError:
            raise Invalid("a date outside of what datetime holds (`json` reads it)")


class Json:
    """Makes the JSON form, as a text."""

    null = "null"

    @staticmethod
    def text(text):
        return json.dumps(text, ensure_ascii=False)

    @staticmethod
    def blob(value):
        return f'"0x{value.hex()}"'

    @staticmethod
    def number(n):
        return str(n)

    @staticmethod
    def boolean(b):
        return "true" if b else "false"

    @staticmethod
    def real(x, text):
        return text if x - x == 0 else '"NaN"' if x != x else '"Infinity"' if x > 0 else '"-Infinity"'

    @staticmethod
    def decimal(unscaled, scale):
        digits = str(abs(unscaled))
        sign = "-" if unscaled < 0 else ""
        if scale == 0:
            return sign + digits
        if 0 < scale <= 64:
            digits = digits.rjust(scale + 1, "0")
            return f"{sign}{digits[:-scale]}.{digits[-scale:]}"
        text = f"{sign}{digits}e{-scale}"
        # More digits overflow the numbers of most readers.
        return f'"{text}"' if len(sign) + len(digits) - scale > 300 else text

    @staticmethod
    def timestamp(ms):
        day, ms = divmod(ms, 86_400_000)
        seconds, ms = divmod(ms, 1000)
        return f'"{_date(day)}T{seconds // 3600:02}:{seconds // 60 % 60:02}:{seconds % 60:02}.{ms:03}Z"'

    @staticmethod
    def date(days):
        return f'"{_date(days)}"'

    @staticmethod
    def sequence(elements):
        return f"[{','.join(elements)}]"

    fixed = sequence

    @staticmethod
    def pair(key, value):
        return f"{key if key.startswith(chr(34)) else json.dumps(key, ensure_ascii=False)}:{value}"

    @staticmethod
    def pairs(pairs):
        return f"{{{','.join(pairs)}}}"

    @staticmethod
    def fields(fields):
        return f"{{{','.join(f'{json.dumps(name, ensure_ascii=False)}:{value}' for name, value in fields)}}}"


def _hashable(value):
    if isinstance(value, (list, tuple)):
        return tuple(map(_hashable, value))
    if isinstance(value, dict):
        return tuple((key, _hashable(one)) for key, one in value.items())
    return value


def _date(days):
    """<https://howardhinnant.github.io/date_algorithms.html#civil_from_days>; datetime ends with the year 9999."""
    era, doe = divmod(days + 719_468, 146_097)
    yoe = (doe - doe // 1460 + doe // 36_524 - doe // 146_096) // 365
    doy = doe - (365 * yoe + yoe // 4 - yoe // 100)
    mp = (5 * doy + 2) // 153
    day, month = doy - (153 * mp + 2) // 5 + 1, mp + 3 if mp < 10 else mp - 9
    year = yoe + era * 400 + (month <= 2)
    sign = "" if 0 <= year <= 9999 else "-" if year < 0 else "+"
    return f"{sign}{abs(year):04}-{month:02}-{day:02}"


def _inet(b):
    if len(b) == 4:
        return ".".join(map(str, b))
    if len(b) != 16:
        raise Invalid("neither 4 nor 16 bytes")
    if b[:12] == b"\0" * 10 + b"\xff\xff":
        return "::ffff:" + _inet(b[12:])
    groups = [int.from_bytes(b[at : at + 2], "big") for at in range(0, 16, 2)]
    start = size = at = 0
    while at < 8:
        end = at
        while end < 8 and groups[end] == 0:
            end += 1
        if end - at > max(size, 1):
            start, size = at, end - at
        at = end + 1
    text = [f"{group:x}" for group in groups]
    return ":".join(text) if size == 0 else ":".join(text[:start]) + "::" + ":".join(text[start + size :])


def _single(b):
    """The shortest number that is this one in 32 bits, and its text."""
    (x,) = struct.unpack(">f", b)
    if x - x != 0:
        return x, ""
    for digits in range(1, 10):
        short = float(f"{x:.{digits}g}")
        try:
            if struct.pack(">f", short) == b:
                return short, repr(short)
        except OverflowError:
            continue
    return x, repr(x)


class _Bytes:
    def __init__(self, all):
        self.all, self.at = all, 0

    def take(self, n):
        if n > len(self.all) - self.at:
            raise Invalid("truncated")
        self.at += n
        return self.all[self.at - n : self.at]

    def int(self):
        return int.from_bytes(self.take(4), "big", signed=True)

    def count(self, least):
        n = self.int()
        if n < 0:
            raise Invalid("negative number of elements")
        if n > (len(self.all) - self.at) // least:
            raise Invalid("more elements than bytes")
        return n

    def value(self):
        n = self.int()
        return None if n < 0 else self.take(n)

    def vint(self):
        first = self.take(1)[0]
        extra = 8 - (first ^ 0xFF).bit_length()
        head = 0 if extra >= 7 else first & (0xFF >> (extra + 1))
        return head << (8 * extra) | int.from_bytes(self.take(extra), "big")

    def signed_vint(self):
        n = self.vint()
        return n >> 1 ^ -(n & 1)

    def done(self):
        if self.at != len(self.all):
            raise Invalid("bytes after the last element")


def read(t, b, make=Values, depth=DEPTH):
    """The value of these bytes, by `make`."""
    if depth == 0:
        raise Invalid("nested too deep")
    name = t.name
    if name in ("text", "ascii", "varchar"):
        try:
            return make.text(str(b, "utf-8"))
        except UnicodeDecodeError:
            raise Invalid("not UTF-8")
    if name == "blob":
        return make.blob(b)
    # A tuple or UDT of no bytes is one whose every field is null.
    if not b and name not in ("tuple", "udt"):
        return make.null
    if len(b) != _FIXED.get(name, len(b)):
        raise Invalid(f"not a value of type {name}: wrong length")
    if name in _INTEGERS:
        return make.number(int.from_bytes(b, "big", signed=True))
    if name == "boolean":
        return make.boolean(b != b"\0")
    if name == "double":
        (x,) = struct.unpack(">d", b)
        return make.real(x, repr(x))
    if name == "float":
        return make.real(*_single(b))
    if name == "timestamp":
        return make.timestamp(int.from_bytes(b, "big", signed=True))
    if name in ("uuid", "timeuuid"):
        text = b.hex()
        return make.text(f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}")
    if name == "date":
        return make.date(int.from_bytes(b, "big") - (1 << 31))
    if name == "time":
        nanos = int.from_bytes(b, "big", signed=True)
        if not 0 <= nanos < 86_400_000_000_000:
            raise Invalid("not within a day")
        seconds, nanos = divmod(nanos, 1_000_000_000)
        return make.text(f"{seconds // 3600:02}:{seconds // 60 % 60:02}:{seconds % 60:02}.{nanos:09}")
    if name == "inet":
        return make.text(_inet(b))
    if name == "varint":
        if len(b) > 1024:
            raise Invalid("a varint of more than 1024 bytes")
        return make.number(int.from_bytes(b, "big", signed=True))
    rest = _Bytes(b)
    if name == "decimal":
        scale = rest.int()
        if not 0 < len(b) - 4 <= 1024:
            raise Invalid("a decimal of no bytes, or of more than 1024")
        return make.decimal(int.from_bytes(b[4:], "big", signed=True), scale)
    if name == "duration":
        months, days, nanos = rest.signed_vint(), rest.signed_vint(), rest.signed_vint()
        rest.done()
        if max(abs(months + 0.5), abs(days + 0.5)) > 1 << 31:
            raise Invalid("months or days out of range")
        sign = "-" if min(months, days, nanos) < 0 else ""
        return make.text(f"{sign}{abs(months)}mo{abs(days)}d{abs(nanos)}ns")

    def element(t, b):
        return make.null if b is None else read(t, b, make, depth - 1)

    if name in ("list", "set"):
        elements = [element(t.parts[0], rest.value()) for _ in range(rest.count(4))]
        rest.done()
        return make.sequence(elements)
    if name == "map":
        key, value = t.parts
        pairs = [make.pair(element(key, rest.value()), element(value, rest.value())) for _ in range(rest.count(8))]
        rest.done()
        return make.pairs(pairs)
    if name == "vector":
        one = t.parts[0].in_vector()
        elements = [
            read(t.parts[0], rest.take(rest.vint() if one is None else one), make, depth - 1) for _ in range(t.size)
        ]
        rest.done()
        return make.sequence(elements)
    # What was written before the type grew ends early.
    parts = [element(part, rest.value() if rest.at < len(b) else None) for part in t.parts]
    if name == "tuple":
        rest.done()
        return make.fixed(parts)
    return make.fields(zip(t.names, parts))


def is_nothing(t, b):
    """A non-frozen collection without elements, or UDT without fields, does not exist: it reads as null."""
    rest = _Bytes(b)
    if t.name == "udt":
        return all(rest.at == len(b) or rest.value() is None for _ in t.parts)
    return not b or rest.int() == 0


def whole(t, b, make=Values):
    """The value of a column that was overwritten, or that stands in an image."""
    if not t.is_multi_cell():
        return read(t, b, make)
    if is_nothing(t, b):
        return make.null
    if t.name != "list":
        return read(t, b, make)
    # In the order of their timeuuids, which is the list's.
    rest, element, elements = _Bytes(b), t.parts[0], []
    for _ in range(rest.count(8)):
        rest.value()
        one = rest.value()
        elements.append(make.null if one is None else read(element, one, make, DEPTH - 1))
    rest.done()
    return make.sequence(elements)
