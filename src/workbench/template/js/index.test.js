// Unit tests, without a host: `npm test`. The golden cases in `cases` run the built plugin.
import assert from "node:assert/strict";
import { test } from "node:test";

import { transform } from "./index.js";
import { Harness } from "./penstock/testing.js";

test("named words are let go of", () => {
  const harness = new Harness(transform, { drop: ["order.cancelled"] });
  const outbox = harness.table("shop.outbox", "id uuid primary, event_type text");
  assert.deepEqual(harness.run(outbox, { event_type: "order.cancelled" }), [{ dropped: 1 }]);
  assert.deepEqual(harness.run(outbox, { event_type: "order.created" }), [{ forwarded: 1 }]);
});

test("an unknown setting is refused", () => {
  assert.throws(() => new Harness(transform, { dorp: "x" }), /unknown setting `dorp`/);
});
