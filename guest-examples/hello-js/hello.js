// Greets whom the route or the body names, and counts down.

import { getEnvironment } from "wasi:cli/environment@0.2.10";

const TICK_MS = 50;
const encoder = new TextEncoder();

addEventListener("fetch", (event) => event.respondWith(answer(event.request)));

async function answer(request) {
  // As it stands in the path: percent-encoded.
  const parameter = (name) => decodeURIComponent(request.headers.get(`ebb-param-${name}`));
  switch (new URL(request.url).pathname.split("/")[1]) {
    case "hello":
      return new Response(`${greet(parameter("name"))}\n`, { headers: { "content-type": "text/plain; charset=utf-8" } });
    case "greetings":
      return greetings(await request.text());
    case "countdown": {
      const from = parameter("from");
      return /^\d+$/.test(from) ? countdown(Number(from)) : problem(`\`${from}\` is not a number`);
    }
  }
  return problem("there is no such path", 404);
}

function greet(name) {
  const { GREETING = "Hi" } = Object.fromEntries(getEnvironment());
  return `${GREETING}, ${name}!`;
}

function greetings(text) {
  try {
    return json({ greetings: JSON.parse(text).names.map(greet) });
  } catch {
    return problem('the body must be JSON: {"names": ["…"]}');
  }
}

// Server-sent events, each sent when it is its time.
function countdown(from) {
  const body = new ReadableStream({
    async start(controller) {
      for (let number = from; number >= 0; number -= 1) {
        controller.enqueue(encoder.encode(`data: ${number}\n\n`));
        await new Promise((done) => setTimeout(done, TICK_MS));
      }
      controller.close();
    },
  });
  return new Response(body, { headers: { "content-type": "text/event-stream" } });
}

function json(value, status = 200, type = "application/json") {
  return new Response(JSON.stringify(value), { status, headers: { "content-type": type } });
}

function problem(detail, status = 400) {
  return json({ status, detail }, status, "application/problem+json");
}
