/** Size: where the parameters are, as a treemap, for this model and for GPT-3. */

import { h, hint, number, put } from "../dom.js";
import { live } from "../live.js";
import { treemap } from "../treemap.js";
import { track } from "../ui.js";

/** @typedef {import("../store.js").Store} Store */

/** @param {HTMLElement} element @param {any} source @param {Store} state */
export function mount(element, source, state) {
  element.append(h("h2", {}, "Where the parameters are"));
  const two = h("div", { class: "two" });
  element.append(two);
  for (const name of [null, "gpt3"]) {
    const box = h("div", { class: "size" });
    two.append(box);
    const body = h("div", {});
    box.append(body);
    live(body, state, ["model"], async (signal) => source.get("size", name ? { name } : { model: state.get("model") }, { signal }), (data) => draw(body, data));
  }
  if (!source.live || source.embedded) return;
  const lap = h("div", {});
  element.append(lap);
  race(lap, source, state);
}

const RUNNERS = /** @type {[string, string][]} */ ([["at_once", "all at once"], ["word_by_word", "word by word"], ["recurrent", "a recurrent network"]]);

/** The same text read three ways, timed now. @param {HTMLElement} element @param {any} source @param {Store} state */
function race(element, source, state) {
  const out = h("div", {});
  const said = h("p", { class: "small", role: "status" });
  /** @type {AbortController|null} */
  let running = null;
  const go = h("button", { type: "button", id: "race", disabled: !source.live, onclick: async () => {
    if (running) return running.abort();
    const mine = (running = new AbortController());
    go.textContent = "Stop";
    said.textContent = "Getting ready…";
    try {
      for await (const event of source.stream("/api/race", { text: state.get("text"), model: state.get("model") }, { signal: mine.signal })) {
        if (event.race) show(event.race);
        else said.textContent = `${event.tokens} tokens, ${event.who}…`;
      }
      said.textContent = "";
    } catch (error) {
      said.textContent = mine.signal.aborted ? "Stopped." : error instanceof Error ? error.message : String(error);
    } finally {
      running = null;
      go.textContent = "Race";
    }
  } }, "Race");
  element.append(h("h2", {}, "At once against word by word"),
    h("p", { class: "soft small" }, "A transformer reads a whole text in one pass, for no position waits for the one before. A recurrent network has to go step by step. Timed on this machine, on the text above."),
    go, said, out);

  /** @param {any} r */
  function show(r) {
    const longest = Math.max(...r.laps.flatMap((/** @type {any} */ l) => [l.at_once, l.word_by_word, l.recurrent]));
    put(out, r.laps.map((/** @type {any} */ l) => h("div", {}, h("h3", {}, `${l.tokens} tokens`), h("div", { role: "list" }, RUNNERS.map(([key, name]) => h("div", { class: "prob", role: "listitem" }, h("span", { class: "what small" }, name), track(l[key] / longest), h("span", { class: "num small" }, `${(1000 * l[key]).toFixed(1)} ms`)))))),
      h("p", { class: "soft small" }, `Both ways give the transformer's own answer, ${number(r.laps[r.laps.length - 1].gap)} of the largest logit apart. The recurrent network has ${r.recurrent_parameters.toLocaleString()} parameters in ${r.recurrent_layers} layers and random weights: its time is real, its answer would not be. ${r.threads} thread${r.threads === 1 ? "" : "s"}, ${r.dtype}.`));
  }
}

/** @param {HTMLElement} body @param {any} data */
function draw(body, data) {
  const tally = data.parameters;
  const list = Object.entries(tally.components).filter(([, v]) => typeof v === "number" && v > 0).map(([name, value]) => ({ name, value: /** @type {number} */ (value) }));
  const total = list.reduce((s, p) => s + p.value, 0);
  const map = h("div", { class: "treemap", role: "img", "aria-label": list.map((p) => `${p.name} ${((100 * p.value) / total).toFixed(1)}%`).join(", ") });
  for (const box of treemap(list, 100, 100)) {
    const cell = h("div", { class: box.w < 7 || box.h < 5 ? "treecell tiny" : "treecell" }, h("span", {}, box.name));
    cell.style.setProperty("left", `${box.x}%`);
    cell.style.setProperty("top", `${box.y}%`);
    cell.style.setProperty("width", `${box.w}%`);
    cell.style.setProperty("height", `${box.h}%`);
    cell.style.setProperty("--hue", String(({ embedding: 210, unembedding: 210, positions: 210, query: 255, key: 235, value: 275, output: 290 })[/** @type {"query"} */ (box.name)] ?? 30));
    map.append(hint(cell, () => `${box.name}\n${box.value.toLocaleString()} parameters\n${((100 * box.value) / total).toFixed(2)}% of ${total.toLocaleString()}`));
  }
  // Where two numbers are in use for one design, the other way of counting stands beside the one that is drawn.
  const others = data.tallies.filter((/** @type {any} */ t) => t.label !== tally.label);
  put(body, h("h3", {}, `${data.name}: ${total.toLocaleString()} parameters`),
    others.length ? h("p", { class: "soft small" }, `${tally.label}; ${others.map((/** @type {any} */ t) => `${t.label}: ${t.total.toLocaleString()}`).join("; ")}`) : null, map,
    h("table", { class: "small" }, h("tbody", {}, list.map((p) => h("tr", {}, h("th", { scope: "row" }, p.name), h("td", {}, p.value.toLocaleString()), h("td", {}, `${number((100 * p.value) / total)}%`))))));
}
