/** Scenes of the words themselves: they become numbers, and their meaning moves. */

import { carried } from "../edits.js";
import { inQuotes, say } from "../words.js";
import { recent, word } from "./asking.js";
import { clamp, mix, num, phase } from "./paint.js";
import { mixed } from "./quiz.js";

/** @typedef {import("./stage.js").Stage} Stage @typedef {import("./scenes.js").Scene} Scene */

/** @type {Scene} */
export const numbers = {
  id: "numbers",
  seconds: 8,
  hold: 0.55,
  fields: (stage) => ({ n: stage.data?.width ?? "", vocab: stage.data?.vocab.toLocaleString("en") ?? "" }),
  paint(pen, t, stage) {
    const d = /** @type {import("./data.js").StageData} */ (stage.data);
    const { w, h, tall } = stage.frame;
    const focus = d.telling?.key ?? d.position;
    const rows = recent(d.count - 1, tall ? 9 : 14);
    if (!rows.includes(focus)) rows.unshift(focus);
    const bottom = tall ? h * 0.5 : h - 40;
    const top = 46;
    const step = Math.min(76, (bottom - top) / rows.length);
    const y0 = top + Math.max(0, (bottom - top - step * rows.length) / 2);
    const [chip, id] = tall ? [84, 50] : [Math.min(150, w * 0.13), 74];
    const x1 = 14 + chip + id + 14;
    const x2 = tall ? w - 12 : w * 0.62;
    pen.text(say("numbers.row", { vocab: d.vocab.toLocaleString("en") }), tall ? x2 : x1, y0 - 16, { size: 0.8, align: tall ? "right" : "left", colour: pen.t.soft, alpha: phase(t, 0.15, 0.25), most: tall ? w - 26 : x2 - x1 });
    rows.forEach((i, k) => {
      const y = y0 + (k + 0.5) * step;
      const inn = phase(t, 0.01 + k * 0.012, 0.05 + k * 0.012);
      const here = i === focus;
      pen.rect(14, y - Math.min(15, step * 0.4), chip, Math.min(30, step * 0.8), here ? pen.t.accent : pen.t.chip, 7, inn);
      pen.text(word(stage, i), 22, y, { weight: here ? 650 : 500, colour: here ? (pen.t.dark ? "#0b1220" : "#fff") : pen.t.ink, most: chip - 14, alpha: inn });
      pen.text(String(d.tokens[i].id), 14 + chip + id, y, { align: "right", mono: true, size: 0.85, colour: pen.t.soft, alpha: phase(t, 0.1 + k * 0.01, 0.16 + k * 0.01) });
      pen.column(d.embedding.row(i), { x: x1, y: y - step * 0.3, w: x2 - x1, h: step * 0.6 }, { lying: true, upTo: phase(t, 0.2 + k * 0.02, 0.42 + k * 0.02), alpha: t > 0.5 && !here ? 0.35 : 1 });
    });
    // The row of one word stands up, with its numbers.
    const up = phase(t, 0.45, 0.65);
    const values = d.embedding.row(focus);
    const [cx, ctop, cbottom] = tall ? [w * 0.36, h * 0.5 + 42, h - 14] : [w * 0.74, 52, h - 46];
    const many = tall ? 12 : values.length;
    const each = (cbottom - ctop) / many;
    if (up <= 0) return;
    pen.text(say("numbers.vector", { word: word(stage, focus) }), cx, ctop - 26, { weight: 650, align: "center", alpha: up });
    pen.column(values.subarray(0, many), { x: cx - 14, y: ctop, w: 28, h: each * many }, { upTo: up });
    for (let k = 0; k < many; k++) {
      const seen = phase(t, 0.55 + k * 0.008, 0.6 + k * 0.008);
      pen.text(num(values[k], 3), cx + Math.max(78, 26 + 3.6 * pen.size), ctop + (k + 0.5) * each, { mono: true, align: "right", size: Math.min(0.9, each / pen.size), alpha: seen });
      pen.text(`x${d.dims[k]}`, cx - 22, ctop + (k + 0.5) * each, { mono: true, align: "right", size: Math.min(0.7, each / pen.size), colour: pen.t.soft, alpha: seen * 0.9 });
    }
    const note = say("numbers.note", { cells: many, n: d.width, length: num(d.embedding.norm[focus], 2) });
    if (tall) pen.lines(note, cx + 96, ctop + 12, w - cx - 104, { size: 0.8, colour: pen.t.soft, alpha: phase(t, 0.75, 0.85) });
    else pen.text(note, cx, h - 20, { size: 0.85, align: "center", colour: pen.t.soft, alpha: phase(t, 0.75, 0.85), most: w * 0.5 });
  },
  ask({ data }) {
    if (!data) return null;
    const [n, vocab] = [data.width, data.vocab];
    const said = (/** @type {number} */ x) => x.toLocaleString("en");
    return { ask: say("ask.numbers", { vocab: said(vocab) }), ...mixed(said(n * vocab), [said(n + vocab), said(n * data.count), said(vocab * 26)], n), because: say("why.numbers", { n: said(n), vocab: said(vocab), all: said(n * vocab) }) };
  },
};

/** @type {Scene} */
export const meaning = {
  id: "meaning",
  seconds: 9,
  hold: 0.12,
  fields: (stage) => ({ word: stage.state.get("word") }),
  need: (stage) => stage.source.get("meaning", { model: stage.state.get("model"), edits: carried(stage.state.get("edits")), word: stage.state.get("word"), texts: stage.state.get("contexts") }),
  room: () => ({ room: "meaning", set: {} }),
  paint(pen, t, stage) {
    const m = stage.found;
    const { w, h, tall } = stage.frame;
    const n = Math.min(3, m.texts.length);
    const inks = [pen.t.accent, pen.t.warm, pen.t.good];
    const places = m.places.length;
    const at = clamp((t - 0.12) / 0.8) * (places - 1);
    const left = tall ? 12 : 24;
    for (let i = 0; i < n; i++) {
      const text = m.texts[i];
      const y = 40 + i * (tall ? 38 : 46);
      pen.dot(left + 6, y, 6, inks[i], phase(t, i * 0.02, i * 0.02 + 0.04));
      let x = left + 22;
      text.tokens.forEach((/** @type {string} */ token, /** @type {number} */ k) => {
        const here = k <= text.position && k > text.position - (text.pieces ?? 1);
        const said = token.replace(/\n/g, " ");
        x += pen.text(x < (tall ? w - 60 : w * 0.36) ? said : "", x, y, { weight: here ? 750 : 450, colour: here ? inks[i] : pen.t.soft, size: tall ? 0.9 : 1 });
      });
    }
    const box = tall ? { x: w / 2, y: h * 0.58, r: Math.min(w, h) * 0.4 } : { x: w * 0.66, y: h * 0.52, r: Math.min(w * 0.3, h * 0.44) };
    const most = Math.max(...Array.from({ length: places }, (_, p) => Math.max(...corners(m.similarity[p], n).map(([x, y]) => Math.hypot(x, y)))), 0.05);
    /** @param {number} p @param {number} i @returns {[number, number]} */
    const dot = (p, i) => {
      const low = Math.floor(p);
      const [a, b] = [corners(m.similarity[low], n)[i], corners(m.similarity[Math.min(places - 1, low + 1)], n)[i]];
      return [box.x + (mix(a[0], b[0], p - low) / most) * box.r * 0.86, box.y + (mix(a[1], b[1], p - low) / most) * box.r * 0.86];
    };
    pen.dot(box.x, box.y, box.r, pen.t.chip, pen.t.dark ? 0.35 : 0.5);
    for (let i = 0; i < n; i++) {
      const tail = /** @type {[number, number][]} */ (Array.from({ length: Math.floor(at) + 1 }, (_, p) => dot(p, i)));
      tail.push(dot(at, i));
      pen.line(tail, inks[i], 2, 0.55);
    }
    for (let i = 0; i < n; i++) {
      for (let j = i + 1; j < n; j++) {
        const [a, b] = [dot(at, i), dot(at, j)];
        pen.line([a, b], pen.t.faint, 1, 0.9);
        const angle = (Math.acos(Math.max(-1, Math.min(1, m.similarity[Math.round(at)][i][j]))) * 180) / Math.PI;
        if (Math.hypot(a[0] - b[0], a[1] - b[1]) > 46) pen.text(`${angle.toFixed(0)}°`, (a[0] + b[0]) / 2, (a[1] + b[1]) / 2 - 9, { size: 0.85, align: "center", colour: pen.t.soft });
      }
    }
    for (let i = 0; i < n; i++) pen.dot(...dot(at, i), 8, inks[i]);
    const layer = Math.max(0, Math.ceil(at / 2) - 1);
    pen.text(at < 0.5 ? say("meaning.start") : say("meaning.layer", { layer }), tall ? w / 2 : left, tall ? h - 44 : h * 0.5, { size: 1.1, weight: 650, align: tall ? "center" : "left" });
    pen.lines(say("meaning.note"), tall ? 14 : left, tall ? h - 22 : h * 0.5 + 28, tall ? w - 28 : w * 0.3, { size: tall ? 0.7 : 0.85, colour: pen.t.soft });
  },
  ask(stage) {
    const m = stage.found;
    if (!m || m.texts.length < 3) return null;
    const last = m.similarity[m.places.length - 1];
    const pairs = /** @type {[number, number][]} */ ([[0, 1], [0, 2], [1, 2]]);
    const name = (/** @type {number} */ i) => inQuotes(m.texts[i].tokens.join("").trim().slice(0, 34));
    const said = pairs.map(([i, j]) => `${name(i)} · ${name(j)}`);
    const best = pairs.map(([i, j], k) => [last[i][j], k]).sort((a, b) => b[0] - a[0])[0][1];
    return { ask: say("ask.meaning", { word: m.word }), choices: said, right: best, because: say("why.meaning", { cosine: num(last[pairs[best][0]][pairs[best][1]], 2), others: pairs.filter((_, k) => k !== best).map(([i, j]) => num(last[i][j], 2)).join(", ") }) };
  },
};

/** Corners whose distances are those between directions: |a − b|² = 2 − 2 cos. The middle is the origin. @param {number[][]} cos @param {number} n @returns {[number, number][]} */
export function corners(cos, n) {
  const far = (/** @type {number} */ i, /** @type {number} */ j) => Math.sqrt(Math.max(0, 2 - 2 * cos[i][j]));
  /** @type {[number, number][]} */
  const out = [[0, 0]];
  if (n > 1) out.push([far(0, 1), 0]);
  if (n > 2) {
    const [a, b, c] = [far(0, 2), far(1, 2), far(0, 1)];
    const x = c > 1e-9 ? (a * a - b * b + c * c) / (2 * c) : 0;
    out.push([x, Math.sqrt(Math.max(0, a * a - x * x))]);
  }
  const [mx, my] = [0, 1].map((k) => out.reduce((sum, p) => sum + p[k], 0) / out.length);
  return out.map(([x, y]) => [x - mx, y - my]);
}
