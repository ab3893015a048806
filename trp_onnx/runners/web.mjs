// worker.mjs in a browser: asks the server that served it for requests, and posts the answers.

import * as ort from "./ort/ort.wasm.min.mjs";
import { Worker, answer } from "./worker.mjs";

const post = (path, body) => fetch(path, { method: "POST", body: JSON.stringify(body) });
const { threads, version, machine } = await (await fetch("start")).json();

ort.env.wasm.numThreads = threads;
ort.env.wasm.wasmPaths = new URL("./ort/", import.meta.url).href;
if (threads > 1 && !crossOriginIsolated) throw new Error("the page is not isolated: no threads");

let last = Date.now();
const alive = async () => {
  if (Date.now() - last > 1000) await post("alive", {});
  last = Date.now();
};

// WebAssembly has no files: the runtime prints its profile, and what it prints goes to the console that it finds when
// it starts.
let said = [];
console.log = (...words) => said.push(words.join(" "));

const openProfile = (options) => {
  options.enableProfiling = true;
  return async (session) => {
    said = [];
    session.endProfiling();
    await new Promise((resolve) => setTimeout(resolve, 100));
    return said.join("\n");
  };
};

const about = {
  machine, runtime: `onnxruntime-web ${version}`, host: navigator.userAgent.match(/Chrome\/\S+/)?.[0] ?? navigator.userAgent,
  providers: ["CPUExecutionProvider"], profiles: true,
};
const worker = new Worker(ort, "wasm", about, openProfile, alive);
for (;;) {
  const request = await (await fetch("request")).json();
  if (request.do === undefined) continue;
  await post("answer", await answer(worker, request));
}
