// Every language has every sentence, with the same fields, and no module puts a text on screen that is not in the words' files.
import assert from "node:assert/strict";
import { readFileSync, readdirSync } from "node:fs";
import { test } from "node:test";
import { ROOMS } from "../../src/glassformer/web/js/main.js";
import { editName } from "../../src/glassformer/web/js/edits.js";
import { TERMS, forms } from "../../src/glassformer/web/js/terms.js";
import { LANGUAGES, inQuotes, need, onSpoken, said, say, speak } from "../../src/glassformer/web/js/words.js";

const fields = (text) => [...new Set([...text.matchAll(/\{(\w+)(?:\|[^|}]*\|[^}]*)?\}/g)].map((m) => m[1]))].sort();
const all = async (tag) => Object.assign({}, ...(await Promise.all(Object.values(LANGUAGES[tag].parts).map((part) => part()))));

test("every language is complete, part by part, by the same keys and fields", async () => {
  const seen = new Set();
  for (const [part, load] of Object.entries(LANGUAGES.en.parts)) {
    const english = await load();
    for (const key of Object.keys(english)) assert.ok(!seen.has(key) && seen.add(key), `${key} stands twice`);
    for (const [tag, { parts }] of Object.entries(LANGUAGES)) {
      const words = await parts[part]();
      assert.deepEqual(Object.keys(words).sort(), Object.keys(english).sort(), `${tag} ${part}`);
      for (const [key, text] of Object.entries(words)) assert.deepEqual(fields(text), fields(english[key]), `${tag} ${key}`);
    }
  }
});

const JS = new URL("../../src/glassformer/web/js/", import.meta.url);
const modules = readdirSync(JS, { recursive: true }).filter((name) => name.endsWith(".js") && !name.startsWith("words"));
const code = (name) => readFileSync(new URL(name, JS), "utf8").replace(/\/\*[\s\S]*?\*\//g, "").replace(/(^|\s)\/\/ .*/g, "$1");

test("what the page says is in the files", async () => {
  const words = await all("en");
  for (const name of modules) for (const [, key] of code(name).matchAll(/\b(?:say|said|spoken)\("([^"]+)"/g)) assert.ok(key in words, `${name}: ${key}`);
});

test("what a room says comes with it, or is there from the start", async () => {
  const begun = { ...(await LANGUAGES.en.parts.page()), ...(await LANGUAGES.en.parts.stage()) };
  const inside = ["arcs", "cell", "corpus", "experts", "heads", "matrix", "reasons", "circuit", "prediction", "steering", "lenses"].map((name) => [name, "inside"]);
  const learning = ["film", "descent", "train", "taught"].map((name) => [name, "learning"]);
  const beside = [["directions", "beside"]];
  const parts = Object.fromEntries([...ROOMS.map(([name, part]) => [name, part]), ...inside, ...beside, ...learning].map(([name, part]) => [`views/${name}.js`, part]));
  for (const name of modules) {
    const here = { ...begun, ...(await (LANGUAGES.en.parts[parts[name] ?? (({ "graph.js": "inside", "terms.js": "terms", "tour.js": "tour" })[name] ?? "page")])()) };
    for (const [, key] of code(name).matchAll(/\b(?:say|said|spoken)\("([^"]+)"/g)) assert.ok(key in here, `${name}: ${key} is not among the words that come with it`);
  }
});

/** Where a text goes on screen: after a tag's properties, as a label, a hint or an error, as text, in a tooltip. */
const SHOWN = [
  /"(?:aria-label|title|placeholder|alt|aria-valuetext)": *(["`][^"`\n]*["`])/g, /\b(?:title|placeholder|label|alt): (["`][^"`\n]*["`])/g,
  /(?:textContent|\.placeholder|\.title|\.data) = [^;\n]*?(["`][^"`\n]*["`])/g, /(?:\}|, ) *(["`][^"`\n]*["`])\)/g, /\? (["`][^"`\n]*["`]) :/g, /new (?:Error|SourceProblem)\((["`][^"`\n]*["`])/g,
  /\[(?:"[^"\n]*"), (["`][^"`\n]*["`])\]/g,
];
/** A text that says something: a word that begins with a capital, or two in a row; identifiers, selectors, units and formulas aside. */
const speaks = (/** @type {string} */ text) => /^["`]?[A-Z][a-z]+|[A-Za-z]{2,}[,;:]? [a-z]{2,}/.test(text.replace(/\$\{[^{}]*\}/g, "·")) && !/^["`](?:[#.]|--|url\(|rgb|\(prefers|M \$|0 0)/.test(text);
/** What is on screen in every language: names, keys of the keyboard, texts that the model is given, classes. */
const NAMES = /^["`](?:Glassformer|CSV|SVG|Tab|Enter|Escape|Gone|NotHere|Cancelled|Error|Home|End|UsageError|Arrow\w+|no session|allow-scripts.*|glassformer open .*)["`]$/;
const given = (/** @type {string} */ text) => text.replace(/const (EXAMPLES|WORDS|PLANES|PAIRS|START|STOPS|TEXT|TYPES) = [\s\S]*?\n(?:\]|\}|\}\));|const (TEXT|START) = .*;/g, "").replace(/class(?:Name)?: *(?:[^,{}]|\$\{[^}]*\})*/g, "");

const texts = (/** @type {string} */ source) => SHOWN.flatMap((where) => [...given(source).matchAll(where)].map((m) => m[1])).filter((text) => speaks(text) && !NAMES.test(text));

test("no module says a text of its own", () => {
  for (const [line, found] of [
    ['h("p", { class: "row small soft" }, "One word, several meanings")', '"One word, several meanings"'], ['h("button", { "aria-label": "Undo" }, "↶")', '"Undo"'],
    ["said.textContent = `Stopped after ${n} tokens.`;", "`Stopped after ${n} tokens.`"], ['throw new Error("Nothing was computed here yet.")', '"Nothing was computed here yet."'],
  ]) assert.deepEqual(texts(line).slice(0, 1), [found], line);
  assert.deepEqual(modules.flatMap((name) => texts(code(name)).map((text) => `${name}: ${text}`)), []);
});

test("quotation marks are the language's, and no module has any of its own", async () => {
  assert.deepEqual(modules.filter((name) => /[“”„«»]/.test(code(name))), []);
  assert.equal(inQuotes("{word}"), "“{word}”");
  await speak("de");
  assert.equal(inQuotes("a"), "„a“");
  assert.match(editName({ kind: "ablate_read", layer: 0, head: 1, source: 0, position: null }, ["Haus"]), /„Haus“/);
  await speak("en");
});

test("a sentence takes its fields, is said again in another language, and an unknown language changes nothing", async () => {
  const undo = said("session.undo");
  assert.equal(undo(), "Undo");
  let told = 0;
  onSpoken(() => { told++; });
  await need("learning");
  await speak("de-CH");
  assert.equal(told, 1);
  assert.equal(undo(), "Rückgängig");
  assert.equal(say("stage.of", { n: 1, all: 13 }), "Szene 1 von 13");
  assert.deepEqual([1, "1", 2, "1,000"].map((a) => say("write.stopped", { a })), ["Nach 1 Token angehalten.", "Nach 1 Token angehalten.", "Nach 2 Tokens angehalten.", "Nach 1,000 Tokens angehalten."]);
  assert.equal(say("learn.list"), (await LANGUAGES.de.parts.learning())["learn.list"]);
  await speak("xx");
  assert.equal(say("stage.of", { n: 1, all: 13 }), "Szene 1 von 13");
  await speak("en");
  assert.equal(say("stage.of", { n: 1, all: 13 }), "scene 1 of 13");
});

test("a term is found in each of its forms, the longest first, and never inside another word", async () => {
  await need("terms");
  const found = (/** @type {string} */ text) => { const { of, find } = forms(); return [...text.matchAll(find)].map(([form]) => of.get(form.toLowerCase())); };
  assert.deepEqual(found("The residual stream of this head, 1.2 nats; top-k of logits"), ["stream", "head", "nat", "topk", "logit"]);
  assert.deepEqual(found("ahead, nature, heading, keyboards"), []);
  await speak("de");
  assert.deepEqual(found("Der Reststrom und die Köpfe dieser Schichten"), ["stream", "head", "layer"]);
  await speak("en");
  const { of } = forms();
  assert.deepEqual([...new Set(of.values())], TERMS, "a form stands for two terms");
});
