/** The camera over the stage's picture: free pan and zoom; at its near end it goes into a part, at its far end out of one. */

/** @typedef {import("./paint.js").Part} Part */

/** So many times larger, and the part under the pointer opens. */
const MOST = 4;
/** A pointer that moved less than so many pixels has clicked. */
const STILL = 5;

export class Camera {
  /** @param {import("./stage.js").Stage} stage */
  constructor(stage) {
    this.stage = stage;
    this.k = 1;
    this.x = 0;
    this.y = 0;
    /** @type {Map<number, {x: number, y: number}>} */
    this.fingers = new Map();
    this.dragged = false;
    this.#listen();
  }

  /** Whether less than the whole picture is seen. */
  get near() {
    return this.k > 1.001;
  }

  #listen() {
    const { view } = this.stage;
    const at = (/** @type {MouseEvent} */ event) => { const box = view.getBoundingClientRect(); return { x: event.clientX - box.left, y: event.clientY - box.top }; };
    view.addEventListener("wheel", (/** @type {WheelEvent} */ event) => {
      const { x, y } = at(event);
      if (event.ctrlKey || event.metaKey) {
        event.preventDefault();
        this.zoom(Math.exp(-event.deltaY * (event.deltaMode ? 0.05 : 0.004)), x, y);
      } else if (this.near && this.pan(-event.deltaX, -event.deltaY)) event.preventDefault();
    }, { passive: false });
    view.addEventListener("pointerdown", (/** @type {PointerEvent} */ event) => {
      this.fingers.set(event.pointerId, at(event));
      this.dragged = false;
    });
    view.addEventListener("pointermove", (/** @type {PointerEvent} */ event) => {
      const before = this.fingers.get(event.pointerId);
      if (!before) return;
      const now = at(event);
      const [first, second] = [...this.fingers.entries()];
      if (second) {
        const other = first[0] === event.pointerId ? second[1] : first[1];
        const far = (/** @type {{x: number, y: number}} */ p) => Math.hypot(p.x - other.x, p.y - other.y);
        this.dragged = true;
        this.zoom(far(now) / Math.max(1, far(before)), (now.x + other.x) / 2, (now.y + other.y) / 2);
        this.fingers.set(event.pointerId, now);
      } else if (this.near && (this.dragged || Math.hypot(now.x - before.x, now.y - before.y) > STILL)) {
        if (!this.dragged) view.setPointerCapture(event.pointerId);
        this.dragged = true;
        this.pan(now.x - before.x, now.y - before.y);
        this.fingers.set(event.pointerId, now);
      }
    });
    for (const name of ["pointerup", "pointercancel"]) view.addEventListener(name, (/** @type {PointerEvent} */ event) => this.fingers.delete(event.pointerId));
    // What was dragged was not clicked.
    view.addEventListener("click", (/** @type {MouseEvent} */ event) => {
      if (!this.dragged) return;
      this.dragged = false;
      event.stopPropagation();
      event.preventDefault();
    }, { capture: true });
  }

  /** Nearer (more than 1) or farther, with one point held. @param {number} by @param {number} [px] @param {number} [py] */
  zoom(by, px = this.stage.w / 2, py = this.stage.h / 2) {
    const { stage } = this;
    const k = this.k * by;
    if (k > MOST && this.#into(px, py)) return;
    if (k < 0.97 && !this.near && stage.zoom.path.length) return stage.zoom.back(stage.zoom.path.length - 1);
    const to = Math.max(1, Math.min(MOST, k));
    this.x = px - ((px - this.x) * to) / this.k;
    this.y = py - ((py - this.y) * to) / this.k;
    this.k = to;
    this.#settle();
  }

  /** @param {number} dx @param {number} dy @returns {boolean} whether anything moved */
  pan(dx, dy) {
    const [x, y] = [this.x, this.y];
    this.x += dx;
    this.y += dy;
    this.#settle();
    return x !== this.x || y !== this.y;
  }

  /** The whole picture again. */
  reset() {
    if (!this.near && !this.x && !this.y) return;
    this.k = 1;
    this.#settle();
  }

  #settle() {
    const { stage } = this;
    this.x = Math.min(0, Math.max(stage.w * (1 - this.k), this.x));
    this.y = Math.min(0, Math.max(stage.h * (1 - this.k), this.y));
    stage.view.classList.toggle("near", this.near);
    stage.draw();
  }

  /** Into the part that is seen there. @param {number} x @param {number} y */
  #into(x, y) {
    const found = this.stage.overlay.parts.filter((p) => /^(layer|arc|head|cell|dim)-/.test(p.key ?? "")).find(({ box }) => x >= box.x && x <= box.x + box.w && y >= box.y && y <= box.y + box.h);
    if (!found) return false;
    this.reset();
    found.act();
    return true;
  }

  /** @param {CanvasRenderingContext2D} ctx */
  aim(ctx) {
    if (!this.near) return;
    ctx.translate(this.x, this.y);
    ctx.scale(this.k, this.k);
  }

  /** Where parts are seen; those out of sight are left out. @param {Part[]} parts @returns {Part[]} */
  seen(parts) {
    if (!this.near) return parts;
    const { w, h } = this.stage;
    return parts.flatMap((part) => {
      const [left, top] = [part.box.x * this.k + this.x, part.box.y * this.k + this.y];
      const [x, y] = [Math.max(0, left), Math.max(0, top)];
      const box = { x, y, w: Math.min(w, left + part.box.w * this.k) - x, h: Math.min(h, top + part.box.h * this.k) - y };
      return box.w > 1 && box.h > 1 ? [{ ...part, box }] : [];
    });
  }
}
