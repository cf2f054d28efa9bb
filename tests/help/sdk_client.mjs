// What other packages that speak OpenAI's API do with `llava serve`: the Vercel AI SDK by its three roads, LangChain, OpenAI's
// Agents SDK. Prints one TAP line a check. argv: base URL, picture, its answer.
import fs from "node:fs";
import { createRequire } from "node:module";
import { pathToFileURL } from "node:url";

const require = createRequire(process.cwd() + "/");
const load = (name) => import(pathToFileURL(require.resolve(name)).href);
const [base, file, wanted] = process.argv.slice(2);
const apiKey = "sesame", picture = fs.readFileSync(file), url = "data:image/png;base64," + picture.toString("base64");
let count = 0;

async function check(name, f) {
  let good = false, why;
  try {
    why = await f();
    good = why === true;
  } catch (e) {
    why = { name: e.name, message: e.message, status: e.statusCode ?? e.status, stack: e.stack?.split("\n").slice(1, 4) };
  }
  console.log(`${good ? "ok" : "not ok"} ${++count} - ${name}`);
  if (!good) console.log("# " + JSON.stringify(why));
}

async function fails(name, f, fits) {
  await check(name, async () => {
    try {
      return { "no error, but": await f() };
    } catch (e) {
      return fits(e) || { status: e.statusCode ?? e.status, message: e.message };
    }
  });
}

const { z } = await load("zod");
const ai = await load("ai");
const { createOpenAI } = await load("@ai-sdk/openai");
const { createOpenAICompatible } = await load("@ai-sdk/openai-compatible");
globalThis.AI_SDK_LOG_WARNINGS = false;
const openai = createOpenAI({ baseURL: base, apiKey });
const compatible = createOpenAICompatible({ name: "llava", baseURL: base, apiKey, includeUsage: true, supportsStructuredOutputs: true });
const messages = [{ role: "user", content: [{ type: "text", text: "What is this?" },
                                            { type: "file", mediaType: "image/png", data: picture }] }];
const Fruit = z.object({ fruit: z.enum(["apple", "pear"]), red: z.boolean(), n: z.int().min(1).max(9), code: z.string().regex(/^[A-C]{2}$/) });
for (const [road, model] of [["responses", openai], ["chat", openai.chat], ["compatible", compatible]]) {
  const how = { model: model("demo"), messages, temperature: 0, maxRetries: 0 };
  await check(`ai, ${road}: a picture`, async () => {
    const r = await ai.generateText(how);
    return (r.text === wanted && r.finishReason === "stop" && r.usage.outputTokens > 0) || [r.text, r.finishReason, r.usage];
  });
  await check(`ai, ${road}: a stream`, async () => {
    const r = ai.streamText(how);
    let text = "";
    for await (const piece of r.textStream) text += piece;
    const usage = await r.usage;
    return (text === wanted && (await r.finishReason) === "stop" && usage.inputTokens > 0) || [text, usage];
  });
  await check(`ai, ${road}: an object`, async () => {
    const r = await ai.generateText({ ...how, output: ai.Output.object({ schema: Fruit }) });
    return Fruit.safeParse(r.output).success || r.output;
  });
  await check(`ai, ${road}: a conversation`, async () => {
    const first = await ai.generateText(how);
    const next = [...messages, ...first.response.messages, { role: "user", content: "Why?" }];
    const r = await ai.generateText({ ...how, messages: next, maxOutputTokens: 9 });
    return (r.text.length > 0 && r.usage.inputTokens > first.usage.inputTokens) || r.text;
  });
  await check(`ai, ${road}: an abort`, async () => {
    const stop = new AbortController();
    const r = ai.streamText({ ...how, prompt: "Tell", messages: undefined, temperature: 2, abortSignal: stop.signal });
    let n = 0;
    for await (const _ of r.textStream) if (++n === 2) stop.abort();
    return n >= 1;
  });
  await fails(`ai, ${road}: another model`, () => ai.generateText({ ...how, model: model("none") }),
    (e) => e.statusCode === 404 && /'none' does not exist/.test(e.message));
  const f = ai.tool({ description: "f", inputSchema: z.object({ a: z.enum(["x", "y"]) }), execute: async ({ a }) => `it is ${a}` });
  await check(`ai, ${road}: a tool, and an answer after it`, async () => {
    let step = 0;
    const r = await ai.generateText({ ...how, tools: { f }, maxOutputTokens: 60, stopWhen: ai.stepCountIs(2),
                                      prepareStep: () => ({ toolChoice: step++ ? "none" : "required" }) });
    const call = r.steps[0].toolResults[0];
    return (r.steps.length === 2 && call.output === `it is ${call.input.a}` && r.text.length > 0) || r.steps;
  });
  await check(`ai, ${road}: a tool in a stream`, async () => {
    const r = ai.streamText({ ...how, tools: { f }, toolChoice: { type: "tool", toolName: "f" } });
    const types = new Set();
    for await (const part of r.fullStream) types.add(part.type);
    return (types.has("tool-call") && types.has("tool-result") && (await r.finishReason) === "tool-calls") || [...types];
  });
}

const { ChatOpenAI, OpenAI: Completions } = await load("@langchain/openai");
const { HumanMessage, SystemMessage } = await load("@langchain/core/messages");
const ask = new HumanMessage({ content: [{ type: "text", text: "What is this?" }, { type: "image_url", image_url: { url } }] });
const textOf = (m) => (typeof m.content === "string" ? m.content : m.content.map((p) => p.text ?? "").join(""));
for (const useResponsesApi of [false, true]) {
  const road = `LangChain, ${useResponsesApi ? "responses" : "chat"}`;
  const conf = { model: "demo", apiKey, configuration: { baseURL: base }, temperature: 0, maxRetries: 0, useResponsesApi };
  const m = new ChatOpenAI(conf);
  await check(`${road}: a picture`, async () => {
    const r = await m.invoke([new SystemMessage("Be brief."), ask]);
    return (textOf(r) === wanted && r.usage_metadata.total_tokens > 0) || r;
  });
  await check(`${road}: a stream`, async () => {
    let text = "";
    for await (const piece of await m.stream([ask])) text += textOf(piece);
    return text === wanted || text;
  });
  await check(`${road}: an object`, async () => {
    const r = await m.withStructuredOutput(Fruit, { method: "jsonSchema" }).invoke([ask]);
    return Fruit.safeParse(r).success || r;
  });
  await check(`${road}: an object, by a tool`, async () => {
    const r = await m.withStructuredOutput(z.object({ red: z.boolean() }), { method: "functionCalling" }).invoke([ask]);
    return typeof r.red === "boolean" || r;
  });
  await check(`${road}: a conversation`, async () => {
    const r = await m.invoke([ask, await m.invoke([ask]), new HumanMessage("Why?")], {});
    return textOf(r).length > 0 || r;
  });
}
await check("LangChain: twenty completions", async () => {
  const m = new Completions({ model: "demo", apiKey, configuration: { baseURL: base }, maxTokens: 2, maxRetries: 0 });
  const r = await m.generate(Array.from({ length: 20 }, (_, i) => `USER: ${i} ASSISTANT:`));
  return r.generations.length === 20 || r;
});

const agents = await load("@openai/agents");
const { OpenAI } = await load("openai");
agents.setTracingDisabled(true);
const client = new OpenAI({ baseURL: base, apiKey, maxRetries: 0 });
for (const [road, Model] of [["responses", agents.OpenAIResponsesModel], ["chat", agents.OpenAIChatCompletionsModel]]) {
  const make = (more) => new agents.Agent({ name: "A", instructions: "Be brief.", model: new Model(client, "demo"),
                                            modelSettings: { temperature: 0, maxTokens: 40 }, ...more });
  await check(`agents, ${road}: an answer and the next`, async () => {
    const r = await agents.run(make(), "Hi");
    const next = await agents.run(make(), [...r.history, { role: "user", content: "And?" }]);
    return (r.finalOutput.length > 0 && next.finalOutput.length > 0) || [r.finalOutput, next.finalOutput];
  });
  await check(`agents, ${road}: a stream`, async () => {
    const r = await agents.run(make(), "Hi", { stream: true });
    let text = "";
    for await (const piece of r.toTextStream()) text += piece;
    await r.completed;
    return text === r.finalOutput || [text, r.finalOutput];
  });
  await check(`agents, ${road}: an object`, async () => {
    const r = await agents.run(make({ outputType: z.object({ red: z.boolean() }) }), "Hi");
    return typeof r.finalOutput.red === "boolean" || r.finalOutput;
  });
}
console.log(`1..${count}`);
