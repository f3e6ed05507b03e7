/** From the whole machine to a layer, a head, a cell, one product, in the same picture, and back. */

import { say } from "../words.js";
import { word } from "./asking.js";

/** @typedef {import("./paint.js").Pen} Pen */
/** @typedef {{layer?: number, head?: number, query?: number, key?: number, dim?: number}} Place */

const LEVELS = /** @type {(keyof Place)[]} */ (["layer", "head", "key", "dim"]);

export class Zoom {
  /** @param {import("./stage.js").Stage} stage */
  constructor(stage) {
    this.stage = stage;
    /** The way in: each step with what it adds. @type {Place[]} */
    this.path = [];
    /** Answers of views, by question. @type {Map<string, any>} */
    this.known = new Map();
    /** @type {import("./closer.js").Closer|null} */
    this.closer = null;
    this.fetching = false;
    /** @type {string|null} */
    this.problem = null;
  }

  /** Where one is. @returns {Place} */
  get place() {
    return Object.assign({}, ...this.path);
  }

  /** What kind of part is shown, or null for the whole machine. @returns {string|null} */
  get level() {
    return [null, "layer", "head", "cell", "product"][this.path.length] ?? null;
  }

  /** @param {Place} place @param {import("./paint.js").Box|null} [box] what grows to the whole picture */
  into(place, box = null) {
    this.stage.pause();
    this.stage.shot(box ?? this.stage.overlay.box());
    /** @type {Place[]} */
    const path = [];
    const whole = { ...this.place, ...place };
    for (const level of LEVELS) {
      if (whole[level] === undefined) break;
      path.push(level === "key" ? { query: whole.query, key: whole.key } : { [level]: whole[level] });
    }
    this.path = path;
    this.#told();
  }

  /** @param {number} to how many steps remain */
  back(to) {
    if (to >= this.path.length || to < 0) return;
    this.stage.shot(null, true);
    this.path = this.path.slice(0, to);
    this.#told();
  }

  /** The place as it stands in the page's address; null is the whole machine. */
  get address() {
    const { layer, head, query, key, dim } = this.place;
    return [["l", layer], ["h", head], ["q", query], ["k", key], ["d", dim]].filter(([, v]) => v !== undefined).map(([n, v]) => `${n}${v}`).join(".") || null;
  }

  #told() {
    this.stage.state.set({ zoom: this.address });
    history.replaceState(null, "", this.stage.state.fragment());
    this.stage.reflect();
    this.stage.draw();
  }

  /** Be where an address says, as far as this text and model go. @param {string|null} address */
  follow(address) {
    const d = this.stage.data;
    this.known.clear();
    if (!d) return;
    /** @type {Record<string, number>} */
    const at = {};
    for (const [, name, value] of (address ?? "").matchAll(/([lhqkd])(\d+)/g)) at[name] = Number(value);
    /** @type {Place[]} */
    const path = [];
    if (at.l < d.layers) {
      path.push({ layer: at.l });
      if (at.h < (d.raw.arcs.heads[at.l] ?? 0)) {
        path.push({ head: at.h });
        if (at.q < d.count && at.k <= at.q) {
          path.push({ query: at.q, key: at.k });
          if (at.d >= 0) path.push({ dim: at.d });
        }
      }
    }
    this.path = path;
    this.stage.reflect();
    this.stage.draw();
  }

  crumbs() {
    const { layer, head, query, key, dim } = this.place;
    const names = [say("zoom.whole"), say("zoom.layer", { layer }), say("zoom.head", { head }), say("zoom.cell", { query: word(this.stage, query ?? 0), key: word(this.stage, key ?? 0) }), say("zoom.product", { dim })];
    return names.slice(0, this.path.length + 1).map((name, to) => ({ name, to }));
  }

  /** @returns {{room: string, set: Record<string, any>}|null} */
  target() {
    if (!this.path.length) return null;
    const { layer, head, query, key } = this.place;
    return { room: "attention", set: { layer, head: head ?? 0, query: query ?? null, key: key ?? null } };
  }

  told() {
    return this.crumbs().map(({ name }) => name).join(", ");
  }

  /** @param {Pen} pen */
  paint(pen) {
    if (this.closer) return this.closer.paint(pen);
    pen.lines(this.problem ?? say("stage.asking"), this.stage.w * 0.08, this.stage.h * 0.4, this.stage.w * 0.84, { colour: pen.t.soft });
    this.#fetch();
  }

  /** What draws parts comes when the first part is looked at. */
  async #fetch() {
    if (this.fetching) return;
    this.fetching = true;
    try {
      this.closer = new (await import("./closer.js")).Closer(this);
      this.problem = null;
    } catch (error) {
      this.problem = error instanceof Error ? error.message : String(error);
    }
    this.fetching = false;
    if (this.closer) this.stage.draw();
  }
}
