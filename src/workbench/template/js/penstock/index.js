// The SDK for transforms in JavaScript: what a transform is handed, and what it makes of it.
//
//   export const { transform, description } = plugin({
//     name: "my-filter", version: "0.1.0", doc: "…", settings: [{ name: "drop", kind: "texts", doc: "…" }],
//     configure(settings) { return { interest(table) {…}, process(change, out) {…} }; },
//   });

import { log as hostLog } from "penstock:plugin/host@0.1.0";
import { Invalid, JSON_FORM, parse, read, whole } from "./cql.js";

export { Decimal } from "./cql.js";

export const Tag = { Unsent: 0, Unchanged: 1, Null: 2, Value: 3, Replaced: 4, Removed: 5, Merged: 6 };

export const OPERATIONS = {
  [-4]: "ttl-partition-delete", [-3]: "ttl-row-delete", 0: "preimage", 1: "update", 2: "insert", 3: "row-delete",
  4: "partition-delete", 5: "range-delete-start-inclusive", 6: "range-delete-start-exclusive",
  7: "range-delete-end-inclusive", 8: "range-delete-end-exclusive", 9: "postimage",
};
const HEAD = 28;
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
    this.types = new Map();
  }
  /** The type of a column. */
  type(name) {
    if (!this.types.has(name)) this.types.set(name, parse(this.columns[this.index.get(name)].cqlType));
    return this.types.get(name);
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
  /** It came behind what had been read already. */
  get isLate() {
    return (this.rows.batch[this.at + 1] & 4) !== 0;
  }
  /** The log has a preimage of it that could not be sent. */
  get isPreimageMissing() {
    return (this.rows.batch[this.at + 1] & 8) !== 0;
  }
  /** The log has a postimage of it, or the end of its range, that could not be sent. */
  get isEndMissing() {
    return (this.rows.batch[this.at + 1] & 16) !== 0;
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
  /** Like `column`, but what was not asked for is no null. */
  told(name) {
    const told = this.column(name);
    if (told[0] === Tag.Unsent && this.table.index.has(name)) {
      throw new Refused(`column \`${name}\` of ${this.table.keyspace}.${this.table.name} was not declared in the interest`);
    }
    return told;
  }
  get isImage() {
    return this.op === 0 || this.op === 9;
  }
  read(name, work) {
    try {
      return work(this.table.type(name));
    } catch (error) {
      if (!(error instanceof Invalid)) throw error;
      throw new Refused(`column \`${name}\` of ${this.table.keyspace}.${this.table.name}: ${error.message}`);
    }
  }
  /** Whether it has a value in this change. */
  isSet(name) {
    return [Tag.Value, Tag.Replaced, Tag.Merged].includes(this.told(name)[0]);
  }
  isNull(name) {
    return this.told(name)[0] === Tag.Null;
  }
  /** The value in its binary form; null where the change sets none. */
  bytes(name) {
    const [tag, bytes] = this.told(name);
    return tag === Tag.Value || tag === Tag.Replaced ? bytes : null;
  }
  /** The value of a column, of any type (see cql.js); null where the change sets none, or null, and where there is no such column.
   * Of a non-frozen collection or UDT to which elements were added: those; `elements` says all. */
  get(name) {
    const [tag, bytes] = this.told(name);
    if (tag !== Tag.Value && tag !== Tag.Replaced) return null;
    return this.read(name, (t) =>
      t.isMultiCell() && tag === Tag.Value && !this.isImage ? read(t.logged(), bytes) : whole(t, bytes));
  }
  /** What happened to the elements of a non-frozen collection or UDT: `{ replaced, added, removed }`; null: nothing. Of a list, what
   * was added is a map by timeuuid, and what was removed are timeuuids; of a UDT, the numbers of fields. */
  elements(name) {
    const [tag, bytes] = this.told(name);
    if (tag === Tag.Unsent || tag === Tag.Unchanged) return null;
    return this.read(name, (t) => {
      const [added, removed] = parts(tag, bytes);
      return {
        replaced: tag === Tag.Null || tag === Tag.Replaced,
        added: added === null ? null : read(t.logged(), added),
        removed: removed === null ? null : read(t.removed(), removed),
      };
    });
  }
  /** What the change says of a column, in the JSON form in which changes are rendered, as a text; null: nothing. */
  json(name) {
    const [tag, bytes] = this.told(name);
    if (tag === Tag.Unsent || tag === Tag.Unchanged) return null;
    if (tag === Tag.Null) return "null";
    return this.read(name, (t) => {
      const plain = tag === Tag.Replaced || this.isImage || !t.isMultiCell();
      if (plain && tag !== Tag.Removed && tag !== Tag.Merged) return whole(t, bytes, JSON_FORM);
      const [added, removed] = parts(tag, bytes);
      const told = added === null ? [] : [`"added":${read(t.logged(), added, JSON_FORM)}`];
      if (removed !== null) told.push(`"removed":${read(t.removed(), removed, JSON_FORM)}`);
      return `{${told.join(",")}}`;
    });
  }
  /** The value as a text: text as it is, all else in its JSON form, without quotes. */
  text(name) {
    const [tag] = this.told(name);
    if (tag !== Tag.Value && tag !== Tag.Replaced) return null;
    const value = ["text", "ascii", "varchar"].includes(this.table.type(name).name) ? this.get(name) : null;
    return value ?? this.json(name).replace(/^"|"$/g, "");
  }
  /** Names the bytes of a column, which nobody copies and which need not have been sent. */
  ref(name) {
    const column = this.table.index.get(name);
    if (column === undefined) throw new Refused(`${this.table.keyspace}.${this.table.name} has no column \`${name}\``);
    return new Ref(this.row, column);
  }
  /** Likewise, and null where the change does not set the column. */
  refOrNull(name) {
    return Object.assign(this.ref(name), { orNull: true });
  }
}

/** A column of a row of the batch. */
class Ref {
  constructor(row, column) {
    Object.assign(this, { row, column });
  }
}

/** What was added and what was removed. */
function parts(tag, bytes) {
  if (tag === Tag.Merged) {
    if (bytes.length < 4) throw new Invalid("truncated");
    const size = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength).getUint32(0, true);
    if (bytes.length < 4 + size) throw new Invalid("truncated");
    return [bytes.subarray(4, 4 + size), bytes.subarray(4 + size)];
  }
  return [tag === Tag.Value || tag === Tag.Replaced ? bytes : null, tag === Tag.Removed ? bytes : null];
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
    if (n > 0xffff) throw new RangeError("a topic's or a header's name has less than 64 KiB, a record less than 65536 headers");
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
    if (value instanceof Ref) {
      this.u8(value.orNull ? 3 : 2);
      this.u32(value.row);
      return this.u16(value.column);
    }
    const bytes = typeof value === "string" ? encoder.encode(value) : value;
    if (!(bytes instanceof Uint8Array)) {
      throw new TypeError(`a key, a value or a header is a text, a Uint8Array, a ref or null, and no ${typeof value}`);
    }
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

/** Frames that are ours, or the engine's. */
const OURS = /(^|\/)penstock\/(index|cql|testing|loader)\.js$|(^|\/)initializer\.js$/;

/** What an error says, with its place: the first frame that is the author's. */
export function said(error) {
  if (error instanceof Refused) return error.message;
  if (!(error instanceof Error)) return String(error);
  const frames = (error.stack ?? "").split("\n").map((line) => line.match(/([^@(\s]+\.m?js):(\d+)/));
  const places = frames.filter((frame) => frame !== null).map(([, file, line]) => {
    // Of a script that was made of several files, the loader knows.
    return globalThis.penstockOrigin?.(file, Number(line)) ?? [file, line];
  });
  const place = places.find(([file]) => !OURS.test(file));
  return `${error.name}${place ? ` at ${place[0].split("/").at(-1)}:${place[1]}` : ""}: ${error.message}`;
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
      return { name, version, encoding: 2 };
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
