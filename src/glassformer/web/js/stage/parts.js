/** Places of the picture as buttons over it: for the pointer, for the keyboard, and for those who hear it. */

import { h, hint } from "../dom.js";

/** @typedef {import("./paint.js").Part} Part */

/** So many places become buttons; the rest answer the pointer alone. */
const MOST = 160;

export class Overlay {
  /** @param {HTMLElement} view @param {HTMLCanvasElement} canvas */
  constructor(view, canvas) {
    this.layer = h("div", { class: "stage-parts" });
    view.append(this.layer);
    this.known = "";
    /** @type {Part[]} */
    this.parts = [];
    this.focus = 0;
    canvas.addEventListener("click", (event) => this.#at(event)?.act());
    this.playing = false;
  }

  /** @param {MouseEvent} event */
  #at(event) {
    return this.parts.find(({ box }) => event.offsetX >= box.x && event.offsetX <= box.x + box.w && event.offsetY >= box.y && event.offsetY <= box.y + box.h) ?? null;
  }

  /** Put the buttons where the picture has its parts. @param {Part[]} parts @param {boolean} playing */
  place(parts, playing) {
    this.parts = parts;
    this.playing = playing;
    const shownParts = parts.slice(0, MOST);
    const now = shownParts.map(({ key, box, label }) => `${key}${Math.round(box.x)},${Math.round(box.y)},${Math.round(box.w)},${label}`).join("|");
    if (now === this.known || (playing && this.known && Math.random() > 0.05)) return;
    this.known = now;
    const had = this.layer.contains(document.activeElement) ? /** @type {HTMLElement} */ (document.activeElement).dataset.key : null;
    this.layer.replaceChildren(...shownParts.map((part, i) => {
      const { box } = part;
      const button = h("button", { type: "button", class: "part", "aria-label": part.label, "data-key": part.key ?? String(i), tabindex: i === 0 ? "0" : "-1", onclick: () => this.parts.find((p) => p.key === part.key)?.act() ?? part.act() });
      for (const [name, value] of [["left", box.x], ["top", box.y], ["width", box.w], ["height", box.h]]) button.style.setProperty(String(name), `${value}px`);
      return hint(button, () => part.label);
    }));
    const again = had === null ? null : /** @type {HTMLElement[]} */ ([...this.layer.children]).find((b) => b.dataset.key === had);
    if (again) {
      this.layer.firstElementChild?.setAttribute("tabindex", "-1");
      again.tabIndex = 0;
      again.focus({ preventScroll: true });
    }
  }

  /** From the focused part to the nearest one in a direction. @param {string} key @returns {boolean} whether it was a direction */
  move(key) {
    const way = { ArrowRight: [1, 0], ArrowLeft: [-1, 0], ArrowDown: [0, 1], ArrowUp: [0, -1] }[key];
    if (!way) return false;
    const here = /** @type {HTMLElement} */ (document.activeElement);
    const middle = (/** @type {HTMLElement} */ e) => [e.offsetLeft + e.offsetWidth / 2, e.offsetTop + e.offsetHeight / 2];
    const [x, y] = middle(here);
    let [best, far] = [/** @type {HTMLElement|null} */ (null), Infinity];
    for (const other of /** @type {HTMLElement[]} */ ([...this.layer.children])) {
      const [ox, oy] = middle(other);
      const along = (ox - x) * way[0] + (oy - y) * way[1];
      const aside = Math.abs((ox - x) * way[1]) + Math.abs((oy - y) * way[0]);
      if (along > 1 && along + 3 * aside < far) [best, far] = [other, along + 3 * aside];
    }
    if (best) {
      here.tabIndex = -1;
      best.tabIndex = 0;
      best.focus({ preventScroll: true });
    }
    return true;
  }

  /** Where the part is that was just chosen. @returns {import("./paint.js").Box|null} */
  box() {
    const at = /** @type {HTMLElement|null} */ (document.activeElement);
    return at && this.layer.contains(at) ? { x: at.offsetLeft, y: at.offsetTop, w: at.offsetWidth, h: at.offsetHeight } : null;
  }

  /** From the picture into its first part. */
  enter() {
    /** @type {HTMLElement|null} */ (this.layer.querySelector('[tabindex="0"]'))?.focus({ preventScroll: true });
  }
}
