// {about}.
import { plugin } from "./penstock/index.js";

export const { transform, description } = plugin({
  name: "{name}",
  doc: "{about}.",
  settings: [
    { name: "drop", kind: "texts", doc: 'the words, e.g. ["order.cancelled"]' },
    { name: "column", default: "event_type", doc: "the text column; tables without it pass by" },
  ],
  /** An instance of its settings. An exception refuses them: what ran before goes on. */
  configure(settings) {
    const drop = settings.texts("drop");
    const column = settings.get("column", "event_type");
    return {
      /** Asked for each version of a table. The fewer columns are wanted, the less is copied. */
      interest: (table) => (table.index.has(column) ? table.only(column) : table.none()),
      /** Called for each change. An exception sends this change, and no other, to the dead letters. */
      process(change, out) {
        if (drop.includes(change.get(column))) out.drop();
        else out.forward();
      },
    };
  },
});
