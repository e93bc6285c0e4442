// Writes what follows from rollcall.js and index.d.ts for CommonJS: `node build.mjs`. With --check it only says whether
// that was done.

import { readFileSync, writeFileSync } from "node:fs";

const here = (name) => new URL(name, import.meta.url);
const text = (name) => readFileSync(here(name), "utf8");
const exported = [...text("rollcall.js").matchAll(/^export class (\w+)/gm)].map(([, name]) => name);
const made = {
  "rollcall.cjs":
    `// Made of rollcall.js by build.mjs.\n"use strict";\n\n` +
    text("rollcall.js").replace(/^export class /gm, "class ") +
    `\nmodule.exports = { ${exported.join(", ")} };\n`,
  "index.d.cts": `// Made of index.d.ts by build.mjs.\n\n` + text("index.d.ts"),
};
for (const [name, is] of Object.entries(made)) {
  if (!process.argv.includes("--check")) writeFileSync(here(name), is);
  else if (text(name) !== is) {
    console.error(`${name} does not follow from its source; run: node clients/js/build.mjs`);
    process.exitCode = 1;
  }
}
