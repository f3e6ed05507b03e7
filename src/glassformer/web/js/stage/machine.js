/** The whole machine in one picture: words, columns, lanes through every layer, arcs, sparks, the last vector, bars.
 *
 * What does not move is drawn once into two pictures, one unlit and one lit; a frame shows the lit one up to where
 * the play has come and draws the moving parts over it.
 */

import { plain } from "../dom.js";
import { say } from "../words.js";
import { clamp, ease, mix, num, Pen, pct, phase, rgba, rms, shade } from "./paint.js";

/** @typedef {import("./data.js").StageData} StageData */

/** When each part of the film begins, as shares of the whole. */
export const WHEN = { columns: 0.05, layers: 0.13, out: 0.78, bars: 0.86 };
/** Size of the note on what is drawn, of ordinary type. */
const NOTE = 0.74;
/** Layers that move at the same time. */
const SPAN = 2.6;

export class Machine {
  /** @param {StageData} d @param {number} w @param {number} h @param {number} size of type */
  constructor(d, w, h, size) {
    this.d = d;
    this.w = w;
    this.h = h;
    this.size = size;
    this.tall = w < 640;
    const n = d.count;
    const probe = new Pen(/** @type {any} */ (document.createElement("canvas").getContext("2d")), size);
    const longest = Math.min(this.tall ? 84 : 150, Math.max(...d.tokens.map((t) => probe.wide(plain(t.text), this.tall ? 0.85 : 1, 550)), 20));
    this.turned = this.tall && longest + 8 > (w - 16) / n;
    const [v0, v1] = this.tall ? [6, w - 6] : [34, h - 34];
    this.gap = (v1 - v0) / n;
    /** Every so many words one has room for its name. */
    this.every = Math.max(1, Math.ceil((size * 1.25) / this.gap));
    this.note = say("stage.numbers", { n: d.width, cells: d.lanes.cells }) + (this.every > 1 ? ` · ${say("stage.named", { n: this.every })}` : "");
    /** On a narrow picture the words left unnamed are told of above the others. */
    this.head = this.tall && this.every > 1 ? Math.ceil(probe.wide(this.note, NOTE) / (w - 24)) * size * NOTE * 1.35 + 8 : 0;
    this.chip = this.head + (this.tall ? (this.turned ? longest + 10 : 28) : longest + 18);
    this.answer = this.tall ? { x: 8, y: h - Math.min(240, h * 0.34), w: w - 16, h: Math.min(240, h * 0.34) } : { x: w - this.#right(), y: 12, w: this.#right() - 14, h: h - 24 };
    this.u0 = this.tall ? this.chip + 56 : this.chip + 68;
    this.u1 = this.tall ? this.answer.y - 40 : this.answer.x - Math.max(74, probe.wide(say("stage.last"), 0.76) + 20);
    /** @type {(i: number) => number} */
    this.v = (i) => v0 + (i + 0.5) * this.gap;
    this.thick = Math.max(1.5, Math.min(this.gap * 0.6, this.tall ? 26 : 52));
    this.step = (this.u1 - this.u0) / d.places;
    this.slabs = [v0, v1];
    this.ratio = Math.min(2, devicePixelRatio || 1);
    /** Whether it is seen from near and stands still. */
    this.sharp = false;
    // One column of pixels a place, one row a number of a token: the lanes; likewise what was added.
    if (!d.early) {
      this.laneAtlas = atlas(d.lanes, d.places, n, this.tall);
      this.addAtlas = atlas(d.added, 2 * d.layers, n, this.tall);
    }
    this.base = this.#sheet();
    this.lit = this.#sheet();
    this.#prepare();
    this.resting = this.lit.drawn;
  }

  /** A picture of the stage's size. */
  #sheet() {
    const canvas = document.createElement("canvas");
    canvas.width = Math.round(this.w * this.ratio);
    canvas.height = Math.round(this.h * this.ratio);
    const ctx = /** @type {CanvasRenderingContext2D} */ (canvas.getContext("2d", { alpha: false }));
    ctx.scale(this.ratio, this.ratio);
    const pen = new Pen(ctx, this.size);
    pen.rect(0, 0, this.w, this.h, pen.t.ground);
    return pen;
  }

  #right() {
    return Math.max(200, Math.min(420, this.w * 0.21));
  }

  /** A point: along the flow, across it. @param {number} u @param {number} v @returns {[number, number]} */
  p(u, v) {
    return this.tall ? [v, u] : [u, v];
  }

  /** @param {number} u @param {number} v @param {number} du @param {number} dv @returns {import("./paint.js").Box} */
  r(u, v, du, dv) {
    return this.tall ? { x: v, y: u, w: dv, h: du } : { x: u, y: v, w: du, h: dv };
  }

  /** Where a layer begins. @param {number} layer */
  at(layer) {
    return this.u0 + (2 * layer + 1) * this.step;
  }

  #prepare() {
    this.#still(this.base);
    this.lit.ctx.drawImage(this.base.ctx.canvas, 0, 0, this.w, this.h);
    this.#glow(this.lit);
  }

  /** What is there before anything moves. @param {Pen} pen */
  #still(pen) {
    const { d } = this;
    this.#slabs(pen);
    for (let i = 0; i < d.count; i++) {
      const [a, b] = [this.p(this.u0 - 12, this.v(i)), this.p(this.u1 + 4, this.v(i))];
      pen.line([a, b], pen.t.faint, Math.min(1, this.gap / 4), 0.7);
    }
  }

  /** What the layers have left behind. @param {Pen} pen */
  #glow(pen) {
    const { d } = this;
    this.#words(pen, 1);
    if (!d.early) this.#lanes(pen);
    for (const arc of [...d.arcs].reverse()) this.#arc(pen, arc, 1, 0.7);
    for (const neuron of d.neurons) this.#spark(pen, neuron, 0.5);
  }

  /** @param {Pen} pen */
  #slabs(pen) {
    const { d } = this;
    const [v0, v1] = this.slabs;
    const wide = this.step > 5 ? this.step - 1.5 : this.step * 0.85;
    const every = Math.max(1, Math.ceil(26 / (2 * this.step)));
    for (let layer = 0; layer < d.layers; layer++) {
      for (const half of [0, 1]) {
        const { x, y, w, h } = this.r(this.at(layer) + half * this.step, v0 - 4, wide, v1 - v0 + 8);
        pen.rect(x, y, w, h, half ? pen.t.slab2 : pen.t.slab, 3);
      }
      if (layer % every === 0 && !this.tall) pen.text(String(layer), this.at(layer) + this.step, v0 - 16, { size: 0.72, align: "center", colour: pen.t.soft });
    }
    if (!this.tall) pen.text(say("stage.layer"), this.u0 - 6, v0 - 16, { size: 0.72, align: "right", colour: pen.t.soft });
  }

  /** @param {Pen} pen */
  #lanes(pen) {
    const c = pen.ctx;
    c.imageSmoothingEnabled = false;
    const { cells } = this.d.lanes;
    const { laneAtlas } = this;
    if (!laneAtlas) return; // the layers have not run yet
    for (let i = 0; i < this.d.count; i++) {
      const { x, y, w, h } = this.r(this.u0, this.v(i) - this.thick / 2, this.u1 - this.u0, this.thick);
      if (this.tall) c.drawImage(laneAtlas, i * cells, 0, cells, this.d.places, x, y, w, h);
      else c.drawImage(laneAtlas, 0, i * cells, this.d.places, cells, x, y, w, h);
      pen.drawn += this.d.places;
    }
  }

  /** The path of an arc, from the word that gives to the word that takes. @param {import("./data.js").Arc} arc @returns {(s: number) => [number, number]} */
  path(arc) {
    const [a, b] = [this.v(arc.key), this.v(arc.query)];
    const far = Math.abs(b - a);
    const bulge = Math.min(Math.max(2.6 * this.step, 14), 7 + 0.32 * far);
    const u = this.at(arc.layer) + this.step * 0.5;
    const start = a + Math.sign(b - a) * Math.min(far / 3, this.thick * 0.35);
    const end = b - Math.sign(b - a) * Math.min(far / 3, this.thick * 0.35);
    return (s) => {
      const r = 1 - s;
      const [k0, k1, k2, k3] = [r * r * r, 3 * r * r * s, 3 * r * s * s, s * s * s];
      return this.p(k0 * u + k1 * (u - bulge * 1.33) + k2 * (u - bulge * 1.33) + k3 * u, (k0 + k1) * start + (k2 + k3) * end);
    };
  }

  /** @param {Pen} pen @param {import("./data.js").Arc} arc @param {number} upTo @param {number} light */
  #arc(pen, arc, upTo, light) {
    const path = this.path(arc);
    const steps = this.gap * Math.abs(arc.query - arc.key) < 30 ? 8 : 16;
    const much = clamp(arc.share / 0.35) ** 0.75;
    const c = pen.ctx;
    c.strokeStyle = rgba(pen.t.arc, light * (0.15 + 0.95 * much));
    c.lineWidth = (0.7 + 4.6 * much * much) * Math.min(1, 0.35 + this.gap / 24);
    c.beginPath();
    const last = Math.max(1, Math.ceil(steps * upTo));
    for (let i = 0; i <= last; i++) {
      const [x, y] = path(Math.min(upTo, i / steps));
      if (i) c.lineTo(x, y);
      else c.moveTo(x, y);
    }
    c.stroke();
    pen.drawn++;
  }

  /** @param {Pen} pen @param {import("./data.js").Neuron} neuron @param {number} light */
  #spark(pen, neuron, light) {
    const [x, y] = this.p(this.at(neuron.layer) + this.step * 1.5, this.v(neuron.position));
    const long = Math.min(this.step * 1.1, 12, this.thick * 0.7) * Math.sqrt(clamp(neuron.share)) * (0.6 + light * 0.8);
    const c = pen.ctx;
    c.strokeStyle = rgba(pen.t.spark, 0.25 + 0.75 * light);
    c.lineWidth = Math.max(0.6, Math.min(1.6, this.thick / 14));
    c.beginPath();
    for (let k = 0; k < 8; k++) {
      const a = (k * Math.PI) / 4 + 0.2;
      c.moveTo(x + 0.25 * long * Math.cos(a), y + 0.25 * long * Math.sin(a));
      c.lineTo(x + long * Math.cos(a), y + long * Math.sin(a));
    }
    c.stroke();
    pen.drawn++;
  }

  /** How far the play has come, in layers. @param {number} t */
  layersAt(t) {
    return clamp((t - WHEN.layers) / (WHEN.out - WHEN.layers)) * (this.d.layers + SPAN) ;
  }

  /** A frame. @param {Pen} pen @param {number} t 0 to 1 */
  paint(pen, t) {
    const { d } = this;
    if (d.early) t = Math.min(t, WHEN.layers - 0.03);
    const at = this.layersAt(t);
    if (t < WHEN.layers) this.#reveal(pen, 0);
    else {
      // Everything whose layer is over is in the lit picture.
      const done = Math.min(d.layers, at - SPAN * 0.55);
      const upTo = at >= d.layers + SPAN ? this.u1 + 4 : done <= 0 ? mix(this.u0 - 6, this.at(0), clamp(at / (SPAN * 0.55))) : this.at(0) + done * 2 * this.step;
      this.#reveal(pen, upTo);
      pen.drawn += Math.round(this.resting * clamp(done / d.layers));
      const first = Math.max(0, Math.floor(at - SPAN));
      for (let layer = first; layer <= Math.min(d.layers - 1, Math.floor(at)); layer++) this.#moving(pen, layer, (at - layer) / SPAN, upTo);
    }
    if (t < WHEN.layers) this.#words(pen, t);
    this.#out(pen, t);
    this.#parts(pen);
  }

  /** The lit picture up to a line, the unlit one beyond: every pixel is copied once. @param {Pen} pen @param {number} u */
  #reveal(pen, u) {
    const all = this.tall ? this.h : this.w;
    if (this.sharp) {
      // Near, the prepared pictures would be blurred: the same lines are drawn anew.
      pen.rect(0, 0, this.w, this.h, pen.t.ground);
      this.#still(pen);
      const { w, h } = this.tall ? { w: this.w, h: u } : { w: u, h: this.h };
      pen.ctx.save();
      pen.ctx.beginPath();
      pen.ctx.rect(0, 0, w, h);
      pen.ctx.clip();
      if (u > 0) this.#glow(pen);
      pen.ctx.restore();
      return;
    }
    const line = Math.round(Math.max(0, Math.min(u, all)) * this.ratio) / this.ratio;
    const copy = (/** @type {Pen} */ from, /** @type {number} */ a, /** @type {number} */ b) => {
      if (b <= a) return;
      const { x, y, w, h } = this.tall ? { x: 0, y: a, w: this.w, h: b - a } : { x: a, y: 0, w: b - a, h: this.h };
      pen.ctx.drawImage(from.ctx.canvas, x * this.ratio, y * this.ratio, w * this.ratio, h * this.ratio, x, y, w, h);
    };
    pen.ctx.imageSmoothingEnabled = false;
    copy(this.lit, 0, line);
    copy(this.base, line, all);
  }

  /** A layer at work: s from 0 (the arcs light) over ½ (the mixer's sum is in) to 1 (the feed-forward's is). @param {Pen} pen @param {number} layer @param {number} s @param {number} lit */
  #moving(pen, layer, s, lit) {
    const { d } = this;
    const c = pen.ctx;
    const u = this.at(layer);
    const glow = Math.sin(Math.PI * clamp(s));
    const [v0, v1] = this.slabs;
    const { x, y, w, h } = this.r(u, v0 - 4, 2 * this.step - 1, v1 - v0 + 8);
    pen.rect(x, y, w, h, pen.t.accent, 3, 0.1 * glow);
    c.imageSmoothingEnabled = false;
    const cells = d.added.cells;
    const { laneAtlas, addAtlas } = this;
    if (!laneAtlas || !addAtlas) return;
    for (const half of /** @type {(0|1)[]} */ ([0, 1])) {
      const fly = ease((s - (half ? 0.42 : 0.18)) / 0.34);
      if (fly <= 0 || (fly >= 1 && u + (half + 1) * this.step <= lit)) continue;
      for (let i = 0; i < d.count; i++) {
        const much = d.weight(layer, half, i);
        if (d.count > 60 && much < d.threshold) continue;
        const from = half ? this.thick * 0.9 + 6 : -(this.thick * 0.9 + 6);
        const b = this.r(u + half * this.step, this.v(i) - this.thick / 2 + from * (1 - fly), this.step, this.thick);
        c.globalAlpha = fly >= 1 ? 1 : Math.min(1, 0.25 + 1.4 * much) * Math.min(1, fly * 3);
        // In flight it is what is added; once in, it is the lane as it then is.
        const [from_, place] = fly >= 1 ? /** @type {const} */ ([laneAtlas, 2 * layer + half + 1]) : /** @type {const} */ ([addAtlas, 2 * layer + half]);
        if (this.tall) c.drawImage(from_, i * cells, place, cells, 1, b.x, b.y, b.w, b.h);
        else c.drawImage(from_, place, i * cells, 1, cells, b.x, b.y, b.w, b.h);
        pen.drawn++;
      }
    }
    c.globalAlpha = 1;
    for (const arc of d.arcsOf[layer]) {
      this.#arc(pen, arc, ease(s / 0.4), 0.45 + 0.55 * glow);
      const on = s / 0.42;
      if (on >= 1) continue;
      const [px, py] = this.path(arc)(ease(on));
      if (arc.index < d.carried.scale.length && this.gap > 14) {
        const tall = Math.min(26, this.thick * 0.8);
        pen.column(d.carried.row(arc.index), { x: px - 3, y: py - tall / 2, w: 6, h: tall }, { alpha: 0.95 });
      } else pen.dot(px, py, 1 + 2.5 * Math.sqrt(arc.share), rgba(pen.t.arc, 1));
    }
    for (const neuron of d.neuronsOf[layer]) this.#spark(pen, neuron, phase(s, 0.4, 0.65) * (1 - 0.5 * phase(s, 0.7, 1)));
  }

  /** @param {Pen} pen @param {number} t */
  #words(pen, t) {
    const { d } = this;
    const { every } = this;
    const long = Math.min(this.thick * 1.25 + 6, this.gap * 0.86);
    for (let i = 0; i < d.count; i++) {
      const inn = phase(t, (i / d.count) * 0.03, (i / d.count) * 0.03 + 0.02);
      const here = i === d.position;
      const named = here || (i % every === 0 && (every === 1 || Math.abs(i - d.position) >= every));
      if (named && !(this.sharp && every > 1)) this.#chip(pen, i, inn, here); // seen from near the edges name them
      const grow = phase(t, WHEN.columns + (i / d.count) * 0.04, WHEN.columns + (i / d.count) * 0.04 + 0.035);
      if (grow <= 0) continue;
      const u = this.u0 - 44;
      const b = this.r(u, this.v(i) - long / 2, 14, long);
      pen.column(d.embedding.row(i), b, { lying: this.tall, upTo: grow });
      // From its column the word's vector enters its lane.
      const go = phase(t, WHEN.layers - 0.03, WHEN.layers);
      if (go > 0) pen.line([this.p(u + 18, this.v(i)), this.p(mix(u + 18, this.u0 - 3, go), this.v(i))], pen.t.soft, Math.min(1.5, this.gap / 5), 0.8);
    }
    const said = { size: NOTE, colour: pen.t.soft, alpha: phase(t, WHEN.columns, WHEN.columns + 0.03) };
    if (!this.tall) pen.text(this.note, 8, this.h - 12, { ...said, most: this.u1 - 8 });
    else if (this.head) pen.lines(this.note, 8, 10, this.w - 16, said);
  }

  /** @param {Pen} pen @param {number} i @param {number} inn @param {boolean} here */
  #chip(pen, i, inn, here) {
    const text = plain(this.d.tokens[i].text);
    const v = this.v(i);
    const fill = here ? pen.t.accent : pen.t.chip;
    const ink = here ? (pen.t.dark ? "#0b1220" : "#ffffff") : pen.t.ink;
    if (!this.tall) {
      const h = Math.min(32, Math.max(pen.size * 1.3, this.gap * 0.7));
      const x = mix(-40, 8, inn);
      pen.rect(x, v - h / 2, this.chip - 6, h, fill, 7, inn);
      pen.text(text, x + 8, v + 0.5, { colour: ink, weight: here ? 650 : 500, most: this.chip - 20, alpha: inn, size: Math.min(1, Math.max(0.8, this.gap / 20)) });
      return;
    }
    if (!this.turned) {
      const w = Math.min(this.gap - 4, 110);
      pen.rect(v - w / 2, mix(-30, 4, inn), w, 26, fill, 7, inn);
      pen.text(text, v, mix(-30, 4, inn) + 13.5, { colour: ink, align: "center", weight: here ? 650 : 500, most: w - 4, alpha: inn, size: 0.85 });
      return;
    }
    const c = pen.ctx;
    c.save();
    c.translate(v, this.chip);
    c.rotate(-Math.PI / 2);
    pen.text(text, 2, 0, { colour: here ? pen.t.accent : pen.t.ink, weight: here ? 700 : 500, most: this.chip - this.head - 6, alpha: inn, size: 0.85 });
    c.restore();
  }

  /** The last vector, its products with the words' columns, the bars. @param {Pen} pen @param {number} t */
  #out(pen, t) {
    const { d, answer } = this;
    const v = this.v(d.position);
    const go = phase(t, WHEN.out - 0.02, WHEN.out + 0.04);
    const tall = this.tall ? Math.min(150, this.w * 0.4) : Math.min(190, this.h * 0.4);
    const to = this.tall ? { u: this.u1 + 20, v: this.w / 2 } : { u: this.u1 + 38, v: this.h / 2 };
    if (go > 0) {
      /** @type {[number, number][]} */
      const points = [];
      for (let i = 0; i <= 20; i++) {
        const s = (i / 20) * go;
        points.push(this.p(mix(this.u1 + 2, to.u - 4, s), mix(v, to.v, ease(s))));
      }
      pen.line(points, pen.t.accent, Math.min(5, Math.max(2, this.gap / 8)), 0.9);
    }
    const grown = phase(t, WHEN.out + 0.02, WHEN.out + 0.07);
    if (grown > 0) {
      const b = this.r(to.u, to.v - tall / 2, 16, tall);
      pen.column(d.final.row(0), b, { lying: this.tall, upTo: grown });
      if (!this.tall) pen.text(say("stage.last"), this.u1 + 8, to.v - tall / 2 - 12, { size: 0.76, most: answer.x - this.u1 - 12, colour: pen.t.soft, alpha: grown });
    }
    const rows = Math.min(d.next.length, Math.max(3, Math.floor((answer.h - 40) / (pen.size * 2.5))), this.tall ? 6 : 10);
    const each = Math.min(52, (answer.h - 44) / (rows + 0.4));
    const top = this.tall ? answer.y + 26 : answer.y + Math.max(26, (answer.h - each * (rows + 0.6)) / 2);
    const open = phase(t, WHEN.bars - 0.04, WHEN.bars);
    pen.text(say("stage.softmax", { n: d.vocab.toLocaleString("en") }).replace(/^· /, this.tall ? "" : "· "), answer.x, top - 13, { size: 0.76, colour: pen.t.soft, alpha: open, most: answer.w });
    const right = pen.wide("77.3 %", 0.95);
    for (let i = 0; i < rows; i++) {
      const one = d.next[i];
      const y = top + i * each + each * 0.32;
      const inn = phase(t, WHEN.bars - 0.05 + i * 0.006, WHEN.bars + i * 0.006);
      if (inn <= 0) continue;
      const grow = phase(t, WHEN.bars + 0.03 + i * 0.004, WHEN.bars + 0.09 + i * 0.004);
      const first = i === 0;
      pen.text(plain(one.token), answer.x, y, { size: first ? 1.2 : 1, weight: first ? 700 : 500, alpha: inn, most: answer.w - right - 70 });
      // The word's own column of the unembedding, lying, and its product with the last vector.
      const cellsAt = answer.x + answer.w - right - 62;
      pen.column(d.unembedding.row(i), { x: cellsAt, y: y - 8, w: 52, h: 4 }, { lying: true, alpha: inn * 0.9 });
      pen.text(num(one.logit, 1), cellsAt + 52, y + 3, { size: 0.7, align: "right", colour: pen.t.soft, alpha: inn });
      pen.text(pct(one.probability), answer.x + answer.w, y, { align: "right", size: 0.95, weight: first ? 650 : 450, alpha: grow });
      const w = Math.max(2, answer.w * one.probability * grow);
      pen.rect(answer.x, y + each * 0.3, answer.w, Math.min(7, each * 0.16), pen.t.faint, 3, 0.35 * inn);
      pen.rect(answer.x, y + each * 0.3, w, Math.min(7, each * 0.16), first ? pen.t.accent : pen.t.soft, 3, inn);
      pen.part({ x: answer.x - 4, y: y - each * 0.35, w: answer.w + 8, h: each * 0.9 }, say("part.next", { word: plain(one.token), p: pct(one.probability) }), () => this.onPart?.("next", i), `next-${i}`);
    }
  }

  /** @param {Pen} pen */
  #parts(pen) {
    const { d } = this;
    const [v0, v1] = this.slabs;
    for (let i = 0; i < d.count && d.count <= 80; i++) {
      pen.part(this.r(2, this.v(i) - this.gap * 0.42, this.u0 - 24, this.gap * 0.84), say("part.word", { word: plain(d.tokens[i].text), i }), () => this.onPart?.("word", i), `word-${i}`);
    }
    for (let layer = 0; layer < d.layers && !d.early; layer++) {
      pen.part(this.r(this.at(layer), v0 - 6, 2 * this.step - 1, v1 - v0 + 12), say("part.layer", { layer, arcs: d.arcsOf[layer].length, neurons: d.neuronsOf[layer].length }), () => this.onPart?.("layer", layer), `layer-${layer}`);
    }
  }

  /** @type {((what: string, i: number) => void)|null} */
  onPart = null;
}

/** Vectors as pixels: a column a place (a row, where lanes run down). @param {any} vectors @param {number} places @param {number} count @param {boolean} tall */
function atlas(vectors, places, count, tall) {
  const { cells } = vectors;
  const canvas = document.createElement("canvas");
  [canvas.width, canvas.height] = tall ? [count * cells, places] : [places, count * cells];
  const ctx = /** @type {CanvasRenderingContext2D} */ (canvas.getContext("2d"));
  const image = ctx.createImageData(canvas.width, canvas.height);
  const out = new Uint32Array(image.data.buffer);
  const { lut } = new Pen(ctx, 1).t;
  for (let place = 0; place < places; place++) {
    for (let i = 0; i < count; i++) {
      const values = vectors.row(place * count + i);
      const size = rms(values);
      for (let k = 0; k < cells; k++) out[tall ? place * canvas.width + i * cells + k : (i * cells + k) * places + place] = lut[shade(values[k], size)];
    }
  }
  ctx.putImageData(image, 0, 0);
  return canvas;
}
