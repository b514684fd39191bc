// OpenAI's own Node SDK, unmodified, against the HTTP edge. Run by tests/e2e/test_clients_node.py, which says through the
// environment where the service is, and which provider is to serve ("" when none can).
import assert from "node:assert/strict";
import { test } from "node:test";
import OpenAI from "openai";

const { ROUTECAST_HTTP, MODEL, EMBED, SERVED_BY } = process.env;
const client = new OpenAI({ baseURL: ROUTECAST_HTTP, apiKey: "none", maxRetries: 2, timeout: 20_000 });
const messages = [{ role: "user", content: "hello" }];
const served = { skip: SERVED_BY ? false : "nobody serves" };

test("a chat completion", served, async () => {
  const { data, response } = await client.chat.completions.create({ model: MODEL, messages }).withResponse();
  assert.match(data.choices[0].message.content, new RegExp(`^${SERVED_BY} received 1 messages`));
  assert.equal(response.headers.get("x-routecast-provider"), SERVED_BY);
  assert.ok(response.headers.get("x-request-id"));
});

test("a stream, with usage", served, async () => {
  const stream = await client.chat.completions.create({
    model: MODEL,
    messages,
    stream: true,
    stream_options: { include_usage: true },
  });
  let text = "";
  let usage = null;
  for await (const chunk of stream) {
    text += chunk.choices[0]?.delta?.content ?? "";
    usage = chunk.usage ?? usage;
  }
  assert.match(text, new RegExp(`^${SERVED_BY} received 1 messages`));
  assert.ok(usage.completion_tokens > 0);
});

test("the stream helper puts a message together", served, async () => {
  const final = await client.chat.completions.stream({ model: MODEL, messages }).finalChatCompletion();
  assert.equal(final.choices[0].finish_reason, "stop");
});

test("a tool call, streamed", served, async () => {
  const look = { type: "function", function: { name: "look", parameters: { type: "object", properties: {} } } };
  const stream = client.chat.completions.stream({ model: MODEL, messages, tools: [look], tool_choice: "required" });
  const [call] = (await stream.finalMessage()).tool_calls;
  assert.equal(call.function.name, "look");
  assert.equal(JSON.parse(call.function.arguments).provider, SERVED_BY);
});

test("embeddings, asked for as base64 by default", served, async () => {
  const answer = await client.embeddings.create({ model: EMBED, input: ["a", "b"] });
  assert.deepEqual(answer.data.map((each) => each.embedding.length), [8, 8]);
  assert.ok(Math.abs(Math.hypot(...answer.data[0].embedding) - 1) < 1e-5);
});

test("a response, whole and streamed", served, async () => {
  const whole = await client.responses.create({ model: MODEL, input: "hello" });
  assert.match(whole.output_text, new RegExp(`^${SERVED_BY} received 1 messages`));
  const final = await client.responses.stream({ model: MODEL, input: "hello" }).finalResponse();
  assert.equal(final.output_text, whole.output_text);
});

test("the models", async () => {
  const ids = (await client.models.list()).data.map((model) => model.id);
  assert.deepEqual(ids, [MODEL, EMBED].sort());
});

test("an unknown model is not found", async () => {
  await assert.rejects(client.chat.completions.create({ model: "gpt-9", messages }), OpenAI.NotFoundError);
});

test("a caller that leaves a stream ends it", served, async () => {
  const stream = await client.chat.completions.create({ model: MODEL, messages, stream: true });
  for await (const _ of stream) break;
  assert.ok(stream.controller.signal.aborted);
});

test("when nobody serves, the error says so and is not retried", { skip: SERVED_BY ? "served" : false }, async () => {
  await assert.rejects(client.chat.completions.create({ model: MODEL, messages }), (error) => {
    assert.equal(error.status, 503);
    assert.ok(error instanceof OpenAI.InternalServerError);
    assert.equal(error.error.attempts.length, 3);
    assert.equal(error.headers.get("x-should-retry"), "false");
    return true;
  });
});
