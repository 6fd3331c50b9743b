// Makes the component: `penstock plugin build` runs it. Clocks, randomness, files and HTTP are left out, since there are none.
//   node penstock/build.mjs <out>           of the transform
//   node penstock/build.mjs <out> loader    of loader.js, for development
import { writeFile } from "node:fs/promises";
import { componentize } from "@bytecodealliance/componentize-js";

const [out, what] = process.argv.slice(2);
const { component } = await componentize({
  sourcePath: what === "loader" ? "penstock/loader.js" : "index.js",
  witPath: "penstock/penstock.wit",
  worldName: what === "loader" ? "whole-of-source" : "whole",
  disableFeatures: ["random", "stdio", "clocks", "http", "fetch-event"],
});
await writeFile(out, component);
