/** What turns the thing that an edit switches off. */

/** A scale without its `by`. @param {any} edit */
export function dialOf(edit) {
  const { layer, position, source } = edit;
  if (edit.kind === "ablate_read") return { kind: "scale", part: "read", layer, unit: edit.head, source: [source], position };
  if (edit.kind === "ablate_mlp") return { kind: "scale", part: "feed_forward", layer, position };
  if (edit.kind === "ablate_expert") return { kind: "scale", part: "expert", layer, unit: edit.expert, position };
  if (edit.kind === "ablate_neuron") return { kind: "scale", part: "neuron", layer, unit: edit.neuron, position };
  return { kind: "scale", part: "word", source };
}
