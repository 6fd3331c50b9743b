// The contract's transform in JavaScript: see contract.toml.
import { log, plugin, Refused, Retry } from "./penstock/index.js";

function deep(n) {
  return 1 + deep(n + 1);
}

/** What a row tells of its columns, in JSON. */
function told(row) {
  const names = row.table.columns.map((column) => column.name).filter((name) => name !== "id" && name !== "what");
  return names.filter((name) => row.json(name) !== null).map((name) => `"${name}":${row.json(name)}`);
}

/** What the values of the language are, said in words. */
function typed(change) {
  if (change.isNull("l")) {
    const m = change.elements("m");
    return `${m.replaced} ${m.added.size} ${m.removed.length} ${change.elements("l").replaced}`;
  }
  const [m, mk] = [change.get("m"), change.get("mk")];
  return [
    change.get("l").join("+"), change.get("st").reduce((a, b) => a + b), m.get("x"), m.size, change.get("ad").street,
    String(change.get("tup")[1]), change.get("vec")[2], mk.get("00000000-0000-0000-0000-000000000001"), change.get("big"),
    change.get("ts").getTime(), change.get("d"), change.get("b").length, change.preimage?.get("l").join("+") ?? "none",
  ].join(" ");
}

export const { transform, description } = plugin({
  name: "contract",
  doc: "Does what a change says.",
  settings: [{ name: "topic", default: "out", doc: "where to" }],
  configure(settings) {
    const topic = settings.get("topic", "out");
    const hoard = [];
    if (topic === "refuse me") throw new Refused("asked to refuse the settings");
    return {
      interest: (table) => (table.name === "v" ? table.all() : table.index.has("what") ? table.only("what", "n", "at", "key", "flag") : table.none()),
      process(change, out) {
        switch (change.get("what")) {
          case "record": {
            const headers = {
              n: String(change.get("n")), at: String(change.get("at").getTime()), flag: String(change.get("flag")),
              op: change.operation,
            };
            return out.record(topic, { key: change.get("key"), value: change.ref("payload"), headers });
          }
          case "or null": return out.record(topic, { value: change.refOrNull("payload"), headers: { op: change.operation } });
          case "nulls": return out.record(topic, { headers: { empty: "" } });
          case "images": return out.record(topic, { value: `${change.preimage.get("n")} ${change.postimage.get("n")}` });
          case "values": {
            const said = told(change);
            for (const name of ["preimage", "postimage"]) {
              if (change[name]) said.push(`"${name}":{${told(change[name]).join(",")}}`);
            }
            return out.record(topic, { value: `{${said.join(",")}}` });
          }
          case "typed": return out.record(topic, { value: typed(change) });
          case "drop": return out.drop();
          case "forward": return out.forward();
          case "error":
            out.record("taken back");
            throw new Refused("asked to refuse");
          case "retry":
            out.record("taken back");
            throw new Retry("asked to wait");
          case "no column": return out.record("taken back", { value: change.ref("nowhere") });
          case "long name": return out.record("x".repeat(70_000));
          case "panic": throw new Error("asked to panic");
          case "twice":
            out.record(topic, { key: "1" });
            return out.record("other", { key: "2" });
          case "loop": for (;;);
          case "lie":
            out.entry(1);
            return out.u32(0xffffffff);
          case "deep": return out.record(String(deep(1)));
          case "exit": return process.exit(3);
          case "long error": throw new Refused("long ".repeat(1 << 18));
          case "records": for (;;) out.record(topic, { value: "much" });
          case "talk":
            for (let n = 0; n < 1000; n++) log("info", `line ${n}`);
            return out.forward();
          case "memory": for (;;) hoard.push(new Uint8Array(1 << 20));
        }
      },
    };
  },
});
