// Makes the component: `penstock plugin build` runs it. Clocks, randomness, files and HTTP are left out, since there are none.
//   node penstock/build.mjs <out>           of the transform
//   node penstock/build.mjs <out> loader    of loader.js, for development
import { spawnSync } from "node:child_process";
import { readdirSync } from "node:fs";
import { writeFile } from "node:fs/promises";

const [out, what] = process.argv.slice(2);

/** The author's sources below a folder, by their paths. */
function sources(folder) {
  return readdirSync(folder, { withFileTypes: true }).flatMap((entry) => {
    const path = folder === "." ? entry.name : `${folder}/${entry.name}`;
    if (entry.name.startsWith(".") || ["node_modules", "penstock", "target", "cases"].includes(entry.name)) return [];
    if (entry.isDirectory()) return sources(path);
    return /\.m?js$/.test(entry.name) && !/\.test\.m?js$/.test(entry.name) ? [path] : [];
  });
}

// What the engine cannot read it refuses without a place; Node says file, line and column.
for (const file of what === "loader" ? [] : sources(".")) {
  const { status, stderr } = spawnSync(process.execPath, ["--check", file], { encoding: "utf8" });
  if (status === 0) continue;
  const lines = stderr.split("\n").filter((line) => !/^\s+at |^Node\.js v|^$/.test(line));
  console.error(lines.join("\n").replaceAll(`file://${process.cwd()}/`, "").replaceAll(`${process.cwd()}/`, ""));
  process.exit(1);
}
const { componentize } = await import("@bytecodealliance/componentize-js");
const { component } = await componentize({
  sourcePath: what === "loader" ? "penstock/loader.js" : "index.js",
  witPath: "penstock/penstock.wit",
  worldName: what === "loader" ? "whole-of-source" : "whole",
  disableFeatures: ["random", "stdio", "clocks", "http", "fetch-event"],
});
await writeFile(out, component);
