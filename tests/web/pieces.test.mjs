// The store, the address, the treemap, numbers in words, arrays, reports: nothing here needs a page.
import assert from "node:assert/strict";
import { test } from "node:test";
import { number, percent, shown } from "../../src/glassformer/web/js/dom.js";
import { unpack } from "../../src/glassformer/web/js/source.js";
import { Store, fromFragment } from "../../src/glassformer/web/js/store.js";
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
