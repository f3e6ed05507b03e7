/** A question before the answer shows: a guess, scored against the model, and the reason. */

import { h, put } from "../dom.js";
import { say } from "../words.js";

/** @typedef {{ask: string, choices: string[], right: number, because: string}} Question */

export class Quiz {
  /** @param {HTMLElement} element @param {() => void} answered */
  constructor(element, answered) {
    this.element = element;
    this.answered = answered;
    /** Guesses by scene. @type {Map<string, number>} */
    this.guesses = new Map();
    this.score = { right: 0, all: 0 };
    this.scene = "";
    /** @type {() => Question|null} */
    this.make = () => null;
    this.status = h("p", { class: "result", role: "status" });
  }

  /** Whether a question waits. */
  get open() {
    return this.make() !== null && !this.guesses.has(this.scene);
  }

  /** @param {string} scene @param {() => Question|null} make */
  show(scene, make) {
    this.scene = scene;
    this.make = make;
    this.reflect();
  }

  /** Another text has other answers. */
  forget() {
    this.guesses.clear();
  }

  /** The film stands still until a guess, or on. */
  wait() {
    this.element.classList.add("waits");
  }

  reflect() {
    const found = this.make();
    this.element.classList.remove("waits");
    this.element.hidden = !found;
    if (!found) return;
    const guess = this.guesses.get(this.scene);
    const buttons = found.choices.map((text, i) => {
      const kind = guess === undefined ? "" : i === found.right ? "right" : i === guess ? "wrong" : "other";
      return h("button", { type: "button", class: `choice ${kind}`, "aria-pressed": guess === i ? "true" : null, disabled: guess !== undefined, onclick: () => this.#guess(i, found) }, text);
    });
    this.status.textContent = guess === undefined ? "" : `${say(guess === found.right ? "quiz.right" : "quiz.wrong", { answer: found.choices[found.right] })} ${found.because}`;
    const tally = this.score.all ? h("span", { class: "soft small num" }, say("quiz.score", this.score)) : null;
    put(this.element, h("p", { class: "ask" }, h("strong", {}, say("quiz.first")), " ", found.ask), h("div", { class: "row" }, buttons, tally), this.status);
  }

  /** @param {number} i @param {Question} found */
  #guess(i, found) {
    this.guesses.set(this.scene, i);
    this.score = { right: this.score.right + Number(i === found.right), all: this.score.all + 1 };
    this.reflect();
    this.answered();
  }
}

/** Choices in an order that gives nothing away and is the same each time. @param {string} right @param {string[]} wrong @param {number} seed @returns {{choices: string[], right: number}} */
export function mixed(right, wrong, seed) {
  const others = [...new Set(wrong)].filter((w) => w !== right).slice(0, 3);
  const at = Math.abs(seed * 7919 + right.length * 31) % (others.length + 1);
  const choices = [...others];
  choices.splice(at, 0, right);
  return { choices, right: at };
}
