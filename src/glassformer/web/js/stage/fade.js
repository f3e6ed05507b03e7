/** From one picture to the next: the old one fades over the new, grows out of its way, or shrinks back. */

import { ease } from "./paint.js";

/** @typedef {import("./paint.js").Box} Box */

export class Fade {
  /** The picture as it is. @param {HTMLCanvasElement} canvas @param {Box|null} from what of it grows to the whole @param {boolean} out whether it shrinks back instead */
  constructor(canvas, from, out) {
    this.copy = document.createElement("canvas");
    [this.copy.width, this.copy.height] = [canvas.width, canvas.height];
    this.copy.getContext("2d")?.drawImage(canvas, 0, 0);
    this.from = from;
    this.out = out;
    this.began = performance.now();
    this.long = from ? 420 : 260;
  }

  /** Draw what is left of it. @param {CanvasRenderingContext2D} ctx @param {number} now @param {number} w @param {number} high @returns {boolean} whether there is more to come */
  paint(ctx, now, w, high) {
    const s = ease((now - this.began) / this.long);
    if (s >= 1) return false;
    ctx.globalAlpha = 1 - s;
    if (this.from && !this.out) {
      const { x, y, w: wide, h: tall } = this.from;
      const k = 1 + (Math.min(w / wide, high / tall, 12) - 1) * s;
      ctx.drawImage(this.copy, -(x + wide / 2) * (k - 1), -(y + tall / 2) * (k - 1), w * k, high * k);
    } else if (this.out) {
      const k = 1 - 0.5 * s;
      ctx.drawImage(this.copy, (w * (1 - k)) / 2, (high * (1 - k)) / 2, w * k, high * k);
    } else ctx.drawImage(this.copy, 0, 0, w, high);
    ctx.globalAlpha = 1;
    return true;
  }
}
