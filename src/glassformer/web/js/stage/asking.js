/** What scenes and parts ask of a text: its words, and views of it. */

import { plain } from "../dom.js";

/** @typedef {import("./stage.js").Stage} Stage */

/** A token of the text as a word. @param {Stage} stage @param {number} i */
export const word = (stage, i) => plain(stage.data?.tokens[i]?.text ?? "");

/** Ask a view of the stage's text. @param {Stage} stage @param {string} view @param {Record<string, any>} [more] */
export const ask = (stage, view, more = {}) => stage.source.get(view, { text: stage.state.get("text"), model: stage.state.get("model"), edits: stage.state.get("edits"), ...more });
