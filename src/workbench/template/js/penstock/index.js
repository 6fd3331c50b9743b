// The SDK for transforms in JavaScript: what a transform is handed, and what it makes of it.
//
//   export const { transform, description } = plugin({
//     name: "my-filter", version: "0.1.0", doc: "…", settings: [{ name: "drop", kind: "texts", doc: "…" }],
//     configure(settings) { return { interest(table) {…}, process(change, out) {…} }; },
//   });

import { log as hostLog } from "penstock:plugin/host@0.1.0";

export const Tag = { Unsent: 0, Unchanged: 1, Null: 2, Value: 3, Replaced: 4, Removed: 5, Merged: 6 };

const OPERATIONS = {
  [-4]: "ttl-partition-delete", [-3]: "ttl-row-delete", 0: "preimage", 1: "update", 2: "insert", 3: "row-delete",
  4: "partition-delete", 5: "range-delete-start-inclusive", 6: "range-delete-start-exclusive",
  7: "range-delete-end-inclusive", 8: "range-delete-end-exclusive", 9: "postimage",
};
const HEAD = 28;
const decoder = new TextDecoder();
const encoder = new TextEncoder();

/** Refuses a change, or the settings, with these words and nothing else. */
export class Refused extends Error {}

/** Not yet: the change, and all after it, is handed out again later. */
export class Retry extends Error {}

/** Writes to Penstock's log: error, warn, info, debug. */
export function log(level, text) {
  hostLog(level, String(text));
}

class Settings {
  constructor(given) {
    this.all = new Map(given.map(({ key, value }) => [key, value]));
  }
  /** The text of a setting; what is no text in pipeline.toml is in its JSON form. */
  get(name, otherwise) {
    return this.all.has(name) ? this.all.get(name) : otherwise;
  }
  /** A list of the file, or one text with commas. */
  texts(name) {
    const text = (this.all.get(name) ?? "").trim();
    if (text.startsWith("[")) return JSON.parse(text);
    return text.split(",").map((one) => one.trim()).filter((one) => one !== "");
  }
}

class Table {
  constructor(table) {
    Object.assign(this, { id: table.id, keyspace: table.keyspace, name: table.name, columns: table.columns });
    this.index = new Map(table.columns.map((column, at) => [column.name, at]));
  }
  /** Whether its rows are records of a transform before this one: topic, key, value, headers. */
  isRecords() {
    return this.keyspace === "penstock" && this.name === "record";
  }
  /** The table passes by. */
  none() {
    return { tag: "ignore" };
  }
  all() {
    return { tag: "all" };
  }
  /** These columns, of those that there are. */
  only(...names) {
    const there = names.filter((name) => this.index.has(name));
    return { tag: "columns", val: Uint16Array.from(there.map((name) => this.index.get(name))) };
  }
}

class Rows {
  constructor(batch) {
    this.batch = batch;
    this.view = new DataView(batch.buffer, batch.byteOffset, batch.byteLength);
    this.starts = [];
    let at = 4;
    for (let n = this.view.getUint32(0, true); n > 0; n--) {
      this.starts.push(at + 4);
      at += 4 + this.view.getUint32(at, true);
    }
  }
}

/** One change, or an image or an end of a range that is reached through one. */
class Change {
  constructor(rows, row, table) {
    Object.assign(this, { rows, row, table, at: rows.starts[row] });
  }
  get op() {
    return this.rows.view.getInt8(this.at);
  }
  get operation() {
    return OPERATIONS[this.op];
  }
  /** Microseconds since the Unix epoch, a BigInt. */
  get timeUs() {
    return this.rows.view.getBigInt64(this.at + 8, true);
  }
  get ttl() {
    return this.rows.view.getUint32(this.at + 16, true);
  }
  get isLate() {
    return (this.rows.batch[this.at + 1] & 4) !== 0;
  }
  linked(offset) {
    const row = this.rows.view.getUint32(this.at + offset, true) - 1;
    return row >= 0 && row < this.rows.starts.length ? new Change(this.rows, row, this.table) : null;
  }
  get preimage() {
    return this.linked(20);
  }
  get postimage() {
    const end = this.linked(24);
    return end !== null && end.op === 9 ? end : null;
  }
  get rangeEnd() {
    const end = this.linked(24);
    return end !== null && end.op !== 9 ? end : null;
  }
  /** What the change says of a column, and the bytes of its value. */
  column(name) {
    const { view, batch } = this.rows;
    const count = view.getUint16(this.at + 2, true);
    const index = this.table.index.get(name);
    if (index === undefined || index >= count) return [Tag.Unsent, new Uint8Array()];
    const ends = this.at + HEAD;
    const data = ends + 5 * count;
    const start = index === 0 ? 0 : view.getUint32(ends + 4 * (index - 1), true);
    const end = view.getUint32(ends + 4 * index, true);
    return [batch[ends + 4 * count + index], batch.subarray(data + start, data + end)];
  }
  isNull(name) {
    return this.column(name)[0] === Tag.Null;
  }
  /** The value in its binary form; null where the change sets none. */
  bytes(name) {
    const [tag, bytes] = this.column(name);
    return tag === Tag.Value || tag === Tag.Replaced ? bytes : null;
  }
  /** The value of a column of a scalar type: text, numbers (bigint: a BigInt), booleans, UUIDs, dates; bytes of any other. */
  get(name) {
    const bytes = this.bytes(name);
    return bytes === null ? null : decode(this.table.columns[this.table.index.get(name)].cqlType, bytes);
  }
  /** Names the bytes of a column, which nobody copies and which need not have been sent. */
  ref(name) {
    return { row: this.row, column: this.table.index.get(name) };
  }
}

function decode(type, bytes) {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  switch (type) {
    case "text": case "ascii": case "varchar": return decoder.decode(bytes);
    case "tinyint": return view.getInt8(0);
    case "smallint": return view.getInt16(0);
    case "int": return view.getInt32(0);
    case "bigint": case "counter": return view.getBigInt64(0);
    case "boolean": return bytes[0] !== 0;
    case "float": return view.getFloat32(0);
    case "double": return view.getFloat64(0);
    case "timestamp": return new Date(Number(view.getBigInt64(0)));
    case "uuid": case "timeuuid": {
      const hex = Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
      return hex.replace(/^(.{8})(.{4})(.{4})(.{4})/, "$1-$2-$3-$4-");
    }
    default: return bytes;
  }
}

/** Takes what a transform makes of the change at hand. Writing nothing drops it. */
class Output {
  constructor() {
    Object.assign(this, { buf: new Uint8Array(4096), at: 4, entries: 0, topics: new Map(), source: 0 });
  }
  room(more) {
    if (this.at + more > this.buf.length) {
      const larger = new Uint8Array(Math.max(2 * this.buf.length, this.at + more));
      larger.set(this.buf);
      this.buf = larger;
    }
  }
  u8(n) {
    this.room(1);
    this.buf[this.at++] = n;
  }
  u16(n) {
    this.u8(n & 255);
    this.u8(n >> 8);
  }
  u32(n) {
    this.u16(n & 65535);
    this.u16(n >>> 16);
  }
  put(bytes) {
    this.room(bytes.length);
    this.buf.set(bytes, this.at);
    this.at += bytes.length;
  }
  field(value) {
    if (value === null || value === undefined) return this.u8(0);
    if (typeof value === "object" && "row" in value) {
      this.u8(2);
      this.u32(value.row);
      return this.u16(value.column);
    }
    const bytes = typeof value === "string" ? encoder.encode(value) : value;
    this.u8(1);
    this.u32(bytes.length);
    this.put(bytes);
  }
  entry(kind) {
    this.entries++;
    this.u8(kind);
    this.u32(this.source);
  }
  name(name) {
    const bytes = encoder.encode(name);
    this.u16(bytes.length);
    this.put(bytes);
  }
  /** A record; keys, values and headers are bytes, text, a `change.ref(…)` or null. A change may make several. */
  record(topic, { key, value, headers = {} } = {}) {
    let number = this.topics.get(topic);
    if (number === undefined) {
      number = this.topics.size;
      this.topics.set(topic, number);
      this.entries++;
      this.u8(0);
      this.name(topic);
    }
    const all = Object.entries(headers);
    this.entry(1);
    this.u16(number);
    this.u16(2 + all.length);
    this.u8(0);
    this.field(key);
    this.u8(1);
    this.field(value);
    for (const [name, one] of all) {
      this.u8(2);
      this.name(name);
      this.field(one);
    }
  }
  /** Hands the change on unchanged. */
  forward() {
    this.entry(2);
  }
  /** Lets go of the change; the same as writing nothing, but said. */
  drop() {
    this.entry(3);
  }
  message(kind, text) {
    const bytes = encoder.encode(text);
    this.entry(kind);
    this.u32(bytes.length);
    this.put(bytes);
  }
  finish() {
    new DataView(this.buf.buffer).setUint32(0, this.entries, true);
    return this.buf.subarray(0, this.at);
  }
}

/** What an error says, with its place: the first frame that is not ours. */
function said(error) {
  if (error instanceof Refused) return error.message;
  if (!(error instanceof Error)) return String(error);
  const frames = (error.stack ?? "").split("\n").map((line) => line.match(/([^/@( ]+\.m?js):(\d+)/));
  const frame = frames.find((found) => found !== null && found[1] !== "index.js");
  return `${error.name}${frame ? ` at ${frame[1]}:${frame[2]}` : ""}: ${error.message}`;
}

/** The two exports of a plugin. */
export function plugin({ name, version = "0.1.0", doc = "", settings = [], configure }) {
  let work = null;
  let tables = new Map();
  const check = (given) => {
    for (const one of given.all.keys()) {
      if (!settings.some((s) => s.name === one)) throw new Refused(`unknown setting \`${one}\``);
    }
    for (const s of settings) {
      if (s.required && !given.all.has(s.name)) throw new Refused(`setting \`${s.name}\` is missing`);
    }
  };
  const answered = (answer) => {
    try {
      return answer();
    } catch (error) {
      throw said(error);
    }
  };
  const transform = {
    configure: (given) => answered(() => {
      const all = new Settings(given);
      check(all);
      work = configure(all);
      tables = new Map();
      return { name, version, encoding: 1 };
    }),
    openTable: (wire) => answered(() => {
      const table = new Table(wire);
      const interest = work.interest ? work.interest(table) : table.all();
      tables.set(table.id, table);
      return interest;
    }),
    process: (batch) => answered(() => {
      const rows = new Rows(batch);
      const out = new Output();
      for (let row = 0; row < rows.starts.length; row++) {
        const at = rows.starts[row];
        const op = rows.view.getInt8(at);
        if (op === 0 || op >= 7 || (batch[at + 1] & 1) !== 0) continue;
        out.source = row;
        const mark = { at: out.at, entries: out.entries, topics: out.topics.size };
        try {
          const table = tables.get(rows.view.getUint32(at + 4, true));
          work.process(new Change(rows, row, table), out);
        } catch (error) {
          // What was written for it is taken back.
          out.at = mark.at;
          out.entries = mark.entries;
          out.topics = new Map([...out.topics].slice(0, mark.topics));
          if (error instanceof Retry) {
            out.message(5, error.message);
            break;
          }
          const text = said(error);
          if (!(error instanceof Refused)) log("error", text);
          out.message(4, text);
        }
      }
      return out.finish();
    }),
  };
  const described = (s) => ({
    name: s.name, kind: s.kind ?? "text", default: s.default, required: s.required ?? false, doc: s.doc ?? "",
    choices: s.choices ?? [],
  });
  const description = {
    describe: () => ({ sdk: "js {version}", doc, settings: settings.map(described), others: false }),
  };
  return { transform, description };
}
