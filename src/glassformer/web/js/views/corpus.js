/** One head over texts of one's own: the passages where it adds most, and by tenths what the model loses without it. */

import { h, number, put, shown } from "../dom.js";
import { runner, track, withSign } from "../ui.js";
import { say } from "../words.js";

/** @typedef {import("../store.js").Store} Store */

/** Letters that are read between two drawings. */
const PIECE = 1500;

/** A text in pieces that end where lines do. @param {string} text @param {number} [long] @returns {string[]} */
export function pieces(text, long = PIECE) {
  const out = [];
  for (let at = 0; at < text.length;) {
    const end = Math.min(text.length, at + long);
    const line = end < text.length ? text.lastIndexOf("\n", end - 1) : -1;
    const to = line < at ? end : line + 1;
    out.push(text.slice(at, to));
    at = to;
  }
  return out.filter((piece) => piece.trim());
}

/** @param {HTMLElement} element @param {any} source @param {Store} state */
export function mount(element, source, state) {
  const text = h("textarea", { class: "boxed", rows: "3", spellcheck: "false", "aria-label": say("corpus.text"), placeholder: say("corpus.paste") });
  const files = h("input", { type: "file", multiple: true, accept: ".txt,.md,.csv,.json,.jsonl,.py,text/*", "aria-label": say("corpus.files") });
  const said = h("p", { class: "small", role: "status" });
  const out = h("div", {});
  const reader = runner("corpus.read", said, async (signal) => {
    const given = [text.value, ...(await Promise.all([...files.files].map((file) => file.text())))];
    const parts = given.flatMap((one) => pieces(one));
    put(out);
    said.textContent = parts.length ? say("corpus.begun") : say("corpus.none");
    const asked = { model: state.get("model"), kind: "head", layer: state.get("layer"), index: state.get("head"), top: 12 };
    /** @type {any} */
    let found = null;
    for (const [i, piece] of parts.entries()) {
      found = await source.get("corpus", { ...asked, texts: [piece], state: found?.state ?? null }, { signal });
      if (signal.aborted) return;
      draw(found, i + 1, parts.length);
    }
  }, "corpus.stopped");
  const form = h("form", { class: "fields-plain", onsubmit: (/** @type {Event} */ event) => { event.preventDefault(); reader.run(); } }, text, h("div", { class: "row" }, files, reader.button));
  const door = h("details", { class: "corpus reasons-door" }, h("summary", {}, say("corpus.title")), h("p", { class: "soft small" }, say("corpus.say")), form, said, out);
  element.append(door);
  const show = () => { reader.stop(); said.textContent = ""; put(out); door.hidden = state.get("head") === null; };
  state.on(["model", "layer", "head"], show);
  show();

  /** @param {any} d @param {number} done @param {number} of */
  function draw(d, done, of) {
    said.textContent = say("corpus.done", { a: d.positions.toLocaleString(), b: done, c: of });
    const most = Math.max(...d.passages.map((/** @type {any} */ p) => Math.abs(p.strength)), 1e-9);
    const spelt = (/** @type {string} */ t) => t.replace(/\s+/g, " ");
    put(out, h("h4", {}, say("corpus.most", { layer: d.layer, head: d.index })),
      h("div", { role: "list" }, d.passages.map((/** @type {any} */ p) => h("div", { role: "listitem", class: "passage", "data-strength": p.strength }, h("span", { class: "passage-text small" }, spelt(p.before), h("mark", {}, shown(p.token)), spelt(p.after)), track(Math.abs(p.strength) / most), h("span", { class: "num small" }, number(p.strength))))),
      h("h4", {}, say("corpus.tenths")),
      h("div", { class: "scroll-x" }, h("table", { class: "plain num small" }, h("thead", {}, h("tr", {}, ["tenth", "strength", "loss", "without", "tokens"].map((name) => h("th", { scope: "col" }, say(`corpus.${name}`))))),
        h("tbody", {}, d.deciles.map((/** @type {any} */ r) => h("tr", { "data-decile": r.decile }, h("td", {}, r.decile), h("td", {}, `${number(r.from)} – ${number(r.to)}`), h("td", {}, number(r.loss)), h("td", {}, withSign(r.loss_without - r.loss)), h("td", { class: "mono" }, r.tokens.map((/** @type {any} */ t) => shown(t.token)).join("  "))))))));
  }
}
