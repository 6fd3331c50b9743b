// For development: the transform and all that it imports as one script, and where each line of it is from. loader.js takes it.
import { writeFile } from "node:fs/promises";
import { posix } from "node:path";
import { rolldown } from "rolldown";

const DIGITS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

/** The numbers of a segment of a source map: five bits a digit, the lowest first, then a sign. */
function numbers(segment) {
  const all = [];
  let [value, shift] = [0, 0];
  for (const digit of segment) {
    const bits = DIGITS.indexOf(digit);
    value |= (bits & 31) << shift;
    shift += 5;
    if ((bits & 32) !== 0) continue;
    all.push((value & 1) !== 0 ? -(value >> 1) : value >> 1);
    [value, shift] = [0, 0];
  }
  return all;
}

/** Of each line of the script, the number of its file and its line there. */
function origins(mappings) {
  let [file, line] = [0, 0];
  return mappings.split(";").map((row) => {
    let first = null;
    for (const segment of row.split(",")) {
      const [, files, lines] = numbers(segment);
      if (lines === undefined) continue;
      file += files;
      line += lines;
      first ??= [file, line + 1];
    }
    return first;
  });
}

try {
  const bundle = await rolldown({ input: "index.js", external: [/^penstock:/], platform: "neutral" });
  const { output } = await bundle.generate({ format: "cjs", exports: "named", sourcemap: true, dir: "dist" });
  const [{ code, map }] = output;
  const files = map.sources.map((source) => posix.join("dist", source));
  await writeFile(process.argv[2], JSON.stringify({ code, files, lines: origins(map.mappings) }));
} catch (error) {
  console.error(error.message);
  process.exit(1);
}
