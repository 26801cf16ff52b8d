// Requests to the server.

export class ConnectionLost extends Error {
  constructor() { super("The server can't be reached."); }
}

async function request(path, options) {
  let response;
  try {
    response = await fetch(path, options);
  } catch (error) {
    throw error.name === "AbortError" ? error : new ConnectionLost();
  }
  if (!response.ok) {
    const { message, field } = await readBody(response);
    throw Object.assign(new Error(message), { field }); // of a setting
  }
  return response;
}

async function readBody(response) {
  const isJson = (response.headers.get("content-type") || "").startsWith("application/json");
  return isJson ? response.json() : { message: await response.text() };
}

function post(body, signal) {
  return { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body), signal };
}

// The JSON of a GET, or of a POST where there is a body. Throws ConnectionLost, or an Error with the server's sentence.
export async function call(path, body) {
  return readBody(await request(path, body === undefined ? {} : post(body)));
}

// The JSON of a POST of a file's content, or of a text.
export async function upload(path, content) {
  return readBody(await request(path, { method: "POST", body: content }));
}

// Calls onEvent(name, data) for each server-sent event of a POST, until the server ends the response.
export async function readEvents(path, body, signal, onEvent) {
  const response = await request(path, post(body, signal));
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let received = "";
  for (;;) {
    let chunk;
    try {
      chunk = await reader.read();
    } catch (error) {
      throw error.name === "AbortError" ? error : new ConnectionLost();
    }
    if (chunk.done) return;
    const events = (received + chunk.value).split("\n\n");
    received = events.pop();
    for (const event of events) {
      const [, name, json] = event.match(/^event: (.*)\ndata: (.*)$/s);
      onEvent(name, JSON.parse(json));
    }
  }
}
