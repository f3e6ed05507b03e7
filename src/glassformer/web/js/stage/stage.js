/** The stage: a canvas, its clock, its scenes, the question beside it, and the way into parts and back. */

import { afterFirst } from "../live.js";
import { onSpoken, say } from "../words.js";
import { Around } from "./around.js";
import { Camera } from "./camera.js";
import { StageData } from "./data.js";
import { Fade } from "./fade.js";
import { WHEN } from "./machine.js";
import { Pen, clamp, theme } from "./paint.js";
import { Overlay } from "./parts.js";
import { Quiz } from "./quiz.js";
import { rulers } from "./rulers.js";
import { SCENES, sceneOf, whole } from "./scenes.js";
import { Zoom } from "./zoom.js";

/** @typedef {import("../store.js").Store} Store */

/** So far the first film goes before the layers have run. */
const EARLY = WHEN.layers - 0.035;
/** Where a film stands still for those who want no motion. */
const STILLS = 6;

/** Pixels of ordinary type: as the page's, larger in a high picture, and in a narrow one as large as it has room for. @param {number} high */
function type(high) {
  const page = parseFloat(getComputedStyle(document.documentElement).fontSize) * 0.875;
  return innerWidth < 640 ? Math.min(page, Math.max(14, 0.045 * innerWidth)) : page * Math.max(1, Math.min(1.35, high / 640));
}

export class Stage {
  /** @param {HTMLElement} element @param {any} source @param {Store} state @param {{rooms?: string[]}} [options] */
  constructor(element, source, state, { rooms = [] } = {}) {
    this.element = element;
    this.source = source;
    this.state = state;
    this.rooms = rooms;
    /** @type {any} */ (element).stage = this;
    this.calm = matchMedia("(prefers-reduced-motion: reduce)");
    /** Of more characters than these, a text's columns are drawn before its layers have run, even where another stands. */
    this.long = 2000;
    /** @type {StageData|null} */
    this.data = null;
    /** What scenes asked for beyond the stage's own data, by scene. @type {Map<string, any>} */
    this.extra = new Map();
    this.scene = sceneOf(state.get("scene"));
    this.t = 0;
    this.playing = false;
    this.last = 0;
    this.queued = false;
    this.held = false;
    /** Milliseconds between frames, and what each drew: read by the benchmark. @type {{gaps: number[], drawn: number[], cut: string[]}} */
    this.stats = { gaps: [], drawn: [], cut: [] };
    /** @type {Fade|null} */
    this.fade = null;
    /** @type {import("./machine.js").Machine|null} */
    this.machine = null;
    this.w = 0;
    this.h = 0;
    this.size = 14;
    this.ratio = 1;
    /** @type {AbortController|null} */
    this.asking = null;
    /** Told once the first picture's numbers are here, or will not come. */
    this.arrived = () => {};
    /** @type {Promise<void>} */
    this.first = new Promise((done) => { this.arrived = done; });
    this.around = new Around(this);
    this.canvas = this.around.canvas;
    this.view = this.around.view;
    this.seen = true;
    this.quiz = new Quiz(this.around.question, () => this.#answered());
    this.zoom = new Zoom(this);
    this.overlay = new Overlay(this.view, this.canvas);
    this.camera = new Camera(this);
    this.#listen();
    this.reflect();
    this.load();
    onSpoken(() => { this.reflect(); this.quiz.reflect(); this.redraw(); });
  }

  /** Words that stand around the picture. */
  reflect() {
    this.around.reflect();
    if (this.data && !this.data.early && this.scene.need && !this.found) this.canvas.setAttribute("aria-busy", "true");
    else this.canvas.removeAttribute("aria-busy");
  }

  /** The room that shows what the stage shows, at this place. @returns {{room: string, set: Record<string, any>}|null} */
  target() {
    return this.zoom?.target() ?? this.scene.room?.(this) ?? null;
  }

  #listen() {
    const { state } = this;
    let timer = 0;
    state.on(["text", "model", "edits", "position", "stageShare"], () => {
      clearTimeout(timer);
      this.asking?.abort();
      this.asking = null;
      this.view.setAttribute("aria-busy", "true"); // from the change on, not only once it is asked
      timer = window.setTimeout(() => this.load(), document.activeElement?.id === "composer" ? 350 : 0);
    });
    state.on(["scene"], () => { if (state.get("scene") && state.get("scene") !== this.scene.id) this.go(state.get("scene")); });
    state.on(["zoom"], () => { if (state.get("zoom") !== this.zoom.address) this.zoom.follow(state.get("zoom")); });
    state.on(["theme", "large"], () => requestAnimationFrame(() => this.redraw()));
    state.on(["word", "contexts", "run"], () => { this.extra.clear(); this.#need(); });
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.redraw());
    new ResizeObserver(() => this.#resize()).observe(this.view);
    // As large as the page's letters, also when the browser's own change.
    new ResizeObserver(() => { if (this.w && type(this.h) !== this.size) this.redraw(); }).observe(this.around.play);
    new IntersectionObserver((changes) => { this.seen = changes[changes.length - 1].isIntersecting; if (this.seen) this.draw(); }).observe(this.canvas);
  }

  /** Ask for the text's trace, and begin. */
  async load() {
    const { state } = this;
    this.asking?.abort();
    const mine = (this.asking = new AbortController());
    if (!state.get("text")) {
      this.arrived();
      return this.view.removeAttribute("aria-busy");
    }
    this.view.setAttribute("aria-busy", "true");
    const first = this.data === null;
    const asked = { text: state.get("text"), model: state.get("model"), edits: state.get("edits"), position: state.get("position") ?? -1 };
    try {
      if (!first) await afterFirst();
      if (first || asked.text.length > this.long) await this.#early(asked, mine.signal);
      if (mine.signal.aborted) return;
      const found = await this.source.get("stage", { ...asked, threshold: state.get("stageShare") ?? 0.1 }, { signal: mine.signal });
      if (mine.signal.aborted) return;
      const going = this.data?.early === true && this.playing;
      this.data = new StageData(found);
      this.around.problem.hidden = true;
      this.extra.clear();
      this.machine = null;
      this.quiz.forget();
      this.zoom.follow(state.get("zoom"));
      this.#resize();
      const typing = document.activeElement?.id === "composer";
      if (going && !this.zoom.path.length) this.#on();
      else this.begin(typing && !first ? 1 : 0);
    } catch (error) {
      if (mine.signal.aborted) return;
      this.around.problem.textContent = error instanceof Error ? error.message : String(error);
      this.around.problem.hidden = false;
      if (error instanceof Error && /** @type {any} */ (error).kind === "Gone") setTimeout(() => mine === this.asking && this.load(), 2000);
    } finally {
      if (mine === this.asking) {
        this.view.removeAttribute("aria-busy");
        this.arrived();
      }
    }
  }

  /** The words become columns while the layers are still computed: motion begins with what is known. @param {Record<string, any>} asked @param {AbortSignal} signal */
  async #early(asked, signal) {
    const here = () => this.scene.covers && !this.state.get("zoom") && !this.calm.matches;
    if (!this.source.live || !here()) return;
    const found = await this.source.get("columns", asked, { signal }).catch(() => null);
    if (!found || signal.aborted || !here()) return;
    this.data = new StageData(found);
    this.#resize();
    this.begin(0);
    // What is drawn first has the processor to itself; a page out of sight draws nothing.
    await Promise.race([new Promise((done) => requestAnimationFrame(() => setTimeout(done))), new Promise((done) => setTimeout(done, 300))]);
  }

  /** The film goes on with the numbers that have come. */
  #on() {
    this.#need();
    this.#ask();
    this.reflect();
    this.draw();
  }

  /** Ask for what the scene needs beyond. */
  async #need() {
    const { scene } = this;
    if (!this.data || this.data.early || !scene.need || this.extra.has(scene.id)) return;
    const mine = this.asking;
    this.extra.set(scene.id, null);
    try {
      const found = await scene.need(this);
      if (mine !== this.asking) return;
      this.extra.set(scene.id, found);
    } catch (error) {
      if (mine !== this.asking) return;
      this.extra.set(scene.id, { problem: error instanceof Error ? error.message : String(error) });
    }
    this.reflect();
    this.#ask();
    if (this.calm.matches && this.t >= 1 && !this.held) this.seek(this.#hold()); // the question is known only now
    this.draw();
  }

  /** What the scene asked for, once it is there. */
  get found() {
    return this.extra.get(this.scene.id) ?? null;
  }

  #ask() {
    if (!this.data || this.data.early) return;
    const ready = !this.scene.need || (this.found && !this.found.problem);
    this.quiz.show(this.scene.id, ready ? () => this.scene.ask?.(this) ?? null : () => null);
  }

  /** Begin a scene whose drawing is still to come. @param {number} t */
  async #fetch(t) {
    const { scene } = this;
    this.playing = false;
    this.extra.delete(scene.id);
    this.reflect();
    this.draw();
    try {
      const found = await whole(scene);
      if (this.scene !== scene) return;
      this.scene = found;
      this.begin(t);
    } catch (error) {
      if (this.scene !== scene) return;
      this.extra.set(scene.id, { problem: error instanceof Error ? error.message : String(error) });
      this.draw();
    }
  }

  /** @param {number} t */
  begin(t = 0) {
    this.t = t;
    this.held = false;
    if (this.scene.fetched) return void this.#fetch(t);
    this.#need();
    this.#ask();
    this.reflect();
    if (t >= 1 || this.zoom.path.length) this.pause();
    else if (this.calm.matches) this.seek(this.#hold());
    else this.start();
    this.draw();
  }

  /** @param {string} id */
  go(id) {
    const scene = sceneOf(id);
    if (this.zoom.path.length) this.zoom.back(0);
    this.camera.reset();
    this.#shot();
    this.scene = scene;
    this.state.set({ scene: id === SCENES[0].id ? null : id });
    history.replaceState(null, "", this.state.fragment());
    this.begin(0);
  }

  /** @param {number} by */
  step(by) {
    const to = SCENES[SCENES.indexOf(this.scene) + by];
    if (to) this.go(to.id);
  }

  #hold() {
    return this.quiz.open ? this.scene.hold ?? 1 : 1;
  }

  toggle() {
    if (this.zoom.path.length) this.zoom.back(0); // a part stands still; the film is the whole machine's
    if (this.playing) return this.pause();
    if (this.calm.matches) return this.seek(this.t >= 1 ? 0 : Math.floor(this.t * STILLS + 1.001) / STILLS);
    if (this.t >= 1) this.t = 0;
    if (this.t >= this.#hold() - 1e-6) this.held = true; // played on over the question
    this.start();
  }

  start() {
    this.playing = true;
    this.last = performance.now();
    this.stats = { gaps: [], drawn: [], cut: [] };
    this.reflect();
    this.draw();
  }

  pause() {
    this.playing = false;
    this.reflect();
    this.draw();
  }

  /** @param {number} t */
  seek(t) {
    this.t = clamp(t);
    this.playing = false;
    this.reflect();
    this.draw();
  }

  #answered() {
    this.held = true;
    this.reflect();
    if (this.calm.matches) this.seek(1);
    else if (this.t < 1) this.start();
  }

  #resize() {
    const w = this.view.clientWidth;
    if (!w) return;
    const tall = w < 640;
    const n = this.data?.count ?? 5;
    const high = tall ? Math.max(540, Math.min(innerHeight * 0.86, 720)) : Math.max(400, Math.min(Math.max(innerHeight - 350, 0.36 * w), w * 0.6, n > 60 ? 1e4 : 900));
    const ratio = Math.min(2, devicePixelRatio || 1);
    const size = type(high);
    const same = this.w === w && this.h === high && this.size === size && this.ratio === ratio;
    this.w = w;
    this.h = high;
    this.size = size;
    this.ratio = ratio;
    if (same && this.machine) return;
    this.camera.reset();
    this.view.style.setProperty("height", `${high}px`);
    [this.canvas.width, this.canvas.height] = [Math.round(w * ratio), Math.round(high * ratio)];
    this.redraw();
  }

  /** Draw anew, the prepared pictures too. */
  redraw() {
    this.machine = null;
    if (type(this.h) !== this.size) return this.#resize();
    this.draw();
  }

  /** Ask for a frame. */
  draw() {
    if (this.queued) return;
    this.queued = true;
    requestAnimationFrame((now) => this.#frame(now));
  }

  /** Room for a scene. */
  get frame() {
    return { w: this.w, h: this.h, tall: this.w < 640 };
  }

  /** The picture as it is, to move on from. @param {import("./paint.js").Box|null} [from] what of it grows to the whole */
  #shot(from = null, out = false) {
    if (this.calm.matches || !this.data || !this.w) return;
    this.fade = new Fade(this.canvas, from, out);
  }

  /** Grow a part of the picture into a picture of its own, or shrink back. @param {import("./paint.js").Box|null} box @param {boolean} [out] */
  shot(box, out = false) {
    this.camera.reset();
    this.#shot(box, out);
    this.reflect();
    this.draw();
  }

  /** @param {number} now */
  #frame(now) {
    this.queued = false;
    if (!this.data || !this.w || !this.seen) return;
    if (this.playing) {
      if (this.last && (!this.scene.need || this.found)) { // no film runs before there is anything to see
        const gap = now - this.last;
        this.stats.gaps.push(gap);
        const hold = this.held ? 1 : this.#hold();
        const long = this.scene.seconds * 1000;
        const before = this.t;
        this.t = Math.min(this.data.early ? EARLY : 1, this.t + Math.min(gap, 100) / long);
        if (before < hold && this.t >= hold && hold < 1) {
          this.t = hold;
          this.playing = false;
          this.quiz.wait();
          this.reflect();
        } else if (this.t >= 1) {
          this.playing = false;
          this.reflect();
        }
      }
      this.last = now;
    }
    const ctx = /** @type {CanvasRenderingContext2D} */ (this.canvas.getContext("2d", { alpha: false }));
    ctx.setTransform(this.ratio, 0, 0, this.ratio, 0, 0);
    ctx.globalAlpha = 1;
    if (this.zoom.path.length || !this.scene.covers) {
      ctx.fillStyle = theme().ground;
      ctx.fillRect(0, 0, this.w, this.h);
    }
    const pen = new Pen(ctx, this.size);
    this.camera.aim(ctx);
    if (this.machine) this.machine.sharp = this.camera.near && !this.playing;
    this.paint(pen);
    ctx.setTransform(this.ratio, 0, 0, this.ratio, 0, 0);
    if (this.camera.near && this.machine && this.scene.covers && !this.zoom.path.length) rulers(this.machine, pen, this.camera);
    if (!this.fade?.paint(ctx, now, this.w, this.h)) this.fade = null;
    this.stats.drawn.push(pen.drawn);
    this.stats.cut = pen.cut;
    this.around.bar.value = String(Math.round(1000 * this.t));
    this.overlay.place(this.camera.seen(pen.parts), this.playing);
    if (!this.playing) this.around.said.textContent = this.zoom.path.length ? this.zoom.told() : this.scene.told?.(this) ?? this.around.about.textContent ?? "";
    if (this.playing || this.fade) this.draw();
  }

  /** @param {Pen} pen */
  paint(pen) {
    if (this.zoom.path.length) return this.zoom.paint(pen);
    if (this.found?.problem) return void pen.lines(this.found.problem, this.w * 0.1, this.h * 0.4, this.w * 0.8, { colour: pen.t.soft });
    if ((this.scene.need && !this.found) || (this.data?.early && !this.scene.covers)) return void pen.text(say("stage.asking"), this.w / 2, this.h / 2, { align: "center", colour: pen.t.soft });
    this.scene.paint(pen, this.t, this);
  }
}

/** @param {HTMLElement} element @param {any} source @param {Store} state @param {{rooms?: string[]}} [options] */
export function mount(element, source, state, options) {
  return new Stage(element, source, state, options);
}
