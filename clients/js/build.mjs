// Generates the files for CommonJS from rollcall.js and index.d.ts: `node build.mjs`. With --check it only reports whether they
// are up to date.

import { readFileSync, writeFileSync } from "node:fs";

const here = (name) => new URL(name, import.meta.url);
const text = (name) => readFileSync(here(name), "utf8");
const exported = [...text("rollcall.js").matchAll(/^export class (\w+)/gm)].map(([, name]) => name);
const made = {
  "rollcall.cjs":
    `// Generated from rollcall.js by build.mjs.\n"use strict";\n\n` +
    text("rollcall.js").replace(/^export class /gm, "class ") +
    `\nmodule.exports = { ${exported.join(", ")} };\n`,
  "index.d.cts": `// Generated from index.d.ts by build.mjs.\n\n` + text("index.d.ts"),
};
for (const [name, is] of Object.entries(made)) {
  if (!process.argv.includes("--check")) writeFileSync(here(name), is);
  else if (text(name) !== is) {
    console.error(`${name} is out of date; run: node clients/js/build.mjs`);
    process.exitCode = 1;
  }
}
