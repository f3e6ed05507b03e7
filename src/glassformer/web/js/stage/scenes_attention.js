/** Scenes of what attention brings: the grid, softmax, values, many heads. */

import { unpack } from "../source.js";
import { say } from "../words.js";
import { ask, quoted, recent, word } from "./asking.js";
import { Vectors } from "./data.js";
import { clamp, mix, num, pct, phase, rgba } from "./paint.js";
import { mixed } from "./quiz.js";

/** @typedef {import("./stage.js").Stage} Stage @typedef {import("./paint.js").Pen} Pen @typedef {import("./scenes.js").Scene} Scene */

/** A scene's head needs two words. @param {Pen} pen @param {Stage} stage @returns {import("./data.js").Arc|null} */
function telling(pen, stage) {
  const arc = stage.data?.telling ?? null;
  if (!arc) pen.lines(say("stage.onearc"), stage.w * 0.1, stage.h * 0.4, stage.w * 0.8, { colour: pen.t.soft });
  return arc;
}

/** What head the scenes look at, for the room. @param {Stage} stage */
export function headRoom(stage) {
  const arc = stage.data?.telling;
  return arc ? { room: "attention", set: { layer: arc.layer, head: arc.head, query: arc.query, key: arc.key } } : null;
}

/** @param {Stage} stage */
const headFields = (stage) => {
  const arc = stage.data?.telling;
  return { layer: arc?.layer ?? "–", head: arc?.head ?? "–", query: arc ? word(stage, arc.query) : "", key: arc ? word(stage, arc.key) : "" };
};

/** The pattern of the telling head, and the cell where a model has cells. @param {Stage} stage */
async function head(stage) {
  const arc = stage.data?.telling;
  if (!arc) return { none: true };
  const [pattern, cell] = await Promise.all([
    ask(stage, "attention", { layer: arc.layer, head: arc.head }),
    ask(stage, "cell", { layer: arc.layer, head: arc.head, query: arc.query, key: arc.key }).catch(() => null),
  ]);
  const { shape, data } = unpack(pattern.tile);
  return { arc, cell, n: shape[0], weight: (/** @type {number} */ q, /** @type {number} */ k) => data[q * shape[1] + k] };
}

/** @type {Scene} */
export const grid = {
  id: "grid",
  seconds: 9,
  hold: 0.38,
  fields: headFields,
  need: head,
  room: headRoom,
  paint(pen, t, stage) {
    const arc = telling(pen, stage);
    if (!arc) return;
    const { cell, weight } = stage.found;
    const { w, h, tall } = stage.frame;
    const shown = recent(arc.query, tall ? 9 : 16);
    const n = shown.length;
    const label = Math.min(tall ? 76 : 130, Math.max(...shown.map((i) => pen.wide(word(stage, i), 0.95))) + 14);
    const size = Math.min((tall ? w - 20 : w * 0.52) - label, (tall ? h * 0.56 : h - 30) - Math.min(label, 90));
    const step = size / n;
    const [x0, y0] = [(tall ? 10 : 26) + label, 12 + Math.min(label, 90)];
    shown.forEach((q, r) => {
      const here = q === arc.query;
      const row = here ? phase(t, 0.4, 0.5) : phase(t, 0.05 + (0.3 * r) / n, 0.05 + (0.3 * (r + 1)) / n); // the row that is asked for waits
      pen.text(word(stage, q), x0 - 8, y0 + (r + 0.5) * step, { align: "right", size: 0.95, weight: here ? 700 : 450, colour: here ? pen.t.accent : pen.t.ink, most: label - 10 });
      const c = pen.ctx;
      c.save();
      c.translate(x0 + (r + 0.5) * step, y0 - 8);
      c.rotate(-Math.PI / 3);
      pen.text(word(stage, q), 0, 0, { size: 0.9, weight: q === arc.key ? 700 : 450, colour: q === arc.key ? pen.t.warm : pen.t.ink, most: 90 });
      c.restore();
      shown.forEach((k, col) => {
        const [x, y] = [x0 + (col + 0.5) * step, y0 + (r + 0.5) * step];
        if (k > q) return pen.rect(x - step / 2, y - step / 2, step - 1, step - 1, pen.t.chip, 0, 0.35);
        pen.rect(x - step / 2, y - step / 2, step - 1, step - 1, pen.t.chip, 0, 0.9);
        const p = weight(q, k);
        pen.dot(x, y, Math.sqrt(p) * step * 0.48 * row, rgba(pen.t.arc, 0.35 + 0.65 * p));
        if (step > 40) pen.text(pct(p), x, p > 0.2 ? y : y + step * 0.36, { size: p > 0.2 ? 0.85 : 0.66, align: "center", weight: p > 0.2 ? 650 : 450, colour: p > 0.2 ? (pen.t.dark ? "#0b1220" : "#ffffff") : pen.t.soft, alpha: row });
      });
      if (row > 0) pen.part({ x: x0, y: y0 + r * step, w: step * (shown.indexOf(q) + 1), h: step - 1 }, say("part.row", { word: word(stage, q) }), () => stage.zoom.into({ layer: arc.layer, head: arc.head }), `row-${q}`);
    });
    const lit = phase(t, 0.6, 0.68);
    if (lit <= 0) return;
    const [ck, cq] = [shown.indexOf(arc.key), n - 1];
    if (ck >= 0) pen.frame(x0 + ck * step, y0 + cq * step, step - 1, step - 1, pen.t.warm, 4, 2.5);
    const bx = tall ? 14 : x0 + size + 40;
    const by = tall ? y0 + size + 30 : h * 0.2;
    const wide = w - bx - 24;
    if (!cell) return void pen.lines(say("grid.nocell"), bx, by + 20, wide, { colour: pen.t.soft, alpha: lit });
    product(pen, cell, bx, by, wide, tall ? h - by - 8 : h * 0.6, phase(t, 0.66, 0.95), word(stage, arc.query), word(stage, arc.key));
  },
  ask(stage) {
    const found = stage.found;
    if (!found?.arc || found.arc.query < 2) return null;
    const { arc, weight } = found;
    const order = Array.from({ length: arc.query + 1 }, (_, k) => k).sort((a, b) => weight(arc.query, b) - weight(arc.query, a));
    const right = word(stage, order[0]);
    return { ask: say("ask.grid", { word: word(stage, arc.query), ...headFields(stage) }), ...mixed(right, order.slice(1).map((k) => word(stage, k)), arc.layer * 5 + arc.head), because: say("why.grid", { p: pct(weight(arc.query, order[0])), second: word(stage, order[1]), q: pct(weight(arc.query, order[1])) }) };
  },
};

/** A query, a key, their products and the score. @param {Pen} pen @param {any} cell @param {number} x @param {number} y @param {number} w @param {number} h @param {number} s @param {string} query @param {string} key */
export function product(pen, cell, x, y, w, h, s, query, key) {
  const each = h / 3.6;
  const lines = /** @type {[string, number[], string][]} */ ([[say("grid.query", { word: query }), cell.rot_q, pen.t.accent], [say("grid.key", { word: key }), cell.rot_k, pen.t.warm]]);
  lines.forEach(([name, values, ink], i) => {
    pen.text(name, x, y + i * each, { colour: ink, weight: 600, most: w });
    pen.column(values, { x, y: y + i * each + 14, w, h: Math.min(26, each * 0.4) }, { lying: true, upTo: s * 3 - i * 0.6 });
  });
  const top = y + 2 * each;
  const inn = clamp(s * 3 - 1.2);
  pen.text(say("grid.products", { n: cell.products.length }), x, top, { weight: 600, alpha: inn, most: w });
  const most = Math.max(...cell.products.map(Math.abs), 1e-9);
  const step = w / cell.products.length;
  const mid = top + 20 + each * 0.35;
  cell.products.forEach((/** @type {number} */ v, /** @type {number} */ i) => {
    if (i / cell.products.length > inn) return;
    const tall = (Math.abs(v) / most) * each * 0.32;
    pen.rect(x + i * step, v >= 0 ? mid - tall : mid, Math.max(1, step - 1), Math.max(0.5, tall), rgba(v >= 0 ? pen.t.plus : pen.t.minus, 1));
  });
  pen.lines(say("grid.score", { dot: num(cell.dot, 1), scale: num(cell.scale, 3), score: num(cell.score ?? -Infinity, 2) }), x, mid + each * 0.55, w, { weight: 600, alpha: phase(s, 0.75, 0.95) });
}

/** @type {Scene} */
export const softmax = {
  id: "softmax",
  seconds: 7,
  hold: 0.5,
  fields: headFields,
  need: head,
  room: headRoom,
  paint(pen, t, stage) {
    const arc = telling(pen, stage);
    if (!arc) return;
    const { cell, weight } = stage.found;
    const { w, h, tall } = stage.frame;
    const shown = recent(arc.query, tall ? 12 : 14);
    const step = Math.min(84, (h - (tall ? 104 : 90)) / shown.length);
    const y0 = 64 + Math.max(0, (h - 90 - step * shown.length) / 2);
    const bar = Math.min(24, step * 0.4);
    const label = tall ? 74 : Math.min(150, w * 0.14);
    const x = { label: tall ? 10 : w * 0.08, score: (tall ? 14 : w * 0.08 + 12) + label, weight: tall ? w * 0.56 : w * 0.58 };
    const long = tall ? w * 0.24 : w * 0.26;
    const score = (/** @type {number} */ k) => Math.log(Math.max(weight(arc.query, k), 1e-30)) + (cell?.log_normaliser ?? 0);
    const scores = shown.map(score);
    const most = Math.max(...scores.map((v) => Math.min(60, Math.abs(v))), 1);
    pen.text(say(cell ? "softmax.score" : "softmax.log"), x.score, y0 - 20, { size: 0.85, colour: pen.t.soft, most: long + 60 });
    pen.text(say("softmax.weight"), x.weight, y0 - 20, { size: 0.85, colour: pen.t.soft, alpha: phase(t, 0.45, 0.55), most: w - x.weight - 8 });
    shown.forEach((k, i) => {
      const y = y0 + (i + 0.5) * step;
      const here = k === arc.key;
      pen.text(word(stage, k), x.label + label - 4, y, { align: "right", weight: here ? 700 : 450, colour: here ? pen.t.warm : pen.t.ink, most: label - 6 });
      const grow = phase(t, 0.05 + i * 0.015, 0.25 + i * 0.015);
      const long0 = (Math.min(60, Math.abs(scores[i])) / most) * long * (tall ? 0.55 : 0.75) * grow;
      pen.rect(x.score, y - bar / 2, Math.max(1, long0), bar, rgba(scores[i] >= 0 ? pen.t.plus : pen.t.minus, 0.75), 4);
      pen.text(num(scores[i], 2), x.score + long0 + 8, y, { size: 0.8, colour: pen.t.soft, alpha: grow });
      const p = weight(arc.query, k);
      const over = phase(t, 0.5 + i * 0.015, 0.72 + i * 0.015);
      if (over <= 0) return;
      if (!tall) pen.arrow(x.weight - 62, y, x.weight - 26, y, pen.t.faint, 1.5);
      const full = w - x.weight - (tall ? 62 : w * 0.1);
      pen.rect(x.weight, y - bar / 2, full, bar, pen.t.chip, 4);
      pen.rect(x.weight, y - bar / 2, Math.max(2, full * p * over), bar, here ? pen.t.warm : pen.t.accent, 4);
      pen.text(pct(p), x.weight + full + 8, y, { size: 0.9, weight: here ? 650 : 450, alpha: over });
    });
    const total = shown.reduce((sum, k) => sum + weight(arc.query, k), 0);
    const sum = { size: 0.85, colour: pen.t.soft, alpha: phase(t, 0.85, 0.95) };
    const said = say(shown.length === arc.query + 1 ? "softmax.sum" : "softmax.part", { sum: num(total, 3), n: shown.length });
    if (tall) pen.lines(said, 10, y0 + step * shown.length + 12, w - 20, sum);
    else pen.text(said, w - 10, y0 + step * shown.length + 14, { ...sum, align: "right" });
  },
  ask(stage) {
    const found = stage.found;
    if (!found?.arc || found.arc.query < 1) return null;
    const { arc, weight } = found;
    const order = Array.from({ length: arc.query + 1 }, (_, k) => k).sort((a, b) => weight(arc.query, b) - weight(arc.query, a));
    const ratio = weight(arc.query, order[0]) / Math.max(1e-9, weight(arc.query, order[1]));
    const gap = Math.log(ratio);
    const say_ = (/** @type {number} */ x) => `${num(x, x < 10 ? 1 : 0)} ×`;
    return { ask: say("ask.softmax", { first: word(stage, order[0]), second: word(stage, order[1]), gap: num(gap, 2) }), ...mixed(say_(ratio), [say_(1 + gap), say_(ratio * 4), say_(Math.max(1, ratio ** 0.5))], arc.layer), because: say("why.softmax", { gap: num(gap, 2), ratio: num(ratio, 1) }) };
  },
};

/** The carry view's vectors. @param {any} found */
export const carriedOf = (found) => ({ ...found, weight: unpack(found.weights).data, writes: new Vectors(found.writes), whole: new Vectors(found.sum), before: new Vectors(found.before), after: new Vectors(found.after) });

/** @type {Scene} */
export const values = {
  id: "values",
  seconds: 9,
  hold: 0.19,
  fields: headFields,
  room: headRoom,
  async need(stage) {
    const arc = stage.data?.telling;
    return arc ? carriedOf(await ask(stage, "carry", { layer: arc.layer, head: arc.head, query: arc.query })) : { none: true };
  },
  paint(pen, t, stage) {
    const arc = telling(pen, stage);
    if (arc) valuesPicture(pen, t, stage, stage.found);
  },
  ask(stage) {
    const f = stage.found;
    if (!f || f.none || f.query < 2) return null;
    const order = Array.from({ length: f.query + 1 }, (_, k) => k).sort((a, b) => f.writes.norm[b] - f.writes.norm[a]);
    return { ask: say("ask.values", { query: word(stage, f.query) }), ...mixed(word(stage, order[0]), order.slice(1).map((k) => word(stage, k)), f.layer + f.head), because: say("why.values", { word: word(stage, order[0]), length: num(f.writes.norm[order[0]], 2), weight: pct(f.weight[order[0]]) }) };
  },
};

/** Values, weighted, added: of one head at one token. @param {Pen} pen @param {number} t @param {Stage} stage @param {any} f */
export function valuesPicture(pen, t, stage, f) {
  const { w, h, tall } = stage.frame;
  const keys = Array.from({ length: f.query + 1 }, (_, k) => k).sort((a, b) => f.writes.norm[b] - f.writes.norm[a]).slice(0, tall ? 5 : 9).sort((a, b) => a - b);
  const top = tall ? 76 : 92;
  const high = tall ? h * 0.36 : h * 0.54;
  const span = tall ? w - 20 : w * 0.52;
  const step = span / keys.length;
  // A number of a vector is about its length over the root of its width: first each by its own, then all by the longest.
  const usual = (/** @type {number} */ length) => length / Math.sqrt(stage.data?.width ?? 1) || 1;
  const typical = usual(Math.max(...keys.map((k) => f.writes.norm[k])));
  const sumAt = tall ? { x: w * 0.2, y: top + high + 84 } : { x: w * 0.62, y: top };
  const fly = phase(t, 0.42, 0.62);
  const tallSum = tall ? h - sumAt.y - 74 : high;
  const at = (/** @type {number} */ i) => (tall ? 10 : 26) + (i + 0.5) * step;
  // What flies stays behind the numbers.
  keys.forEach((k, i) => { if (fly > 0 && fly < 1) pen.column(f.writes.row(k), { x: mix(at(i), sumAt.x, fly) - 12, y: mix(top, sumAt.y, fly), w: 24, h: mix(high, tallSum, fly) }, { typical, alpha: 0.55 }); });
  keys.forEach((k, i) => {
    const x = at(i);
    const inn = phase(t, 0.03 + i * 0.02, 0.12 + i * 0.02);
    pen.text(word(stage, k), x, top - 40, { align: "center", most: step - 6, weight: 600, alpha: inn, size: 0.95 });
    pen.text(`× ${f.weight[k] > 0 && f.weight[k] < 0.005 ? "<0.01" : num(f.weight[k], 2)}`, x, top - 18, { align: "center", size: 0.85, colour: pen.t.accent, alpha: phase(t, 0.12, 0.18) });
    pen.column(f.writes.row(k), { x: x - Math.min(16, step * 0.3), y: top, w: Math.min(32, step * 0.6), h: high }, { typical: mix(usual(f.writes.norm[k]), typical, phase(t, 0.2, 0.36)), upTo: inn });
    pen.text(num(f.writes.norm[k], 2), x, top + high + 16, { align: "center", size: 0.78, colour: pen.t.soft, alpha: phase(t, 0.25, 0.35) });
  });
  pen.text(say("values.lengths"), tall ? 10 : 26, top + high + 38, { size: 0.78, colour: pen.t.soft, alpha: phase(t, 0.25, 0.35), most: span });
  const steps = /** @type {[string, import("./data.js").Vectors, number, string][]} */ ([[say("values.sum"), f.whole, 0.58, ""], [say("values.before"), f.before, 0.66, "+"], [say("values.after"), f.after, 0.76, "="]]);
  const gap = tall ? w * 0.3 : w * 0.12;
  steps.forEach(([name, vectors, from, sign], i) => {
    const inn = phase(t, from, from + 0.08);
    const x = sumAt.x + i * gap;
    pen.column(vectors.row(0), { x: x - 14, y: sumAt.y, w: 28, h: tallSum }, { upTo: inn });
    pen.text(name, x, sumAt.y - (tall ? 12 : 40), { align: "center", size: 0.85, weight: 600, alpha: inn, most: gap - 4 });
    pen.text(say("values.length", { x: num(vectors.norm[0], 1) }), x, tall ? sumAt.y + tallSum + 14 : sumAt.y - 18, { align: "center", size: 0.78, colour: pen.t.soft, alpha: inn, most: gap - 4 });
    if (sign) pen.text(sign, x - gap / 2, sumAt.y + tallSum / 2, { align: "center", size: 1.5, alpha: inn });
  });
  const raised = phase(t, 0.86, 0.94);
  const [rx, ry] = tall ? [10, h - 28] : [26, top + high + 84];
  pen.lines(say("values.raises", { words: quoted(f.raises) }), rx, ry, tall ? w - 20 : w - 60, { size: tall ? 0.78 : 1, colour: pen.t.warm, alpha: raised });
}

/** @type {Scene} */
export const heads = {
  id: "heads",
  seconds: 8,
  hold: 0.67,
  fields: (stage) => ({ n: stage.data ? stage.data.raw.arcs.heads.reduce((/** @type {number} */ a, /** @type {number} */ b) => a + b, 0) : "", share: stage.data ? Math.round(100 * stage.data.threshold) : "" }),
  need: async (stage) => {
    const found = await ask(stage, "thumbnails", {});
    const { data } = unpack(found.data);
    const n = found.size;
    const canvas = document.createElement("canvas");
    return { ...found, data, n, canvas, painted: "" };
  },
  room: () => ({ room: "attention", set: {} }),
  paint(pen, t, stage) {
    const f = stage.found;
    const d = /** @type {import("./data.js").StageData} */ (stage.data);
    const { w, h, tall } = stage.frame;
    const [across, down] = tall ? [f.heads, f.layers] : [f.layers, f.heads];
    const room = { x: tall ? 34 : 50, y: 34, w: w - (tall ? 44 : 70), h: h - 64 };
    const step = Math.min(room.w / across, room.h / down);
    const [x0, y0] = [room.x + (room.w - step * across) / 2, room.y + (room.h - step * down) / 2];
    const key = `${pen.t.dark}${f.n}`;
    if (f.painted !== key) {
      f.painted = key;
      [f.canvas.width, f.canvas.height] = [f.layers * f.n, f.heads * f.n];
      const ctx = f.canvas.getContext("2d");
      const image = ctx.createImageData(f.canvas.width, f.canvas.height);
      const out = new Uint32Array(image.data.buffer);
      for (let l = 0; l < f.layers; l++) for (let hd = 0; hd < f.heads; hd++) for (let y = 0; y < f.n; y++) for (let x = 0; x < f.n; x++) out[(hd * f.n + y) * f.canvas.width + l * f.n + x] = pen.t.lut[128 + Math.round(127 * Math.sqrt(f.data[((l * f.heads + hd) * f.n + y) * f.n + x] / 255))];
      ctx.putImageData(image, 0, 0);
    }
    /** @type {Map<string, number>} */
    const carries = new Map();
    for (const arc of d.into(d.position)) carries.set(`${arc.layer},${arc.head}`, (carries.get(`${arc.layer},${arc.head}`) ?? 0) + arc.share);
    const c = pen.ctx;
    c.imageSmoothingEnabled = false;
    const every = Math.max(1, Math.ceil(22 / step));
    const light = phase(t, 0.68, 0.8);
    for (let layer = 0; layer < f.layers; layer++) {
      const inn = phase(t, 0.05 + (0.5 * layer) / f.layers, 0.1 + (0.5 * layer) / f.layers);
      if (layer % every === 0) {
        if (tall) pen.text(String(layer), x0 - 6, y0 + (layer + 0.5) * step, { align: "right", size: 0.7, colour: pen.t.soft });
        else pen.text(String(layer), x0 + (layer + 0.5) * step, y0 - 12, { align: "center", size: 0.75, colour: pen.t.soft });
      }
      if (inn <= 0) continue;
      for (let head_ = 0; head_ < f.heads; head_++) {
        const [x, y] = tall ? [x0 + head_ * step, y0 + layer * step] : [x0 + layer * step, y0 + head_ * step];
        const lit = carries.get(`${layer},${head_}`) ?? 0;
        c.globalAlpha = inn * (lit ? 1 : 1 - 0.6 * light);
        c.drawImage(f.canvas, layer * f.n, head_ * f.n, f.n, f.n, x + 1, y + 1, step - 3, step - 3);
        c.globalAlpha = 1;
        pen.drawn++;
        if (lit && light > 0) pen.frame(x, y, step - 1, step - 1, rgba(pen.t.spark, light), 3, 1 + 2.5 * Math.min(1, lit / 0.35));
        pen.part({ x, y, w: step - 1, h: step - 1 }, say("part.head", { layer, head: head_ }), () => stage.zoom.into({ layer, head: head_ }), `head-${layer}-${head_}`);
      }
    }
    if (!tall) for (let head_ = 0; head_ < f.heads && step > 12; head_++) pen.text(String(head_), x0 - 8, y0 + (head_ + 0.5) * step, { align: "right", size: 0.75, colour: pen.t.soft });
    if (tall) pen.lines(say("heads.legend.tall"), w / 2, h - 22, w - 12, { align: "center", size: 0.75, colour: pen.t.soft });
    else pen.text(say("heads.legend"), w / 2, h - 16, { align: "center", size: 0.8, colour: pen.t.soft, most: w - 12 });
  },
  ask(stage) {
    const d = stage.data;
    if (!d || !stage.found || d.position < 1) return null;
    const count = new Set(d.into(d.position).map((a) => `${a.layer},${a.head}`)).size;
    const all = stage.found.layers * stage.found.heads;
    const choices = [...new Set([count, Math.round(all / 2), all, Math.max(1, Math.round(count * 2.5 + 7))])].sort((a, b) => a - b);
    return { ask: say("ask.heads", { all, share: Math.round(100 * d.threshold), word: word(stage, d.position) }), choices: choices.map(String), right: choices.indexOf(count), because: say("why.heads", { count }) };
  },
};
