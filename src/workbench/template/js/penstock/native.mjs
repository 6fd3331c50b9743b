// For unit tests, which have no host: `node --import ./penstock/native.mjs --test`. What is logged goes to standard error.
import { register } from "node:module";

const host = "data:text/javascript,export const log = (level, text) => console.error(`${level}: ${text}`);";
const hooks = `export const resolve = (name, context, next) =>
  name.startsWith("penstock:plugin/host") ? { url: ${JSON.stringify(host)}, shortCircuit: true } : next(name, context);`;
register(`data:text/javascript,${encodeURIComponent(hooks)}`);
