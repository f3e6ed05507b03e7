/** A layer, a head, a cell and one product, each as a picture of its own. */

import { unpack } from "../source.js";
import { say } from "../words.js";
import { ask, quoted, word } from "./asking.js";
import { Vectors } from "./data.js";
import { clamp, num, pct, rgba, rms, shade } from "./paint.js";
import { carriedOf, product } from "./scenes_attention.js";

/** @typedef {import("./paint.js").Pen} Pen */

export class Closer {
  /** @param {import("./zoom.js").Zoom} zoom */
  constructor(zoom) {
    this.zoom = zoom;
    this.stage = zoom.stage;
  }

  /** An answer of a view, or null while it is asked for. @param {string} view @param {Record<string, any>} args */
  #of(view, args) {
    const key = view + JSON.stringify(args);
    if (!this.zoom.known.has(key)) {
      this.zoom.known.set(key, null);
      const { known } = this.zoom;
      ask(this.stage, view, args).then((/** @type {any} */ found) => known.set(key, found), (/** @type {any} */ error) => known.set(key, { problem: error.message })).finally(() => this.stage.draw());
    }
    return this.zoom.known.get(key);
  }

  /** @param {Pen} pen */
  paint(pen) {
    const { layer = 0, head, query, key, dim } = this.zoom.place;
    // Below the line that says where one is.
    const top = this.stage.around.crumbs.offsetHeight + 6;
    pen.ctx.translate(0, top);
    const before = this.stage.h;
    this.stage.h = before - top;
    if (dim !== undefined) this.#product(pen, layer, head ?? 0, query ?? 0, key ?? 0, dim);
    else if (key !== undefined) this.#cell(pen, layer, head ?? 0, query ?? 0, key);
    else if (head !== undefined) this.#head(pen, layer, head);
    else this.#layer(pen, layer);
    this.stage.h = before;
    pen.ctx.translate(0, -top);
    for (const part of pen.parts) part.box = { ...part.box, y: part.box.y + top };
  }

  /** @param {Pen} pen @param {any} found @returns {boolean} whether there is something to draw */
  #ready(pen, found) {
    if (found && !found.problem) return true;
    pen.lines(found?.problem ?? say("stage.asking"), this.stage.w * 0.08, this.stage.h * 0.4, this.stage.w * 0.84, { colour: pen.t.soft });
    return false;
  }

  /** A layer: lanes in, what its heads carry, lanes between, its neurons, lanes out. @param {Pen} pen @param {number} layer */
  #layer(pen, layer) {
    const d = /** @type {import("./data.js").StageData} */ (this.stage.data);
    const { w, h, tall } = this.stage.frame;
    const shown = Array.from({ length: Math.min(d.count, tall ? 8 : 16) }, (_, i) => d.count - Math.min(d.count, tall ? 8 : 16) + i);
    const top = tall ? 54 : 64;
    const step = (h - top - 30) / shown.length;
    const label = tall ? 60 : Math.min(130, w * 0.11);
    const col = (/** @type {number} */ k) => label + 14 + ((w - label - 30) * k) / 4.4;
    const thick = Math.min(step * 0.7, 90);
    const wide = tall ? 14 : Math.min(40, w * 0.03);
    const titles = [say("layer.in"), say("layer.heads"), say("layer.mid"), say("layer.neurons"), say("layer.out")];
    titles.forEach((name, k) => pen.text(name, col(k), top - 22, { size: tall ? 0.6 : 0.85, colour: pen.t.soft, most: Math.min((w - label) / 4.6, w - col(k) - 2) }));
    const y = (/** @type {number} */ i) => top + (shown.indexOf(i) + 0.5) * step;
    for (const i of shown) {
      pen.text(word(this.stage, i), label, y(i), { align: "right", weight: i === d.position ? 700 : 500, most: label - 6, size: tall ? 0.85 : 1 });
      [[0, 2 * layer], [2, 2 * layer + 1], [4, 2 * layer + 2]].forEach(([k, place]) => {
        pen.column(d.lanes.row(d.lane(place, i)), { x: col(k), y: y(i) - thick / 2, w: wide, h: thick });
        if (step > 34 && !tall) pen.text(num(d.lanes.norm[d.lane(place, i)], 1), col(k) + wide + 6, y(i) + thick / 2 - 6, { size: 0.7, colour: pen.t.soft });
      });
      for (const half of /** @type {(0|1)[]} */ ([0, 1])) {
        const x = col(half ? 4 : 2) - wide * 1.5;
        pen.column(d.added.row(d.add(layer, half, i)), { x, y: y(i) - thick / 2, w: wide * 0.7, h: thick }, { alpha: Math.min(1, 0.2 + 1.3 * d.weight(layer, half, i)) });
        pen.text("+", x - 8, y(i), { align: "center", size: 0.9, colour: pen.t.soft });
      }
    }
    for (const arc of [...d.arcsOf[layer]].reverse()) {
      if (!shown.includes(arc.query) || !shown.includes(arc.key)) continue;
      const [x0, x1] = [col(0) + wide + (tall ? 2 : 34), col(2) - wide * 1.5 - 16];
      const much = clamp(arc.share / 0.35) ** 0.75;
      const points = /** @type {[number, number][]} */ (Array.from({ length: 21 }, (_, k) => {
        const s = k / 20;
        return [x0 + (x1 - x0) * s, y(arc.key) + (y(arc.query) - y(arc.key)) * s * s * (3 - 2 * s)];
      }));
      pen.line(points, rgba(pen.t.arc, 0.3 + 0.7 * much), 1 + 5 * much);
    }
    // The heads' names stand where their strongest arc arrives, each once.
    const named = new Set();
    for (const arc of d.arcsOf[layer]) {
      if (named.has(arc.head) || !shown.includes(arc.query) || !shown.includes(arc.key)) continue;
      named.add(arc.head);
      const s = 0.25 + 0.5 * ((named.size % 4) / 3);
      const [x0, x1] = [col(0) + wide + (tall ? 2 : 34), col(2) - wide * 1.5 - 16];
      const at = { x: x0 + (x1 - x0) * s, y: y(arc.key) + (y(arc.query) - y(arc.key)) * s * s * (3 - 2 * s) };
      const name = say(tall ? "layer.headshort" : "layer.head", { head: arc.head, share: pct(arc.share) });
      const long = pen.wide(name, 0.78) + 14;
      const box = { x: Math.min(at.x - long / 2, w - long - 4), y: at.y - 11, w: long, h: 22 };
      pen.rect(box.x, box.y, box.w, box.h, pen.t.chip, 7);
      pen.text(name, box.x + 7, at.y, { size: 0.78 });
      pen.part(box, say("part.arc", { head: arc.head, query: word(this.stage, arc.query), key: word(this.stage, arc.key), share: pct(arc.share) }), () => this.zoom.into({ layer, head: arc.head }), `arc-${arc.head}`);
    }
    const count = new Map();
    for (const neuron of d.neuronsOf[layer]) {
      if (!shown.includes(neuron.position)) continue;
      const k = count.get(neuron.position) ?? 0;
      count.set(neuron.position, k + 1);
      if (k > (tall ? 0 : 2)) continue;
      const [x, yy] = [col(3) + (tall ? -8 : k * Math.min(70, w * 0.05)), y(neuron.position)];
      const r = 5 + 9 * Math.sqrt(clamp(neuron.share));
      for (let a = 0; a < 10; a++) pen.line([[x + 3 * Math.cos(a * 0.628), yy + 3 * Math.sin(a * 0.628)], [x + r * Math.cos(a * 0.628), yy + r * Math.sin(a * 0.628)]], rgba(pen.t.spark, 1), 1.4);
      if (step > 30) pen.text(String(neuron.index), x, yy + r + 9, { align: "center", size: 0.66, colour: pen.t.soft });
    }
    // Heads that carry too little for an arc are one step away all the same.
    const all = d.raw.arcs.heads[layer] ?? 0;
    const each = Math.min(46, (w - 20 - (tall ? 50 : 90)) / Math.max(1, all));
    pen.text(say("layer.all"), 10, h - 12, { size: 0.8, colour: pen.t.soft });
    const x0 = 10 + pen.wide(say("layer.all"), 0.8) + 10;
    for (let k = 0; k < all && each >= 12; k++) {
      if (x0 + (k + 1) * each > w) break;
      pen.text(String(k), x0 + (k + 0.5) * each, h - 12, { align: "center", size: 0.85, weight: 600, colour: pen.t.accent });
      pen.part({ x: x0 + k * each, y: h - 26, w: each, h: 26 }, say("part.head", { layer, head: k }), () => this.zoom.into({ layer, head: k }), `head-${k}`);
    }
  }

  /** A head: its grid, and what it carries to the last word. @param {Pen} pen @param {number} layer @param {number} head */
  #head(pen, layer, head) {
    const d = /** @type {import("./data.js").StageData} */ (this.stage.data);
    const { w, h, tall } = this.stage.frame;
    const found = this.#of("attention", { layer, head });
    if (!this.#ready(pen, found)) return;
    found.numbers ??= unpack(found.tile).data;
    const n = Math.min(d.count, tall ? 10 : 24);
    const from = d.count - n;
    const label = Math.min(tall ? 66 : 120, Math.max(...Array.from({ length: n }, (_, i) => pen.wide(word(this.stage, from + i), 0.9))) + 12);
    const size = Math.min((tall ? w - 16 : w * 0.56) - label, (tall ? h * 0.6 : h - 20) - Math.min(86, label));
    const step = size / n;
    const [x0, y0] = [(tall ? 6 : 20) + label, Math.min(86, label) + 6];
    for (let r = 0; r < n; r++) {
      pen.text(word(this.stage, from + r), x0 - 8, y0 + (r + 0.5) * step, { align: "right", size: Math.min(0.95, step / pen.size), most: label - 8 });
      const c = pen.ctx;
      c.save();
      c.translate(x0 + (r + 0.5) * step, y0 - 8);
      c.rotate(-Math.PI / 3);
      pen.text(word(this.stage, from + r), 0, 0, { size: Math.min(0.9, step / pen.size), most: 84 });
      c.restore();
      for (let k = 0; k <= r; k++) {
        const p = found.numbers[(from + r) * d.count + from + k];
        const box = { x: x0 + k * step, y: y0 + r * step, w: step - 1, h: step - 1 };
        pen.rect(box.x, box.y, box.w, box.h, pen.t.css[128 + Math.round(127 * Math.sqrt(clamp(p)))], 2);
        if (step > 36) pen.text(pct(p), box.x + step / 2, box.y + step / 2, { align: "center", size: 0.72, colour: p > 0.3 ? (pen.t.dark ? "#0b1220" : "#fff") : pen.t.ink });
        pen.part(box, say("part.cell", { query: word(this.stage, from + r), key: word(this.stage, from + k), p: pct(p) }), () => this.zoom.into({ layer, head, query: from + r, key: from + k }), `cell-${from + r}-${from + k}`);
      }
    }
    const carry = this.#of("carry", { layer, head, query: d.position });
    const [cx, cy, cw] = tall ? [10, y0 + size + 26, w - 20] : [x0 + size + 36, 30, w - x0 - size - 56];
    pen.text(say("head.carries", { word: word(this.stage, d.position) }), cx, cy, { weight: 650, most: cw });
    if (!carry || carry.problem) return;
    carry.made ??= carriedOf(carry);
    const f = carry.made;
    const order = Array.from({ length: f.query + 1 }, (_, k) => k).sort((a, b) => f.writes.norm[b] - f.writes.norm[a]).slice(0, tall ? 4 : 8);
    const most = f.writes.norm[order[0]] || 1;
    const each = Math.min(48, (h - cy - 70) / (order.length + 0.5));
    order.forEach((k, i) => {
      const y = cy + 26 + i * each;
      pen.text(word(this.stage, k), cx, y, { most: cw * 0.26, size: 0.95 });
      pen.column(f.writes.row(k), { x: cx + cw * 0.28, y: y - 7, w: cw * 0.4, h: 14 }, { lying: true, alpha: 0.25 + 0.75 * (f.writes.norm[k] / most) });
      pen.rect(cx + cw * 0.71, y - 5, cw * 0.17 * (f.writes.norm[k] / most), 10, rgba(pen.t.arc, 0.9), 3);
      pen.text(num(f.writes.norm[k], 2), cx + cw, y, { align: "right", size: 0.8, colour: pen.t.soft });
    });
    pen.lines(say("values.raises", { words: quoted(f.raises) }), cx, cy + 30 + order.length * each, cw, { size: 0.85, colour: pen.t.warm });
  }

  /** A cell: query, key, products, score, softmax; what is carried over and added. @param {Pen} pen @param {number} layer @param {number} head @param {number} query @param {number} key */
  #cell(pen, layer, head, query, key) {
    const { w, h, tall } = this.stage.frame;
    const found = this.#of("cell", { layer, head, query, key });
    const carry = this.#of("carry", { layer, head, query });
    if (!this.#ready(pen, carry)) return;
    carry.made ??= carriedOf(carry);
    const f = carry.made;
    const [q, k] = [word(this.stage, query), word(this.stage, key)];
    const high = tall ? h * 0.5 : h * 0.5;
    const wide = tall ? w - 20 : w * 0.52;
    const [x, y] = [tall ? 10 : 26, 22];
    const maps = tall ? null : this.#of("maps", { layer, head, query, key });
    if (found && !found.problem && maps && !maps.problem) {
      this.#made(pen, maps, found, { layer, head, query, key }, x, y, wide, high);
    } else if (found && !found.problem && (tall || maps)) {
      product(pen, found, x, y, wide, high, 1, q, k);
      const n = found.products.length;
      for (let i = 0; i < n; i++) pen.part({ x: x + (i * wide) / n, y, w: wide / n, h: high * 0.92 }, say("part.product", { i, q: num(found.rot_q[i], 3), k: num(found.rot_k[i], 3), p: num(found.products[i], 3) }), () => this.zoom.into({ layer, head, query, key, dim: i }), `dim-${i}`);
    } else pen.lines(found?.problem ? say("grid.nocell") : say("stage.asking"), x, y + 20, wide, { colour: pen.t.soft });
    // The row of the query.
    const keys = Array.from({ length: query + 1 }, (_, i) => i).sort((a, b) => f.weight[b] - f.weight[a]).slice(0, tall ? 4 : 9).sort((a, b) => a - b);
    if (!keys.includes(key)) keys.splice(0, 1, key);
    const [rx, ry, rw] = tall ? [10, high + 44, w - 20] : [w * 0.62, 22, w * 0.35];
    const each = Math.min(30, (tall ? h * 0.22 : high - 20) / keys.length);
    pen.text(say("cell.row", { word: q }), rx, ry, { weight: 650, most: rw });
    keys.forEach((i, at) => {
      const yy = ry + 26 + at * each;
      pen.text(word(this.stage, i), rx, yy, { most: rw * 0.24, weight: i === key ? 700 : 450, colour: i === key ? pen.t.warm : pen.t.ink });
      pen.rect(rx + rw * 0.26, yy - each * 0.3, rw * 0.56, each * 0.6, pen.t.chip, 3);
      pen.rect(rx + rw * 0.26, yy - each * 0.3, Math.max(1, rw * 0.56 * f.weight[i]), each * 0.6, i === key ? pen.t.warm : pen.t.accent, 3);
      pen.text(pct(f.weight[i]), rx + rw, yy, { align: "right", size: 0.9 });
    });
    // What is carried over, and the stream before and after it.
    const by = tall ? ry + 40 + keys.length * each : h * 0.6;
    const tallBar = h - by - 46;
    pen.text(say("cell.carried", { p: num(f.weight[key], 2), key: k, query: q }), tall ? 10 : 26, by, { weight: 650, most: w - 30 });
    const steps = /** @type {[string, Vectors, number, string][]} */ ([[say("cell.this"), f.writes, key, ""], [say("cell.others"), f.whole, 0, "→"], [say("values.before"), f.before, 0, "+"], [say("values.after"), f.after, 0, "="]]);
    const gap = tall ? (w - 20) / 4 : Math.min(170, w * 0.13);
    steps.forEach(([name, vectors, i, sign], at) => {
      const cx = (tall ? 10 : 26) + gap * (at + 0.5);
      pen.column(vectors.row(i), { x: cx - 13, y: by + 20, w: 26, h: tallBar });
      pen.text(name, cx, h - 16, { align: "center", size: tall ? 0.66 : 0.82, colour: pen.t.soft, most: gap - 4 });
      if (sign) pen.text(sign, cx - gap / 2, by + 20 + tallBar / 2, { align: "center", size: 1.3 });
    });
    if (!tall) {
      pen.lines(say("values.raises", { words: quoted(f.raises) }), w * 0.62, by + 36, w * 0.35, { colour: pen.t.warm });
      if (found && !found.problem) pen.lines(say("cell.effect", { effect: `${found.effect >= 0 ? "+" : "−"}${num(Math.abs(found.effect), 3)}`, unit: say("cell.unit") }), w * 0.62, by + 100, w * 0.35, { colour: pen.t.soft, size: 0.9 });
    }
  }

  /** How a score is made: two columns through two matrices, two arrows and their angle, the products and their sum. @param {Pen} pen @param {any} maps @param {any} found @param {Record<string, number>} at @param {number} x @param {number} y @param {number} w @param {number} h */
  #made(pen, maps, found, at, x, y, w, h) {
    const [q, k] = [word(this.stage, at.query), word(this.stage, at.key)];
    const half = (h - 14) / 2;
    const sides = /** @type {[string, any, string, string][]} */ ([[q, maps.query, "W_Q", pen.t.accent], [k, maps.key, "W_K", pen.t.warm]]);
    const tall = half - 46;
    const left = Math.min(w * 0.46, 380);
    const picture = left - 110;
    sides.forEach(([name, side, by, ink], i) => {
      const top = y + i * (half + 6);
      side.picture ??= mapPicture(side.matrix, pen);
      pen.text(say(i ? "cell.key" : "cell.query", { word: name }), x, top, { weight: 650, colour: ink, most: left });
      pen.column(side.stream, { x, y: top + 16, w: 16, h: tall });
      pen.text("×", x + 28, top + 16 + tall / 2, { align: "center" });
      pen.ctx.imageSmoothingEnabled = true;
      pen.ctx.drawImage(side.picture, x + 40, top + 16, picture, tall);
      pen.drawn++;
      pen.text("=", x + 52 + picture, top + 16 + tall / 2, { align: "center" });
      pen.column(side.value, { x: x + 64 + picture, y: top + 16, w: 16, h: tall });
      pen.text(say("cell.map", { by, n: side.value.length, width: maps.width }), x, top + 16 + tall + 13, { size: 0.72, colour: pen.t.soft, most: left });
    });
    // The two arrows in the plane they span.
    const mx = x + left + 24;
    const mw = w - left - 24;
    const angle = Math.acos(Math.max(-1, Math.min(1, found.cosine)));
    const round = Math.min(half * 0.78, mw * 0.42);
    const long = round / Math.max(found.norms.q, found.norms.k, 1e-9);
    const blunt = angle > Math.PI / 2;
    const [cx, cy] = [mx + (blunt ? mw / 2 : Math.min(60, mw * 0.2)), y + half * 0.9];
    const tip = (/** @type {number} */ norm, /** @type {number} */ a) => /** @type {[number, number]} */ ([cx + norm * long * Math.cos(a), cy - norm * long * Math.sin(a)]);
    const arc = Array.from({ length: 17 }, (_, i) => tip(26 / long, (angle * i) / 16));
    pen.line(arc, pen.t.soft, 1);
    for (const [norm, a, ink] of /** @type {[number, number, string][]} */ ([[found.norms.q, 0, pen.t.accent], [found.norms.k, angle, pen.t.warm]])) {
      const end = tip(norm, a);
      pen.line([[cx, cy], end], ink, 2.5);
      const head = (/** @type {number} */ turn) => /** @type {[number, number]} */ ([end[0] - 9 * Math.cos(a + turn), end[1] + 9 * Math.sin(a + turn)]);
      pen.line([head(0.4), end, head(-0.4)], ink, 2.5);
    }
    const degrees = `${((angle * 180) / Math.PI).toFixed(1)}°`;
    pen.text(degrees, cx + (blunt ? 0 : 34), cy - (blunt ? 36 : 13), { size: 0.9, align: blunt ? "center" : "left" });
    pen.text(say("cell.angle", { q: num(found.norms.q, 2), k: num(found.norms.k, 2), cos: num(found.cosine, 3), dot: num(found.dot, 2) }), mx, cy + 18, { size: 0.8, colour: pen.t.soft, most: mw });
    // The products, and what they add up to.
    const n = found.products.length;
    const most = Math.max(...found.products.map(Math.abs), 1e-9);
    const top = y + half + 34;
    const mid = top + 20 + half * 0.3;
    pen.text(say("grid.products", { n }), mx, top + 2, { weight: 600, most: mw });
    found.products.forEach((/** @type {number} */ v, /** @type {number} */ i) => {
      const bar = (Math.abs(v) / most) * half * 0.26;
      pen.rect(mx + (i * mw) / n, v >= 0 ? mid - bar : mid, Math.max(1, mw / n - 1), Math.max(0.5, bar), rgba(v >= 0 ? pen.t.plus : pen.t.minus, 1));
      pen.part({ x: mx + (i * mw) / n, y: top + 14, w: mw / n, h: half * 0.6 }, say("part.product", { i, q: num(found.rot_q[i], 3), k: num(found.rot_k[i], 3), p: num(v, 3) }), () => this.zoom.into({ ...at, dim: i }), `dim-${i}`);
    });
    pen.lines(say("grid.score", { dot: num(found.dot, 1), scale: num(found.scale, 3), score: num(found.score ?? -Infinity, 2) }), mx, mid + half * 0.34, mw, { weight: 600 });
  }

  /** One multiplication. @param {Pen} pen @param {number} layer @param {number} head @param {number} query @param {number} key @param {number} dim */
  #product(pen, layer, head, query, key, dim) {
    const { w, h, tall } = this.stage.frame;
    const found = this.#of("cell", { layer, head, query, key });
    if (!this.#ready(pen, found)) return;
    const i = Math.min(dim, found.products.length - 1);
    const [a, b, p] = [found.rot_q[i], found.rot_k[i], found.products[i]];
    const big = tall ? 1.5 : 2.6;
    const y = h * 0.3;
    const boxes = /** @type {[string, number, string][]} */ ([[say("grid.query", { word: word(this.stage, query) }), a, "×"], [say("grid.key", { word: word(this.stage, key) }), b, "="], [say("product.one"), p, ""]]);
    const step = w / 3;
    boxes.forEach(([name, value, sign], k) => {
      const x = step * (k + 0.5);
      const wide = Math.min(step * 0.74, 260);
      const most = Math.max(Math.abs(a), Math.abs(b), Math.abs(p)) || 1;
      pen.rect(x - wide / 2, y - 44, wide, 88, pen.t.css[Math.round(128 + 100 * Math.max(-1, Math.min(1, value / most)))], 12);
      pen.text(num(value, 4), x, y, { align: "center", size: big * 0.7, weight: 650, mono: true, colour: pen.t.dark ? (Math.abs(value / most) > 0.5 ? "#0b1220" : "#fff") : Math.abs(value / most) > 0.5 ? "#fff" : "#101828" });
      pen.text(name, x, y - 64, { align: "center", size: tall ? 0.7 : 0.95, colour: pen.t.soft, most: step - 8 });
      if (sign) pen.text(sign, step * (k + 1), y, { align: "center", size: big });
    });
    // All products, this one lit.
    const n = found.products.length;
    const top = h * 0.62;
    const wide = w - 40;
    const most = Math.max(...found.products.map(Math.abs), 1e-9);
    found.products.forEach((/** @type {number} */ v, /** @type {number} */ k) => {
      const tallBar = (Math.abs(v) / most) * h * 0.12;
      pen.rect(20 + (k * wide) / n, v >= 0 ? top - tallBar : top, Math.max(1, wide / n - 1), Math.max(0.5, tallBar), k === i ? pen.t.warm : rgba(v >= 0 ? pen.t.plus : pen.t.minus, 0.7));
      pen.part({ x: 20 + (k * wide) / n, y: top - h * 0.13, w: wide / n, h: h * 0.26 }, say("part.product", { i: k, q: num(found.rot_q[k], 3), k: num(found.rot_k[k], 3), p: num(v, 3) }), () => this.zoom.into({ layer, head, query, key, dim: k }), `dim-${k}`);
    });
    pen.lines(say("product.of", { i, n, dot: num(found.dot, 3), scale: num(found.scale, 4), score: num(found.score ?? -Infinity, 3), p: pct(found.weight) }), 20, h * 0.82, w - 40, { size: tall ? 0.85 : 1.05 });
  }
}

/** A matrix as pixels: a row of the picture for each number that comes out. @param {any} packed @param {Pen} pen */
function mapPicture(packed, pen) {
  const { shape, data } = unpack(packed);
  const canvas = document.createElement("canvas");
  [canvas.width, canvas.height] = [shape[1], shape[0]];
  const ctx = /** @type {CanvasRenderingContext2D} */ (canvas.getContext("2d"));
  const image = ctx.createImageData(shape[1], shape[0]);
  const out = new Uint32Array(image.data.buffer);
  const size = rms(/** @type {any} */ (data));
  for (let i = 0; i < out.length; i++) out[i] = pen.t.lut[shade(data[i], size)];
  ctx.putImageData(image, 0, 0);
  return canvas;
}
