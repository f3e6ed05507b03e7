/** Why a head looks there: one attention score as pairs of earlier parts, by the words they were read from. */

import { signed } from "../colour.js";
import { h, hint, number, percent, put, shown } from "../dom.js";
import { graph, noMarks } from "../graph.js";
import { live } from "../live.js";
import { fork, withSign } from "../ui.js";
import { inQuotes, say } from "../words.js";

/** @typedef {import("../store.js").Store} Store */

/** Rows and columns of words that are drawn at most; the rest are summed. */
const WORDS = 12;

/** A part's name as short as it fits in a picture. @param {any} p */
const short = (p) => (p.kind === "head" ? `${p.layer}.${p.head}` : p.kind === "feed_forward" ? `ff ${p.layer}` : p.kind === "expert" ? `ex ${p.layer}.${p.expert}` : p.kind.replaceAll("_", " "));

/** The rows and columns that weigh most, in the order of the text; what is left out is one more of each. @param {number[][]} grid @param {number} most */
export function mainWords(grid, most) {
  const n = grid.length;
  const size = Array.from({ length: n }, (_, i) => grid[i].reduce((x, v) => x + Math.abs(v), 0) + grid.reduce((x, row) => x + Math.abs(row[i]), 0));
  const kept = Array.from({ length: n }, (_, i) => i).sort((a, b) => size[b] - size[a]).slice(0, most).sort((a, b) => a - b);
  if (kept.length === n) return { kept, grid };
  const rest = Array.from({ length: n }, (_, i) => i).filter((i) => !kept.includes(i));
  const groups = [...kept.map((i) => [i]), rest];
  return { kept, grid: groups.map((a) => groups.map((b) => a.reduce((x, i) => x + b.reduce((y, j) => y + grid[i][j], 0), 0))) };
}

/** @param {HTMLElement} element @param {any} source @param {Store} state */
export function mount(element, source, state) {
  const body = h("div", { class: "reasons" });
  const door = h("details", { class: "reasons-door", hidden: true }, h("summary", {}, say("reasons.title")), body);
  element.append(door);
  /** Whether it was asked. */
  let asked = false;
  door.addEventListener("toggle", () => { asked = door.open; view.refresh(); });
  const cell = () => ["query", "key", "head"].map((k) => state.get(k));
  const fits = () => { const [query, key, head] = cell(); return query !== null && key !== null && head !== null && Math.max(query, key) < state.get("count"); };
  const wanted = () => {
    const [query, key, head] = cell();
    const against = state.get("reasonAgainst");
    return { text: state.get("text"), model: state.get("model"), edits: state.get("edits"), layer: state.get("layer"), head, query, key, against: against === key || against > query ? null : against, most: 24 };
  };
  const show = () => { door.hidden = !fits() || !(source.live || source.holds("reasons", wanted())); };
  state.on(["query", "key", "layer", "head", "count", "text", "edits"], show);
  show();
  const view = live(body, state, ["text", "model", "edits", "layer", "head", "query", "key", "count", "reasonAgainst"], async (signal) => {
    return !asked || door.hidden ? null : source.get("reasons", wanted(), { signal });
  }, draw);

  /** @param {any} d */
  function draw(d) {
    const word = (/** @type {number} */ i) => inQuotes(shown(d.tokens[i] ?? ""));
    const rather = h("select", { "aria-label": say("reasons.rather"), onchange: () => state.set({ reasonAgainst: rather.value === "" ? null : Number(rather.value) }) },
      h("option", { value: "" }, say("reasons.nothing")), d.tokens.slice(0, d.query + 1).map((/** @type {string} */ t, /** @type {number} */ i) => (i === d.key ? null : h("option", { value: i, selected: i === d.against }, `${i} ${shown(t)}`))));
    rather.value = d.against === null ? "" : String(d.against);
    const { kept, grid } = mainWords(d.by_word, WORDS);
    const names = [...kept.map((i) => shown(d.words[i].word).replace(/^␣/, "")), ...(grid.length > kept.length ? [say("reasons.others")] : [])];
    const largest = Math.max(1e-9, ...grid.flat().map(Math.abs));
    const pair = d.pairs[0];
    put(body,
      h("p", { class: "sentence" }, say("reasons.said", { query: word(d.query), key: word(d.key), sum: withSign(d.sum), more: d.against === null ? "" : say("reasons.more", { word: word(d.against) }), part: pair.query.name, other: pair.key.name, share: withSign(pair.share) })),
      source.live ? h("label", { class: "small row" }, say("reasons.instead"), rather) : null,
      h("h3", {}, say("reasons.words")),
      h("div", { class: "scroll-x" }, h("table", { class: "heat num" }, h("thead", {}, h("tr", {}, h("td", {}), names.map((n) => h("th", { scope: "col" }, n)))), h("tbody", {}, grid.map((row, i) => h("tr", {}, h("th", { scope: "row" }, names[i]), row.map((v, j) => {
        const td = h("td", { "data-share": v }, Math.abs(v) > largest * 0.04 ? number(Number(v.toPrecision(2))) : "");
        td.style.setProperty("background", signed((0.62 * v) / largest));
        return hint(td, () => say("reasons.pair", { a: names[i], b: names[j], x: withSign(v) }));
      })))))),
      h("h3", {}, say("reasons.parts")), pairs(d),
      h("details", { class: "receipt num" }, h("summary", {}, say("receipt")), h("p", {}, d.sentence), h("dl", {}, line(say("reasons.pairs"), (d.parts.query * d.parts.key).toLocaleString()), line(say("reasons.sum"), number(d.sum)), line(say("reasons.run"), number(d.value)), line(say("reasons.apart"), d.residual.toExponential(1)),
        line(say("reasons.rotated"), number(d.rotated)), line(say("reasons.weight"), percent(d.steps[0].weight, 2)), line(say("precision"), d.precision))),
      h("h3", {}, say("reasons.heads")),
      h("div", { class: "waterfall", role: "list" }, d.composition.slice(0, 8).map((/** @type {any} */ c) => h("div", { role: "listitem", class: "part composition" }, h("button", { type: "button", class: "small", onclick: () => state.set({ layer: c.layer, head: c.head, query: null, key: null }) }, say("at.head", { layer: c.layer, head: c.head })),
        fork((Math.abs(c.query) >= Math.abs(c.key) ? c.query : c.key) / Math.max(1e-9, ...d.composition.map((/** @type {any} */ x) => Math.max(Math.abs(x.query), Math.abs(x.key))))), h("span", { class: "num small" }, say("reasons.both", { q: withSign(c.query), k: withSign(c.key) }))))));
  }

  const line = (/** @type {string} */ k, /** @type {string} */ v) => h("div", {}, h("dt", {}, k), h("dd", {}, v));

  /** The largest pairs as lines between the parts that ask and those that answer. @param {any} d */
  function pairs(d) {
    const frame = h("div", {});
    /** @type {Map<string, any>} */
    const nodes = new Map();
    const add = (/** @type {any} */ p, /** @type {0|1} */ column) => {
      const id = `${column ? "k" : "q"}${p.name}`;
      if (!nodes.has(id)) nodes.set(id, { id, column, lane: nodes.size / 100, text: short(p), about: `${p.name}, ${column ? say("reasons.answering") : say("reasons.asking")}`, kind: p.kind === "head" ? "head" : p.kind === "feed_forward" ? "feed" : "end" });
      return id;
    };
    const edges = d.pairs.slice(0, 20).map((/** @type {any} */ p) => ({ from: add(p.query, 0), to: add(p.key, 1), measured: p.share, claimed: p.share, about: say("reasons.with", { a: p.query.name, b: p.key.name }), shaky: false }));
    const kit = graph(frame, { label: say("reasons.largest", { n: edges.length, all: d.parts.query * d.parts.key }), marks: noMarks(), marked: () => {}, exact: true });
    kit.show([...nodes.values()], edges);
    return frame;
  }
}
