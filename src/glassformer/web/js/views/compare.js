/** Compare: two texts, two models or two checkpoints, and what differs, ranked. */

import { signed } from "../colour.js";
import { h, hint, number, percent, put, shown } from "../dom.js";
import { carried } from "../edits.js";
import { live } from "../live.js";
import { choices as sources } from "../models.js";
import { unpack } from "../source.js";
import { chance, fork, grid, placeName, segmented, track } from "../ui.js";
import { inQuotes, say } from "../words.js";

/** @typedef {import("../store.js").Store} Store */

/** Texts worth laying beside the examples: as many tokens, one word changed. */
const PAIRS = [
  ["The capital of France is", "The capital of Italy is"],
  ["When Mary and John went to the store, John gave a drink to", "When Mary and John went to the store, Mary gave a drink to"],
  ["She sat on the bank of the", "She went to the bank of the"],
];

/** What patching carries over. */
const PLACES = () => /** @type {[string, string][]} */ ([["stream", say("compare.stream")], ["attention", say("room.attention")], ["feed_forward", say("compare.feed_forward")], ["heads", say("compare.heads")]]);

/** @param {HTMLElement} element @param {any} source @param {Store} state */
export function mount(element, source, state) {
  const other = h("textarea", { id: "other-text", "aria-label": say("compare.text"), class: "wide boxed mono", rows: "1", spellcheck: "false", value: state.get("other").text ?? "", readonly: !source.live });
  const model = h("select", { id: "other-model", "aria-label": say("compare.model"), disabled: !source.live });
  const what = segmented(say("room.compare"), [["next", say("compare.next")], ["lens", say("compare.layers")], ["attention", say("room.attention")], ["patch", say("compare.patching")]], () => state.get("what"), (name) => state.set({ what: name }));
  const place = segmented(say("compare.carried"), PLACES(), () => state.get("place"), (name) => state.set({ place: name }));
  const body = h("div", { class: "compare" });
  const form = h("form", { class: "fields" },
    h("span", { class: "side-name" }, "A"), h("p", { class: "mono side-text" }), h("span", { class: "soft small side-model" }),
    h("span", { class: "side-name" }, "B"), other, model);
  element.append(h("h2", {}, say("compare.title")), form,
    h("div", { class: "row" }, what.element, place.element, !source.live ? null : PAIRS.map(([a, b]) => h("button", { type: "button", class: "small", onclick: () => {
      state.set({ text: a, other: { ...state.get("other"), text: b }, position: null, edits: carried(state.get("edits")), query: null, key: null });
    } }, differing(a, b)))),
    body);
  form.addEventListener("submit", (/** @type {Event} */ event) => event.preventDefault());
  let timer = 0;
  other.addEventListener("input", () => {
    clearTimeout(timer);
    form.setAttribute("aria-busy", "true"); // from the change on, not only once it is asked
    timer = window.setTimeout(() => {
      form.removeAttribute("aria-busy");
      state.set({ other: { ...state.get("other"), text: other.value } });
    }, 250);
  });
  model.addEventListener("change", () => state.set({ other: { ...state.get("other"), model: model.value || null } }));

  async function fill() {
    const found = await sources(source).catch(() => /** @type {[string, string][]} */ ([]));
    const chosen = state.get("other").model ?? "";
    if (chosen && !found.some(([name]) => name === chosen)) found.push([chosen, chosen]);
    put(model, h("option", { value: "" }, say("compare.same")), found.map(([name, text]) => h("option", { value: name }, text)));
    model.value = chosen;
  }
  fill();
  const reflect = () => {
    what.reflect();
    place.reflect();
    place.element.hidden = state.get("what") !== "patch";
    put(/** @type {any} */ (form.querySelector(".side-text")), state.get("text"));
    put(/** @type {any} */ (form.querySelector(".side-model")), state.get("modelName") ?? "");
    if (document.activeElement !== other) other.value = state.get("other").text ?? "";
    other.rows = Math.min(6, other.value.split("\n").length);
  };
  state.on(["text", "modelName", "other", "what", "place"], reflect);
  reflect();

  live(body, state, ["text", "model", "edits", "other", "what", "place", "layer", "head", "position"], async (signal) => {
    const b = { text: state.get("other").text || state.get("text"), model: state.get("other").model ?? state.get("model") };
    const a = { text: state.get("text"), model: state.get("model"), edits: state.get("edits") };
    if ( (a.text === b.text && a.model === b.model && !a.edits.length)) {
      put(body, h("p", { class: "soft" }, say("compare.change")));
      return null;
    }
    if (state.get("what") === "patch") {
      if (a.model === b.model && !a.edits.length) return source.get("patch", { model: a.model, clean: a.text, corrupted: b.text, what: state.get("place") }, { signal });
      throw new Error(say("compare.onemodel"));
    }
    const inside = state.get("what") === "attention" && state.get("head") !== null ? { layer: state.get("layer"), head: state.get("head") } : {};
    // The chosen token, where both texts have one there; else the last of each.
    const position = state.get("what") === "next" ? state.get("position") ?? -1 : -1;
    return source.get("compare", { a, b, what: state.get("what"), ...(position < 0 ? {} : { position }), ...inside }, { signal });
  }, draw);

  /** @param {any} d */
  function draw(d) {
    if (d.restored) return drawPatch(d);
    if (d.what === "next") return drawNext(d);
    return d.what === "lens" ? drawLens(d) : drawAttention(d);
  }

  /** @param {any} d */
  function drawNext(d) {
    const side = (/** @type {string} */ name, /** @type {any} */ x) => h("div", {}, h("h3", {}, `${name}: ${x.model}`),
      h("div", { role: "list", "aria-label": name }, x.next.slice(0, 10).map((/** @type {any} */ t) => chance(t.token, t.probability, x.next[0].probability))));
    const most = Math.max(...d.changed.map((/** @type {any} */ c) => Math.abs(c.after - c.before)), 1e-9);
    const after = (/** @type {any} */ x) => inQuotes(shown(x.tokens[d.position < 0 ? x.tokens.length - 1 : d.position] ?? ""));
    put(body, h("p", { class: "small soft" }, say("compare.after", { a: after(d.a), b: after(d.b) })), h("div", { class: "two" }, side("A", d.a), side("B", d.b)),
      h("h3", {}, say("compare.differs")),
      h("div", { role: "list" }, d.changed.slice(0, 12).map((/** @type {any} */ c) => h("div", { class: "prob change", role: "listitem" }, h("span", { class: "what mono" }, shown(c.token)), fork((c.after - c.before) / most),
        h("span", { class: "num small" }, `${percent(c.before)} → ${percent(c.after)}`)))),
      h("p", { class: "soft small" }, say("compare.kl", { a: number(d.kl) })));
  }

  /** @param {any} d */
  function drawLens(d) {
    const rows = d.differing.slice(0, 40);
    put(body, h("p", { class: "small" }, say("compare.readings", { a: d.count.toLocaleString(), b: (d.places.length * d.a.tokens.length).toLocaleString() })),
      h("div", { class: "scroll-x", tabindex: "0", role: "region", "aria-label": say("compare.differing") }, h("table", { class: "plain small" },
        h("thead", {}, h("tr", {}, [say("depth.after"), say("compare.place"), say("compare.a"), say("compare.b")].map((t) => h("th", { scope: "col" }, t)))),
        h("tbody", {}, rows.map((/** @type {any} */ r) => h("tr", {},
          h("td", { class: "mono" }, shown(d.a.tokens[r.position])), h("td", {}, placeName(r.place)),
          h("td", { class: "mono" }, `${shown(r.a.token)} ${percent(r.a.probability)}`), h("td", { class: "mono" }, `${shown(r.b.token)} ${percent(r.b.probability)}`)))))));
  }

  /** @param {any} d */
  function drawPatch(d) {
    const [pair] = d.pairs;
    const heads = d.what === "heads";
    const seen = d.columns.map((/** @type {any} */ _, /** @type {number} */ i) => i).filter((/** @type {number} */ i) => heads || d.restored.some((/** @type {number[]} */ row) => Math.abs(row[i]) >= 0.005));
    const name = (/** @type {number} */ i) => (heads ? say("attention.head", { a: d.columns[i] }) : shown(d.columns[i]));
    put(body,
      h("p", { class: "small" }, say("compare.patched", { a: shown(pair.answer ?? ""), b: pair.wrong ? say("compare.bwith", { a: shown(pair.wrong) }) : "", c: d.unit, d: number(pair.clean), e: number(pair.corrupted) })),
      h("div", { class: "scroll-x", tabindex: "0", role: "region", "aria-label": say("compare.back") }, h("table", { class: "lens patch" },
        h("thead", {}, h("tr", {}, h("th", { scope: "col" }, say("stage.layer")), seen.map((/** @type {number} */ i) => h("th", { scope: "col", class: "mono" }, name(i))))),
        h("tbody", {}, d.restored.map((/** @type {number[]} */ row, /** @type {number} */ layer) => h("tr", {}, h("th", { scope: "row" }, layer), seen.map((/** @type {number} */ i) => {
          const td = h("td", { class: "num" }, `${Math.round(100 * row[i]) || 0}`);
          td.style.setProperty("background", signed(row[i]));
          return hint(td, () => say("compare.brought", { a: layer, b: name(i), c: (100 * row[i]).toFixed(1) }));
        })))))),
      h("p", { class: "soft small" }, heads ? say("compare.eachhead") : say("compare.eachtoken")),
      d.correlation === null ? null : h("p", { class: "soft small" }, say("compare.estimate", { a: number(d.correlation) })));
  }

  /** @param {any} d */
  function drawAttention(d) {
    const most = Math.max(d.heads[0]?.mean ?? 0, 1e-9);
    /** @type {any} */
    let picture = null;
    if (d.difference) {
      const { data, shape } = unpack(d.difference);
      picture = h("div", {}, h("h3", {}, say("compare.minus", { a: state.get("layer"), b: state.get("head") })), grid(/** @type {Float32Array} */ (data), shape[0], shape[1], say("compare.difference")), h("p", { class: "soft small" }, say("compare.colours")));
    }
    if (!picture && d.drawn) picture = h("p", { class: "soft small" }, say("compare.held", { a: d.drawn }));
    put(body, h("div", { class: "two" },
      h("div", {}, h("h3", {}, say("compare.elsewhere")), h("div", { role: "list" }, d.heads.slice(0, 16).map((/** @type {any} */ x) => h("div", { role: "listitem" }, hint(h("button", {
        type: "button", class: "prob", "aria-pressed": String(x.layer === state.get("layer") && x.head === state.get("head")), onclick: () => state.set({ layer: x.layer, head: x.head, query: null, key: null }),
      }, h("span", { class: "what" }, say("at.headshort", { a: x.layer, b: x.head })), track(x.mean / most), h("span", { class: "num" }, percent(x.mean))), () => say("compare.largest", { a: percent(x.largest) }))))),
        h("p", { class: "soft small" }, say("compare.moved"))),
      picture));
  }
}

/** The words in which two texts of as many words differ: "France | Italy". @param {string} a @param {string} b */
function differing(a, b) {
  const [x, y] = [a.split(" "), b.split(" ")];
  const apart = (/** @type {string[]} */ one, /** @type {string[]} */ other) => one.filter((word, i) => word !== other[i]).join(" ");
  return `${apart(x, y)} | ${apart(y, x)}`;
}
