// What the openai package does with `llava serve`: prints one TAP line a check. argv: base URL, picture, its answer.
import fs from "node:fs";
import { createRequire } from "node:module";

const OpenAI = createRequire(process.cwd() + "/")("openai").default;
const [base, file, wanted] = process.argv.slice(2);
const client = new OpenAI({ baseURL: base, apiKey: "sesame", maxRetries: 0 });
const url = "data:image/png;base64," + fs.readFileSync(file).toString("base64");
const messages = [{ role: "user", content: [{ type: "text", text: "What is this?" }, { type: "image_url", image_url: { url } }] }];
let count = 0;

function ok(good, name, why) {
  console.log(`${good ? "ok" : "not ok"} ${++count} - ${name}`);
  if (!good) console.log("# " + JSON.stringify(why));
}

const models = [];
for await (const m of client.models.list()) models.push(m.id);
ok(models.length === 1 && models[0] === "demo", "models", models);
ok((await client.models.retrieve("demo")).id === "demo", "a model");

const ask = { model: "demo", messages, temperature: 0 };
const whole = await client.chat.completions.create(ask);
ok(whole.choices[0].message.content === wanted && whole.usage.total_tokens > 0, "a chat with a picture", whole);

let text = "", usage = null, finish = null;
for await (const chunk of await client.chat.completions.create({ ...ask, stream: true, stream_options: { include_usage: true } })) {
  text += chunk.choices[0]?.delta?.content ?? "";
  finish = chunk.choices[0]?.finish_reason ?? finish;
  usage = chunk.usage ?? usage;
}
ok(text === wanted && finish === "stop" && usage.completion_tokens > 0, "a stream", { text, finish, usage });

const final = await client.chat.completions.stream(ask).finalChatCompletion();
ok(final.choices[0].message.content === wanted, "the stream helper", final);

const developer = await client.chat.completions.create({
  ...ask, max_completion_tokens: 2, user: "someone", seed: 7, n: 2,
  messages: [{ role: "developer", content: "Be brief." }, ...messages],
});
ok(developer.choices.length === 2 && developer.choices.every((c) => c.message.role === "assistant" && c.finish_reason === "length")
  && developer.usage.completion_tokens === 4, "a developer's message, two answers, max_completion_tokens", developer);

const weighed = await client.chat.completions.create({ ...ask, logprobs: true, top_logprobs: 3 });
const token = weighed.choices[0].logprobs.content[0];
ok(token.top_logprobs.length === 3 && token.top_logprobs[0].token === token.token && token.logprob <= 0
  && Buffer.from(token.bytes).toString() === token.token, "logprobs", token);

const object = await client.chat.completions.create({ ...ask, max_tokens: 200, response_format: { type: "json_object" } });
ok(object.choices[0].finish_reason === "length" || typeof JSON.parse(object.choices[0].message.content) === "object",
  "a JSON object", object);

const tilted = await client.chat.completions.create({ ...ask, max_tokens: 3, logit_bias: { 300: 100 }, presence_penalty: 0 });
ok(tilted.choices[0].message.content !== wanted, "logit_bias", tilted);

const completion = await client.completions.create({ model: "demo", prompt: "USER: Hi ASSISTANT:", max_tokens: 3 });
ok(typeof completion.choices[0].text === "string", "a completion", completion);

const schema = { type: "object", properties: { red: { type: "boolean" } }, required: ["red"], additionalProperties: false };
const shaped = await client.chat.completions.create({
  ...ask, response_format: { type: "json_schema", json_schema: { name: "colour", schema } },
});
ok(typeof JSON.parse(shaped.choices[0].message.content).red === "boolean", "an answer that fits a schema", shaped);

async function fails(name, f, check) {
  try {
    await f();
    ok(false, name, "no error");
  } catch (e) {
    ok(check(e), name, { status: e.status, message: e.message, kind: e.constructor.name });
  }
}
await fails("another model", () => client.chat.completions.create({ ...ask, model: "gpt-4" }),
  (e) => e instanceof OpenAI.NotFoundError && e.code === "model_not_found" && e.param === "model");
await fails("tools", () => client.chat.completions.create({ ...ask, tools: [{ type: "function", function: { name: "f", parameters: {} } }] }),
  (e) => e instanceof OpenAI.BadRequestError && e.param === "tools" && /not supported/.test(e.message));
await fails("a wrong value", () => client.chat.completions.create({ ...ask, temperature: 9 }),
  (e) => e instanceof OpenAI.BadRequestError && e.param === "temperature");
await fails("a wrong key", () => new OpenAI({ baseURL: base, apiKey: "no", maxRetries: 0 }).models.list(),
  (e) => e instanceof OpenAI.AuthenticationError);

const stop = new AbortController();
let seen = 0;
await fails("an aborted stream", async () => {
  const long = { ...ask, temperature: 2, max_tokens: 1500, n: 8, stream: true };
  for await (const _ of await client.chat.completions.create(long, { signal: stop.signal })) if (++seen === 3) stop.abort();
  throw new Error("ended by itself or by the abort");
}, (e) => seen >= 3 && (e instanceof OpenAI.APIUserAbortError || /abort/i.test(e.message)));
console.log(`1..${count}`);
