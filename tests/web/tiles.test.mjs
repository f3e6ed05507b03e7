// Tiles of a pattern: asked for once, dropped when another head is shown, told when they cannot be had.
import assert from "node:assert/strict";
import { test } from "node:test";
import { TILE, Tiles, start } from "../../src/glassformer/web/js/tiles.js";

const soon = () => new Promise((done) => setTimeout(done, 0));

/** Tokens 0 to n-1; the weight of (q, k) is q + k / 1000. */
function pattern(n, asked) {
  return {
    async get(view, ask, { signal }) {
      asked.push(ask);
      await soon();
      if (signal.aborted) throw new Error("gone");
      const [rows, columns] = [Math.ceil((Math.min(ask.q1, n) - ask.q0) / ask.stride), Math.ceil((Math.min(ask.k1, n) - ask.k0) / ask.stride)];
      const data = new Float32Array(rows * columns);
      for (let i = 0; i < rows; i++) for (let j = 0; j < columns; j++) data[i * columns + j] = ask.q0 + i * ask.stride + (ask.k0 + j * ask.stride) / 1000;
      return { tile: { shape: [rows, columns], data } };
    },
  };
}

test("a tile is asked for once, and its weights are where they belong", async () => {
  const asked = [];
  let arrived = 0;
  const tiles = new Tiles(pattern(300, asked), () => ({ head: 1 }), () => (arrived += 1), assert.fail);
  assert.equal(tiles.weight(280, 3), null);
  for (let i = 0; i < 3; i++) assert.equal(tiles.at(TILE, 0), null);
  await soon();
  await soon();
  assert.equal(asked.length, 1);
  assert.deepEqual({ ...asked[0] }, { head: 1, q0: 256, q1: 512, k0: 0, k1: 256, stride: 1 });
  assert.equal(arrived, 1);
  assert.equal(tiles.at(TILE, 0).h, 44);
  assert.ok(Math.abs(tiles.weight(280, 3) - 280.003) < 1e-4);
});

test("zoomed out, a tile spans several tokens a cell and says nothing of single weights", async () => {
  const asked = [];
  const tiles = new Tiles(pattern(2000, asked), () => ({}), () => {}, assert.fail);
  tiles.at(0, 0, 4);
  await soon();
  await soon();
  assert.equal(asked[0].q1, 1024);
  assert.equal(tiles.at(0, 0, 4).w, TILE);
  assert.equal(tiles.weight(3, 3), null);
});

test("what was asked for another head is dropped", async () => {
  const asked = [];
  const tiles = new Tiles(pattern(10, asked), () => ({}), assert.fail, assert.fail);
  tiles.at(0, 0);
  tiles.forget();
  await soon();
  await soon();
  assert.equal(tiles.held.size, 0);
  tiles.arrived = () => {};
  tiles.at(0, 0);
  await soon();
  await soon();
  assert.equal(tiles.held.size, 1);
});

test("a tile that cannot be had is said, and asked for again the next time", async () => {
  const said = [];
  const tiles = new Tiles({ get: async () => { throw new Error("There is no such head."); } }, () => ({}), assert.fail, (text) => said.push(text));
  tiles.at(0, 0);
  await soon();
  tiles.at(0, 0);
  await soon();
  assert.deepEqual(said, ["There is no such head.", "There is no such head."]);
});

test("tiles begin at multiples of their side", () => assert.deepEqual([0, 255, 256, 700].map(start), [0, 0, 256, 512]));
