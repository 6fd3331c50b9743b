"""The contract's transform in Python: see contract.toml."""

import sys

from penstock import Error, Retry, Setting, log, plugin


def deep(n):
    return 1 + deep(n + 1)


def told(row):
    """What a row tells of its columns, in JSON."""
    names = (column.name for column in row.table.columns if column.name not in ("id", "what"))
    said = ((name, row.json(name)) for name in names)
    return [f'"{name}":{value}' for name, value in said if value is not None]


def typed(change):
    """What the values of the language are, said in words."""
    if change.is_null("l"):
        m = change.elements("m")
        words = m.replaced, len(m.added), len(m.removed), change.elements("l").replaced
        return " ".join(map(str, words)).lower()
    m, mk, ts = change.get("m"), change.get("mk"), change.get("ts")
    words = (
        "+".join(change.get("l")),
        sum(change.get("st")),
        m["x"],
        len(m),
        change.get("ad")["street"],
        "null" if change.get("tup")[1] is None else "?",
        round(change.get("vec")[2]),
        str(mk["00000000-0000-0000-0000-000000000001"]).lower(),
        change.get("big"),
        round(ts.timestamp() * 1000),
        change.get("d"),
        len(change.get("b")),
        "+".join(change.preimage.get("l")) if change.preimage else "none",
    )
    return " ".join(map(str, words))


class Contract:
    def __init__(self, settings):
        self.topic, self.hoard = settings.get("topic", "out"), []
        if self.topic == "refuse me":
            raise Error("asked to refuse the settings")

    def interest(self, table):
        if "what" not in table.index:
            return table.none()
        if table.name == "v":
            return table.all()
        return table.only("what", "n", "at", "key", "flag")

    def process(self, change, out):
        match change.get("what"):
            case "record":
                at = change.get("at").timestamp()
                headers = {
                    "n": change.text("n"),
                    "at": str(round(at * 1000)),
                    "flag": str(change.get("flag")).lower(),
                    "op": change.operation,
                }
                out.record(self.topic, key=change.get("key"), value=change.ref("payload"), headers=headers)
            case "or null":
                out.record(self.topic, value=change.ref_or_null("payload"), headers={"op": change.operation})
            case "nulls":
                out.record(self.topic, headers={"empty": b""})
            case "images":
                out.record(self.topic, value=f"{change.preimage.get('n')} {change.postimage.get('n')}")
            case "values":
                images = {"preimage": change.preimage, "postimage": change.postimage}
                said = told(change) + [f'"{name}":{{{",".join(told(one))}}}' for name, one in images.items() if one]
                out.record(self.topic, value=f"{{{','.join(said)}}}")
            case "typed":
                out.record(self.topic, value=typed(change))
            case "drop":
                out.drop()
            case "forward":
                out.forward()
            case "error":
                out.record("taken back")
                raise Error("asked to refuse")
            case "retry":
                out.record("taken back")
                raise Retry("asked to wait")
            case "no column":
                out.record("taken back", value=change.ref("nowhere"))
            case "long name":
                out.record("x" * 70_000)
            case "panic":
                raise ValueError("asked to panic")
            case "twice":
                out.record(self.topic, key="1")
                out.record("other", key="2")
            case "loop":
                while True:
                    pass
            case "lie":
                out._entry(1, b"\xff" * 7)
            case "deep":
                out.record(str(deep(1)))
            case "exit":
                sys.exit(3)
            case "long error":
                raise Error("long " * (1 << 18))
            case "records":
                while True:
                    out.record(self.topic, value="much")
            case "talk":
                for n in range(1000):
                    log("info", f"line {n}")
                out.forward()
            case "memory":
                while True:
                    self.hoard.append(bytearray(1 << 20))


Transform, Description = plugin(
    Contract, name="contract", doc="Does what a change says.", settings=[Setting("topic", default="out", doc="where to")]
)
