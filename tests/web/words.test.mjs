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

test("what the stage says is in the file", async () => {
  const words = await LANGUAGES.en.load();
  const folder = new URL("../../src/glassformer/web/js/stage/", import.meta.url);
  for (const name of readdirSync(folder)) {
    for (const [, key] of readFileSync(new URL(name, folder), "utf8").matchAll(/say\("([^"]+)"/g)) assert.ok(key in words, `${name}: ${key}`);
  }
});

test("a sentence takes its fields, and an unknown language changes nothing", async () => {
  await speak("de-CH");
  assert.equal(say("stage.of", { n: 1, all: 13 }), "Szene 1 von 13");
  await speak("xx");
  assert.equal(say("stage.of", { n: 1, all: 13 }), "Szene 1 von 13");
  await speak("en");
  assert.equal(say("stage.of", { n: 1, all: 13 }), "scene 1 of 13");
});
