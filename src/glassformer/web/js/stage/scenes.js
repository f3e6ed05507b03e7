/** The scenes in the order in which the story is told. */

import { plain } from "../dom.js";
import { say } from "../words.js";
import { Machine, WHEN } from "./machine.js";
import { pct } from "./paint.js";
import { mixed } from "./quiz.js";

/**
 * @typedef {import("./stage.js").Stage} Stage
 * @typedef {object} Scene
 * @property {string} id its name in the address and in the words
 * @property {number} seconds how long its film lasts
 * @property {boolean} [covers] it paints every pixel itself
 * @property {number} [hold] where the film waits for a guess
 * @property {(stage: Stage) => Record<string, any>} [fields] of its sentence
 * @property {boolean} [unchanged] its numbers are of the model as it is, whatever is switched off
 * @property {(stage: Stage) => Promise<any>} [need] what it asks of the model beyond the stage's own data
 * @property {(pen: import("./paint.js").Pen, t: number, stage: Stage) => void} paint
 * @property {(stage: Stage) => import("./quiz.js").Question|null} [ask]
 * @property {(stage: Stage) => {room: string, set: Record<string, any>}|null} [room]
 * @property {(stage: Stage) => string} [told] the picture in words
 * @property {() => Promise<Scene>} [fetched] the scene itself, when this only holds its place
 */

/** @type {Scene} */
const machine = {
  id: "machine",
  seconds: 14,
  covers: true,
  hold: WHEN.bars - 0.05,
  fields: ({ data }) => ({ layers: data?.layers ?? "", n: data?.width ?? "", vocab: data?.vocab.toLocaleString("en") ?? "" }),
  paint(pen, t, stage) {
    const d = stage.data;
    if (!d) return;
    if (!stage.machine) {
      stage.machine = new Machine(d, stage.w, stage.h, stage.size);
      stage.machine.onPart = (/** @type {string} */ what, /** @type {number} */ i) => {
        if (what === "layer") stage.zoom.into({ layer: i });
        else if (what === "word") stage.state.set({ position: i });
        else stage.go("answer");
      };
    }
    stage.machine.paint(pen, t);
  },
  ask({ data }) {
    if (!data || data.next.length < 4) return null;
    const names = data.next.map((x) => plain(x.token));
    return { ask: say("ask.machine", { word: plain(data.tokens[data.position].text) }), ...mixed(names[0], names.slice(1), data.tokens[data.position].id), because: say("why.machine", { word: names[0], p: pct(data.next[0].probability), second: names[1], q: pct(data.next[1].probability) }) };
  },
  told({ data }) {
    if (!data) return "";
    return say("told.machine", { tokens: data.count, layers: data.layers, arcs: data.arcs.length, share: Math.round(100 * data.threshold), neurons: data.neurons.length, word: plain(data.next[0].token), p: pct(data.next[0].probability) });
  },
};

const words = async () => /** @type {any} */ (await import("./scenes_words.js"));
const attention = async () => /** @type {any} */ (await import("./scenes_attention.js"));
const next = async () => /** @type {any} */ (await import("./scenes_next.js"));

/** A scene's place, until it is wanted. @param {() => Promise<Record<string, Scene>>} from @param {string} id @returns {Scene} */
const later = (from, id) => ({ id, seconds: 8, need: async () => null, paint() {}, fetched: async () => (await from())[id] });

/** @type {Scene[]} */
export const SCENES = [
  machine, ...["numbers", "meaning"].map((id) => later(words, id)), ...["grid", "softmax", "values", "heads"].map((id) => later(attention, id)),
  ...["facts", "layers", "answer", "temperature", "why", "learning", "size"].map((id) => later(next, id)),
];

/** The scene itself, fetched when it is wanted first. @param {Scene} scene @returns {Promise<Scene>} */
export async function whole(scene) {
  if (!scene.fetched) return scene;
  const found = await scene.fetched();
  SCENES[SCENES.findIndex(({ id }) => id === found.id)] = found;
  return found;
}

/** @param {string|null} id @returns {Scene} */
export function sceneOf(id) {
  return SCENES.find((scene) => scene.id === id) ?? SCENES[0];
}
