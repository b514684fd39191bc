// @grpc/grpc-js, the JavaScript implementation of gRPC, with the protos loaded as they are. See openai.test.mjs.
import assert from "node:assert/strict";
import { after, test } from "node:test";
import grpc from "@grpc/grpc-js";
import loader from "@grpc/proto-loader";

const { ROUTECAST_GRPC, PROTOS, MODEL, EMBED, SERVED_BY } = process.env;
const definition = loader.loadSync("routecast/v1/router.proto", {
  includeDirs: [PROTOS],
  keepCase: true,
  enums: String,
  longs: Number,
  defaults: true,
  oneofs: true,
});
const { RouterService } = grpc.loadPackageDefinition(definition).routecast.v1;
const client = new RouterService(ROUTECAST_GRPC, grpc.credentials.createInsecure());
const chat = { model: MODEL, messages: [{ role: "ROLE_USER", text: "hello" }] };
const served = { skip: SERVED_BY ? false : "nobody serves" };
const deadline = () => ({ deadline: Date.now() + 20_000 });

after(() => client.close());

const call = (method, request) =>
  new Promise((resolve, reject) => {
    client[method](request, deadline(), (error, reply) => (error ? reject(error) : resolve(reply)));
  });

const collect = (request) =>
  new Promise((resolve, reject) => {
    const events = [];
    const stream = client.StreamComplete(request, deadline());
    stream.on("data", (event) => events.push(event));
    stream.on("error", reject);
    stream.on("end", () => resolve(events));
  });

test("Complete", served, async () => {
  const reply = await call("Complete", { chat });
  assert.equal(reply.routing.provider, SERVED_BY);
  assert.match(reply.choices[0].message.text, new RegExp(`^${SERVED_BY} received 1 messages`));
  assert.ok(reply.usage.output_tokens > 0);
  assert.equal(JSON.parse(reply.raw_json).object, "chat.completion");
});

test("StreamComplete", served, async () => {
  const events = await collect({ chat });
  const text = events.flatMap((event) => event.chunk?.deltas ?? []).map((delta) => delta.text).join("");
  assert.match(text, new RegExp(`^${SERVED_BY} received 1 messages`));
  assert.equal(events.at(-1).report.provider, SERVED_BY);
});

test("Embed", served, async () => {
  const reply = await call("Embed", { model: EMBED, inputs: ["a", "b"] });
  assert.deepEqual(reply.embeddings.map((each) => each.values.length), [8, 8]);
});

test("Route, and an outcome reported", async () => {
  const advice = await call("Route", { model: MODEL });
  assert.equal(advice.candidates.length > 0, true);
  const accepted = await new Promise((resolve, reject) => {
    const reports = client.ReportOutcome(deadline(), (error, reply) => (error ? reject(error) : resolve(reply)));
    const { decision_id, candidates } = advice;
    const endpoint_id = candidates[0].endpoint_id;
    reports.write({ decision_id, endpoint_id, outcome: "OUTCOME_OK", latency: { nanos: 5_000_000 } });
    reports.end();
  });
  assert.equal(accepted.accepted, 1);
});

test("ListModels", async () => {
  const { models } = await call("ListModels", {});
  assert.deepEqual(models.map((model) => model.id).sort(), [MODEL, EMBED].sort());
});

test("an unknown model is NOT_FOUND, with details", async () => {
  await assert.rejects(call("Complete", { chat: { ...chat, model: "gpt-9" } }), (error) => {
    assert.equal(error.code, grpc.status.NOT_FOUND);
    const [details] = error.metadata.get("grpc-status-details-bin");
    assert.ok(details.includes("UNKNOWN_MODEL"));
    return true;
  });
});

test("a cancelled stream ends at once", served, async () => {
  const stream = client.StreamComplete({ chat }, deadline());
  const error = await new Promise((resolve) => {
    stream.on("error", resolve);
    stream.once("data", () => stream.cancel());
  });
  assert.equal(error.code, grpc.status.CANCELLED);
});

test("when nobody serves, UNAVAILABLE with details", { skip: SERVED_BY ? "served" : false }, async () => {
  // Made one after the other: a refusal that nobody awaits yet would end the process.
  for (const attempt of [() => call("Complete", { chat }), () => collect({ chat })]) {
    await assert.rejects(attempt, (error) => {
      assert.equal(error.code, grpc.status.UNAVAILABLE);
      assert.ok(error.metadata.get("grpc-status-details-bin")[0].includes("google.rpc.RetryInfo"));
      return true;
    });
  }
});
