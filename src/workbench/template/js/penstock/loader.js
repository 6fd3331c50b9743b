// For development: the engine and the SDK, and the transform as data. `penstock plugin build --watch` builds this once, and at each
// save only puts what bundle.mjs makes into the file.
import { log } from "penstock:plugin/host@0.1.0";
import { said } from "./index.js";

const SCRIPT = "transform.js";
let loaded = null;

export const development = {
  load(source) {
    try {
      const { code, files, lines } = JSON.parse(source);
      globalThis.penstockOrigin = (file, line) => {
        const at = file === SCRIPT ? lines[line - 1] : null;
        return at ? [files[at[0]], at[1]] : [file, line];
      };
      const exports = {};
      const script = (0, eval)(`(function (require, exports) {${code}\n})\n//# sourceURL=${SCRIPT}`);
      script(() => ({ log }), exports);
      loaded = exports;
    } catch (error) {
      throw said(error);
    }
  },
};

function transformed() {
  if (loaded === null) throw "this is the form for development, and its source is gone: build it again";
  return loaded;
}

export const transform = {
  configure: (settings) => transformed().transform.configure(settings),
  openTable: (table) => transformed().transform.openTable(table),
  process: (batch) => transformed().transform.process(batch),
};

export const description = { describe: () => transformed().description.describe() };
