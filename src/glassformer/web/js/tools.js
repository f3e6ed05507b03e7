/** What a researcher takes away: the lines of Python, tables and arrays of numbers, pictures, and the whole session as a file. */

import { h, put } from "./dom.js";
import { onSpoken, said as spoken, say } from "./words.js";

/** @typedef {import("./store.js").Store} Store */

/** The views of each room whose numbers are taken, the last asked first. @type {Record<string, string[]>} */
const VIEWS = {
  attention: ["reasons", "cell", "maps", "attention", "thumbnails", "corpus"], depth: ["lens", "journey", "surprise"], why: ["why", "neurons", "effects", "graph", "circuit", "prediction", "direction"], facts: ["exciting", "neurons", "experts"],
  compare: ["compare", "patch"], texts: ["texts"], vectors: ["directions", "cloud", "sum", "sums"], meaning: ["meaning"], learning: ["run", "run_step", "film", "influence"], size: ["size"],
};
/** Those of what stands beside every room. */
const AROUND = ["next", "words", "tokens", "stage"];

/** Remember what was asked of a source and what it said, by view. @param {any} source */
export function listening(source) {
  source.heard = new Map();
  source.told = () => {};
  const heard = (/** @type {string} */ view, /** @type {any} */ args, /** @type {any} */ found) => {
    source.heard.delete(view);
    source.heard.set(view, { args, found });
    source.told();
    return found;
  };
  for (const name of ["get", "watch"]) {
    const ask = source[name]?.bind(source);
    if (ask) source[name] = async (/** @type {string} */ view, /** @type {any} */ args, /** @type {any[]} */ ...rest) => heard(view, args, await ask(view, args, ...rest));
  }
  return source;
}

/** What makes files of numbers, fetched when the first is wanted. */
const tables = async () => await import("./tables.js");
const pictures = async () => await import("./picture.js");

/** @param {BlobPart} part @param {string} name @param {string} [type] */
const keep = async (part, name, type = "") => (await pictures()).save(new Blob([part], { type }), name);

/** The row of buttons over a room; what it says stands before them, so that no button moves under the pointer. @param {any} source @param {Store} state @param {() => HTMLElement} panel */
export function tools(source, state, panel) {
  const said = h("span", { class: "small", role: "status" });
  const which = h("select", { class: "small", "aria-label": spoken("take.which"), title: spoken("take.which") });
  /** What was asked, the last first. @param {string[]} names */
  const heard = (names) => [...source.heard.keys()].reverse().filter((name) => names.includes(name));
  const now = () => {
    const here = heard(VIEWS[state.get("tab")] ?? []);
    // All heads at once are what is looked at only while no one head is.
    const held = which.value || here.find((name) => name !== "thumbnails") || here[0];
    if (!held) throw new Error(say("take.nothing"));
    return { name: held, ...source.heard.get(held) };
  };
  const list = () => {
    const rooms = [state.get("tab"), state.get("beside")].flatMap((room) => VIEWS[room] ?? []);
    const names = [...new Set([...heard(rooms), ...heard(AROUND)])];
    const kept = names.includes(which.value) ? which.value : "";
    put(which, h("option", { value: "" }, say("take.last")), names.map((name) => h("option", { value: name }, say(`take.${name}`))));
    which.value = kept;
  };
  source.told = list;
  state.on(["tab", "beside"], () => { which.value = ""; list(); });
  onSpoken(list);
  list();
  const act = (/** @type {string|(() => string)} */ label, /** @type {() => string} */ title, /** @type {() => any} */ what) => h("button", { type: "button", class: "small", title, onclick: async () => {
    try {
      said.textContent = (await what()) ?? say("take.saved");
    } catch (error) {
      said.textContent = error instanceof Error ? error.message : String(error);
    }
  } }, label);
  const file = (/** @type {string} */ name, /** @type {string} */ end) => `glassformer-${name}.${end}`;
  return h("div", { class: "row tool-row", role: "group", "aria-label": spoken("take.title") },
    said, h("label", { class: "small" }, spoken("take.of"), which), source.live && !source.embedded ? act(spoken("take.python"), spoken("take.python.say"), async () => {
      const { name, args } = now();
      const { lines } = await source.get("python", { name, arguments: args });
      await navigator.clipboard?.writeText(lines).catch(() => null);
      said.dataset.lines = lines;
      return say("take.copied", { a: name });
    }) : null,
    act("CSV", spoken("take.csv"), async () => { const { name, found } = now(); await keep((await tables()).table(found, state.get("tokens")), file(name, "csv"), "text/csv"); }),
    act("npz", spoken("take.npz"), async () => { const { name, found } = now(); await keep((await tables()).npz(found), file(name, "npz")); }),
    act("SVG", spoken("take.svg"), async () => keep((await (await pictures()).grounded(panel())).text, file(state.get("tab"), "svg"), "image/svg+xml")));
}

/** Undo, redo, and the session as one file. @param {Store} state @param {(fragment: string) => Record<string, any>} read */
export function history(state, read) {
  const back = h("button", { type: "button", id: "undo", "aria-label": spoken("session.undo"), title: spoken("session.undo.say"), onclick: () => state.undo() }, "↶");
  const forth = h("button", { type: "button", id: "redo", "aria-label": spoken("session.redo"), title: spoken("session.redo.say"), onclick: () => state.redo() }, "↷");
  const reflect = () => { back.disabled = !state.past.length; forth.disabled = !state.future.length; };
  state.on(null, reflect);
  reflect();
  const pick = h("input", { type: "file", accept: ".json,application/json", "aria-label": spoken("session.open.say"), class: "visually-hidden", tabindex: "-1", onchange: async () => {
    const [chosen] = pick.files;
    pick.value = "";
    if (!chosen) return;
    try {
      const held = JSON.parse(await chosen.text());
      if (held.glassformer !== 1 || typeof held.view !== "string") throw new Error("no session");
      state.set(read(held.view));
    } catch {
      alert(say("session.none", { a: chosen.name }));
    }
  } });
  return [back, forth,
    h("button", { type: "button", id: "save-session", title: spoken("session.save.say"), onclick: () => keep(JSON.stringify({ glassformer: 1, view: state.fragment() }), "glassformer-session.json", "application/json") }, spoken("session.save")),
    h("button", { type: "button", id: "open-session", title: spoken("session.open.say"), onclick: () => pick.click() }, spoken("session.open")), pick];
}
