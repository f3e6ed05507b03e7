/** The next word: bars of probability, tokens or whole words, and sliders that act on the logits at once. */

import { h, hint, number, percent, put, shown } from "../dom.js";
import { carried } from "../edits.js";
import { live } from "../live.js";
import { entropy, sampling } from "../math.js";
import { unpack } from "../source.js";
import { chance } from "../ui.js";
import { mount as timeline } from "./timeline.js";
import { onSpoken, said as spoken, say } from "../words.js";

/** @typedef {import("../store.js").Store} Store */

const SLIDERS = [
  { key: "temperature", min: 0, max: 2, step: 0.05, off: 1, show: (/** @type {number} */ v) => v.toFixed(2) },
  { key: "top_k", min: 0, max: 100, step: 1, off: 0, show: (/** @type {number} */ v) => (v ? String(v) : say("next.off")) },
  { key: "top_p", min: 0.05, max: 1, step: 0.01, off: 1, show: (/** @type {number} */ v) => (v < 1 ? v.toFixed(2) : say("next.off")) },
  { key: "min_p", min: 0, max: 0.5, step: 0.01, off: 0, show: (/** @type {number} */ v) => (v ? v.toFixed(2) : say("next.off")) },
];

/** @param {HTMLElement} element @param {any} source @param {Store} state */
export function mount(element, source, state) {
  /** @type {any} */
  let data = null;
  /** @type {Float32Array|null} */
  let logits = null;
  /** @type {Map<number, string>} */
  const texts = new Map();
  /** Tokens that are parts of a character. @type {Set<number>} */
  let parts = new Set();
  let hidden = false;

  const unit = h("div", { class: "segmented", role: "group", "aria-label": spoken("next.show") });
  const bars = h("div", { class: "bars", role: "list", "aria-label": spoken("next.tokens") });
  const words = h("div", { class: "bars", role: "list", "aria-label": spoken("next.words") });
  const facts = h("p", { class: "soft small" });
  const sliders = h("div", { class: "sliders" });
  const guess = h("form", { class: "row guess" });
  const writing = h("div", { class: "writing" });
  const said = h("p", { class: "small", role: "status" });
  put(element,
    h("div", { class: "row spread" }, h("h2", {}, spoken("next.title")), unit),
    h("p", { class: "soft small", id: "next-after" }),
    bars, words, facts, h("h3", {}, spoken("next.choosing")), sliders, guess, said, source.live && !source.embedded ? [h("h3", {}, spoken("next.writing")), writing] : null,
  );
  const after = /** @type {HTMLElement} */ (element.querySelector("#next-after"));

  for (const [name, label] of [["tokens", spoken("unit.tokens")], ["words", spoken("unit.whole")]]) {
    unit.append(h("button", { type: "button", "data-unit": name, onclick: () => state.set({ unit: name }) }, label));
  }
  const inputs = SLIDERS.map((slider) => {
    const out = h("output", { class: "num" });
    const input = h("input", {
      type: "range", min: slider.min, max: slider.max, step: slider.step, value: state.get(slider.key), id: `slider-${slider.key}`,
      oninput: () => state.set({ [slider.key]: Number(input.value) }),
    });
    sliders.append(h("label", { for: `slider-${slider.key}` }, spoken(`sampling.${slider.key}`)), input, out);
    return { ...slider, input, out };
  });
  sliders.append(h("button", { type: "button", class: "small", onclick: () => state.set({ temperature: 1, top_k: 0, top_p: 1, min_p: 0 }) }, spoken("next.plain")));

  const attempt = h("input", { type: "text", placeholder: spoken("next.guess"), "aria-label": spoken("next.guess.say"), size: "16" });
  const cover = h("button", { type: "button", "aria-pressed": "false", onclick: () => { hidden = !hidden; draw(); } }, spoken("next.first"));
  guess.append(cover, attempt);
  guess.addEventListener("submit", (/** @type {Event} */ event) => {
    event.preventDefault();
    const word = attempt.value.trim();
    if (!word || !data) return;
    const found = data.tokens.findIndex((/** @type {any} */ t) => t.token.trim().toLowerCase() === word.toLowerCase());
    said.textContent = found < 0
      ? say("next.wrong", { a: word, b: data.tokens.length })
      : say("next.right", { a: word, b: found + 1, c: percent(data.tokens[found].probability) });
    hidden = false;
    draw();
  });

  function how() {
    return Object.fromEntries(SLIDERS.map(({ key }) => [key, state.get(key)]));
  }

  function draw() {
    for (const { key, input, out, show } of inputs) {
      input.value = String(state.get(key));
      out.textContent = show(state.get(key));
    }
    for (const button of unit.children) button.setAttribute("aria-pressed", String(button.dataset.unit === state.get("unit")));
    cover.setAttribute("aria-pressed", String(hidden));
    attempt.hidden = !hidden;
    bars.hidden = state.get("unit") !== "tokens" || hidden;
    words.hidden = state.get("unit") !== "words" || hidden;
    for (const { input } of inputs) input.disabled = data !== null && !logits;
    if (!data) return;
    const at = data.position;
    const tokens = state.get("tokens");
    after.textContent = at === tokens.length - 1 ? say("next.whole") : say("next.after", { a: shown(tokens[at] ?? ""), b: at });
    if (hidden) {
      facts.textContent = "";
      return;
    }
    if (!logits) {
      // A report keeps the whole distribution of the last position only.
      put(bars, data.tokens.slice(0, 12).map((/** @type {any} */ t) => chance(t.token, t.probability, data.tokens[0].probability)));
      facts.textContent = say("next.last", { a: data.entropy.toFixed(2) });
      return;
    }
    const settings = /** @type {any} */ (how());
    const plain = settings.temperature === 1 && !settings.top_k && settings.top_p === 1 && !settings.min_p;
    const d = sampling(logits, settings);
    const rows = Array.from(d.order.subarray(0, 12));
    need(rows);
    const largest = Math.max(d.final[rows[0]], d.raw[rows[0]]);
    put(bars, plain ? null : h("div", { class: "prob head", "aria-hidden": "true" }, h("span", {}), h("span", {}), h("span", { class: "num columns" }, h("span", {}, say("next.col.raw")), h("span", {}, say("next.col.tempered")), h("span", {}, say("next.col.final")))),
      rows.map((id) => row(id, d, largest, settings, plain)));
    facts.textContent = plain
      ? say("next.rest", { a: data.entropy.toFixed(2), b: (logits.length - rows.length).toLocaleString(), c: percent(1 - rows.reduce((s, i) => s + d.raw[i], 0)) })
      : say("next.kept", { a: d.kept.toLocaleString(), b: logits.length.toLocaleString(), c: percent(d.mass), d: entropy(d.raw).toFixed(2), e: entropy(d.final).toFixed(2) });
  }

  /** @param {number} id @param {any} d @param {number} largest @param {any} settings @param {boolean} plain */
  function row(id, d, largest, settings, plain) {
    const text = texts.get(id) ?? `#${id}`;
    const bar = h("span", { class: "bar" });
    bar.style.setProperty("--share", String(d.final[id] / largest));
    const was = h("span", { class: "was" });
    was.style.setProperty("--share", String(d.raw[id] / largest));
    const item = h("button", {
      type: "button", class: d.final[id] ? "prob" : "prob cut", "aria-label": say("next.take", { a: shown(text), b: percent(d.final[id]) }),
      onclick: () => branch(id, text),
    },
      h("span", { class: "what mono" }, shown(text)),
      h("span", { class: "track" }, plain ? null : was, bar),
      plain
        ? h("span", { class: "num" }, percent(d.final[id]))
        : h("span", { class: "num columns" }, h("span", {}, percent(d.raw[id])), h("span", {}, percent(d.tempered[id])), h("span", {}, d.final[id] ? percent(d.final[id]) : say("next.col.cut"))),
    );
    const l = /** @type {Float32Array} */ (logits);
    hint(item, () => [
      say("next.logit", { a: number(l[id]) }),
      say("next.raw", { a: number(l[id]), b: percent(d.raw[id], 2) }),
      settings.temperature > 0 ? say("next.tempered", { a: number(l[id]), b: settings.temperature, c: percent(d.tempered[id], 2) }) : say("next.cold"),
      d.final[id] ? say("next.final", { a: percent(d.tempered[id], 2), b: percent(d.mass, 2), c: percent(d.final[id], 2) }) : say("next.cut", { a: d.kept }),
    ].join("\n"));
    return h("div", { role: "listitem" }, item);
  }

  /** @param {number} id @param {string} text */
  function branch(id, text) {
    if (!source.live || parts.has(id)) return;
    // Tokens may be parts of characters, so the text is cut by its bytes.
    const before = new TextDecoder().decode(new TextEncoder().encode(state.get("text")).slice(0, state.get("ends")[data.position]));
    state.set({ text: before + text, position: null, edits: carried(state.get("edits")), query: null, key: null });
  }

  /** @param {number[]} ids */
  async function need(ids) {
    const missing = ids.filter((id) => !texts.has(id));
    if (!missing.length) return;
    const found = await source.get("vocab", { ids: missing, model: state.get("model") }).catch(() => null);
    if (!found) return;
    missing.forEach((id, i) => { texts.set(id, found.texts[i]); if (!found.whole[i]) parts.add(id); });
    draw();
  }

  const args = () => ({ text: state.get("text"), model: state.get("model"), position: state.get("position") ?? -1, edits: state.get("edits") });
  live(bars, state, ["text", "model", "position", "edits"], async (signal) => {
    if (!state.get("text")) return null;
    return { ...(await source.get("next", args(), { signal })), text: state.get("text") };
  }, (found) => {
    data = found;
    logits = found.logits ? /** @type {Float32Array} */ (unpack(found.logits).data) : null;
    for (const token of found.tokens) texts.set(token.id, token.token);
    parts = new Set(found.tokens.filter((/** @type {any} */ t) => t.whole === false).map((/** @type {any} */ t) => t.id));
    state.set({ prediction: { text: found.text, token: found.tokens[0].token, id: found.tokens[0].id, whole: found.tokens[0].whole } });
    draw();
  }, { first: true, clear: () => { data = logits = null; after.textContent = facts.textContent = said.textContent = ""; } });
  live(words, state, ["text", "model", "position", "edits", "unit"], async (signal) => {
    if (!state.get("text") || state.get("unit") !== "words") return null;
    return source.get("words", args(), { signal });
  }, (found) => {
    const largest = found.words.length ? found.words[0].upper : 1;
    put(words, found.words.map((/** @type {any} */ w) => {
      const bar = h("span", { class: "bar" });
      bar.style.setProperty("--share", String(w.probability / largest));
      const more = h("span", { class: "was" });
      more.style.setProperty("--share", String(w.upper / largest));
      return h("div", { class: "prob word-range", role: "listitem" }, h("span", { class: "what" }, shown(w.word)), h("span", { class: "track" }, more, bar),
        h("span", { class: "num" }, `${percent(w.probability)} – ${percent(w.upper)}`));
    }), h("p", { class: "soft small" }, say("next.followed", { a: percent(found.coverage), b: percent(1 - found.coverage) })));
  });
  state.on(["model"], () => texts.clear());
  state.on(["temperature", "top_k", "top_p", "min_p", "unit", "tokens"], draw);
  timeline(writing, source, state);
  onSpoken(draw);
  draw();
}
