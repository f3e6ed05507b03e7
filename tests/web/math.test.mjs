// The arithmetic of sampling, on plain numbers.
import assert from "node:assert/strict";
import { test } from "node:test";
import { entropy, labels, sampling, softmax, sorted } from "../../src/glassformer/web/js/math.js";

const near = (a, b, by = 1e-9) => assert.ok(Math.abs(a - b) < by, `${a} is not ${b}`);
const sum = (p) => p.reduce((s, x) => s + x, 0);
const none = { temperature: 1, top_k: 0, top_p: 1, min_p: 0 };
const LOGITS = Float32Array.from([2, 1, 0, -1, -800]);

test("softmax sums to 1, and large logits do not overflow", () => {
  near(sum(softmax(LOGITS, 1)), 1);
  near(softmax([1000, 1000], 1)[0], 0.5);
  near(softmax([0, Math.log(3)], 1)[1], 0.75);
});

test("nothing switched on leaves the distribution as it is", () => {
  const d = sampling(LOGITS, none);
  assert.deepEqual(d.final, d.raw);
  assert.equal(d.kept, LOGITS.length);
});

test("temperature 0 takes the first token only", () => {
  const d = sampling(LOGITS, { ...none, temperature: 0 });
  assert.equal(d.final[0], 1);
  assert.equal(sum(d.final), 1);
});

test("top-k keeps k, rescaled", () => {
  const d = sampling(LOGITS, { ...none, top_k: 2 });
  assert.equal(d.kept, 2);
  near(d.final[0] / d.final[1], Math.E, 1e-6);
  near(sum(d.final), 1);
});

test("top-p keeps the fewest that reach p, and at least one", () => {
  const p = sampling(Float32Array.from([Math.log(0.5), Math.log(0.3), Math.log(0.2)]), { ...none, top_p: 0.6 });
  assert.equal(p.kept, 2);
  assert.equal(sampling(LOGITS, { ...none, top_p: 0.01 }).kept, 1);
});

test("min-p keeps what is likely enough beside the first", () => {
  const d = sampling(Float32Array.from([Math.log(0.6), Math.log(0.3), Math.log(0.1)]), { ...none, min_p: 0.4 });
  assert.equal(d.kept, 2);
});

test("equals are in the order of their ids", () => {
  assert.deepEqual([...sorted(Float64Array.from([0.25, 0.5, 0.25]))], [1, 0, 2]);
});

test("the order is that of the numbers, of either sign and of any size", () => {
  const drawn = Float32Array.from({ length: 3000 }, (_, i) => Math.sin(i * 12.9898) * 10 ** ((i % 9) - 4));
  const all = Float32Array.from([-Infinity, 0, 3, ...drawn, 3, Infinity]);
  const right = [...all.keys()].sort((a, b) => (all[a] === all[b] ? a - b : all[b] - all[a]));
  assert.deepEqual([...sorted(all)], right);
});

test("entropy of a fair choice of four", () => near(entropy(Float64Array.from([0.25, 0.25, 0.25, 0.25])), Math.log(4)));

test("names of one place stand round it, inside the picture, none over another", () => {
  const { fits, near: put } = labels(300, 300);
  assert.ok(fits(144, 144, 12, 12));
  const spots = Array.from({ length: 9 }, () => put(150, 150, 8, 60, 13));
  for (const [i, [x, y]] of spots.entries()) {
    assert.ok(x >= 30 && x <= 270 && y >= 6.5 && y <= 293.5);
    assert.ok(Math.abs(x - 150) >= 36 - 1e-9 || Math.abs(y - 150) >= 12.5 - 1e-9, "over the dot");
    for (const [a, b] of spots.slice(i + 1)) assert.ok(Math.abs(x - a) >= 60 - 1e-9 || Math.abs(y - b) >= 13 - 1e-9);
  }
  assert.ok(!fits(140, 140, 10, 10));
});
