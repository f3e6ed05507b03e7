/** The words in: your own text, cut as the model cuts it, the predicted token as ghost text. */

import { h, hint, put, shown, percent } from "../dom.js";
import { live } from "../live.js";

/** @typedef {import("../store.js").Store} Store */

/** @param {HTMLElement} element @param {any} source @param {Store} state */
export function mount(element, source, state) {
  const ghost = h("span", { class: "ghost" });
  const mirror = h("div", { class: "mirror", "aria-hidden": "true" });
  const box = h("textarea", {
    id: "composer", rows: "2", spellcheck: "false", autocomplete: "off", "aria-label": "Your text",
    "aria-describedby": "ghost-help", value: state.get("text"), readonly: !source.live,
  });
  const chips = h("div", { class: "chips mono", role: "listbox", "aria-label": "Tokens: choose one to see what was predicted after it" });
  const facts = h("p", { class: "soft small", id: "facts", role: "status" });
  element.append(
    h("div", { class: "composer" }, mirror, box),
    h("p", { class: "visually-hidden", id: "ghost-help" }, "Tab accepts the model's most likely next token, shown in grey."),
    chips,
    facts,
  );
  let predicted = "";

  let timer = 0;
  box.addEventListener("input", () => {
    predicted = "";
    reflect();
    clearTimeout(timer);
    timer = window.setTimeout(() => state.set({ text: box.value, position: null, edits: [], query: null, key: null, token: null }), 60);
  });
  box.addEventListener("keydown", (/** @type {KeyboardEvent} */ event) => {
    if (event.key === "Tab" && !event.shiftKey && predicted && box.selectionStart === box.value.length) {
      event.preventDefault();
      box.value += predicted;
      box.dispatchEvent(new Event("input"));
    }
  });
  box.addEventListener("scroll", () => (mirror.scrollTop = box.scrollTop));

  function reflect() {
    ghost.textContent = predicted;
    put(mirror, box.value, ghost);
    box.style.setProperty("height", "auto");
    box.style.setProperty("height", `${Math.min(box.scrollHeight + 2, innerHeight * 0.35)}px`);
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
    predicted = first && last && first.text === box.value && !first.token.includes("\ufffd") ? first.token : "";
    reflect();
  });

  function mark() {
    const at = state.get("position") ?? state.get("count") - 1;
    for (const chip of chips.children) {
      const here = Number(chip.dataset.position) === at;
      chip.setAttribute("aria-selected", String(here));
      chip.tabIndex = here ? 0 : -1;
    }
  }
  state.on(["position", "count"], mark);
  state.on(["hover"], () => {
    for (const chip of chips.children) chip.classList.toggle("hover", Number(chip.dataset.position) === state.get("hover"));
  });
  chips.addEventListener("keydown", (/** @type {KeyboardEvent} */ event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1, Home: -1e9, End: 1e9 }[event.key];
    if (!step) return;
    event.preventDefault();
    const at = (state.get("position") ?? state.get("count") - 1) + step;
    const next = Math.max(0, Math.min(state.get("count") - 1, at));
    state.set({ position: next });
    /** @type {any} */ (chips.children[next])?.focus();
  });

  const shownMost = 4000;
  live(chips, state, ["text", "model"], async (signal) => {
    if (!state.get("text")) return { tokens: [], words: [], model: "", precision: "", context: 0 };
    return source.get("tokens", { text: state.get("text"), model: state.get("model") }, { signal });
  }, (data) => {
    put(chips, data.tokens.slice(0, shownMost).map((/** @type {any} */ token, /** @type {number} */ i) => {
      const chip = h("button", {
        class: token.special ? "chip special" : "chip", role: "option", "data-position": i, type: "button",
        onclick: () => state.set({ position: i }),
        onpointerenter: () => state.set({ hover: i }),
        onpointerleave: () => state.set({ hover: null }),
      }, shown(token.text));
      chip.style.setProperty("--shade", String(i % 3));
      return hint(chip, () => `${i}: ${JSON.stringify(token.text)}\nid ${token.id}, bytes ${token.bytes.replace(/(..)/g, "$1 ").trim() || "none"}`);
    }));
    facts.textContent = data.tokens.length
      ? `${data.tokens.length} of ${data.context} tokens · ${data.words.length} words · ${data.model} · ${data.precision}`
      : "Type a text, or choose an example.";
    state.set({ tokens: data.tokens.map((/** @type {any} */ t) => t.text), words: data.words, count: data.tokens.length, layers: data.layers, heads: data.heads });
    const at = state.get("position");
    if (at !== null && at >= data.tokens.length) state.set({ position: null });
    mark();
  });
  reflect();
}

export { percent };
