/** The graph of one prediction: every word, head and neuron that made it, at its layer and word, and what each hands to which. */

import { h, number, percent, put, shown } from "../dom.js";
import { edgeTable, graph, noMarks } from "../graph.js";
import { live } from "../live.js";
import { withSign } from "../ui.js";
import { say } from "../words.js";
import { nodeOf } from "./circuit.js";

/** @typedef {import("../store.js").Store} Store */

/** Edges drawn for each part: the thinnest would hide the rest. */
const EDGES = 3;

/** Nodes and edges as the kit draws them, a row for each word; of the edges the widest. @param {any} d */
export function drawing(d) {
  const end = { ...nodeOf("logits"), row: d.position };
  const nodes = d.nodes.map((/** @type {any} */ n) => {
    const part = n.name.split("@")[0];
    const [, neuron] = /\.n(\d+)$/.exec(part) ?? [];
    const told = { part: part, word: `“${shown(n.token)}”`, effect: withSign(n.effect), direct: withSign(n.direct), measured: n.measured === null ? "–" : withSign(n.measured) };
    return { ...nodeOf(part), id: n.name, row: n.position, ...(neuron ? { text: `${n.layer}:${neuron}` } : {}), about: say("nodes.node", told) };
  });
  const edges = d.edges.slice(0, EDGES * nodes.length).map((/** @type {any} */ e) => {
    const [from, to] = [d.nodes[e.from].name, e.to === null ? "logits" : d.nodes[e.to].name];
    return { from, to, measured: e.share, claimed: e.share, about: `${from} → ${to}` };
  });
  const names = Object.fromEntries(d.tokens.map((/** @type {string} */ t, /** @type {number} */ i) => [i, `${i} ${shown(t)}`]));
  return { nodes: [...nodes, end], edges, rows: { names, ties: /** @type {[string, string][]} */ ([]) } };
}

/** What is grouped before the reader groups anything. @param {any} d */
export function automatic(d) {
  const groups = d.groups.map((/** @type {any} */ g) => g.nodes.map((/** @type {number} */ i) => d.nodes[i].name));
  return { ...noMarks(), groups, names: Object.fromEntries(d.groups.map((/** @type {any} */ g, /** @type {number} */ i) => [groups[i].join("+"), say("nodes.like", { a: d.nodes[g.nodes[0]].name })])) };
}

/** @param {HTMLElement} element @param {any} source @param {Store} state */
export function mount(element, source, state) {
  const body = h("div", { class: "nodes" });
  const button = h("button", { type: "button", onclick: () => { asked = true; view.refresh(); } }, say("circuit.draw"));
  let asked = false;
  element.append(h("h3", {}, say("nodes.title")), h("p", { class: "soft small" }, say("nodes.say")), h("div", { class: "row nodes-form" }, button), body);
  const view = live(body, state, ["text", "model", "position", "token", "against"], async (signal) => {
    if (!asked) return null;
    const ask = { model: state.get("model"), text: state.get("text"), position: state.get("position") ?? -1, token: state.get("token"), against: state.get("against") };
    return source.get("prediction", ask, { signal });
  }, draw, { clear: () => put(body) });

  /** @param {any} d */
  function draw(d) {
    const frame = h("div", {});
    const { nodes, edges, rows } = drawing(d);
    put(body, h("p", { class: "sentence" }, say("nodes.said", { token: shown(d.token), value: withSign(d.value), unit: d.unit, n: d.nodes.length, share: percent(d.coverage, 0), sum: number(d.direct), rest: number(d.constant) })),
      frame, h("details", {}, h("summary", {}, say("circuit.table")), edgeTable(edges, (id) => id)));
    graph(frame, { label: say("circuit.graph", { n: nodes.length, edges: edges.length }), marks: automatic(d), marked: () => {} }).show(nodes, edges, rows);
  }
}
