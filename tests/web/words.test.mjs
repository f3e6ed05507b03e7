// Every language has every sentence, with the same fields, and the stage asks for no sentence that is not there.
import assert from "node:assert/strict";
import { readFileSync, readdirSync } from "node:fs";
import { test } from "node:test";
import { LANGUAGES, say, speak } from "../../src/glassformer/web/js/words.js";

const fields = (text) => [...text.matchAll(/\{(\w+)\}/g)].map((m) => m[1]).sort();

test("every language is complete, by the same keys and fields", async () => {
  const english = await LANGUAGES.en.load();
  for (const [tag, { load }] of Object.entries(LANGUAGES)) {
    const words = await load();
    assert.deepEqual(Object.keys(words).sort(), Object.keys(english).sort(), tag);
    for (const [key, text] of Object.entries(words)) assert.deepEqual(fields(text), fields(english[key]), `${tag} ${key}`);
  }
});

const JS = new URL("../../src/glassformer/web/js/", import.meta.url);
const modules = readdirSync(JS, { recursive: true }).filter((name) => name.endsWith(".js") && !name.startsWith("words"));
const code = (name) => readFileSync(new URL(name, JS), "utf8");

test("what the page says is in the file", async () => {
  const words = await LANGUAGES.en.load();
  for (const name of modules) for (const [, key] of code(name).matchAll(/say\("([^"]+)"/g)) assert.ok(key in words, `${name}: ${key}`);
});

// Modules that were written before the words had a file of their own.
const BEFORE = ["edits.js", "keys.js", "main.js", "models.js", "report.js", "source.js", "picture.js", "tools.js", "tour.js", "ui.js",
  ...["arcs", "attention", "compare", "depth", "heads", "matrix", "next", "size", "timeline", "tokens", "why"].map((name) => `views/${name}.js`)];

/** Three words in a row inside a string: a sentence; texts to try and styles aside. */
const sentences = (text) => [...text.replace(/const (EXAMPLES|WORDS|PLANES) = [\s\S]*?;\n/g, "").replace(/\/\*\*[\s\S]*?\*\//g, "").replace(/\/\/ .*/g, "").replace(/class: [^,}]*/g, "").replace(/\$\{[^{}]*\}/g, "·")
  .matchAll(/"([^"\n]*)"|`([^`\n]*)`/g)].map(([, a, b]) => a ?? b).filter((x) => /[A-Za-z]{2,}[,;:]? [a-z]{2,}[,;:]? [a-z]{2,}/.test(x));

test("no module says a sentence of its own", () => {
  assert.deepEqual(sentences('h("p", { class: "row small soft" }, "One word, several meanings")'), ["One word, several meanings"]);
  for (const name of modules.filter((one) => !BEFORE.includes(one))) assert.deepEqual(sentences(code(name)), [], name);
});

test("a sentence takes its fields, and an unknown language changes nothing", async () => {
  await speak("de-CH");
  assert.equal(say("stage.of", { n: 1, all: 13 }), "Szene 1 von 13");
  await speak("xx");
  assert.equal(say("stage.of", { n: 1, all: 13 }), "Szene 1 von 13");
  await speak("en");
  assert.equal(say("stage.of", { n: 1, all: 13 }), "scene 1 of 13");
});
