// CQL types and values: their notation, and the values of JavaScript and the JSON form of what a column holds.
//
//   text, ascii                string
//   tinyint, smallint, int     number
//   bigint, counter, varint    bigint
//   boolean                    boolean
//   float, double              number
//   decimal                    Decimal: { unscaled: bigint, scale: number }, and its text
//   blob                       Uint8Array
//   timestamp                  Date
//   uuid, timeuuid, inet       string
//   date, time, duration       string, in their JSON form
//   list, set, vector, tuple   Array
//   map                        Map
//   udt                        object
//   null, and what is empty    null

const DEPTH = 32;
const SIMPLE = new Set(("ascii bigint blob boolean counter date decimal double duration float inet int smallint text varchar " +
  "time timestamp timeuuid tinyint uuid varint").split(" "));
const FIXED = {
  boolean: 1, tinyint: 1, smallint: 2, int: 4, float: 4, date: 4, bigint: 8, counter: 8, double: 8, time: 8, timestamp: 8,
  uuid: 16, timeuuid: 16,
};
const decoder = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true });

/** The bytes are not of the type, or the text is no type. */
export class Invalid extends Error {}

/** A number of CQL's `decimal`: unscaled × 10^−scale. */
export class Decimal {
  constructor(unscaled, scale) {
    Object.assign(this, { unscaled, scale });
  }
  toString() {
    return JSON_FORM.decimal(this.unscaled, this.scale).replaceAll('"', "");
  }
}

/** A type: its name, and what it is made of. `frozen<…>` is told apart where a column is one. */
class Type {
  constructor(name, parts = [], names = [], size = 0) {
    Object.assign(this, { name, parts, names, size, frozen: false });
  }
  /** Whether the log says of a column of it which elements were added and removed. */
  isMultiCell() {
    return !this.frozen && ["list", "set", "map", "udt"].includes(this.name);
  }
  /** The type in which the log has a column of it: a list by timeuuids. */
  logged() {
    return this.name === "list" && !this.frozen ? new Type("map", [new Type("timeuuid"), this.parts[0]]) : this;
  }
  /** The type of the elements that were removed. */
  removed() {
    const of = { list: () => new Type("timeuuid"), udt: () => new Type("smallint") }[this.name] ?? (() => this.parts[0]);
    return new Type("set", [of()]);
  }
  /** The length of each element in a vector, where none is written before it. */
  inVector() {
    if (["tinyint", "smallint", "date", "time", "counter"].includes(this.name)) return undefined;
    if (this.name === "vector") {
      const one = this.parts[0].inVector();
      return one === undefined ? undefined : one * this.size;
    }
    return FIXED[this.name];
  }
}

/** Reads the notation of a type. */
export function parse(text) {
  const words = [];
  for (let rest = text.trim(); rest !== ""; ) {
    const found = rest.match(/^(?:"((?:[^"]|"")*)"|([A-Za-z0-9_]+)|([<>,.:]))\s*/);
    if (found === null) throw new Invalid(`not a CQL type: ${text}`);
    const [all, quoted, plain, sign] = found;
    words.push(sign === undefined ? { kind: "name", text: quoted?.replaceAll('""', '"') ?? plain } : { kind: sign });
    rest = rest.slice(all.length);
  }
  words.reverse();
  const take = (kind) => {
    if (words.at(-1)?.kind !== kind) throw new Invalid(`not a CQL type: ${text}`);
    return words.pop().text;
  };
  const count = (digits) => {
    if (!/^\d+$/.test(digits)) throw new Invalid(`not a CQL type: ${text}`);
    return Number(digits);
  };
  const more = () => words.at(-1)?.kind === "," && words.pop() !== undefined;
  const one = (depth) => {
    if (depth === 0) throw new Invalid(`types nest too deep: ${text}`);
    const name = take("name").toLowerCase();
    if (SIMPLE.has(name)) return new Type(name);
    take("<");
    let made;
    switch (name) {
      case "frozen":
        made = one(depth - 1);
        made.frozen = true;
        break;
      case "list": case "set":
        made = new Type(name, [one(depth - 1)]);
        break;
      case "map": case "vector": {
        const first = one(depth - 1);
        take(",");
        made = name === "map" ? new Type(name, [first, one(depth - 1)]) : new Type(name, [first], [], count(take("name")));
        break;
      }
      case "tuple": {
        const parts = [one(depth - 1)];
        while (more()) parts.push(one(depth - 1));
        made = new Type(name, parts);
        break;
      }
      case "udt": {
        take("name");
        take(".");
        take("name");
        made = new Type(name);
        while (more()) {
          made.names.push(take("name"));
          take(":");
          made.parts.push(one(depth - 1));
        }
        break;
      }
      default:
        throw new Invalid(`not a CQL type: ${text}`);
    }
    take(">");
    return made;
  };
  const made = one(DEPTH);
  if (words.length > 0) throw new Invalid(`not a CQL type: ${text}`);
  return made;
}

const same = (value) => value;

/** Makes values of JavaScript. */
export const VALUES = {
  null: null, text: same, blob: same, boolean: same, small: same, big: same, real: same, date: (days) => date(days),
  sequence: same, map: (pairs) => new Map(pairs), fields: (fields) => Object.fromEntries(fields),
  decimal: (unscaled, scale) => new Decimal(unscaled, scale),
  timestamp(ms) {
    const at = new Date(Number(ms));
    if (Number.isNaN(at.getTime())) throw new Invalid("a timestamp outside of what Date holds (`json` reads it)");
    return at;
  },
};

/** Makes the JSON form, as a text. */
export const JSON_FORM = {
  null: "null",
  text: (text) => JSON.stringify(text),
  blob: (bytes) => `"0x${hex(bytes)}"`,
  boolean: String, small: String, big: String,
  real(x) {
    if (Number.isNaN(x)) return '"NaN"';
    if (!Number.isFinite(x)) return x > 0 ? '"Infinity"' : '"-Infinity"';
    const text = Object.is(x, -0) ? "-0" : String(x);
    return /[.e]/.test(text) ? text : `${text}.0`;
  },
  decimal(unscaled, scale) {
    const sign = unscaled < 0n ? "-" : "";
    const digits = String(unscaled < 0n ? -unscaled : unscaled);
    if (scale === 0) return sign + digits;
    if (scale > 0 && scale <= 64) {
      const all = digits.padStart(scale + 1, "0");
      return `${sign}${all.slice(0, -scale)}.${all.slice(-scale)}`;
    }
    const text = `${sign}${digits}e${-scale}`;
    // More digits overflow the numbers of most readers.
    return sign.length + digits.length - scale > 300 ? `"${text}"` : text;
  },
  timestamp(ms) {
    const day = floorDiv(ms, 86_400_000n);
    const rest = Number(ms - day * 86_400_000n);
    const s = Math.floor(rest / 1000);
    return `"${date(Number(day))}T${clock(s)}.${pad(rest % 1000, 3)}Z"`;
  },
  date: (days) => `"${date(days)}"`,
  sequence: (elements) => `[${elements.join(",")}]`,
  map: (pairs) => `{${pairs.map(([key, value]) => `${key.startsWith('"') ? key : JSON.stringify(key)}:${value}`).join(",")}}`,
  fields: (fields) => `{${fields.map(([name, value]) => `${JSON.stringify(name)}:${value}`).join(",")}}`,
};

const hex = (bytes) => Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
const pad = (n, width) => String(n).padStart(width, "0");
const clock = (s) => `${pad(Math.floor(s / 3600), 2)}:${pad(Math.floor(s / 60) % 60, 2)}:${pad(s % 60, 2)}`;
const floorDiv = (n, by) => (n < 0n ? (n - by + 1n) / by : n / by);

/** <https://howardhinnant.github.io/date_algorithms.html#civil_from_days> */
function date(days) {
  const z = days + 719_468;
  const era = Math.floor(z / 146_097);
  const doe = z - era * 146_097;
  const yoe = Math.floor((doe - Math.floor(doe / 1460) + Math.floor(doe / 36_524) - Math.floor(doe / 146_096)) / 365);
  const doy = doe - (365 * yoe + Math.floor(yoe / 4) - Math.floor(yoe / 100));
  const mp = Math.floor((5 * doy + 2) / 153);
  const month = mp < 10 ? mp + 3 : mp - 9;
  const year = yoe + era * 400 + (month <= 2 ? 1 : 0);
  const sign = year < 0 ? "-" : year > 9999 ? "+" : "";
  return `${sign}${pad(Math.abs(year), 4)}-${pad(month, 2)}-${pad(doy - Math.floor((153 * mp + 2) / 5) + 1, 2)}`;
}

function integer(bytes) {
  const n = bytes.length === 0 ? 0n : BigInt(`0x${hex(bytes)}`);
  return BigInt.asIntN(8 * bytes.length, n);
}

function inet(bytes) {
  if (bytes.length === 4) return Array.from(bytes).join(".");
  if (bytes.length !== 16) throw new Invalid("neither 4 nor 16 bytes");
  if (bytes.subarray(0, 10).every((b) => b === 0) && bytes[10] === 255 && bytes[11] === 255) {
    return `::ffff:${inet(bytes.subarray(12))}`;
  }
  const groups = Array.from({ length: 8 }, (_, i) => (bytes[2 * i] << 8) | bytes[2 * i + 1]);
  let [start, size] = [0, 0];
  for (let at = 0; at < 8; at++) {
    let end = at;
    while (end < 8 && groups[end] === 0) end++;
    if (end - at > Math.max(size, 1)) [start, size] = [at, end - at];
    at = end;
  }
  const text = groups.map((group) => group.toString(16));
  if (size === 0) return text.join(":");
  return `${text.slice(0, start).join(":")}::${text.slice(start + size).join(":")}`;
}

/** The shortest number that is this one in 32 bits. */
function single(x) {
  if (!Number.isFinite(x)) return x;
  for (let digits = 1; digits < 10; digits++) {
    const short = Number(x.toPrecision(digits));
    if (Math.fround(short) === x) return Object.is(x, -0) ? -0 : short;
  }
  return x;
}

class Bytes {
  constructor(all) {
    Object.assign(this, { all, at: 0 });
  }
  get left() {
    return this.all.length - this.at;
  }
  take(n) {
    if (n > this.left) throw new Invalid("truncated");
    this.at += n;
    return this.all.subarray(this.at - n, this.at);
  }
  int() {
    const [a, b, c, d] = this.take(4);
    return (a << 24) | (b << 16) | (c << 8) | d;
  }
  count(least) {
    const n = this.int();
    if (n < 0) throw new Invalid("negative number of elements");
    if (n > Math.floor(this.left / least)) throw new Invalid("more elements than bytes");
    return n;
  }
  value() {
    const n = this.int();
    return n < 0 ? null : this.take(n);
  }
  vint() {
    const first = this.take(1)[0];
    const extra = Math.clz32(~(first << 24));
    const head = extra >= 7 ? 0 : first & (0xff >> (extra + 1));
    return (BigInt(head) << BigInt(8 * extra)) | BigInt.asUintN(8 * extra, integer(this.take(extra)));
  }
  signedVint() {
    const n = this.vint();
    return (n >> 1n) ^ -(n & 1n);
  }
  done() {
    if (this.left > 0) throw new Invalid("bytes after the last element");
  }
}

/** The value of these bytes, by `make`. */
export function read(t, bytes, make = VALUES, depth = DEPTH) {
  if (depth === 0) throw new Invalid("nested too deep");
  const { name } = t;
  if (name === "text" || name === "ascii" || name === "varchar") {
    try {
      return make.text(decoder.decode(bytes));
    } catch {
      throw new Invalid("not UTF-8");
    }
  }
  if (name === "blob") return make.blob(bytes);
  // A tuple or UDT of no bytes is one whose every field is null.
  if (bytes.length === 0 && name !== "tuple" && name !== "udt") return make.null;
  if (bytes.length !== (FIXED[name] ?? bytes.length)) throw new Invalid(`not a value of type ${name}: wrong length`);
  const view = () => new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const rest = new Bytes(bytes);
  const element = (t, bytes) => (bytes === null ? make.null : read(t, bytes, make, depth - 1));
  switch (name) {
    case "tinyint": case "smallint": case "int": return make.small(Number(integer(bytes)));
    case "bigint": case "counter": return make.big(view().getBigInt64(0));
    case "boolean": return make.boolean(bytes[0] !== 0);
    case "float": return make.real(single(view().getFloat32(0)));
    case "double": return make.real(view().getFloat64(0));
    case "timestamp": return make.timestamp(view().getBigInt64(0));
    case "uuid": case "timeuuid":
      return make.text(hex(bytes).replace(/^(.{8})(.{4})(.{4})(.{4})/, "$1-$2-$3-$4-"));
    case "date": return make.date(view().getUint32(0) - 2 ** 31);
    case "time": {
      const nanos = view().getBigInt64(0);
      if (nanos < 0n || nanos >= 86_400_000_000_000n) throw new Invalid("not within a day");
      return make.text(`${clock(Number(nanos / 1_000_000_000n))}.${pad(nanos % 1_000_000_000n, 9)}`);
    }
    case "inet": return make.text(inet(bytes));
    case "varint":
      if (bytes.length > 1024) throw new Invalid("a varint of more than 1024 bytes");
      return make.big(integer(bytes));
    case "decimal": {
      const scale = rest.int();
      if (rest.left === 0 || rest.left > 1024) throw new Invalid("a decimal of no bytes, or of more than 1024");
      return make.decimal(integer(rest.take(rest.left)), scale);
    }
    case "duration": {
      const parts = [rest.signedVint(), rest.signedVint(), rest.signedVint()];
      rest.done();
      if (parts.slice(0, 2).some((n) => n !== BigInt.asIntN(32, n))) throw new Invalid("months or days out of range");
      const sign = parts.some((n) => n < 0n) ? "-" : "";
      const [months, days, nanos] = parts.map((n) => (n < 0n ? -n : n));
      return make.text(`${sign}${months}mo${days}d${nanos}ns`);
    }
    case "list": case "set": {
      const elements = [];
      for (let n = rest.count(4); n > 0; n--) elements.push(element(t.parts[0], rest.value()));
      rest.done();
      return make.sequence(elements);
    }
    case "map": {
      const pairs = [];
      for (let n = rest.count(8); n > 0; n--) {
        const key = element(t.parts[0], rest.value());
        pairs.push([key, element(t.parts[1], rest.value())]);
      }
      rest.done();
      return make.map(pairs);
    }
    case "vector": {
      const [one, elements] = [t.parts[0].inVector(), []];
      for (let n = 0; n < t.size; n++) {
        elements.push(read(t.parts[0], rest.take(one ?? Number(rest.vint())), make, depth - 1));
      }
      rest.done();
      return make.sequence(elements);
    }
  }
  // What was written before the type grew ends early.
  const parts = t.parts.map((part) => element(part, rest.left > 0 ? rest.value() : null));
  if (name === "udt") return make.fields(t.names.map((name, at) => [name, parts[at]]));
  rest.done();
  return make.sequence(parts);
}

/** A non-frozen collection without elements, or UDT without fields, does not exist: it reads as null. */
function isNothing(t, bytes) {
  const rest = new Bytes(bytes);
  if (t.name === "udt") return t.parts.every(() => rest.left === 0 || rest.value() === null);
  return bytes.length === 0 || rest.int() === 0;
}

/** The value of a column that was overwritten, or that stands in an image. */
export function whole(t, bytes, make = VALUES) {
  if (!t.isMultiCell()) return read(t, bytes, make);
  if (isNothing(t, bytes)) return make.null;
  if (t.name !== "list") return read(t, bytes, make);
  // In the order of their timeuuids, which is the list's.
  const [rest, elements] = [new Bytes(bytes), []];
  for (let n = rest.count(8); n > 0; n--) {
    rest.value();
    const one = rest.value();
    elements.push(one === null ? make.null : read(t.parts[0], one, make, DEPTH - 1));
  }
  rest.done();
  return make.sequence(elements);
}
