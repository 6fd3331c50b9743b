// Reads records of the plugin cloudevents as a consumer does, with the SDK of CloudEvents, and prints the events, strictly validated.
import { readFile } from "node:fs/promises";
import { createRequire } from "node:module";

const [clients, ...files] = process.argv.slice(2);
const { Kafka } = createRequire(`${clients}/`)("cloudevents");

/** Bytes, as a client of Kafka has them. */
function bytes(record, name) {
  if (record[`${name}_hex`] !== undefined) return Buffer.from(record[`${name}_hex`], "hex");
  const value = record[name];
  return value === null || value === undefined ? null : Buffer.from(typeof value === "string" ? value : JSON.stringify(value));
}

for (const file of files) {
  for (const line of (await readFile(file, "utf8")).trim().split("\n")) {
    const record = JSON.parse(line);
    const [key, value] = [bytes(record, "key").toString(), bytes(record, "value")];
    if (value === null) {
      // An event without data is one, by the specification; this SDK takes it for none.
      console.log(`${record.headers.ce_id}: no data`);
      continue;
    }
    const event = Kafka.toEvent({ key, value, headers: record.headers });
    event.validate();
    const { data, ...attributes } = event.toJSON();
    const sorted = Object.fromEntries(Object.entries(attributes).sort(([a], [b]) => (a < b ? -1 : 1)));
    console.log(JSON.stringify(sorted), "->", Buffer.isBuffer(data) ? data.toString("hex") : JSON.stringify(data));
  }
}
