// The store, the address, the treemap, numbers in words, arrays, reports: nothing here needs a page.
import assert from "node:assert/strict";
import { test } from "node:test";
import { number, percent, shown } from "../../src/glassformer/web/js/dom.js";
import { unpack } from "../../src/glassformer/web/js/source.js";
import { Store, fromFragment } from "../../src/glassformer/web/js/store.js";
import { arrays, table } from "../../src/glassformer/web/js/tables.js";
import { pieces } from "../../src/glassformer/web/js/views/corpus.js";
import { treemap } from "../../src/glassformer/web/js/treemap.js";

test("the store tells those concerned, once, and only of what changed", () => {
  const store = new Store({ a: 1, b: [1], c: 3 });
  const heard = [];
  const off = store.on(["a", "b"], (changed) => heard.push([...changed]));
  store.set({ a: 2, c: 4 });
  store.set({ a: 2, b: [1] });
  off();
  store.set({ a: 3 });
  assert.deepEqual(heard, [["a", "c"]]);
});

test("an address gives back what made it", () => {
  const values = { text: "a & b = \u{1F600}\n", layer: 3, head: 0, tab: "why", token: " 7", edits: [{ kind: "ablate_head", layer: 1, head: 2 }], other: { text: "x", model: null }, model: null };
  const { model, ...kept } = values;
  assert.equal(model, null);
  assert.deepEqual(fromFragment(new Store(values).fragment()), kept);
});

test("an address that makes no sense is passed over, field by field", () => {
  assert.deepEqual(fromFragment("#layer=%22x%22&edits=3&text=%ZZ&__proto__=1&nobody=2&temperature=0.5&other=null"), { temperature: 0.5 });
});

test("a treemap has the areas of its values and stays inside", () => {
  const boxes = treemap([{ name: "a", value: 6 }, { name: "b", value: 3 }, { name: "c", value: 1 }, { name: "none", value: 0 }], 100, 50);
  assert.equal(boxes.length, 3);
  for (const box of boxes) {
    assert.ok(Math.abs(box.w * box.h - box.value * 500) < 1e-6);
    assert.ok(box.x >= 0 && box.y >= 0 && box.x + box.w <= 100.001 && box.y + box.h <= 50.001);
  }
});

test("numbers and shares as people read them", () => {
  assert.equal(percent(0.12345), "12.3%");
  assert.equal(percent(0.00001), "<0.1%");
  assert.equal(percent(0), "0.0%");
  assert.equal(number(1234.5678), "1234.57");
  assert.equal(number(0.5), "0.5");
  assert.equal(number(null), "–");
  assert.equal(number(1.5e-7), "1.50e-7");
});

test("what cannot be seen in a token has a sign", () => {
  assert.equal(shown(" a b\n"), "␣a b⏎");
  assert.equal(shown("\u202e"), "‹202e›");
  assert.equal(shown(""), "∅");
});

test("arrays of every kind that is sent", () => {
  const of = (array) => Buffer.from(array.buffer).toString("base64");
  assert.deepEqual([...unpack({ shape: [2], dtype: "float32", base64: of(Float32Array.from([1.5, -2])) }).data], [1.5, -2]);
  assert.deepEqual([...unpack({ shape: [2], dtype: "uint8", base64: of(Uint8Array.from([1, 255])) }).data], [1, 255]);
  assert.deepEqual([...unpack({ shape: [1], dtype: "uint16", base64: of(Uint16Array.from([65535])) }).data], [65535]);
});

test("a text is read in pieces that end where lines do, and all of it", () => {
  const text = "one\ntwo and more\n\nthree\n" + "x".repeat(25);
  for (const long of [4, 9, 12, 100]) {
    const parts = pieces(text, long);
    assert.equal(parts.join("").replaceAll("\n", ""), text.replaceAll("\n", ""));
    for (const part of parts) assert.ok(part.length <= long && part.trim());
  }
  assert.deepEqual(pieces("one\ntwo", 5), ["one\n", "two"]);
  assert.deepEqual(pieces(" \n"), []);
});

const rowsOf = (found, tokens = []) => table(found, tokens).trimEnd().split("\r\n").map((row) => row.split(","));

test("lists in lists and records in records leave whole", () => {
  const found = { similarity: [[[1, 2], [3, 4]], [[5, 6], [7, null]]], places: ["a", "b"], rows: [{ cells: [{ entropy: 1, top: [{ p: 2 }] }, { entropy: 3, top: [{ p: 4 }] }] }], ragged: [[1], [1, 2]], none: [] };
  const told = Object.fromEntries(arrays(found).map(([name, shape, data, type]) => [name, [shape, [...data], type]]));
  assert.deepEqual(told.similarity, [[2, 2, 2], [1, 2, 3, 4, 5, 6, 7, NaN], "<f8"]);
  assert.deepEqual(told["rows.cells.entropy"], [[1, 2], [1, 3], "<f8"]);
  assert.deepEqual(told["rows.cells.top.p"], [[1, 2, 1], [2, 4], "<f8"]);
  assert.deepEqual([told.places[2], told.ragged[2], told.none], ["text", "text", undefined]);
});

test("a table holds the lists that belong together, by name and in order", () => {
  assert.deepEqual(rowsOf({ label: "x", q: [1, 2, 3], k: [4, 5, 6], row: { keys: [0, 1], weights: [0.5, 0.5] } }), [["q", "k"], ["1", "4"], ["2", "5"], ["3", "6"]]);
  assert.deepEqual(rowsOf({ places: ["a", "b", "c"], dots: [[[1, 2], [3, 4]], [[5, 6], [7, 8]], [[9, 0], [1, null]]], texts: [{ n: 1 }, { n: 2 }] }), [["places", "dots.0", "dots.1", "dots.2", "dots.3"], ["a", "1", "2", "3", "4"], ["b", "5", "6", "7", "8"], ["c", "9", "0", "1", ""]]);
  assert.deepEqual(rowsOf({ parts: [{ layer: 0, edit: null }, { layer: 1, edit: { a: [1] } }] }), [["layer", "edit"], ["0", ""], ["1", '"{""a"":[1]}"']]);
  assert.deepEqual(rowsOf({ passages: [{ output: 1.5, before: "x" }], raises: ["a", "b", "c"] }), [["output", "before"], ["1.5", "x"]]);
  assert.deepEqual(rowsOf({ losses: [0.5, 2], mean: 1.25 }, ["The", " mole", " is"]), [["position", "token", "nats"], ["1", " mole", "0.5"], ["2", " is", "2"]]);
});
