// What this client sees of the server, as a line of JSON; benchmarks/clients.py runs it.
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { generateText, streamText, generateObject, jsonSchema, embed } from "ai";
const made = createOpenAICompatible({name: "g", baseURL: process.env.URL + "/v1", apiKey: "none", supportsStructuredOutputs: true});
const model = made(process.env.MODEL), prompt = "Say hello.", schema = jsonSchema(JSON.parse(process.env.SCHEMA));
const seen = {
  text: async () => (await generateText({model, prompt, maxOutputTokens: 5})).text,
  stream: async () => { let n = 0; for await (const t of streamText({model, prompt, maxOutputTokens: 5}).textStream) n++; return n; },
  schema: async () => (await generateObject({model, prompt, schema})).object.city,
  tools: async () => (await generateText({model, prompt, tools: {look: {description: "Look.", inputSchema: schema}}, toolChoice: "required"})).toolCalls[0],
  embeddings: async () => (await embed({model: made.textEmbeddingModel(process.env.MODEL), value: "a"})).embedding.length,
};
const out = {};
for (const [name, run] of Object.entries(seen)) {
  try { const got = await run(); out[name] = got ? "yes" : "nothing"; } catch (error) { out[name] = String(error).slice(0, 150); }
}
console.log(JSON.stringify(out));
