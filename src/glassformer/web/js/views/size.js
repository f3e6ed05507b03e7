/** Size: where the parameters are, as a treemap, for this model and for GPT-3. */

import { h, hint, number, put, s } from "../dom.js";
import { live } from "../live.js";
import { treemap } from "../treemap.js";
import { runner, track } from "../ui.js";
import { say } from "../words.js";

/** @typedef {import("../store.js").Store} Store */

/** @param {HTMLElement} element @param {any} source @param {Store} state */
export function mount(element, source, state) {
  element.append(h("h2", {}, say("size.title")));
  const two = h("div", { class: "two" });
  element.append(two);
  for (const name of [null, "gpt3"]) {
    const box = h("div", { class: "size" });
    two.append(box);
    const body = h("div", {});
    box.append(body);
    live(body, state, ["model"], async (signal) => source.get("size", name ? { name } : { model: state.get("model") }, { signal }), (data) => draw(body, data));
  }
  const tally = h("div", {});
  element.append(tally);
  sums(tally, source, state);
  if (!source.live || source.embedded) return;
  const lap = h("div", {});
  element.append(lap);
  race(lap, source, state);
}

/** What a design's matrices hold, as products; at the beginning GPT-3's. @param {Record<string, number>} d @returns {[string, [number, string][]][]} */
export function products({ width, layers, heads, vocabulary }) {
  const head = /** @type {[number, string][]} */ ([[128, "a head"], [width, "width"], [heads, "heads"], [layers, "layers"]]);
  const wide = /** @type {[number, string][]} */ ([[4 * width, "neurons"], [width, "width"], [layers, "layers"]]);
  const words = /** @type {[number, string][]} */ ([[width, "width"], [vocabulary, "tokens"]]);
  return [["embedding", words], ["key", head], ["query", head], ["value", head], ["output", head], ["up", wide], ["down", wide], ["unembedding", words]];
}

/** The tally line by line, with sliders, and the model's square beside the design's at true area. @param {HTMLElement} element @param {any} source @param {Store} state */
function sums(element, source, state) {
  const design = { width: 12288, layers: 96, heads: 96, vocabulary: 50257 };
  const ranges = { width: [64, 16384, 64], layers: [1, 128, 1], heads: [1, 128, 1], vocabulary: [256, 262144, 1] };
  const body = h("div", { class: "tally", role: "table", "aria-label": say("size.lines") });
  const squares = h("div", {});
  const zoom = h("input", { type: "range", min: 0, max: 1, step: 0.01, value: 1, "aria-label": say("size.zoom.say"), oninput: () => draw() });
  const sliders = h("div", { class: "sliders" });
  let mine = 0;
  for (const name of /** @type {(keyof typeof design)[]} */ (Object.keys(design))) {
    const out = h("output", { class: "num" }, design[name].toLocaleString());
    const [min, max, step] = ranges[name];
    const input = h("input", { type: "range", min, max, step, value: design[name], id: `design-${name}`, oninput: () => { design[name] = Number(input.value); out.textContent = design[name].toLocaleString(); draw(); } });
    input.value = String(design[name]);
    sliders.append(h("label", { for: `design-${name}` }, say(`size.${name}`)), input, out);
  }
  element.append(h("h2", {}, say("size.byline")), h("p", { class: "soft small" }, say("size.plain")),
    h("div", { class: "two" }, h("div", {}, sliders, body), h("div", {}, squares, h("label", { class: "small" }, say("size.zoom"), zoom))));
  function draw() {
    const lines = products(design);
    const value = (/** @type {[number, string][]} */ factors) => factors.reduce((x, [n]) => x * n, 1);
    const total = lines.reduce((sum, [, factors]) => sum + value(factors), 0);
    put(body, lines.map(([name, factors]) => h("div", { role: "row", class: "tally-line small" }, h("span", { role: "rowheader" }, say(`matrix.${name}`)), h("span", { role: "cell", class: "mono soft" }, factors.map(([n]) => n.toLocaleString()).join(" × ")), h("span", { role: "cell", class: "num" }, value(factors).toLocaleString()))),
      h("div", { role: "row", class: "tally-line" }, h("strong", { role: "rowheader" }, say("size.together")), h("span", { role: "cell" }), h("strong", { role: "cell", class: "num", "data-total": total }, total.toLocaleString())));
    // Areas are the counts: the window shows from the smaller square alone to the larger one whole.
    const [small, large] = [Math.sqrt(Math.min(mine || total, total)), Math.sqrt(Math.max(mine, total))];
    const view = small * (large / small) ** Number(zoom.value) * 1.04;
    const names = mine > total ? [say("size.design"), state.get("modelName") ?? say("size.model")] : [state.get("modelName") ?? say("size.model"), say("size.design")];
    const svg = s("svg", { viewBox: `0 0 ${view} ${view}`, class: "squares", role: "img", "aria-label": say("size.area", { a: names[0], b: number((100 * small * small) / (large * large)), c: names[1] }) },
      s("rect", { class: "square-large", width: large, height: large }), s("rect", { class: "square-small", width: small, height: small }));
    put(squares, svg, h("p", { class: "small" }, say("size.times", { a: names[1], b: number((large * large) / (small * small)), c: names[0] })));
  }
  live(squares, state, ["model"], async (signal) => source.get("size", { model: state.get("model") }, { signal }), (data) => { mine = data.parameters.total; draw(); });
  draw();
}

const RUNNERS = ["at_once", "word_by_word", "recurrent"];

/** The same text read three ways, timed now. @param {HTMLElement} element @param {any} source @param {Store} state */
function race(element, source, state) {
  const out = h("div", {});
  const said = h("p", { class: "small", role: "status" });
  const racing = runner("size.race", said, async (signal) => {
    said.textContent = say("size.ready");
    for await (const event of source.stream("/api/race", { text: state.get("text"), model: state.get("model") }, { signal })) {
      if (event.race) show(event.race);
      else said.textContent = say("size.lap", { a: event.tokens, b: event.who });
    }
    said.textContent = "";
  }, "size.stopped", { type: "button", id: "race", disabled: !source.live, onclick: () => racing.run() });
  element.append(h("h2", {}, say("size.once")),
    h("p", { class: "soft small" }, say("size.once.say")),
    racing.button, said, out);

  /** @param {any} r */
  function show(r) {
    const longest = Math.max(...r.laps.flatMap((/** @type {any} */ l) => [l.at_once, l.word_by_word, l.recurrent]));
    put(out, r.laps.map((/** @type {any} */ l) => h("div", {}, h("h3", {}, say("size.tokens", { a: l.tokens })), h("div", { role: "list" }, RUNNERS.map((key) => h("div", { class: "prob", role: "listitem" }, h("span", { class: "what small" }, say(`race.${key}`)), track(l[key] / longest), h("span", { class: "num small" }, `${(1000 * l[key]).toFixed(1)} ms`)))))),
      h("p", { class: "soft small" }, say("size.raced", { a: number(r.laps[r.laps.length - 1].gap), b: r.recurrent_parameters.toLocaleString(), c: r.recurrent_layers, d: r.threads, e: r.threads === 1 ? "" : "s", f: r.dtype })));
  }
}

/** @param {HTMLElement} body @param {any} data */
function draw(body, data) {
  const tally = data.parameters;
  const list = Object.entries(tally.components).filter(([, v]) => typeof v === "number" && v > 0).map(([name, value]) => ({ name, value: /** @type {number} */ (value) }));
  const total = list.reduce((sum, p) => sum + p.value, 0);
  const map = h("div", { class: "treemap", role: "img", "aria-label": list.map((p) => `${p.name} ${((100 * p.value) / total).toFixed(1)}%`).join(", ") });
  for (const box of treemap(list, 100, 100)) {
    const cell = h("div", { class: box.w < 7 || box.h < 5 ? "treecell tiny" : "treecell" }, h("span", {}, box.name));
    cell.style.setProperty("left", `${box.x}%`);
    cell.style.setProperty("top", `${box.y}%`);
    cell.style.setProperty("width", `${box.w}%`);
    cell.style.setProperty("height", `${box.h}%`);
    cell.style.setProperty("--hue", String(({ embedding: 210, unembedding: 210, positions: 210, query: 255, key: 235, value: 275, output: 290 })[/** @type {"query"} */ (box.name)] ?? 30));
    map.append(hint(cell, () => say("size.box", { a: box.name, b: box.value.toLocaleString(), c: ((100 * box.value) / total).toFixed(2), d: total.toLocaleString() })));
  }
  // Where two numbers are in use for one design, the other way of counting stands beside the one that is drawn.
  const others = data.tallies.filter((/** @type {any} */ t) => t.label !== tally.label);
  put(body, h("h3", {}, say("size.name", { a: data.name, b: total.toLocaleString() })),
    others.length ? h("p", { class: "soft small" }, `${tally.label}; ${others.map((/** @type {any} */ t) => `${t.label}: ${t.total.toLocaleString()}`).join("; ")}`) : null, map,
    h("table", { class: "small" }, h("tbody", {}, list.map((p) => h("tr", {}, h("th", { scope: "row" }, p.name), h("td", {}, p.value.toLocaleString()), h("td", {}, `${number((100 * p.value) / total)}%`))))));
}
