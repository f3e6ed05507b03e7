/** What is switched off or turned up in the model: its names, and the bar that says so wherever numbers are shown. */

import { h, put, shown } from "./dom.js";

/** @typedef {import("./store.js").Store} Store */

/** Rooms whose numbers are of the model as it is, whatever is switched off. @type {Record<string, string>} */
const UNCHANGED = {
  why: "What is explained below is the model as it is; the bars above show what the change does.",
  facts: "The neurons and what they write are of the model as it is.",
  vectors: "The vectors of words are the model's own, before any layer: those of the model as it is.",
  learning: "Training runs and the gradient step are of the model as it is.",
  size: "Counted, and written for the race, is the model as it is.",
};

/** @param {any} edit @param {string[]} tokens */
export function editName(edit, tokens) {
  const at = (/** @type {number} */ i) => `“${shown(tokens[i] ?? `position ${i}`)}”`;
  const where = edit.position === null || edit.position === undefined ? "" : ` at ${at(edit.position)}`;
  if (edit.kind === "ablate_head") return `layer ${edit.layer} head ${edit.head}${where} is off`;
  if (edit.kind === "ablate_read") return `layer ${edit.layer} head ${edit.head} no longer reads ${at(edit.source)}${where}`;
  if (edit.kind === "ablate_attn") return `layer ${edit.layer} attention${where} is off`;
  if (edit.kind === "ablate_mlp") return `layer ${edit.layer} feed-forward${where} is off`;
  if (edit.kind === "ablate_neuron") return `layer ${edit.layer} neuron ${edit.neuron}${where} is off`;
  if (edit.kind === "steer") return `steered after layer ${edit.layer}${where} × ${Number(edit.strength).toFixed(1)}`;
  if (edit.kind === "ablate_expert") return `layer ${edit.layer} expert ${edit.expert}${where} is off`;
  if (edit.kind === "scale") return `${scaled(edit, tokens)} × ${Number(edit.by).toFixed(2)}`;
  return `nobody looks at ${edit.source.map(at).join(" ")}`;
}

/** @param {any} edit @param {string[]} tokens */
function scaled(edit, tokens) {
  if (edit.part === "word") return `what is read from ${edit.source.map((/** @type {number} */ i) => `“${shown(tokens[i] ?? "")}”`).join("")}`;
  const layer = `layer ${edit.layer}`;
  return { head: `${layer} head ${edit.unit}`, neuron: `${layer} neuron ${edit.unit}`, attention: `${layer} attention` }[/** @type {"head"} */ (edit.part)] ?? `${layer} feed-forward`;
}

/** What is left of the edits when the text changes: those that mean a place of the text go. @param {any[]} edits */
export function carried(edits) {
  return edits.filter((edit) => (edit.position ?? null) === null && !edit.source?.length && edit.kind !== "ablate_read");
}

/** Two edits of the same thing, apart from how much. @param {any} a @param {any} b */
export function sameThing(a, b) {
  const bare = (/** @type {any} */ { by, ...rest }) => JSON.stringify(Object.entries(rest).filter(([, v]) => v !== null).sort(([x], [y]) => (x < y ? -1 : 1)));
  return bare(a) === bare(b);
}

/** Turn something up or down; 1 is the model as it is. @param {Store} state @param {any} edit a scale without `by` @param {number} by */
export function dial(state, edit, by) {
  const others = state.get("edits").filter((/** @type {any} */ e) => !sameThing(e, { ...edit, by }));
  state.set({ edits: by === 1 ? others : [...others, { ...edit, by }] });
}

/** How much is left of what an edit turns, as the page's edits say. @param {Store} state @param {any} turned a scale without `by` @param {any} [off] the edit that switches the same thing off */
export function turnedTo(state, turned, off = null) {
  const found = state.get("edits").find((/** @type {any} */ e) => sameThing(e, { ...turned, by: e.by }) || (off && sameThing(e, off)));
  return found ? found.by ?? 0 : 1;
}

/** A slider from nothing to twice, which acts at once. @param {Store} state @param {any} turned a scale without `by` @param {any} [off] the edit that switches the same thing off @returns {{input: HTMLInputElement, reflect: () => void}} */
export function dialOn(state, turned, off = null) {
  const input = /** @type {HTMLInputElement} */ (h("input", { type: "range", min: 0, max: 2, step: 0.05, value: turnedTo(state, turned, off), class: "knob", "aria-label": `${editName({ ...turned, by: 1 }, state.get("tokens")).replace(" × 1.00", "")}, from 0 to 2 times`, oninput: () => {
    const others = state.get("edits").filter((/** @type {any} */ e) => !off || !sameThing(e, off));
    if (others.length !== state.get("edits").length) state.set({ edits: others });
    dial(state, turned, Number(input.value));
  } }));
  return { input, reflect: () => { if (document.activeElement !== input) input.value = String(turnedTo(state, turned, off)); } };
}

/** The bar. @param {any} source @param {Store} state @returns {HTMLElement} */
export function bar(source, state) {
  const list = h("span", { class: "row", role: "list", "aria-label": "Changes" });
  const remark = h("span", { class: "small" });
  const acts = h("span", { class: "row" },
    h("button", { type: "button", class: "small", id: "undo-edit", onclick: () => state.set({ edits: state.get("edits").slice(0, -1) }) }, "Undo"),
    h("button", { type: "button", class: "small", id: "compare-edits", onclick: () => state.set({ tab: "compare", what: "next", other: { text: state.get("text"), model: state.get("model") } }) }, "Compare"),
    h("button", { type: "button", class: "small", id: "all-on", onclick: () => state.set({ edits: [] }) }, "All as it was"));
  const element = h("section", { class: "changed", "aria-label": "The model is changed", role: "region", hidden: true },
    h("strong", {}, "Changed model"), list, source.live ? acts : null, remark);
  const draw = () => {
    const edits = state.get("edits");
    element.hidden = !edits.length;
    if (element.hidden) return put(list);
    const held = /** @type {any} */ (document.activeElement)?.dataset?.dial;
    put(list, edits.map((/** @type {any} */ edit, /** @type {number} */ i) => {
      const name = editName(edit, state.get("tokens"));
      return h("span", { role: "listitem", class: "change-chip" }, name,
        edit.kind === "scale" && source.live ? h("input", { type: "range", min: 0, max: 2, step: 0.05, value: edit.by, "data-dial": i, "aria-label": name, oninput: (/** @type {any} */ event) => {
          state.set({ edits: state.get("edits").map((/** @type {any} */ e, /** @type {number} */ j) => (j === i ? { ...e, by: Number(event.target.value) } : e)) });
        } }) : null,
        source.live ? h("button", { type: "button", class: "bare", "aria-label": `Take back: ${name}`, onclick: () => state.set({ edits: state.get("edits").filter((/** @type {any} */ _, /** @type {number} */ j) => j !== i) }) }, "✕") : null);
    }));
    if (held !== undefined) /** @type {any} */ (list.querySelector(`[data-dial="${held}"]`))?.focus();
    remark.textContent = [...new Set([state.get("tab"), state.get("beside")])].map((room) => UNCHANGED[room] ?? "").join(" ").trim();
  };
  state.on(["edits", "tokens", "tab", "beside"], draw);
  draw();
  return element;
}
