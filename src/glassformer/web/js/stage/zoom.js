/** From the whole machine to a layer, a head, a cell, one product, in the same picture, and back. */

import { say } from "../words.js";

/** @typedef {{layer?: number, head?: number, query?: number, key?: number, dim?: number}} Place */

export class Zoom {
  /** @param {any} stage */
  constructor(stage) {
    this.stage = stage;
    /** @type {Place[]} */
    this.path = [];
  }

  /** @param {Place} place */
  into(place) {
    void place;
  }

  /** @param {number} to how many steps remain */
  back(to) {
    void to;
  }

  /** @param {string|null} address */
  follow(address) {
    void address;
  }

  crumbs() {
    return [{ name: say("zoom.whole"), to: 0 }];
  }

  /** @returns {{room: string, set: Record<string, any>}|null} */
  target() {
    return null;
  }

  told() {
    return "";
  }

  /** @param {any} pen */
  paint(pen) {
    void pen;
  }
}
