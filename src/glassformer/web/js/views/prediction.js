/** The graph of one prediction: every word, head and neuron that made it, at its layer and word, and what each hands to which. */

import { h, number, percent, put, shown } from "../dom.js";
import { edgeTable, graph } from "../graph.js";
import { live } from "../live.js";
import { withSign } from "../ui.js";
import { inQuotes, say } from "../words.js";
import { nodeOf } from "./circuit.js";

/** @typedef {import("../store.js").Store} Store */
/** @typedef {{asked: boolean, share: number, groups: string[][]|null, names: Record<string, string>, pinned: string[], by: number}} Kept what the reader did to the graph, as the address holds it */

/** Edges drawn for each part: the thinnest would hide the rest. */
const EDGES = 3;

/** What a graph is of. */
const OF = ["text", "model", "position", "token", "against", "lay"];

/** @type {Kept} */
const FRESH = { asked: false, share: 1, groups: null, names: {}, pinned: [], by: 1 };

/** Nodes and edges as the kit draws them, a row for each word; of the edges the widest. @param {any} d @param {number} [count] how many nodes, the strongest first */
export function drawing(d, count = d.nodes.length) {
  const end = { ...nodeOf("logits"), row: d.position };
  const nodes = d.nodes.slice(0, count).map((/** @type {any} */ n) => {
    const part = n.name.split("@")[0];
    const [, neuron] = /\.n(\d+)$/.exec(part) ?? [];
    const told = { part: part, word: inQuotes(shown(n.token)), effect: withSign(n.effect), direct: withSign(n.direct), measured: n.measured === null ? "–" : withSign(n.measured) };
    return { ...nodeOf(part), id: n.name, row: n.position, ...(neuron ? { text: `${n.layer}:${neuron}` } : {}), about: say("nodes.node", told) };
  });
  const edges = d.edges.filter((/** @type {any} */ e) => e.from < count && (e.to ?? 0) < count).slice(0, EDGES * nodes.length).map((/** @type {any} */ e) => {
    const [from, to] = [d.nodes[e.from].name, e.to === null ? "logits" : d.nodes[e.to].name];
    return { from, to, measured: e.share, claimed: e.share, about: `${from} → ${to}` };
  });
  const names = Object.fromEntries(d.tokens.map((/** @type {string} */ t, /** @type {number} */ i) => [i, `${i} ${shown(t)}`]));
  return { nodes: [...nodes, end], edges, rows: { names, ties: /** @type {[string, string][]} */ ([]) } };
}

/** What is grouped before the reader groups anything. @param {any} d */
export function automatic(d) {
  const groups = d.groups.map((/** @type {any} */ g) => g.nodes.map((/** @type {number} */ i) => d.nodes[i].name));
  return { groups, names: Object.fromEntries(d.groups.map((/** @type {any} */ g, /** @type {number} */ i) => [groups[i].join("+"), say("nodes.like", { a: d.nodes[g.nodes[0]].name })])) };
}

/** How many nodes, strongest first, have this share of the sizes of all that are shown. @param {any[]} nodes @param {number} share */
export function strongest(nodes, share) {
  const sizes = nodes.map((n) => Math.abs(n.effect));
  const wanted = share * sizes.reduce((x, v) => x + v, 0);
  let sum = 0;
  const last = sizes.findIndex((v) => (sum += v) >= wanted);
  return share >= 1 || last < 0 ? nodes.length : last + 1;
}

/** Which dictionaries, of those given at the start, stand for neurons. @param {any} source @param {Store} state */
function dictionaries(source, state) {
  const element = h("span", { class: "row small" });
  /** @type {string[]} */
  let names = [];
  const draw = () => {
    const laid = state.get("lay") ?? [];
    const all = [...new Set([...names, ...laid])];
    put(element, all.length ? say("nodes.lay") : null, all.map((name) => h("label", { class: "row small" }, h("input", {
      type: "checkbox", checked: laid.includes(name), onchange: (/** @type {any} */ event) => state.set({ lay: event.target.checked ? [...laid, name] : laid.filter((/** @type {string} */ x) => x !== name) }),
    }), name)));
  };
  state.on(["lay"], draw);
  if (source.live) source.get("models", {}).then((/** @type {any} */ d) => { names = d.dictionaries; draw(); }, () => {});
  draw();
  return element;
}

/** @param {HTMLElement} element @param {any} source @param {Store} state */
export function mount(element, source, state) {
  const body = h("div", { class: "nodes" });
  const button = h("button", { type: "button", onclick: () => { keep({ asked: true }); view.refresh(); } }, say("circuit.draw"));
  element.append(h("h3", {}, say("nodes.title")), h("p", { class: "soft small" }, say("nodes.say")), h("div", { class: "row nodes-form" }, button, dictionaries(source, state)), body);
  /** @type {any} */
  let held = null;
  /** @type {AbortController|null} */
  let turning = null;
  let mine = false;
  /** @returns {Kept} */
  const kept = () => ({ ...FRESH, ...state.get("nodes") });
  /** @param {Partial<Kept>} change */
  function keep(change) {
    mine = true;
    state.set({ nodes: { ...kept(), ...change } });
    mine = false;
  }
  const ask = () => ({ model: state.get("model"), text: state.get("text"), position: state.get("position") ?? -1, token: state.get("token"), against: state.get("against"), ...(state.get("lay")?.length ? { lay: state.get("lay") } : {}) });
  // Names and groups are of one prediction's nodes; a session or an address brings its own.
  state.on(OF, (changed) => {
    turning?.abort();
    if (state.get("nodes") && !changed.has("nodes")) keep({ groups: null, names: {}, pinned: [], by: 1 });
  });
  state.on(["nodes"], (changed) => {
    if (mine) return;
    if (!kept().asked) put(body);
    else if (held && !OF.some((key) => changed.has(key))) draw(held);
    else if (!held) view.refresh();
  });
  const view = live(body, state, OF, async (signal) => (kept().asked ? source.get("prediction", ask(), { signal }) : null), draw, { clear: () => { held = null; put(body); } });

  /** @param {any} d */
  function draw(d) {
    held = d;
    const [frame, table, now, own] = [h("div", {}), h("div", {}), kept(), automatic(d)];
    const [many, effect] = [h("output", { class: "small" }), h("output", { class: "small" })];
    const share = h("input", { type: "range", min: 0.05, max: 1, step: 0.05, value: now.share, "aria-label": say("nodes.share"), oninput: () => { keep({ share: Number(share.value) }); paint(); } });
    const dial = h("input", { type: "range", min: 0, max: 2, step: 0.05, value: now.by, class: "knob", "aria-label": say("nodes.turn"), oninput: () => { keep({ by: Number(dial.value) }); turn(); } });
    put(body, h("p", { class: "sentence" }, say("nodes.said", { token: shown(d.token), value: withSign(d.value), unit: d.unit, n: d.nodes.length, share: percent(d.coverage, 0), sum: number(d.direct), rest: number(d.constant) })),
      frame, h("div", { class: "row" }, h("label", { class: "row small" }, say("nodes.share"), share), many), h("div", { class: "row" }, h("label", { class: "row small" }, say("nodes.turn"), dial), effect),
      h("details", {}, h("summary", {}, say("circuit.table")), table));
    const marks = { groups: now.groups ?? own.groups, names: { ...own.names, ...now.names }, pinned: now.pinned };
    const kit = graph(frame, { label: say("nodes.title"), marks, marked: ({ groups, names, pinned }) => { keep({ groups, names, pinned }); turn(); } });
    function paint() {
      const count = strongest(d.nodes, kept().share);
      const { nodes, edges, rows } = drawing(d, count);
      kit.show(nodes, edges, rows);
      put(table, edgeTable(edges, (id) => id));
      many.textContent = say("nodes.kept", { n: count, all: d.nodes.length });
    }
    /** What the score is when all that is pinned is turned, measured. */
    async function turn() {
      turning?.abort();
      const { pinned, by } = kept();
      const members = pinned.flatMap((id) => id.split("+")).filter((id) => d.nodes.some((/** @type {any} */ n) => n.name === id));
      dial.disabled = !members.length;
      for (const name of ["aria-busy", "data-value"]) effect.removeAttribute(name);
      effect.textContent = members.length ? "" : say("nodes.pin");
      if (!members.length || by === 1) return;
      const { signal } = (turning = new AbortController());
      effect.setAttribute("aria-busy", "true");
      try {
        await new Promise((done) => setTimeout(done, 120)); // a slider on its way asks once
        if (signal.aborted) return;
        const { value } = (await source.get("prediction", { ...ask(), turn: [{ nodes: members, by }] }, { signal })).turned[0];
        if (signal.aborted) return;
        effect.dataset.value = String(value);
        effect.textContent = say("nodes.turned", { n: members.length, by: by.toFixed(2), value: withSign(value), change: withSign(value - d.value) });
      } catch (error) {
        if (!signal.aborted) effect.textContent = error instanceof Error ? error.message : String(error);
      } finally {
        if (!signal.aborted) effect.removeAttribute("aria-busy");
      }
    }
    paint();
    turn();
  }
}
