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

const given = [{ role: "user", content: [{ type: "input_text", text: "What is this?" },
                                         { type: "input_image", image_url: url, detail: "auto" }] }];
const response = await client.responses.create({ model: "demo", input: given, temperature: 0, instructions: "Be brief." });
ok(response.output_text === wanted && response.status === "completed" && response.usage.total_tokens > 0, "a response", response);
const types = [];
let delta = "";
for await (const e of await client.responses.create({ model: "demo", input: given, temperature: 0, stream: true })) {
  types.push(e.type);
  delta += e.type === "response.output_text.delta" ? e.delta : "";
}
ok(delta === wanted && types[0] === "response.created" && types.at(-1) === "response.completed", "a response's events", types);
const helper = await client.responses.stream({ model: "demo", input: given, temperature: 0 }).finalResponse();
ok(helper.output_text === wanted, "a response's stream helper", helper);
const cut = await client.responses.stream({ model: "demo", input: "Tell everything.", max_output_tokens: 1 }).finalResponse();
ok(cut.status === "incomplete" && cut.incomplete_details.reason === "max_output_tokens", "a response that is cut", cut);
const parsed = await client.responses.parse({
  model: "demo", input: given, text: { format: { type: "json_schema", name: "colour", schema, strict: true } },
});
ok(typeof JSON.parse(parsed.output_text).red === "boolean", "a response that fits a schema", parsed);

const follow = await client.responses.create({ model: "demo", input: "Why?", previous_response_id: response.id, max_output_tokens: 5 });
ok(follow.usage.input_tokens > response.usage.input_tokens, "a response to the one before", follow);
ok((await client.responses.retrieve(response.id)).output[0].content[0].text === wanted, "a response that is kept");
await client.responses.delete(response.id);

let called = null;
const tool = { name: "f", parse: JSON.parse, function: ({ a }) => String((called = a)),
               parameters: { type: "object", properties: { a: { type: "boolean" } }, required: ["a"] } };
const runner = client.chat.completions.runTools({ ...ask, max_tokens: 30, tools: [{ type: "function", function: tool }],
                                                  tool_choice: { type: "function", function: { name: "f" } } });
await runner.done();
ok(typeof called === "boolean" && runner.messages.at(-1).role === "tool", "runTools", runner.messages);

const begun = await client.chat.completions.create({ ...ask, messages: [...messages, { role: "assistant", content: "red" }] });
ok(begun.choices[0].message.content === wanted.slice(3), "an answer that is begun", begun);
const events = {};
const watched = client.chat.completions.stream({ ...ask, n: 2, logprobs: true, stream_options: { include_usage: true } });
for (const e of ["content.done", "logprobs.content.done", "totalUsage", "end"]) watched.on(e, () => (events[e] = (events[e] ?? 0) + 1));
await watched.done();
ok(events["content.done"] >= 1 && events.totalUsage === 1 && events.end === 1, "a stream's events", events);
const raw = await client.chat.completions.create(ask).withResponse();
ok(raw.request_id?.length > 0 && raw.response.headers.get("x-request-id") === raw.request_id, "a request's id", raw.request_id);

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
await fails("tools of another kind", () => client.chat.completions.create({ ...ask, tools: [{ type: "custom", custom: { name: "f" } }] }),
  (e) => e instanceof OpenAI.BadRequestError && e.param === "tools[0].type");
await fails("an earlier response", () => client.responses.create({ model: "demo", input: "x", previous_response_id: response.id }),
  (e) => e instanceof OpenAI.BadRequestError && e.param === "previous_response_id");
await fails("embeddings", () => client.embeddings.create({ model: "demo", input: "x" }),
  (e) => e instanceof OpenAI.NotFoundError && /\/v1\/embeddings/.test(e.message));
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
