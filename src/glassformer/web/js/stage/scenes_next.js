/** Scenes from what the layers add to the answer and beyond: facts, layers, the answer, temperature, why, learning, size. */

import { plain } from "../dom.js";
import { say } from "../words.js";
import { ask, quoted, word } from "./asking.js";
import { clamp, mix, num, pct, phase, rgba } from "./paint.js";
import { mixed } from "./quiz.js";

/** @typedef {import("./stage.js").Stage} Stage @typedef {import("./paint.js").Pen} Pen @typedef {import("./scenes.js").Scene} Scene */

/** @param {Stage} stage */
const best = (stage) => plain(stage.data?.next[0]?.token ?? "");

/** @type {Scene} */
export const facts = {
  id: "facts",
  seconds: 9,
  hold: 0.55,
  fields: (stage) => ({ word: best(stage), last: stage.data ? word(stage, stage.data.position) : "" }),
  need: (stage) => ask(stage, "neurons", { position: stage.state.get("position") ?? -1, top: 8 }),
  room: () => ({ room: "facts", set: {} }),
  paint(pen, t, stage) {
    const { neurons } = stage.found;
    const { w, h, tall } = stage.frame;
    const rows = neurons.slice(0, tall ? 4 : 6);
    const top = tall ? 14 : 52;
    const step = (h - top - 20) / rows.length;
    const most = Math.max(...rows.map((/** @type {any} */ n) => Math.abs(n.contribution)));
    const mid = tall ? w / 2 : w * 0.45;
    if (!tall) {
      pen.text(say("facts.excited"), mid - 60, 24, { align: "right", size: 0.85, colour: pen.t.soft });
      pen.text(say("facts.writes"), mid + 60, 24, { size: 0.85, colour: pen.t.soft });
      pen.text(say("facts.gives", { word: best(stage) }), w - 24, 24, { align: "right", size: 0.85, colour: pen.t.soft });
    }
    const list = (/** @type {string[]} */ words, /** @type {number} */ n) => [...new Set(words.map((x) => plain(x)))].slice(0, n);
    const moved = (/** @type {any} */ n, /** @type {number} */ k, /** @type {number} */ most, /** @type {number} */ size) => (n.contribution >= 0 ? pen.few(list(n.raises, k), most, size, 650, "↑ ") : pen.few(list(n.lowers, k), most, size, 650, "↓ "));
    rows.forEach((/** @type {any} */ n, /** @type {number} */ i) => {
      const from = 0.04 + i * 0.07;
      const y = top + (i + 0.5) * step;
      const [a, b, c] = [phase(t, from, from + 0.1), phase(t, from + 0.1, from + 0.18), phase(t, Math.max(0.56, from + 0.2), Math.max(0.66, from + 0.3))];
      const ink = rgba(n.contribution >= 0 ? pen.t.plus : pen.t.minus, 1);
      const name = say("facts.neuron", { layer: n.layer, index: n.index });
      if (tall) {
        if (i) pen.line([[10, y - step / 2], [w - 10, y - step / 2]], pen.t.faint, 1, 0.5);
        pen.text(pen.few(list(n.excited_by, 4), w - 20, 0.9), 10, y - step * 0.24, { most: w - 20, alpha: a, size: 0.9 });
        pen.text(moved(n, 4, w - 90, 0.95), 10, y + step * 0.22, { most: w - 90, weight: 650, alpha: c, size: 0.95 });
        pen.text(`${n.contribution >= 0 ? "+" : "−"}${num(Math.abs(n.contribution))}`, w - 10, y + step * 0.22, { align: "right", colour: ink, weight: 650, alpha: c });
      } else {
        pen.text(pen.few(list(n.excited_by, 5), mid - 90), mid - 60, y, { align: "right", most: mid - 90, alpha: a });
        pen.line([[mid - 52, y], [mix(mid - 52, mid - 22, a), y]], pen.t.soft, 1.5, a);
        pen.line([[mid + 22, y], [mix(mid + 22, mid + 52, c), y]], ink, 2, c);
        const zero = w * 0.92 - 84; // bars to both sides of it, the number beside them
        pen.text(moved(n, 5, w * 0.39 - 160, 1), mid + 60, y, { most: w * 0.39 - 160, weight: 600, alpha: c });
        const long = (Math.abs(n.contribution) / most) * w * 0.08;
        pen.rect(zero - (n.contribution >= 0 ? 0 : long), y - 6, long * c, 12, ink, 3, 0.8);
        pen.text(`${n.contribution >= 0 ? "+" : "−"}${num(Math.abs(n.contribution))}`, w - 24, y, { align: "right", size: 0.85, alpha: c });
      }
      const r = 6 + 12 * b * Math.sqrt(Math.abs(n.contribution) / most);
      const cy = tall ? y - step * 0.03 : y;
      for (let k = 0; k < 12 && b > 0; k++) {
        const angle = (k * Math.PI) / 6;
        pen.line([[mid + 5 * Math.cos(angle), cy + 5 * Math.sin(angle)], [mid + r * Math.cos(angle), cy + r * Math.sin(angle)]], rgba(pen.t.spark, 1), 1.6, b);
      }
      pen.text(name, tall ? mid + 24 : mid, tall ? cy : y + 30, { align: tall ? "left" : "center", size: 0.72, colour: pen.t.soft, alpha: a });
    });
  },
  ask(stage) {
    const all = [...(stage.found?.neurons ?? [])].sort((a, b) => b.contribution - a.contribution);
    const n = all[0];
    if (!n || all.length < 3) return null;
    const list = (/** @type {string[]} */ words) => quoted(words, 3);
    return { ask: say("ask.facts", { layer: n.layer, index: n.index, words: list(n.excited_by) }), ...mixed(list(n.raises), [list(n.lowers), list(all[1].raises), list(all[2].raises)], n.index), because: say("why.facts", { gives: `${n.contribution >= 0 ? "+" : "−"}${num(Math.abs(n.contribution))}`, word: best(stage), output: num(n.activation) }) };
  },
};

/** Half layers that a ladder shows: the end of each layer. @param {any} found */
const ends = (found) => found.rows.filter((/** @type {any} */ row) => row.place === "embed" || row.place.endsWith("resid_post"));

/** @type {Scene} */
export const layers = {
  id: "layers",
  seconds: 8,
  hold: 0.06,
  fields: (stage) => ({ word: best(stage), last: stage.data ? word(stage, stage.data.position) : "" }),
  need: (stage) => ask(stage, "lens", { top: 1, start: stage.data?.position ?? 0, stop: (stage.data?.position ?? 0) + 1 }),
  room: () => ({ room: "depth", set: {} }),
  paint(pen, t, stage) {
    const { w, h, tall } = stage.frame;
    const all = ends(stage.found);
    const most = Math.floor((h - 60) / (pen.size * 1.12));
    const every = Math.ceil(all.length / most);
    const rows = all.filter((/** @type {any} */ _, /** @type {number} */ i) => i % every === 0 || i === all.length - 1);
    const step = (h - 56) / rows.length;
    const answer = stage.found.followed?.[0];
    const x = { layer: tall ? 44 : w * 0.1, word: tall ? 56 : w * 0.1 + 18, bar: tall ? w * 0.46 : w * 0.3 };
    const right = tall ? 54 : 90;
    if (tall) pen.lines(say("layers.head"), 8, 10, w - 16, { size: 0.75, colour: pen.t.soft });
    else pen.text(say("layers.head"), x.bar, 18, { size: 0.82, colour: pen.t.soft, most: w - x.bar - 8 });
    rows.forEach((/** @type {any} */ row, /** @type {number} */ i) => {
      const k = rows.length - 1 - i; // the first layer at the bottom: upon it the others
      const y = 36 + (k + 0.5) * step;
      const inn = phase(t, 0.06 + (0.84 * i) / rows.length, 0.06 + (0.84 * (i + 1.5)) / rows.length);
      const cell = row.cells[0];
      const top = cell.top[0];
      const here = answer && top.id === answer.id;
      const name = row.place === "embed" ? say("layers.embed") : String(row.place.split(".")[1]);
      pen.text(name, x.layer, y, { align: "right", size: Math.min(0.8, step / pen.size), colour: pen.t.soft });
      pen.text(plain(top.token), x.word, y, { size: Math.min(1, (step * 0.95) / pen.size), weight: here ? 700 : 450, colour: here ? pen.t.accent : pen.t.ink, alpha: inn, most: x.bar - x.word - 8 });
      const full = w - x.bar - right;
      pen.rect(x.bar, y - step * 0.3, full, step * 0.6, pen.t.chip, 3, 0.7);
      if (inn > 0) pen.rect(x.bar, y - step * 0.3, Math.max(1, full * top.probability * inn), step * 0.6, here ? pen.t.accent : pen.t.faint, 3, here ? 1 : 0.9);
      if (!here && inn > 0 && cell.followed > 0.002) pen.rect(x.bar, y - step * 0.12, Math.max(1, full * cell.followed * inn), step * 0.24, pen.t.accent, 2);
      pen.text(pct(top.probability), x.bar + full + 6, y, { size: Math.min(0.8, step / pen.size), colour: pen.t.soft, alpha: inn });
      pen.part({ x: x.word - 30, y: y - step / 2, w: w - x.word, h: step - 1 }, say("part.lens", { layer: name, word: plain(top.token), p: pct(top.probability) }), () => row.place !== "embed" && stage.zoom.into({ layer: Number(row.place.split(".")[1]) }), `lens-${row.place}`);
    });
  },
  ask(stage) {
    const found = stage.found;
    const answer = found?.followed?.[0];
    if (!answer) return null;
    const rows = ends(found);
    const first = rows.findIndex((/** @type {any} */ row) => row.cells[0].top[0].id === answer.id);
    if (first < 0 || rows.length < 3) return null;
    const n = rows.length - 1;
    const name = (/** @type {number} */ i) => (i === 0 ? say("layers.embed") : say("layers.layer", { layer: i - 1 }));
    return { ask: say("ask.layers", { word: plain(answer.token) }), ...mixed(name(first), [...new Set([1, Math.ceil(n / 2), Math.ceil(n * 0.75), n])].filter((i) => i !== first).map(name), first), because: say("why.layers", { p: pct(rows[first].cells[0].top[0].probability), before: plain(rows[Math.max(0, first - 1)].cells[0].top[0].token) }) };
  },
};

/** @type {Scene} */
export const answer = {
  id: "answer",
  seconds: 8,
  hold: 0.5,
  fields: (stage) => ({ n: stage.data?.width ?? "", vocab: stage.data?.vocab.toLocaleString("en") ?? "" }),
  paint(pen, t, stage) {
    const d = /** @type {import("./data.js").StageData} */ (stage.data);
    const { w, h, tall } = stage.frame;
    const rows = d.next.slice(0, tall ? 5 : 6);
    const top = tall ? 92 : 60;
    const step = (h - top - 34) / rows.length;
    const x0 = tall ? 12 : w * 0.16;
    const cells = tall ? w - 24 : w * 0.36;
    const last = d.final.row(0);
    const grown = phase(t, 0.02, 0.14);
    // The last vector lies on top; each word's column under it; the products under that.
    pen.text(say("answer.last", { word: word(stage, d.position) }), x0, tall ? 20 : 16, { weight: 650, alpha: grown, most: w - x0 - 10 });
    pen.column(last, { x: x0, y: tall ? 34 : 30, w: cells, h: 18 }, { lying: true, upTo: grown });
    rows.forEach((one, i) => {
      const y = top + i * step + (tall ? 4 : step * 0.2);
      const inn = phase(t, 0.12 + i * 0.03, 0.22 + i * 0.03);
      const times = phase(t, 0.22 + i * 0.03, 0.4 + i * 0.03);
      const first = i === 0;
      if (tall) pen.text(plain(one.token), x0, y, { weight: first ? 700 : 550, alpha: inn, most: w * 0.4 });
      else pen.text(plain(one.token), x0 - 14, y + 14, { align: "right", weight: first ? 700 : 500, size: 1.1, alpha: inn, most: x0 - 24 });
      const cy = tall ? y + 12 : y + 2;
      pen.column(d.unembedding.row(i), { x: x0, y: cy, w: cells, h: Math.min(14, step * 0.16) }, { lying: true, alpha: inn });
      pen.column(d.products.row(i), { x: x0, y: cy + Math.min(14, step * 0.16) + 3, w: cells, h: Math.min(14, step * 0.16) }, { lying: true, upTo: times });
      const sx = tall ? w - 12 : x0 + cells + 16;
      pen.text(tall ? `Σ ${num(d.dot[i], 1)}` : `Σ ${d.width} = ${num(d.dot[i], 2)}`, sx, tall ? y : y + 14, { align: tall ? "right" : "left", mono: true, size: 0.9, alpha: phase(times, 0.7, 1) });
      const p = phase(t, 0.52 + i * 0.02, 0.8 + i * 0.02);
      if (p <= 0) return;
      const bx = tall ? x0 : w * 0.7;
      const by = tall ? cy + 2 * Math.min(14, step * 0.16) + 10 : y + 6;
      const full = tall ? w - 24 - 62 : w * 0.2;
      pen.rect(bx, by, full, tall ? 10 : 18, pen.t.chip, 4);
      pen.rect(bx, by, Math.max(2, full * one.probability * p), tall ? 10 : 18, first ? pen.t.accent : pen.t.soft, 4);
      pen.text(pct(one.probability), bx + full + 8, by + (tall ? 5 : 9), { weight: first ? 650 : 450, alpha: p });
    });
    pen.text(say("answer.rest", { p: pct(rows.reduce((sum, r) => sum - r.probability, 1)), n: (d.vocab - rows.length).toLocaleString("en") }), tall ? x0 : w * 0.7, h - 14, { size: 0.82, colour: pen.t.soft, alpha: phase(t, 0.85, 0.95), most: tall ? w - 24 : w * 0.29 });
  },
  ask({ data }) {
    if (!data || data.next.length < 3) return null;
    const gap = data.next[0].logit - data.next[1].logit;
    const right = `${num(Math.exp(gap), 1)} ×`;
    return { ask: say("ask.answer", { a: plain(data.next[0].token), b: plain(data.next[1].token), x: num(data.next[0].logit, 2), y: num(data.next[1].logit, 2) }), ...mixed(right, [`${num(1 + gap, 1)} ×`, `${num(Math.exp(gap) * 10, 1)} ×`, `${num(data.next[0].logit / data.next[1].logit, 2)} ×`], data.next[0].id), because: say("why.answer", { gap: num(gap, 2), ratio: num(Math.exp(gap), 1) }) };
  },
};

/** @type {Scene} */
export const temperature = {
  id: "temperature",
  seconds: 8,
  hold: 0.5,
  paint(pen, t, stage) {
    const d = /** @type {import("./data.js").StageData} */ (stage.data);
    const { w, h, tall } = stage.frame;
    const at = clamp((t - 0.05) / 0.9) * (d.temperatures.length - 1);
    const low = Math.floor(at);
    const [a, b] = [d.temperatures[low], d.temperatures[Math.min(d.temperatures.length - 1, low + 1)]];
    // Between two computed temperatures the nearer one is shown: no number is made up.
    const now = at - low < 0.5 ? a : b;
    pen.text(`T = ${now.temperature.toFixed(1)}`, tall ? 14 : w * 0.08, 44, { size: 2, weight: 650 });
    pen.text(say("temperature.formula"), tall ? 14 : w * 0.08, 84, { size: 0.9, colour: pen.t.soft, mono: true, most: w - 28 });
    const gauge = { x: tall ? 14 : w * 0.36, y: tall ? 112 : 44, w: tall ? w - 28 : w * 0.54 };
    pen.rect(gauge.x, gauge.y - 3, gauge.w, 6, pen.t.chip, 3);
    pen.dot(gauge.x + (gauge.w * at) / (d.temperatures.length - 1), gauge.y, 9, pen.t.warm);
    pen.text("0.1", gauge.x, gauge.y + 20, { size: 0.75, colour: pen.t.soft });
    pen.text("1", gauge.x + (gauge.w * 9) / 19, gauge.y + 20, { size: 0.75, align: "center", colour: pen.t.soft });
    pen.text("2", gauge.x + gauge.w, gauge.y + 20, { size: 0.75, align: "right", colour: pen.t.soft });
    const rows = d.next.slice(0, tall ? 8 : 10);
    const top = tall ? 156 : 124;
    const step = Math.min(60, (h - top - 46) / (rows.length + 1));
    const bar = Math.min(26, step * 0.56);
    const x = tall ? 96 : w * 0.22;
    const full = w - x - (tall ? 66 : w * 0.14);
    let sum = 0;
    [...rows.keys(), -1].forEach((i, k) => {
      const p = i < 0 ? Math.max(0, 1 - sum) : now.probabilities[i];
      if (i >= 0) sum += p;
      const y = top + (k + 0.5) * step;
      pen.text(i < 0 ? say("temperature.rest") : plain(rows[i].token), x - 10, y, { align: "right", weight: i === 0 ? 700 : 450, colour: i < 0 ? pen.t.soft : pen.t.ink, most: x - 16 });
      pen.rect(x, y - bar / 2, full, bar, pen.t.chip, 4, 0.7);
      pen.rect(x, y - bar / 2, Math.max(1, full * p), bar, i < 0 ? pen.t.faint : i === 0 ? pen.t.accent : pen.t.soft, 4);
      pen.text(pct(p), x + full + 8, y, { size: 0.9 });
    });
  },
  ask(stage) {
    const d = stage.data;
    if (!d) return null;
    const hot = d.temperatures[d.temperatures.length - 1].probabilities[0];
    const choices = [...new Set([hot, d.next[0].probability, Math.min(0.999, d.next[0].probability * 1.2 + 0.03), hot / 2 + d.next[0].probability / 2].map((p) => pct(p)))];
    const right = pct(hot);
    return { ask: say("ask.temperature", { word: best(stage), p: pct(d.next[0].probability) }), ...mixed(right, choices.filter((c) => c !== right), 2), because: say("why.temperature") };
  },
};

/** @type {Scene} */
export const why = {
  id: "why",
  seconds: 7,
  hold: 0.35,
  fields: (stage) => ({ word: best(stage) }),
  room: () => ({ room: "why", set: {} }),
  need: (stage) => ask(stage, "without", { position: stage.data?.position ?? -1 }),
  paint(pen, t, stage) {
    const { rows } = stage.found;
    const { w, h, tall } = stage.frame;
    if (!rows.length) return void pen.lines(say("stage.onearc"), w * 0.1, h * 0.4, w * 0.8, { colour: pen.t.soft });
    const d = /** @type {import("./data.js").StageData} */ (stage.data);
    const p = d.next[0].probability;
    const top = 58;
    const step = Math.min(104, (h - top - 20) / rows.length);
    const y0 = top + Math.max(0, (h - top - 20 - step * rows.length) / 2);
    const chip = tall ? 84 : Math.min(170, w * 0.16);
    const x = tall ? 8 : w * 0.06;
    const bar = x + chip + (tall ? 10 : 30);
    const full = tall ? w - bar - 16 - pen.wide("<0.1 %", 1, 600) : w * 0.42;
    pen.text(say("why.head", { word: best(stage), p: pct(p) }), tall ? x : bar, y0 - 24, { size: tall ? 0.8 : 0.9, colour: pen.t.soft, most: w - (tall ? x : bar) - 8 });
    rows.forEach((/** @type {any} */ row, /** @type {number} */ k) => {
      const y = y0 + (k + 0.5) * step;
      const out = phase(t, 0.38 + k * 0.03, 0.5 + k * 0.03);
      const inn = phase(t, k * 0.02, 0.08 + k * 0.02);
      const after = row.after ?? 0;
      pen.rect(x, y - 16, chip, 32, pen.t.chip, 8, inn * (1 - 0.5 * out));
      const wide = pen.text(word(stage, row.source), x + 10, y, { weight: 600, alpha: inn * (1 - 0.4 * out), most: chip - 18 });
      if (out > 0) pen.line([[x + 8, y], [x + 8 + (wide + 4) * out, y]], pen.t.warm, 2.5);
      pen.rect(bar, y - 10, full, 20, pen.t.chip, 5, 0.7);
      pen.rect(bar, y - 10, Math.max(1, full * p * inn), 20, pen.t.faint, 5, 0.9);
      pen.rect(bar, y - 10, Math.max(1, full * mix(p, after, out) * inn), 20, out > 0 && after < p / 2 ? pen.t.warm : pen.t.accent, 5);
      pen.text(pct(out < 0.5 ? p : after), bar + full + 8, y, { weight: 600, alpha: inn * Math.abs(2 * out - 1) });
      if (!tall) pen.text(say(row.instead.id === d.next[0].id ? "why.still" : "why.instead", { word: plain(row.instead.token), p: pct(row.instead.probability) }), bar + full + 20 + pen.wide("<0.1 %", 1, 600), y, { size: 0.9, colour: pen.t.soft, alpha: phase(t, 0.62 + k * 0.03, 0.72 + k * 0.03), most: w - bar - full - 30 - pen.wide("<0.1 %", 1, 600) });
    });
  },
  ask(stage) {
    const rows = stage.found?.rows ?? [];
    if (rows.length < 2) return null;
    const order = [...rows].sort((a, b) => (a.after ?? 0) - (b.after ?? 0));
    return { ask: say("ask.why", { word: best(stage) }), ...mixed(word(stage, order[0].source), order.slice(1).map((r) => word(stage, r.source)), rows.length), because: say("why.why", { word: word(stage, order[0].source), before: pct(stage.found.before), after: pct(order[0].after ?? 0) }) };
  },
};

/** @type {Scene} */
export const learning = {
  id: "learning",
  seconds: 8,
  hold: 0.3,
  fields: (stage) => ({ vocab: stage.data?.vocab.toLocaleString("en") ?? "" }),
  room: () => ({ room: "learning", set: {} }),
  async need(stage) {
    if ((stage.data?.count ?? 0) < 2) return { problem: say("stage.onearc") };
    const surprise = await ask(stage, "surprise");
    const listed = await stage.source.get("runs", {}).catch(() => ({ runs: [] }));
    const name = stage.state.get("run") ?? listed.runs[0]?.name;
    const run = name ? await stage.source.get("run", { name }).catch(() => null) : null;
    return { ...surprise, run };
  },
  paint(pen, t, stage) {
    const f = stage.found;
    const { w, h, tall } = stage.frame;
    const film = f.run && f.run.samples?.length;
    const d = /** @type {import("./data.js").StageData} */ (stage.data);
    const high = film ? h * 0.5 : h;
    const tokens = f.losses.slice(-(tall ? 9 : 16));
    const from = f.losses.length - tokens.length + 1;
    const x0 = tall ? 34 : 70;
    const step = (w - x0 - 20) / tokens.length;
    const base = high - (tall ? 100 : 70);
    const tallest = Math.max(f.uniform, ...tokens) * 1.08;
    const y = (/** @type {number} */ v) => base - (v / tallest) * (base - (tall ? 62 : 44));
    const learnt = phase(t, 0.34, 0.8);
    tokens.forEach((/** @type {number} */ loss, /** @type {number} */ k) => {
      const inn = phase(t, 0.02 + k * 0.01, 0.12 + k * 0.01);
      const now = mix(f.uniform, loss, learnt);
      const x = x0 + k * step;
      pen.rect(x + step * 0.16, y(now * inn), step * 0.68, base - y(now * inn), learnt > 0 ? pen.t.accent : pen.t.faint, 4, 0.9);
      if (learnt >= 1 || inn < 1 || learnt === 0) pen.text(num(now * inn, 1), x + step / 2, y(now * inn) - 10, { size: 0.78, align: "center", alpha: learnt > 0 ? phase(t, 0.8, 0.88) : 0 });
      const c = pen.ctx;
      if (tall) {
        c.save();
        c.translate(x + step / 2, base + 8);
        c.rotate(Math.PI / 3);
        pen.text(word(stage, from + k), 0, 0, { size: 0.82, most: 76 });
        c.restore();
      } else pen.text(word(stage, from + k), x + step / 2, base + 16, { align: "center", most: step - 4, size: 0.95 });
    });
    pen.line([[x0, y(f.uniform)], [w - 16, y(f.uniform)]], pen.t.warm, 2);
    const axis = pen.text(say("learning.axis"), 12, 18, { size: 0.8, colour: pen.t.soft, most: w - 24 });
    const [lx, ly] = tall ? [12, 38] : [axis + 48, 18]; // beside the axis' name: over the bars it would hide them
    pen.line([[lx, ly], [lx + 22, ly]], pen.t.warm, 2);
    pen.text(say("learning.random", { x: num(f.uniform, 2) }), lx + 30, ly, { size: 0.82, colour: pen.t.warm, most: w - lx - 40 });
    pen.text(say("learning.mean", { x: num(f.mean, 2), model: d.model }), x0, high - (tall ? 12 : 16), { size: 0.9, weight: 600, alpha: phase(t, 0.8, 0.9), most: w - x0 - 10 });
    if (!film) return;
    const at = Math.min(f.run.samples.length - 1, Math.floor(clamp((t - 0.1) / 0.85) * f.run.samples.length));
    const sample = f.run.samples[at];
    pen.text(say("learning.run", { name: f.run.name, step: sample.step }), 14, h * 0.5 + 20, { weight: 650, most: w - 28 });
    pen.lines(sample.text.replace(/\s+/g, " ").slice(0, tall ? 260 : 420), 14, h * 0.5 + 48, w - 28, { size: 0.95, mono: true, colour: pen.t.soft });
  },
  ask(stage) {
    const f = stage.found;
    if (!f || !stage.data) return null;
    const right = num(Math.exp(f.uniform - f.mean), 0);
    return { ask: say("ask.learning", { vocab: stage.data.vocab.toLocaleString("en") }), ...mixed(`${right} ×`, [`${num(f.uniform / f.mean, 1)} ×`, `${num(f.uniform - f.mean, 1)} ×`, `${num(Math.exp(f.uniform - f.mean) * 100, 0)} ×`], 3), because: say("why.learning", { from: num(f.uniform, 2), to: num(f.mean, 2), ratio: right }) };
  },
};

/** A design's numbers as they are usually told: its matrices, counted apart. @param {any} count @returns {any} */
const told = (count) => (count.tallies?.length ? { parameters: count.tallies[0] } : count);

/** The parts of a count that are drawn, largest first. @param {any} count @returns {[string, number][]} */
function shares(count) {
  const c = count.parameters.components;
  const of = (/** @type {string[]} */ names) => names.reduce((sum, name) => sum + (c[name] ?? 0), 0);
  const known = { attention: of(["query", "key", "value", "output"]), feed_forward: of(["gate", "up", "down"]), embedding: of(["embedding", "positions", "unembedding"]) };
  const rest = count.parameters.total - Object.values(known).reduce((a, b) => a + b, 0);
  return /** @type {[string, number][]} */ ([...Object.entries(known), ["other", rest]]).filter(([, n]) => n > 0).sort((a, b) => b[1] - a[1]);
}

/** @type {Scene} */
export const size = {
  id: "size",
  unchanged: true,
  seconds: 7,
  hold: 0.4,
  fields: (stage) => ({ model: stage.data?.model ?? "" }),
  room: () => ({ room: "size", set: {} }),
  async need(stage) {
    const [mine, big] = await Promise.all([stage.source.get("size", { model: stage.state.get("model") }), stage.source.get("size", { name: "gpt3" })]);
    return { mine, big: told(big) };
  },
  paint(pen, t, stage) {
    const { mine, big } = stage.found;
    const { w, h, tall } = stage.frame;
    const side = Math.min(w - 24, tall ? h * 0.62 : h - 60, tall ? 1e9 : w * 0.55);
    const [x0, y0] = [tall ? (w - side) / 2 : w * 0.04, 40];
    const total = big.parameters.total;
    const parts = shares(big);
    const inks = { attention: rgba(pen.t.plus, 0.75), feed_forward: rgba(pen.t.minus, 0.8), embedding: pen.t.good, other: pen.t.faint };
    const grow = phase(t, 0.02, 0.25);
    const seen = phase(t, 0.42, 0.55);
    pen.text(say("size.big", { n: total.toLocaleString("en") }), x0, 20, { weight: 650, size: tall ? 0.85 : 1, most: w - x0 - 8 });
    // Areas to scale: columns of the square, each as wide as its share.
    let x = x0;
    for (const [name, n] of parts) {
      const wide = (n / total) * side;
      pen.rect(x, y0, Math.max(0.6, wide - 1), side * grow, seen > 0 ? inks[/** @type {"other"} */ (name)] : pen.t.faint, 0, seen > 0 ? mix(0.6, 1, seen) : 0.6);
      if (wide > 60) {
        pen.text(say(`size.${name}`), x + wide / 2, y0 + side * 0.45, { align: "center", weight: 650, size: 1.1, alpha: seen, most: wide - 10, colour: pen.t.dark ? "#0b1220" : "#101828" });
        pen.text(pct(n / total), x + wide / 2, y0 + side * 0.45 + pen.size * 1.6, { align: "center", alpha: seen, colour: pen.t.dark ? "#0b1220" : "#101828" });
      }
      x += wide;
    }
    // This model, at the same scale.
    const little = Math.sqrt(mine.parameters.total / total) * side;
    const [lx, ly] = tall ? [x0 + 6, y0 + side + 46] : [x0 + side + w * 0.05, y0 + 60];
    const inn = phase(t, 0.25, 0.38);
    pen.text(say("size.mine", { model: mine.name, n: mine.parameters.total.toLocaleString("en") }), lx, ly - 20, { weight: 650, alpha: inn, most: w - lx - 8 });
    pen.rect(lx, ly, Math.max(1.5, little), Math.max(1.5, little), pen.t.warm, 0, inn);
    pen.text(say("size.scale", { times: num(total / mine.parameters.total, 0) }), lx + little + 12, ly + Math.max(6, little / 2), { size: 0.9, colour: pen.t.soft, alpha: inn, most: w - lx - little - 20 });
    shares(mine).forEach(([name, n], i) => {
      const y = ly + Math.max(24, little) + 30 + i * (pen.size * 1.9);
      pen.rect(lx, y - 7, 14, 14, inks[/** @type {"other"} */ (name)], 3, seen);
      pen.text(`${say(`size.${name}`)}: ${n.toLocaleString("en")} (${pct(n / mine.parameters.total)})`, lx + 22, y, { alpha: seen, size: 0.9, most: w - lx - 30 });
    });
  },
  ask(stage) {
    const big = stage.found?.big;
    if (!big) return null;
    const parts = shares(big).filter(([name]) => name !== "other");
    return { ask: say("ask.size"), ...mixed(say(`size.${parts[0][0]}`), parts.slice(1).map(([name]) => say(`size.${name}`)), 1), because: say("why.size", { part: say(`size.${parts[0][0]}`), n: parts[0][1].toLocaleString("en"), p: pct(parts[0][1] / big.parameters.total) }) };
  },
};
