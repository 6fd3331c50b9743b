"""The contract's transform in Python: see contract.toml."""

from penstock import Error, Retry, Setting, plugin, ref


class Contract:
    def __init__(self, settings):
        self.topic, self.hoard = settings.get("topic", "out"), []
        if self.topic == "refuse me":
            raise Error("asked to refuse the settings")

    def interest(self, table):
        if "what" not in table.index:
            return table.none()
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
                out.record(self.topic, key=change.get("key"), value=ref(change, "payload"), headers=headers)
            case "nulls":
                out.record(self.topic, headers={"empty": b""})
            case "images":
                out.record(self.topic, value=f"{change.preimage.get('n')} {change.postimage.get('n')}")
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
            case "panic":
                raise ValueError("asked to panic")
            case "twice":
                out.record(self.topic, key="1")
                out.record("other", key="2")
            case "loop":
                while True:
                    pass
            case "memory":
                while True:
                    self.hoard.append(bytearray(1 << 20))


Transform, Description = plugin(
    Contract, name="contract", doc="Does what a change says.", settings=[Setting("topic", default="out", doc="where to")]
)
