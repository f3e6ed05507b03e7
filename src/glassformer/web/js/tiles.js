/** A head's pattern in tiles, each asked for when it is first looked at. */

import { unpack } from "./source.js";

/** Cells on a tile's side. */
export const TILE = 256;

/** @typedef {{data: Float32Array, w: number, h: number}} Tile */

export class Tiles {
  /**
   * @param {any} source
   * @param {() => any} what the request's fields: text, model, edits, layer, head
   * @param {() => void} arrived called after each tile
   * @param {(message: string) => void} failed
   */
  constructor(source, what, arrived, failed) {
    this.source = source;
    this.what = what;
    this.arrived = arrived;
    this.failed = failed;
    /** @type {Map<string, Tile>} */
    this.held = new Map();
    this.wanted = new Set();
    this.asking = new AbortController();
  }

  /** Drop everything: another head, text or model is shown from now on. */
  forget() {
    this.asking.abort();
    this.asking = new AbortController();
    this.held.clear();
    this.wanted.clear();
  }

  /**
   * The tile whose first cell is (row, column), in cells of `stride` tokens; asked for when it is not here.
   * @param {number} row @param {number} column @param {number} [stride] @returns {Tile|null}
   */
  at(row, column, stride = 1) {
    const name = `${row},${column},${stride}`;
    const found = this.held.get(name);
    if (!found && !this.wanted.has(name)) this.#fetch(name, row * stride, column * stride, stride);
    return found ?? null;
  }

  /** @param {string} name @param {number} q0 @param {number} k0 @param {number} stride */
  async #fetch(name, q0, k0, stride) {
    const { signal } = this.asking;
    const side = TILE * stride;
    this.wanted.add(name);
    try {
      const found = await this.source.get("attention", { ...this.what(), q0, q1: q0 + side, k0, k1: k0 + side, stride }, { signal });
      if (signal.aborted) return;
      const { data, shape } = unpack(found.tile);
      this.held.set(name, { data: /** @type {Float32Array} */ (data), w: shape[1], h: shape[0] });
      this.arrived();
    } catch (error) {
      if (!signal.aborted) this.failed(error instanceof Error ? error.message : String(error));
    } finally {
      if (!signal.aborted) this.wanted.delete(name);
    }
  }

  /** One weight, when its tile is here. @param {number} q @param {number} k @returns {number|null} */
  weight(q, k) {
    const [row, column] = [start(q), start(k)];
    const tile = this.held.get(`${row},${column},1`);
    return tile ? tile.data[(q - row) * tile.w + (k - column)] : null;
  }
}

/** Where the tile of a cell begins. @param {number} cell */
export function start(cell) {
  return Math.floor(cell / TILE) * TILE;
}
