// Makes the component: `penstock plugin build` runs it. Clocks, randomness, files and HTTP are left out, since there are none.
import { writeFile } from "node:fs/promises";
import { componentize } from "@bytecodealliance/componentize-js";

const { component } = await componentize({
  sourcePath: "index.js",
  witPath: "penstock/penstock.wit",
  worldName: "whole",
  disableFeatures: ["random", "stdio", "clocks", "http", "fetch-event"],
});
await writeFile(process.argv[2], component);
