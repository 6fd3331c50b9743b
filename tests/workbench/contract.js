// The contract's transform in JavaScript: see contract.toml.
import { plugin, Refused, Retry } from "./penstock/index.js";

export const { transform, description } = plugin({
  name: "contract",
  doc: "Does what a change says.",
  settings: [{ name: "topic", default: "out", doc: "where to" }],
  configure(settings) {
    const topic = settings.get("topic", "out");
    const hoard = [];
    if (topic === "refuse me") throw new Refused("asked to refuse the settings");
    return {
      interest: (table) => (table.index.has("what") ? table.only("what", "n", "at", "key", "flag") : table.none()),
      process(change, out) {
        switch (change.get("what")) {
          case "record": {
            const headers = {
              n: String(change.get("n")), at: String(change.get("at").getTime()), flag: String(change.get("flag")),
              op: change.operation,
            };
            return out.record(topic, { key: change.get("key"), value: change.ref("payload"), headers });
          }
          case "nulls": return out.record(topic, { headers: { empty: "" } });
          case "images": return out.record(topic, { value: `${change.preimage.get("n")} ${change.postimage.get("n")}` });
          case "drop": return out.drop();
          case "forward": return out.forward();
          case "error":
            out.record("taken back");
            throw new Refused("asked to refuse");
          case "retry":
            out.record("taken back");
            throw new Retry("asked to wait");
          case "panic": throw new Error("asked to panic");
          case "twice":
            out.record(topic, { key: "1" });
            return out.record("other", { key: "2" });
          case "loop": for (;;);
          case "memory": for (;;) hoard.push(new Uint8Array(1 << 20));
        }
      },
    };
  },
});
