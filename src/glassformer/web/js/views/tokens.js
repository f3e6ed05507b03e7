/** The words in: your own text, cut as the model cuts it, the predicted token as ghost text. */

import { h, hint, put, shown } from "../dom.js";
import { carried } from "../edits.js";
import { live } from "../live.js";
import { plural, segmented } from "../ui.js";
import { onSpoken, said, say } from "../words.js";

/** @typedef {import("../store.js").Store} Store */

/** @param {HTMLElement} element @param {any} source @param {Store} state */
export function mount(element, source, state) {
  const ghost = h("span", { class: "ghost" });
  const mirror = h("div", { class: "mirror", "aria-hidden": "true" });
  const box = h("textarea", {
    id: "composer", rows: "1", spellcheck: "false", autocomplete: "off", "aria-label": said("tokens.text"),
    "aria-describedby": "ghost-help", value: state.get("text"), readonly: !source.live,
  });
  const chips = h("div", { class: "chips mono", role: "listbox", "aria-label": said("tokens.list") });
  const facts = h("p", { class: "soft small", id: "facts", role: "status" });
  const unit = segmented(said("tokens.cut"), [["tokens", said("unit.tokens")], ["words", said("unit.words")]], () => state.get("chips"), (name) => state.set({ chips: name }));
  element.append(
    h("div", { class: "composer" }, mirror, box),
    h("p", { class: "visually-hidden", id: "ghost-help" }, said("tokens.help")),
    chips,
    h("div", { class: "row spread" }, facts, unit.element),
  );
  let predicted = "";

  let timer = 0;
  box.addEventListener("input", () => {
    predicted = "";
    reflect();
    clearTimeout(timer);
    element.setAttribute("aria-busy", "true");
    timer = window.setTimeout(() => {
      element.removeAttribute("aria-busy");
      state.set({ text: box.value, position: null, edits: carried(state.get("edits")), query: null, key: null, token: null });
    }, 40);
  });
  // One Tab accepts; the next one moves on, so that the keyboard is not held here.
  let accepted = false;
  box.addEventListener("blur", () => { accepted = false; });
  box.addEventListener("keydown", (/** @type {KeyboardEvent} */ event) => {
    if (event.key === "Escape") box.blur();
    if (event.key !== "Tab") accepted = false;
    else if (!event.shiftKey && !accepted && predicted && box.selectionStart === box.value.length) {
      event.preventDefault();
      accepted = true;
      box.value += predicted;
      box.dispatchEvent(new Event("input"));
    }
  });
  box.addEventListener("scroll", () => (mirror.scrollTop = box.scrollTop));

  function reflect() {
    ghost.textContent = predicted;
    put(mirror, box.value, ghost);
    box.style.setProperty("height", "auto");
    // The grey prediction may need a line of its own.
    box.style.setProperty("height", `${Math.min(Math.max(box.scrollHeight, mirror.scrollHeight) + 2, innerHeight * (box.value.length > 600 ? 0.16 : 0.35))}px`);
  }

  state.on(["text"], () => {
    if (box.value !== state.get("text")) {
      box.value = state.get("text");
      predicted = "";
      reflect();
    }
  });
  state.on(["prediction"], () => {
    const first = state.get("prediction");
    const last = state.get("position") === null || state.get("position") === state.get("count") - 1;
    predicted = first && last && first.text === box.value && first.whole ? first.token : "";
    reflect();
  });

  /** Where a chip begins and ends, in tokens. @param {any} chip */
  const span = (chip) => [Number(chip.dataset.from), Number(chip.dataset.position)];
  function mark() {
    const at = state.get("position") ?? state.get("count") - 1;
    for (const chip of chips.children) {
      const [from, to] = span(chip);
      const here = from <= at && at <= to;
      chip.setAttribute("aria-selected", String(here));
      chip.tabIndex = here ? 0 : -1;
    }
  }
  state.on(["position", "count"], mark);
  /** The chip of each token, and those that are marked now: a long text has thousands, and the pointer moves often. @type {any[]} */
  let chipOf = [];
  const marked = { hover: /** @type {any} */ (null), hoverQuery: /** @type {any} */ (null) };
  state.on(["hover", "hoverQuery"], () => {
    for (const [field, name] of /** @type {["hover"|"hoverQuery", string][]} */ ([["hover", "hover"], ["hoverQuery", "hover-query"]])) {
      const chip = chipOf[state.get(field) ?? -1] ?? null;
      if (chip === marked[field]) continue;
      marked[field]?.classList.remove(name);
      chip?.classList.add(name);
      marked[field] = chip;
    }
  });
  chips.addEventListener("keydown", (/** @type {KeyboardEvent} */ event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1, Home: -1e9, End: 1e9 }[event.key];
    if (!step) return;
    event.preventDefault();
    const all = /** @type {any[]} */ ([...chips.children]);
    const now = all.findIndex((chip) => chip.getAttribute("aria-selected") === "true");
    const next = all[Math.max(0, Math.min(all.length - 1, now + step))];
    if (!next) return;
    state.set({ position: span(next)[1] });
    next.focus();
  });

  const shownMost = 4000;
  live(chips, state, ["text", "model"], async (signal) => {
    return source.get("tokens", { text: state.get("text"), model: state.get("model") }, { signal });
  }, (data) => {
    cut = data;
    // A long text leaves room for what is shown of it.
    element.classList.toggle("long", data.tokens.length > 150);
    drawChips();
    told();
    if (!data.tokens.length) state.set({ prediction: null });
    state.set({ modelName: data.model, tokens: data.tokens.map((/** @type {any} */ t) => t.text), words: data.words, ends: data.tokens.map((/** @type {any} */ t) => t.end), count: data.tokens.length, layers: data.layers, heads: data.heads, experts: data.experts });
    if (state.get("layer") >= data.layers) state.set({ layer: data.layers - 1 });
    if (state.get("head") !== null && state.get("head") >= data.heads) state.set({ head: data.heads - 1 });
    const at = state.get("position");
    if (at !== null && at >= data.tokens.length) state.set({ position: null });
    mark();
  }, { always: true, first: true });

  /** @type {any} */
  let cut = null;
  function told() {
    if (!cut) return;
    const { tokens, context, words, model, precision } = cut;
    facts.textContent = tokens.length
      ? say("tokens.facts", { a: tokens.length.toLocaleString(), b: plural(context, "token"), c: plural(words.length, "word"), d: model, e: precision })
      : say("tokens.empty", { a: model, b: precision });
  }
  onSpoken(told);
  function drawChips() {
    unit.reflect();
    if (!cut) return;
    const byWord = state.get("chips") === "words";
    const pieces = byWord
      ? cut.words.map((/** @type {any} */ w) => ({ text: w.text, from: w.tokens[0], to: w.tokens[w.tokens.length - 1] }))
      : cut.tokens.map((/** @type {any} */ t, /** @type {number} */ i) => ({ text: t.text, from: i, to: i }));
    chipOf = [];
    put(chips, pieces.slice(0, shownMost).map((/** @type {any} */ piece, /** @type {number} */ i) => {
      const token = cut.tokens[piece.to];
      const chip = h("button", {
        class: token.special ? "chip special" : "chip", role: "option", "data-position": piece.to, "data-from": piece.from, type: "button",
        onclick: () => state.set({ position: piece.to }),
        onpointerenter: () => state.set({ hover: piece.to, hoverQuery: null }),
        onpointerleave: () => state.set({ hover: null }),
      }, shown(piece.text));
      chip.style.setProperty("--shade", String(i % 3));
      for (let at = piece.from; at <= piece.to; at++) chipOf[at] = chip;
      return hint(chip, () => cut.tokens.slice(piece.from, piece.to + 1).map((/** @type {any} */ t, /** @type {number} */ j) => say("tokens.one", { a: piece.from + j, b: JSON.stringify(t.text), c: t.id, d: t.bytes.replace(/(..)/g, "$1 ").trim() || "–" })).join("\n"));
    }));
    mark();
  }
  state.on(["chips"], drawChips);
  reflect();
}
