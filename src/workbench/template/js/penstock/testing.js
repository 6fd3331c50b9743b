// Runs a transform natively, in a unit test: no host, no component.
//
//   import { transform } from "./index.js";
//   import { Harness } from "./penstock/testing.js";
//
//   const harness = new Harness(transform, { drop: ["order.cancelled"] });
//   const outbox = harness.table("shop.outbox", "id uuid primary, event_type text");
//   assert.deepEqual(harness.run(outbox, { event_type: "order.cancelled" }), [{ dropped: 1 }]);
//
// What becomes of a change has the form that golden cases have; keys, values and headers are text, or bytes where they are none.
import { parse } from "./cql.js";
import { OPERATIONS, Tag } from "./index.js";

const KINDS = ["primary", "clustering", "static"];
const utf8 = new TextEncoder();
const strict = new TextDecoder("utf-8", { fatal: true });

/** Bytes, little-endian. */
class Writer {
  all = [];
  uint(n, size) {
    for (let value = BigInt(n), i = 0; i < size; i++, value >>= 8n) this.all.push(Number(value & 255n));
    return this;
  }
  bytes(bytes) {
    for (const byte of bytes) this.all.push(byte);
    return this;
  }
}

const big = (n, size) => new Writer().uint(BigInt.asUintN(8 * size, BigInt(n)), size).all.reverse();

/** A configured transform and the tables that it was told of. An error refuses its settings. */
export class Harness {
  constructor(transform, settings = {}) {
    this.transform = transform;
    this.sent = new Map();
    const text = (value) => (typeof value === "string" ? value : JSON.stringify(value));
    asked(() => transform.configure(Object.entries(settings).map(([key, value]) => ({ key, value: text(value) }))));
  }

  /** A table: `keyspace.name`, and `column type [primary|clustering|static], …`. */
  table(name, columns) {
    const [keyspace, table] = name.split(".");
    const [parts, depth] = [[""], { "<": 1, ">": -1 }];
    let deep = 0;
    for (const c of columns) {
      deep += depth[c] ?? 0;
      if (c === "," && deep === 0) parts.push("");
      else parts[parts.length - 1] += c;
    }
    const made = parts.map((part) => part.trim()).filter((part) => part !== "").map((part) => {
      const [, column, type, kind] = part.match(/^(\S+)\s+(.*?)(?:\s+(primary|clustering|static))?$/);
      return { name: column, cqlType: type, kind: kind === undefined ? 3 : KINDS.indexOf(kind), parsed: parse(type) };
    });
    const wire = { id: this.sent.size + 1, keyspace, name: table, columns: made };
    const interest = asked(() => this.transform.openTable(wire));
    this.sent.set(wire.id, { ignore: null, all: made.map((_, at) => at), columns: Array.from(interest.val ?? []) }[interest.tag]);
    return wire;
  }

  /** What becomes of one change. A column that is not named was not touched, null was set to null. */
  run(table, columns, { operation = "insert", preimage, postimage, timeUs = 0, ttl = 0 } = {}) {
    if (this.sent.get(table.id) === null) return [{ forwarded: 1 }];
    const [rows, links] = [[], [0, 0]];
    const add = (columns, operation, links) => rows.push(this.row(table, columns, operation, timeUs, ttl, links));
    for (const [at, [image, name]] of [[preimage, "preimage"], [postimage, "postimage"]].entries()) {
      if (image !== undefined) links[at] = add(image, name, [0, 0]);
    }
    add(columns, operation, links);
    const batch = new Writer().uint(rows.length, 4);
    for (const { bytes } of rows) batch.uint(bytes.length, 4).bytes(bytes);
    return outcomes(asked(() => this.transform.process(Uint8Array.from(batch.all))), rows);
  }

  row(table, columns, operation, timeUs, ttl, links) {
    const unknown = Object.keys(columns).find((name) => !table.columns.some((column) => column.name === name));
    if (unknown !== undefined) throw new Error(`${table.keyspace}.${table.name} has no column ${unknown}`);
    const image = operation === "preimage" || operation === "postimage";
    const number = Object.keys(OPERATIONS).find((number) => OPERATIONS[number] === operation);
    if (number === undefined) throw new Error(`unknown operation ${operation}`);
    const cells = table.columns.map(({ name, parsed: t }) => {
      if (!(name in columns)) return { tag: Tag.Unchanged, bytes: [] };
      if (columns[name] === null) return { tag: Tag.Null, bytes: [] };
      const tag = t.isMultiCell() && !image ? Tag.Replaced : Tag.Value;
      return { tag, bytes: encode(t.logged(), columns[name]) };
    });
    const sent = cells.map((cell, at) => (this.sent.get(table.id).includes(at) ? cell : { tag: Tag.Unsent, bytes: [] }));
    const head = new Writer().uint(BigInt.asUintN(8, BigInt(number)), 1).uint(2, 1).uint(cells.length, 2).uint(table.id, 4);
    head.uint(BigInt.asUintN(64, BigInt(timeUs)), 8).uint(ttl, 4).uint(links[0], 4).uint(links[1], 4);
    let end = 0;
    for (const { bytes } of sent) head.uint((end += bytes.length), 4);
    for (const { tag } of sent) head.uint(tag, 1);
    for (const { bytes } of sent) head.bytes(bytes);
    return { bytes: head.all, cells };
  }
}

function asked(work) {
  try {
    return work();
  } catch (said) {
    throw typeof said === "string" ? new Error(said) : said;
  }
}

/** The binary form of a value of JavaScript; bytes stand for themselves. */
function encode(t, value) {
  if (value instanceof Uint8Array) return Array.from(value);
  const sized = (t, one) => {
    if (one === null || one === undefined) return big(-1, 4);
    const bytes = encode(t, one);
    return [...big(bytes.length, 4), ...bytes];
  };
  const real = (size, set) => {
    const view = new DataView(new ArrayBuffer(size));
    view[set](0, value);
    return Array.from(new Uint8Array(view.buffer));
  };
  switch (t.name) {
    case "text": case "ascii": case "varchar": return Array.from(utf8.encode(value));
    case "boolean": return [value ? 1 : 0];
    case "tinyint": return big(value, 1);
    case "smallint": return big(value, 2);
    case "int": return big(value, 4);
    case "bigint": case "counter": return big(value, 8);
    case "varint": return big(value, 16);
    case "float": return real(4, "setFloat32");
    case "double": return real(8, "setFloat64");
    case "timestamp": return big(value instanceof Date ? value.getTime() : value, 8);
    case "uuid": case "timeuuid": return value.replaceAll("-", "").match(/../g).map((digits) => parseInt(digits, 16));
    case "list": case "set": return [...big(value.length, 4), ...value.flatMap((one) => sized(t.parts[0], one))];
    case "map": {
      // The log has a list by timeuuids.
      const id = (at) => `0000000${at.toString(16)}`.slice(-8) + "-0000-1000-8000-000000000007";
      const pairs = Array.isArray(value) ? value.map((one, at) => [id(at), one]) : [...(value.entries?.() ?? Object.entries(value))];
      return [...big(pairs.length, 4), ...pairs.flatMap(([key, one]) => [...sized(t.parts[0], key), ...sized(t.parts[1], one)])];
    }
    case "tuple": return value.flatMap((one, at) => sized(t.parts[at], one));
    case "udt": return t.parts.flatMap((part, at) => sized(part, value[t.names[at]]));
    default: throw new Error(`no ${t.name} is made of a value: give its bytes`);
  }
}

function shown(bytes) {
  if (bytes === null) return null;
  try {
    return strict.decode(Uint8Array.from(bytes));
  } catch {
    return Uint8Array.from(bytes);
  }
}

function outcomes(out, rows) {
  const view = new DataView(out.buffer, out.byteOffset, out.byteLength);
  let at = 0;
  const uint = (size) => {
    at += size;
    return size === 1 ? view.getUint8(at - 1) : size === 2 ? view.getUint16(at - 2, true) : view.getUint32(at - 4, true);
  };
  const some = (n) => out.subarray(at, (at += n));
  const text = (n) => strict.decode(some(n));
  const field = () => {
    const kind = uint(1);
    if (kind === 1) return shown(some(uint(4)));
    if (kind !== 2 && kind !== 3) return null;
    const { tag, bytes } = rows[uint(4)].cells[uint(2)];
    return tag === Tag.Value || tag === Tag.Replaced ? shown(bytes) : null;
  };
  const [topics, made] = [[], []];
  for (let entries = uint(4); entries > 0; entries--) {
    const kind = uint(1);
    if (kind === 0) {
      topics.push(text(uint(2)));
      continue;
    }
    uint(4);
    if (kind === 1) {
      const record = { topic: topics[uint(2)], key: null, value: null, headers: {} };
      for (let parts = uint(2); parts > 0; parts--) {
        const role = uint(1);
        if (role === 2) {
          const name = text(uint(2));
          record.headers[name] = field();
        } else record[role === 0 ? "key" : "value"] = field();
      }
      made.push(record);
    } else made.push({ [["forwarded", "dropped", "error", "retry"][kind - 2]]: kind > 3 ? text(uint(4)) : 1 });
  }
  return made.length > 0 ? made : [{ dropped: 1 }];
}
