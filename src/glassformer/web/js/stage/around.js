/** What stands around the stage's canvas: its words, its bar, the way through the machine, and the keys that act. */

import { h, put } from "../dom.js";
import { LANGUAGES, say, speaking } from "../words.js";
import { SCENES } from "./scenes.js";

/** @typedef {import("./stage.js").Stage} Stage */

export class Around {
  /** @param {Stage} stage */
  constructor(stage) {
    this.stage = stage;
    this.title = h("h2", {});
    this.about = h("p", { class: "say", "aria-live": "polite" });
    this.count = h("span", { class: "soft small num" });
    this.canvas = h("canvas", { tabindex: "0", role: "img", "aria-describedby": "stage-said" });
    this.said = h("p", { class: "visually-hidden", id: "stage-said" });
    this.crumbs = h("nav", { class: "crumbs", "aria-label": say("stage.where") });
    this.view = h("div", { class: "stage-view" }, this.canvas, this.crumbs);
    this.problem = h("p", { class: "problem", role: "alert", hidden: true });
    this.play = h("button", { type: "button", class: "play", onclick: () => stage.toggle() });
    this.bar = h("input", { type: "range", min: "0", max: "1000", value: "0", class: "scrub", oninput: () => stage.seek(Number(this.bar.value) / 1000) });
    this.before = h("button", { type: "button", class: "step", onclick: () => stage.step(-1) }, "‹");
    this.after = h("button", { type: "button", class: "step", onclick: () => stage.step(1) }, "›");
    this.list = h("select", { class: "scenes", onchange: () => stage.go(this.list.value) });
    this.share = h("select", { onchange: () => { stage.state.set({ stageShare: Number(this.share.value) }); } });
    this.lang = h("select", { lang: "", onchange: () => stage.state.set({ lang: this.lang.value }) }, Object.entries(LANGUAGES).map(([tag, { name }]) => h("option", { value: tag, lang: tag }, name)));
    this.open = h("button", { type: "button", class: "open-room", onclick: () => this.#room() });
    this.nearer = h("button", { type: "button", class: "step", onclick: () => stage.camera.zoom(1.6) }, "+");
    this.farther = h("button", { type: "button", class: "step", onclick: () => stage.camera.zoom(1 / 1.6) }, "−");
    this.question = h("div", { class: "question" });
    put(stage.element,
      h("div", { class: "stage-head" }, h("div", {}, h("div", { class: "row" }, this.title, this.count), this.about)),
      this.problem, this.view, this.said,
      h("div", { class: "stage-bar" }, this.play, this.bar, h("div", { class: "row stage-more" }, this.before, this.list, this.after, this.farther, this.nearer, this.open, this.share, this.lang)), this.question);
    addEventListener("keydown", (event) => this.#key(event));
  }

  /** Words that stand in the page around the canvas. */
  reflect() {
    const { stage } = this;
    this.lang.value = speaking();
    const n = SCENES.indexOf(stage.scene);
    const level = stage.zoom?.level;
    this.title.textContent = level ? stage.zoom.crumbs().slice(1).map(({ name }) => name).join(" · ") : say(`scene.${stage.scene.id}`);
    this.about.textContent = level ? say(`zoom.${level}.say`, stage.zoom.place) : say(`scene.${stage.scene.id}.say`, stage.scene.fields?.(stage) ?? {});
    if (!level && stage.scene.unchanged && stage.state.get("edits").length) this.about.textContent += ` ${say("stage.unchanged")}`;
    stage.element.classList.toggle("zoomed", Boolean(level));
    this.count.textContent = n && !level ? say("stage.of", { n, all: SCENES.length - 1 }) : "";
    put(this.list, SCENES.map((scene, i) => h("option", { value: scene.id }, i ? `${i} · ${say(`scene.${scene.id}`)}` : say(`scene.${scene.id}`))));
    this.list.value = stage.scene.id;
    put(this.share, [0.1, 0.05, 0.02].map((x) => h("option", { value: String(x) }, say("stage.above", { x: Math.round(100 * x) }))));
    this.share.hidden = !stage.source.live;
    this.share.value = String(stage.state.get("stageShare") ?? 0.1);
    for (const [element, key] of /** @type {[HTMLElement, string][]} */ ([[this.list, "stage.scenes"], [this.share, "stage.share"], [this.lang, "stage.language"], [this.before, "stage.before"], [this.after, "stage.after"], [this.bar, "stage.scrub"], [this.nearer, "stage.nearer"], [this.farther, "stage.farther"], [this.canvas, "stage.canvas"]])) element.setAttribute("aria-label", say(key));
    this.before.disabled = n === 0;
    this.after.disabled = n === SCENES.length - 1;
    this.play.setAttribute("aria-label", say(stage.playing ? "stage.pause" : "stage.play"));
    this.play.textContent = stage.playing ? "❚❚" : "►";
    stage.element.setAttribute("aria-label", say("stage.name"));
    this.#where();
  }

  /** The way from the whole machine to what is shown. */
  #where() {
    const { stage } = this;
    const steps = stage.zoom?.crumbs() ?? [];
    put(this.crumbs, steps.map(({ name, to }, i) => [i ? " › " : null, i === steps.length - 1 ? h("span", { "aria-current": "true" }, name) : h("button", { type: "button", onclick: () => stage.zoom.back(to) }, name)]));
    this.crumbs.hidden = steps.length < 2;
    const to = stage.target();
    this.open.hidden = !to || !stage.rooms.includes(to.room);
    if (to) this.open.textContent = say("stage.open", { room: say(`room.${to.room}`) });
  }

  /** Open the room that shows what the stage shows, with a way back. */
  #room() {
    const { stage } = this;
    const to = stage.target();
    if (!to) return;
    const behavior = stage.calm.matches ? "auto" : "smooth";
    stage.pause();
    stage.state.set({ tab: to.room, ...to.set });
    const back = h("button", { type: "button", class: "back-to-stage", onclick: () => { back.remove(); stage.element.scrollIntoView({ behavior }); this.canvas.focus({ preventScroll: true }); } }, `↑ ${say("stage.back")}`);
    document.querySelector(".back-to-stage")?.remove();
    document.body.append(back);
    document.getElementById(`room-${to.room}`)?.scrollIntoView({ behavior });
    back.focus({ preventScroll: true });
  }

  /** @param {KeyboardEvent} event */
  #key(event) {
    const { stage } = this;
    const { camera, overlay, zoom } = stage;
    const at = /** @type {HTMLElement} */ (event.target);
    const inside = at === this.canvas || this.view.contains(at);
    if (event.ctrlKey || event.metaKey || event.altKey || event.defaultPrevented) return;
    if (!inside && (at !== document.body || !stage.seen)) return;
    if (at.classList.contains("part")) {
      if (overlay.move(event.key)) return event.preventDefault();
      if (event.key === " " || event.key === "Enter") return;
    }
    if (at instanceof HTMLButtonElement && (event.key === " " || event.key === "Enter")) return;
    const by = stage.w / 12;
    /** @type {Record<string, [number, number]>} */
    const ways = { ArrowRight: [-by, 0], ArrowLeft: [by, 0], ArrowDown: [0, -by], ArrowUp: [0, by] };
    if (camera.near && !event.shiftKey && ways[event.key]) {
      camera.pan(...ways[event.key]);
      return event.preventDefault();
    }
    const along = (/** @type {number} */ way) => (event.shiftKey ? stage.step(way) : stage.seek(stage.t + 0.02 * way));
    /** @type {Record<string, () => void>} */
    const acts = {
      "+": () => camera.zoom(1.6), "=": () => camera.zoom(1.6), "-": () => camera.zoom(1 / 1.6), 0: () => camera.reset(),
      " ": () => stage.toggle(), ArrowRight: () => along(1), ArrowLeft: () => along(-1),
      Home: () => stage.seek(0), End: () => stage.seek(1), Escape: () => (camera.near ? camera.reset() : zoom.back(zoom.path.length - 1)), Enter: () => overlay.enter(),
    };
    const act = acts[event.key];
    if (!act || (event.key === "Escape" && !zoom.path.length && !camera.near)) return;
    event.preventDefault();
    act();
  }
}
