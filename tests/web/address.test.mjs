// Addresses: every field is looked into, and a bad one is left out while the others stand.
import assert from "node:assert/strict";
import { test } from "node:test";
import { SHAPES } from "../../src/glassformer/web/js/shapes.js";
import { Store, fromFragment } from "../../src/glassformer/web/js/store.js";

const HEAD = { kind: "ablate_head", layer: 1, head: 2, position: null };
const AT = { text: "a", model: null, tab: "why", layer: 0, head: null, query: null, key: null, position: null, scene: null, zoom: null, token: null, against: null, edits: [HEAD] };

/** Values of each field that the page itself writes, and values that it must not take. @type {Record<string, [any[], any[]]>} */
const CASES = {
  text: [["a & b = \u{1F600}\n", "__proto__"], []],
  model: [["smollm2"], []],
  position: [[0, 7], [-1, 1.5, "3", null, [1], {}, true, 1e300]],
  layer: [[0], [-2, "x", 0.5]],
  head: [[3], [0.5, {}]],
  query: [[3], [[3], -1]],
  key: [[3], [false, "a"]],
  tab: [["why"], []],
  edits: [
    [[HEAD], [{ kind: "scale", part: "word", source: [1, 2], by: 0 }], [{ kind: "scale", part: "head", layer: 1, unit: 2, position: null, by: 2 }], [{ kind: "scale", part: "layer", layer: 1, position: null, by: 0.5 }],
      [{ kind: "scale", part: "read", layer: 0, unit: 1, source: [2], position: 3, by: 0 }], [{ kind: "knockout", source: [0] }], [{ kind: "ablate_read", layer: 0, head: 1, source: 2, position: 3 }],
      [{ kind: "ablate_attn", layer: 0, position: 3 }, { kind: "ablate_mlp", layer: 0 }, { kind: "ablate_neuron", layer: 0, neuron: 5, position: null }, { kind: "ablate_expert", layer: 0, expert: 5, position: null }],
      [{ kind: "steer", layer: 3, vector: [0.5, -1], strength: -2.5 }]],
    [3, {}, [null], ["x"], [{}], [{ kind: "unknown", layer: 1 }], [{ kind: "toString" }], [{ kind: "ablate_head", layer: "1", head: 2 }], [{ kind: "ablate_head", layer: 1 }], [{ ...HEAD, extra: 1 }], [HEAD, null],
      [{ kind: "knockout", source: 3 }], [{ kind: "knockout", source: [] }], [{ kind: "scale", part: "word", by: 1 }], [{ kind: "scale", part: "head", layer: 1, by: 1 }], [{ kind: "scale", part: "head", layer: 1, unit: 2, by: "1" }],
      [{ kind: "scale", part: "head", layer: 1, unit: 2, by: 99 }], [{ kind: "steer", layer: 1, vector: "abc", strength: 1 }], [{ kind: "steer", layer: 1, vector: [null], strength: 1 }], [{ kind: "steer", vector: [1], strength: 1 }]],
  ],
  temperature: [[0, 0.5, 2], [-1, 3, "1", null]],
  top_k: [[0, 40], [-1, 0.5, "1"]],
  top_p: [[0.9], [2, []]],
  min_p: [[0.1], [-0.1, {}]],
  token: [[" Paris"], []],
  against: [[" Rome"], []],
  unit: [["tokens", "words"], ["letters", "constructor"]],
  chips: [["words"], ["", "x"]],
  mode: [["matrix", "arcs"], ["x"]],
  sort: [["layer", "role"], ["x"]],
  what: [["next", "lens", "attention", "patch"], ["x"]],
  place: [["stream", "attention", "feed_forward", "heads"], ["x"]],
  other: [[{ text: "x", model: null }], [null, [], "x", { text: 3, model: null }, { text: "x", model: 1 }, { text: "x", theme: "dark" }]],
  word: [["mole"], []],
  contexts: [[["a mole", "b mole"]], ["x", {}, [1], ["a", null]]],
  run: [["little"], []],
  plane: [[["a", "b", "c"]], [["a"], ["a", "b", 3], {}, "abc"]],
  beside: [["why"], []],
  split: [[0.5, -3, 7], ["0.5", null]],
  sum: [["king - man + woman"], []],
  marks: [[{ names: { "a0.h1": "copies" }, groups: [["a0.h1", "m2"]], pinned: ["a0.h1"] }, {}], [3, [], { names: 3 }, { names: { a: 3 } }, { groups: ["a"] }, { groups: null }, { groups: [[1]] }, { pinned: "a" }, { pinned: [{}] }, { other: 1 }]],
  task: [["ioi"], []],
  nodes: [
    [{ asked: true, share: 0.5, groups: null, names: { "a0.h1@2": "copies" }, pinned: ["a0.h1@2"], by: 2 }, { asked: true }, { groups: [["a", "b"]] }],
    [null, 3, "x", [], { asked: "yes" }, { share: "x" }, { share: 5 }, { share: null }, { groups: 3 }, { groups: ["ab"] }, { groups: [[1]] }, { names: [] }, { names: null }, { names: { a: {} } }, { pinned: null }, { pinned: "a" }, { pinned: [1] }, { by: null }, { by: -1 }, { unknown: 1 }],
  ],
  notes: [[[{ at: AT, says: "look" }]], [3, {}, ["x"], [{ says: "x" }], [{ at: AT }], [{ at: { ...AT, tokens: 5 }, says: "x" }], [{ at: { ...AT, text: null }, says: "x" }], [{ at: { ...AT, edits: [1] }, says: "x" }], [{ at: { ...AT, edits: null }, says: "x" }]]],
  directions: [[[{ name: "a", words: "king - man" }, { name: "b", positive: ["x"], negative: ["y"], layer: 2, method: "mean", position: "last" }]], [{}, [null], [{}], [{ name: 3 }], [{ name: "a", words: 3 }], [{ name: "a", positive: "x" }], [{ name: "a", vector: {} }]]],
  table: [[{ texts: ["a"], metric: "entropy", token: null, against: null }], [null, [], {}, { texts: "a", metric: "entropy" }, { texts: [1], metric: "entropy" }, { texts: ["a"], metric: "other" }, { texts: ["a"], metric: "rank", token: 3 }]],
  through: [["mine"], []],
  lay: [[["mine", "layer_1"]], ["x", {}, [1], [null]]],
  scene: [["grid"], []],
  zoom: [["l3.h2"], []],
  lang: [["de"], []],
};

const read = (key, value) => fromFragment(`#text=stays&${key}=${encodeURIComponent(typeof CASES[key][0][0] === "string" ? value : JSON.stringify(value))}&layer=2`);

test("every field of an address has cases here", () => {
  assert.deepEqual(Object.keys(CASES).sort(), Object.keys(SHAPES).sort());
});

for (const [key, [good, bad]] of Object.entries(CASES)) {
  test(`an address's ${key} is what the page writes, or is left out`, () => {
    for (const value of good) {
      const there = fromFragment(new Store({ [key]: value }).fragment());
      assert.deepEqual(there, { [key]: value });
    }
    for (const value of bad) {
      assert.deepEqual(read(key, value), { text: "stays", layer: 2 }, `${key}=${JSON.stringify(value)}`);
    }
  });
}

test("what is no JSON, nested without end, or named twice is left out without a word", () => {
  assert.deepEqual(fromFragment("#nodes={&marks=%5B&table=%7B%22texts%22%3A&split=NaN&text=%E0%A4&layer=1&layer=-1"), { layer: 1 });
  const deep = encodeURIComponent("[".repeat(5000) + "]".repeat(5000));
  assert.deepEqual(fromFragment(`#nodes=${deep}&edits=${deep}&contexts=${deep}&layer=1`), { layer: 1 });
  const own = fromFragment(`#nodes=${encodeURIComponent('{"names":{"__proto__":"x"},"asked":true}')}`).nodes;
  assert.equal({}.x, undefined);
  assert.equal(own.asked, true);
});
