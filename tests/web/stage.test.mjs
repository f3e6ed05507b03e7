// The stage's geometry and scoring: nothing here needs a page.
import assert from "node:assert/strict";
import { test } from "node:test";

globalThis.document = undefined;
const { corners } = await import("../../src/glassformer/web/js/stage/scenes_words.js");
const { mixed } = await import("../../src/glassformer/web/js/stage/quiz.js");

test("corners have the distances of the directions", () => {
  const cos = [[1, 0.9, 0.5], [0.9, 1, 0.4], [0.5, 0.4, 1]];
  const points = corners(cos, 3);
  for (const [i, j] of [[0, 1], [0, 2], [1, 2]]) {
    const far = Math.hypot(points[i][0] - points[j][0], points[i][1] - points[j][1]);
    assert.ok(Math.abs(far - Math.sqrt(2 - 2 * cos[i][j])) < 1e-9);
  }
  const same = corners([[1, 1], [1, 1]], 2);
  assert.deepEqual(same[0].map(Math.abs), [0, 0]);
});

test("choices hold the right answer once, at the place that is named, and no doubles", () => {
  for (let seed = 0; seed < 20; seed++) {
    const { choices, right } = mixed("b", ["a", "b", "c", "c", "d", "e"], seed);
    assert.equal(choices[right], "b");
    assert.equal(new Set(choices).size, choices.length);
    assert.equal(choices.length, 4);
  }
});
