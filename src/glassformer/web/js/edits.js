/** What is switched off or turned up in the model: its names, and the bar that says so wherever numbers are shown. */

import { h, put, shown } from "./dom.js";
import { inQuotes, said, say } from "./words.js";

/** @typedef {import("./store.js").Store} Store */

/** Rooms whose numbers are of the model as it is, whatever is switched off. */
const UNCHANGED = ["why", "facts", "vectors", "learning", "size"];

/** @param {any} edit @param {string[]} tokens */
export function editName(edit, tokens) {
  const at = (/** @type {number} */ i) => inQuotes(shown(tokens[i] ?? say("edit.position", { a: i })));
  const where = edit.position === null || edit.position === undefined ? "" : say("edit.at", { a: at(edit.position) });
  if (edit.kind === "ablate_head") return say("edit.head", { a: edit.layer, b: edit.head, c: where });
  if (edit.kind === "ablate_read") return say("edit.read", { a: edit.layer, b: edit.head, c: at(edit.source), d: where });
  if (edit.kind === "ablate_attn") return say("edit.attention", { a: edit.layer, b: where });
  if (edit.kind === "ablate_mlp") return say("edit.feed_forward", { a: edit.layer, b: where });
  if (edit.kind === "ablate_neuron") return say("edit.neuron", { a: edit.layer, b: edit.neuron, c: where });
  if (edit.kind === "steer") return say("edit.steer", { a: edit.layer, b: where, c: Number(edit.strength).toFixed(1) });
  if (edit.kind === "ablate_expert") return say("edit.expert", { a: edit.layer, b: edit.expert, c: where });
  if (edit.kind === "scale") return `${scaled(edit, tokens)} × ${Number(edit.by).toFixed(2)}`;
  return say("edit.unseen", { a: edit.source.map(at).join(" ") });
}

/** @param {any} edit @param {string[]} tokens */
function scaled(edit, tokens) {
  if (edit.part === "word") return say("edit.words", { a: edit.source.map((/** @type {number} */ i) => inQuotes(shown(tokens[i] ?? ""))).join("") });
  if (edit.part === "layer") return say("zoom.layer", { layer: edit.layer });
  if (edit.part === "head") return say("at.headshort", { a: edit.layer, b: edit.unit });
  if (edit.part === "neuron") return say("at.neuronshort", { a: edit.layer, b: edit.unit });
  if (edit.part === "expert") return say("at.part", { layer: edit.layer, part: say("part.expert", { n: edit.unit }) }).replace(",", "");
  return say("at.part", { layer: edit.layer, part: say(edit.part === "attention" ? "place.attention" : "place.feed_forward") }).replace(",", "");
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

/** A slider from nothing to twice, which acts at once. @param {Store} state @param {any} turned a scale without `by` @param {any} [off] the edit that switches the same thing off @param {number|null} [alone] the step, where nothing else may be turned beside it @returns {{input: HTMLInputElement, reflect: () => void}} */
export function dialOn(state, turned, off = null, alone = null) {
  const input = /** @type {HTMLInputElement} */ (h("input", { type: "range", min: 0, max: 2, step: alone ?? 0.05, value: turnedTo(state, turned, off), class: "knob", "aria-label": say("edit.dial", { a: editName({ ...turned, by: 1 }, state.get("tokens")).replace(" × 1.00", "") }), oninput: () => {
    if (alone !== null) return state.set({ edits: Number(input.value) === 1 ? [] : [{ ...turned, by: Number(input.value) }] });
    const others = state.get("edits").filter((/** @type {any} */ e) => !off || !sameThing(e, off));
    if (others.length !== state.get("edits").length) state.set({ edits: others });
    dial(state, turned, Number(input.value));
  } }));
  return { input, reflect: () => { if (document.activeElement !== input) input.value = String(turnedTo(state, turned, off)); } };
}

/** The bar. @param {any} source @param {Store} state @returns {HTMLElement} */
export function bar(source, state) {
  const list = h("span", { class: "row", role: "list", "aria-label": said("edit.list") });
  const remark = h("span", { class: "small" });
  const acts = h("span", { class: "row" },
    h("button", { type: "button", class: "small", id: "undo-edit", onclick: () => state.set({ edits: state.get("edits").slice(0, -1) }) }, said("session.undo")),
    h("button", { type: "button", class: "small", id: "compare-edits", onclick: () => state.set({ tab: "compare", what: "next", other: { text: state.get("text"), model: state.get("model") } }) }, said("room.compare")),
    h("button", { type: "button", class: "small", id: "all-on", onclick: () => state.set({ edits: [] }) }, said("edit.none")));
  const element = h("section", { class: "changed", "aria-label": said("edit.changed.say"), role: "region", hidden: true },
    h("strong", {}, said("edit.changed")), list, source.live ? acts : null, remark);
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
        source.live ? h("button", { type: "button", class: "bare", "aria-label": say("edit.back", { a: name }), onclick: () => state.set({ edits: state.get("edits").filter((/** @type {any} */ _, /** @type {number} */ j) => j !== i) }) }, "✕") : null);
    }));
    if (held !== undefined) /** @type {any} */ (list.querySelector(`[data-dial="${held}"]`))?.focus();
    remark.textContent = [...new Set([state.get("tab"), state.get("beside")])].map((room) => (UNCHANGED.includes(room) ? say(`unchanged.${room}`) : "")).join(" ").trim();
  };
  state.on(["edits", "tokens", "tab", "beside"], draw);
  draw();
  return element;
}
