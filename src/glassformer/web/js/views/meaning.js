/** Meaning: one word in several texts, its vectors parting layer by layer. */

import { h, hint, number, put, s, shown } from "../dom.js";
import { css, inkOn, signed } from "../colour.js";
import { carried } from "../edits.js";
import { live } from "../live.js";
import { labels } from "../math.js";
import { placeName, withSign } from "../ui.js";
import { inQuotes, say } from "../words.js";

/** @typedef {import("../store.js").Store} Store */

/** Words with more than one meaning, in contexts that tell them apart. */
const WORDS = /** @type {[string, string[]][]} */ ([
  ["mole", ["The American shrew mole", "One mole of carbon dioxide", "Take a biopsy of the mole"]],
  ["bank", ["She sat on the bank of the river, a grassy bank", "He put his money in the bank", "They robbed the bank at noon"]],
  ["light", ["The bag was very light", "She turned on the light", "The speed of light"]],
]);

/** @param {HTMLElement} element @param {any} source @param {Store} state */
export function mount(element, source, state) {
  const word = h("input", { type: "text", id: "meaning-word", size: "10", value: state.get("word") });
  const texts = h("textarea", { id: "meaning-texts", rows: "3", spellcheck: "false", class: "boxed" });
  texts.value = state.get("contexts").join("\n");
  const body = h("div", {});
  const form = h("form", { class: "fields-plain" }, h("label", { for: "meaning-word" }, say("meaning.word")), word, h("label", { for: "meaning-texts" }, say("meaning.texts")), texts,
    h("button", { type: "submit" }, say("meaning.beside")));
  form.addEventListener("submit", (/** @type {Event} */ event) => {
    event.preventDefault();
    state.set({ word: word.value.trim(), contexts: texts.value.split("\n").map((/** @type {string} */ t) => t.trim()).filter(Boolean) });
  });
  element.append(h("h2", {}, say("meaning.title")),
    h("p", { class: "soft small" }, say("meaning.say")),
    ...(source.live ? [h("div", { class: "row" }, WORDS.map(([name, contexts]) => h("button", { type: "button", class: "small", onclick: () => state.set({ word: name, contexts }) }, name))), form]
      : [h("p", {}, say("meaning.held", { word: state.get("word") }))]), body);
  state.on(["word", "contexts"], () => {
    word.value = state.get("word");
    texts.value = state.get("contexts").join("\n");
  });

  live(body, state, ["model", "word", "contexts", "edits"], async (signal) => {
    if (!state.get("word") || state.get("contexts").length < 2) {
      put(body, h("p", { class: "soft" }, say("meaning.name")));
      return null;
    }
    return source.get("meaning", { model: state.get("model"), edits: carried(state.get("edits")), word: state.get("word"), texts: state.get("contexts") }, { signal });
  }, draw);

  /** @param {any} d */
  function draw(d) {
    const n = d.texts.length;
    /** @type {[number, number][]} */
    const pairs = [];
    for (let i = 0; i < n; i++) for (let j = i + 1; j < n; j++) pairs.push([i, j]);
    const [width, height, L, B, T] = [720, 280, 44, 30, 10];
    const values = d.similarity.flatMap((/** @type {number[][]} */ m) => pairs.map(([i, j]) => m[i][j]));
    const low = Math.min(0, ...values);
    const x = (/** @type {number} */ i) => L + (i / Math.max(1, d.places.length - 1)) * (width - L - 12);
    const y = (/** @type {number} */ v) => T + ((1 - v) / (1 - low)) * (height - T - B);
    const svg = s("svg", { viewBox: `0 0 ${width} ${height}`, class: "chart", role: "img", "aria-label": say("meaning.cosine", { pairs: pairs.map(([i, j]) => say("meaning.fromto", { i: i + 1, j: j + 1, a: number(d.similarity[0][i][j]), b: number(d.similarity[d.places.length - 1][i][j]) })).join("; ") }) });
    for (const v of [0, 0.25, 0.5, 0.75, 1]) svg.append(s("line", { class: "grid", x1: L, x2: width - 12, y1: y(v), y2: y(v) }), s("text", { class: "tick", x: L - 6, y: y(v) + 4, "text-anchor": "end" }, v));
    svg.append(s("text", { class: "tick", x: L, y: height - 8 }, say("meaning.embedding")), s("text", { class: "tick", x: width - 12, y: height - 8, "text-anchor": "end" }, say("meaning.last")));
    pairs.forEach(([i, j], k) => svg.append(s("polyline", { class: `line line-${k % 4}`, points: d.places.map((/** @type {string} */ _, /** @type {number} */ p) => `${x(p).toFixed(1)},${y(d.similarity[p][i][j]).toFixed(1)}`).join(" ") })));
    let at = 0;
    svg.addEventListener("pointermove", (/** @type {PointerEvent} */ event) => {
      const box = svg.getBoundingClientRect();
      at = Math.max(0, Math.min(d.places.length - 1, Math.round(((((event.clientX - box.left) / box.width) * width - L) / (width - L - 12)) * (d.places.length - 1))));
    });
    hint(svg, () => `${placeName(d.places[at])}\n${pairs.map(([i, j]) => say("meaning.pair", { i: i + 1, j: j + 1, x: number(d.similarity[at][i][j]) })).join("\n")}`);
    const last = d.similarity[d.places.length - 1];
    const most = Math.max(...d.parted.flat().map((/** @type {number|null} */ v) => Math.abs(v ?? 0)), 1e-9);
    put(body,
      h("ol", { class: "contexts" }, d.texts.map((/** @type {any} */ t) => h("li", {}, h("span", { class: "mono" }, t.tokens.slice(0, t.position - t.pieces + 1).join("")), h("mark", { class: "mono" }, t.tokens.slice(t.position - t.pieces + 1, t.position + 1).join("")), h("span", { class: "mono" }, t.tokens.slice(t.position + 1).join("")),
        t.pieces > 1 ? h("span", { class: "soft small" }, say("meaning.pieces", { n: t.pieces })) : null))),
      h("div", { class: "halves" }, d.dots ? moves(d) : null, h("div", {},
      h("h3", {}, say("meaning.alike")),
      h("figure", { class: "figure" }, svg, h("figcaption", { class: "row small" }, pairs.map(([i, j], k) => h("span", { class: `key line-${k % 4}` }, say("meaning.and", { i: i + 1, j: j + 1 }))))))),
      h("div", { class: "two" },
        h("div", {}, h("h3", {}, say("meaning.end")), h("table", { class: "lens" }, h("thead", {}, h("tr", {}, h("td", {}), d.texts.map((/** @type {any} */ _, /** @type {number} */ i) => h("th", { scope: "col" }, i + 1)))),
          h("tbody", {}, last.map((/** @type {number[]} */ row, /** @type {number} */ i) => h("tr", {}, h("th", { scope: "row" }, `${i + 1} ${shown(d.texts[i].tokens.join("").slice(0, 22))}`), row.map((v) => {
            const td = h("td", { class: "num" }, v.toFixed(2));
            td.style.setProperty("background", css(Math.max(0, v)));
            td.style.setProperty("color", inkOn(Math.max(0, v)));
            return td;
          })))))),
        h("div", {}, h("h3", {}, say("meaning.part")), h("div", { class: "strip tall", role: "img", "aria-label": say("meaning.parted") }, d.parted.flatMap((/** @type {(number|null)[]} */ parts, /** @type {number} */ layer) => parts.map((v, part) => {
          const box = h("span", {});
          box.style.setProperty("background", signed((v ?? 0) / most));
          return hint(box, () => say("meaning.box", { layer, part: part ? "feed-forward" : "attention", change: v === null ? say("meaning.untold") : withSign(-v) }));
        }))), h("p", { class: "soft small" }, say("meaning.boxes")))),
    );
  }
}

/** The word's vectors as dots that part under a layer scrubber, each with the way it came. @param {any} d */
function moves(d) {
  const side = 300;
  const reach = Math.max(1e-9, ...d.dots.flat(2).map(Math.abs));
  const at = (/** @type {number[]} */ [x, y = 0]) => [side / 2 + (x / reach) * (side / 2 - 30), side / 2 - (y / reach) * (side / 2 - 30)];
  const svg = s("svg", { viewBox: `0 0 ${side} ${side}`, class: "moves", role: "img" });
  const said = h("output", { class: "small" });
  const pushed = h("ol", { class: "pushes small" });
  const slider = h("input", { type: "range", min: 0, max: d.places.length - 1, step: 1, value: d.places.length - 1, "aria-label": say("facts.layer"), oninput: () => draw() });
  slider.value = String(d.places.length - 1);
  function draw() {
    const now = Number(slider.value);
    const spots = labels(side, side);
    const here = d.dots[now].map(at);
    for (const [x, y] of here) spots.fits(x - 6, y - 6, 12, 12);
    put(svg, d.texts.map((/** @type {any} */ _, /** @type {number} */ i) => s("g", { class: `line-${i % 4}`, "data-dot": JSON.stringify(d.dots[now][i]) },
      s("polyline", { class: "line tail", points: d.dots.slice(0, now + 1).map((/** @type {number[][]} */ dots) => at(dots[i]).map((v) => v.toFixed(1)).join(",")).join(" ") }), s("circle", { class: "point", cx: here[i][0], cy: here[i][1], r: 6 }))));
    // The longest steps so far as arrows, each named by what took it.
    const taken = (d.steps ?? []).flatMap((/** @type {any[]} */ steps, /** @type {number} */ i) => steps.filter((one) => one.place <= now).map((one) => ({ ...one, text: i }))).sort((/** @type {any} */ a, /** @type {any} */ b) => b.moved - a.moved).slice(0, 8);
    for (const one of taken) {
      const [x1, y1] = at(d.dots[one.place - 1][one.text]), [x2, y2] = at(d.dots[one.place][one.text]);
      const turn = (Math.atan2(y2 - y1, x2 - x1) * 180) / Math.PI;
      one.middle = [(x1 + x2) / 2, (y1 + y2) / 2];
      svg.append(s("g", { class: `line-${one.text % 4} push`, "data-step": JSON.stringify([one.text, one.place]) }, s("line", { class: "line", x1, y1, x2, y2 }), s("path", { class: "point", d: "M0 0L-7 -4L-7 4Z", transform: `translate(${x2} ${y2}) rotate(${turn})` })));
    }
    for (const [i] of d.texts.entries()) spots.line(d.dots.slice(0, now + 1).map((/** @type {number[][]} */ dots) => at(dots[i])));
    // Names last, beside the lines, and none over another; what had to go far from its place is tied to it.
    const name = (/** @type {number[]} */ [x, y], /** @type {string} */ text, /** @type {number} */ gap, /** @type {string} */ kind) => {
      const [cx, cy] = spots.near(x, y, gap, 6.4 * text.length + 4, 13);
      if (Math.hypot(cx - x, cy - y) > 22 + 3.2 * text.length) svg.append(s("line", { class: "tie", x1: x, y1: y, x2: cx, y2: cy }));
      svg.append(s("text", { class: `tick ${kind}`, x: cx, y: cy + 4, "text-anchor": "middle" }, text));
    };
    d.texts.forEach((/** @type {any} */ t, /** @type {number} */ i) => name(here[i], `${i + 1} ${shown(t.tokens.slice(Math.max(0, t.position - 1), t.position + 1).join("").trim()).slice(-18)}`, 8, "of-dot"));
    taken.forEach((/** @type {any} */ one, /** @type {number} */ n) => name(one.middle, String(n + 1), 5, "of-step"));
    put(pushed, taken.map((/** @type {any} */ one) => h("li", { class: `line-${one.text % 4}` }, h("span", { class: `key line-${one.text % 4}` }, say("meaning.step", { i: one.text + 1, layer: one.layer }), one.part === "head" ? [say("meaning.brought", { head: one.head }), h("span", { class: "mono" }, inQuotes(shown(one.word)))] : say("meaning.ff")))));
    svg.setAttribute("aria-label", say("meaning.at", { place: placeName(d.places[now]) }));
    said.textContent = say("meaning.plane", { place: placeName(d.places[now]), p: (100 * d.shown[now]).toFixed(0), nearest: d.nearest ? say("meaning.nearest", { tokens: d.nearest[now].map((/** @type {string} */ t, /** @type {number} */ i) => `${i + 1} ${shown(t)}`).join(", ") }) : "" });
  }
  draw();
  return h("div", { class: "figure moving" }, h("div", {}, svg, h("label", { class: "small" }, say("meaning.inlayer"), slider)), h("div", {}, said, pushed));
}
