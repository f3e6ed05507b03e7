/** The circuit between two prompts: which parts carry what makes them end differently, as a graph. */

import { h, percent, put, shown } from "../dom.js";
import { edgeTable, graph, noMarks } from "../graph.js";
import { live } from "../live.js";
import { withSign } from "../ui.js";
import { inQuotes, say } from "../words.js";

/** @typedef {import("../store.js").Store} Store */

/** Words of parts that few designs have. @type {Record<string, string>} */
const PARTS = { e: "part.own", p: "part.predicted", c: "part.corrected", l: "part.aside" };

/** Where in its layer a part stands, by what its name begins with; a norm of a sum follows what it sums. @type {Record<string, number>} */
const DEPTHS = { p: -0.5, m: 1, c: 1.25, e: 1.5 };

/** Parts as short as they fit in a picture. @param {string} id */
export function short(id) {
  if (id === "embed") return say("circuit.words");
  if (id === "logits") return say("circuit.next");
  return id.replace(/^a(\d+)\.h(\d+)$/, "$1.$2").replace(/^m(\d+)/, "ff $1");
}

/** … and in words. @param {string} id */
export function long(id) {
  if (id === "embed") return say("circuit.embed");
  if (id === "logits") return say("circuit.logits");
  return id.replace(/^a(\d+)\.h(\d+)$/, (_, layer, head) => say("at.head", { layer, head })).replace(/^m(\d+)(?:\.e(\d+)|\.(shared))?$/, (_, layer, expert, shared) => say("at.part", { layer, part: expert ? say("part.expert", { n: expert }) : shared ? say("part.shared") : "feed-forward" })).replace(/^([a-z]+)(\d+)(\.norm)?$/, (_, part, layer, norm) => say("at.part", { layer, part: norm ? say("part.norm") : PARTS[part] ? say(PARTS[part]) : part }));
}

/** Edges of a task's circuit that are measured, one run of the model for each prompt. */
const MEASURED = 60;

/** Steps of the search that may end before what they may take at most. */
const BOUNDED = /^(finding|taking) /;

/** What of a part an edge goes into. @param {string} to */
function side(to) {
  const found = /\.(q|k|v|router|index|token)$/.exec(to);
  return found ? ` (${{ q: "query", k: "key", v: "value", router: "router", index: "index", token: "token" }[/** @type {"q"} */ (found[1])]})` : "";
}

/** A part as a node. @param {string} id */
export function nodeOf(id) {
  const [, kind, layer, head] = /^([a-z]+)(\d+)(?:\.h(\d+))?/.exec(id) ?? [];
  const column = id === "embed" ? -1 : id === "logits" ? 1e6 : 2 * Number(layer) + (DEPTHS[kind] ?? 0) + (id.endsWith(".norm") ? 0.5 : 0);
  return { id, column, lane: id === "embed" || id === "logits" ? 0.5 : kind === "m" ? (Number(layer) % 2 ? 0.97 : 0.8) : head === undefined ? 0.3 : 0.08 + (Number(head) % 7) * 0.1, text: short(id), about: long(id), kind: kind === "m" ? "feed" : kind === "a" ? "head" : "end" };
}

/** Nodes and edges as the kit draws them. @param {any} d */
export function drawing(d) {
  const known = new Set(d.nodes);
  const nodes = d.nodes.map(nodeOf);
  const edges = d.edges.flatMap((/** @type {any} */ e) => {
    const into = e.into.filter((/** @type {string} */ id) => known.has(id));
    // Heads that share a key or value have it from one edge: it is drawn to each, with its share of the width.
    return into.map((/** @type {string} */ to) => ({
      from: e.from, to, measured: e.exact === null ? null : e.exact / into.length, claimed: e.estimate / into.length, shaky: !e.reliable,
      about: `${long(e.from)} → ${into.map(long).join(", ")}${side(e.to)}${into.length > 1 ? say("circuit.shared", { x: withSign(e.exact ?? e.estimate), n: into.length }) : ""}`,
    }));
  });
  return { nodes, edges, rows: undefined };
}

/** Edges that are each at one position: a part is a node in the row of each word where something goes in or out of it, and a head's are tied, from the words that it reads to the one that it writes to. @param {any} d what the view `graph` says by position */
export function drawingByPosition(d) {
  const senders = new Set(d.edges.map((/** @type {any} */ e) => e.from));
  /** @type {Map<string, any>} */
  const nodes = new Map();
  /** @type {Map<number, string>} */
  const words = new Map();
  const node = (/** @type {string} */ part, /** @type {any} */ e) => {
    const id = `${part}@${e.position}`;
    words.set(e.position, `${e.position} ${shown(e.token)}`);
    if (!nodes.has(id)) nodes.set(id, { ...nodeOf(part), id, row: e.position, about: say("circuit.atword", { part: long(part), word: inQuotes(shown(e.token)) }) });
    return id;
  };
  const edges = d.edges.flatMap((/** @type {any} */ e) => {
    const from = node(e.from, e);
    const writing = e.into.filter((/** @type {string} */ id) => senders.has(id));
    const into = writing.length ? writing : e.into;
    return into.map((/** @type {string} */ to) => ({
      from, to: node(to, e), measured: e.exact === null ? null : e.exact / into.length, claimed: e.estimate / into.length, shaky: !e.reliable,
      about: say("circuit.atword", { part: `${long(e.from)} → ${into.map(long).join(", ")}${side(e.to)}`, word: inQuotes(shown(e.token)) }) + (into.length > 1 ? say("circuit.shared", { x: withSign(e.exact ?? e.estimate), n: into.length }) : ""),
    }));
  });
  const written = new Set(edges.map((/** @type {any} */ e) => e.from));
  const ties = [...nodes.keys()].flatMap((id) => [...nodes.keys()].filter((other) => other !== id && other.split("@")[0] === id.split("@")[0] && !written.has(id) && written.has(other)).map((other) => /** @type {[string, string]} */ ([id, other])));
  return { nodes: [...nodes.values()], edges, rows: { names: Object.fromEntries(words), ties } };
}

/** A task's circuit as the room draws it. @param {any} found what the view `circuit` says */
export function ofTask(found) {
  const { circuit } = found;
  const share = (/** @type {number|null} */ x) => (x === null ? "–" : percent(x, 0));
  return {
    nodes: [...circuit.nodes, "logits"], edges: circuit.edges.map((/** @type {any} */ e) => ({ ...e, into: found.into[e.to] })), kept: [], total_edges: found.total_edges,
    told: say("circuit.oftask", { task: found.task, accuracy: percent(found.accuracy, 0), n: circuit.size, all: found.total_edges.toLocaleString(), f: share(circuit.f), held: share(circuit.held_out) }),
    trust: say("circuit.trust", { random: share(found.random.f), rival: share(Math.max(...found.rivals.map((/** @type {any} */ r) => r.f))), most: Math.max(...found.rivals.map((/** @type {any} */ r) => r.size)).toLocaleString(), again: share(found.jaccard) }),
  };
}

/** … and before it is known: the strongest edges by their estimates. @param {any} early what the view `circuit` says first */
const ofEstimates = (early) => ({ ...early, kept: [], told: say("circuit.estimated", { task: early.task, accuracy: percent(early.accuracy, 0), n: early.edges.length, all: early.total_edges.toLocaleString() }) });

/** @param {HTMLElement} element @param {any} source @param {Store} state */
export function mount(element, source, state) {
  const other = h("input", { type: "text", "aria-label": say("circuit.other"), value: state.get("other")?.text ?? "", class: "boxed" });
  const apart = h("input", { type: "checkbox", id: "circuit-apart" });
  const task = h("select", { class: "small", id: "circuit-task", "aria-label": say("circuit.what"), onchange: () => state.set({ task: task.value || null }) }, h("option", { value: "" }, say("circuit.texts")));
  const beside = h("label", { class: "small grow" }, say("circuit.beside"), other);
  const telling = h("label", { class: "small" }, apart, say("circuit.apart"));
  const form = h("form", { class: "row circuit-form" }, task, beside, telling, h("button", { type: "submit" }, say("circuit.draw")));
  const body = h("div", { class: "circuit" });
  element.append(h("h3", {}, say("circuit.title")),
    h("p", { class: "soft small" }, say("circuit.say")), source.live ? form : h("p", { class: "mono small" }, state.get("other").text), body);
  const chosen = () => {
    task.value = state.get("task") ?? "";
    beside.hidden = telling.hidden = Boolean(state.get("task"));
  };
  state.on(["task"], chosen);
  if (source.live) source.get("tasks", {}).then((/** @type {any} */ found) => { task.append(...found.tasks.map((/** @type {any} */ one) => h("option", { value: one.name, title: one.what }, one.name))); chosen(); }, () => null);
  form.addEventListener("submit", (/** @type {Event} */ event) => {
    event.preventDefault();
    state.set({ other: { ...state.get("other"), text: other.value }, circuitAsked: true });
  });
  apart.addEventListener("change", () => { if (state.get("circuitAsked")) view.refresh(); });
  /** @type {{wanted: any, found: any}} */
  let answered = { wanted: null, found: null };
  state.on(["other"], () => { other.value = state.get("other")?.text ?? ""; });
  const view = live(body, state, ["text", "model", "other", "task", "circuitAsked"], async (signal, begun) => {
    const ask = { model: state.get("model"), clean: state.get("text"), corrupted: state.get("other").text };
    if (!source.live) return source.get("graph", ask);
    if (!state.get("circuitAsked")) {
      put(body);
      return null;
    }
    if (state.get("task")) {
      const wanted = { model: ask.model, task: state.get("task"), exact: "strongest", strongest: MEASURED };
      // It does not depend on the text, and takes its time.
      if (JSON.stringify(wanted) !== JSON.stringify(answered.wanted)) answered = { wanted, found: await sought(wanted, signal, begun) };
      return ofTask(answered.found);
    }
    if (apart.checked) Object.assign(ask, { by_position: true });
    draw(await source.get("graph", { ...ask, measure: false }, { signal }), true);
    return signal.aborted ? null : source.get("graph", ask, { signal });
  }, (d) => draw(d), { clear: () => put(body) });

  /** The circuit of a task; where there is none, nothing of the search is left. @param {any} wanted @param {AbortSignal} signal @param {() => void} begun */
  async function sought(wanted, signal, begun) {
    try {
      return await source.watch("circuit", wanted, working(begun), { signal });
    } catch (error) {
      if (!signal.aborted) put(body);
      throw error;
    }
  }

  /** How far a long search is and what ends it, and its estimates as soon as they are there. @param {() => void} begun @returns {(at: {done: number, total: number, what: string, early?: any}) => void} */
  function working(begun) {
    begun();
    const [how, many, first] = [h("progress", { "aria-label": say("circuit.working") }), h("span", { class: "small", role: "status" }), h("div", {})];
    put(body, h("div", { class: "row" }, how, many, h("button", { type: "button", class: "small", id: "circuit-stop", onclick: () => state.set({ circuitAsked: false }) }, say("circuit.stop"))), first);
    return ({ done, total, what, early }) => {
      how.max = total || 1;
      how.value = done;
      many.textContent = say(BOUNDED.test(what) ? "circuit.atmost" : "circuit.at", { what: say(`circuit.doing.${what}`), n: done.toLocaleString(), all: total.toLocaleString() });
      if (early) draw(ofEstimates(early), true, first);
    };
  }

  /** @param {any} d @param {boolean} [pending] @param {HTMLElement} [into] */
  function draw(d, pending = false, into = body) {
    const frame = h("div", {});
    const said = h("output", { class: "small" });
    const byPosition = d.edges[0]?.position !== undefined;
    const drawn = byPosition ? drawingByPosition : drawing;
    const last = Math.max(0, d.kept.length - 1);
    const slider = h("input", { type: "range", min: 0, max: last, value: last, step: 1, "aria-label": say("circuit.kept"), disabled: !d.kept.length, oninput: () => paint() });
    const table = h("div", {});
    put(into, h("p", { class: "sentence" }, d.told ?? say("circuit.said", { answer: shown(d.answer ?? ""), clean: withSign(d.clean), wrong: shown(d.wrong ?? ""), corrupted: withSign(d.corrupted) }), pending && !d.told ? h("span", { class: "soft small", role: "status" }, say("circuit.measuring")) : null), d.trust ? h("p", { class: "small trust" }, d.trust) : null,
      frame, h("div", { class: "row" }, d.told ? null : h("label", { class: "small" }, say("circuit.keep"), slider), said), h("details", {}, h("summary", {}, say("circuit.table")), table));
    const kit = graph(frame, {
      label: say("circuit.graph", { n: drawn(d).nodes.length, edges: d.edges.length }), marks: { ...noMarks(), ...state.get("marks") }, marked: (marks) => state.set({ marks }),
      open: (id) => {
        const [, layer, head, at] = /^a(\d+)\.h(\d+)(?:@(\d+))?$/.exec(id) ?? [];
        if (layer) state.set({ tab: "attention", layer: Number(layer), head: Number(head), query: null, key: null, ...(at ? { position: Number(at) } : {}) });
        else if (id.startsWith("m")) state.set({ tab: "depth" });
      },
    });
    function paint() {
      const held = d.kept[Number(slider.value)];
      const kept = d.edges.slice(0, held?.edges ?? d.edges.length);
      const named = new Set(kept.flatMap((/** @type {any} */ e) => [e.from, ...e.into]));
      const { nodes, edges, rows } = drawn({ ...d, edges: kept, nodes: d.nodes.filter((/** @type {string} */ id) => named.has(id)) });
      kit.show(nodes, edges, rows);
      slider.setAttribute("aria-valuetext", say("circuit.edges", { n: kept.length }));
      said.textContent = d.told ? say("circuit.edges", { n: kept.length }) : (held ? say("circuit.explain", { n: kept.length, all: d.total_edges.toLocaleString(), p: percent(held.f, 0) }) : say("circuit.strongest", { n: kept.length, all: d.total_edges.toLocaleString() })) + (byPosition ? `. ${say("circuit.dashed")}` : "");
      said.dataset.f = held ? String(held.f) : "";
      const where = (/** @type {any} */ e) => (byPosition ? ` · ${e.position} ${shown(e.token)}` : "");
      put(table, edgeTable(kept.map((/** @type {any} */ e) => ({ from: e.from, to: e.to + where(e), measured: e.exact, claimed: e.estimate, about: "", shaky: !e.reliable })), (id) => id));
    }
    paint();
  }
}
