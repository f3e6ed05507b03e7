/** A graph of parts and what flows between them: hover, pin, name, group, and leave the thin ones out. Rooms bring the numbers. */

import { h, hint, number, put, s } from "./dom.js";
import { withSign } from "./ui.js";
import { say } from "./words.js";

/**
 * @typedef {{id: string, column: number, lane: number, text: string, about: string, kind?: string, row?: number}} Node
 * @typedef {{from: string, to: string, measured: number|null, claimed: number, about: string, shaky?: boolean}} Edge
 * @typedef {{names: Record<string, string>, groups: string[][], pinned: string[]}} Marks what the reader did to the graph
 */

/** @returns {Marks} */
export const noMarks = () => ({ names: {}, groups: [], pinned: [] });

/** What an edge is worth: measured, or claimed where it was not. @param {Edge} edge */
export const worth = (edge) => edge.measured ?? edge.claimed;

/** Nodes and edges after grouping: members become one node, edges between the same two become one, inner ones go. @param {Node[]} nodes @param {Edge[]} edges @param {string[][]} groups */
export function grouped(nodes, edges, groups) {
  const home = new Map(nodes.map((n) => [n.id, n.id]));
  const known = new Map(nodes.map((n) => [n.id, n]));
  /** @type {Node[]} */
  const made = [];
  for (const group of groups) {
    const members = group.filter((id) => known.has(id));
    if (members.length < 2) continue;
    const id = group.join("+"); // the same while some of it is left out
    for (const member of members) home.set(member, id);
    const all = members.map((member) => /** @type {Node} */ (known.get(member)));
    made.push({ ...all[0], id, text: say("graph.parts", { n: all.length }), about: all.map((n) => n.about).join(", "), kind: "group" });
  }
  /** @type {Map<string, Edge>} */
  const sums = new Map();
  for (const edge of edges) {
    const [from, to] = [home.get(edge.from), home.get(edge.to)];
    if (!from || !to || from === to) continue;
    const held = sums.get(`${from}>${to}`);
    sums.set(`${from}>${to}`, held ? {
      ...held, claimed: held.claimed + edge.claimed, measured: held.measured === null || edge.measured === null ? null : held.measured + edge.measured,
      about: `${held.about}\n${edge.about}`, shaky: held.shaky || edge.shaky,
    } : { ...edge, from, to });
  }
  return { nodes: [...nodes.filter((n) => home.get(n.id) === n.id), ...made], edges: [...sums.values()] };
}

/** Where nodes stand: a column for each depth, one under the other in it, in the order of their lanes; those that name a row stand in its band. @param {Node[]} nodes @param {number} width @param {number} [row] */
export function placed(nodes, width, row = 46) {
  const columns = [...new Set(nodes.map((n) => n.column))].sort((a, b) => a - b);
  /** @type {Map<string, {x: number, y: number}>} */
  const at = new Map();
  /** @type {{row: number, y: number, height: number}[]} */
  const bands = [];
  if (nodes.some((n) => n.row !== undefined)) {
    let y = 12;
    for (const band of [...new Set(nodes.map((n) => n.row ?? 0))].sort((a, b) => a - b)) {
      const here = columns.map((column) => nodes.filter((n) => (n.row ?? 0) === band && n.column === column).sort((a, b) => a.lane - b.lane));
      const most = Math.max(...here.map((list) => list.length));
      const height = 32 * most + 32;
      // One column beside another stands half a name lower, so that their names are apart.
      here.forEach((list, i) => list.forEach((n, k) => at.set(n.id, { x: 150 + (i * (width - 200)) / Math.max(1, columns.length - 1), y: y + 24 + 32 * (k + Math.floor((most - list.length) / 2)) + (i % 2 ? 16 : 0) })));
      bands.push({ row: band, y, height });
      y += height;
    }
    return { at, height: y + 12, columns, bands };
  }
  const tallest = Math.max(1, ...columns.map((c) => nodes.filter((n) => n.column === c).length));
  const height = Math.max(230, tallest * row + 70);
  const step = (width - 96) / Math.max(1, columns.length - 1);
  columns.forEach((column, i) => {
    const here = nodes.filter((n) => n.column === column).sort((a, b) => a.lane - b.lane);
    // One alone stands on its lane, so that lines pass by and not through their neighbours.
    here.forEach((n, k) => at.set(n.id, { x: 48 + i * step, y: here.length === 1 ? 44 + (height - 88) * n.lane : 44 + ((height - 88) * (k + 0.5)) / here.length }));
  });
  return { at, height, columns, bands };
}

/**
 * @param {HTMLElement} element
 * @param {{label: string, marks: Marks, marked: (marks: Marks) => void, open?: (id: string) => void, exact?: boolean}} options with `exact` there are no claims beside what is measured
 */
export function graph(element, { label, marks, marked, open, exact = false }) {
  const picture = h("div", { class: "graph-frame" });
  const name = h("input", { type: "text", size: "12", "aria-label": say("graph.name"), placeholder: say("graph.its") });
  const said = h("span", { class: "small soft", role: "status" });
  const act = (/** @type {string} */ text, /** @type {string} */ title, /** @type {() => void} */ what) => h("button", { type: "button", class: "small", title, onclick: what }, text);
  const set = (/** @type {Partial<Marks>} */ change) => { marks = { ...marks, ...change }; marked(marks); draw(); };
  const inside = (/** @type {string[]} */ ids) => ids.flatMap((id) => id.split("+"));
  const bar = h("form", { class: "row graph-bar", onsubmit: (/** @type {Event} */ event) => {
    event.preventDefault();
    if (marks.pinned.length) set({ names: { ...marks.names, ...Object.fromEntries(marks.pinned.map((id) => [id, name.value.trim()])) } });
  } }, name, h("button", { type: "submit", class: "small" }, say("graph.give")),
  act(say("graph.group"), say("graph.group.say"), () => {
    const members = inside(marks.pinned);
    if (members.length < 2) return put(said, say("graph.two"));
    const id = members.join("+");
    set({ groups: [...marks.groups.filter((g) => !g.some((m) => members.includes(m))), members], pinned: [id], names: name.value.trim() ? { ...marks.names, [id]: name.value.trim() } : marks.names });
  }),
  act(say("graph.apart"), say("graph.apart.say"), () => set({ groups: marks.groups.filter((g) => !marks.pinned.includes(g.join("+"))), pinned: [] })),
  act(say("graph.unpin"), say("graph.unpin.say"), () => set({ pinned: [] })),
  open ? act(say("graph.open"), say("graph.open.say"), () => { if (marks.pinned[0]) open(inside(marks.pinned)[0]); }) : null, said);
  put(element, picture, exact ? h("div", { class: "row" }, said) : bar);
  /** @type {Node[]} */
  let nodes = [];
  /** @type {Edge[]} */
  let edges = [];
  /** What its bands are called, and nodes that are one part at two places. @type {{names: Record<number, string>, ties: [string, string][]}} */
  let bands = { names: {}, ties: [] };

  function draw() {
    const shown = grouped(nodes, edges, marks.groups);
    const columns = new Set(shown.nodes.map((n) => n.column)).size;
    const byRow = shown.nodes.some((n) => n.row !== undefined);
    const scale = parseFloat(getComputedStyle(document.documentElement).fontSize) / 16; // its letters are as large as the page's
    const wide = Math.max(300, (byRow ? 66 : 44) * columns + (byRow ? 200 : 0), Math.min(1500, (element.clientWidth || 900) / scale));
    const { at, height, bands: stripes } = placed(shown.nodes, wide, columns < 4 ? 36 : 46);
    const largest = Math.max(1e-9, ...shown.edges.map((e) => Math.max(Math.abs(worth(e)), Math.abs(e.claimed))));
    const thick = (/** @type {number} */ v) => (exact ? 0.8 + 9 * (Math.abs(v) / largest) : 0.8 + 13 * Math.sqrt(Math.abs(v) / largest));
    const pinned = new Set(marks.pinned.filter((id) => at.has(id)));
    const nameOf = (/** @type {Node} */ n) => marks.names[n.id] || n.text;
    const focus = (document.activeElement instanceof SVGElement && picture.contains(document.activeElement)) ? document.activeElement.dataset.node : null;
    const svg = s("svg", { viewBox: `0 0 ${wide} ${height}`, width: wide * scale, height: height * scale, class: "graph", role: "group", "aria-label": label });
    for (const [i, { row, y, height: tall }] of stripes.entries()) svg.append(s("rect", { class: i % 2 ? "band odd" : "band", x: 0, y, width: wide, height: tall }), s("text", { class: "band-name", x: 8, y: y + tall / 2 + 4 }, bands.names[row] ?? ""));
    for (const [from, to] of bands.ties) {
      const [a, b] = [at.get(from), at.get(to)];
      if (a && b) svg.append(s("path", { class: "tie", d: `M ${a.x} ${a.y} Q ${(a.x + b.x) / 2 - 44} ${(a.y + b.y) / 2} ${b.x} ${b.y}`, "data-from": from, "data-to": to }));
    }
    const touches = (/** @type {Edge} */ e, /** @type {string} */ id) => e.from === id || e.to === id;
    for (const edge of [...shown.edges].sort((a, b) => Math.abs(worth(b)) - Math.abs(worth(a)))) {
      const [a, b] = [at.get(edge.from), at.get(edge.to)];
      if (!a || !b) continue;
      const bow = byRow && Math.abs(a.y - b.y) < 1 ? -Math.min(26, Math.abs(b.x - a.x) * 0.12) : columns < 4 || byRow ? 0 : Math.min(70, Math.abs(b.x - a.x) * 0.28) * (a.y + b.y > height ? 1 : -1);
      const path = `M ${a.x} ${a.y} C ${a.x + (b.x - a.x) * 0.35} ${a.y + bow} ${a.x + (b.x - a.x) * 0.65} ${b.y + bow} ${b.x} ${b.y}`;
      const v = worth(edge);
      const dim = pinned.size > 0 && ![...pinned].some((id) => touches(edge, id));
      const group = s("g", { class: `edge${v < 0 ? " against" : ""}${edge.measured === null ? " only-claimed" : ""}${dim ? " dim" : ""}`, "data-from": edge.from, "data-to": edge.to, "data-measured": edge.measured, "data-claimed": edge.claimed },
        exact ? null : s("path", { class: "claimed", d: path, "stroke-width": thick(edge.claimed).toFixed(1) }), edge.measured === null ? null : s("path", { class: "measured", d: path, "stroke-width": thick(edge.measured).toFixed(1) }));
      svg.append(hint(group, () => exact ? `${edge.about}: ${withSign(v)}` : `${edge.about}\n${edge.measured === null ? say("graph.unmeasured") : say("graph.measured", { x: withSign(edge.measured) })}, ${say("graph.claims", { x: withSign(edge.claimed) })}${edge.shaky ? say("graph.shaky") : ""}`));
    }
    for (const n of shown.nodes) {
      const p = /** @type {{x: number, y: number}} */ (at.get(n.id));
      const text = nameOf(n);
      const w = Math.max(34, Math.min(92, 7.4 * text.length + 12));
      const on = pinned.has(n.id);
      const node = s("g", { class: `node ${n.kind ?? ""}${on ? " on" : ""}`, role: "button", tabindex: 0, "aria-pressed": String(on), "aria-label": `${text}: ${n.about}`, "data-node": n.id },
        s("rect", { x: p.x - w / 2, y: p.y - 13, width: w, height: 26, rx: 13 }), s("text", { x: p.x, y: p.y + 4, "text-anchor": "middle" }, text.length > 12 ? `${text.slice(0, 11)}…` : text));
      const toggle = () => {
        name.value = marks.names[n.id] ?? "";
        set({ pinned: on ? marks.pinned.filter((id) => id !== n.id) : [...marks.pinned, n.id] });
      };
      node.addEventListener("click", toggle);
      node.addEventListener("keydown", (/** @type {KeyboardEvent} */ event) => { if (event.key === "Enter" || event.key === " ") { event.preventDefault(); toggle(); } });
      const light = (/** @type {boolean} */ lit) => { for (const e of svg.querySelectorAll(".edge")) e.classList.toggle("lit", lit && (e.dataset.from === n.id || e.dataset.to === n.id)); };
      node.addEventListener("pointerenter", () => light(true));
      node.addEventListener("pointerleave", () => light(false));
      const sum = (/** @type {string} */ side) => shown.edges.filter((e) => /** @type {any} */ (e)[side] === n.id).reduce((x, e) => x + worth(e), 0);
      svg.append(hint(node, () => say("graph.flows", { part: n.about, a: withSign(sum("to")), b: withSign(sum("from")) })));
    }
    put(picture, svg);
    if (focus) /** @type {any} */ (picture.querySelector(`[data-node="${CSS.escape(focus)}"]`))?.focus();
    said.textContent = pinned.size ? say("graph.pinned", { n: pinned.size }) : say("graph.count", { n: shown.nodes.length, edges: shown.edges.length });
  }
  new ResizeObserver(() => { if (nodes.length) draw(); }).observe(element);
  return {
    /** @param {Node[]} someNodes @param {Edge[]} someEdges @param {{names: Record<number, string>, ties: [string, string][]}} [rows] */
    show(someNodes, someEdges, rows = { names: {}, ties: [] }) {
      [nodes, edges, bands] = [someNodes, someEdges, rows];
      draw();
    },
  };
}

/** The edges as a table, for reading and for those who do not see the picture. @param {Edge[]} edges @param {(id: string) => string} name */
export function edgeTable(edges, name) {
  return h("table", { class: "plain num" }, h("thead", {}, h("tr", {}, [say("graph.from"), say("graph.to"), say("graph.ismeasured"), say("graph.isclaimed")].map((x) => h("th", { scope: "col" }, x)))),
    h("tbody", {}, edges.map((e) => h("tr", {}, h("td", {}, name(e.from)), h("td", {}, name(e.to)), h("td", {}, e.measured === null ? "–" : number(e.measured)), h("td", {}, number(e.claimed) + (e.shaky ? " ?" : ""))))));
}
