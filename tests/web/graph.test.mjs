// The kit for graphs: grouping and places, on plain data.
import assert from "node:assert/strict";
import { test } from "node:test";

globalThis.document = undefined;
const { grouped, placed } = await import("../../src/glassformer/web/js/graph.js");
const { mainWords } = await import("../../src/glassformer/web/js/views/reasons.js");
const { strongest } = await import("../../src/glassformer/web/js/views/prediction.js");

const node = (id, column, lane = 0.5) => ({ id, column, lane, text: id, about: id });
const edge = (from, to, measured, claimed = 1) => ({ from, to, measured, claimed, about: "" });

test("a group is one node; what flows between two nodes is one edge, and what was not measured stays so", () => {
  const { nodes, edges } = grouped([node("a", 0), node("b", 1), node("c", 2)], [edge("a", "b", 9), edge("a", "c", 1), edge("b", "c", 2)], [["a", "b"]]);
  assert.deepEqual(nodes.map((n) => n.id), ["c", "a+b"]);
  assert.deepEqual(edges.map((e) => [e.from, e.to, e.measured, e.claimed]), [["a+b", "c", 3, 2]]);
  assert.equal(grouped([node("a", 0), node("b", 1), node("c", 2)], [edge("a", "c", 1), edge("b", "c", null)], [["a", "b"]]).edges[0].measured, null);
  assert.equal(grouped([node("a", 0)], [], [["a", "gone"]]).nodes.length, 1);
});

test("a group keeps its name while some of it is left out, and the strongest nodes have the share asked for", () => {
  assert.deepEqual(grouped([node("a", 0), node("b", 1)], [], [["a", "gone", "b"]]).nodes.map((n) => n.id), ["a+gone+b"]);
  const nodes = [5, -3, 1, -1].map((effect) => ({ effect }));
  assert.deepEqual([0.05, 0.5, 0.51, 0.8, 0.81, 1].map((share) => strongest(nodes, share)), [1, 1, 2, 2, 3, 4]);
});

test("nodes stand in their columns, none on another", () => {
  const many = Array.from({ length: 25 }, (_, i) => node(String(i), i % 6, (i * 7 % 10) / 10));
  const { at, height } = placed(many, 900);
  const spots = [...at.values()];
  for (const [i, a] of spots.entries()) {
    assert.ok(a.x >= 0 && a.x <= 900 && a.y >= 13 && a.y <= height - 13);
    for (const b of spots.slice(i + 1)) assert.ok(Math.abs(a.x - b.x) > 20 || Math.abs(a.y - b.y) >= 26);
  }
});

test("words that are not drawn are summed, and nothing is lost", () => {
  const grid = Array.from({ length: 5 }, (_, i) => Array.from({ length: 5 }, (_, j) => (i + 1) * (j - 1)));
  const total = (g) => g.flat().reduce((x, v) => x + v, 0);
  const { kept, grid: small } = mainWords(grid, 3);
  assert.equal(kept.length, 3);
  assert.equal(small.length, 4);
  assert.equal(total(small), total(grid));
});

test("nodes of rows stand in their bands, far enough apart for their names", () => {
  const many = Array.from({ length: 60 }, (_, i) => ({ ...node(String(i), i % 12, (i * 7 % 10) / 10), row: Math.floor(i / 20) }));
  const { at, bands } = placed(many, 66 * 12 + 200);
  for (const [i, a] of many.entries()) {
    const [here, band] = [at.get(a.id), bands.find((one) => one.row === a.row)];
    assert.ok(here.y - 13 >= band.y - 1e-9 && here.y + 13 <= band.y + band.height + 1e-9);
    for (const b of many.slice(i + 1)) {
      const other = at.get(b.id);
      assert.ok(Math.abs(here.x - other.x) >= 100 || Math.abs(here.y - other.y) >= (here.x === other.x ? 26 : 16), `${a.id} ${b.id}`);
    }
  }
});
