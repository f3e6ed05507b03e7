// What this client sees of the server, as a line of JSON; benchmarks/clients.py runs it.
import OpenAI from "openai";
const client = new OpenAI({baseURL: process.env.URL + "/v1", apiKey: "none"});
const model = process.env.MODEL, messages = [{role: "user", content: "Say hello."}];
const form = {type: "json_schema", json_schema: {name: "c", schema: JSON.parse(process.env.SCHEMA), strict: true}};
const seen = {
  text: async () => (await client.chat.completions.create({model, messages, max_tokens: 5})).choices[0].message,
  stream: async () => { let n = 0; for await (const c of await client.chat.completions.create({model, messages, max_tokens: 5, stream: true})) n++; return n; },
  schema: async () => JSON.parse((await client.chat.completions.create({model, messages, response_format: form})).choices[0].message.content).city,
  tools: async () => (await client.chat.completions.create({model, messages, tools: [JSON.parse(process.env.TOOL)], tool_choice: "required"})).choices[0].message.tool_calls[0],
  embeddings: async () => (await client.embeddings.create({model, input: "a"})).data[0].embedding.length,
  responses: async () => (await client.responses.create({model, input: "Hello", max_output_tokens: 5})).output,
};
const out = {};
for (const [name, run] of Object.entries(seen)) {
  try { const got = await run(); out[name] = got ? "yes" : "nothing"; } catch (error) { out[name] = String(error).slice(0, 150); }
}
console.log(JSON.stringify(out));
